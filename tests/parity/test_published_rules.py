"""Published optimizers of the gallery take the steps of their papers, in float64 for 200 steps.

The papers' formulas stand in ``published`` as plain NumPy on matrices [outputs, inputs] and vectors.
"""

import numpy as np
import pytest

from common.errors import L2OError
from interchange.language import view as views
from interchange.language.execute import initial_state, step
from interchange.rule.gallery import NAMED
from interchange.rule.rule import Rule
from interchange.rule.safety import singular
from tests.parity import published
from tests.parity.rule_runners import load

STEPS, LR = 200, 0.01
POLAR, OTHERS = 1e-11, 1e-12  # of the largest update so far: a single coordinate's may be near 0
VIEWS = {
    "dense": views.canonical((5, 3)),
    "wide": views.canonical((16, 32)),
    "kernel": views.canonical((3, 3, 4, 8)),
    "torch kernel": views.matrix((8, 4, 3, 3), (0,)),
    "vector": views.vector((7,)),
    "one": views.vector((1,)),
}
every_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
PUBLISHED: dict[str, tuple[dict, published.Step]] = {
    "muon": ({}, published.with_adamw(published.muon)),
    "normuon": ({}, published.with_adamw(published.normuon)),
    "adamuon": ({}, published.with_adamw(published.adamuon)),
    "lamb": ({"weight_decay": 0.01}, published.lamb(0.01)),
    "lars": ({"weight_decay": 5e-4}, published.lars(5e-4)),
    "adafactor": ({"rho": 0.1}, published.adafactor(0.1)),  # 1 / sqrt(t) is less from step 100
    "sm3": ({}, published.sm3),
    "grams": ({}, published.grams),
    "mars": ({}, published.with_adamw(published.mars)),
    "adopt": ({}, published.adopt),
    "ademamix": ({}, published.ademamix(0)),
    "ademamix, warm": ({"warmup": 150}, published.ademamix(150)),
    "cautious": ({}, published.cautious(published.minus(published.adam()))),
    "cautious(muon)": ({}, published.cautious(published.with_adamw(published.muon))),
    "schedule_free": ({}, published.schedule_free(published.second_moment, LR)),
    "schedule_free(sgd)": ({}, published.schedule_free(lambda state, g, theta, t: -g, LR)),
}


def rule_of(name: str) -> Rule:
    return Rule.named(name.partition(",")[0], **PUBLISHED[name][0])


def seen(x: np.ndarray, view: views.View) -> np.ndarray:
    """[outputs, inputs] of a matrix, written out."""
    if not view.matrix:
        return x
    return x.reshape(view.shape[0], -1) if view.rows == (-x.ndim,) else x.reshape(-1, view.shape[-1]).T


def gradients(view: views.View) -> np.ndarray:
    """[step, *shape]: sizes over three decades, a mean, and a dead output and input of a matrix."""
    rng = np.random.default_rng(20)
    g = (rng.normal(size=(STEPS, *view.shape)) + 0.3) * 10.0 ** rng.uniform(-2.5, 0.5, view.shape)
    if view.matrix:
        for x in g:
            seen(x, view)[1] = 0.0  # a view of x, as both layouts are
            seen(x, view)[:, 2] = 0.0
    return g


@every_view
@pytest.mark.parametrize("name", PUBLISHED)
def test_it_takes_the_steps_of_the_paper(name, view):
    rule, (_, plain) = rule_of(name), PUBLISHED[name]
    program = rule.program(view.matrix)
    bar = POLAR if any(ins.op == "polar" for ins in program.instructions) else OTHERS
    theta = np.random.default_rng(1).normal(size=view.shape)
    state, kept, largest, worst = initial_state(program, view), {}, 0.0, 0.0
    for t, g in enumerate(gradients(view), 1):
        wanted = plain(kept, seen(g, view), seen(theta, view), t)
        (u,), state = step(program, {"g": g, "theta": theta, **rule.constants}, state, t, view)
        largest = max(largest, np.abs(wanted).max())
        apart = np.abs(seen(u, view) - wanted).max()
        assert apart <= bar * largest, f"step {t}: {apart / largest:.1e} of the largest update"
        worst, theta = max(worst, apart), theta + LR * u
    assert largest > 1e-4 and worst < largest
    print(f"{name}: {worst / largest:.1e}")


