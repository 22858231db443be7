"""The compiled LSTM optimizers against the NumPy oracle, and what happens where there is no compiler."""

import configparser

import numpy as np
import pytest

from common import kernels, reference
from common.tables.teachers import TEACHERS, initial_weights
from tests.helpers.processes import ROOT, said

DTYPES = {"float64": np.float64, "float32": np.float32, "bfloat16": np.float32}


class Case:
    """A teacher with large weights on random inputs, its arrays laid out as the code takes them."""

    def __init__(self, name: str, dtype: str, n: int, steps: int = 1, seed: int = 0) -> None:
        self.row, kind = TEACHERS[name], DTYPES[dtype]
        draw = np.random.default_rng(seed).normal
        self.weights = {k: 2.0 * w.astype(kind) for k, w in initial_weights(self.row, 1).items()}
        self.x = draw(size=(steps, len(self.row.inputs), n)).astype(kind)
        self.c = draw(size=(steps, n)).astype(kind)
        self.state = [0.3 * draw(size=(h, n)).astype(kind) for h in self.row.lstm for _ in "hc"]
        self.kernel = kernels.kernel(self.row, dtype)
        if self.kernel is None:
            pytest.skip(kernels.missing(dtype))

    def flat(self) -> np.ndarray:
        return np.concatenate([self.weights[name].ravel() for name in self.row.weight_shapes()])

    def step(self, state: list[np.ndarray], into: list[np.ndarray], threads: int = 1) -> np.ndarray:
        out, flat = np.full(self.x.shape[2], np.nan, self.x.dtype), self.flat()
        self.kernel.step(
            flat.ctypes.data, len(out), self.x[0].ctypes.data, [a.ctypes.data for a in state],
            [a.ctypes.data for a in into], out.ctypes.data, threads,
        )  # fmt: skip
        return out

    def gradient(self, threads: int = 1) -> np.ndarray:
        flat = self.flat()
        return self.kernel.gradient(
            flat.ctypes.data, *self.c.shape, self.x.ctypes.data, self.c.ctypes.data,
            [a.ctypes.data for a in self.state], threads,
        )  # fmt: skip

    def oracle(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Output and state after one step, in float64."""
        weights = {k: w.astype(np.float64) for k, w in self.weights.items()}
        state = iter(a.T.astype(np.float64) for a in self.state)
        cells = list(zip(state, state, strict=True))
        out, cells = reference.teacher_step(self.row, weights, self.x[0].T.astype(np.float64), cells)
        return out, [a.T for cell in cells for a in cell]

    def objective(self, weights: dict[str, np.ndarray]) -> float:
        """sum_t <c_t, out_t> by the oracle."""
        cells, total = [(h.T, c.T) for h, c in zip(*[iter(self.state)] * 2, strict=True)], 0.0
        for x, c in zip(self.x, self.c, strict=True):
            out, cells = reference.teacher_step(self.row, weights, x.T, cells)
            total += float(c @ out)
        return total


@pytest.mark.parametrize("n", [1, 63, 700])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-14), ("float32", 2e-6)])
@pytest.mark.parametrize("name", TEACHERS)
def test_a_step_is_the_oracles(name, dtype, tolerance, n):
    case = Case(name, dtype, n)
    after = [np.empty_like(a) for a in case.state]
    out = case.step(case.state, after)
    expected, states = case.oracle()
    for got, want in zip([out, *after], [expected, *states], strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["rnnprop", "rp_s", "dm"])
def test_the_gradient_is_the_slope_of_the_oracle(name):
    case = Case(name, "float64", 37, steps=23)  # more steps than are kept at once
    got, at, generator = case.gradient(), 0, np.random.default_rng(1)
    for weight in case.row.weight_shapes():
        direction = generator.normal(size=case.weights[weight].shape)
        size, h = direction.size, 1e-5
        up, down = (case.weights[weight] + s * h * direction for s in (1, -1))
        slope = case.objective(case.weights | {weight: up}) - case.objective(case.weights | {weight: down})
        slope /= 2 * h
        assert got[at : at + size] @ direction.ravel() == pytest.approx(slope, rel=1e-6, abs=1e-7), weight
        at += size
    assert at == len(got)


def test_threads_do_not_change_the_bits():
    case = Case("rnnprop", "float32", 5000, steps=3)
    case.kernel._threads = lambda work, threads: threads  # as if there were work for all
    after = [[np.empty_like(a) for a in case.state] for _ in range(3)]
    outs = [case.step(case.state, into, threads) for into, threads in zip(after, (1, 2, 5), strict=True)]
    grads = [case.gradient(threads) for threads in (1, 2, 5)]
    for k in (1, 2):
        assert np.array_equal(outs[k], outs[0]) and np.array_equal(grads[k], grads[0])
        assert all(map(np.array_equal, after[k], after[0]))


def test_a_step_may_overwrite_its_state():
    case = Case("rnnprop", "float32", 130)
    fresh = [np.empty_like(a) for a in case.state]
    out, state = case.step(case.state, fresh), [a.copy() for a in case.state]
    assert np.array_equal(case.step(state, state), out)
    assert all(map(np.array_equal, state, fresh))


def test_large_inputs_saturate_and_nan_stays_at_its_coordinate():
    case = Case("rnnprop", "float32", 70)
    case.x[0, :, 0], case.x[0, :, 1], case.x[0, 0, 2], case.x[0, 0, 3] = 1e30, -1e30, np.nan, np.inf
    with np.errstate(over="ignore", invalid="ignore"):
        expected = case.oracle()[0]
    out = case.step(case.state, [np.empty_like(a) for a in case.state])
    assert np.isfinite(out[:2]).all() and np.isnan(out[2])
    np.testing.assert_allclose(np.delete(out, [2, 3]), np.delete(expected, [2, 3]), atol=2e-6)


def test_bfloat16_state_is_the_float32_state_rounded():
    case = Case("rp_s", "bfloat16", 90)
    exact, full = [np.empty_like(a) for a in case.state], Case("rp_s", "float32", 90)
    state = [_narrow(a) for a in case.state]
    full.state = [_widen(a) for a in state]
    expected = full.step(full.state, exact)
    assert np.array_equal(case.step(state, state), expected)
    for got, want in zip(state, exact, strict=True):
        assert np.array_equal(got, _narrow(want))
        np.testing.assert_allclose(_widen(got), want, rtol=2**-8)


def test_ties_of_bfloat16_state_go_to_even():
    case = Case("rp_s", "bfloat16", 90)
    gates = [name for name in case.weights if name.startswith("lstm")]
    assert gates
    case.weights |= {name: np.full_like(case.weights[name], 50.0 * ("bias" in name)) for name in gates}
    # All gates are open, so that c grows by 1, which is half of what bfloat16 tells apart here.
    before = np.tile(np.array([256.0, 258.0, 260.0], np.float32), 30)
    state = [_narrow(np.zeros_like(a) if k % 2 == 0 else before + 0.0 * a) for k, a in enumerate(case.state)]
    case.step(state, state)
    for cells in state[1::2]:
        assert np.array_equal(_widen(cells), np.tile([256.0, 260.0, 260.0], (len(cells), 30)))


def _narrow(a: np.ndarray) -> np.ndarray:
    """The upper 16 bits, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(a).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _widen(a: np.ndarray) -> np.ndarray:
    return (a.astype(np.uint32) << 16).view(np.float32)


def test_the_source_goes_into_the_package():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert settings["options.package_data"]["common.kernels"].split() == ["*.c", "*.h"]


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())
def test_a_fork_starts_threads_of_its_own():
    """The parent's are not in it: waiting for them would be for ever."""
    code = """
import os, signal
from tests.common.test_kernels import Case
case = Case("rp_s", "float32", 4000, steps=2)
case.kernel._threads = lambda work, threads: threads
expected = case.gradient(3)
if (child := os.fork()) == 0:
    signal.alarm(20)
    os._exit(0 if (case.gradient(3) == expected).all() else 1)
print(os.waitpid(child, 0)[1])
"""
    assert said(code, PYTHONPATH=str(ROOT), L2O_KERNELS="1") == "0"
