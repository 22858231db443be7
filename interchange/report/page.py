"""Pieces of the HTML pages: one file each that needs no network and no script. All text is escaped."""

import html
from collections.abc import Iterable, Mapping, Sequence


def page(title: str, heading: str, parts: Iterable[str]) -> str:
    """A whole page as HTML text; ``parts`` are sections, empty ones are left out."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<header><p class="eyebrow">{escape(title)}</p><h1>{escape(heading)}</h1></header>
{chr(10).join(filter(None, parts))}
</main>
</body>
</html>
"""


def escape(text: object) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def section(title: str, *parts: str) -> str:
    """A section with its heading; parts are HTML."""
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def details(title: str, *sources: str) -> str:
    """Texts to be unfolded below a title."""
    shown = "".join(f'<pre tabindex="0"><code>{escape(source)}</code></pre>' for source in sources)
    return f"<details><summary>{escape(title)}</summary>{shown}</details>"


def chart(svg: str, note: str, kind: str = "") -> str:
    """A figure that scrolls by itself, with a note below; ``wide`` ones take the whole column."""
    of_kind = f' class="{kind}"' if kind else ""
    caption = f"<figcaption>{escape(note)}</figcaption>"
    return f'<figure{of_kind}><div class="scroll" tabindex="0">{svg}</div>{caption}</figure>'


def terms(values: Mapping[str, object]) -> str:
    """Terms and what they are."""
    return (
        '<dl class="terms">'
        + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in values.items())
        + "</dl>"
    )


def table(head: Iterable[str], rows: Iterable[Sequence[str]], label: str) -> str:
    """A table that scrolls by itself; cells are HTML, the first of a row is its heading."""
    lines = [
        "<tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head) + "</tr></thead>\n<tbody>"
    ]
    for first, *cells in rows:
        lines.append(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    opening = f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0"><table><thead>'
    return opening + "\n".join(lines) + "</tbody></table></div>"


def words(text: object) -> str:
    """Text of a table's cell that may take several lines, as HTML; numbers never do."""
    return f'<span class="words">{escape(text)}</span>'


CHOICES = ("diverged", "learning rate", "schedule", "knob", "trials")


def lean_table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """The table without those ``CHOICES`` that are the same in every row, and a line with these."""
    columns = list(zip(*rows, strict=True))
    same = [
        k
        for k, column in enumerate(columns)
        if head[k] in CHOICES and len(rows) > 2 and len(set(column)) == 1
    ]
    told = ", ".join(f"{escape(head[k])} {rows[0][k]}" for k in same if rows[0][k] != "–")
    kept = [[cell for k, cell in enumerate(row) if k not in same] for row in (head, *rows)]
    line = f'<p class="soft">The same for all: {told}.</p>' if told else ""
    return table(kept[0], kept[1:], label) + line


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
.equation { background: var(--panel); border-radius: .6rem; padding: 1.5rem 1.25rem; margin: .6rem 0; }
.pieces { overflow-x: auto; line-height: 2.4; padding-left: 1.5em; text-indent: -1.5em; }
.pieces math { font-size: clamp(1.15rem, .9rem + 1vw, 1.5rem); } math { text-indent: 0; }
.where { display: grid; grid-template-columns: max-content 1fr; gap: .5rem 1.5rem; margin: 0 0 1.5rem;
  align-items: baseline; } .where > dt { color: var(--text); }
.where math { font-size: 1.1rem; } .where .pieces { padding-block: .5rem; }
.on-wide { display: none; }
@media (min-width: 66rem) { .on-wide { display: block; } .on-narrow { display: none; } }
.facts { display: flex; flex-wrap: wrap; gap: 1rem 3rem; margin: 1.5rem 0 0; }
.facts div { display: flex; flex-direction: column-reverse; } .facts dd { font-size: 1.5rem; }
table { border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem 1.5rem .5rem 0; text-align: left; white-space: nowrap; font-weight: 400;
  border-bottom: 1px solid var(--line); } thead th { white-space: normal;
  overflow-wrap: normal; vertical-align: bottom; }
.words { display: inline-block; max-width: 12rem; white-space: normal; overflow-wrap: normal; }
@media (max-width: 40rem) { th, td { padding-right: .8rem; } table { font-size: .875rem; } }
thead th, figcaption { color: var(--soft); font-size: .875rem; }
.best, .tag, .eyebrow { color: var(--accent); }
.tag { font-size: .75rem; border: 1px solid currentColor; border-radius: 1rem; padding: .05rem .5rem; }
figure { margin: 1.75rem 0; } figcaption { margin-top: .5rem; } abbr { text-decoration: none; }
figure svg { display: block; min-width: 20rem; max-width: 38rem; height: auto; }
.terms { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .3rem 1.5rem; margin: 0; }
pre { background: var(--panel); border-radius: .5rem; padding: .85rem 1rem; margin: .6rem 0; overflow: auto; }
pre, code { font: .875rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
pre { overflow-wrap: normal; } .command { white-space: pre-wrap; overflow-wrap: anywhere; }
.command span { display: inline-block; max-width: 100%; } summary { cursor: pointer; padding: .35rem 0; }
.verdicts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr));
  gap: 1.75rem 2.5rem; margin: 0 0 2rem; } .verdicts dt { color: var(--text); font-weight: 600; }
.verdicts dt span { white-space: nowrap; font-weight: 400; }
.wide svg { max-width: none; min-width: 44rem; } td small, .soft { color: var(--soft); }
.ahead, .near, .behind, .far { border-radius: .3rem; padding: .1rem .35rem; }
.ahead { background: rgb(0 153 111 / .24); } .near { background: rgb(0 153 111 / .09); }
.behind { background: rgb(213 94 0 / .12); } .far { background: rgb(213 94 0 / .3); }
@media print { :root { color-scheme: light; --page: #fff; --text: #000; --soft: #444; --line: #bbb;
  --panel: #f4f4f4; --accent: #8a3700; --shade: transparent; } main { max-width: none; padding: 0; }
  figure, tr, .equation { break-inside: avoid; } h2, h3 { break-after: avoid; } pre { white-space: pre-wrap; }
  table { font-size: .75rem; } details::details-content { content-visibility: visible; } }
"""
