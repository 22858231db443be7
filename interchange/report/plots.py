"""The report's figures as inline SVG text: readable on light and dark, no external resource."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from common.errors import L2OError
from common.metrics import SummaryRow, loss_interval, loss_number, number, smooth
from interchange.report import drawing


@drawing.styled
def training_curve(
    epochs: Sequence[int], loss: Sequence[float], validation: Sequence[float | None], *, prefix: str = ""
) -> str:
    """Meta-loss and validation loss over meta-epochs; None or nan where no validation was made."""
    x = np.asarray(epochs, dtype=float)
    train, valid = (
        np.array([math.nan if v is None else v for v in s], dtype=float) for s in (loss, validation)
    )
    figure, axes = drawing.new_figure(3.0, left=0.6, right=1.3, bottom=0.48)
    ends = []
    for name, y, color, marker in (("training", train, 1, ""), ("validation", valid, 0, "o")):
        keep = np.isfinite(y)
        if keep.any():
            style = {
                "color": drawing.PALETTE[color],
                "dashes": drawing.DASHES[0],
                "lw": 1.6 if marker else 1.2,
            }
            axes.plot(x[keep], y[keep], marker=marker, ms=3.5, **style)
            ends.append((name, x[keep][-1], y[keep][-1], style, bool(marker)))
    known = np.concatenate([train, valid])
    known = known[np.isfinite(known)]
    if len(known) and known.min() > 0 and known.max() > 5 * known.min():
        drawing.log_scale(axes, "y", known.min() / 1.15, known.max() * 1.15)
    axes.set(xlabel="meta-epoch", ylabel="meta-loss")
    if len(x) > 1:
        axes.set_xlim(x.min(), x.max())
    drawing.label_ends(figure, axes, ends)
    best = f", best validation {np.nanmin(valid):.4g}" if np.isfinite(valid).any() else ""
    return drawing.svg(
        figure, f"Training curve of the teacher over {len(x)} meta-epochs{best}", prefix or "training"
    )


@drawing.styled
def pareto_front(points: Sequence[tuple[int, float]], chosen: int | None = None, *, prefix: str = "") -> str:
    """Rules by complexity (nodes) and R2, the best reachable R2 as a step line.

    Args:
        points: (complexity, R2); an R2 below -0.1 is drawn at the lower edge with its value.
        chosen: place of the chosen rule in ``points``.
    """
    figure, axes = drawing.new_figure(3.3, left=0.72, right=0.2, bottom=0.48)
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
        axes.step([c for c, _ in front], best, where="post", color=drawing.PALETTE[5], lw=1.0, zorder=1)
    pick = points[chosen] if chosen is not None else None
    texts = []
    for place, (complexity, value) in enumerate(points):
        if not math.isfinite(value):
            continue
        below, is_pick = value < low, place == chosen
        marker = "D" if is_pick else "v" if below else "o"
        style = {
            "color": drawing.PALETTE[0 if is_pick else 1],
            "ms": 8 if is_pick else 5,
            "zorder": 4 if is_pick else 3,
        }
        axes.plot([complexity], [max(value, low)], marker=marker, ls="", clip_on=False, **style)
        text = f"{complexity}" + (
            f" node{'s' * (complexity != 1)}: R² {number(value, '.3f')}" if is_pick or below else ""
        )
        texts.append((not is_pick, complexity, max(value, low), text, is_pick))
    drawing.place_labels(figure, axes, sorted(texts))
    summary = f"; the chosen rule has {pick[0]} nodes and R2 {pick[1]:.3f}" if pick else ""
    return drawing.svg(
        figure, f"Pareto front of {len(points)} rules, complexity against R2{summary}", prefix or "pareto"
    )


@drawing.styled
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
    labels = {
        n: drawing.clean(n) + ("" if np.isfinite(v).all() else " (diverged)") for n, v in curves.items()
    }
    figure, axes = drawing.new_figure(
        3.9, left=0.6, right=0.5 + 0.075 * max(map(len, labels.values())), bottom=0.48
    )
    look, ends, floor, ceiling, steps = drawing.styles(list(curves), highlight), [], [], [], 1
    for name, losses in curves.items():
        smoothed = smooth(np.atleast_2d(losses), window)
        steps = max(steps, smoothed.shape[1])
        x = np.unique(np.linspace(0, smoothed.shape[1] - 1, drawing.POINTS).astype(int))
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
        drawing.log_scale(axes, "y", min(floor) / 1.15, max(*ceiling, 2 * min(floor)) * 1.15)
    axes.set(xlabel="step", ylabel=f"loss, mean of {window} steps", xlim=(1, max(steps, 2)))
    drawing.label_ends(figure, axes, ends)
    order = sorted(ends, key=lambda end: end[2])
    spoken = ", ".join(f"{name} {y:.4g}" for name, _, y, _, _ in order)
    return drawing.svg(
        figure, f"Loss over {steps} steps, mean over seeds. At the end: {spoken}", prefix or "curves"
    )


@drawing.styled
def final_losses(summary: Sequence[SummaryRow], highlight: Sequence[str] = (), *, prefix: str = "") -> str:
    """Dot and 95 % interval per optimizer, lowest loss on top; diverged ones named at the edge."""
    if not summary:
        raise L2OError("final_losses: expected at least one row, got none")
    rows = sorted(summary, key=lambda row: (row.mean, row.optimizer))
    left = 0.25 + 0.085 * max(len(drawing.clean(row.optimizer)) for row in rows)
    figure, axes = drawing.new_figure(
        0.62 + 0.27 * len(rows), left=left, right=1.3 if any(r.diverged for r in rows) else 0.8, bottom=0.48
    )
    look = drawing.styles([row.optimizer for row in rows], highlight)
    means = [row.mean for row in rows if math.isfinite(row.mean)] or [0.0]
    ends = [*means, *(v for row in rows for v in (row.low, row.high) if math.isfinite(v))]
    low, high = min(ends), max(ends)
    if min(means) > 0 and max(means) > 4 * min(means):
        drawing.log_scale(axes, "x", max(low, min(means) / 3) / 1.15, high * 1.15)
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
    axes.set_yticks(range(len(rows)), [drawing.clean(row.optimizer) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_weight("bold" if row.optimizer in highlight else "normal")
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"loss at step {rows[0].horizon}")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    spoken = ", ".join(f"{row.optimizer} {row.mean:.4g}" for row in rows)
    return drawing.svg(figure, f"Loss at step {rows[0].horizon}, lowest first: {spoken}", prefix or "final")
