"""Tensor operators in TensorFlow, one per tensor row of interchange.language.operators.

``op_<name>(x, axes)`` is as in ``interchange.language.matrix``, whose axes are ``View.axes``; leading axes of
steps or lanes are batches. Shapes of tensors are static but for those. Derivatives under ``GradientTape`` are
those of the iteration, 0 at 0, and even among those that share a maximum. As in ``operators``, the emitter
copies these bodies into standalone files.
"""

from collections.abc import Callable

import tensorflow as tf

from tf_impl.networks.operators import as_tensor

Tensor = tf.Tensor


def _over(reduce: "Callable[..., Tensor]", x: Tensor, axes: tuple) -> Tensor:
    """Of a plain number, and along no axis, x itself."""
    x = as_tensor(x)
    return reduce(x, axis=axes, keepdims=True) if axes and x.shape.rank else x


def _largest(x: Tensor, axis: tuple, keepdims: bool) -> Tensor:
    """TensorFlow's maximum may pass over a NaN."""
    out = tf.reduce_max(x, axis, keepdims)
    return tf.where(tf.reduce_any(tf.math.is_nan(x), axis, keepdims), tf.constant(float("nan"), x.dtype), out)


def op_mean(x: Tensor, axes: tuple) -> Tensor:
    return _over(tf.reduce_mean, x, axes[0] + axes[1] + axes[2])


def op_row_mean(x: Tensor, axes: tuple) -> Tensor:
    return _over(tf.reduce_mean, x, axes[1])


def op_col_mean(x: Tensor, axes: tuple) -> Tensor:
    return _over(tf.reduce_mean, x, axes[0])


def op_row_max(x: Tensor, axes: tuple) -> Tensor:
    return _over(_largest, x, axes[1])


def op_col_max(x: Tensor, axes: tuple) -> Tensor:
    return _over(_largest, x, axes[0])


def matrices(x: Tensor, axes: tuple) -> tuple[Tensor, list[int], Tensor]:
    """x as [..., n, m], one side rows and the other columns, and what ``whole`` needs.

    The axis that comes first is the first side's, so that a layer's kernel needs no transposition.
    """
    rows, columns, parts = axes
    lead = x.shape.rank - len(rows + columns + parts)
    sides = sorted((rows, columns))
    sizes = []
    for side in sides:
        size = 1
        for axis in side:
            size *= x.shape[axis]
        sizes.append(size)
    order = [*range(lead)] + [x.shape.rank + axis for side in (parts, *sides) for axis in side]
    moved = x if order == sorted(order) else tf.transpose(x, order)
    kept = tf.shape(moved)[: lead + len(parts)]
    return tf.reshape(moved, tf.concat([kept, sizes], 0)), order, tf.shape(moved)


def whole(m: Tensor, order: list[int], shape: Tensor) -> Tensor:
    """The inverse of ``matrices``."""
    back = sorted(range(len(order)), key=order.__getitem__)
    m = tf.reshape(m, shape)
    return m if back == order == sorted(order) else tf.transpose(m, back)


def scaled(m: Tensor) -> tuple[Tensor, Tensor]:
    """The largest size in each matrix, and the matrix over it; nothing is 0/0 where that is 0.

    The maximum may pass over a NaN, which the matrix keeps.
    """
    size = tf.reduce_max(tf.abs(tf.stop_gradient(m)), (-2, -1), keepdims=True)
    return size, m / tf.where(tf.equal(size, 0), tf.ones_like(size), size)


def norm(m: Tensor) -> Tensor:
    """Of zeros 0, with derivatives that are 0."""
    square = tf.reduce_sum(m * m, (-2, -1), keepdims=True)
    zero = tf.equal(square, 0)
    return tf.where(zero, tf.zeros_like(square), tf.sqrt(tf.where(zero, tf.ones_like(square), square)))


def newton_schulz(m: Tensor) -> Tensor:
    """Five steps towards the polar factor from m / norm(m) (Jordan et al. 2024), on the smaller side.

    Of one row the result is m / norm(m) itself, which the iteration would only blur. Of zeros it is zeros,
    with derivatives that are 0.
    """
    length = norm(m)
    m = m / tf.where(tf.equal(length, 0), tf.constant(float("inf"), m.dtype), length)
    if 1 in m.shape[-2:]:
        return m
    tall = m.shape[-2] > m.shape[-1]
    for _ in range(5):
        a = tf.matmul(m, m, transpose_a=tall, transpose_b=not tall)
        b = -4.7750 * a + 2.0315 * tf.matmul(a, a)
        m = 3.4445 * m + (tf.matmul(m, b) if tall else tf.matmul(b, m))
    return m


def op_polar(x: Tensor, axes: tuple) -> Tensor:
    m, order, shape = matrices(x, axes)
    return whole(newton_schulz(scaled(m)[1]), order, shape)


def op_orth(x: Tensor, axes: tuple) -> Tensor:
    m, order, shape = matrices(x, axes)
    if 1 in m.shape[-2:]:
        return x
    size, m = scaled(m)
    polar = newton_schulz(m)
    length = norm(polar)
    ratio = norm(m) / tf.where(tf.equal(length, 0), tf.ones_like(length), length)
    return whole(polar * (size * ratio), order, shape)


TENSOR: dict[str, Callable[..., Tensor]] = {
    "mean": op_mean,
    "row_mean": op_row_mean,
    "col_mean": op_col_mean,
    "row_max": op_row_max,
    "col_max": op_col_max,
    "polar": op_polar,
    "orth": op_orth,
}
