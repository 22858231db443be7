"""Operators in JAX, one per pointwise and one per tensor row of interchange.language.operators.

The optax emitter copies these functions' source text into standalone files; nothing in the project imports
this module, so JAX need not be installed. Values equal the NumPy oracle; NaN goes through everything but
``greater``. Derivatives follow the table's conventions by choosing a safe argument before the operation, so
that no gradient is NaN or infinite at a kink. Arguments are arrays of one dtype or Python numbers.
"""

import math

import jax
import jax.numpy as jnp


def nonzero(a):
    """Where ``a`` is 0, and ``a`` with 1 there."""
    zero = a == 0
    return zero, jnp.where(zero, 1.0, a)


def keep_nan(out, *args):
    """``out``, NaN wherever an argument is."""
    for arg in args:
        out = jnp.where(jnp.isnan(arg), jnp.nan, out)
    return out


def op_square(a):
    return a * a


def op_cube(a):
    return a * a * a


def op_abs(a):
    zero, safe = nonzero(a)
    return jnp.where(zero, 0.0, jnp.abs(safe))


def op_sign(a):
    return jnp.sign(a)


def op_pow(a, b):
    zero, safe = nonzero(a)
    at_zero = 0.0 * jnp.power(0.0, jax.lax.stop_gradient(b))
    return keep_nan(jnp.where(zero, at_zero, jnp.sign(safe) * jnp.power(jnp.abs(safe), b)), a, b)


def op_powabs(a, b):
    zero, safe = nonzero(a)
    at_zero = jnp.power(0.0, jax.lax.stop_gradient(b))
    return keep_nan(jnp.where(zero, at_zero, jnp.power(jnp.abs(safe), b)), a, b)


def op_powreal(a, b):
    zero, safe = nonzero(a)
    floor = jnp.floor(jax.lax.stop_gradient(b))
    side = jnp.where(floor == b, jnp.where(jnp.floor(floor / 2) * 2 == floor, 1.0, -1.0), jnp.nan)
    out = jnp.where(safe < 0, side, 1.0) * jnp.power(jnp.abs(safe), b)
    return keep_nan(jnp.where(zero, jnp.power(0.0, jax.lax.stop_gradient(b)), out), a, b)


def op_sqrt(a):
    zero, safe = nonzero(a)
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.abs(safe)))


def op_root(a):
    zero, safe = nonzero(a)
    return jnp.where(zero, 0.0, jnp.sqrt(safe))


def op_log(a):
    return jnp.log(op_abs(a) + 1e-8)


def op_logabs(a):
    zero, safe = nonzero(a)
    return jnp.where(zero, -jnp.inf, jnp.log(jnp.abs(safe)))


def op_ln(a):
    zero, safe = nonzero(a)
    return jnp.where(zero, -jnp.inf, jnp.log(safe))


def op_log1p(a):
    # In float64 XLA's own is 125 ulp off around -0.4.
    near = (a > -0.5) & (a < -0.25)
    return jnp.where(near, jnp.log(1.0 + jnp.where(near, a, 0.0)), jnp.log1p(a))


def op_cbrt(a):
    zero, safe = nonzero(a)
    return jnp.where(zero, 0.0, jnp.cbrt(safe))


def op_exp(a):
    return jnp.exp(a)


def op_tanh(a):
    return jnp.tanh(a)


def op_sinh(a):
    return jnp.sinh(a)


def op_cosh(a):
    return jnp.cosh(a)


def op_asinh(a):
    return jnp.arcsinh(a)


def op_erf(a):
    return jax.scipy.special.erf(a)


def op_erfc(a):
    return jax.scipy.special.erfc(a)


def op_sin(a):
    return jnp.sin(a)


def op_cos(a):
    return jnp.cos(a)


def op_tan(a):
    return jnp.tan(a)


def op_atan(a):
    return jnp.arctan(a)


def op_sigmoid(a):
    tail = jnp.exp(jnp.where(a < 0, a, -a))
    return jnp.where(a >= 0, 1.0, tail) / (1.0 + tail)


def op_relu(a):
    return jnp.where(a <= 0, 0.0, a)


def op_softsign(a):
    # Autodiff of a / (1 + abs(a)) cancels where a is large, so there it is 1 / (1 + 1 / a).
    large = (jnp.abs(a) > 1) & jnp.isfinite(a)
    safe, small = jnp.where(large, a, 1.0), jnp.where(large, 0.0, a)
    small = small / (1.0 + op_abs(small))
    return jnp.where(large, jnp.sign(safe) / (1.0 + 1.0 / jnp.abs(safe)), small)


def op_max(a, b):
    return jnp.maximum(a, b)


def op_min(a, b):
    return jnp.minimum(a, b)


def op_greater(a, b):
    return jnp.greater(a, b).astype(jnp.result_type(a, b))


def op_aq(a, b):
    return a / jnp.sqrt(1.0 + b * b)


def over(reduce, x, axes):
    return reduce(x, axis=axes, keepdims=True) if axes and jnp.ndim(x) else x


def op_mean(x, axes):
    return over(jnp.mean, x, axes[0] + axes[1])


def op_row_mean(x, axes):
    return over(jnp.mean, x, axes[1])


def op_col_mean(x, axes):
    return over(jnp.mean, x, axes[0])


def op_row_max(x, axes):
    return over(jnp.max, x, axes[1])


def op_col_max(x, axes):
    return over(jnp.max, x, axes[0])


def matrix(x, axes):
    """x as [small, large] with the smaller side first, and what ``tensor`` needs."""
    sizes = [math.prod(x.shape[axis] for axis in side) for side in axes[:2]]
    sides = axes[:2] if sizes[0] <= sizes[1] else (axes[1], axes[0])
    order = [x.ndim + axis for side in sides for axis in side]
    moved = jnp.transpose(x, order)
    return jnp.reshape(moved, (min(sizes), max(sizes))), order, moved.shape


def tensor(m, order, shape):
    """The inverse of ``matrix``."""
    return jnp.transpose(jnp.reshape(m, shape), sorted(range(len(order)), key=order.__getitem__))


def scaled(m):
    """The largest size, and the matrix over it; ones where it is 0, so that nothing is 0/0."""
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(m), initial=0.0))
    return size, jnp.where(size == 0, 1.0, m / jnp.where(size == 0, 1.0, size))


def norm(m):
    return jnp.sqrt(jnp.sum(m * m))


def newton_schulz(m):
    """Five steps towards the polar factor from m / norm(m) (Jordan et al. 2024); the smaller side is first.

    Of one row it is m / norm(m). Products are exact to the dtype: accelerators would round their factors.
    """

    def product(a, b):
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    m = m / norm(m)
    for _ in range(5 if m.shape[0] > 1 else 0):
        a = product(m, m.T)
        m = 3.4445 * m + product(-4.7750 * a + 2.0315 * product(a, a), m)
    return m


def op_polar(x, axes):
    m, order, shape = matrix(x, axes)
    size, m = scaled(m)
    return tensor(jnp.where(size == 0, 0.0, newton_schulz(m)), order, shape)


def op_orth(x, axes):
    m, order, shape = matrix(x, axes)
    if m.shape[0] <= 1:
        return x
    size, m = scaled(m)
    polar = newton_schulz(m)
    return tensor(size * (polar * (norm(m) / norm(polar))), order, shape)
