"""Whether a rule leaves nothing but the recording's rounding, and its constants as their author wrote them.

An optimizer that was recorded as it ran leaves a residual that its floating point explains: of theta, whose
difference is recorded, and of the optimizer's own arithmetic. Where a rule's residual is no larger, the rule
is the optimizer, whatever other rules of a front are shorter and nearly as good.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from interchange.distill.refit import predict, refit, scored
from interchange.files.trajectories import Trajectories
from interchange.language import expression as ex
from interchange.rule.rule import Rule
from interchange.rule.safety import EPS, guards, singular
from interchange.search.samples import Sequences, rounding

WITHIN = 3.0  # times the rounding: operations add up
_PLAIN, _PLAIN_WITHIN = 3, 1.5  # digits of most constants; times the rounding that such a one may leave
_DIGITS = 6  # of a constant that an author wrote, at most
_LIKELY = 16.0  # of squared residuals over their variance that a constant's last digits may cost: 4 sigma


def excess(rule: Rule, data: Sequences, deviation: np.ndarray) -> float:
    """Root mean square of the rule's residuals over their rounding; infinite where it is not finite."""
    with np.errstate(all="ignore"):
        value = float(np.sqrt(np.mean(np.square((data.target - predict(rule, data)) / deviation))))
    return value if np.isfinite(value) else np.inf


def smallest_exact(
    rules: Sequence[Rule], trajectories: Trajectories, data: dict[str, Sequences]
) -> Rule | None:
    """The smallest rule that leaves only rounding on the runs for validation and for test; None without one.

    Args:
        rules: shortest first.
    """
    held_out = {split: rounding(trajectories, split) for split in ("valid", "test")}
    for rule in rules:
        if all(excess(rule, data[split], deviation) <= WITHIN for split, deviation in held_out.items()):
            return rule
    return None


def as_written(rule: Rule, data: Sequences, deviation: np.ndarray) -> Rule:
    """The rule with constants of few digits, as far as the data cannot tell them from the fitted ones.

    One constant after another is set to the shortest number that costs no more than 4 standard deviations
    of its own, or no more than rounding where it has 3 digits at most: an optimizer in float32 does not work
    with exactly its own constants. The others are fitted again. What data say nothing about, as an eps that
    all gradients are far above, becomes 1e-8.
    """
    current, free = rule, list(rule.constants)
    cells = float(data.target.size)

    def squares(candidate: Rule) -> float:
        return cells * excess(candidate, data, deviation) ** 2

    least = squares(rule)
    limit = _LIKELY * max(1.0, least / cells)
    for place, name in enumerate(rule.constants):
        free = [other for other in free if other != name]
        for value in _shorter(current.constants[name], name in guards(current)):
            candidate = current.with_constants({name: value})
            fitted = _refitted(candidate, free, data)
            now = squares(fitted)
            likely = now - least <= limit * (place + 1)
            plain = float(f"{value:.{_PLAIN}g}") == value and now <= _PLAIN_WITHIN**2 * cells
            if (likely or plain) and not singular(fitted):
                current = fitted
                break
    return current


def _shorter(value: float, guard: bool) -> list[float]:
    """The number with 1, 2, ... digits; 1e-8 first of all where it keeps a denominator above 0."""
    rounded = [float(f"{value:.{digits}g}") for digits in range(1, _DIGITS + 1)]
    inside = [v for v in rounded if not 0.0 < value < 1.0 or 0.0 < v < 1.0]
    return [EPS] * guard + list(dict.fromkeys(inside))


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


def settled(rules: Sequence[Rule], trajectories: Trajectories, data: dict[str, Sequences]) -> list[Rule]:
    """The front up to its smallest rule that leaves only rounding, if it has one; as it is otherwise.

    That rule gets constants as they were written, and ``provenance["exact"]``: its residual on the runs for
    validation, in units of their rounding.
    """
    exact = smallest_exact(rules, trajectories, data)
    if exact is None:
        return list(rules)
    written = as_written(exact, data["train"], rounding(trajectories, "train"))
    if smallest_exact([written], trajectories, data) is None:
        written = exact
    found = excess(written, data["valid"], rounding(trajectories, "valid"))
    written = scored(written, data) or exact
    record = written.provenance | {"exact": found}
    shorter = [rule for rule in rules if rule.complexity < exact.complexity]
    return [*shorter, dataclasses.replace(written, provenance=record)]
