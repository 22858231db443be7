"""Rules as compiled code on arrays of both frameworks: rollouts and derivatives against the NumPy oracle."""

import numpy as np
import pytest

from common import kernels
from common.kernels import build, rule
from interchange.emit.c_kernels import roll_source, step_source, vjp_source
from interchange.language.compiler import compile_program
from interchange.language.execute import initial_state, step
from interchange.language.parse import parse
from interchange.rule.rule import Rule

pytestmark = pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())

CONSTANTS = {"c0": 0.7, "c1": 1.3, "b": 0.9, "h": 0.8}
TEXTS = (
    "-c0 * tanh(ema_hat(g, b) / c1) / (1 + t / 50) + 0.1 * asinh(lag(theta - c0 * g, 2))",  # a call: blocks
    "-c0 * ema(cummax(c1 * g), h) + 0.01 * cumsum(g / c1) - sqrt(0.1 + square(ema(g, b)))",  # one loop
)
TOLERANCE = {"float64": 1e-13, "float32": 3e-6}


def compiled(impl, program):
    return impl.module("networks.compiled").Compiled(program, ("g", "theta"))


def made(texts=TEXTS):
    return compile_program([parse(text, {"g", "theta", "t", *CONSTANTS}) for text in texts])


def data(steps: int, n: int, dtype: str) -> np.ndarray:
    """g and theta, [T, 2, N]."""
    return np.random.default_rng(0).normal(size=(steps, 2, n)).astype(dtype)


