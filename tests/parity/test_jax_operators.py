"""interchange.emit.jax_operators against the NumPy table: values, dtypes, NaN, and derivatives."""

import math

import numpy as np
import pytest

from interchange.language.operators import OPERATORS, TEMPORAL

jax = pytest.importorskip("jax", reason="JAX is not installed: extra [bench]")
operators = pytest.importorskip("interchange.emit.jax_operators")
jnp = jax.numpy

POINTWISE = [name for name in OPERATORS if name not in TEMPORAL]
NASTY = [0.0, 1e-30, 1e-12, 1e-5, 0.3, 0.5, 0.999, 1.0, 2.0, 2.5, 5.5, 12.0, 30.0, 1e6]
NASTY = np.array([*NASTY, *(-value for value in NASTY), math.nan])


@pytest.fixture(params=[np.float64, np.float32])
def dtype(request):
    """JAX computes in float64 only where it is told to."""
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def operator(name: str):
    infix = {"add": "__add__", "sub": "__sub__", "mul": "__mul__", "div": "__truediv__", "neg": "__neg__"}
    if name in infix:
        return lambda a, *rest: getattr(a, infix[name])(*rest)
    return getattr(operators, f"op_{name}")


def grid(name: str, dtype: type, values: np.ndarray = NASTY) -> list[np.ndarray]:
    if OPERATORS[name].arity == 1:
        return [values.astype(dtype)]
    return [part.ravel().astype(dtype) for part in np.meshgrid(values, values)]


@pytest.mark.parametrize("name", POINTWISE)
def test_operators_equal_the_oracle_on_a_nasty_grid(name, dtype):
    args = grid(name, dtype)
    with np.errstate(all="ignore"):
        expected = OPERATORS[name].numpy(*args)
    got = np.asarray(jax.jit(operator(name))(*map(jnp.asarray, args)))
    assert got.dtype == dtype
    # XLA takes numbers below the smallest normal one for 0.
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=np.finfo(dtype).tiny)


@pytest.mark.parametrize("name", POINTWISE)
def test_derivatives_equal_the_table(name, double):
    args = grid(name, np.float64, NASTY[:-1])
    with np.errstate(all="ignore"):
        out = OPERATORS[name].numpy(*args)
        args, out = [value[np.isfinite(out)] for value in args], out[np.isfinite(out)]
        partials = OPERATORS[name].derivative(*args, out)
    by_all = jax.grad(lambda *given: operator(name)(*given).sum(), argnums=tuple(range(len(args))))
    for got, partial in zip(by_all(*map(jnp.asarray, args)), partials, strict=True):
        expected = np.broadcast_to(partial, out.shape)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-20)


def test_the_table_has_a_function_for_every_operator():
    assert all(callable(operator(name)) for name in POINTWISE)
