"""The C rows of the operators against the NumPy table: values and derivatives at nasty inputs."""

import ctypes
import functools

import numpy as np
import pytest

from common import kernels
from common.kernels import build
from interchange.emit.c_kernels import _helpers
from interchange.emit.c_loops import declared, loops
from interchange.emit.c_source import write_step
from interchange.language import expression as ex
from interchange.language.compiler import compile_program
from interchange.language.operators import OPERATORS, TEMPORAL

pytestmark = pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())

POINTWISE = [name for name in OPERATORS if name not in TEMPORAL]
NASTY = [0.0, 1e-12, 1e-42, 0.3, 0.5, 1.0, 2.0, 2.5, 20.0, 88.5, 1e6, 1e30, np.inf]
NASTY = np.array([*NASTY, *(-x for x in NASTY), np.nan])
# As values: 1 in 4 million in float32, where the row's own polynomials are not the C library's.
TOLERANCE = {np.float64: 4e-15, np.float32: 5e-7}


def grid(dtype: type) -> list[np.ndarray]:
    """Every pair of values."""
    with np.errstate(under="ignore"):
        return [part.ravel().astype(dtype) for part in np.meshgrid(NASTY, NASTY)]


@functools.cache
def text(apart: bool) -> str:
    """C that writes every operator's value and its derivatives by both arguments.

    They are op(a + c0, b + c1), differentiated by c0 and c1 at -0.0, which leaves every a as it is; or, of
    what a whole step shares, op(c0, c1) for one pair.
    """
    a, b = (
        ex.name(f"c{k}") if apart else ex.call("add", ex.name(x), ex.name(f"c{k}"))
        for k, x in enumerate("ab")
    )
    calls = [ex.call(name, *(a, b)[: OPERATORS[name].arity]) for name in POINTWISE]
    program = compile_program(calls)
    step = write_step(program, {"a": "a[i]", "b": "b[i]"}, ("c0", "c1"), wrt=("c0", "c1"))
    final = []
    for k, value in enumerate(step.outputs):
        final += [f"out[{3 * k} * n + i] = {value};"]
        final += [f"out[{3 * k + 1 + j} * n + i] = {step.tangents[k].get(j, '0')};" for j in range(2)]
    body = loops(step.lines, [*step.outputs, *(d for t in step.tangents for d in t.values())], final, "    ")
    head = "void run(long n, const real *a, const real *b, const double *constant, real *out) {\n"
    once = declared(step.once, body, "    ")
    return f'#include "rule.h"\n{_helpers(once)}{head}{once}{body}}}\n'


def of_arrays(dtype: type) -> np.ndarray:
    a, b = grid(dtype)
    out = np.empty((len(POINTWISE), 3, len(a)), dtype)
    flags = ("-DL2O_DOUBLE",) if dtype is np.float64 else ()
    run(text(apart=False), flags, a, b, np.array([-0.0, -0.0]), out)
    return out


def of_numbers(dtype: type) -> np.ndarray:
    """Computed once for a whole step."""
    pairs = np.stack(grid(dtype), axis=1)
    out = np.empty((len(pairs), len(POINTWISE), 3), dtype)
    for constants, row in zip(pairs, out, strict=True):
        run(text(apart=True), ("-DL2O_DOUBLE",), np.zeros(1), np.zeros(1), constants, row)
    return np.moveaxis(out, 0, -1)


def run(source: str, flags: tuple[str, ...], a, b, constants, out) -> None:
    library, reason = loaded(source, flags)
    assert library is not None, reason
    library.run(ctypes.c_long(len(a)), *(ctypes.c_void_p(x.ctypes.data) for x in (a, b, constants, out)))


@functools.cache
def loaded(source: str, flags: tuple[str, ...]) -> tuple[ctypes.CDLL | None, str]:
    return build.load("operators", source, ("-ffp-contract=off", *flags))


CASES = {
    "float64": (np.float64, of_arrays),
    "float32": (np.float32, of_arrays),
    "once a step": (np.float64, of_numbers),
}


@pytest.fixture(scope="module", params=CASES)
def results(request) -> tuple[type, dict[str, np.ndarray]]:
    """Operator -> [3, pairs]: value, derivatives by a and by b."""
    dtype, made = CASES[request.param]
    return dtype, dict(zip(POINTWISE, made(dtype), strict=True))


def oracle(name: str, dtype: type) -> tuple[list[np.ndarray], np.ndarray]:
    args = grid(dtype)[: OPERATORS[name].arity]
    with np.errstate(all="ignore"):
        return args, OPERATORS[name].numpy(*args)


@pytest.mark.parametrize("name", POINTWISE)
def test_values_equal_the_oracle(results, name):
    dtype, got = results
    _, want = oracle(name, dtype)
    np.testing.assert_allclose(got[name][0], want, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("name", POINTWISE)
def test_derivatives_equal_the_table(results, name):
    """Where the value is finite, at kinks and ties too."""
    dtype, got = results
    args, out = oracle(name, dtype)
    with np.errstate(all="ignore"):
        partials = [np.broadcast_to(d, out.shape) for d in OPERATORS[name].derivative(*args, out)]
    fine = np.isfinite(out) & np.isfinite(sum(np.abs(np.where(np.isfinite(x), x, np.nan)) for x in args))
    for by, want in enumerate(partials):
        np.testing.assert_allclose(
            got[name][1 + by][fine], want[fine], rtol=10 * TOLERANCE[dtype], atol=np.finfo(dtype).tiny
        )
