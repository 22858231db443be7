"""The report's figures as inline SVG text: readable on light and dark, no external resource.

Text, axes and ticks take the page's own colour (``currentColor``) and font; series have colours of at
least 3:1 contrast on white and on #16181d, and a line style each. matplotlib is imported when drawing.
"""

import functools
import hashlib
import io
import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import L2OError
from common.metrics import SummaryRow, loss_interval, loss_number, number, smooth

# After Okabe and Ito, "Color universal design" (2008); lightness moved to suit both backgrounds.
PALETTE = ("#d55e00", "#1f7fc4", "#00996f", "#c26d9c", "#b07a00", "#808080")
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.6), (1.4, 1.4), (6, 1.6, 1.4, 1.6), (2.6, 1.2))
_WIDTH = 5.4  # inches; 72 points of the view box each
FONT = 9.0  # points
_WIDE = 0.64  # of a letter, in sizes of the font
_TICKS = ((1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0,))  # of a decade, the densest first
POINTS = 300  # most points of one line; more cannot be seen
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "l2o",
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "text.parse_math": False,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.16,
    "grid.linewidth": 0.6,
    "path.simplify": True,
} | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), "#000000")


def styles(names: Sequence[str], highlight: Sequence[str] = ()) -> dict[str, tuple[str, tuple[float, ...]]]:
    """Name -> (colour, dashes), the highlighted first, then by name: plots of the same names agree."""
    first = [name for name in highlight if name in names]
    rest = PALETTE[len(first) :] if 0 < len(first) < len(PALETTE) - 1 else PALETTE
    look = {}
    for group, colors in ((first, PALETTE), (sorted(set(names) - set(first)), rest)):
        for place, name in enumerate(group):
            turn, color = divmod(place, len(colors))
            look[name] = (colors[color], _DASHES[(color + turn) % len(_DASHES)])
    return look


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Draw with this module's settings, whatever the user's matplotlib is set to."""

    @functools.wraps(draw)
    def drawn(*args: Any, **keywords: Any) -> Any:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_RC)
            return draw(*args, **keywords)

    return drawn


@styled
def training_curve(
    epochs: Sequence[int], loss: Sequence[float], validation: Sequence[float | None], *, prefix: str = ""
) -> str:
    """Meta-loss and validation loss over meta-epochs; None or nan where no validation was made."""
    x = np.asarray(epochs, dtype=float)
    train, valid = (
        np.array([math.nan if v is None else v for v in s], dtype=float) for s in (loss, validation)
    )
    figure, axes = _figure(3.0, left=0.6, right=1.3, bottom=0.48)
    ends = []
    for name, y, color, marker in (("training", train, 1, ""), ("validation", valid, 0, "o")):
        keep = np.isfinite(y)
        if keep.any():
            style = {"color": PALETTE[color], "dashes": _DASHES[0], "lw": 1.6 if marker else 1.2}
            axes.plot(x[keep], y[keep], marker=marker, ms=3.5, **style)
            ends.append((name, x[keep][-1], y[keep][-1], style, bool(marker)))
    known = np.concatenate([train, valid])
    known = known[np.isfinite(known)]
    if len(known) and known.min() > 0 and known.max() > 5 * known.min():
        log_scale(axes, "y", known.min() / 1.15, known.max() * 1.15)
    axes.set(xlabel="meta-epoch", ylabel="meta-loss")
    if len(x) > 1:
        axes.set_xlim(x.min(), x.max())
    _label_ends(figure, axes, ends)
    best = f", best validation {np.nanmin(valid):.4g}" if np.isfinite(valid).any() else ""
    return svg(figure, f"Training curve of the teacher over {len(x)} meta-epochs{best}", prefix or "training")


@styled
def pareto_front(points: Sequence[tuple[int, float]], chosen: int | None = None, *, prefix: str = "") -> str:
    """Rules by complexity (nodes) and R2, the best reachable R2 as a step line.

    Args:
        points: (complexity, R2); an R2 below -0.1 is drawn at the lower edge with its value.
        chosen: place of the chosen rule in ``points``.
    """
    figure, axes = _figure(3.3, left=0.72, right=0.2, bottom=0.48)
    drawn = [(c, r) for c, r in points if math.isfinite(r)]
    low = max(min([r for _, r in drawn], default=0.0), -0.1)
    high = max([r for _, r in drawn], default=1.0)
    pad = 0.09 * max(high - low, 0.02)
    axes.set_ylim(low - pad, min(high, 1.0) + 1.6 * pad)
    axes.set(xlabel="complexity (nodes)", ylabel="R² on held-out runs")
    if drawn:
        span = max(c for c, _ in drawn) - min(c for c, _ in drawn) or 1
        axes.set_xlim(min(c for c, _ in drawn) - 0.05 * span, max(c for c, _ in drawn) + 0.09 * span)
        front = sorted(drawn)
        best = np.maximum.accumulate([r for _, r in front])
        axes.step([c for c, _ in front], best, where="post", color=PALETTE[5], lw=1.0, zorder=1)
    pick = points[chosen] if chosen is not None else None
    texts = []
    for place, (complexity, value) in enumerate(points):
        if not math.isfinite(value):
            continue
        below, is_pick = value < low, place == chosen
        marker = "D" if is_pick else "v" if below else "o"
        style = {
            "color": PALETTE[0 if is_pick else 1],
            "ms": 8 if is_pick else 5,
            "zorder": 4 if is_pick else 3,
        }
        axes.plot([complexity], [max(value, low)], marker=marker, ls="", clip_on=False, **style)
        text = f"{complexity}" + (
            f" node{'s' * (complexity != 1)}: R² {number(value, '.3f')}" if is_pick or below else ""
        )
        texts.append((not is_pick, complexity, max(value, low), text, is_pick))
    _place_labels(figure, axes, sorted(texts))
    summary = f"; the chosen rule has {pick[0]} nodes and R2 {pick[1]:.3f}" if pick else ""
    return svg(
        figure, f"Pareto front of {len(points)} rules, complexity against R2{summary}", prefix or "pareto"
    )


@styled
def loss_curves(
    curves: Mapping[str, np.ndarray], highlight: Sequence[str] = (), *, window: int = 20, prefix: str = ""
) -> str:
    """Smoothed loss over steps: mean over seeds (``loss_interval``) and its 95 % band, log scale if positive.

    Args:
        curves: name -> losses [seeds, steps]; a curve ends where its first seed diverges.
        highlight: names drawn strong and on top.
    """
    if not curves:
        raise L2OError("loss_curves: expected at least one curve, got none")
    labels = {n: clean(n) + ("" if np.isfinite(v).all() else " (diverged)") for n, v in curves.items()}
    figure, axes = _figure(3.9, left=0.6, right=0.5 + 0.075 * max(map(len, labels.values())), bottom=0.48)
    look, ends, floor, ceiling, steps = styles(list(curves), highlight), [], [], [], 1
    for name, losses in curves.items():
        smoothed = smooth(np.atleast_2d(losses), window)
        steps = max(steps, smoothed.shape[1])
        x = np.unique(np.linspace(0, smoothed.shape[1] - 1, POINTS).astype(int))
        mean, low, high = np.array([loss_interval(column) for column in smoothed.T[x]]).T
        bad = ~np.isfinite(mean)
        stop = int(bad.argmax()) if bad.any() else len(mean)
        if stop == 0:
            continue
        x, strong = x[:stop] + 1, name in highlight
        style = {"color": look[name][0], "dashes": look[name][1], "lw": 2.2 if strong else 1.2}
        axes.plot(x, mean[:stop], zorder=4 if strong else 3, **style)
        shade = {"color": look[name][0], "alpha": 0.22 if strong else 0.1, "lw": 0, "zorder": 2}
        axes.fill_between(x, low[:stop], high[:stop], **shade)
        ends.append((labels[name], x[-1], mean[stop - 1], style, strong))
        if bad.any():
            axes.plot(
                x[-1:], mean[stop - 1 : stop], marker="x", ms=6, mew=1.6, color=style["color"], zorder=4
            )
        floor.append(mean[:stop].min())
        ceiling.append(mean[0])
    if floor and min(floor) > 0:
        log_scale(axes, "y", min(floor) / 1.15, max(*ceiling, 2 * min(floor)) * 1.15)
    axes.set(xlabel="step", ylabel=f"loss, mean of {window} steps", xlim=(1, max(steps, 2)))
    _label_ends(figure, axes, ends)
    order = sorted(ends, key=lambda end: end[2])
    spoken = ", ".join(f"{name} {y:.4g}" for name, _, y, _, _ in order)
    return svg(figure, f"Loss over {steps} steps, mean over seeds. At the end: {spoken}", prefix or "curves")


@styled
def final_losses(summary: Sequence[SummaryRow], highlight: Sequence[str] = (), *, prefix: str = "") -> str:
    """Dot and 95 % interval per optimizer, lowest loss on top; diverged ones named at the edge."""
    if not summary:
        raise L2OError("final_losses: expected at least one row, got none")
    rows = sorted(summary, key=lambda row: (row.mean, row.optimizer))
    left = 0.25 + 0.085 * max(len(clean(row.optimizer)) for row in rows)
    figure, axes = _figure(
        0.62 + 0.27 * len(rows), left=left, right=1.3 if any(r.diverged for r in rows) else 0.8, bottom=0.48
    )
    look = styles([row.optimizer for row in rows], highlight)
    means = [row.mean for row in rows if math.isfinite(row.mean)] or [0.0]
    ends = [*means, *(v for row in rows for v in (row.low, row.high) if math.isfinite(v))]
    low, high = min(ends), max(ends)
    if min(means) > 0 and max(means) > 4 * min(means):
        log_scale(axes, "x", max(low, min(means) / 3) / 1.15, high * 1.15)
    else:
        pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_xlim(low - pad, high + pad)
    edge = axes.get_xlim()
    for y, row in enumerate(rows):
        color, strong = look[row.optimizer][0], row.optimizer in highlight
        if math.isfinite(row.mean):
            if math.isfinite(row.low):
                axes.plot([max(row.low, edge[0]), row.high], [y, y], color=color, lw=2.4 if strong else 1.4)
            axes.plot([row.mean], [y], marker="D" if strong else "o", ms=6.5 if strong else 5, color=color)
        note = f"{row.diverged} of {row.seeds} diverged" if row.diverged else loss_number(row.mean, "#.4g")
        where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
        axes.annotate(note, (1, y), (8, 0), weight="bold" if strong else "normal", **where)
    axes.set_yticks(range(len(rows)), [clean(row.optimizer) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_weight("bold" if row.optimizer in highlight else "normal")
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"loss at step {rows[0].horizon}")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    spoken = ", ".join(f"{row.optimizer} {row.mean:.4g}" for row in rows)
    return svg(figure, f"Loss at step {rows[0].horizon}, lowest first: {spoken}", prefix or "final")


def _figure(height: float, *, left: float, right: float, bottom: float) -> tuple[Any, Any]:
    """An empty transparent figure; margins in inches."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height))
    FigureCanvasSVG(figure)
    box = (left / _WIDTH, bottom / height, 1 - (left + right) / _WIDTH, 1 - (bottom + 0.1) / height)
    axes = figure.add_axes(box)
    return figure, axes


