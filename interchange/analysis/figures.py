"""The figures of an analysis: panels side by side with one legend, as SVG for the page and as files."""

import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from interchange.analysis.measures.courses import Courses
from interchange.analysis.measures.mapping import Curve
from interchange.analysis.measures.squashing import FAMILY
from interchange.report import drawing
from interchange.report.grid_plots import add_panel, grid_figure, sample

_GREY = "#808080"
Points = Mapping[str, Sequence[Mapping[str, float]]]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure three times: inline for the page, and as files for papers."""

    inline: str
    svg: bytes
    pdf: bytes


def _drawn(figure: Any, label: str, name: str) -> Drawn:
    files = {}
    for form in ("svg", "pdf"):
        buffer = io.BytesIO()
        about = {"Date": None} if form == "svg" else {"CreationDate": None}
        figure.savefig(buffer, format=form, metadata=about | {"Creator": None})
        files[form] = buffer.getvalue()
    return Drawn(drawing.svg(figure, label, name), files["svg"], files["pdf"])


@dataclasses.dataclass(frozen=True)
class _Panel:
    title: str
    draw: Callable[[Any], None]


@drawing.styled
def _panels(panels: Sequence[_Panel], legend: Sequence[Any], label: str, name: str) -> Drawn:
    rows = math.ceil(len(panels) / 3)
    figure, height = grid_figure(rows, 0.35 + 0.2 * math.ceil(len(legend) / 3))
    for place, panel in enumerate(panels):
        panel.draw(add_panel(figure, height, place, panel.title))
    handles = [sample(*entry) for entry in legend]
    figure.legend(handles=handles, loc="lower left", ncol=3, frameon=False, fontsize=drawing.FONT)
    return _drawn(figure, label, name)


def _line(axes: Any, x: Any, y: Any, look: tuple[str, tuple[float, ...]], strong: bool = False) -> None:
    axes.plot(x, y, color=look[0], dashes=look[1], lw=1.8 if strong else 1.2, zorder=4 if strong else 3)


def perception(sensitivity: Mapping[str, Mapping[str, np.ndarray]]) -> Drawn:
    """Sensitivity over lags, its largest value 1, a panel per optimizer and a line per input."""
    inputs = list(dict.fromkeys(name for each in sensitivity.values() for name in each))
    look = drawing.styles(inputs)

    def panel(each: Mapping[str, np.ndarray]) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            largest = max((float(np.max(s, initial=0.0)) for s in each.values()), default=0.0) or 1.0
            for name, values in each.items():
                _line(axes, np.arange(len(values)), np.asarray(values) / largest, look[name])
            total = np.sum([np.asarray(s) for s in each.values()], axis=0)
            seen = np.flatnonzero(np.cumsum(total) >= 0.98 * total.sum()) if total.sum() else [0]
            axes.set(xlim=(0, max(4, 1.3 * int(seen[0]))), ylim=(0, 1.05))

        return draw

    panels = [_Panel(name, panel(each)) for name, each in sensitivity.items()]
    legend = [(look[name], name, False) for name in inputs]
    label = f"Sensitivity over lags of {', '.join(sensitivity)}"
    return _panels(panels, legend, label, "perception")


def mapping(curves: Mapping[str, Mapping[str, Curve]]) -> Drawn:
    """Updates against one input, a panel per input and a line with its band per optimizer.

    Args:
        curves: optimizer -> input -> curve.
    """
    inputs = list(dict.fromkeys(name for each in curves.values() for name in each))
    look = drawing.styles(list(curves))

    def panel(name: str) -> _Panel:
        own = {optimizer: each[name] for optimizer, each in curves.items() if name in each}
        largest = max(float(np.nanmax(np.abs([c.low, c.middle, c.high]))) for c in own.values())
        unit = 10.0 ** math.floor(math.log10(largest)) if largest > 0.0 else 1.0

        def draw(axes: Any) -> None:
            for optimizer, curve in own.items():
                color, dashes = look[optimizer]
                axes.fill_between(curve.x, curve.low / unit, curve.high / unit, color=color, alpha=0.16, lw=0)
                _line(axes, curve.x, curve.middle / unit, (color, dashes))
                if curve.fixed is not None:
                    axes.plot(curve.x, curve.fixed / unit, color=color, dashes=(1, 1.5), lw=0.8)
                axes.set_xlim(curve.x[0], curve.x[-1])
            axes.locator_params(nbins=5)

        at = f" @ {next(iter(own))}" if len(own) == 1 < len(curves) else ""
        return _Panel(f"u / {unit:.0e} against {name}{at}", draw)

    panels = [panel(name) for name in inputs]
    legend = [(look[name], name, False) for name in curves]
    return _panels(
        panels, legend, f"Mapping curves of {', '.join(curves)} against {', '.join(inputs)}", "mapping"
    )


def family(gammas: Mapping[str, float]) -> Drawn:
    """gamma tanh(x / gamma): some in grey, and those that optimizers have."""
    look = drawing.styles(list(gammas))
    finite = [gamma for gamma in gammas.values() if math.isfinite(gamma)]
    width = 3.0 * max([1.0, *finite])
    x = np.linspace(-width, width, 121)

    def draw(axes: Any) -> None:
        for gamma in FAMILY:
            axes.plot(x, gamma * np.tanh(x / gamma), color=_GREY, lw=0.6, alpha=0.7)
        for name, gamma in gammas.items():
            _line(axes, x, gamma * np.tanh(x / gamma) if math.isfinite(gamma) else x, look[name], strong=True)
        axes.set(xlim=(-width, width), ylim=(-width, width))

    legend = [((_GREY, ()), "gamma 0.1, 0.3, 1, 3, 10", False)]
    legend += [(look[name], f"{name}: {gamma:.3g}", True) for name, gamma in gammas.items()]
    return _panels(
        [_Panel("gamma tanh(x / gamma)", draw)], legend, "The tanh family with fitted gammas", "family"
    )


def complexity(fronts: Points) -> Drawn:
    """R2 and the temporal perception field against nodes, a line per front.

    Args:
        fronts: name -> points with ``nodes``, ``r2`` and ``field``.
    """
    look = drawing.styles(list(fronts))

    def panel(key: str) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            for name, points in fronts.items():
                kept = [(p["nodes"], p[key]) for p in points if p[key] is not None and math.isfinite(p[key])]
                if kept:
                    axes.plot(*zip(*kept, strict=True), color=look[name][0], dashes=look[name][1], lw=1.2)
                    axes.plot(*zip(*kept, strict=True), color=look[name][0], marker="o", ms=3, ls="")
            if key == "r2":
                axes.set_ylim(max(-0.1, axes.get_ylim()[0]), min(1.03, axes.get_ylim()[1]))

        return draw

    panels = [_Panel("R² against nodes", panel("r2")), _Panel("TPF against nodes", panel("field"))]
    legend = [(look[name], name, False) for name in fronts]
    return _panels(
        panels, legend, f"Fit and perception field against size of {', '.join(fronts)}", "complexity"
    )


def courses(found: Courses) -> Drawn:
    """Loss and single coordinates over steps, a line per optimizer."""
    look = drawing.styles(list(found.losses))

    def panel(each: Mapping[str, np.ndarray], log: bool) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            for name, values in each.items():
                _line(axes, np.arange(1, len(values) + 1), values, look[name])
            lowest = min(float(np.min(values)) for values in each.values())
            if log and lowest > 0.0:
                highest = max(float(np.max(values)) for values in each.values())
                drawing.log_scale(axes, "y", lowest / 1.1, highest * 1.1)
            axes.locator_params(axis="x", nbins=4)

        return draw

    panels = [_Panel(f"loss on {found.problem}", panel(found.losses, log=True))]
    panels += [_Panel(f"moved: {name}", panel(each, log=False)) for name, each in found.moved.items()]
    legend = [(look[name], name, False) for name in found.losses]
    label = f"Loss and coordinates on {found.problem} under {', '.join(found.losses)}"
    return _panels(panels, legend, label, "courses")
