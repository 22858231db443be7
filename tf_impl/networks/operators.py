"""Pointwise operators in TensorFlow, one per pointwise row of interchange.language.operators.

Values equal the NumPy oracle; NaN goes through everything but ``greater``. Derivatives under
``GradientTape`` follow the table's conventions (0 at the kinks of abs, sqrt, root, log, logabs, ln, cbrt,
relu, and of pow, powabs and powreal at a = 0; ties of max and min half and half) by choosing a safe argument
before the operation, so that no gradient is NaN or infinite there. Arguments are tensors, variables or Python
numbers; a 0-dim or plain number takes the dtype of the dimensioned tensor, which TensorFlow itself refuses
to do. The TensorFlow emitter copies these functions' source text into standalone files, so bodies use
tensorflow and each other only.
"""

from collections.abc import Callable

import tensorflow as tf

Tensor = tf.Tensor
Value = Tensor | float


def as_tensor(a: Value) -> Tensor:
    """Numbers as 0-dim float64, which leaves the dtype of dimensioned operands alone."""
    if isinstance(a, int | float):
        return tf.constant(a, tf.float64)
    a = tf.convert_to_tensor(a)
    return a if a.dtype.is_floating else tf.cast(a, tf.float64)


def keep_nan(out: Tensor, *args: Tensor) -> Tensor:
    """``out``, NaN wherever an argument is."""
    for arg in args:
        out = tf.where(tf.math.is_nan(arg), tf.constant(float("nan"), out.dtype), out)
    return out


def _pair(a: Value, b: Value) -> tuple[Tensor, Tensor]:
    """Both in one dtype: the dimensioned one's, or the wider where both or neither has dimensions."""
    a, b = as_tensor(a), as_tensor(b)
    if a.dtype == b.dtype:
        return a, b
    if (a.shape.rank == 0) == (b.shape.rank == 0):
        dtype = max(a.dtype, b.dtype, key=lambda dtype: dtype.size)
    else:
        dtype = b.dtype if a.shape.rank == 0 else a.dtype
    return tf.cast(a, dtype), tf.cast(b, dtype)


def _nonzero(a: Tensor) -> tuple[Tensor, Tensor]:
    """Where ``a`` is 0, and ``a`` with 1 there."""
    zero = tf.equal(a, 0)
    return zero, tf.where(zero, tf.ones_like(a), a)


def op_add(a: Value, b: Value) -> Value:
    a, b = _pair(a, b)
    return a + b


def op_sub(a: Value, b: Value) -> Value:
    a, b = _pair(a, b)
    return a - b


def op_mul(a: Value, b: Value) -> Value:
    a, b = _pair(a, b)
    return a * b


def op_div(a: Value, b: Value) -> Tensor:
    a, b = _pair(a, b)
    return a / b


def op_neg(a: Value) -> Value:
    return -as_tensor(a)


def op_square(a: Value) -> Value:
    a = as_tensor(a)
    return a * a


def op_cube(a: Value) -> Value:
    a = as_tensor(a)
    return a * a * a


def op_abs(a: Value) -> Tensor:
    return tf.abs(as_tensor(a))


def op_sign(a: Value) -> Tensor:
    a = as_tensor(a)
    return keep_nan(tf.sign(a), a)


def op_pow(a: Value, b: Value) -> Tensor:
    a, b = _pair(a, b)
    zero, safe = _nonzero(a)
    at_zero = 0.0 * tf.pow(tf.zeros_like(b), tf.stop_gradient(b))
    return keep_nan(tf.where(zero, at_zero, tf.sign(safe) * tf.pow(tf.abs(safe), b)), a, b)


def op_powabs(a: Value, b: Value) -> Tensor:
    a, b = _pair(a, b)
    zero, safe = _nonzero(a)
    at_zero = tf.pow(tf.zeros_like(b), tf.stop_gradient(b))
    return keep_nan(tf.where(zero, at_zero, tf.pow(tf.abs(safe), b)), a, b)


def op_powreal(a: Value, b: Value) -> Tensor:
    a, b = _pair(a, b)
    zero, safe = _nonzero(a)
    floor, one = tf.floor(b), tf.ones_like(b)
    side = tf.where(tf.equal(tf.floor(floor / 2) * 2, floor), one, -one)
    side = tf.where(tf.equal(floor, b), side, tf.constant(float("nan"), b.dtype))
    out = tf.where(safe < 0, side, one) * tf.pow(tf.abs(safe), b)
    return keep_nan(tf.where(zero, tf.pow(tf.zeros_like(b), tf.stop_gradient(b)), out), a, b)


def op_sqrt(a: Value) -> Tensor:
    a = as_tensor(a)
    zero, safe = _nonzero(a)
    return tf.where(zero, tf.zeros_like(a), tf.sqrt(tf.abs(safe)))


def op_root(a: Value) -> Tensor:
    a = as_tensor(a)
    zero, safe = _nonzero(a)
    return tf.where(zero, tf.zeros_like(a), tf.sqrt(safe))


def op_log(a: Value) -> Tensor:
    return tf.math.log(tf.abs(as_tensor(a)) + 1e-8)


