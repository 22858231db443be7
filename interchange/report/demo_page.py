"""The report: one HTML file that needs no network and no script, for a newcomer from the top down.

All text is escaped; equations come from our own emitter.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.metrics import SummaryRow, loss_number, number
from common.run.storage import atomic_write
from interchange.report import plots
from interchange.report.equation import equation_block, formula, where
from interchange.report.page import chart, details, escape, lean_table, page, section, table, terms
from interchange.report.verdict import verdict
from interchange.rule.rule import Rule
from interchange.rule.words import readable

_ROLES = {"teacher": "teacher", "rule": "rule", "tuned": "tuned rule"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontRow:
    """One rule of the Pareto front.

    Attributes:
        r2_train, r2_valid, r2_test: pooled R2 of the three splits (by run).
        chosen: the rule the search settled on.
        rollout_loss: loss when run as an optimizer on ``tasks`` validation problems; None where it was not.
        behind: how far its mean log loss is behind the lowest on the same problems; None where unknown.
    """

    rule: Rule
    r2_train: float
    r2_valid: float
    r2_test: float
    chosen: bool = False
    rollout_loss: float | None = None
    tasks: int = 0
    behind: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleCard:
    """One rule in full.

    Attributes:
        constants: name -> (value before tuning, value after); equal where nothing was tuned.
        r2: on held-out runs of the teacher.
    """

    name: str
    rule: Rule
    constants: Mapping[str, tuple[float, float]]
    r2: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the report shows.

    Attributes:
        problem, problem_lines: its name; what it is, term -> text.
        teacher: the row of the teacher table; training_seconds: of its meta-training.
        metrics: per meta-epoch a mapping with ``epoch``, ``loss`` and ``validation`` (may be None).
        front: rules in order of complexity; rules: the chosen rule, then its tuned form if there is one.
        summary: rows of ``common.metrics.summarise``, all horizons; curves: name -> losses [seeds, steps].
        roles: ``teacher``, ``rule``, ``tuned`` -> that one's name in ``summary`` and ``curves``.
        commands: exact equivalent command lines; protocol: sentences; timings: stage -> seconds.
        exports: target -> source text; usage: the shortest way to use the rule.
    """

    title: str
    problem: str
    problem_lines: Mapping[str, str]
    teacher: Mapping[str, Any]
    training_seconds: float
    metrics: Sequence[Mapping[str, Any]]
    front: Sequence[FrontRow]
    rules: Sequence[RuleCard]
    summary: Sequence[SummaryRow]
    curves: Mapping[str, np.ndarray]
    commands: Sequence[str]
    versions: Mapping[str, str]
    protocol: Sequence[str]
    timings: Mapping[str, float]
    exports: Mapping[str, str]
    roles: Mapping[str, str] = dataclasses.field(default_factory=_ROLES.copy)
    usage: str


def write_report(path: str | os.PathLike[str], data: ReportData) -> None:
    """Write the report to ``path``, atomically; ``StorageError`` where that fails."""
    atomic_write(path, render(data).encode(errors="replace"))


def render(data: ReportData) -> str:
    """The report as HTML text; the same data gives the same text."""
    parts = (_equation(data), _results(data), _front(data), _making(data), _use(data), _record(data))
    sentence = verdict(data.summary, data.roles, data.rules[-1].rule.complexity if data.rules else 0)
    return page(data.title, sentence or data.title, parts)


def _equation(data: ReportData) -> str:
    if not data.rules:
        return ""
    *others, last = data.rules
    head = ("rule", "R² on held-out runs of the teacher", "nodes", "floats of state per parameter")
    facts = [
        [
            escape(card.name),
            number(card.r2, ".4f"),
            str(card.rule.complexity),
            number(card.rule.state_floats),
        ]
        for card in data.rules
    ]
    parts = [f"<h3>The {escape(last.name)}</h3>", equation_block(last.rule)]
    parts += [f"<h3>The {escape(card.name)}, before tuning</h3>{formula(card.rule)}" for card in others]
    parts.append(f"<h3>How closely they follow the teacher, and their size</h3>{table(head, facts, 'Rules')}")
    if last.constants:
        head = ("constant", "distilled", "meta-tuned")[: 1 + len(data.rules)]
        rows = [[escape(n), *(number(v, ".6g") for v in pair)] for n, pair in last.constants.items()]
        values = table(head, [row[: len(head)] for row in rows], "Constants")
        parts.append(f"<h3>Constants</h3>{values}")
    parts += [
        details(f"{card.name} as text and LaTeX", readable(card.rule), card.rule.latex())
        for card in data.rules
    ]
    return section("The rule", *parts)


