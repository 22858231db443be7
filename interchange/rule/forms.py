"""The forms in which constants are fitted: without bounds, whatever a constant may be.

A decay is fitted as its logit, so that it stays in (0, 1); what keeps a denominator above 0 as its logarithm;
any other constant as it is.
"""

import math

from interchange.rule.rule import Rule
from interchange.rule.safety import guards


def forms(rule: Rule) -> dict[str, str]:
    """Constant -> "logit", "log" or "plain", in the order of the constants."""
    kinds = dict.fromkeys(rule.constants, "plain") | dict.fromkeys(guards(rule), "log")
    return kinds | dict.fromkeys(rule.decay_constants, "logit")


def to_free(value: float, form: str) -> float:
    """The number that is fitted in place of a constant."""
    if form == "logit":
        return math.log(value / (1.0 - value))
    return math.log(value) if form == "log" else value


def from_free(value: float, form: str) -> float:
    """The inverse of ``to_free``."""
    if form == "logit":
        # exp overflows far out, where a decay is as small as exp itself.
        return 1.0 / (1.0 + math.exp(-value)) if value > -700.0 else math.exp(value)
    return math.exp(value) if form == "log" else float(value)


def slope(value: float, form: str) -> float:
    """How a constant of this value moves with the number that is fitted."""
    return value * (1.0 - value) if form == "logit" else value if form == "log" else 1.0
