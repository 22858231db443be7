"""Steps of rules that see tensors, in either framework: the oracle's updates, the guard, what is kept."""

import re
import warnings

import numpy as np
import pytest

from interchange.rule.rule import Rule
from tests.conftest import side
from tests.helpers.layers import FACTORS, KINDS, MUON, RULES, SHAPES, gradients, updates
from tests.helpers.samples import start

PATHS = [(name, path) for name in ("torch", "tf") for path in ("plain", "graph")]
PATHS += [("torch", "capturable"), ("torch", "differentiable"), ("tf", "fused"), ("tf", "xla")]
pytestmark = pytest.mark.slow_with(path=[("tf", path) for path in ("graph", "fused", "xla")])
GRAPH = ("torch", "graph")
every_path = pytest.mark.parametrize("path", PATHS, ids=" ".join)
EXACT = {"float64": 1e-11, "float32": 1e-3}  # of the largest update: what polar makes of rounding


def zeros(impl, dtype: str = "float64", shapes=SHAPES):
    """Parameters of layers, as the framework lays them out."""
    return impl.parameters([impl.native(np.zeros(shape)) for shape in shapes], dtype)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_layers_in_the_frameworks_layout_get_the_oracles_updates(impl, rule, kind, dtype):
    params, rows = zeros(impl, dtype), gradients(kind)
    rows = [[g.astype(dtype) for g in row] for row in rows]
    optimizer = impl.rule(params, rule)
    for row in rows:
        impl.feed(optimizer, params, [impl.native(g) for g in row])
    for p, u in zip(params, updates(rule, rows), strict=True):
        moved, largest = impl.canonical(impl.value(p)), np.abs(u).max(initial=0.0)
        np.testing.assert_allclose(moved, u.sum(0), rtol=0, atol=EXACT[dtype] * largest)


@pytest.mark.slow_with(path=(GRAPH,), rule=(FACTORS,))
@pytest.mark.parametrize("rule", [MUON, FACTORS], ids=["muon", "factors"])
@every_path
def test_every_path_takes_the_same_steps(path, rule, monkeypatch):
    impl, shapes = side(path[0]), ((5, 3), (7,))
    params, rows = zeros(impl, shapes=shapes), gradients("usual", shapes)
    optimizer = impl.rule(params, rule, **impl.take_path(path[1], monkeypatch))
    step = impl.stepper(optimizer, params, path[1])
    for row in rows:
        step(*[impl.native(g) for g in row])
    assert impl.counts(optimizer, params) == [len(rows)] * len(params)
    for p, u in zip(params, updates(rule, rows), strict=True):
        np.testing.assert_allclose(
            impl.canonical(impl.value(p)), u.sum(0), rtol=0, atol=1e-11 * np.abs(u).max()
        )


def test_weight_decay_and_the_gradient_of_a_centered_rule_are_those_of_any_rule(impl):
    rule = Rule.from_text("by_matrix(0.3 - orth(g) - 0.1 * row_mean(theta), 0.2 - tanh(g))")
    start_of, g = start(((4, 3), (5,))), gradients("zero", ((4, 3), (5,)), 1)[0]
    params = impl.parameters([impl.native(x) for x in start_of])
    optimizer = impl.rule(params, rule, 0.5, center=True, weight_decay=0.1)
    impl.feed(optimizer, params, [impl.native(x) for x in g])
    matrix, vector = (impl.canonical(impl.value(p)) for p in params)
    expected = 0.95 * start_of[0] - 0.05 * start_of[0].mean(0)  # a row is an output: the last axis
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(vector, 0.95 * start_of[1], rtol=0, atol=1e-12)


def test_state_over_rows_and_columns_is_as_small_as_they_are(impl):
    params = zeros(impl)
    optimizer = impl.rule(params, FACTORS)
    impl.feed(optimizer, params, [impl.native(g) for g in gradients("usual", steps=1)[0]])
    for p, shape in zip(params, SHAPES, strict=True):
        if 0 not in shape:
            assert sum(a.size for a in impl.state(optimizer, p)) == FACTORS.state_size(shape)
    assert FACTORS.state_size((3, 3, 4, 8)) == 8 + 36 + 2


