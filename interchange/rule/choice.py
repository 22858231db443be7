"""What is on a front, and which rule of it is the best one, by R2 and size alone."""

from collections.abc import Iterable, Sequence

from interchange.rule.rule import Rule
from interchange.rule.words import update_r2

BETTER, LEAST_BETTER = 1e-6, 1e-15  # R2 that a longer rule must add: usually, and at least: rounding
WITHIN = 0.01  # a shorter rule is preferred if its R2 is no further below the best (MATH.md section 5)
TIMES = 3.0  # and it leaves no more than so many times what the best leaves, where that is hardly anything


def pareto_front(rules: Iterable[Rule], split: str = "valid") -> list[Rule]:
    """The Pareto front by R2 on ``split``, shortest first; what is worse than the mean is left out.

    Of a structure's bodies it is that of the update where it is known, as in ``valid_r2``.

    Of targets with a few huge values a wrong rule has an R2 near 1: there a longer rule counts if it leaves a
    tenth of the error, so that the exact rule is never left out.
    """
    front: list[Rule] = []
    best = 0.0
    for rule in sorted(rules, key=lambda r: (r.complexity, -_r2(r, split), str(r.expression))):
        more = min(BETTER, max(LEAST_BETTER, 0.9 * (1.0 - best)))
        if _r2(rule, split) > best + more:
            best = _r2(rule, split)
            front.append(rule)
    return front


def shortest_within(front: Sequence[Rule]) -> Rule:
    """The shortest rule about as good as the best: R2 on the validation runs within 0.01, and 1 - R2 at most
    three times the best's. Shortest first in.
    """
    best = max(map(valid_r2, front))
    limit = best - min(WITHIN, max(BETTER, (TIMES - 1.0) * (1.0 - best)))
    return next(rule for rule in front if valid_r2(rule) >= limit)


def exact(front: Sequence[Rule]) -> Rule | None:
    """The smallest rule that leaves only the recording's rounding (``distill.exact``); None without one."""
    found = [rule for rule in front if "exact" in rule.provenance]
    return min(found, key=lambda rule: rule.complexity, default=None)


def knee(front: Sequence[Rule]) -> Rule:
    """The rule farthest above the straight line between the front's ends, R2 on validation runs over nodes.

    Both axes run from 0 to 1 over the front (Satopaa et al. 2011, "Finding a 'kneedle' in a haystack"); a
    front of two rules or fewer has no knee and gives its last. Longer rules that are no better do not count.
    """
    front = pareto_front(front) or front
    low, high = front[0], front[-1]
    if len(front) < 3:
        return high
    width, height = high.complexity - low.complexity, valid_r2(high) - valid_r2(low)

    def above(rule: Rule) -> float:
        return (valid_r2(rule) - valid_r2(low)) / height - (rule.complexity - low.complexity) / width

    return max(front, key=above)


def valid_r2(rule: Rule) -> float:
    """R2 that rules are chosen by: on the validation runs, or of the update where a structure is around."""
    return _r2(rule, "valid")


def _r2(rule: Rule, split: str) -> float:
    update = update_r2(rule)
    return rule.provenance["r2"][split] if update is None else update
