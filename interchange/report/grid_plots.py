"""Figures of a comparison over many problems: loss curves side by side, and performance profiles."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.metrics import loss_interval, smooth
from interchange.report import drawing

_COLUMNS = 3
_PANEL = (2.5, 1.95)  # inches, with its margins
_GREY = ("#808080", ())


@drawing.styled
def panels(
    curves: Mapping[str, Mapping[str, np.ndarray]],
    shown: Sequence[str],
    highlight: Sequence[str] = (),
    *,
    names: Mapping[str, str] | None = None,
    window: int = 20,
    prefix: str = "",
) -> str:
    """Smoothed means over seeds (``loss_interval``) with 95 % bands, a panel per problem, one legend for all.

    Args:
        curves: panel's title -> optimizer -> losses [seeds, steps], nan after a run's end.
        shown: optimizers with a colour of their own; all others are thin and grey.
        highlight: those of them drawn strong and on top.
        names: optimizer -> what the legend calls it.
    """
    rows = math.ceil(len(curves) / _COLUMNS)
    others = any(name not in shown for panel in curves.values() for name in panel)
    legend = 0.3 + 0.2 * math.ceil((len(shown) + others) / 3)
    figure, height = grid_figure(rows, legend)
    look = drawing.styles(list(shown), highlight)
    for place, (title, panel) in enumerate(curves.items()):
        _draw(add_panel(figure, height, place, title), panel, look, highlight, window)
    handles = [
        sample(look[name], (names or {}).get(name, name), name in highlight) for name in shown if name in look
    ]
    handles += [sample(_GREY, "others", False)] * others
    figure.legend(handles=handles, loc="lower left", ncol=3, frameon=False, fontsize=drawing.FONT)
    spoken = f"Loss curves on {len(curves)} problems: {', '.join(curves)}"
    return drawing.svg(figure, spoken, prefix or "panels")


def grid_figure(rows: int, legend: float) -> tuple[Any, float]:
    """An empty figure for rows of three panels above a legend, both heights in inches; and its own height."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    height = rows * _PANEL[1] + legend
    figure = Figure(figsize=(_COLUMNS * _PANEL[0], height))
    FigureCanvasSVG(figure)
    return figure, height


def add_panel(figure: Any, height: float, place: int, title: str) -> Any:
    """The axes of a panel, numbered row by row from 0."""
    row, column = divmod(place, _COLUMNS)
    axes = figure.add_axes(
        (
            (column * _PANEL[0] + 0.42) / (_COLUMNS * _PANEL[0]),
            1.0 - (row * _PANEL[1] + _PANEL[1] - 0.36) / height,
            (_PANEL[0] - 0.55) / (_COLUMNS * _PANEL[0]),
            (_PANEL[1] - 0.66) / height,
        )
    )
    axes.set_title(drawing.clean(title, 34), fontsize=drawing.FONT, loc="left")
    return axes


