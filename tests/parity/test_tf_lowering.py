"""TensorFlow's lowering, features and rules against torch; test_random_rules has them against the oracle."""

import numpy as np
import pytest

from common.errors import L2OError
from common.tables import features
from interchange.rule.rule import Rule
from tests.parity.backends import tf, tf_impl, torch, torch_impl
from tests.parity.random_rules import nasty_inputs
from tests.parity.rule_conformance import HAND_MADE

every_rule = pytest.mark.parametrize("rule", HAND_MADE, ids=lambda rule: str(rule.expression))


def run_tf(rule: Rule, dtype=tf.float64, constants: dict | None = None, wrap=None) -> tf.Tensor:
    """20 steps on calm columns; ``wrap`` as ``tf.function`` makes t a tensor."""
    lowered, given = tf_impl.networks.rule.lower(rule), rule.constants if constants is None else constants
    step = wrap(lambda data, state, t: lowered.step(data | given, state, t)) if wrap else None
    g, theta = (tf.constant(a[:20, :8], dtype) for a in nasty_inputs(np.float64))
    state, outs = lowered.initial_state(g[0]), []
    for s in range(20):
        now = {"g": g[s], "theta": theta[s]}
        if wrap:
            outputs, state = step(now, state, tf.constant(s + 1))
        else:
            outputs, state = lowered.step(now | given, state, s + 1)
        outs.append(tf.broadcast_to(tf.cast(outputs[0], dtype), g[s].shape))
        assert all(array.dtype == dtype and array.shape == g[s].shape for array in state)
    return tf.stack(outs)


@every_rule
@pytest.mark.parametrize("graph", ["any size", "xla"])
def test_graphs_agree_with_eager_steps_also_with_variables_as_constants(rule, graph):
    constants = {key: tf.Variable(value, dtype=tf.float64) for key, value in rule.constants.items()}
    vector = tf.TensorSpec([None], tf.float64)
    state = (vector,) * len(rule.program().writes)
    signature = [dict.fromkeys(("g", "theta"), vector), state, tf.TensorSpec([], tf.int32)]
    options = {"jit_compile": True} if graph == "xla" else {"input_signature": signature}
    got = run_tf(rule, constants=constants, wrap=lambda f: tf.function(f, **options))
    np.testing.assert_allclose(got, run_tf(rule), rtol=1e-10, atol=1e-14)


@every_rule
def test_constants_as_tensors_leave_float32_alone(rule):
    constants = {key: tf.constant(value, tf.float64) for key, value in rule.constants.items()}
    numbers, tensors = (run_tf(rule, tf.float32, given) for given in (None, constants))
    np.testing.assert_allclose(numbers, tensors, rtol=1e-6, atol=1e-12)


def test_parameters_without_dimensions_keep_their_dtype():
    adam, g = Rule.named("adam"), tf.constant(0.5)
    lowered = tf_impl.networks.rule.lower(adam)
    _, state = lowered.step({"g": g} | adam.constants, lowered.initial_state(g), 1)
    assert all(array.dtype == tf.float32 and array.shape == () for array in state)


def test_a_lag_of_the_parameter_is_the_value_before():
    lowered = tf_impl.networks.rule.lower(Rule.from_text("lag(theta, 1) + lag(g, 1)"))
    theta, g = tf.Variable([1.0, 2.0]), tf.Variable([3.0, 4.0])
    _, state = lowered.step({"g": g, "theta": theta}, lowered.initial_state(theta), 1)
    theta.assign_add([10.0, 10.0])
    g.assign([0.0, 0.0])
    (out,), _ = lowered.step({"g": g, "theta": theta}, state, 2)
    np.testing.assert_array_equal(out, [4.0, 6.0])


SETTINGS = {"beta1": 0.95, "beta2": 0.95, "eps": 1e-12, "p": 10.0}
STREAMS = {name: features.expression(name, **SETTINGS) for name in features.FEATURES}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("steps", [250, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_steps_of_all_features_agree_with_torch(dtype, tolerance, steps):
    rng = np.random.default_rng(5)
    g = (rng.normal(size=(steps, 24)) * 10.0 ** rng.uniform(-6, 0.5, size=24)).astype(dtype)
    g[rng.random(g.shape) < 0.1] = 0.0
    none = tf_impl.networks.features.FeatureStream({})
    assert none.step(tf.zeros([5], tf.float64), (), 1)[0].shape == (0, 5)
    ours, theirs = (impl.networks.features.FeatureStream(STREAMS) for impl in (tf_impl, torch_impl))
    step = tf.function(ours.step)
    one, other = ours.initial_state(tf.constant(g[0])), theirs.initial_state(torch.from_numpy(g[0]))
    for s, row in enumerate(g):
        x, one = step(tf.constant(row), one, tf.constant(s + 1))
        y, other = theirs.step(torch.from_numpy(row), other, s + 1)
        assert x.shape == (len(STREAMS), 24) and x.dtype == tf.as_dtype(dtype)
        a, b = y.numpy(), x.numpy()
        with np.errstate(all="ignore"):
            near = (np.abs(a - b) <= tolerance * np.maximum(1, np.abs(a))) | (a == b)
        near |= np.isnan(a) & np.isnan(b)
        assert near.all(), (s + 1, [name for name, good in zip(STREAMS, near, strict=True) if not good.all()])


TUNED = Rule.from_text(
    "c0 * tanh(m_tilde / c1) + c2 * ema(g_tilde, c3) - 1e-3 * ema_hat(g, c3) / t",
    {"c0": -0.98, "c1": 0.61, "c2": -0.12, "c3": 0.884},  # 0.884 is not the sigmoid of its logit
    {name: STREAMS[name] for name in ("m_tilde", "g_tilde")} | {"t_1000": None},
    scale=0.1,
)


def test_rule_networks_have_torchs_weights_and_rates():
    ours, theirs = (impl.networks.rule.RuleNetwork(TUNED) for impl in (tf_impl, torch_impl))
    assert list(ours.weights) == list(theirs.weights) and ours.rates == theirs.rates
    assert all(w.dtype == tf.float64 and w.shape == () for w in ours.weights.values())
    assert {name: float(w) for name, w in ours.weights.items()} == {
        name: float(w) for name, w in theirs.weights.items()
    }


def test_tuned_rules_have_the_weights_constants_and_untouched_ones_exactly():
    network = tf_impl.networks.rule.RuleNetwork(TUNED)
    start = {name: w.numpy() for name, w in network.weights.items()}
    assert network.tuned(start) == TUNED
    tuned = network.tuned(start | {"c3": np.array(1.5), "c0": np.array(2.0)})
    assert tuned.constants["c3"] == pytest.approx(1.0 / (1.0 + np.exp(-1.5)), rel=1e-14)
    assert (tuned.constants["c0"], tuned.constants["c1"]) == (2.0, 0.61)
    assert 0.0 < network.tuned(start | {"c3": np.array(-800.0)}).constants["c3"] < 1e-8


@pytest.mark.parametrize(("text", "message"), [("theta * c0", "theta"), ("column * c0", "no definition")])
def test_rules_that_cannot_be_tuned_are_refused(text, message):
    with pytest.raises(L2OError, match=message):
        tf_impl.networks.rule.RuleNetwork(Rule.from_text(text, {"c0": 1.0}, {"column": None}))
