"""``rule explain``, and rules told in words."""

import dataclasses

import numpy as np
import pytest

from interchange.rule.__main__ import main
from interchange.rule.compare import compare
from interchange.rule.nearest import HAND_MADE, nearest
from interchange.rule.rule import Rule
from interchange.rule.words import definitions, readable, told


@pytest.mark.parametrize("name", HAND_MADE)
def test_a_hand_made_optimizer_with_other_constants_is_nearest_to_itself(name: str):
    rule = Rule.named(name)
    moved = {key: value**2 if 0.5 < value < 1.0 else value for key, value in rule.constants.items()}
    if name == "lion":  # a sign has no slope: its constants stay
        moved = rule.constants
    matches = nearest(dataclasses.replace(rule.with_constants(moved), scale=0.01))
    best = {match.name: match.r2 for match in matches}
    assert best[name] > 0.999 and best[name] >= matches[0].r2 - 1e-3


def test_coordinates_count_alike_whatever_the_size_of_their_updates():
    """Large gradients are followed, small ones by their sign alone, which large updates would outweigh."""
    text = "-g * greater(abs(g), 1) - 0.2 * sign(g) * greater(1, abs(g))"
    assert nearest(Rule.from_text(text))[0].r2 < 0.9


def test_the_fitted_constants_are_those_of_the_rule():
    rule = Rule.named("adam", beta1=0.8, beta2=0.95)
    match = nearest(rule)[0]
    assert match.name == "adam"
    np.testing.assert_allclose(
        [match.rule.constants[key] for key in ("beta1", "beta2")], [0.8, 0.95], rtol=1e-4
    )


def test_explain_shows_the_equation_its_definitions_and_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["explain", "adam"]) == 0
    text = capsys.readouterr().out
    assert "ema_hat(x, b)" in text and "nearest: adam, which explains 100.0 %" in text


def test_the_end_of_a_command_shows_equation_definitions_size_and_what_comes_next():
    rule = Rule.named("rnnprop_17")
    text = told(rule, "rule.json", "python -m somewhere")
    for part in (
        readable(rule),
        "m_tilde",
        "17 nodes",
        "4 floats",
        "rule: rule.json",
        "next: python -m somewhere",
    ):
        assert part in text
    assert not any("sgn" in line for line in definitions(rule))


def test_numbers_read_back_to_four_digits():
    rule = Rule.named("rnnprop_tuned")
    assert "-0.05838 * ema(m_tilde, 0.8861)" in readable(rule) and readable(rule).startswith("0.01446 * (")


ADAM = "-ema_hat(g, 0.9) / (sqrt(ema_hat(square(g), 0.999)) + {})"


def test_an_eps_that_no_gradient_comes_near_makes_no_other_optimizer():
    text, same = compare(*(Rule.from_text(ADAM.format(eps)) for eps in (1e-14, 2e-14)))
    assert same and "wherever abs(g) > 1e-07" in text
    assert not compare(*(Rule.from_text(ADAM.format(eps)) for eps in (1e-8, 2e-8)))[1]


def test_constants_of_one_equation_stand_side_by_side():
    a = Rule.from_text("-c0 * ema(g, c1)", {"c0": 10.0, "c1": 0.9})
    b = Rule.from_text("-gain * ema(g, beta)", {"gain": 10.0, "beta": 0.8})
    text, same = compare(a, b)
    assert not same and "constant c1 | beta: 0.9 | 0.8" in text and "c0" not in text.split("\n", 2)[2]


def test_check_fails_on_a_rule_that_is_not_finite_at_zero(tmp_path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "rule.json"
    Rule.from_text("-g / abs(g)").save(path)
    assert main(["check", str(path)]) == 1 and "NOT SAFE" in capsys.readouterr().out
    assert main(["check", "adam"]) == 0
