"""The report: one HTML file that needs no network and no script, for a newcomer from the top down.

All text is escaped. MathML comes from our own emitter and is passed through after a check: what is not
well-formed or holds anything but presentation MathML is shown as text.
"""

import dataclasses
import html
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from html.entities import html5
from typing import Any

import numpy as np

from common.metrics import SummaryRow, headline, number
from common.run.storage import atomic_write
from interchange.report import plots
from interchange.report.page import chart, details, escape, page, section, table, terms

_ELEMENTS = re.compile(
    "math|semantics|annotation|none|mprescripts|m(row|i|n|o|text|s|space|frac|sqrt|root|style|padded|phantom|error|"
    "fenced|enclose|sub|sup|subsup|under|over|underover|multiscripts|table|tr|td)"
)
_ATTRIBUTES = re.compile(
    "display(style)?|scriptlevel|math(variant|size)|stretchy|fence|separators?|form|symmetric|[lr]space|"
    "(min|max)size|largeop|movablelimits|accent(under)?|linethickness|open|close|notation|width|height|depth|"
    "voffset|(column|row)(align|spacing)|encoding|alttext|dir"
)
_ROLES = {"teacher": "teacher", "rule": "rule", "tuned": "tuned rule"}
_MATHML = "{http://www.w3.org/1998/Math/MathML}"
_ENTITY = re.compile(r"&(?!amp;|lt;|gt;)([A-Za-z]\w*;)")  # HTML's names, which XML does not know


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontRow:
    """One rule of the Pareto front.

    Attributes:
        complexity: nodes; r2_train, r2_valid, r2_test: pooled R2 of the three splits (by run).
        chosen: the rule the search settled on.
        rollout_loss: loss when run as an optimizer on validation problems; None where it was not.
    """

    complexity: int
    r2_train: float
    r2_valid: float
    r2_test: float
    mathml: str
    text: str
    chosen: bool = False
    rollout_loss: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleCard:
    """One rule in full.

    Attributes:
        constants: name -> (value before tuning, value after); equal where nothing was tuned.
        r2: on held-out runs; state_floats: floats of state per optimized parameter.
    """

    name: str
    mathml: str
    latex: str
    text: str
    constants: Mapping[str, tuple[float, float]]
    r2: float
    complexity: int
    state_floats: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the report shows.

    Attributes:
        problem, problem_lines: its name; what it is, term -> text.
        teacher: the row of the teacher table; training_seconds: of its meta-training.
        metrics: per meta-epoch a mapping with ``epoch``, ``loss`` and ``validation`` (may be None).
        front: rules in order of complexity; rules: the chosen rule, then its tuned form if there is one.
        features: name -> MathML of its definition.
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
    features: Mapping[str, str]
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
    sentence = headline(data.summary, data.roles, data.rules[-1].complexity if data.rules else 0)
    return page(data.title, sentence or data.title, parts)


def safe_mathml(source: str, text: str) -> str:
    """``source`` if it is one well-formed element of presentation MathML, else ``text`` as escaped code."""
    try:
        if "<!" in source or "<?" in source:
            raise ValueError("declarations are not MathML")
        root = ElementTree.fromstring(_ENTITY.sub(lambda m: html.escape(html5[m[1]]), source))
        for element in root.iter():
            element.tag = element.tag.removeprefix(_MATHML)
            if not _ELEMENTS.fullmatch(element.tag) or not all(map(_ATTRIBUTES.fullmatch, element.attrib)):
                raise ValueError(f"{element.tag} is not presentation MathML")
        if root.tag != "math":
            raise ValueError("expected one math element")
        return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)
    except (ElementTree.ParseError, KeyError, ValueError, RecursionError):
        return f'<code class="formula">{escape(text)}</code>'


def _equation(data: ReportData) -> str:
    if not data.rules:
        return ""
    rule = data.rules[-1]
    facts = {"R² on held-out runs": number(rule.r2, ".4f"), "nodes": rule.complexity}
    facts["floats of state per parameter"] = number(rule.state_floats)
    shown = "".join(f"<div><dt>{escape(term)}</dt><dd>{value}</dd></div>" for term, value in facts.items())
    parts = [f'<div class="equation scroll" tabindex="0">{safe_mathml(rule.mathml, rule.text)}</div>']
    parts.append(f'<dl class="facts">{shown}</dl>')
    if data.features:
        where = "".join(f"<li>{safe_mathml(m, f'{n}: {m}')}</li>" for n, m in data.features.items())
        parts.append(f'<h3>Where</h3><ul class="where scroll" tabindex="0">{where}</ul>')
    if rule.constants:
        head = ("constant", "distilled", "meta-tuned")[: 1 + len(data.rules)]
        rows = [[escape(n), *(number(v, ".6g") for v in pair)] for n, pair in rule.constants.items()]
        values = table(head, [row[: len(head)] for row in rows], "Constants")
        parts.append(f"<h3>Constants</h3>{values}")
    parts += [details(f"{card.name} as text and LaTeX", card.text, card.latex) for card in data.rules]
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
    for horizon in sorted({row.horizon for row in data.summary}, reverse=True):
        rows = sorted((r for r in data.summary if r.horizon == horizon), key=lambda r: (r.mean, r.optimizer))
        title = f"Loss at step {horizon} on {data.problem}, {max(r.seeds for r in rows)} seeds"
        cells = [_result_cells(row, rows, strong) for row in rows]
        dots = chart(
            plots.final_losses(rows, strong), "Dots are geometric means over seeds, bars 95 % intervals."
        )
        parts += [
            f"<h3>{escape(title)}</h3>",
            table((*head, "ms/step", "floats/parameter"), cells, title),
            dots,
        ]
    return section("How well it optimizes", *parts)


def _result_cells(row: SummaryRow, rows: Sequence[SummaryRow], strong: Sequence[str]) -> list[str]:
    def marked(field: str, spec: str) -> str:
        value = getattr(row, field)
        finite = [getattr(r, field) for r in rows if math.isfinite(r.mean)]
        if not math.isfinite(row.mean) or not value <= min(finite):
            return number(value, spec)
        return (
            f'<strong class="best">{number(value, spec)} <abbr title="best of its column">★</abbr></strong>'
        )

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
    front = plots.pareto_front([(row.complexity, row.r2_test) for row in data.front], chosen)
    cells = []
    for row in data.front:
        tags = ' <span class="tag">chosen</span>' if row.chosen else ""
        r2s = [number(value, ".4f") for value in (row.r2_train, row.r2_valid, row.r2_test)]
        rollout = number(row.rollout_loss, "#.4g")
        cells.append([f"{row.complexity}{tags}", *r2s, rollout, safe_mathml(row.mathml, row.text)])
    head = ["nodes", "R² train", "R² valid", "R² test", "rollout loss", "rule"]
    note = (
        "Every rule the search kept; labels are node counts. R² says how closely a rule follows the teacher."
    )
    return section("Simpler against closer", chart(front, note), table(head, cells, "Pareto front"))


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
