"""Rules at gradients of 0: what is not finite there is found, mended or refused."""

import numpy as np
import pytest

from interchange.rule.forms import from_free, slope, to_free
from interchange.rule.rule import Rule
from interchange.rule.safety import EPS, guards, not_negative, repaired, singular

ADAM = {"a": 0.9, "b": 0.999}
SOUND = [
    *map(
        Rule.named,
        ("sgd", "momentum", "rmsprop", "adagrad", "adam", "amsgrad", "lion", "rnnprop_tuned", "psi"),
    ),
    Rule.from_text("-g / (abs(g) + 1)"),
    Rule.from_text("-tanh(g) / sqrt(square(g) + c)", {"c": 1e-3}),
]
BROKEN = {
    "adam without eps": ("-ema_hat(g, a) / sqrt(ema_hat(square(g), b))", ADAM),
    "rmsprop by a power": ("-g * powabs(ema(square(g), b), -0.5)", {"b": 0.9}),
    "adagrad without eps": ("-g / sqrt(cumsum(square(g)))", {}),
    "two of them": ("-g / abs(g) - ema(g, a) / sqrt(ema(abs(g), a2))", {"a": 0.9, "a2": 0.8}),
    "a ratio of averages": ("-ema(g, a) / ema(abs(g), b)", ADAM),
}
HOPELESS = {
    "overflow": "-exp(g)",
    "a product that overflows": "-cube(cube(g))",
    "what has either sign": "-square(g) / g",
    "the state alone": "-tanh(cumsum(cube(cube(g))))",
}


@pytest.mark.parametrize("rule", SOUND, ids=lambda rule: rule.name)
def test_rules_that_people_use_are_sound_and_stay_as_they_are(rule: Rule):
    assert singular(rule) == "" and repaired(rule) is rule


@pytest.mark.parametrize("name", BROKEN)
def test_a_size_that_can_be_zero_gets_a_small_constant(name: str):
    rule = Rule.from_text(*BROKEN[name])
    assert "not finite" in singular(rule)
    mended = repaired(rule)
    assert singular(mended) == "" and EPS in mended.constants.values()
    g = np.random.default_rng(0).normal(size=(50, 20))
    g += np.sign(g)  # far above eps
    np.testing.assert_allclose(mended.evaluate({"g": g}), rule.evaluate({"g": g}), rtol=1e-4, atol=1e-6)
    assert guards(mended)


@pytest.mark.parametrize("name", HOPELESS)
def test_what_no_constant_mends_is_given_up(name: str):
    rule = Rule.from_text(HOPELESS[name])
    assert singular(rule) and repaired(rule) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("-g / (sqrt(ema(square(g), 0.9)) + c)", ("c",)),
        ("-g / sqrt(ema(square(g), 0.9) + c)", ("c",)),
        ("-g / ((sqrt(ema(square(g), 0.9)) + c) * (1 + t))", ("c",)),
        ("-g / ((sqrt(ema(square(g), 0.9)) + c) / sqrt(ema(1, 0.9)))", ("c",)),
        ("-g * powabs(ema(square(g), 0.9) + c, -0.5)", ("c",)),
        ("-g / max(sqrt(ema(square(g), 0.9)), c)", ("c",)),
        ("-g / (ema(g, 0.9) + c)", ()),  # which may cross 0 whatever c is
        ("-g * (square(g) + c)", ()),  # no denominator
        ("-(g + c) / (abs(g) + 1)", ()),
    ],
)
def test_guards_are_positive_constants_beside_a_size_in_a_denominator(text: str, found: tuple[str, ...]):
    assert guards(Rule.from_text(text, {"c": 1e-3})) == found
    assert guards(Rule.from_text(text, {"c": -1e-3})) == ()


def test_a_rule_over_features_without_definition_cannot_run_and_is_not_judged():
    assert singular(Rule.from_text("1 / x", features={"x": None})) == ""


def test_a_size_that_fades_away_once_gradients_have_stopped_is_found():
    rule = Rule.from_text("-g / (1 - cummax(greater(abs(g), 0)) + ema(abs(g), 0.01))")
    assert "of gradients of 1e-30 and then zeros" in singular(rule)


@pytest.mark.parametrize(("form", "value"), [("logit", 0.9), ("log", 1e-3), ("plain", -2.0)])
def test_a_constant_moves_with_what_is_fitted_in_its_place_as_its_slope_says(form: str, value: float):
    free, h = to_free(value, form), 1e-5
    assert from_free(free, form) == pytest.approx(value, rel=1e-12)
    numeric = (from_free(free + h, form) - from_free(free - h, form)) / (2.0 * h)
    assert slope(value, form) == pytest.approx(numeric, rel=1e-6)


def test_signs_are_known_from_the_structure():
    from interchange.language.parse import parse

    for text, sure in {
        "square(g) + abs(t)": True,
        "ema(g, 0.9)": False,
        "max(g, abs(g))": True,
        "g * g": False,
    }.items():
        assert not_negative(parse(text), {}) is sure
    assert not_negative(parse("c * abs(g)", ("g", "c")), {"c": 0.1})
    assert not not_negative(parse("c * abs(g)", ("g", "c")), {"c": -0.1})
