"""Weight decay and schedules as parts of a rule."""

import numpy as np
import pytest

from common.errors import L2OError
from interchange.rule.decay import split, with_schedule, with_weight_decay
from interchange.rule.rule import Rule

MOMENTUM = Rule.from_text("-gain * ema(g, beta)", {"gain": 2.0, "beta": 0.5}, scale=0.1)


def updates(rule: Rule) -> np.ndarray:
    return rule.evaluate({"g": np.ones((4, 1)), "theta": np.full((4, 1), 3.0)})[:, 0]


def test_weight_decay_is_subtracted_and_found_again():
    rule = with_weight_decay(MOMENTUM, 0.25)
    np.testing.assert_allclose(updates(rule), updates(MOMENTUM) - 0.1 * 0.25 * 3.0, rtol=1e-14)
    assert split(rule) == (MOMENTUM.expression, "weight_decay")
    assert split(MOMENTUM) == (MOMENTUM.expression, "")


def test_a_schedule_divides_the_update_but_not_the_decay():
    rule = with_schedule(with_weight_decay(MOMENTUM, 0.25), 0.5)
    expected = updates(MOMENTUM) / (1.0 + 0.5 * np.arange(1, 5)) - 0.1 * 0.25 * 3.0
    np.testing.assert_allclose(updates(rule), expected, rtol=1e-14)
    other = with_weight_decay(with_schedule(MOMENTUM, 0.5), 0.25)
    np.testing.assert_allclose(updates(other), expected, rtol=1e-14)


@pytest.mark.parametrize(
    "text", ["g * theta", "g - 0.1 * theta", "theta - c * theta", "c * g - g * theta", "c * g - c * theta"]
)
def test_theta_elsewhere_and_a_second_decay_or_schedule_are_refused(text):
    with pytest.raises(L2OError, match="reads theta; expected"):
        split(Rule.from_text(text, {"c": 0.1}))
    with pytest.raises(L2OError, match="reads theta"):
        with_weight_decay(with_weight_decay(MOMENTUM, 0.1), 0.1, "other")
    with pytest.raises(L2OError, match="has a 'slowing' already"):
        with_schedule(with_schedule(MOMENTUM, 0.1), 0.1)
