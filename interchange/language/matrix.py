"""Tensor operators in NumPy: the oracle of what sees a whole tensor, and its derivatives along a direction.

``op_<name>(x, axes)`` takes an array whose last axes are those of a tensor, and the axes of its matrix view
(``View.axes``: of rows, of columns, of parts, counted from the end); steps or lanes come before. Sums keep
their axes with size 1, and of a plain number are the number. ``d_<name>(x, dx, axes)`` is the derivative of
the result along dx. As in ``operators``, the emitter copies these bodies into standalone files, so they use
NumPy and each other only.
"""

import numpy as np

Array = np.ndarray

POLAR = "5 Newton-Schulz steps to the polar factor: singular values near 1; of one row x / norm(x)"
ORTH = "the matrix x with its directions evened out, by 5 Newton-Schulz steps, at the RMS of x; a row is x"


def op_mean(x: Array, axes: tuple) -> Array:
    return np.mean(x, axis=axes[0] + axes[1] + axes[2], keepdims=True) if np.ndim(x) else x


def op_row_mean(x: Array, axes: tuple) -> Array:
    return np.mean(x, axis=axes[1], keepdims=True) if np.ndim(x) else x


def op_col_mean(x: Array, axes: tuple) -> Array:
    return np.mean(x, axis=axes[0], keepdims=True) if np.ndim(x) else x


def op_row_max(x: Array, axes: tuple) -> Array:
    return np.max(x, axis=axes[1], keepdims=True) if np.ndim(x) else x


def op_col_max(x: Array, axes: tuple) -> Array:
    return np.max(x, axis=axes[0], keepdims=True) if np.ndim(x) else x


def matrices(x: Array, axes: tuple) -> tuple[Array, list[int], tuple[int, ...]]:
    """x as [..., small, large] with the smaller side of its matrices first, and what ``tensor`` needs."""
    rows, columns, parts = axes
    lead = x.ndim - len(rows + columns + parts)
    sizes = [int(np.prod([x.shape[a] for a in side])) for side in (rows, columns)]
    sides = (rows, columns) if sizes[0] <= sizes[1] else (columns, rows)
    order = [*range(lead), *(x.ndim + a for side in (parts, *sides) for a in side)]
    moved = np.transpose(x, order)
    kept = moved.shape[: lead + len(parts)]
    return np.reshape(moved, (*kept, min(sizes), max(sizes))), order, moved.shape


def tensor(m: Array, order: list[int], shape: tuple[int, ...]) -> Array:
    """The inverse of ``matrices``."""
    return np.transpose(np.reshape(m, shape), np.argsort(order))


def scaled(m: Array) -> tuple[Array, Array]:
    """The largest size in each matrix, and the matrix over it; nothing is 0/0 where that is 0."""
    size = np.max(np.abs(m), axis=(-2, -1), keepdims=True)
    return size, np.where(size == 0, np.ones_like(m), m / np.where(size == 0, 1, size))


def norm(m: Array) -> Array:
    return np.sqrt(np.sum(m * m, axis=(-2, -1), keepdims=True))


def newton_schulz(m: Array) -> Array:
    """Five steps towards the polar factor from m / norm(m) (Jordan et al. 2024); the smaller side is first.

    Of one row the result is m / norm(m) itself, which the iteration would only blur.
    """
    m = m / norm(m)
    if m.shape[-2] == 1:
        return m
    for _ in range(5):
        a = m @ np.swapaxes(m, -1, -2)
        m = 3.4445 * m + (-4.7750 * a + 2.0315 * (a @ a)) @ m
    return m


def op_polar(x: Array, axes: tuple) -> Array:
    m, order, shape = matrices(x, axes)
    size, m = scaled(m)
    return tensor(np.where(size == 0, 0, newton_schulz(m)), order, shape)


def op_orth(x: Array, axes: tuple) -> Array:
    m, order, shape = matrices(x, axes)
    if m.shape[-2] == 1:
        return x
    size, m = scaled(m)
    polar = newton_schulz(m)
    return tensor(size * (polar * (norm(m) / norm(polar))), order, shape)


def _d_max(x: Array, dx: Array, axis: tuple[int, ...]) -> Array:
    """The mean over those that share the maximum."""
    if not np.ndim(x):
        return dx
    largest = x == np.max(x, axis=axis, keepdims=True)
    return np.sum(largest * dx, axis=axis, keepdims=True) / np.sum(largest, axis=axis, keepdims=True)


def _dot(a: Array, b: Array) -> Array:
    return np.sum(a * b, axis=(-2, -1), keepdims=True)


def _d_newton_schulz(m: Array, dm: Array) -> tuple[Array, Array]:
    """The iteration and its derivative along dm."""
    length = norm(m)
    m = m / length
    dm = (dm - m * _dot(m, dm)) / length
    if m.shape[-2] == 1:
        return m, dm
    for _ in range(5):
        t, dt = np.swapaxes(m, -1, -2), np.swapaxes(dm, -1, -2)
        a, da = m @ t, dm @ t + m @ dt
        p, dp = -4.7750 * a + 2.0315 * (a @ a), -4.7750 * da + 2.0315 * (da @ a + a @ da)
        m, dm = 3.4445 * m + p @ m, 3.4445 * dm + dp @ m + p @ dm
    return m, dm


def d_polar(x: Array, dx: Array, axes: tuple) -> Array:
    m, order, shape = matrices(x, axes)
    size, m = scaled(m)
    dm = matrices(np.broadcast_to(dx, x.shape), axes)[0] / np.where(size == 0, 1, size)
    return tensor(np.where(size == 0, 0, _d_newton_schulz(m, dm)[1]), order, shape)


def d_orth(x: Array, dx: Array, axes: tuple) -> Array:
    m, order, shape = matrices(x, axes)
    if m.shape[-2] == 1:
        return dx
    size, m = scaled(m)
    dm = matrices(np.broadcast_to(dx, x.shape), axes)[0] / np.where(size == 0, 1, size)
    polar, d_polar = _d_newton_schulz(m, dm)
    ratio = norm(m) / norm(polar)
    d_ratio = ratio * (_dot(m, dm) / _dot(m, m) - _dot(polar, d_polar) / _dot(polar, polar))
    return tensor(size * (d_polar * ratio + polar * d_ratio), order, shape)


DERIVATIVES = {
    "mean": lambda x, dx, axes: op_mean(dx, axes),
    "row_mean": lambda x, dx, axes: op_row_mean(dx, axes),
    "col_mean": lambda x, dx, axes: op_col_mean(dx, axes),
    "row_max": lambda x, dx, axes: _d_max(x, dx, axes[1]),
    "col_max": lambda x, dx, axes: _d_max(x, dx, axes[0]),
    "polar": d_polar,
    "orth": d_orth,
}
