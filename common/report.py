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
from collections.abc import Iterable, Mapping, Sequence
from html.entities import html5
from typing import Any

import numpy as np

from common import plots
from common.metrics import SummaryRow, headline, number
from common.storage import atomic_write

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
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{_e(data.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<header><p class="eyebrow">{_e(data.title)}</p><h1>{_e(sentence or data.title)}</h1></header>
{chr(10).join(filter(None, parts))}
</main>
</body>
</html>
"""


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
        return f'<code class="formula">{_e(text)}</code>'


def _equation(data: ReportData) -> str:
    if not data.rules:
        return ""
    rule = data.rules[-1]
    facts = {"R² on held-out runs": number(rule.r2, ".4f"), "nodes": rule.complexity}
    facts["floats of state per parameter"] = number(rule.state_floats)
    shown = "".join(f"<div><dt>{_e(term)}</dt><dd>{value}</dd></div>" for term, value in facts.items())
    parts = [f'<div class="equation scroll" tabindex="0">{safe_mathml(rule.mathml, rule.text)}</div>']
    parts.append(f'<dl class="facts">{shown}</dl>')
    if data.features:
        where = "".join(f"<li>{safe_mathml(m, f'{n}: {m}')}</li>" for n, m in data.features.items())
        parts.append(f'<h3>Where</h3><ul class="where scroll" tabindex="0">{where}</ul>')
    if rule.constants:
        head = ("constant", "distilled", "meta-tuned")[: 1 + len(data.rules)]
        rows = [[_e(n), *(number(v, ".6g") for v in pair)] for n, pair in rule.constants.items()]
        table = _table(head, [row[: len(head)] for row in rows], "Constants")
        parts.append(f"<h3>Constants</h3>{table}")
    parts += [_details(f"{card.name} as text and LaTeX", card.text, card.latex) for card in data.rules]
    return _section("The rule", *parts)


def _results(data: ReportData) -> str:
    if not data.summary:
        return ""
    strong = [data.roles[role] for role in ("tuned", "rule", "teacher") if role in data.roles]
    parts = []
    if data.curves:
        parts.append(
            _chart(plots.loss_curves(data.curves, strong), "Smoothed means over seeds, 95 % intervals.")
        )
    head = ("optimizer", "loss", "95 % interval", "diverged", "learning rate", "trials", "ms/step")
    for horizon in sorted({row.horizon for row in data.summary}, reverse=True):
        rows = sorted((r for r in data.summary if r.horizon == horizon), key=lambda r: (r.mean, r.optimizer))
        title = f"Loss at step {horizon} on {data.problem}, {max(r.seeds for r in rows)} seeds"
        cells = [_result_cells(row, rows, strong) for row in rows]
        chart = _chart(plots.final_losses(rows, strong), "Dots are means over seeds, bars 95 % intervals.")
        parts += [f"<h3>{_e(title)}</h3>", _table((*head, "floats/parameter"), cells, title), chart]
    return _section("How well it optimizes", *parts)


def _result_cells(row: SummaryRow, rows: Sequence[SummaryRow], strong: Sequence[str]) -> list[str]:
    def marked(field: str, spec: str) -> str:
        value = getattr(row, field)
        finite = [getattr(r, field) for r in rows if math.isfinite(r.mean)]
        if not math.isfinite(row.mean) or not value <= min(finite):
            return number(value, spec)
        return (
            f'<strong class="best">{number(value, spec)} <abbr title="best of its column">★</abbr></strong>'
        )

    name = f"<strong>{_e(row.optimizer)}</strong>" if row.optimizer in strong else _e(row.optimizer)
    spread = f"{number(row.low, '#.4g')} to {number(row.high, '#.4g')}" if math.isfinite(row.low) else "–"
    diverged = f"{row.diverged} of {row.seeds}" if row.diverged else "none"
    settings = [number(row.lr, ".3g"), str(row.trials), marked("ms_per_step", "#.3g")]
    return [name, marked("mean", "#.4g"), spread, diverged, *settings, marked("floats_per_parameter", "g")]


def _front(data: ReportData) -> str:
    if not data.front:
        return ""
    chosen = next((place for place, row in enumerate(data.front) if row.chosen), None)
    chart = plots.pareto_front([(row.complexity, row.r2_test) for row in data.front], chosen)
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
    return _section("Simpler against closer", _chart(chart, note), _table(head, cells, "Pareto front"))


def _making(data: ReportData) -> str:
    teacher = {
        k: ", ".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in data.teacher.items()
    }
    teacher["meta-training"] = f"{data.training_seconds:.1f} s"
    parts = ["<h3>Problem</h3>", _terms({"name": data.problem, **data.problem_lines})]
    parts += ["<h3>Teacher</h3>", _terms(teacher)]
    if data.metrics:
        columns = [[row.get(key) for row in data.metrics] for key in ("epoch", "loss", "validation")]
        parts.append(_chart(plots.training_curve(*columns), "Loss of the teacher's own training."))
    if data.protocol:
        lines = "".join(f"<li>{_e(line)}</li>" for line in data.protocol)
        parts.append(f"<h3>Protocol</h3><ul>{lines}</ul>")
    return _section("How it was made", *parts)


def _use(data: ReportData) -> str:
    exports = [_details(f"As {target}", source) for target, source in data.exports.items()]
    return _section("Use it", f'<pre tabindex="0"><code>{_e(data.usage)}</code></pre>', *exports)


def _record(data: ReportData) -> str:
    # A flag must not be broken after its dashes where a line wraps.
    lines = [" ".join(f"<span>{_e(word)}</span>" for word in line.split(" ")) for line in data.commands]
    commands = "".join(f'<pre class="command"><code>{line}</code></pre>\n' for line in lines)
    times = _terms({stage: f"{seconds:.1f} s" for stage, seconds in data.timings.items()})
    parts = [
        "<h3>Commands</h3>",
        commands,
        "<h3>Time</h3>",
        times,
        "<h3>Versions</h3>",
        _terms(data.versions),
    ]
    return _section("Do it again", *parts)


def _e(text: object) -> str:
    return html.escape(str(text))


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{_e(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def _details(title: str, *sources: str) -> str:
    shown = "".join(f'<pre tabindex="0"><code>{_e(source)}</code></pre>' for source in sources)
    return f"<details><summary>{_e(title)}</summary>{shown}</details>"


def _chart(svg: str, note: str) -> str:
    return f'<figure><div class="scroll" tabindex="0">{svg}</div><figcaption>{_e(note)}</figcaption></figure>'


def _terms(terms: Mapping[str, object]) -> str:
    return (
        '<dl class="terms">'
        + "".join(f"<dt>{_e(k)}</dt><dd>{_e(v)}</dd>" for k, v in terms.items())
        + "</dl>"
    )


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], label: str) -> str:
    """A table that scrolls by itself; cells are HTML, the first of a row is its heading."""
    lines = ["<tr>" + "".join(f'<th scope="col">{_e(cell)}</th>' for cell in head) + "</tr></thead>\n<tbody>"]
    for first, *cells in rows:
        lines.append(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    opening = f'<div class="scroll" role="region" aria-label="{_e(label)}" tabindex="0"><table><thead>'
    return opening + "\n".join(lines) + "</tbody></table></div>"


_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1e25; --soft: #5a6170; --line: #d9dde4;
  --panel: #f4f6f9; --accent: #a84300; --shade: rgb(20 30 50 / .2); }
@media (prefers-color-scheme: dark) { :root { --page: #16181d; --text: #e8eaee; --soft: #a3abb9;
  --line: #343944; --panel: #1f232b; --accent: #ff9a52; --shade: rgb(170 190 225 / .28); } }
* { box-sizing: border-box; } .eyebrow { margin: 0 0 .75rem; font-weight: 600; }
body { margin: 0; background: var(--page); color: var(--text); overflow-wrap: anywhere;
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2.5rem); }
h1 { font-size: clamp(1.4rem, 1rem + 2vw, 2.3rem); line-height: 1.2; margin: 0; text-wrap: balance; }
h2 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 1.25rem; } li, dd, figcaption { max-width: 70ch; }
h3 { font-size: 1rem; margin: 2rem 0 .6rem; } dt { color: var(--soft); } dd { margin: 0; }
section { margin-top: 3.25rem; padding-top: 2rem; border-top: 1px solid var(--line); }
.scroll { --under: var(--page); overflow-x: auto; background:
  linear-gradient(to right, var(--under) 40%, transparent) 0 / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--under) 40%, transparent) 100% / 2.5rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) 0 / .9rem 100% no-repeat,
  linear-gradient(to left, var(--shade), transparent) 100% / .9rem 100% no-repeat, var(--under); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
math { font-family: "STIX Two Math", "Cambria Math", "Latin Modern Math", "STIX Math", STIX, math; }
.equation { --under: var(--panel); border-radius: .6rem; padding: 1.75rem 1.25rem; }
.equation math { display: block math; width: max-content; margin: 0 auto; math-style: normal;
  font-size: clamp(1.2rem, .9rem + 1vw, 1.6rem); }
.where { list-style: none; padding: 0; margin: 0; } .where math { math-style: normal; font-size: 1.15rem; }
.where li { width: max-content; max-width: none; padding: .4rem 0; }
.facts { display: flex; flex-wrap: wrap; gap: 1rem 3rem; margin: 1.5rem 0 0; }
.facts div { display: flex; flex-direction: column-reverse; } .facts dd { font-size: 1.5rem; }
table { border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem 1.5rem .5rem 0; text-align: left; white-space: nowrap; font-weight: 400;
  border-bottom: 1px solid var(--line); } thead th, figcaption { color: var(--soft); font-size: .875rem; }
.best, .tag, .eyebrow { color: var(--accent); }
.tag { font-size: .75rem; border: 1px solid currentColor; border-radius: 1rem; padding: .05rem .5rem; }
figure { margin: 1.75rem 0; } figcaption { margin-top: .5rem; } abbr { text-decoration: none; }
figure svg { display: block; min-width: 20rem; max-width: 38rem; height: auto; }
.terms { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .3rem 1.5rem; margin: 0; }
pre { background: var(--panel); border-radius: .5rem; padding: .85rem 1rem; margin: .6rem 0; overflow: auto; }
pre, code { font: .875rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
pre { overflow-wrap: normal; } .command { white-space: pre-wrap; overflow-wrap: anywhere; }
.command span { display: inline-block; max-width: 100%; } summary { cursor: pointer; padding: .35rem 0; }
@media print { :root { color-scheme: light; --page: #fff; --text: #000; --soft: #444; --line: #bbb;
  --panel: #f4f4f4; --accent: #8a3700; --shade: transparent; } main { max-width: none; padding: 0; }
  figure, tr, .equation { break-inside: avoid; } h2, h3 { break-after: avoid; } pre { white-space: pre-wrap; }
  table { font-size: .75rem; } details::details-content { content-visibility: visible; } }
"""
