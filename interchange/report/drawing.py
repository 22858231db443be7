"""What the report's figures have in common: colours and lines, axes, labels, SVG text; no one figure.

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
from collections.abc import Callable, Sequence
from typing import Any

# After Okabe and Ito, "Color universal design" (2008); lightness moved to suit both backgrounds.
PALETTE = ("#d55e00", "#1f7fc4", "#00996f", "#c26d9c", "#b07a00", "#808080")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.6), (1.4, 1.4), (6, 1.6, 1.4, 1.6), (2.6, 1.2))
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
            look[name] = (colors[color], DASHES[(color + turn) % len(DASHES)])
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


def new_figure(height: float, *, left: float, right: float, bottom: float) -> tuple[Any, Any]:
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


def label_ends(figure: Any, axes: Any, ends: list[tuple[str, float, float, dict, bool]]) -> None:
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


_PLACES = ((0, 11, "center"), (0, -12, "center"), (0, 11, "left"), (8, -8, "left"), (-8, 8, "right"))


def place_labels(figure: Any, axes: Any, texts: list[tuple[bool, float, float, str, bool]]) -> None:
    """Point labels in order of importance; one that finds no free place in the figure is left out."""
    scale = figure.dpi / 72
    points = [axes.transData.transform((x, y)) / scale for _, x, y, _, _ in texts]
    taken = [(px - 4, py - 4, px + 4, py + 4) for px, py in points]
    for (_, x, y, text, strong), (px, py) in zip(texts, points, strict=True):
        width = _WIDE * FONT * len(text) * (1.1 if strong else 1.0)
        for dx, dy, side in _PLACES:
            start = px + dx - {"center": width / 2, "left": 0, "right": width}[side]
            box = (start, py + dy - 4.5, start + width, py + dy + 4.5)
            # Left of the axis stand its numbers.
            if start < axes.bbox.x0 / scale or start + width > 72 * _WIDTH:
                continue
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                taken.append(box)
                offset = {"xytext": (dx, dy), "textcoords": "offset points", "ha": side, "va": "center"}
                axes.annotate(text, (x, y), weight="bold" if strong else "normal", **offset)
                break


def clean(text: str, limit: int = 22) -> str:
    """One line that XML can hold and the margin has room for."""
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _made_room(figure: Any) -> None:
    """Move left sides in by what numbers and labels reach over the edge: small numbers are long."""
    for axes in figure.axes:
        over = FONT * figure.dpi / 144 - axes.get_tightbbox().x0  # half a letter stays free
        if over > 0:
            x, y, width, height = axes.get_position().bounds
            moved = over / figure.bbox.width
            axes.set_position((x + moved, y, width - moved, height))


def svg(figure: Any, label: str, prefix: str) -> str:
    """The figure as SVG for inlining: page's colours and font, unique ids, a label for screen readers."""
    _made_room(figure)
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