def unroll(program, x, state, before: int, constants=CONSTANTS):
    """The oracle's outputs [T, O, N], and the state in the end."""
    out = []
    for t, (g, theta) in enumerate(x, before + 1):
        outputs, state = step(program, {"g": g, "theta": theta, **constants}, state, t)
        out.append(np.stack(outputs))
    return np.stack(out), state


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 300])
def test_a_rollout_is_the_oracles(impl, n, dtype):
    program, x = made(), data(5, n, dtype)
    code, state = compiled(impl, program), initial_state(program, (n,), dtype)
    want, ends = unroll(program, x, state, 0)
    state = [impl.tensor(a) for a in state]
    for t, row in enumerate(x, 1):
        out, state = code.roll(impl.tensor(row), state, CONSTANTS, t)
        np.testing.assert_allclose(np.asarray(out), want[t - 1], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        state = [impl.tensor(np.asarray(a)) for a in state]
    for got, end in zip(state, ends, strict=True):
        np.testing.assert_allclose(np.asarray(got), end, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_programs_that_differ_in_the_sign_of_a_zero_have_code_of_their_own(impl):
    x = impl.tensor(np.ones((2, 70)))
    for zero, limit in (("0.0", np.inf), ("-0.0", -np.inf)):
        (out,), _ = compiled(impl, made([f"g / (theta * {zero})"])).roll(x, [], {}, 1)
        assert np.array_equal(np.asarray(out), np.full(70, limit))


def test_arrays_other_than_the_code_expects_are_refused_before_it_runs():
    source = step_source(made(["-g * ema(g, b)"]))
    code = rule.rule_code(source, "float32")
    with pytest.raises(ValueError, match=r"expected \(1, 1, 3, 1\)"):
        code.step([1], [8], [8], [8, 8], [0.9], 1.0, 1.0, 1.0, False, True, 1)


def test_lanes_have_constants_of_their_own(impl):
    program, x = made(), data(1, 140, "float64")[0]
    code, state = compiled(impl, program), initial_state(program, (140,))
    lanes = [CONSTANTS, CONSTANTS | {"c0": -0.2, "b": 0.5}]
    out, after = code.roll_batched(impl.tensor(x), [impl.tensor(a) for a in state], lanes, 3)
    for k, constants in enumerate(lanes):
        here = slice(70 * k, 70 * k + 70)
        alone = code.roll(impl.tensor(x[:, here].copy()), [impl.tensor(a[here]) for a in state], constants, 3)
        assert np.array_equal(np.asarray(out)[:, here], np.asarray(alone[0]))
        for a, b in zip(after, alone[1], strict=True):
            assert np.array_equal(np.asarray(a)[here], np.asarray(b))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("n", [1, 300])
def test_derivatives_are_the_slopes_of_the_oracle(impl, text, n):
    """Of a piece of an unroll: state and t come from the steps before, and do not move with the constants."""
    program, x = made([text]), data(12, n, "float64")
    c = np.random.default_rng(1).normal(size=(7, n))
    state = unroll(program, x[:5], initial_state(program, (n,)), 0)[1]
    found = compiled(impl, program).vjp(
        impl.tensor(x[5:]), impl.tensor(c), [impl.tensor(a) for a in state], CONSTANTS, 5
    )
    assert set(found) == set(CONSTANTS) & set(program.inputs)
    for name, got in found.items():
        h, sides = 1e-6, []
        for sign in (1, -1):
            moved = CONSTANTS | {name: CONSTANTS[name] + sign * h}
            sides.append((c * unroll(program, x[5:], state, 5, moved)[0][:, 0]).sum())
        assert got == pytest.approx((sides[0] - sides[1]) / (2 * h), rel=1e-6, abs=1e-7), name


def test_at_ties_of_a_running_maximum_what_was_and_what_comes_have_half_of_the_derivative(impl):
    program, constants = made(["cummax(g + c0 * t)"]), {"c0": 0.5}
    x = np.zeros((2, 2, 70))
    x[:, 0] = [[1.0], [0.5]]  # so that it is 1.5 at both steps, which move by 1 and by 2
    state = [impl.tensor(a) for a in initial_state(program, (70,))]
    c = np.stack([np.zeros(70), np.ones(70)])
    found = compiled(impl, program).vjp(impl.tensor(x), impl.tensor(c), state, constants, 0)
    assert found["c0"] == pytest.approx(70 * 1.5, rel=1e-12)


def test_float32_derivatives_are_those_of_float64_rounded(impl):
    program, x = made(TEXTS[:1]), data(20, 300, "float64")
    c, found = np.random.default_rng(1).normal(size=(20, 300)), []
    for dtype in ("float64", "float32"):
        state = [impl.tensor(a) for a in initial_state(program, (300,), dtype)]
        code = compiled(impl, program)
        found.append(code.vjp(*(impl.tensor(a.astype(dtype)) for a in (x, c)), state, CONSTANTS, 0))
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-3)


def test_what_compiled_code_does_not_take_is_left_to_others(impl, monkeypatch):
    program = made()
    code, zeros = compiled(impl, program), np.zeros(8)
    state = [zeros for _ in program.writes]

    def roll(x, state):
        return code.roll(impl.tensor(x), [impl.tensor(a) for a in state], CONSTANTS, 1)

    assert roll(np.zeros((2, 8)), state) is not None
    assert roll(np.zeros((3, 8)), state) is None
    assert roll(np.zeros((2, 8), np.float16), state) is None
    assert roll(np.zeros((2, 8)), [a.astype(np.float32) for a in state]) is None
    monkeypatch.setenv("L2O_KERNELS", "0")
    assert roll(np.zeros((2, 8)), state) is None


def test_what_autograd_may_look_at_is_left_to_torch():
    torch = pytest.importorskip("torch")
    from torch_impl.networks.compiled import Compiled

    program = made(TEXTS[1:])
    code, x = Compiled(program, ("g",)), torch.zeros(1, 8, requires_grad=True)
    state = [torch.zeros(8) for _ in program.writes]
    assert code.roll(x, state, CONSTANTS, 1) is None
    with torch.no_grad():
        assert code.roll(x, state, CONSTANTS, 1) is not None
    moving = [a.clone().requires_grad_() for a in state]
    assert code.roll(x.detach(), moving, CONSTANTS, 1) is None


def test_torchs_transforms_see_every_operation():
    torch = pytest.importorskip("torch")
    from torch.autograd import forward_ad

    from torch_impl.networks.features import FeatureStream

    features = FeatureStream({"x": "square(ema_hat(g, 0.9))"})
    g = torch.linspace(-1.0, 1.0, 5)

    def out(g):
        return features.step(g, features.initial_state(torch.zeros(5)), 1)[0]

    value, slope = torch.func.jvp(out, (g,), (torch.ones(5),))
    torch.testing.assert_close(value[0], g.square())
    torch.testing.assert_close(slope[0], 2.0 * g)
    torch.testing.assert_close(torch.func.vmap(out)(torch.stack([g, 2.0 * g]))[1, 0], 4.0 * g.square())
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(out(forward_ad.make_dual(g, torch.ones(5)))).tangent
    torch.testing.assert_close(found[0], 2.0 * g)


def test_in_a_graph_tensorflow_computes():
    pytest.importorskip("torch")
    tf = pytest.importorskip("tensorflow")
    from tf_impl.networks.compiled import Compiled

    program, seen = made(TEXTS[1:]), []
    state = [tf.zeros(8) for _ in program.writes]
    code = Compiled(program, ("g",))
    tf.function(lambda x: seen.append(code.roll(x, state, CONSTANTS, 1)))(tf.zeros([1, 8]))
    assert seen == [None] and code.roll(tf.zeros([1, 8]), state, CONSTANTS, 1) is not None


def addresses(arrays) -> list[int]:
    return [a.ctypes.data for a in arrays]


def test_threads_do_not_change_the_bits(monkeypatch):
    monkeypatch.setattr(rule.RuleCode, "_threads", lambda self, coordinates, threads: threads)
    program, n, wrt = made(TEXTS[:1]), 5000, ("b", "c0")
    x, c = data(3, n, "float32"), np.ones((3, n), np.float32)
    stepping, rolling, pulling = (
        rule.rule_code(source, "float32")
        for source in (
            step_source(program),
            roll_source(program, ("g", "theta")),
            vjp_source(program, ("g", "theta"), wrt),
        )
    )
    seen = []
    for threads in (1, 2, 5):
        state = [np.zeros(n, np.float32) for _ in program.writes]
        out, after = np.empty((1, n), np.float32), [np.empty_like(a) for a in state]
        values = [[CONSTANTS[name] for name in code.constants] for code in (stepping, rolling, pulling)]
        rolling.roll(
            n, x[0].ctypes.data, addresses(state), addresses(after), out.ctypes.data, values[1], 1, threads
        )
        found = pulling.vjp(n, 3, x.ctypes.data, c.ctypes.data, addresses(state), values[2], 0, 2, threads)
        rows, sizes = [], (n - 1000, 0, 1000)
        for size in sizes:
            arrays = [np.ones(size, np.float32), np.full(size, 0.3, np.float32), np.zeros(1, np.float32)]
            arrays[1][size // 2 : size // 2 + 1] = np.nan
            rows.append([*arrays, np.zeros(1, np.int64), *(np.zeros(size, np.float32) for _ in state)])
        thetas, grads = addresses([row[0] for row in rows]), addresses([row[1] for row in rows])
        kept = [address for row in rows for address in addresses(row[2:])]
        stepping.step(sizes, thetas, grads, kept, values[0], 1.0, 0.1, 0.9, False, True, threads)
        assert [row[3][0] for row in rows] == [1, 0, 1] and all(row[2][0] == 1.0 for row in rows)
        seen.append([out, *after, found, *(a for row in rows for a in row)])
    for others in seen[1:]:
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(seen[0], others, strict=True))


def test_constants_are_arguments_and_not_part_of_the_code(monkeypatch):
    """Another tuning is the same code: nothing is compiled again."""
    one = Rule.from_text(TEXTS[1], CONSTANTS)
    other = one.with_constants({"c0": -3.0, "b": 0.1})
    program = one.program()
    assert other.program() == program
    code = rule.rule_code(step_source(program), "float64")
    monkeypatch.setattr(build, "load", lambda *_: pytest.fail("compiled again"))
    assert rule.rule_code(step_source(other.program()), "float64") is code
    assert not any(repr(abs(value)) in step_source(program).text for value in (0.7, 1.3, 3.0))
