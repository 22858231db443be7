"""What engines of rows share: standardised columns, and the front of what was found so far.

Engines see columns of root mean square 1 and a target of standard deviation 1, because float32 and penalties
on size need it; constants are folded back in float64. Sizes and errors are ours, not the engine's.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from common.rng import rng
from interchange.language import expression as ex
from interchange.language.canonical import to_node
from interchange.language.execute import compile_program, evaluate
from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.language.simplify import folded
from interchange.search import Task

OVER, AT_LEAST = 1.5, 4  # times the largest size, and nodes, beyond it: pruning shortens what is longer


@dataclasses.dataclass(frozen=True, eq=False)
class Standard:
    """A task's rows for an engine.

    Attributes:
        rows: float64 [n, columns], each divided by its size.
        y: float64 [n], divided by ``spread``.
        sizes: [columns], root mean squares.
        spread: standard deviation of the target.
    """

    rows: np.ndarray
    y: np.ndarray
    sizes: np.ndarray
    spread: float

    def node(self, tree: Any) -> Node:
        """A tree of nested lists over standardised columns as an expression over columns ``x0, x1, ...``."""
        columns = [ex.name(f"x{k}") for k in range(len(self.sizes))]
        node = folded(to_node(self._rescaled(tree), columns))
        return to_node(as_tree(node), columns, self.spread)

    def _rescaled(self, tree: Any) -> Any:
        op, *args = tree
        if op == "c":
            return tree
        if op == "x":
            return ["mul", ["c", float(1.0 / self.sizes[args[0]])], tree]
        return [op, *map(self._rescaled, args)]


def standardised(task: Task) -> Standard:
    """The task's rows and target, each divided by its size; what is 0 throughout stays."""
    largest = np.abs(task.rows).max(axis=0)
    largest[largest == 0.0] = 1.0
    sizes = largest * np.sqrt(np.square(task.rows / largest).mean(axis=0))
    sizes[sizes == 0.0] = 1.0
    spread = float(task.y.std()) or 1.0
    return Standard(task.rows / sizes, task.y / spread, sizes, spread)


def resampled(task: Task, arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The arrays' rows as often as their weights say (systematic resampling), for engines without weights.

    As they are if all weigh the same.
    """
    if np.ptp(task.weights) == 0.0:
        return list(arrays)
    count = len(task.weights)
    share = np.cumsum(task.weights / task.weights.sum())
    places = (rng(task.seed, "resampling").random() + np.arange(count)) / count
    chosen = np.minimum(np.searchsorted(share, places), count - 1)
    return [array[chosen] for array in arrays]


def as_tree(node: Node) -> list:
    """Nested lists of an expression over ``x0, x1, ...``, as ``Standard.node`` takes them."""
    if node.op == "number":
        return ["c", node.value]
    if node.op == "name":
        return ["x", int(node.name[1:])]
    return [node.op, *map(as_tree, node.args)]


class Archive:
    """The best expression of every size, judged on the task's own rows; reports what improves it."""

    def __init__(self, task: Task, report: Callable[[list[str]], None]) -> None:
        self._task, self._report = task, report
        self._lock = threading.Lock()
        self._columns = {f"x{k}": parse(text, task.names) for k, text in enumerate(task.columns)}
        self._inputs = {f"x{k}": task.rows[None, :, k] for k in range(len(task.columns))}
        self._seen: set[Node] = set()
        self._best: dict[int, tuple[float, str]] = {}

    def add(self, nodes: Iterable[Node]) -> None:
        """Judge expressions over columns ``x0, x1, ...``, and report if the front changed."""
        with self._lock:  # islands share it
            self._add(nodes)

    def _add(self, nodes: Iterable[Node]) -> None:
        before = self.texts()
        for node in nodes:
            if node in self._seen:
                continue
            self._seen.add(node)
            whole = ex.substitute(node, self._columns)
            size = ex.complexity(whole)
            if size > max(OVER * self._task.max_size, self._task.max_size + AT_LEAST):
                continue
            error = self._error(node)
            if error < self._best.get(size, (np.inf,))[0]:
                self._best[size] = (error, ex.to_text(whole))
        if self.texts() != before:
            self._report(self.texts())

    def texts(self) -> list[str]:
        """The Pareto front of size and weighted squared error, shortest first."""
        front, lowest = [], np.inf
        for _, (error, text) in sorted(self._best.items()):
            if error < lowest:
                lowest = error
                front.append(text)
        return front

    def _error(self, node: Node) -> float:
        """Weighted sum of squares on the rows, whatever the engine says; infinite if not finite."""
        (out,) = evaluate(compile_program([node]), self._inputs)
        with np.errstate(all="ignore"):
            error = float(self._task.weights @ np.square(np.asarray(out).reshape(-1) - self._task.y))
        return error if np.isfinite(error) else np.inf