def op_logabs(a: Value) -> Tensor:
    a = as_tensor(a)
    zero, safe = _nonzero(a)
    return tf.where(zero, tf.constant(float("-inf"), a.dtype), tf.math.log(tf.abs(safe)))


def op_ln(a: Value) -> Tensor:
    a = as_tensor(a)
    zero, safe = _nonzero(a)
    return tf.where(zero, tf.constant(float("-inf"), a.dtype), tf.math.log(safe))


def op_log1p(a: Value) -> Tensor:
    return tf.math.log1p(as_tensor(a))


def op_cbrt(a: Value) -> Tensor:
    a = as_tensor(a)
    edge = tf.equal(a, 0) | tf.math.is_inf(a)
    size = tf.abs(tf.where(edge, tf.ones_like(a), a))
    root = tf.pow(size, 1.0 / 3.0)
    # 1/3 is rounded, which costs a root of 1e-300 the last two digits; one step of Newton brings them back.
    root -= (root - size / (root * root)) / 3.0
    return tf.where(edge, tf.stop_gradient(a), tf.sign(a) * root)


def op_exp(a: Value) -> Tensor:
    return tf.exp(as_tensor(a))


def op_tanh(a: Value) -> Tensor:
    return tf.tanh(as_tensor(a))


def op_sinh(a: Value) -> Tensor:
    return tf.sinh(as_tensor(a))


def op_cosh(a: Value) -> Tensor:
    return tf.cosh(as_tensor(a))


def op_asinh(a: Value) -> Tensor:
    return tf.asinh(as_tensor(a))


def op_erf(a: Value) -> Tensor:
    # In float64 tf.math.erf is NaN from about 1e154 on; beyond 27 erf is 1 and its derivative below 1e-308.
    a = as_tensor(a)
    return keep_nan(tf.math.erf(tf.clip_by_value(a, -27.0, 27.0)), a)  # in a loop XLA clips nan to 27


def op_erfc(a: Value) -> Tensor:
    return tf.math.erfc(as_tensor(a))


def op_sin(a: Value) -> Tensor:
    return tf.sin(as_tensor(a))


def op_cos(a: Value) -> Tensor:
    return tf.cos(as_tensor(a))


def op_tan(a: Value) -> Tensor:
    return tf.tan(as_tensor(a))


def op_atan(a: Value) -> Tensor:
    return tf.atan(as_tensor(a))


def op_sigmoid(a: Value) -> Tensor:
    return tf.sigmoid(as_tensor(a))


def op_relu(a: Value) -> Tensor:
    a = as_tensor(a)
    return keep_nan(tf.where(a > 0, a, tf.zeros_like(a)), a)


def op_softsign(a: Value) -> Tensor:
    a = as_tensor(a)
    # Autodiff of a / (1 + abs(a)) cancels where a is large, so there it is 1 / (1 + 1 / a).
    large = (tf.abs(a) > 1) & tf.math.is_finite(a)
    safe, small = tf.where(large, a, tf.ones_like(a)), tf.where(large, tf.zeros_like(a), a)
    small = small / (1.0 + tf.abs(small))
    return tf.where(large, tf.sign(safe) / (1.0 + 1.0 / tf.abs(safe)), small)


def op_max(a: Value, b: Value) -> Tensor:
    a, b = _pair(a, b)
    # Ties have half of each; tf.maximum gives the first all of the gradient.
    return tf.where(a > b, a, tf.where(b > a, b, 0.5 * a + 0.5 * b))


def op_min(a: Value, b: Value) -> Tensor:
    a, b = _pair(a, b)
    return tf.where(a < b, a, tf.where(b < a, b, 0.5 * a + 0.5 * b))


def op_greater(a: Value, b: Value) -> Tensor:
    a, b = _pair(a, b)
    return tf.cast(a > b, a.dtype)


def op_aq(a: Value, b: Value) -> Tensor:
    a, b = _pair(a, b)
    return a / tf.sqrt(1.0 + b * b)


OPERATORS: dict[str, Callable[..., Value]] = {
    "add": op_add,
    "sub": op_sub,
    "mul": op_mul,
    "div": op_div,
    "neg": op_neg,
    "square": op_square,
    "cube": op_cube,
    "abs": op_abs,
    "sign": op_sign,
    "pow": op_pow,
    "powabs": op_powabs,
    "powreal": op_powreal,
    "sqrt": op_sqrt,
    "root": op_root,
    "log": op_log,
    "logabs": op_logabs,
    "ln": op_ln,
    "log1p": op_log1p,
    "cbrt": op_cbrt,
    "exp": op_exp,
    "tanh": op_tanh,
    "sinh": op_sinh,
    "cosh": op_cosh,
    "asinh": op_asinh,
    "erf": op_erf,
    "erfc": op_erfc,
    "sin": op_sin,
    "cos": op_cos,
    "tan": op_tan,
    "atan": op_atan,
    "sigmoid": op_sigmoid,
    "relu": op_relu,
    "softsign": op_softsign,
    "max": op_max,
    "min": op_min,
    "greater": op_greater,
    "aq": op_aq,
}
