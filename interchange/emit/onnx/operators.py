"""Pointwise operators as ONNX nodes, one builder per pointwise row of interchange.language.operators.

float32 or, where runtimes have kernels, double. What ONNX lacks, or runtimes compute otherwise than the
table says (NaN in Max and Relu, the tails of Sigmoid, powers of negative numbers), is composed; where float32
would lose digits, in double.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from common.errors import L2OError

if TYPE_CHECKING:
    from onnx import NodeProto

# erfc(z) = w exp(P(w) - z*z) for z >= 0 with w = 1 / (1 + z/2): a least-squares fit in Chebyshev nodes of P,
# lowest power first; relative error below 1.1e-8 for every z.
_ERFC = (-1.26551212428, 0.99999992725, 0.375020199005, 0.0825924332794, -0.0747341947029, -0.233707889072)
_ERFC += (0.33554022354, -1.22542516496, 2.39873372363, -2.20510749624, 0.991357595692, -0.178757243607)


# onnxruntime 1.15 to 1.31 has no kernels of these for double.
_SINGLE_ONLY = ("sinh", "cosh", "tan", "asinh", "atan", "erf", "erfc")


class Nodes:
    """The nodes of one function in order. Every method returns the name of a value.

    Args:
        dtype: float32, or float64 for a file in double.
    """

    def __init__(self, dtype: type = np.float32) -> None:
        self.nodes: list[NodeProto] = []
        self.dtype = dtype
        self._known: dict[tuple, str] = {}

    def add(self, op: str, *inputs: str, output: str = "", **attributes: object) -> str:
        """One node with one output, under the name ``output`` or the next ``x<number>``."""
        from onnx import helper

        output = output or f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def needed(self, outputs: Sequence[str]) -> "list[NodeProto]":
        """The nodes on which values depend: onnxruntime before 1.17 trips over a constant nobody reads."""
        wanted, kept = set(outputs), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                kept.append(node)
        return kept[::-1]

    def pointwise(self, op: str, *args: str) -> str:
        """An operator of the language."""
        if self.dtype is not np.float32 and op in _SINGLE_ONLY:
            raise L2OError(f"{op}: ONNX runtimes have no kernel for double; export it without --double")
        return ONNX[op](self, *args)

    def number(self, value: float, dtype: type | None = None) -> str:
        """A 0-dim constant, of the file's dtype; the same one is added once."""
        dtype = dtype or self.dtype
        key = (repr(float(value)), dtype)
        if key not in self._known:
            from onnx import numpy_helper

            with np.errstate(over="ignore"):  # beyond float32 it is infinite, as in the oracle
                tensor = numpy_helper.from_array(np.asarray(value, dtype))
            self._known[key] = self.add("Constant", value=tensor)
        return self._known[key]

    def once(self, op: str, *inputs: str, **attributes: object) -> str:
        """``add``, but the same node is added once."""
        key = (op, inputs, *attributes.items())
        if key not in self._known:
            self._known[key] = self.add(op, *inputs, **attributes)
        return self._known[key]

    def shape_of(self, a: str) -> str:
        """The shape of ``a``."""
        return self.once("Shape", a)

    def split(self, a: str, parts: int, size: int) -> list[str]:
        """Parts of so many rows along the first axis."""
        from onnx import helper

        sizes = self.integers(*[size] * parts)
        names = [f"x{len(self.nodes)}_{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [a, sizes], names, axis=0))
        return names

    def integers(self, *values: int) -> str:
        """A 1-dim constant."""
        if ("integers", values) not in self._known:
            self._known["integers", values] = self.add("Constant", value_ints=list(values))
        return self._known["integers", values]

    def double(self, a: str) -> str:
        """``a`` in double precision."""
        return self._cast(a, np.float64)

    def single(self, a: str) -> str:
        """``a`` in the file's dtype."""
        return self._cast(a, self.dtype)

    def _cast(self, a: str, dtype: type) -> str:
        if (a, dtype) not in self._known:
            from onnx import helper

            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            self._known[a, dtype] = self.add("Cast", a, to=kind)
        return self._known[a, dtype]


def keep_nan(n: Nodes, out: str, *args: str) -> str:
    """``out``, NaN wherever an argument is."""
    for arg in args:
        out = n.add("Where", n.add("IsNaN", arg), arg, out)
    return out


def one_minus_power(n: Nodes, b: str, t: str) -> str:
    """1 - b**t in double, without cancellation: -expm1(x) = -2 tanh(x/2) / (1 - tanh(x/2)), x = t log b.

    Args:
        b: double; t: double.
    """
    half = n.add("Mul", n.add("Mul", t, n.add("Log", b)), n.number(0.5, np.float64))
    tanh = n.add("Tanh", half)
    doubled = n.add("Mul", n.number(-2.0, np.float64), tanh)
    return n.add("Div", doubled, n.add("Sub", n.number(1.0, np.float64), tanh))


def _same(op: str) -> Callable[..., str]:
    return lambda n, *args: n.add(op, *args)


def _sign(n: Nodes, a: str) -> str:
    return keep_nan(n, n.add("Sign", a), a)


def _pow(n: Nodes, a: str, b: str) -> str:
    size = n.add("Pow", n.add("Abs", a), b)
    return keep_nan(n, n.add("Mul", _sign(n, a), size), b)


def _powabs(n: Nodes, a: str, b: str) -> str:
    return keep_nan(n, n.add("Pow", n.add("Abs", a), b), a, b)


def _power(n: Nodes, a: str, b: str) -> str:
    size, one = n.add("Pow", n.add("Abs", a), b), n.number(1.0)
    floor, two = n.add("Floor", b), n.number(2.0)
    even = n.add("Equal", n.add("Mul", n.add("Floor", n.add("Div", floor, two)), two), floor)
    side = n.add("Where", even, one, n.number(-1.0))
    side = n.add("Where", n.add("Equal", floor, b), side, n.number(np.nan))
    side = n.add("Where", n.add("Less", a, n.number(0.0)), side, one)
    return keep_nan(n, n.add("Mul", side, size), a, b)


def _log(n: Nodes, a: str) -> str:
    return n.add("Log", n.add("Add", n.add("Abs", a), n.number(1e-8)))


def _log1p(n: Nodes, a: str) -> str:
    """The series below 1e-4, log(1 + a) in double above: either is within 1e-12."""
    x = n.double(a)
    one, third, half = (n.number(value, np.float64) for value in (1.0, 1.0 / 3.0, 0.5))
    inner = n.add("Sub", half, n.add("Mul", x, third))
    series = n.add("Mul", x, n.add("Sub", one, n.add("Mul", x, inner)))
    small = n.add("Less", n.add("Abs", x), n.number(1e-4, np.float64))
    return n.single(n.add("Where", small, series, n.add("Log", n.add("Add", one, x))))


def _cbrt(n: Nodes, a: str) -> str:
    third = n.number(1.0 / 3.0, np.float64)
    size = n.single(n.add("Pow", n.add("Abs", n.double(a)), third))
    negative = n.add("Where", n.add("Less", a, n.number(0.0)), n.add("Neg", size), a)
    return n.add("Where", n.add("Greater", a, n.number(0.0)), size, negative)


def _erfc(n: Nodes, a: str) -> str:
    z = n.double(n.add("Abs", a))
    one, two = n.number(1.0, np.float64), n.number(2.0, np.float64)
    w = n.add("Div", one, n.add("Add", one, n.add("Mul", z, n.number(0.5, np.float64))))
    exponent = n.number(_ERFC[-1], np.float64)
    for coefficient in reversed(_ERFC[:-1]):
        exponent = n.add("Add", n.add("Mul", exponent, w), n.number(coefficient, np.float64))
    tail = n.add("Mul", w, n.add("Exp", n.add("Sub", exponent, n.add("Mul", z, z))))
    negative = n.add("Less", a, n.number(0.0))
    return n.single(n.add("Where", negative, n.add("Sub", two, tail), tail))


def _sigmoid(n: Nodes, a: str) -> str:
    one = n.number(1.0)
    tail = n.add("Exp", n.add("Neg", n.add("Abs", a)))
    top = n.add("Where", n.add("GreaterOrEqual", a, n.number(0.0)), one, tail)
    return n.add("Div", top, n.add("Add", one, tail))


def _relu(n: Nodes, a: str) -> str:
    zero = n.number(0.0)
    return n.add("Where", n.add("LessOrEqual", a, zero), zero, a)


def _softsign(n: Nodes, a: str) -> str:
    return n.add("Div", a, n.add("Add", n.number(1.0), n.add("Abs", a)))


def _larger(compare: str) -> Callable[..., str]:
    def build(n: Nodes, a: str, b: str) -> str:
        first = n.add("Or", n.add(compare, a, b), n.add("IsNaN", a))
        return n.add("Where", first, a, b)

    return build


def _greater(n: Nodes, a: str, b: str) -> str:
    return n.single(n.add("Greater", a, b))


def _aq(n: Nodes, a: str, b: str) -> str:
    return n.add("Div", a, n.add("Sqrt", n.add("Add", n.number(1.0), n.add("Mul", b, b))))


ONNX: dict[str, Callable[..., str]] = {
    "add": _same("Add"),
    "sub": _same("Sub"),
    "mul": _same("Mul"),
    "div": _same("Div"),
    "neg": _same("Neg"),
    "square": lambda n, a: n.add("Mul", a, a),
    "cube": lambda n, a: n.add("Mul", n.add("Mul", a, a), a),
    "abs": _same("Abs"),
    "sign": _sign,
    "pow": _pow,
    "powabs": _powabs,
    "powreal": _power,
    "root": _same("Sqrt"),
    "ln": _same("Log"),
    "sqrt": lambda n, a: n.add("Sqrt", n.add("Abs", a)),
    "log": _log,
    "logabs": lambda n, a: n.add("Log", n.add("Abs", a)),
    "log1p": _log1p,
    "cbrt": _cbrt,
    "exp": _same("Exp"),
    "tanh": _same("Tanh"),
    "sinh": _same("Sinh"),
    "cosh": _same("Cosh"),
    "asinh": _same("Asinh"),
    "erf": _same("Erf"),
    "erfc": _erfc,
    "sin": _same("Sin"),
    "cos": _same("Cos"),
    "tan": _same("Tan"),
    "atan": _same("Atan"),
    "sigmoid": _sigmoid,
    "relu": _relu,
    "softsign": _softsign,
    "max": _larger("Greater"),
    "min": _larger("Less"),
    "greater": _greater,
    "aq": _aq,
}
