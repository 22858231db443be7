"""TensorFlow files of rules that see tensors: a variable's rows, small state, the guard, derivatives."""

import numpy as np
import pytest

from interchange.language.execute import evaluate_with_tangents
from interchange.language.view import canonical, matrix
from interchange.rule.rule import Rule
from tests.helpers.layers import FACTORS, KINDS, MUON, RULES, SHAPES, gradients, updates
from tests.parity.rule_runners import load

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: extra [tf]")
keras = pytest.importorskip("keras")

MODES = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}
every_mode = pytest.mark.parametrize("mode", MODES)


def kernels(shapes=SHAPES, dtype: str = "float64") -> list:
    return [keras.Variable(np.zeros(shape), dtype=dtype, name=f"p{k}") for k, shape in enumerate(shapes)]


def stepper(optimizer, params: list, mode: str = "eager"):
    optimizer.build(params)
    step = MODES[mode](lambda *row: optimizer.apply(row, params))
    return lambda row: step(*(tf.cast(tf.constant(g), p.dtype) for g, p in zip(row, params, strict=True)))


@pytest.mark.parametrize(("dtype", "exact"), [("float64", 1e-11), ("float32", 1e-3)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_layers_in_canonical_layout_get_the_oracles_updates(rule, kind, dtype, exact):
    params, rows = kernels(dtype=dtype), gradients(kind)
    optimizer = load(rule, "tensorflow").RuleOptimizer()
    step = stepper(optimizer, params)
    for row in rows:
        step(row)
    for p, u, store, shape in zip(params, updates(rule, rows), optimizer._stores, SHAPES, strict=True):
        np.testing.assert_allclose(p.numpy(), u.sum(0), rtol=0, atol=exact * np.abs(u).max(initial=0.0))
        if 0 not in shape:
            assert sum(slot.numpy().size for slot in store[2:]) == rule.state_size(shape)


@every_mode
def test_rows_are_named_by_path_and_what_has_none_takes_the_other_branch(mode):
    params, (row,) = kernels([(3, 4)] * 3), gradients("usual", [(3, 4)] * 3, 1)
    optimizer = load(MUON, "tensorflow").RuleOptimizer(rows={"p1": (0,), "net/p2": ()})
    stepper(optimizer, params, mode)(row)
    views = canonical((3, 4)), matrix((3, 4), (0,)), canonical((3, 4), False)
    for p, g, view in zip(params, row, views, strict=True):
        u = MUON.evaluate({"g": g.reshape(1, -1)}, shapes=[view]).reshape(3, 4)
        np.testing.assert_allclose(p.numpy(), u, rtol=0, atol=1e-12)


@every_mode
def test_state_of_a_row_goes_on_where_any_of_its_coordinates_does(mode):
    rule = Rule.from_text("-g - 0 * ema(row_mean(tanh(g)), 0.5)")
    (p,) = params = kernels([(3, 4)])
    optimizer = load(rule, "tensorflow").RuleOptimizer(10.0)
    g = np.ones((3, 4))
    g[1, 0] = 1.7e308
    g[:, 2] = 1.7e308
    stepper(optimizer, params, mode)([g])
    np.testing.assert_array_equal(p.numpy(), np.where(g == 1.0, -10.0, 0.0))
    step, left, kept = (a.numpy() for a in optimizer._stores[0])
    np.testing.assert_allclose(kept.ravel(), 0.5 * np.tanh(g).mean(0) * [1, 1, 0, 1], rtol=1e-14)
    assert (int(step), int(left)) == (1, 4)


def test_a_saved_model_knows_its_rows_and_continues_exactly(tmp_path):
    """Its variables' paths, which began with its name, no longer do when it is loaded."""
    x = np.random.default_rng(1).normal(size=(16, 3)).astype("float32")
    net = keras.Sequential([keras.layers.Dense(4, name="one"), keras.layers.Dense(2, name="two")], name="net")
    net.build((None, 3))
    rows = {"net/one/kernel": (0,), "two/kernel": ()}
    net.compile(load(FACTORS, "tensorflow").RuleOptimizer(0.1, rows=rows), "mse", jit_compile=False)
    net.fit(x, x[:, :2], shuffle=False, verbose=0)
    net.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    assert again.trainable_variables[0].path != net.trainable_variables[0].path
    for one in (net, again):
        one.fit(x, x[:, :2], shuffle=False, verbose=0)
    for a, b in zip(net.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rule", [MUON, FACTORS], ids=["muon", "factors"])
@pytest.mark.parametrize("shape", [(5, 3), (7,)])
def test_derivatives_by_constants_are_the_oracles(rule, shape):
    module, view = load(rule, "tensorflow"), canonical(shape)
    g = np.stack([row[0] for row in gradients("usual", [shape])])
    constants = {name: tf.constant(value, tf.float64) for name, value in rule.constants.items()}
    weights, theta = np.cos(np.arange(g.size)).reshape(g.shape), tf.zeros(shape, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(constants)
        state, total = module.init(theta), 0.0
        for slope, weight in zip(g, weights, strict=True):
            u, state = module.update(tf.constant(slope), state, theta, constants)
            total += tf.reduce_sum(u * weight)
    found = tape.gradient(total, list(constants.values()), unconnected_gradients="zero")
    inputs = {"g": g, **rule.constants}
    _, tangents = evaluate_with_tangents(rule.program(view.matrix), inputs, list(constants), view)
    wanted = (weights * tangents).reshape(len(constants), -1).sum(1)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
