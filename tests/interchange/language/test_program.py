"""Compiled programs: sharing, step against whole sequences, tangents."""

from fractions import Fraction

import numpy as np
import pytest

from common.errors import L2OError
from interchange.language import execute
from interchange.language.execute import compile_program, evaluate, evaluate_with_tangents
from interchange.language.expression import call, name, number
from interchange.language.parse import parse

T, N = 40, 6
RULES = {
    "momentum": "-c0 * ema(g, b)",
    "adam": "-c0 * ema_hat(g, b) / (sqrt(ema_hat(square(g), b2)) + 1e-8)",
    "lion": "-c0 * sign(0.9 * lag(ema(g, b), 1) + 0.1 * g)",
    "adagrad": "-c0 * g / (sqrt(cumsum(square(g))) + c1)",
    "amsgrad": "-c0 * ema(g, b) / (sqrt(cummax(ema(c1 * square(g), b2))) + 1e-8)",
    "lags": "c0 * lag(g, 3) + lag(c1 * lag(g, 1) * g, 2) - lag(2.0, 1) + lag(lag(g, 1), 1) + lag(g, 0)",
    "nested": "ema(ema_hat(c0 * g, b) * lag(ema(g, b2), 2), 0.5) + cumsum(c1 * cummax(g))",
    "kept": "tanh(ema(c0 * g, b)) + lag(ema(c0 * g, b), 1)",
    "powers": "c0 * powabs(g, c1) + pow(m, c1) * max(c0 * g, m) + aq(g, c1) * erf(c0 * m) + t / 1000.0",
    "time": "c0 * t * sqrt(g) / (1.0 + c1 * t) + theta * c0",
}
CONSTANTS = {"c0": 0.3, "c1": 1.7, "b": 0.9, "b2": 0.99}


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=(T, N)) for key in ("g", "m", "theta")} | CONSTANTS


def program_of(*texts):
    return compile_program([parse(text) for text in texts])


def test_semantics_by_hand():
    g = np.array([[1.0], [2.0], [-4.0]])
    lagged = "lag(ema(g, 0.5), 1)"
    program = program_of(
        "ema(g, 0.5)", "ema_hat(g, 0.5)", "lag(g, 2)", "cumsum(g)", "cummax(-g)", lagged, "t"
    )
    expected = [[0.5, 1.25, -1.375], [1.0, 1.25 / 0.75, -1.375 / 0.875], [0, 0, 1], [1, 3, -1], [-1, -1, 4]]
    expected += [[0, 0.5, 1.25], [1, 2, 3]]
    for got, want in zip(evaluate(program, {"g": g}), expected, strict=True):
        np.testing.assert_allclose(got[:, 0], want, rtol=1e-15)


@pytest.mark.parametrize(
    ("texts", "floats"),
    [
        ([RULES["momentum"]], 1),
        ([RULES["adam"]], 2),
        ([RULES["lion"]], 1),
        (["ema(g, b) + ema_hat(g, b)"], 1),
        (["ema(g, b)", "ema_hat(g, b) * 2.0"], 1),
        (["lag(g, 1) + lag(g, 3)"], 3),
        (["lag(lag(g, 1), 2) + lag(g, 3)"], 3),
        (["lag(cumsum(g), 2)"], 2),
        (["ema(g, 0.9) + ema(g, 0.99)"], 2),
        (["lag(g, 0)"], 0),
        (["tanh(g) + tanh(g)"], 0),
    ],
)
def test_state_is_shared(texts, floats):
    assert len(program_of(*texts).writes) == floats


def test_work_is_shared_but_not_between_zeros_of_either_sign():
    program = program_of("tanh(g) * tanh(g)", "tanh(g)")
    assert [ins.op for ins in program.instructions] == ["input", "tanh", "mul"]
    assert program.outputs == (2, 1)
    assert len(set(compile_program([number(0.0), number(-0.0)]).outputs)) == 2


