"""The page of an evaluation: optimizers over problems, where the learned ones lose, curves and profiles."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

import numpy as np

from common.metrics import loss_number, number
from common.run.storage import atomic_write
from interchange.evaluation.curve import accuracies
from interchange.evaluation.profiles import (
    TAU,
    Compared,
    Standing,
    is_baseline,
    profile,
    score,
    standing_groups,
    times_to_target,
)
from interchange.report import grid_plots
from interchange.report.equation import equation_block
from interchange.report.page import chart, escape, lean_table, page, section, table
from interchange.report.verdict import STANDINGS, comparison_verdict
from interchange.rule.rule import Rule
from interchange.rule.words import size

_UNFOLDED = 3  # equations
_COLOURED = 6  # optimizers with a colour of their own in the curves
_NOTE = (
    "Every optimizer tried the same number of learning rates, a factor 2 apart, its best not at an edge, "
    "the same schedules and, where knobs were tuned, as many values of its own; chosen on validation seeds "
    "for each problem and horizon (listed under In full); shown are test seeds. Loss: mean of the last "
    "20 mini-batch losses before the update. A ratio is to the baseline with the lowest loss on these test "
    "seeds, paired by seed: geometric mean and 95 % t-interval. Diverged runs are counted, not dropped."
)
_TARGET_NOTE = (
    "Target of a problem: the loss that the baseline chosen on validation seeds has at 80 % of the horizon. "
    f"Score: area under the profile from 1 to {TAU:g} (Dahl et al. 2023)."
)

_STANDINGS_NOTE = (
    "Baselines are the hand-made optimizers; the best is the one with the lowest loss on a problem. Columns "
    "count problems, each at each of its horizons. Beyond doubt: the whole 95 % interval is better. Loss "
    "over the best's: geometric mean over problems; 1 is equal, less is better. Speed score: 0 to 1, how "
    "soon it reaches the targets, beside the fastest (below)."
)


def write_comparison(
    path: str | os.PathLike[str],
    compared: Sequence[Compared],
    runs: Sequence[Any],
    problem: str,
    absent: Mapping[str, str] = MappingProxyType({}),
    rules: Mapping[str, Rule] = MappingProxyType({}),
) -> None:
    """Write the page to ``path``, atomically.

    Args:
        compared: as ``interchange.evaluation.profiles.compare`` makes them of ``runs``.
        runs: objects with ``optimizer, problem, horizon, seed, losses, curve``.
        problem: what was asked for, for the title.
        absent: optimizers that could not run -> why not.
        rules: SPEC -> the rule it names.
    """
    text = render_comparison(compared, runs, problem, absent, rules)
    atomic_write(path, text.encode(errors="replace"))


def render_comparison(
    compared: Sequence[Compared],
    runs: Sequence[Any],
    problem: str,
    absent: Mapping[str, str] = MappingProxyType({}),
    rules: Mapping[str, Rule] = MappingProxyType({}),
) -> str:
    """The page as HTML text; the same data gives the same text."""
    groups = standing_groups(compared)
    names = labels(list(dict.fromkeys(c.row.optimizer for c in compared)))
    learned = [name for name in names if not is_baseline(name)]
    parts = (
        _equations(rules, names),
        _standings(groups, names),
        _matrix(compared, names, learned),
        _losses(compared, names, learned),
        _curves(compared, runs, names, learned),
        _accuracies(runs, names, learned),
        _profiles(compared, names, learned),
        _ends(compared, names),
        _absent(absent),
    )
    title = f"Optimizers on {problem}"
    return page(title, comparison_verdict(groups, compared, names) or title, parts)


def labels(names: Sequence[str]) -> dict[str, str]:
    """SPEC -> a short name: a file's without folders and suffix, where that is still unlike the others."""
    short = {name: _short(name) for name in names}
    taken = list(short.values())
    return {name: text if taken.count(text) == 1 else name for name, text in short.items()}


def _short(name: str) -> str:
    kind, _, rest = name.partition(":")
    if kind not in ("rule", "teacher"):
        return name
    file, comma, options = rest.partition(",")
    return f"{kind} {PurePath(file).stem}{comma}{options}"


