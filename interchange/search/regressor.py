"""Any regressor in scikit-learn's style as an engine: ``sklearn:MODULE:CLASS``, or an object in Python.

After ``fit(X, y)`` the equation is read from whatever the regressor offers; numbers stay at full precision
where it keeps them as numbers.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from common.errors import L2OError
from interchange.dialects.table import DIALECTS
from interchange.language import expression as ex
from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.search import Task
from interchange.search.standard import Archive, as_tree, resampled, standardised

_COLUMN = re.compile(r"[xX]_?(\d+)")


def search(task: Task, report: Callable[[list[str]], None]) -> list[str]:
    """Fit the class named by the engine; ``task.options`` are its arguments, and ``dialect`` if need be."""
    options = dict(task.options)
    module, _, name = options.pop("class").rpartition(":")
    kind = getattr(importlib.import_module(module), name, None)
    if not inspect.isclass(kind) or not hasattr(kind, "fit"):
        raise L2OError(f"expected a class with fit(X, y) called {name!r} in {module}; got none")
    dialect = options.pop("dialect", "")
    taken = inspect.signature(kind).parameters
    given = {"random_state": task.seed, "n_jobs": task.threads}
    return fit(
        kind(**{key: value for key, value in given.items() if key in taken} | options),
        task,
        report,
        lambda fitted: read(fitted, dialect),
    )


def fit(
    regressor: Any,
    task: Task,
    report: Callable[[list[str]], None] = lambda texts: None,
    read: Callable[[Any], Iterable[Node]] | None = None,
) -> list[str]:
    """Fit an object on the task's standardised rows; the front of its equations, over the features.

    Args:
        regressor: has ``fit(X, y)``, with ``sample_weight`` or not.
        read: the fitted object's equations over columns ``x0, x1, ...``; ``read`` of this module by default.
    """
    data, archive = standardised(task), Archive(task, report)
    if "sample_weight" in inspect.signature(regressor.fit).parameters:
        regressor.fit(data.rows, data.y, sample_weight=task.weights / task.weights.mean())
    else:
        regressor.fit(*resampled(task, (data.rows, data.y)))
    archive.add([data.node(as_tree(node)) for node in (read or globals()["read"])(regressor)])
    return archive.texts()


def read(fitted: Any, dialect: str = "") -> list[Node]:
    """The equations of a fitted regressor, over columns ``x0, x1, ...``.

    From ``_program`` (gplearn: a list in prefix order), ``equations_`` (texts, or a table with a column
    ``equation``), ``sympy()``, ``sympy_expr``. Variables are called
    ``x`` or ``X`` with the number of the column, from 0.

    Args:
        dialect: spelling of the texts (``dialects.table``), where it is not the usual one of the kind.
    """
    if hasattr(fitted, "_program"):
        program = getattr(fitted._program, "program", None)
        text = str(fitted._program) if program is None else prefix_text(program)
        return _parsed([text], dialect or "gplearn")
    if getattr(fitted, "equations_", None) is not None:
        table = fitted.equations_
        return _parsed(list(map(str, getattr(table, "equation", table))), dialect or "pysr-2")
    for name in ("sympy", "sympy_expr"):
        if hasattr(fitted, name):
            found = getattr(fitted, name)
            found = found() if callable(found) else found
            texts = found if isinstance(found, list | tuple) else [found]
            return _parsed([str(text) for text in texts], dialect or "sympy")
    raise L2OError(
        f"expected a fitted regressor with _program, equations_, sympy() or sympy_expr, got "
        f"{type(fitted).__name__}; pass a function that reads it"
    )


def prefix_text(program: Iterable[Any]) -> str:
    """gplearn's program as text with all digits, of which its own text has three."""
    open_calls: list[int] = []
    parts = []
    for item in program:
        if hasattr(item, "arity"):
            parts.append(f"{item.name}(")
            open_calls.append(int(item.arity))
            continue
        parts.append(f"X{item}" if isinstance(item, int | np.integer) else repr(float(item)))
        while open_calls:
            open_calls[-1] -= 1
            if open_calls[-1]:
                parts.append(", ")
                break
            parts.append(")")
            open_calls.pop()
    return "".join(parts)


def _parsed(texts: list[str], dialect: str) -> list[Node]:
    nodes = []
    for text in texts:
        node = parse(text, dialect=DIALECTS[dialect])
        renamed = {}
        for name in ex.names(node):
            match = _COLUMN.fullmatch(name)
            if not match:
                raise L2OError(f"expected variables x0, x1, ... in an equation, got {name!r}: {text[:80]!r}")
            renamed[name] = ex.name(f"x{int(match.group(1))}")
        nodes.append(ex.substitute(node, renamed))
    return nodes
