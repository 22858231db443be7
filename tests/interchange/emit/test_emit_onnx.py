"""Rules exported to ONNX and run by onnxruntime: values against the oracle, shapes, constants, the file."""

import math

import numpy as np
import pytest

from common.run.storage import canonical_json
from interchange.emit import TARGETS
from interchange.language.operators import OPERATORS, TEMPORAL
from interchange.rule.rule import Rule

onnx = pytest.importorskip("onnx", reason="onnx is not installed: extra [onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: extra [onnx]")

POINTWISE = [name for name in OPERATORS if name not in TEMPORAL]
SIZES = [0.0, 1e-30, 1e-12, 2.22056e-12, 1e-5, 9e-5, 1.1e-4, 0.3, 0.5, 0.999, 1.0, 2.0, 5.5, 9.9, 30.0, 80.0]
SIZES += [1e6, 1e20, 3e38, math.inf]
NASTY = np.array([*SIZES, *(-size for size in SIZES), math.nan], np.float32)
# Units in the last place a kernel of onnxruntime may be off; tanh of denormals is off by more.
ULPS = 8


def session(rule: Rule):
    return onnxruntime.InferenceSession(TARGETS["onnx"].emit(rule), providers=["CPUExecutionProvider"])


def run(rule: Rule, g: np.ndarray, theta: np.ndarray | None = None, runner=None) -> np.ndarray:
    """Updates [T, N] of onnxruntime from zero state."""
    runner = runner or session(rule)
    names = [value.name for value in runner.get_inputs()]
    states = {name: np.zeros(g.shape[1:], np.float32) for name in names if name.startswith("state_")}
    updates = []
    for step, row in enumerate(g, 1):
        given = {"g": row, "t": np.array(step), **states}
        if "theta" in names:
            given["theta"] = theta[step - 1]
        u, *new = runner.run(None, given)
        states = dict(zip(states, new, strict=True))
        updates.append(u)
    return np.stack(updates)


def nasty_steps(steps: int = 60, n: int = 7) -> np.ndarray:
    rng = np.random.default_rng(5)
    values = [0.0, -0.0, 1e-12, -1e-12, 1e6, -1e6, 1.0, -1.0, 0.3, 1e18]
    g = rng.choice(values, size=(steps, n))
    g[:, :3] = rng.normal(size=(steps, 3)) * 10.0 ** rng.uniform(-6, 3, size=(steps, 3))
    g[:20, 6] = 0.0
    return g.astype(np.float32)


@pytest.mark.parametrize("name", POINTWISE)
def test_operators_equal_the_oracle_on_a_nasty_grid(name):
    operator = OPERATORS[name]
    args = [NASTY] if operator.arity == 1 else [part.ravel() for part in np.meshgrid(NASTY, NASTY)]
    rule = Rule.from_text(f"{name}({', '.join(['g', 'theta'][: operator.arity])})")
    got = run(rule, args[0][None], args[-1][None])[0]
    with np.errstate(all="ignore"):
        expected = operator.numpy(*args)
        allowed = ULPS * np.spacing(np.maximum(np.abs(expected), np.finfo(np.float32).tiny))
        close = np.abs(got - expected) <= allowed
    assert got.dtype == expected.dtype == np.float32
    wrong = ~(close | (got == expected) | (np.isnan(got) & np.isnan(expected)))
    assert not wrong.any(), [(*(arg[wrong][0] for arg in args), got[wrong][0], expected[wrong][0])]


RULES = {
    "rnnprop": Rule.from_text(
        "c0 * tanh(m_tilde / c1) + c2 * ema(g_tilde, c3)",
        {"c0": -0.0098, "c1": 0.61, "c2": -0.0012, "c3": 0.87},
        {
            "m_tilde": "ema_hat(g, 0.95) / (sqrt(ema_hat(square(g), 0.95)) + 1e-12)",
            "g_tilde": "g / (sqrt(ema_hat(square(g), 0.95)) + 1e-12)",
        },
        scale=0.1,
    ),
    "small eps": Rule.from_text("ema_hat(g, b) / (sqrt(ema_hat(abs(g), b)) + 1e-8)", {"b": 0.999}),
    "slow": Rule.from_text("ema_hat(g, b) + ema_hat(abs(g), 0.9999999)", {"b": 0.99999}),
    "lags": Rule.from_text("lag(g, 1) + 2.0 * lag(g, 3) - lag(ema(g, 0.9), 1)"),
    "running": Rule.from_text("sqrt(cumsum(square(g))) - cummax(-abs(g)) + t * theta / 7.0"),
    "no gradient": Rule.from_text("c0 * lag(t, 2) - cumsum(c0) + ema(3.0, 0.9)", {"c0": 0.25}),
    "number": Rule.from_text("c0", {"c0": 0.1}, scale=3.0),
}