@every_path
def test_a_nan_that_an_operator_spreads_leaves_its_tensor_alone_and_t_stands_still(path, monkeypatch):
    """Tensors beside it go on, and of vectors, on the other branch, all other coordinates."""
    impl, shapes = side(path[0]), ((4, 3), (4, 3), (5,))
    params, rows = zeros(impl, shapes=shapes), gradients("usual", shapes)
    optimizer = impl.rule(params, MUON, **impl.take_path(path[1], monkeypatch))
    step = impl.stepper(optimizer, params, path[1])
    for k, row in enumerate(rows):
        given = [g.copy() for g in row]
        if k == 1:
            given[0][2, 1] = given[2][3] = np.nan
        step(*[impl.native(g) for g in given])
        if path[1] != "xla":
            assert impl.left_alone(optimizer, params) == ([12, 0, 1] if k == 1 else [0, 0, 0])
    assert impl.counts(optimizer, params) == [3, 4, 4]
    without, whole = updates(MUON, [row for k, row in enumerate(rows) if k != 1]), updates(MUON, rows)
    for p, u in zip(params, (without[0], whole[1]), strict=False):
        np.testing.assert_allclose(impl.canonical(impl.value(p)), u.sum(0), rtol=0, atol=1e-11)
    others = np.arange(5) != 3
    np.testing.assert_allclose(impl.value(params[2])[others], whole[2].sum(0)[others], rtol=0, atol=1e-12)


@every_path
def test_state_of_a_row_goes_on_where_any_of_its_coordinates_does(path, monkeypatch):
    """It is finite here, the moved parameter is not: in one coordinate, and in all of another row."""
    impl = side(path[0])
    rule = Rule.from_text("-g - 0 * ema(row_mean(tanh(g)), 0.5)")
    params = impl.parameters([impl.native(np.zeros((3, 4)))])
    optimizer = impl.rule(params, rule, 10.0, **impl.take_path(path[1], monkeypatch))
    g = np.ones((3, 4))
    g[1, 0] = 1.7e308
    g[:, 2] = 1.7e308
    impl.stepper(optimizer, params, path[1])(impl.native(g))
    theta, (kept,) = impl.canonical(impl.value(params[0])), impl.state(optimizer, params[0])
    np.testing.assert_array_equal(theta, np.where(g == 1.0, -10.0, 0.0))
    expected = 0.5 * np.tanh(g).mean(0) * [1, 1, 0, 1]
    np.testing.assert_allclose(kept.ravel(), expected, rtol=1e-14)
    assert impl.counts(optimizer, params) == [1]
    if path[1] != "xla":
        assert impl.left_alone(optimizer, params) == [4]


@every_path
def test_state_of_a_row_that_is_not_finite_leaves_the_row_alone(path, monkeypatch):
    impl = side(path[0])
    params, rows = impl.parameters([impl.native(np.zeros((3, 4)))]), gradients("usual", ((3, 4),))
    rule = Rule.from_text("-sign(g) - 0.1 * greater(ema(row_mean(square(g)), 0.5), 1e9)")
    optimizer = impl.rule(params, rule, **impl.take_path(path[1], monkeypatch))
    step = impl.stepper(optimizer, params, path[1])
    for (g,) in rows[:2]:
        g = np.abs(g)
        g[0, 1] = 1e200  # its square is not finite, its sign is
        step(impl.native(g))
    theta, (kept,) = impl.canonical(impl.value(params[0])), impl.state(optimizer, params[0])
    assert not theta[:, 1].any() and theta[:, [0, 2, 3]].all() and np.isfinite(kept).all()
    assert np.count_nonzero(kept) == 3 and impl.counts(optimizer, params) == [2]


@pytest.mark.parametrize(
    ("cause", "text", "bad", "lr"),
    [
        ("gradient", "-polar(ema(g, 0.9))", np.nan, 1.0),
        ("update", "-g / greater(1.5, mean(g))", 2e3, 1.0),
        ("state", "-sign(g) * greater(1e9, ema(row_mean(square(g)), 0.9))", 1e30, 1.0),
        ("moved parameter", "-g + row_mean(tanh(g))", 3e38, 10.0),
    ],
)
def test_a_look_tells_what_was_not_finite(impl, cause, text, bad, lr, monkeypatch):
    monkeypatch.setattr(impl.module("optimizers.guard"), "_LOOK_EVERY", 1)
    params = impl.parameters([impl.native(np.ones((4, 3)))], "float32")
    optimizer = impl.rule(params, Rule.from_text(text), lr)
    g = np.full((4, 3), 0.5)
    g[1, 2] = bad
    with pytest.warns(RuntimeWarning, match=re.escape(f"because the {cause} was not finite")):
        impl.feed(optimizer, params, [impl.native(g)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        impl.feed(optimizer, params, [impl.native(g)])
