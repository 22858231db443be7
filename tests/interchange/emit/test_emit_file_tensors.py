"""Torch and TensorFlow files of rules that see tensors: rows, small state, the guard, what is saved."""

import numpy as np
import pytest

from interchange.language.view import canonical, matrix
from interchange.rule.rule import Rule
from tests.conftest import side
from tests.helpers.layers import FACTORS, KINDS, MUON, RULES, SHAPES, gradients, updates
from tests.parity.rule_runners import load

PATHS = [("torch", "plain"), *(("tf", path) for path in ("plain", "graph", "xla"))]
every_path = pytest.mark.parametrize("path", PATHS, ids=" ".join)


def made(impl, rule: Rule, params, rows, lr: float = 1.0):
    """The file's optimizer; of a parameter without rows they are axis 0 in torch, the last in Keras."""
    module = load(rule, {"torch": "torch", "tf": "tensorflow"}[impl.NAME])
    if impl.NAME == "torch":
        pairs = zip(params, rows, strict=True)
        return module.RuleOptimizer(
            [{"params": [p]} | ({} if r is None else {"rows": r}) for p, r in pairs], lr
        )
    named = {f"{'net/' * (k % 2)}p{k}": given for k, given in enumerate(rows) if given is not None}
    optimizer = module.RuleOptimizer(lr, rows=named)
    optimizer.build(params)
    return optimizer


def outputs_last(impl, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Rows of a layer in canonical layout."""
    return (-1,) if impl.NAME == "torch" and len(shape) > 1 else None


def kept(impl, optimizer, params, k: int) -> tuple[int, int, list[np.ndarray]]:
    """A parameter's t, coordinates left alone, and state."""
    if impl.NAME == "tf":
        t, left, *slots = (a.numpy() for a in optimizer._stores[k])
    else:
        state = optimizer.state[params[k]]
        t, left, slots = (
            state["step"],
            state["skipped"],
            [a.numpy() for n, a in state.items() if "slot_" in n],
        )
    return int(t), int(left), slots


@pytest.mark.slow_with(impl=("tf",), dtype=("float32",))
@pytest.mark.parametrize(("dtype", "exact"), [("float64", 1e-11), ("float32", 1e-3)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_layers_in_canonical_layout_get_the_oracles_updates(impl, rule, kind, dtype, exact):
    params, given = impl.parameters([np.zeros(shape) for shape in SHAPES], dtype), gradients(kind)
    optimizer = made(impl, rule, params, [outputs_last(impl, shape) for shape in SHAPES])
    for row in given:
        impl.feed(optimizer, params, row)
    for k, (p, u, shape) in enumerate(zip(params, updates(rule, given), SHAPES, strict=True)):
        np.testing.assert_allclose(impl.value(p), u.sum(0), rtol=0, atol=exact * np.abs(u).max(initial=0.0))
        if 0 not in shape:
            assert sum(a.size for a in kept(impl, optimizer, params, k)[2]) == rule.state_size(shape)


@every_path
def test_rows_are_the_usual_ones_or_those_given_and_what_has_none_takes_the_other_branch(path):
    impl, (row,) = side(path[0]), gradients("usual", [(3, 4)] * 3, 1)
    params = impl.parameters([np.zeros((3, 4))] * 3)
    first, last = matrix((3, 4), (0,)), canonical((3, 4))
    usual, other, rows = (first, last, (1,)) if impl.NAME == "torch" else (last, first, (0,))
    optimizer = made(impl, MUON, params, [None, rows, ()])
    impl.stepper(optimizer, params, path[1])(*row)
    for p, g, view in zip(params, row, (usual, other, canonical((3, 4), False)), strict=True):
        u = MUON.evaluate({"g": g.reshape(1, -1)}, shapes=[view]).reshape(3, 4)
        np.testing.assert_allclose(impl.value(p), u, rtol=0, atol=1e-12)


@every_path
def test_state_of_a_row_goes_on_where_any_of_its_coordinates_does(path):
    impl, rule = side(path[0]), Rule.from_text("-g - 0 * ema(row_mean(tanh(g)), 0.5)")
    params = impl.parameters([np.zeros((3, 4))])
    optimizer = made(impl, rule, params, [outputs_last(impl, (3, 4))], 10.0)
    g = np.ones((3, 4))
    g[1, 0] = g[:, 2] = 1.7e308
    impl.stepper(optimizer, params, path[1])(g)
    np.testing.assert_array_equal(impl.value(params[0]), np.where(g == 1.0, -10.0, 0.0))
    t, left, (state,) = kept(impl, optimizer, params, 0)
    np.testing.assert_allclose(state.ravel(), 0.5 * np.tanh(g).mean(0) * [1, 1, 0, 1], rtol=1e-14)
    assert (t, left) == (1, 4)


def test_saved_state_of_torch_continues_exactly():
    impl, rows = side("torch"), gradients("usual")
    params, module = (
        impl.parameters([np.zeros(shape) for shape in SHAPES], "bfloat16"),
        load(FACTORS, "torch"),
    )
    optimizer = module.RuleOptimizer(params, lr=0.1, rows=None)
    for row in rows[:2]:
        impl.feed(optimizer, params, row)
    others = [type(p)(p.detach().clone()) for p in params]
    other = module.RuleOptimizer(others)
    other.load_state_dict(optimizer.state_dict())
    for row in rows[2:]:
        impl.feed(optimizer, params, row)
        impl.feed(other, others, row)
    assert all((p == q).all() for p, q in zip(params, others, strict=True))


def test_a_saved_model_of_keras_knows_its_rows_and_continues_exactly(tmp_path):
    """Its variables' paths, which began with its name, no longer do when it is loaded."""
    keras = pytest.importorskip("keras")
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