def _draw(
    axes: Any, panel: Mapping[str, np.ndarray], look: Mapping[str, Any], highlight: Sequence[str], window: int
) -> None:
    floor, ceiling, steps = [], [], 1
    for name, losses in panel.items():
        smoothed = smooth(np.atleast_2d(losses), window)
        steps = max(steps, smoothed.shape[1])
        x = np.unique(np.linspace(0, smoothed.shape[1] - 1, drawing.POINTS // 2).astype(int))
        mean, low, high = np.array([loss_interval(column) for column in smoothed.T[x]]).T
        bad = ~np.isfinite(mean)
        stop = int(bad.argmax()) if bad.any() else len(mean)
        if stop == 0:
            continue
        (color, dashes), strong, own = look.get(name, _GREY), name in highlight, name in look
        style = {"color": color, "dashes": dashes, "lw": 1.7 if strong else 1.0 if own else 0.6}
        order = 4 if strong else 3 if own else 2
        axes.plot(x[:stop] + 1, mean[:stop], zorder=order, alpha=1.0 if own else 0.6, **style)
        if own:
            shade = {"color": color, "alpha": 0.2 if strong else 0.1, "lw": 0, "zorder": 1}
            axes.fill_between(x[:stop] + 1, low[:stop], high[:stop], **shade)
        if bad.any():
            axes.plot(x[stop - 1] + 1, mean[stop - 1], marker="x", ms=4, color=color, zorder=order)
        floor.append(mean[:stop].min())
        ceiling.append(mean[0])
    if floor and min(floor) > 0:
        drawing.log_scale(axes, "y", min(floor) / 1.15, max(float(np.median(ceiling)), 2 * min(floor)) * 1.15)
    axes.set_xlim(1, max(steps, 2))


@drawing.styled
def accuracies(
    curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    highlight: Sequence[str] = (),
    *,
    names: Mapping[str, str] | None = None,
    prefix: str = "",
) -> str:
    """Means over seeds of test accuracies, a panel per problem, one legend for all.

    Args:
        curves: panel's title -> optimizer -> steps [look] and accuracies [seed, look], nan after a run's end.
    """
    known = list(dict.fromkeys(name for panel in curves.values() for name in panel))
    legend = 0.3 + 0.2 * math.ceil(len(known) / 3)
    figure, height = grid_figure(math.ceil(len(curves) / _COLUMNS), legend)
    look, ends = drawing.styles(known, highlight), []
    for place, (title, panel) in enumerate(curves.items()):
        axes = add_panel(figure, height, place, title)
        for name, (steps, found) in panel.items():
            seen = np.isfinite(found).any(0)
            mean, (color, dashes) = np.nanmean(found[:, seen], 0), look[name]
            style = {"color": color, "dashes": dashes, "lw": 1.7 if name in highlight else 1.0}
            axes.plot(steps[seen], mean, marker="o", ms=2, zorder=3 + (name in highlight), **style)
            ends.append(f"{(names or {}).get(name, name)} {mean[-1]:.3f}")
    handles = [sample(look[name], (names or {}).get(name, name), name in highlight) for name in known]
    figure.legend(handles=handles, loc="lower left", ncol=3, frameon=False, fontsize=drawing.FONT)
    return drawing.svg(figure, f"Test accuracies, at the end: {', '.join(ends)}", prefix or "accuracies")


@drawing.styled
def profiles(
    shares: Mapping[str, np.ndarray],
    taus: Sequence[float],
    highlight: Sequence[str] = (),
    *,
    names: Mapping[str, str] | None = None,
    prefix: str = "",
) -> str:
    """Performance profiles: share of problems whose target is reached within tau times the fastest.

    Args:
        shares: optimizer -> [tau].
    """
    figure, height = grid_figure(2, 0.3 + 0.2 * math.ceil(len(shares) / 3))
    box = (0.07, 1.0 - (2 * _PANEL[1] - 0.3) / height, 0.9, (2 * _PANEL[1] - 0.45) / height)
    axes, look = figure.add_axes(box), drawing.styles(list(shares), highlight)
    for name, share in sorted(shares.items(), key=lambda item: item[0] in highlight):
        style = {"color": look[name][0], "dashes": look[name][1], "lw": 2.2 if name in highlight else 1.2}
        axes.step(taus, share, where="post", **style)
    axes.set(xlim=(min(taus), max(taus)), ylim=(-0.02, 1.02))
    axes.set(xlabel="tau: steps to target over the fastest optimizer's", ylabel="share of problems")
    handles = [sample(look[n], (names or {}).get(n, n), n in highlight) for n in shares]
    figure.legend(handles=handles, loc="lower left", ncol=3, frameon=False, fontsize=drawing.FONT)
    spoken = ", ".join(f"{name} {share[-1]:.2f}" for name, share in shares.items())
    return drawing.svg(figure, f"Performance profiles; at the right end: {spoken}", prefix or "profile")


def sample(look: tuple[str, tuple[float, ...]], name: str, strong: bool) -> Any:
    """An entry of a legend: a line in its colour and dashes."""
    from matplotlib.lines import Line2D

    color, dashes = look
    line = Line2D([], [], color=color, lw=1.8 if strong else 1.0, label=drawing.clean(name, 34))
    line.set_dashes(dashes or (None, None))
    return line
