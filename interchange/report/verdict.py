"""What a comparison says in a sentence or two, and what it leaves open."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.metrics import SummaryRow, loss_number, number
from interchange.evaluation.profiles import Compared, Ratio, Standing, ratio
from interchange.rule.words import counted

# What a standing says, but for the number of problems and against whom.
STANDINGS = (
    "at least as good as the best baseline", "within 5 % of it", "better beyond doubt",
    "loss over the best's", "speed score",
)  # fmt: skip


def verdict(summary: Sequence[SummaryRow], roles: Mapping[str, str], complexity: int) -> str:
    """``headline``, what tuning did to the rule, and whether seeds tell it from the best baseline.

    Args:
        roles: ``teacher``, ``rule``, ``tuned`` -> name in ``summary``; every other name is a baseline.
        complexity: nodes of the rule.
    """
    sentences = [headline(summary, roles, complexity)]
    horizon = max((row.horizon for row in summary), default=0)
    rows = {row.optimizer: row for row in summary if row.horizon == horizon}
    tuned, rule = (rows.get(roles.get(role, "")) for role in ("tuned", "rule"))
    if tuned and rule:
        sentences.append(_tuning(ratio(tuned.figures, rule.figures)))
    ours = tuned or rule
    others = [row for name, row in rows.items() if name not in roles.values()]
    if ours and others:
        best = min(others, key=lambda row: row.mean)
        own = ratio(ours.figures, best.figures)
        if undecided(own):
            sentences.append(
                f"{ours.seeds} seeds do not tell it from {best.optimizer}: {times(own)} its loss."
            )
    return " ".join(filter(None, sentences))


def headline(summary: Sequence[SummaryRow], roles: Mapping[str, str], complexity: int) -> str:
    """The result at the longest horizon in one sentence, empty where the rule was not evaluated.

    Args:
        roles: ``teacher``, ``rule``, ``tuned`` -> name in ``summary``; every other name is a baseline.
        complexity: nodes of the rule.
    """
    horizon = max((row.horizon for row in summary), default=0)
    rows = {row.optimizer: row for row in summary if row.horizon == horizon}
    rule = rows.get(roles.get("tuned", "")) or rows.get(roles.get("rule", ""))
    if rule is None:
        return ""
    teacher = rows.get(roles.get("teacher", ""))
    baselines = [row for name, row in rows.items() if name not in roles.values()]
    others = [("its teacher", teacher)] if teacher else []
    others += [(f"tuned {best.optimizer}", best) for best in sorted(baselines, key=lambda row: row.mean)[:1]]
    words = [
        f"{who} " + (f"reaches {loss_number(row.mean, '#.3g')}" if math.isfinite(row.mean) else "diverges")
        for who, row in others
    ]
    reached = "diverges before"
    if math.isfinite(rule.mean):
        reached = f"reaches loss {loss_number(rule.mean, '#.3g')} at"
    where = " where " + " and ".join(words) if words else ""
    tuned = ", meta-tuned," if roles.get("tuned") == rule.optimizer else ""
    return f"The {complexity}-node rule{tuned} {reached} step {horizon}{where}."


def _tuning(found: Ratio) -> str:
    """What tuning did on the test seeds, where it did no good."""
    if math.isnan(found.value) or found.value < 1.0:
        return ""
    if found.value == 1.0:
        return "Tuning changed nothing."
    sure = "" if undecided(found) or math.isnan(found.low) else ", beyond doubt"
    return f"Tuning made it worse here{sure}: {times(found)} the loss before."


def undecided(found: Ratio) -> bool:
    """Whether the interval of a ratio spans 1, so that other seeds might say the opposite."""
    return found.low <= 1.0 <= found.high


def times(found: Ratio) -> str:
    """A ratio with its interval, for people."""
    spread = (
        "" if math.isnan(found.low) else f" ({number(found.low, '#.3g')} to {number(found.high, '#.3g')})"
    )
    return f"{number(found.value, '#.3g')}{spread} times"


def comparison_verdict(
    groups: Mapping[str, Sequence[Standing]], compared: Sequence[Compared], names: Mapping[str, str]
) -> str:
    """How the best learned optimizer stands, and on how many problems the seeds leave it open."""
    rows = groups.get("unseen") or groups.get("all")
    if not rows:
        return ""
    best, unseen = rows[0], "unseen" in groups
    own = [c for c in compared if c.row.optimizer == best.optimizer]
    own = [c for c in own if not (c.row.trained_on and unseen)]
    if not own:
        return ""
    problem, *others = dict.fromkeys(c.row.problem for c in own)
    alone = problem + ", the only problem here that it never saw" * unseen
    where = ("problems" + " it never saw" * unseen) if others else f"horizons of {alone}"
    name, open_ones = names[best.optimizer], [c for c in own if undecided(c.ratio)]
    if len(own) == 1:
        (one,) = own
        start = (
            f"{name} reaches {times(one.ratio)} the loss of {names[one.best]}, the best baseline, on {alone}"
        )
        return start + (f": {one.row.seeds} seeds do not tell which is better" if open_ones else "")
    start = (
        f"{name} is at least as good as the best baseline on {best.ahead} of {best.problems} {where}, and "
        f"within 5 % on {best.close}"
    )
    return start + (f"; on {len(open_ones)} the seeds do not tell which is better" if open_ones else "")


def standings_text(groups: Mapping[str, Sequence[Standing]]) -> str:
    """The standings in sentences, a line for each group and optimizer, in the words of the page."""
    good, close, surely, mean, score = STANDINGS
    lines = []
    for group, standings in groups.items():
        part, _, kind = group.partition(", ")
        which = ("" if part == "all" else f", {part}") + (f", {kind} only" if kind else "")
        for s in standings:
            against = ", ".join(f"{name} on {count}" for name, count in s.against.items())
            lines.append(
                f"{s.optimizer}: of {counted(s.problems, 'problem')}{which}, {good} on {s.ahead}, {close} on "
                f"{s.close}, {surely} on {s.surely}; {mean} {number(s.mean, '.3f')}, {score} "
                f"{number(s.score, '.2f')}; as good as {against}"
            )
    return "\n".join(lines)


def trials_note(rows: Sequence[Any], asked: int) -> str:
    """Why there were more trials than were asked for; "" where there were not, or ``asked`` is 0."""
    most = max((row.trials for row in rows), default=0)
    if not asked or most <= asked:
        return ""
    return (
        f"up to {most} trials instead of {asked}: where a best learning rate was at an edge of its grid, all "
        "optimizers' grids grew alike"
    )
