"""Tensor operators as ONNX nodes over a matrix [rows, cols], whose sizes are read from ``g`` at run time.

No branches: what a smaller side of 1, more rows than columns or a matrix of zeros need is chosen by Where, so
that the file is one list of nodes. Runtimes may lose a NaN in a maximum, so it is looked for.
"""

from collections.abc import Callable

import numpy as np

from interchange.emit.onnx.operators import Nodes

ROWS, COLUMNS = 0, 1


def side(n: Nodes, axis: int) -> str:
    """The size of ``g`` along one axis, int64 [1]."""
    return n.once("Shape", "g", start=axis, end=axis + 1)


def size(n: Nodes, name: str) -> str:
    """``rows``, ``cols`` or ``numel``, float32 without dimensions."""
    rows, columns = side(n, ROWS), side(n, COLUMNS)
    wanted = {"rows": rows, "cols": columns}.get(name) or n.once("Mul", rows, columns)
    return n.single(n.once("Squeeze", wanted, n.integers(0)))


def reduced(n: Nodes, op: str, x: str, *axes: int) -> str:
    """A sum, mean or maximum along axes, which stay with size 1."""
    return n.add(op, x, n.integers(*axes))


def maximum(n: Nodes, x: str, *axes: int) -> str:
    """The largest along axes; NaN where one is."""
    lost = reduced(n, "ReduceMax", n.single(n.add("IsNaN", x)), *axes)
    return n.add(
        "Where", n.add("Greater", lost, n.number(0.0)), n.number(np.nan), reduced(n, "ReduceMax", x, *axes)
    )


def norm(n: Nodes, m: str) -> str:
    """[1, 1]."""
    return n.add("Sqrt", reduced(n, "ReduceSum", n.add("Mul", m, m), ROWS, COLUMNS))


def turned(n: Nodes, m: str) -> str:
    return n.add("Transpose", m, perm=[1, 0])


def either(n: Nodes, wide: str, m: str, other: str, shape: str) -> str:
    """The numbers of ``m`` where ``wide``, else of ``other``, in a shape; their own shapes may differ."""
    flat = n.integers(-1)
    chosen = n.add("Where", wide, n.add("Reshape", m, flat), n.add("Reshape", other, flat))
    return n.add("Reshape", chosen, shape)


def newton_schulz(n: Nodes, m: str) -> str:
    """Five steps from ``m`` of norm 1, the smaller side first."""
    for _ in range(5):
        a = n.add("MatMul", m, turned(n, m))
        linear, square = n.add("Mul", n.number(-4.7750), a), n.add("MatMul", a, a)
        even = n.add("Add", linear, n.add("Mul", n.number(2.0315), square))
        m = n.add("Add", n.add("Mul", n.number(3.4445), m), n.add("MatMul", even, m))
    return m


def _polar(of_size: bool) -> Callable[[Nodes, str], str]:
    """``polar``, or with ``of_size`` ``orth``."""

    def build(n: Nodes, x: str) -> str:
        rows, columns = side(n, ROWS), side(n, COLUMNS)
        wide, least = n.once("LessOrEqual", rows, columns), n.once("Min", rows, columns)
        one = n.once("Equal", least, n.integers(1))
        largest = maximum(n, n.add("Abs", x), ROWS, COLUMNS)
        zero, ones = n.add("Equal", largest, n.number(0.0)), n.number(1.0)
        m = n.add("Where", zero, ones, n.add("Div", x, n.add("Where", zero, ones, largest)))
        lying = n.once("Concat", least, n.once("Max", rows, columns), axis=0)
        m = either(n, wide, m, turned(n, m), lying)
        length = norm(n, m)
        start = n.add("Div", m, length)
        m = n.add("Where", one, start, newton_schulz(n, start))
        if of_size:
            m = n.add("Mul", m, n.add("Mul", largest, n.add("Div", length, norm(n, m))))
        standing = n.add("Reshape", m, n.once("Concat", columns, rows, axis=0))
        out = either(n, wide, m, turned(n, standing), n.shape_of("g"))
        return n.add("Where", one, x, out) if of_size else n.add("Where", zero, n.number(0.0), out)

    return build


TENSOR: dict[str, Callable[[Nodes, str], str]] = {
    "mean": lambda n, x: reduced(n, "ReduceMean", x, ROWS, COLUMNS),
    "row_mean": lambda n, x: reduced(n, "ReduceMean", x, COLUMNS),
    "col_mean": lambda n, x: reduced(n, "ReduceMean", x, ROWS),
    "row_max": lambda n, x: maximum(n, x, COLUMNS),
    "col_max": lambda n, x: maximum(n, x, ROWS),
    "polar": _polar(of_size=False),
    "orth": _polar(of_size=True),
}
