"""Fitted regressors of PySR and pyoperon -> the parts of rules, constants with every digit they keep."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.errors import L2OError
from interchange.dialects.custom import with_operators
from interchange.dialects.functions import ONE, ZERO, named
from interchange.dialects.table import DIALECTS, operon_tree
from interchange.dialects.variables import Variables
from interchange.language import expression as ex
from interchange.language.canonical import to_node
from interchange.language.parse import Dialect, parse

_FLOAT32 = re.compile(r"\b(\d+\.?\d*)f([+-]?\d+)\b")  # 1.5f-5: how Julia prints single precision
_TEMPLATE = re.compile(r"#\d|^\s*\w+\s*=[^=].*;")
_EQUATION = re.compile(r"\s*\w+\s*(?:\([\w\s,]*\)\s*)?=\s*([^=].*)")  # y = ..., f(x) = ...


def template(equation: str) -> str:
    """Why a template expression of PySR, or an equation of two sides, cannot be read; "" for any other."""
    if _TEMPLATE.search(equation):
        return (
            "a template expression of PySR, whose parts are put together by code that is not in it; write "
            "the whole equation out"
        )
    if sides := _EQUATION.fullmatch(equation):
        return f"expected one side of an equation, as {sides[1][:60]!r}, got {equation[:60]!r}"
    return ""


def without_suffix(equation: str) -> str:
    """Julia's literals of single precision as numbers."""
    return _FLOAT32.sub(r"\1e\2", equation)


def pysr_equation(
    model: Any,
    index: int | None = None,
    features: Mapping[str, str] | None = None,
    operators: Sequence[str] = (),
) -> dict[str, Any]:
    """The parts of the rule of one row of ``equations_``: the one PySR picks, or the one at ``index``.

    Operators that the model was given as Julia code, such as ``sq(x) = x^2``, are read from it where the rule
    language can say them; ``operators`` says the others, as ``sq=square(x)``.

    Raises:
        L2OError: the model is not fitted, has no such row, or the row has no exact meaning here.
    """
    table = getattr(model, "equations_", None)
    if table is None or isinstance(table, list):
        found = "several outputs" if isinstance(table, list) else f"{type(model).__name__} without equations_"
        raise L2OError(f"expected a fitted PySRRegressor of one output, got {found}; fit it to one y")
    if index is None:
        row = model.get_best()
    elif -len(table) <= index < len(table):
        row = table.iloc[index]
    else:
        raise L2OError(f"index: expected one of the {len(table)} rows of equations_, got {index}")
    known = [str(name) for name in getattr(model, "feature_names_in_", ())]
    text = without_suffix(str(row["equation"]))
    if reason := template(text):
        raise L2OError(f"row {row.name} of equations_: {reason}")
    variables = Variables([text], features, known)
    spelled = with_operators(_with_julia(DIALECTS["pysr-2"], _julia(model)), operators)
    try:
        node = parse(variables.text(text), None, spelled)
    except L2OError as error:
        if unknown := re.match(r"unknown operator '(\w+)'", str(error)):
            raise L2OError(f"{error}; {_remedy(unknown[1])}") from None
        raise
    parts = variables.parts(node)
    variables.said(list(parts["features"]))
    position = int(row.name) if index is None else index % len(table)
    return parts | {"provenance": {"engine": "pysr", "row": position} | _loss(row["loss"])}


def _julia(model: Any) -> list[str]:
    """Operators the model was given as code, by whichever keyword."""
    by_arity = getattr(model, "operators", None) or {}
    groups: Iterable[Any] = (
        *by_arity.values(),
        getattr(model, "unary_operators", None),
        getattr(model, "binary_operators", None),
    )
    return [text for group in groups for text in (group or ()) if "=" in text and "(" in text]


def _with_julia(dialect: Dialect, definitions: Sequence[str]) -> Dialect:
    """The dialect with those definitions that it can say; one that it cannot is refused where it is used."""
    ones = named(1, one=lambda a: ONE, zero=lambda a: ZERO)
    for text in definitions:
        spelled = with_operators(dialect, ())
        spelled = type(spelled)(**{**vars(spelled), "calls": {**spelled.calls, **ones}})
        try:
            dialect = with_operators(dialect, [without_suffix(text)], spelled)
        except L2OError as error:
            name = text.partition("(")[0].strip()
            reason = str(error).removeprefix(f"--operator {name}: ")
            why = f"unknown operator {name!r}; {_remedy(name)}; its own, {text[:60]!r}, is not read: {reason}"
            dialect = dataclasses.replace(dialect, refused={**dialect.refused, name: why})
    return dialect


def _remedy(name: str) -> str:
    return f"give its meaning with operators=['{name}=EXPRESSION']"


def operon_front(
    regressor: Any, features: Mapping[str, str] | None = None, rows: Iterable[Mapping] | None = None
) -> list[dict[str, Any]]:
    """The parts of the rules of a fitted ``pyoperon.sklearn.SymbolicRegressor``'s front, in its order.

    Args:
        rows: of the front; all by default.

    Raises:
        L2OError: it is not fitted, or a tree has no exact meaning here.
    """
    if getattr(regressor, "pareto_front_", None) is None:
        raise L2OError(f"expected a fitted SymbolicRegressor of pyoperon, got {type(regressor).__name__}")
    codes = {code: index for index, code in enumerate(regressor.variables_)}
    names = [str(name) for name in regressor.variables_.values()]
    variables = Variables([], features, names)
    columns = [ex.name(variables.renamed.get(name, name)) for name in names]
    found = []
    for row in regressor.pareto_front_ if rows is None else rows:
        node = to_node(operon_tree(read_tree(row["tree"].Nodes, codes)), columns)
        found.append(variables.parts(node) | {"provenance": {"engine": "operon"} | _loss(_error(row))})
    variables.said([name for parts in found for name in parts["features"]])
    return found


def operon_model(
    regressor: Any, index: int | None = None, features: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The parts of the rule of one row of the front: the one the regressor chose, or that at ``index``."""
    front = list(getattr(regressor, "pareto_front_", None) or ())
    if index is None:
        chosen = str(getattr(regressor, "model_", ""))
        best = [row for row in front if str(row["tree"]) == chosen] or sorted(front, key=_error)
    else:
        best = front[index : index + 1] if 0 <= index < len(front) else []
    if front and not best:
        raise L2OError(f"index: expected one of the {len(front)} rows of pareto_front_, got {index}")
    return operon_front(regressor, features, best[:1] or None)[0]


def _error(row: Mapping) -> float:
    return float(row.get("mean_squared_error", math.nan))


def _loss(value: float) -> dict[str, float]:
    return {"loss": float(value)} if math.isfinite(value) else {}


def read_tree(nodes: Any, columns: dict[int, int]) -> Any:
    """Nested lists from Operon's postfix nodes, whose first operand stands last."""
    stack: list[Any] = []
    for node in nodes:
        kind = str(node.Type).split(".")[-1].lower()
        if kind == "constant":
            stack.append(["c", float(node.Value)])
        elif kind == "variable":
            stack.append(["mul", ["c", float(node.Value)], ["x", columns[node.HashValue]]])
        else:
            args = [stack.pop() for _ in range(node.Arity)]
            tree = [kind, *args[:2]]
            for arg in args[2:]:  # add and mul may take more than two
                tree = [kind, tree, arg]
            stack.append(tree)
    (tree,) = stack
    return tree