@pytest.mark.parametrize("name", RULES)
def test_many_steps_equal_the_oracle(name):
    rule, g = RULES[name], nasty_steps()
    theta = np.linspace(-1, 1, g.size, dtype=np.float32).reshape(g.shape)
    got = run(rule, g, theta)
    expected = rule.evaluate({"g": g, "theta": theta}, np.float32)
    assert got.dtype == np.float32
    # A sum that cancels is exact only relative to its terms.
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("name", RULES)
def test_any_number_of_coordinates(name, n):
    g = nasty_steps(3, 7)[:, :n]
    got = run(RULES[name], g, g)
    assert got.shape == (3, n)
    np.testing.assert_allclose(
        got, RULES[name].evaluate({"g": g, "theta": g}, np.float32), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("b", [0.5, 0.9, 0.999, 0.9999999])
def test_one_minus_b_and_its_powers_are_exact(b):
    rule = Rule.from_text("ema(g, b)", {"b": b})
    assert run(rule, np.ones((1, 1), np.float32))[0, 0] == np.float32(1.0 - b)
    corrected = Rule.from_text("1.0 / ema_hat(cumsum(g), b)", {"b": b})
    steps = run(corrected, np.ones((30, 1), np.float32))
    expected = corrected.evaluate({"g": np.ones((30, 1), np.float32)}, np.float32)
    np.testing.assert_allclose(steps, expected, rtol=1e-6)


def test_constants_can_be_edited_in_the_file():
    rule = RULES["rnnprop"]
    changed = rule.with_constants({"c0": -0.5, "c3": 0.999})
    model = onnx.load_from_string(TARGETS["onnx"].emit(rule))
    for tensor in model.graph.initializer:
        name = tensor.name.removeprefix("constants/")
        if name in changed.constants:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(changed.constants[name]), tensor.name))
    runner = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    g = nasty_steps(20)
    np.testing.assert_array_equal(run(rule, g, runner=runner), run(changed, g))
    assert (run(rule, g) != run(changed, g)).any()


def test_the_reference_evaluator_gives_the_same():
    from onnx.reference import ReferenceEvaluator

    rule, g = RULES["running"], nasty_steps(1)[0]
    evaluator = ReferenceEvaluator(TARGETS["onnx"].emit(rule))
    zeros = {f"state_{k}": np.zeros_like(g) for k in range(rule.state_floats)}
    u, *_ = evaluator.run(None, {"g": g, "theta": g, "t": np.array(1), **zeros})
    np.testing.assert_allclose(u, run(rule, g[None], g[None])[0], rtol=1e-6)


def test_the_file_says_what_it_is():
    rule = RULES["rnnprop"]
    content = TARGETS["onnx"].emit(rule)
    assert content == TARGETS["onnx"].emit(rule)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (10, 18)
    assert [function.domain for function in model.functions] == ["symbolic_l2o"]
    assert [node.domain for node in model.graph.node] == ["symbolic_l2o"]
    described = dict(session(rule).get_modelmeta().custom_metadata_map)
    assert (described["format"], described["format_version"]) == ("l2o-onnx", "1.0.0")
    assert Rule.from_json(described["rule"]) == rule
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert values == {"scale": 0.1, **{f"constants/{key}": value for key, value in rule.constants.items()}}
    assert {str(value.dtype) for value in values.values()} == {"float64"}


def test_inputs_and_outputs_are_named_and_open_in_n():
    runner = session(RULES["running"])
    shown = {value.name: (value.type, value.shape) for value in runner.get_inputs()}
    vector = ("tensor(float)", ["N"])
    assert shown == {
        "g": vector,
        "theta": vector,
        "state_0": vector,
        "state_1": vector,
        "t": ("tensor(int64)", []),
    }
    shown = {value.name: (value.type, value.shape) for value in runner.get_outputs()}
    assert shown == {"u": vector, "new_state_0": vector, "new_state_1": vector}
    assert "theta" not in [value.name for value in session(RULES["lags"]).get_inputs()]


@pytest.mark.parametrize("name", ["a\nb", "\u202e", "\ud800", "\x00", "{0}", "😀"])
def test_any_name_can_be_exported(name):
    rule = Rule.from_text("c0 * g", {"c0": 0.5}, name=name)
    described = session(rule).get_modelmeta().custom_metadata_map
    assert Rule.from_json(described["rule"]).name == name
    assert canonical_json(described)