def _results(data: ReportData) -> str:
    if not data.summary:
        return ""
    strong = [data.roles[role] for role in ("tuned", "rule", "teacher") if role in data.roles]
    parts = []
    if data.curves:
        parts.append(
            chart(
                plots.loss_curves(data.curves, strong), "Smoothed geometric means over seeds, 95 % intervals."
            )
        )
    head = ("optimizer", "loss", "95 % interval", "diverged", "learning rate", "schedule", "knob", "trials")
    head += ("ms/step", "floats/parameter")
    for horizon in sorted({row.horizon for row in data.summary}, reverse=True):
        rows = sorted((r for r in data.summary if r.horizon == horizon), key=lambda r: (r.mean, r.optimizer))
        title = f"Loss at step {horizon} on {data.problem}, {max(r.seeds for r in rows)} seeds"
        cells = [_result_cells(row, rows, strong) for row in rows]
        dots = chart(
            plots.final_losses(rows, strong), "Dots are geometric means over seeds, bars 95 % intervals."
        )
        parts += [
            f"<h3>{escape(title)}</h3>",
            lean_table(head, cells, title),
            dots,
        ]
    return section("How well it optimizes", *parts)


def _result_cells(row: SummaryRow, rows: Sequence[SummaryRow], strong: Sequence[str]) -> list[str]:
    def marked(field: str, spec: str) -> str:
        value = getattr(row, field)
        shown = (loss_number if field == "mean" else number)(value, spec)
        finite = [getattr(r, field) for r in rows if math.isfinite(r.mean)]
        if not math.isfinite(row.mean) or not value <= min(finite):
            return shown
        return f'<strong class="best">{shown} <abbr title="best of its column">★</abbr></strong>'

    name = f"<strong>{escape(row.optimizer)}</strong>" if row.optimizer in strong else escape(row.optimizer)
    spread = f"{number(row.low, '#.4g')} to {number(row.high, '#.4g')}" if math.isfinite(row.low) else "–"
    diverged = f"{row.diverged} of {row.seeds}" if row.diverged else "none"
    chosen = [number(row.lr, ".3g"), escape(row.schedule or "–"), escape(row.knob or "–"), str(row.trials)]
    costs = [marked("ms_per_step", "#.3g"), marked("floats_per_parameter", "g")]
    return [name, marked("mean", "#.4g"), spread, diverged, *chosen, *costs]


def _front(data: ReportData) -> str:
    if not data.front:
        return ""
    chosen = next((place for place, row in enumerate(data.front) if row.chosen), None)
    front = plots.pareto_front([(row.rule.complexity, row.r2_test) for row in data.front], chosen)
    lines = []
    for row in data.front:
        tags = ' <span class="tag">chosen</span>' if row.chosen else ""
        r2s = [number(value, ".4f") for value in (row.r2_train, row.r2_valid, row.r2_test)]
        rollout = [number(row.rollout_loss, "#.4g"), str(row.tasks or "–"), number(row.behind, ".4f")]
        lines.append([f"{row.rule.complexity}{tags}", *r2s, *rollout])
    head = ["nodes", "R² train", "R² valid", "R² test", "rollout loss", "tasks", "behind"]
    note = (
        "Every rule the search kept; labels are node counts. R² says how closely a rule follows the teacher."
    )
    meaning = (
        "Rollout loss: mean loss as an optimizer on so many validation tasks. Behind: how far its mean log "
        "loss is behind the lowest on the same tasks, which decides."
    )
    rules = "".join(f"<h3>{row.rule.complexity} nodes</h3>{formula(row.rule)}" for row in data.front)
    rules += where(*(row.rule for row in data.front))
    return section(
        "Simpler against closer",
        chart(front, note),
        table(head, lines, "Pareto front"),
        f'<p class="soft">{escape(meaning)}</p>',
        f"<details><summary>The {len(data.front)} equations</summary>{rules}</details>",
    )


def _making(data: ReportData) -> str:
    teacher = {
        k: ", ".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in data.teacher.items()
    }
    teacher["meta-training"] = f"{data.training_seconds:.1f} s"
    parts = ["<h3>Problem</h3>", terms({"name": data.problem, **data.problem_lines})]
    parts += ["<h3>Teacher</h3>", terms(teacher)]
    if data.metrics:
        columns = [[row.get(key) for row in data.metrics] for key in ("epoch", "loss", "validation")]
        parts.append(chart(plots.training_curve(*columns), "Loss of the teacher's own training."))
    if data.protocol:
        lines = "".join(f"<li>{escape(line)}</li>" for line in data.protocol)
        parts.append(f"<h3>Protocol</h3><ul>{lines}</ul>")
    return section("How it was made", *parts)


def _use(data: ReportData) -> str:
    exports = [details(f"As {target}", source) for target, source in data.exports.items()]
    return section("Use it", f'<pre tabindex="0"><code>{escape(data.usage)}</code></pre>', *exports)


def _record(data: ReportData) -> str:
    # A flag must not be broken after its dashes where a line wraps.
    lines = [" ".join(f"<span>{escape(word)}</span>" for word in line.split(" ")) for line in data.commands]
    commands = "".join(f'<pre class="command"><code>{line}</code></pre>\n' for line in lines)
    times = terms({stage: f"{seconds:.1f} s" for stage, seconds in data.timings.items()})
    parts = [
        "<h3>Commands</h3>",
        commands,
        "<h3>Time</h3>",
        times,
        "<h3>Versions</h3>",
        terms(data.versions),
    ]
    return section("Do it again", *parts)
