"""The page of an analysis: one HTML file in the style of the report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.metrics import number
from interchange.analysis.figures import Drawn
from interchange.report import page as html
from interchange.report.equation import equation_block
from interchange.rule.rule import Rule

PHASES = ("early", "middle", "late")
_CAPTIONS = {
    "perception": "How much updates depend on each input of so many steps before, the largest value 1.",
    "mapping": "Updates before the learning rate against one input of the present step. Line and band: "
    "median and quartiles over recorded histories; dotted: everything else at its recorded median.",
    "family": "The squashing at which sums of squashed inputs come nearest to each optimizer; a line where "
    "nothing is squashed.",
    "complexity": "Rules of a front by their size: fit to the recorded updates, and how far back they look.",
    "courses": "The same optimizee from the same start. Coordinates are shown as what they have moved.",
}
_TITLES = {
    "perception": "Temporal perception",
    "mapping": "Mapping curves",
    "family": "The tanh family",
    "complexity": "Fit and perception against complexity",
    "courses": "Courses from the same start",
}


def analysis_page(found: Mapping[str, Any], drawn: Mapping[str, Drawn], rules: Mapping[str, Rule]) -> str:
    """The page.

    Args:
        found: what ``analyse`` gives.
        drawn: figures by name.
        rules: equations by the names of their optimizers.
    """
    rows = found["optimizers"]
    parts = [html.section("Optimizers", _about(found), _summary(rows))]
    parts += [
        html.section(_TITLES[name], html.chart(drawn[name].inline, _CAPTIONS[name], "wide"))
        for name in _TITLES
        if name in drawn
    ]
    parts.append(_searches(found["complexity"]))
    parts.append(_nearest([*found["recording"], *rows]))
    parts += [_terms(row, rules[row["name"]]) for row in rows if row["name"] in rules]
    parts.append(_fits(rows))
    names = ", ".join(row["name"] for row in rows)
    return html.page("Analysis of optimizers", names, parts)


def _about(found: Mapping[str, Any]) -> str:
    data = found["trajectories"]
    if data is None:
        text = "Measured on noise with log-normal sizes: give a recording to see what happens in training."
    else:
        text = (
            f"Measured on held-out runs of {data['source']}: {data['steps']} steps at {data['coordinates']} "
            f"coordinates of {len(data['tensors'])} tensors; recording {data['sha256'][:12]}."
        )
    return f"<p>{html.escape(text)}</p>"


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ("optimizer", "nodes", "floats/param", "R²", "R² at its best lr", "TPF", "by input", "nearest")
    cells = []
    for row in rows:
        seen, fit = row["perception"], row["r2"] or {}
        fields = ", ".join(f"{name} {number(value, '.1f')}" for name, value in seen["fields"].items())
        nearest = row["nearest"][0] if row["nearest"] else None
        near = f"{nearest['name']}, {number(100 * nearest['r2'], '.1f')} %" if nearest else "–"
        figures = (
            number(row["nodes"], "d"),
            number(row["state_floats"], "d"),
            number(fit.get("pooled"), ".4f"),
            number(fit.get("at_rate"), ".4f"),
            number(seen["total"], ".2f"),
        )
        cells.append((html.escape(row["name"]), *map(html.escape, figures), *map(html.words, (fields, near))))
    return html.table(head, cells, "optimizers")


def _searches(runs: Sequence[Mapping[str, Any]]) -> str:
    if not runs:
        return ""
    cells = [(str(run["seed"]), str(run["nodes"]), number(run["r2"], ".4f")) for run in runs]
    mean = sum(run["nodes"] for run in runs) / len(runs)
    text = (
        f"Mapping complexity {mean:.1f} nodes, the mean over {len(runs)} searches: of the smallest rule "
        "about as good as the best of its search."
    )
    table = html.table(("seed", "nodes", "R² on test runs"), cells, "searches")
    return html.section("Mapping complexity", f"<p>{text}</p>", table)


def _nearest(rows: Sequence[Mapping[str, Any]]) -> str:
    rows = [row for row in rows if row["nearest"]]
    if not rows:
        return ""
    head = ("updates of", "nearest", "R²", "second", "R²", "third", "R²")
    cells = [
        (
            html.escape(row["name"]),
            *(
                cell
                for match in row["nearest"][:3]
                for cell in (html.words(match["name"]), number(match["r2"], ".4f"))
            ),
        )
        for row in rows
    ]
    text = "Each with the learning rate and constants that bring it nearest, judged on other runs."
    sentences = "".join(f"<li>{html.escape(row['told'])}</li>" for row in rows)
    return html.section(
        "Nearest hand-made optimizers",
        f"<ul>{sentences}</ul><p>{text}</p>",
        html.table(head, cells, "nearest hand-made optimizers"),
    )


def _terms(row: Mapping[str, Any], rule: Rule) -> str:
    head = ("term", "share of power", *PHASES)
    cells = [
        (
            f"<code>{html.escape(term['term'])}</code>",
            *(
                number(value if value is None else 100.0 * value, ".1f") + " %"
                for value in (term["share"], *(term["phases"].get(name) for name in PHASES))
            ),
        )
        for term in row["terms"]
    ]
    table = html.table(head, cells, f"terms of {row['name']}")
    return html.section(
        f"What {row['name']} is made of", equation_block(rule), table if len(cells) > 1 else ""
    )


def _fits(rows: Sequence[Mapping[str, Any]]) -> str:
    rows = [row for row in rows if row["r2"]]
    if not rows:
        return ""
    tensors = list(dict.fromkeys(name for row in rows for name in row["r2"]["tensors"]))
    head = ("R² on held-out runs", *(row["name"] for row in rows))
    cells = [("all", *(number(row["r2"]["pooled"], ".4f") for row in rows))]
    cells += [
        (name, *(number(row["r2"]["phases"].get(name, math.nan), ".4f") for row in rows)) for name in PHASES
    ]
    cells += [
        (html.escape(name), *(number(row["r2"]["tensors"].get(name, math.nan), ".4f") for row in rows))
        for name in tensors
    ]
    return html.section("Fit by phase and tensor", html.table(head, cells, "fit by phase and tensor"))
