"""Sparse linear regression over a dictionary: the columns, simple functions of them, products of the leading.

Orthogonal matching pursuit (Pati et al. 1993), so the whole path from 1 term to many is one pass.
"""

from collections.abc import Callable, Iterator

import numpy as np

from interchange.language import expression as ex
from interchange.language.expression import Node
from interchange.search import Task
from interchange.search.pursuit import pursuit
from interchange.search.standard import Archive, Standard, standardised

MOST_TERMS = 20
_FUNCTIONS = ("square", "tanh", "abs", "sign", "cbrt")
_LEADING = 12  # columns whose products are tried
_VALUES = 1 << 28  # bytes of a dictionary


def search(task: Task, report: Callable[[list[str]], None]) -> list[str]:
    """Sums of 1, 2, ... terms: over the columns alone first, then over the whole dictionary."""
    archive = Archive(task, report)
    data = standardised(task)
    columns = [ex.name(f"x{k}") for k in range(len(task.columns))]
    path = list(_sums(columns, task.rows.T, task, data))
    archive.add(node for _, node in path)
    leading = path[-1][0] if path else []
    dictionary, values = _dictionary(columns, leading[:_LEADING], task, data)
    archive.add(node for _, node in _sums(dictionary, values, task, data))
    return archive.texts()


def _dictionary(
    columns: list[Node], leading: list[int], task: Task, data: Standard
) -> tuple[list[Node], np.ndarray]:
    """Terms and their values [terms, n]; tanh is taken of standardised columns, the others have no scale."""
    from interchange.language.execute import compile_program, evaluate

    nodes = [ex.number(1.0), *columns]
    for k, column in enumerate(columns):
        inner = ex.call("mul", ex.number(1.0 / data.sizes[k]), column)
        nodes += [ex.call(op, inner if op == "tanh" else column) for op in _FUNCTIONS]
    nodes += [ex.call("mul", columns[i], columns[j]) for n, i in enumerate(leading) for j in leading[n + 1 :]]
    nodes = nodes[: max(len(columns) + 1, _VALUES // (8 * len(task.y)))]
    inputs = {f"x{k}": task.rows[None, :, k] for k in range(len(columns))}
    shape = len(task.y)
    outs = (evaluate(compile_program([node]), inputs)[0] for node in nodes)
    return nodes, np.stack([np.broadcast_to(np.asarray(out).reshape(-1), shape) for out in outs])


def _sums(
    terms: list[Node], values: np.ndarray, task: Task, data: Standard
) -> Iterator[tuple[list[int], Node]]:
    """The pursuit's path: chosen terms, and their sum."""
    root = np.sqrt(task.weights / task.weights.mean())
    for chosen, weights, _ in pursuit(values * root, data.y * root, MOST_TERMS):
        total: Node | None = None
        for index, weight in zip(chosen, weights, strict=True):
            factor = ex.number(weight * data.spread)
            term = factor if terms[index].op == "number" else ex.call("mul", factor, terms[index])
            total = term if total is None else ex.call("add", total, term)
        if total is not None:
            yield chosen, total