def _equations(rules: Mapping[str, Rule], names: Mapping[str, str]) -> str:
    """The rules that were compared; of many, as of a front, only what unfolds."""
    shown = [(f"{names.get(spec, spec)}: {size(rule)}", equation_block(rule)) for spec, rule in rules.items()]
    if len(shown) > _UNFOLDED:
        parts = [f"<details><summary>{escape(head)}</summary>{block}</details>" for head, block in shown]
    else:
        parts = [f"<h3>{escape(head)}</h3>{block}" for head, block in shown]
    return section("The equations", *parts) if parts else ""


def _standings(groups: Mapping[str, Sequence[Standing]], names: Mapping[str, str]) -> str:
    if not groups:
        return ""
    against = list(dict.fromkeys(name for rows in groups.values() for s in rows for name in s.against))
    head = ("optimizer", "problems", *STANDINGS)
    cells = []
    for group, rows in groups.items():
        for s in rows:
            counts = (f"{s.problems} {group}".replace(" all", "", 1), s.ahead, s.close, s.surely)
            rest = (number(s.mean, ".3f"), number(s.score, ".2f"), *(s.against.get(n, "") for n in against))
            cells.append([escape(names[s.optimizer]), *(escape(cell) for cell in (*counts, *rest))])
    return section(
        "How the learned ones stand",
        table((*head, *(f"as good as {names[name]}" for name in against)), cells, "Standings"),
        f'<p class="soft">{escape(_STANDINGS_NOTE)}</p>',
    )


def _places(compared: Sequence[Compared]) -> dict[tuple[str, int], dict[str, Compared]]:
    places: dict[tuple[str, int], dict[str, Compared]] = {}
    for c in compared:
        places.setdefault((c.row.problem, c.row.horizon), {})[c.row.optimizer] = c
    return places


def _matrix(compared: Sequence[Compared], names: Mapping[str, str], learned: Sequence[str]) -> str:
    order = [*learned, *(name for name in names if name not in learned)]
    cells = []
    for (problem, horizon), found in _places(compared).items():
        seen = any(c.row.trained_on for c in found.values())
        mark = ' <span class="tag">trained on</span>' if seen else ""
        cells.append(
            [
                f"{escape(problem)}, {horizon}{mark}",
                *(_cell(found[name]) if name in found else "" for name in order),
            ]
        )
    text = table(("problem, steps", *(names[name] for name in order)), cells, "Losses and ratios")
    return section("Problem by problem", text, f'<p class="soft">{escape(_NOTE)}</p>')


def _cell(c: Compared) -> str:
    value, row = c.ratio.value, c.row
    spread = f"{number(row.low, '.3g')} to {number(row.high, '.3g')}" if math.isfinite(row.low) else ""
    lost = f" {row.diverged} of {row.seeds} diverged" if row.diverged else ""
    own = "best" if row.optimizer == c.best else f"× {number(value, '.3f')}" if not math.isnan(value) else ""
    return (
        f'<span class="{_class(value)}">{loss_number(row.mean, "#.4g")}</span> <small>{own}</small><br>'
        f"<small>{spread}{escape(lost)}</small>"
    )


def _class(value: float) -> str:
    if math.isnan(value):
        return "none"
    limits = ((1.0 - 1e-12, "ahead"), (1.05, "near"), (1.25, "behind"))
    return next((name for limit, name in limits if value <= limit), "far")


def _losses(compared: Sequence[Compared], names: Mapping[str, str], learned: Sequence[str]) -> str:
    lost = [c for c in compared if c.row.optimizer in learned and c.best and not c.ratio.value <= 1.0]
    if not lost:
        return ""
    cells = []
    for c in sorted(lost, key=lambda c: (learned.index(c.row.optimizer), -_or_inf(c.ratio.value))):
        spread = f"{number(c.ratio.low, '.3f')} to {number(c.ratio.high, '.3f')}"
        where = f"{escape(c.row.problem)}, {c.row.horizon}"
        cells.append(
            [
                escape(names[c.row.optimizer]),
                where,
                number(c.ratio.value, ".3f"),
                spread,
                escape(names[c.best]),
            ]
        )
    head = ("optimizer", "problem, steps", "loss ratio", "95 % interval", "best baseline there")
    return section("Where they lose", table(head, cells, "Where the learned optimizers lose"))


