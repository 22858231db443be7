"""Algebra on rules: what gets shorter stays the same function, and what is the same equation is found."""

import numpy as np
import pytest

from interchange.language import simplify
from interchange.language.parse import parse
from interchange.rule.rule import Rule, RuleError, zero_update
from tests.parity.random_rules import random_rule


def rule(text: str, scale: float = 1.0, **constants: float) -> Rule:
    return Rule.from_text(text, constants, scale=scale)


@pytest.mark.parametrize(
    ("text", "shorter"),
    [
        ("sqrt(square(g)) + 0 * 3", "abs(g)"),
        ("tanh(-g) * 2 + tanh(g)", "-1.0 * tanh(g)"),
        ("-(-g)", "g"),
        ("g * (1 / theta)", "g / theta"),
        ("lag(lag(g, 2), 3)", "lag(g, 5)"),
        ("2 * (3 * g)", "6.0 * g"),
        ("abs(abs(g)) - 0", "abs(g)"),
        ("pow(g, 3) + 0", "cube(g)"),
        ("max(g, g)", "g"),
        ("ema_hat(2, 0.9) * g", "2.0 * g"),
        ("relu(square(g))", "square(g)"),
        ("0.5 * (tanh(g) + tanh(g)) - 0 * g", "tanh(g)"),
    ],
)
def test_shorter_forms_that_stay_as_they_are(text, shorter):
    found = rule(text).simplified()
    assert str(found.expression) == shorter and found.simplified() is found


@pytest.mark.parametrize(
    "text", ["exp(log1p(g))", "log(exp(g))", "sqrt(square(square(square(square(g)))))", "g / g"]
)
def test_what_would_change_values_stays(text):
    assert rule(text).simplified().expression == parse(text)


def test_a_wrong_identity_is_caught_by_the_numbers(monkeypatch):
    monkeypatch.setattr(simplify, "_reduced", lambda node: parse("g"))
    given = rule("tanh(g)")
    assert simplify.simplified(given) is given


@pytest.mark.parametrize("number", range(40))
def test_random_rules_keep_their_values(number):
    given, _ = random_rule(7, number)
    shorter = simplify.simplified(given)
    assert shorter.complexity <= given.complexity
    inputs = {**simplify.probes()}
    old, new = given.evaluate(inputs), shorter.evaluate(inputs)
    assert (np.isfinite(old) == np.isfinite(new)).all()


def test_numbers_are_folded_and_what_has_state_is_not():
    assert simplify.folded(parse("2 * 3 + g * 1")) == parse("6.0 + g * 1")
    assert simplify.folded(parse("lag(exp(0), 2)")) == parse("lag(1.0, 2)")
    assert simplify.folded(parse("cumsum(0.0) + ema(0.0, c0)")) == parse("0.0")
    assert simplify.folded(parse("1 / 0")) == parse("1 / 0")


SAME = [
    ("2 * g + 3 * lag(g, 1)", "c0 * (g + c1 * lag(g, 1))"),
    ("g * theta / 2", "-3 * theta * g"),
    ("g * g", "square(g)"),
    ("-(g - theta)", "theta - g"),
    ("ema(g, 0.9)", "ema(g, 0.5)"),
    ("g + 2 * theta + 1", "3 * (theta + 4 * g) - 7"),
    ("tanh(2 * g)", "tanh(g * c0)"),
    ("g / (theta + 1)", "2 * g * (1 / (theta + 3))"),
    ("max(g, theta)", "max(theta, g)"),
    ("g", "-0.01 * g"),
]
DIFFERENT = [
    ("g - theta", "theta - g"),
    ("2 * g + 3 * theta", "2 * (g + theta)"),
    ("tanh(g)", "tanh(2 * g)"),
    ("lag(g, 1)", "lag(g, 2)"),
    ("ema(g, 0.9)", "ema_hat(g, 0.9)"),
    ("g / theta", "theta / g"),
    ("g", "-g"),
]


@pytest.mark.parametrize(
    ("left", "right", "same"), [(*p, True) for p in SAME] + [(*p, False) for p in DIFFERENT]
)
def test_equality_up_to_constants(left, right, same):
    a, b = (Rule.from_text(text, {c: 0.7 for c in ("c0", "c1") if c in text}) for text in (left, right))
    assert simplify.equal_up_to_constants(a, b) is same
    assert simplify.equal_up_to_constants(b, a) is same


def test_features_count_as_their_definitions_and_scale_as_a_constant():
    a = Rule.from_text("c0 * m", {"c0": 2.0}, {"m": "ema(g, 0.9)"}, scale=0.01)
    for text, same in (("-3 * ema(g, 0.8)", True), ("-3 * ema(square(g), 0.8)", False)):
        assert simplify.equal_up_to_constants(a, rule(text)) is same


def test_centering_removes_the_update_at_zero_gradient_and_nothing_else():
    given = Rule.from_text(
        "c0 * exp(m / c1) + lag(exp(m), 2) + c2 * t + ema(cos(g), c3) - 0.1 * theta",
        {"c0": 2.0, "c1": 1.3, "c2": 0.1, "c3": 0.9},
        {"m": "ema_hat(g, 0.9) / (sqrt(ema_hat(square(g), 0.9)) + 1e-8)"},
    )
    centered = given.centered()
    assert zero_update(given) > 1.0 and zero_update(centered) == 0.0
    inputs = {"g": np.random.default_rng(0).normal(size=(20, 3)), "theta": np.ones((20, 3))}
    drift = given.evaluate({"g": np.zeros((20, 1)), "theta": np.zeros((20, 1))})
    np.testing.assert_allclose(centered.evaluate(inputs), given.evaluate(inputs) - drift, atol=1e-12)
    # The constants of what is subtracted are tuned along.
    moved = {"c0": 3.0, "c3": 0.5}
    assert zero_update(centered.with_constants(moved)) == 0.0
    assert centered.centered() is centered and rule("-g").centered() == rule("-g")
    with pytest.raises(RuleError, match="expected a finite update at zero gradient, got"):
        rule("1 / g").centered()
