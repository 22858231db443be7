"""Whether a rule leaves nothing but the recording's rounding, and its constants as their author wrote them.

An optimizer that was recorded as it ran leaves a residual that its floating point explains: of theta, whose
difference is recorded, and of the optimizer's own arithmetic. Where a rule's residual is no larger, the rule
is the optimizer, whatever other rules of a front are shorter and nearly as good.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from interchange.distill.refit import best_cut, few, predict, refit, scored
from interchange.language import expression as ex
from interchange.rule.rule import Rule
from interchange.rule.safety import EPS, guards, singular
from interchange.search.samples import Sequences

WITHIN = 3.0  # times the rounding: operations add up
_CLEARLY = 1.5  # times the least that a rule of the front leaves
_TELLS = 1e-2  # of the size of what was recorded
_CELLS = 100_000  # of the sequences that constants are written by
_PLAIN, _PLAIN_WITHIN = 3, 1.5  # digits of most constants; times the rounding that such a one may leave
_DIGITS = 6  # of a constant that an author wrote, at most
_LIKELY = 16.0  # of squared residuals over their variance that a constant's last digits may cost: 4 sigma


def excess(rule: Rule, data: Sequences) -> float:
    """Root mean square of the rule's residuals over ``data.rounding``; infinite where it is not finite."""
    with np.errstate(all="ignore"):
        value = float(np.sqrt(np.mean(np.square((data.target - predict(rule, data)) / data.rounding))))
    return value if np.isfinite(value) else np.inf


def smallest_exact(rules: Sequence[Rule], held_out: Sequence[Sequences]) -> Rule | None:
    """The smallest rule that leaves only rounding wherever it was not fitted; None without one.

    Where a longer rule leaves clearly less, the shorter one has left something out that is no rounding. A
    recording whose rounding is more than a hundredth of what was recorded tells nothing.

    Args:
        rules: shortest first.
        held_out: sequences for validation and for test, with their rounding.
    """
    if any(_size(part.rounding) > _TELLS * _size(part.target) for part in held_out):
        return None
    left = {k: max(excess(rule, part) for part in held_out) for k, rule in enumerate(rules)}
    limit = min(WITHIN, _CLEARLY * min(left.values(), default=np.inf))
    return next((rules[k] for k, value in left.items() if value <= limit), None)


def _size(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))


def as_written(rule: Rule, data: Sequences) -> Rule:
    """The rule with constants of few digits, as far as the data cannot tell them from the fitted ones.

    One constant after another is set to the shortest number that costs no more than 4 standard deviations, or
    leaves no more than 1.5 times the rounding where it has 3 digits at most: an optimizer in float32 does not
    work with exactly its own constants. The others are fitted again. What data say nothing about, as an eps
    that all gradients are far above, becomes 1e-8.

    Args:
        data: sequences with their rounding.
    """
    current, free = rule, list(rule.constants)
    cells, sound = float(data.target.size), not singular(rule)
    least = cells * excess(rule, data) ** 2
    limit = _LIKELY * max(1.0, least / cells)
    for name in rule.constants:
        free = [other for other in free if other != name]
        eps = name in guards(current)
        values = _shorter(current.constants[name], decay=name in rule.decay_constants)
        for value in [EPS] * eps + values:
            fitted = _refitted(current.with_constants({name: value}), free, data)
            now = cells * excess(fitted, data) ** 2
            plain = value != EPS and float(f"{value:.{_PLAIN}g}") == value
            allowed = now - least <= limit or (plain and now <= _PLAIN_WITHIN**2 * cells)
            if allowed and not (sound and singular(fitted)):
                current, least = fitted, max(least, now)
                break
    return current


def _shorter(value: float, decay: bool) -> list[float]:
    """The number with 1, 2, ... digits; a decay stays below 1."""
    rounded = [float(f"{value:.{digits}g}") for digits in range(1, _DIGITS + 1)]
    return list(dict.fromkeys(number for number in rounded if not decay or 0.0 < number < 1.0))


def _refitted(rule: Rule, free: Sequence[str], data: Sequences) -> Rule:
    """The rule with only the constants in ``free`` fitted."""
    if not free:
        return rule
    fixed = {name: ex.number(value) for name, value in rule.constants.items() if name not in free}
    part = dataclasses.replace(
        rule,
        expression=ex.substitute(rule.expression, fixed),
        constants={name: rule.constants[name] for name in free},
    )
    return rule.with_constants(refit(part, data, iterations=5).constants)


def _without_rest(rule: Rule, data: Sequences, held_out: Sequence[Sequences]) -> Rule:
    """The rule without what it needs not to leave only rounding: a search may end before it prunes that."""
    while cut := best_cut(rule, data, math.inf, allow_singular=bool(singular(rule))):
        if smallest_exact([cut, rule], held_out) is not cut:
            break
        rule = cut
    return rule


def settled(rules: Sequence[Rule], data: Mapping[str, Sequences]) -> list[Rule]:
    """The front up to its smallest rule that leaves only rounding, if it has one; as it is otherwise.

    That rule gets constants as they were written, and ``provenance["exact"]``: its residual on the runs for
    validation, in units of their rounding.

    Args:
        data: ``train``, ``valid`` and ``test``, with their rounding.
    """
    held_out = [data["valid"], data["test"]]
    exact = smallest_exact(rules, held_out)
    if exact is None:
        return list(rules)
    train = few(data["train"], _CELLS)
    exact = _without_rest(exact, train, held_out)
    written = as_written(exact, train)
    if smallest_exact([written], held_out) is None:
        written = exact
    written = scored(written, data) or exact
    record = written.provenance | {"exact": excess(written, data["valid"])}
    shorter = [rule for rule in rules if rule.complexity < exact.complexity]
    return [*shorter, dataclasses.replace(written, provenance=record)]