def _or_inf(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _curves(
    compared: Sequence[Compared], runs: Sequence[Any], names: Mapping[str, str], learned: Sequence[str]
) -> str:
    curves: dict[str, dict[str, np.ndarray]] = {}
    for (problem, horizon), found in _places(compared).items():
        panel = curves.setdefault(f"{problem}, {horizon} steps", {})
        for name in found:
            own = [
                r for r in runs if (r.problem, r.optimizer) == (problem, name) and r.horizon in (0, horizon)
            ]
            stack = np.full((len(own), horizon), np.nan)
            for line, run in zip(stack, own, strict=True):
                line[: len(run.losses)] = run.losses[:horizon]
            panel[name] = stack
    best = [c.best for c in compared if c.best]
    rivals = sorted(set(best), key=lambda name: (-best.count(name), name))
    shown = [*learned[:3], *rivals][:_COLOURED]
    svg = grid_plots.panels(curves, shown, learned[:3], names=names)
    note = (
        "Geometric means over seeds, smoothed over 20 steps, with 95 % intervals; × where a run ended early."
    )
    return section("Loss curves", chart(svg, note, "wide"))


def _accuracies(runs: Sequence[Any], names: Mapping[str, str], learned: Sequence[str]) -> str:
    if not (found := accuracies(runs, names)):
        return ""
    svg = grid_plots.accuracies(found, learned, names=names)
    return section(
        "Test accuracy along the way", chart(svg, "Means over seeds; of runs that had ended no more.", "wide")
    )


def _profiles(compared: Sequence[Compared], names: Mapping[str, str], learned: Sequence[str]) -> str:
    if not any(c.best for c in compared):
        return ""
    times = times_to_target(compared)
    taus = np.linspace(1.0, TAU, 301)
    svg = grid_plots.profiles(profile(times, taus), taus, learned, names=names)
    scores = {unit: score(times_to_target(compared, unit)) for unit in ("steps", "seconds")}
    cells = []
    for name in sorted(names, key=lambda name: -scores["steps"][name]):
        reached = sum(math.isfinite(value) for value in times[name].values())
        shown = (number(scores[unit][name], ".3f") for unit in scores)
        cells.append([escape(names[name]), f"{reached} of {len(times[name])}", *shown])
    head = ("optimizer", "targets reached", "score in steps", "score in optimizer seconds")
    return section(
        "Time to target", chart(svg, _TARGET_NOTE, "wide"), table(head, cells, "Scores of time to target")
    )


def _ends(compared: Sequence[Compared], names: Mapping[str, str]) -> str:
    cells = [
        [
            f"{escape(c.row.problem)}, {c.row.horizon}",
            escape(names[c.row.optimizer]),
            number(c.row.test_loss),
            number(c.row.accuracy, ".4f"),
            number(c.row.lr, ".3g"),
            escape(c.row.schedule or "–"),
            escape(c.row.knob or "–"),
            str(c.row.trials),
            number(c.steps, "g") if math.isfinite(c.steps) else "–",
            number(c.row.ms_per_step, ".3g"),
            number(c.row.floats_per_parameter, ".3g"),
        ]
        for c in compared
    ]
    head = (
        "problem, steps", "optimizer", "test loss", "test accuracy", "lr", "schedule", "knob", "trials",
        "steps to target", "ms/step", "floats/parameter",
    )  # fmt: skip
    text = lean_table(head, cells, "What was chosen, and the end of every run")
    return section("In full", f"<details><summary>{len(cells)} rows</summary>{text}</details>")


def _absent(absent: Mapping[str, str]) -> str:
    cells = [(escape(name), escape(reason)) for name, reason in absent.items()]
    return section("Not compared", table(("optimizer", "why"), cells, "Optimizers not here")) if cells else ""