@pytest.mark.parametrize("view", ["kernel", "vector", "one"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_its_exported_file_takes_them_too(name, view):
    """The NumPy target, with the axis of the outputs as an option, and none for what only has one row."""
    rule, view = rule_of(name), VIEWS[view]
    module, theta = load(rule, "numpy"), np.ones(view.shape)
    option = {"rows": view.rows} if rule.sees_tensors else {}
    kept, state = module.init(theta, **option), initial_state(rule.program(view.matrix), view)
    for t, g in enumerate(gradients(view)[:20], 1):
        given = {"g": g, "theta": theta, **rule.constants}
        (wanted,), state = step(rule.program(view.matrix), given, state, t, view)
        u, kept = module.update(g, kept, theta, **option)
        np.testing.assert_allclose(u, wanted, rtol=0.0, atol=1e-12 * np.abs(wanted).max())
        theta = theta + LR * u


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_is_finite_where_gradients_are_zero(name):
    assert singular(rule_of(name)) == ""


@pytest.mark.parametrize("size", [1e-26, 1e-20, 1.0, 1e4, 1e9])
@pytest.mark.parametrize("name", PUBLISHED)
def test_dead_outputs_and_inputs_stay_and_harm_no_others(name, size):
    """In float32, where squares of small numbers vanish."""
    rule, view = rule_of(name), VIEWS["wide"]
    program, theta = rule.program(True), np.ones(view.shape, np.float32)
    state = initial_state(program, view, np.float32)
    for t, g in enumerate(gradients(view)[:20] * size, 1):
        inputs = {"g": g.astype(np.float32), "theta": theta, **rule.constants}
        (u,), state = step(program, inputs, state, t, view)
        assert all(np.isfinite(x).all() for x in (u, *state)), f"step {t}"
        assert size > 1.0 or np.abs(u).max() < 100.0
        if not rule.constants.get("weight_decay"):
            assert np.abs(seen(u, view)[1]).max() <= 1e-6 * np.abs(u).max()


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_a_tensor_of_zeros_leaves_zero(name):
    rule, g = Rule.named(name), np.random.default_rng(2).normal(size=(1, 12))
    plain = rule.evaluate({"g": g, "theta": np.zeros_like(g)}, shapes=[(4, 3)])
    np.testing.assert_allclose(plain, -np.sign(g) if name == "lamb" else -g, rtol=1e-4)


SIZES = {
    "muon": (288, 14),
    "normuon": (288 + 8, 14),
    "adamuon": (2 * 288, 14),
    "lamb": (2 * 288, 14),
    "lars": (288, 7),
    "adafactor": (8 + 36, 7),
    "sm3": (8 + 36, 7),
    "grams": (2 * 288, 14),
    "mars": (3 * 288, 14),
    "adopt": (2 * 288, 14),
    "ademamix": (3 * 288, 21),
    "cautious": (2 * 288, 14),
    "cautious(muon)": (288, 14),
    "schedule_free": (2 * 288, 14),
    "schedule_free(sgd)": (288, 7),
}


@pytest.mark.parametrize("name", SIZES)
def test_it_keeps_as_much_as_the_paper_needs(name):
    """Floats for a kernel of 36 inputs and 8 outputs, and for a vector of 7."""
    sizes = tuple(Rule.named(name).state_size(VIEWS[view]) for view in ("kernel", "vector"))
    print(f"{name}: {sizes[0] / 288:.3g} floats per parameter of the kernel, {sizes[1] / 7:.3g} of a vector")
    assert sizes == SIZES[name]


def test_every_published_row_is_tried_here():
    assert {name.partition(",")[0].partition("(")[0] for name in PUBLISHED} == {
        name for name, row in NAMED.items() if "arXiv" in row.source
    } | {"muon"}


def test_wrappers_take_rules_names_and_each_other():
    lion = Rule.named("cautious", of=Rule.named("lion", beta1=0.8))
    assert lion.name == "cautious(lion)" and lion.constants["keep"] == 0.8
    assert Rule.load("cautious(lion)") == Rule.named("cautious", of="lion") == Rule.named("cautious(lion)")
    assert Rule.load("cautious(schedule_free(sgd))").state_floats == 1
    muon = Rule.load("schedule_free(muon)")
    assert muon.expression.op == "by_matrix" and Rule.from_json(muon.to_json()) == muon
    with pytest.raises(L2OError, match="wrapped already"):
        Rule.load("schedule_free(schedule_free(sgd))")
    with pytest.raises(L2OError, match=r"expected at most 1000 nodes when wrapped"):
        Rule.load("cautious(cautious(cautious(adafactor)))")
    with pytest.raises(L2OError, match="beta2 and eps"):
        Rule.named("schedule_free", of="sgd", eps=1e-6)


@pytest.mark.parametrize("scale", [0.1, -0.1])
def test_a_cautious_rule_goes_down_the_gradient_only_whatever_its_scale(scale):
    inner = Rule.from_text("-m" if scale > 0 else "m", features={"m": "ema(g, 0.9)"}, scale=scale)
    rule, g = Rule.named("cautious", of=inner), np.random.default_rng(3).normal(size=(50, 12))
    u, whole = (each.evaluate({"g": g}, shapes=[(4, 3)]) for each in (rule, inner))
    agree = whole * g < 0
    assert 0.5 < agree.mean() < 1.0
    np.testing.assert_allclose(
        u, whole * agree * 12 / (agree.sum(1, keepdims=True) + 1), rtol=1e-12, atol=1e-18
    )


def test_the_average_of_schedule_free_follows_from_the_parameter_and_the_state():
    """x = theta - lr (1 - beta) cumsum((t - 1) d) / t, as the wrapper says."""
    rule, g = Rule.load("schedule_free(sgd)"), np.random.default_rng(4).normal(size=(STEPS, 5))
    theta = np.cumsum(LR * rule.evaluate({"g": g}), axis=0)
    z = np.cumsum(-LR * g, axis=0)
    x = np.cumsum(z, axis=0) / np.arange(1, STEPS + 1)[:, None]
    t = np.arange(1.0, STEPS + 1)[:, None]
    found = theta - LR * (1.0 - 0.9) * np.cumsum((t - 1) * -g, axis=0) / t
    np.testing.assert_allclose(found, x, atol=1e-13)
