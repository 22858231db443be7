"""The page: verdicts first, then every table and figure with the published numbers beside ours."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.metrics import loss_number, number
from interchange.paper import published
from interchange.paper.config import ITEMS
from interchange.paper.verdicts import HOLDS, NOT, PART, UNKNOWN, Verdict
from interchange.report import page as html

_LOOK = {HOLDS: "ahead", PART: "near", NOT: "behind"}
_TITLES = {"sanity": "Sanity checks", "long": "Long runs"}
_TITLES |= {f"figure{k}": f"Figure {k}" for k in range(2, 7)}
_CAPTIONS = {
    "figure2": "Loss in training; published: networks and data in the verdict above.",
    "figure3": "Updates against one input; line and band: median and quartiles over recorded histories.",
    "figure4": "The same optimizee from the same start under LSTM and equation.",
    "figure5": "Fit to the LSTM's updates and temporal perception field along the front of one search.",
    "figure6": "The gamma at which sums of squashed inputs come nearest to each LSTM's updates.",
    "long": "LSTMs as they come, mean over seeds with 95 % intervals.",
}


def paper_page(
    about: Mapping[str, str],
    found: Mapping[str, Any],
    judged: Sequence[Verdict],
    drawn: Mapping[str, Sequence[tuple[str, str]]],
    records: Mapping[str, Mapping[str, Any]],
) -> str:
    """The page.

    Args:
        about: how it was made, term -> text.
        drawn: item -> captions and figures.
        records: cell -> its command and seconds.
    """
    asked = [verdict for verdict in judged if verdict.outcome != UNKNOWN]
    counts = {word: sum(verdict.outcome == word for verdict in asked) for word in (HOLDS, PART, NOT)}
    heading = f"{counts[HOLDS]} of {len(asked)} claims hold, {counts[PART]} hold in part"
    parts = [html.section("Verdicts", html.terms(about), "<h3>Claim by claim</h3>", _verdicts(asked))]
    if any(row["complexity"] for row in found["models"].values()) and "table" in drawn:
        parts.append(html.section("LSTMs and their equations", _table(found["models"]), _equations(found)))
    for item in drawn:
        if item in _TITLES:
            body = [_numbers(item, found)]
            body += [
                html.chart(
                    svg, f"{caption}. {_CAPTIONS[item]}", "" if item in ("figure2", "long") else "wide"
                )
                for caption, svg in drawn[item]
            ]
            parts.append(html.section(f"{_TITLES[item]}: {ITEMS[item]}", *filter(None, body)))
    parts.append(html.section("Every command", _commands(records)))
    return html.page("Symbolic Learning to Optimize (ICLR 2022), made anew", heading, parts)


def _verdicts(judged: Sequence[Verdict]) -> str:
    """A block for each claim: a table would have long lines in narrow columns."""
    blocks = [
        f'<div><dt>{html.escape(verdict.claim)} <span class="{_LOOK[verdict.outcome]}">'
        f"{html.escape(verdict.outcome)}</span></dt><dd>ours: {html.escape(verdict.ours)}</dd>"
        f'<dd class="soft">published: {html.escape(verdict.published)}</dd></div>'
        for verdict in judged
    ]
    return f'<dl class="verdicts">{"".join(blocks)}</dl>'


def _beside(ours: str, theirs: str) -> str:
    """Our number, and below it the published one."""
    return f"{ours}<br><small>paper {html.escape(theirs)}</small>" if theirs else ours


def _spread(values: Sequence[float] | None) -> str:
    return f"{values[0]:.2f} ± {values[1]:.2f}" if values else ""


def _ours(values: Sequence[float], told: Callable[[float, str], str] = number) -> str:
    mean, low, high = values
    spread = f"<br><small>{number(low, '.3g')} to {number(high, '.3g')}</small>" if low == low else ""
    return told(mean, ".3g") + spread


def _table(models: Mapping[str, Mapping[str, Any]]) -> str:
    head = ("model", "loss of the LSTM", "of its equation", "ratio", "TPF", "mapping complexity", "R²")
    head += ("nodes of the equation",)
    cells = []
    for row in models.values():
        if row["loss"] is None:
            continue
        theirs, loss, mine = row["published"], row["loss"], row["complexity"]
        fields = row["lstm"]["perception"]["fields"].values()
        told = ", ".join(number(value, ".1f") for value in fields)
        ratio = f"{theirs['rule'][0] / theirs['lstm'][0]:.2f}" if theirs["rule"] else ""
        cells.append(
            (
                f"{html.escape(row['title'])}<br><small>{html.escape(row['teacher'])}</small>",
                _beside(_ours(loss["lstm"], loss_number), _spread(theirs["lstm"])),
                _beside(_ours(loss["rule"], loss_number), _spread(theirs["rule"])),
                _beside(_ours(loss["ratio"]), ratio),
                _beside(told, ", ".join(f"{value:.1f}" for value in theirs["tpf"])),
                _beside(
                    _ours((mine["mean"], mine["low"], mine["high"])),
                    f"{theirs['mc']:.1f}" if theirs["mc"] else "",
                ),
                _beside(number(mine["r2"], ".3f"), " / ".join(f"{v:.2f}" for v in theirs["r2"] or ())),
                str(row["rule"]["nodes"]),
            )
        )
    some = next((row["loss"] for row in models.values() if row["loss"]), None)
    note = ""
    if some:
        text = (
            f"Loss at step {some['horizon']}, {some['seeds']} seeds, geometric means, 95 % intervals. "
            "LSTMs, each trained once, and equations are taken as they come, no learning rate is tuned. TPF "
            "is the LSTM's, one number for each input; R² that of the smallest equation about as good as the "
            "best, on runs no search has seen."
        )
        note = f'<p class="soft">{html.escape(text)}</p>'
    return html.table(head, cells, "LSTMs and their equations") + note


def _equations(found: Mapping[str, Any]) -> str:
    rows = {
        row["title"]: f"{row['rule']['text']}   ({row['trained']}{'; ' + row['note'] if row['note'] else ''})"
        for row in found["models"].values()
        if row["rule"]
    }
    return "<h3>The equations, and how their LSTMs were trained</h3>" + html.terms(rows)


def _numbers(item: str, found: Mapping[str, Any]) -> str:
    if item == "sanity" and found["sanity"]:
        return _sanity(found["sanity"])
    if item == "figure2" and found["large"]:
        rows = found["large"]["optimizers"]
        best = sorted(rows, key=lambda name: -rows[name]["accuracy"][0])
        cells = [
            (html.escape(name), _accuracy(rows[name]), html.escape(rows[name]["schedule"])) for name in best
        ]
        theirs = "; ".join(f"{net}: {a:.2f} against {b:.2f}" for net, (a, b) in published.LARGE.items())
        ours = html.table(("optimizer", "test accuracy, %", "schedule"), cells, "test accuracy")
        return (
            ours + f'<p class="soft">Published, equation against the best of SGD: {html.escape(theirs)}.</p>'
        )
    if item == "figure6":
        rows = [row for row in found["models"].values() if row["lstm"] and row["lstm"]["squashing"]]
        cells = [
            (
                html.escape(row["title"]),
                "none" if (gamma := row["lstm"]["squashing"]["gamma"]) is None else number(gamma, ".3g"),
                number(row["lstm"]["squashing"]["r2"], ".3f"),
            )
            for row in rows
        ]
        return html.table(("model", "gamma", "R² of the template"), cells, "the tanh family") if cells else ""
    return ""


def _accuracy(row: Mapping[str, Any]) -> str:
    mean, low, high = row["accuracy"]
    low, high = max(low, 0.0), min(high, 100.0)
    return number(mean, ".2f") + (
        f" <small>{number(low, '.2f')} to {number(high, '.2f')}</small>" if low == low else ""
    )


def _sanity(sanity: Mapping[str, Any]) -> str:
    head = ("equation", "R²", "found as written", "nodes", "seconds")
    cells = [
        (
            html.escape(row["rule"]),
            _beside(number(row["r2"], ".4f"), f"{row['paper_r2']:.2f}"),
            f"{row['true']} of {len(row['runs'])}",
            f"{row['nodes']:g}",
            _beside(
                number(row["seconds"], ".1f"),
                "" if row["paper_seconds"] is None else f"{row['paper_seconds']:.0f}",
            ),
        )
        for row in sanity["rows"]
    ]
    known = html.table(head, cells, "sanity checks")
    cells = [
        (
            html.escape(row["teacher"]),
            _beside(
                number(row["r2_50"], ".4f"), " / ".join(f"{value:.2f}" for value in row["paper_r2"] or ())
            ),
        )
        for row in sanity["recorded"]
    ]
    return known + "<h3>Recorded in training</h3>" + html.table(("optimizer", "R²"), cells, "recorded")


def _commands(records: Mapping[str, Mapping[str, Any]]) -> str:
    total = sum(record["seconds"] for record in records.values())
    text = f"<p>{len(records)} cells, {total / 60.0:.1f} minutes in all.</p>"
    lines = []
    for name, record in records.items():
        spans = " ".join(f"<span>{html.escape(word)}</span>" for word in record["command"].split(" "))
        label = f"{html.escape(name)}, {record['seconds']:.1f} s"
        lines.append(f'<p class="soft">{label}</p><pre class="command"><code>{spans}</code></pre>')
    return text + f"<details><summary>The commands</summary>{''.join(lines)}</details>"