def test_arguments_come_first_and_slots_are_written():
    program = program_of(*RULES.values())
    for index, ins in enumerate(program.instructions):
        assert all(arg < index for arg in ins.args)
    assert set(program.inputs) == {"g", "m", "theta", "t", *CONSTANTS}
    assert sorted({ins.slot for ins in program.instructions} - {-1}) == list(range(len(program.writes)))


@pytest.mark.parametrize("rule", RULES)
def test_tangents_equal_finite_differences(rule, inputs):
    program = program_of(RULES[rule])
    wrt = [key for key in CONSTANTS if key in program.inputs]
    value, tangents = evaluate_with_tangents(program, inputs, wrt)
    np.testing.assert_array_equal(value, evaluate(program, inputs)[0])
    assert tangents.shape == (len(wrt), T, N)
    for key, tangent in zip(wrt, tangents, strict=True):
        h = 1e-6
        up, down = (evaluate(program, {**inputs, key: inputs[key] + s})[0] for s in (h, -h))
        np.testing.assert_allclose(tangent, (up - down) / (2 * h), rtol=2e-5, atol=2e-7)


def test_tangents_at_zero_gradient_are_finite_and_ties_of_cummax_are_shared():
    zeros = {"g": np.zeros((T, N)), **CONSTANTS}
    program = program_of("c0 * ema_hat(g, b) / (sqrt(ema_hat(square(g), b2)) + 1e-8) + powabs(g, c1)")
    assert np.isfinite(evaluate_with_tangents(program, zeros, list(CONSTANTS))[1]).all()
    tie = {"g": np.ones((2, 1)), "c0": 0.0, "c1": 1.0}
    _, tangents = evaluate_with_tangents(program_of("cummax(lag(c0 * g, 1) + c1)"), tie, ["c0"])
    np.testing.assert_array_equal(tangents[0][:, 0], [0.0, 0.5])


def test_constants_have_the_shape_of_the_inputs_and_tangents_of_unused_ones_are_zero(inputs):
    assert evaluate(program_of("c0 + 1.0"), inputs)[0].shape == (T, N)
    value, tangents = evaluate_with_tangents(program_of("c0"), inputs, ["c0", "c1"])
    assert value.shape == (T, N) and (tangents[0] == 1.0).all() and not tangents[1].any()


def test_nan_is_carried_on(inputs):
    inputs["g"][5, 0] = np.nan
    for text in ("ema(g, b)", "cumsum(g)", "cummax(g)", "sign(ema_hat(g, b))"):
        (got,) = evaluate(program_of(text), inputs)
        assert np.isnan(got[5:, 0]).all()
        assert np.isfinite(got[:, 1:]).all()


def test_bias_correction_does_not_cancel():
    b = 1.0 - 1e-9
    assert execute.unbias_factor(b, 3) == pytest.approx(float(1 - Fraction(b) ** 3), rel=1e-14, abs=0.0)
    program = compile_program([call("ema_hat", name("g"), number(b))])
    g = np.ones((T, N), np.float32)
    np.testing.assert_allclose(evaluate(program, {"g": g}, np.float32)[0], 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"g": np.ones((3, 2))}, "expected a value for 'b'"),
        ({"g": np.ones((3, 2)), "b": 1.5}, "0 < b < 1"),
        ({"g": np.ones((3, 2)), "b": np.full((3, 2), 0.5)}, "one number b"),
        ({"g": np.ones((3, 2)), "b": 0.5, "m": np.ones((4, 2))}, "one shape"),
        ({"g": 1.0, "b": 0.5}, "time axis"),
    ],
)
def test_bad_inputs_are_named(inputs, message):
    with pytest.raises(L2OError, match=message):
        evaluate(program_of("ema(g, b)"), inputs)


def test_a_step_keeps_no_reference_to_its_inputs():
    program, g = program_of("lag(g, 1)"), np.ones(3)
    _, state = execute.step(program, {"g": g}, execute.initial_state(program, (3,)), 1)
    g[:] = 7.0
    np.testing.assert_array_equal(state[0], 1.0)
