"""THE operator table: name, arity, NumPy meaning, derivative, notation.

Every other place (parser, program, torch and TF lowering, emitters, search) takes its operators from
here. ``op_<name>`` is the oracle for one operator: it takes arrays that broadcast, keeps their dtype,
and lets NaN through (``greater`` alone gives 0). The bodies use NumPy and ``math`` only, because the
NumPy emitter copies their source text into standalone files. Callers silence floating-point warnings
with ``np.errstate(all="ignore")``.

A derivative takes the arguments and the result and returns one partial per argument, each
broadcastable to the result; a plain float where it is the same everywhere. Conventions at kinks: at 0
the derivatives of abs, sqrt, root, log, logabs, ln, cbrt, relu are 0; pow, powabs and powreal have both
partials 0 where a = 0; sign and greater are 0 everywhere; ties of max and min are shared half and half.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from common.registry import Registry
from interchange.language import matrix, slopes

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Operator:
    """One row.

    Attributes:
        numpy: the oracle on arrays; None for temporal and tensor operators (language.execute).
        derivative: ``(*args, out) -> partials``; None where ``numpy`` is.
        tensor: ``(x, axes)``, the oracle of an operator that sees the whole tensor (language.matrix).
        symbol: name to print in LaTeX and MathML as a function; "" where the notation is special.
        sympy: SymPy class with exactly this meaning; "" where the SymPy emitter has a rule of its own.
    """

    name: str
    arity: int
    numpy: Callable[..., Array] | None = None
    derivative: Callable[..., tuple] | None = None
    symbol: str = ""
    sympy: str = ""
    note: str = ""
    tensor: Callable[..., Array] | None = None


def op_add(a: Array, b: Array) -> Array:
    return a + b


def op_sub(a: Array, b: Array) -> Array:
    return a - b


def op_mul(a: Array, b: Array) -> Array:
    return a * b


def op_div(a: Array, b: Array) -> Array:
    return np.divide(a, b)


def op_neg(a: Array) -> Array:
    return np.negative(a)


def op_square(a: Array) -> Array:
    return a * a


def op_cube(a: Array) -> Array:
    return a * a * a


def op_abs(a: Array) -> Array:
    return np.abs(a)


def op_sign(a: Array) -> Array:
    return np.sign(a)


def op_pow(a: Array, b: Array) -> Array:
    # The product alone would give pow(1, nan) = 1.
    return np.where(np.isnan(b), np.nan, np.sign(a) * np.power(np.abs(a), b))


def op_powabs(a: Array, b: Array) -> Array:
    # IEEE power alone would give powabs(1, nan) = powabs(nan, 0) = 1.
    return np.where(np.isnan(a) | np.isnan(b), np.nan, np.power(np.abs(a), b))


def op_sqrt(a: Array) -> Array:
    return np.sqrt(np.abs(a))


def op_root(a: Array) -> Array:
    return np.sqrt(a)


def op_powreal(a: Array, b: Array) -> Array:
    # By the size of a, as the frameworks compute it: so b has a derivative where a is negative, too.
    side = np.where(np.floor(b) != b, np.nan, np.where(np.floor(b / 2) * 2 == b, 1.0, -1.0))
    out = np.where(a < 0, side, 1.0) * np.power(np.abs(a), b)
    return np.where(np.isnan(a) | np.isnan(b), np.nan, out).astype(np.result_type(a, b))


def op_ln(a: Array) -> Array:
    return np.log(a)


def op_log(a: Array) -> Array:
    return np.log(np.abs(a) + 1e-8)


def op_logabs(a: Array) -> Array:
    return np.log(np.abs(a))


def op_log1p(a: Array) -> Array:
    return np.log1p(a)


def op_cbrt(a: Array) -> Array:
    return np.cbrt(a)


def op_exp(a: Array) -> Array:
    return np.exp(a)


def op_tanh(a: Array) -> Array:
    return np.tanh(a)


def op_sinh(a: Array) -> Array:
    return np.sinh(a)


def op_cosh(a: Array) -> Array:
    return np.cosh(a)


def op_asinh(a: Array) -> Array:
    return np.arcsinh(a)


def op_erf(a: Array) -> Array:
    values = np.asarray(a)
    return np.vectorize(math.erf, otypes=[np.float64])(values).astype(values.dtype)


def op_erfc(a: Array) -> Array:
    values = np.asarray(a)
    return np.vectorize(math.erfc, otypes=[np.float64])(values).astype(values.dtype)


def op_sin(a: Array) -> Array:
    return np.sin(a)


def op_cos(a: Array) -> Array:
    return np.cos(a)


def op_tan(a: Array) -> Array:
    return np.tan(a)


def op_atan(a: Array) -> Array:
    return np.arctan(a)


def op_sigmoid(a: Array) -> Array:
    tail = np.exp(-np.abs(a))
    return np.where(np.greater_equal(a, 0), 1.0, tail) / (1.0 + tail)


def op_relu(a: Array) -> Array:
    return np.maximum(a, 0.0)


def op_softsign(a: Array) -> Array:
    return a / (1.0 + np.abs(a))


def op_max(a: Array, b: Array) -> Array:
    return np.maximum(a, b)


def op_min(a: Array, b: Array) -> Array:
    return np.minimum(a, b)


def op_greater(a: Array, b: Array) -> Array:
    return np.greater(a, b).astype(np.result_type(a, b))


def op_aq(a: Array, b: Array) -> Array:
    return a / np.sqrt(1.0 + b * b)


def _rows(*rows: Operator) -> dict[str, Operator]:
    return {row.name: row for row in rows}


_ABS = ("sqrt(abs(a))", "log(abs(a) + 1e-8)", "log(abs(a))")
_TWO_OVER_ROOT_PI = 2.0 / math.sqrt(math.pi)

OPERATORS: Registry[Operator] = Registry(
    "operator",
    _rows(
        Operator("add", 2, op_add, lambda a, b, out: (1.0, 1.0), note="a + b"),
        Operator("sub", 2, op_sub, lambda a, b, out: (1.0, -1.0), note="a - b"),
        Operator("mul", 2, op_mul, lambda a, b, out: (b, a), note="a * b"),
        Operator("div", 2, op_div, lambda a, b, out: (1.0 / b, -out / b), note="a / b, plain IEEE"),
        Operator("neg", 1, op_neg, lambda a, out: (-1.0,), note="-a"),
        Operator("square", 1, op_square, lambda a, out: (2.0 * a,)),
        Operator("cube", 1, op_cube, lambda a, out: (3.0 * a * a,)),
        Operator("abs", 1, op_abs, lambda a, out: (np.sign(a),), sympy="Abs"),
        Operator("sign", 1, op_sign, lambda a, out: (0.0,), "sgn", "sign"),
        Operator(
            "pow", 2, op_pow, slopes.d_pow, note="sign(a) abs(a)**b; at a = 0: b >= 0 gives 0, b < 0 nan"
        ),
        Operator("powabs", 2, op_powabs, slopes.d_powabs, note="abs(a)**b"),
        Operator("powreal", 2, op_powreal, slopes.d_powreal, note="a**b; nan where a < 0, b no integer"),
        Operator(
            "sqrt", 1, op_sqrt, lambda a, out: (slopes.off_zero(a, 0.5 * np.sign(a) / out),), note=_ABS[0]
        ),
        Operator("root", 1, op_root, lambda a, out: (slopes.off_zero(a, 0.5 / out),), note="nan below 0"),
        Operator("log", 1, op_log, lambda a, out: (np.sign(a) / (np.abs(a) + 1e-8),), note=_ABS[1]),
        Operator("logabs", 1, op_logabs, lambda a, out: (slopes.off_zero(a, 1.0 / a),), note=_ABS[2]),
        Operator("ln", 1, op_ln, lambda a, out: (slopes.off_zero(a, 1.0 / a),), note="nan below 0"),
        Operator("log1p", 1, op_log1p, lambda a, out: (1.0 / (1.0 + a),)),
        Operator("cbrt", 1, op_cbrt, lambda a, out: (slopes.off_zero(a, 1.0 / (3.0 * out * out)),)),
        Operator("exp", 1, op_exp, lambda a, out: (out,), "exp", "exp"),
        Operator("tanh", 1, op_tanh, lambda a, out: (1.0 - out * out,), "tanh", "tanh"),
        Operator("sinh", 1, op_sinh, lambda a, out: (np.cosh(a),), "sinh", "sinh"),
        Operator("cosh", 1, op_cosh, lambda a, out: (np.sinh(a),), "cosh", "cosh"),
        Operator("asinh", 1, op_asinh, lambda a, out: (1.0 / np.sqrt(1.0 + a * a),), "arsinh", "asinh"),
        Operator("erf", 1, op_erf, lambda a, out: (_TWO_OVER_ROOT_PI * np.exp(-a * a),), "erf", "erf"),
        Operator("erfc", 1, op_erfc, lambda a, out: (-_TWO_OVER_ROOT_PI * np.exp(-a * a),), "erfc", "erfc"),
        Operator("sin", 1, op_sin, lambda a, out: (np.cos(a),), "sin", "sin"),
        Operator("cos", 1, op_cos, lambda a, out: (-np.sin(a),), "cos", "cos"),
        Operator("tan", 1, op_tan, lambda a, out: (1.0 + out * out,), "tan", "tan"),
        Operator("atan", 1, op_atan, lambda a, out: (1.0 / (1.0 + a * a),), "arctan", "atan"),
        Operator("sigmoid", 1, op_sigmoid, slopes.d_sigmoid, note="1 / (1 + exp(-a))"),
        Operator("relu", 1, op_relu, lambda a, out: (op_greater(a, 0.0),), note="max(a, 0)"),
        Operator("softsign", 1, op_softsign, lambda a, out: (1.0 / np.square(1.0 + np.abs(a)),)),
        Operator("max", 2, op_max, slopes.d_max, "max", "Max"),
        Operator("min", 2, op_min, slopes.d_min, "min", "Min"),
        Operator("greater", 2, op_greater, lambda a, b, out: (0.0, 0.0), note="1 if a > b else 0"),
        Operator("aq", 2, op_aq, slopes.d_aq, note="a / sqrt(1 + b*b)"),
        Operator("lag", 2, note="x of k steps ago, 0 before the start; k a literal integer 0..100"),
        Operator("ema", 2, symbol="ema", note="s <- b*s + (1-b)*x from 0; b literal or constant"),
        Operator("ema_hat", 2, symbol="ema", note="ema(x, b) / (1 - b**t)"),
        Operator("cumsum", 1, symbol="cumsum", note="running sum"),
        Operator("cummax", 1, symbol="cummax", note="running maximum"),
        Operator("mean", 1, symbol="mean", tensor=matrix.op_mean, note="mean over the tensor"),
        Operator("row_mean", 1, tensor=matrix.op_row_mean, note="mean over a row, all inputs of one output"),
        Operator("col_mean", 1, tensor=matrix.op_col_mean, note="mean over a column; x itself of one row"),
        Operator("row_max", 1, tensor=matrix.op_row_max, note="maximum over a row"),
        Operator("col_max", 1, tensor=matrix.op_col_max, note="maximum over a column; x itself of one row"),
        Operator("polar", 1, symbol="polar", tensor=matrix.op_polar, note=matrix.POLAR),
        Operator("orth", 1, symbol="orth", tensor=matrix.op_orth, note=matrix.ORTH),
        Operator("by_matrix", 2, note="a where the tensor has a matrix view, b elsewhere"),
    ),
)

POINTWISE = tuple(name for name, row in OPERATORS.items() if row.numpy)
TENSOR = frozenset(name for name, row in OPERATORS.items() if row.tensor)
TEMPORAL = frozenset({"lag", "ema", "ema_hat", "cumsum", "cummax"})
