"""Which rule of a front is the best one, by R2 and size alone."""

from collections.abc import Sequence

from interchange.rule import Rule

WITHIN = 0.01  # a shorter rule is preferred if its R2 is no further below the best (MATH.md section 5)


def shortest_within(front: Sequence[Rule]) -> Rule:
    """The shortest rule whose R2 on the validation runs is within 0.01 of the best; shortest first in."""
    limit = max(map(valid_r2, front)) - WITHIN
    return next(rule for rule in front if valid_r2(rule) >= limit)


def knee(front: Sequence[Rule]) -> Rule:
    """The rule farthest above the straight line between the front's ends, R2 on validation runs over nodes.

    Both axes run from 0 to 1 over the front (Satopaa et al. 2011, "Finding a 'kneedle' in a haystack"); a
    front of two rules or fewer has no knee and gives its last.
    """
    low, high = front[0], front[-1]
    if len(front) < 3:
        return high
    width, height = high.complexity - low.complexity, valid_r2(high) - valid_r2(low)

    def above(rule: Rule) -> float:
        return (valid_r2(rule) - valid_r2(low)) / height - (rule.complexity - low.complexity) / width

    return max(front, key=above)


def valid_r2(rule: Rule) -> float:
    """R2 on the validation runs, as distillation has stored it."""
    return rule.provenance["r2"]["valid"]