def log_scale(axes: Any, axis: str, low: float, high: float) -> None:
    """Log scale with plain numbers as ticks; more of them where few decades are shown."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    getattr(axes, f"set_{axis}scale")("log")
    getattr(axes, f"set_{axis}lim")(low, high)
    decades = math.log10(high / low)
    which = getattr(axes, f"{axis}axis")
    which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for subs in _TICKS[2 if decades > 3 else 1 if decades > 0.7 else 0 :]:
        which.set_major_locator(LogLocator(subs=subs, numticks=20))
        if axis == "y" or _apart(axes):
            break
    which.set_minor_locator(NullLocator())
    which.set_minor_formatter(NullFormatter())


def _apart(axes: Any) -> bool:
    """Whether the numbers below the axis leave a gap between each other."""
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    points = [axes.transData.transform((tick, 1.0))[0] * 72 / axes.figure.dpi for tick in ticks]
    halves = [_WIDE * FONT * (len(f"{tick:g}") + 1) / 2 for tick in ticks]
    places = list(zip(points, halves, strict=True))
    return all(b - a >= half + other for (a, half), (b, other) in itertools.pairwise(places))


def _label_ends(figure: Any, axes: Any, ends: list[tuple[str, float, float, dict, bool]]) -> None:
    """Names beside the line ends, each with a sample of its line, pushed apart where they would overlap."""
    if not ends:
        return
    box = axes.get_window_extent()
    gap = 1.3 * FONT * figure.dpi / 72 / box.height
    lowest = axes.transAxes.inverted()
    ends = sorted(ends, key=lambda end: end[2])
    true = [
        min(max(lowest.transform(axes.transData.transform((x, y)))[1], 0.0), 1.0) for _, x, y, _, _ in ends
    ]
    places = list(true)
    for _ in range(200):
        for k in range(len(places) - 1):
            close = gap - (places[k + 1] - places[k])
            if close > 0:
                places[k], places[k + 1] = places[k] - close / 2, places[k + 1] + close / 2
        shift = max(0.0, -places[0]) - max(0.0, places[-1] - 1.0)
        places = [min(max(place, 0.0), max(1.0, gap * len(places))) for place in places] if shift else places
    for (name, x, _, style, strong), start, place in zip(ends, true, places, strict=True):
        from_x = lowest.transform(axes.transData.transform((x, 1.0)))[0]
        xs, ys = [from_x, 1.03, 1.09], [start, place, place]
        axes.plot(xs[1:], ys[1:], transform=axes.transAxes, clip_on=False, **style)
        axes.plot(xs[:2], ys[:2], transform=axes.transAxes, clip_on=False, color=style["color"], lw=0.6)
        weight = "bold" if strong else "normal"
        axes.text(1.105, place, name, transform=axes.transAxes, va="center", weight=weight)


def _place_labels(figure: Any, axes: Any, texts: list[tuple[bool, float, float, str, bool]]) -> None:
    """Point labels in order of importance; one that finds no free place in the figure is left out."""
    scale = figure.dpi / 72
    points = [axes.transData.transform((x, y)) / scale for _, x, y, _, _ in texts]
    taken = [(px - 4, py - 4, px + 4, py + 4) for px, py in points]
    for (_, x, y, text, strong), (px, py) in zip(texts, points, strict=True):
        width = _WIDE * FONT * len(text) * (1.1 if strong else 1.0)
        for dx, dy, side in ((0, 11, "center"), (0, -12, "center"), (8, -8, "left"), (-8, 8, "right")):
            start = px + dx - {"center": width / 2, "left": 0, "right": width}[side]
            box = (start, py + dy - 4.5, start + width, py + dy + 4.5)
            inside = start >= 0 and start + width <= 72 * _WIDTH
            if inside and not any(
                box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken
            ):
                taken.append(box)
                offset = {"xytext": (dx, dy), "textcoords": "offset points", "ha": side, "va": "center"}
                axes.annotate(text, (x, y), weight="bold" if strong else "normal", **offset)
                break


def clean(text: str, limit: int = 22) -> str:
    """One line that XML can hold and the margin has room for."""
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def svg(figure: Any, label: str, prefix: str) -> str:
    """The figure as SVG for inlining: page's colours and font, unique ids, a label for screen readers."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode()
    root = ElementTree.fromstring(text)
    prefix += "-" + hashlib.sha256((prefix + text).encode()).hexdigest()[:8] + "-"
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", text))
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
        parent.tag = parent.tag.removeprefix(_SVG)
        identity = parent.attrib.pop("id", None)
        if identity in used:
            parent.set("id", prefix + identity)
        if _XLINK in parent.attrib:
            parent.set("href", "#" + prefix + parent.attrib.pop(_XLINK)[1:])
        for name, value in parent.attrib.items():
            value = value.replace("url(#", "url(#" + prefix).replace("#000000", "currentColor")
            value = re.sub(r"font-family: [^;]*", "font-family: inherit", value)
            parent.set(name, re.sub(r"(\.\d\d)\d+", r"\1", value) if name == "d" else value)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    spoken = clean(label, 600)
    root.attrib |= {"xmlns": _SVG[1:-1], "role": "img", "aria-label": spoken, "width": "100%"}
    root.set("style", "fill: currentColor; stroke-linejoin: round; font-family: inherit; overflow: visible")
    return ElementTree.tostring(root, encoding="unicode")
