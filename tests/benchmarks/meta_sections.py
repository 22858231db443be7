"""The other sections of ``meta_training.py``: how speed and memory scale, and what a subset costs in loss."""

import argparse
import statistics
from typing import Any

import numpy as np
from turns import OURS, Child, chosen, rounds_of

from common.metrics import interval

_SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
POINTS: dict[str, tuple[int, ...]] = {
    "coordinates": _SIZES,
    "unroll": (5, 20, 50, 100, 200, 400),
    "tasks": (1, 2, 4, 8, 16),
    "threads": (1, 2, 4),
}
_SCALED = ("rnnprop", "rp_s")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of these sections."""
    parser.add_argument("--scaling", nargs="+", default=[], choices=tuple(POINTS))
    parser.add_argument("--points", nargs="+", type=int, help="values of what is scaled instead of the usual")
    parser.add_argument("--loss-equality", action="store_true", help="exact and subset, the loss they reach")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--inner-steps", type=int, default=2000, help="of each training of --loss-equality")


def scaling(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Steps per second (of all tasks together) and peak memory of torch and tf at every point.

    Coordinates are those of a quadratic; unroll, tasks and threads are scaled on ``--problem`` or ``--size``.
    One turn is one unroll for coordinates and tasks; every point has a process of its own.
    """
    found: dict[str, Any] = {}
    names = [name for name in options.contestants if name in OURS]
    teachers = [name for name in options.teachers if name in _SCALED] or options.teachers
    print(f"{kind:>12s}  " + "".join(f"{f'{name} {t}':>32s}" for name in names for t in teachers))
    for point in options.points or POINTS[kind]:
        cells = []
        for name in names:
            for teacher in teachers:
                settings = _settings(options, kind, point)
                child = Child(**settings | {"contestant": name, "teacher": teacher}).wait()
                try:
                    child.ask("turn")
                    (row,) = rounds_of([child], options.rounds).values()
                finally:
                    child.close()
                found[f"{name} {teacher} {point}"] = row
                cells.append(f"{row['median']:13.2f}/s {row['peak'] / 1e6:13.1f} MB")
        print(f"{point:12,d}  " + "".join(cells), flush=True)
    return found


def _settings(options: argparse.Namespace, kind: str, point: int) -> dict[str, Any]:
    key = {"coordinates": "size"}.get(kind, kind)
    settings = chosen(options) | {"coordinates": options.coordinates[0], key: point}
    unroll = settings["unroll"]
    one = kind in ("coordinates", "tasks")
    steps = unroll if one else max(unroll, options.steps // unroll * unroll)
    return settings | {"steps": steps}


def loss_equality(options: argparse.Namespace) -> dict[str, Any]:
    """The loss that the exact meta-gradient and a subset reach, paired by seed.

    The figure of a training is the mean loss of the last quarter of its inner steps; the difference is
    relative to the exact one's, with its 95 % t-interval over seeds.
    """
    found: dict[str, Any] = {}
    share = min(options.coordinates)
    for name in [name for name in options.contestants if name in OURS]:
        for teacher in options.teachers:
            pairs = []
            for seed in range(options.seeds):
                pairs.append([_reached(options, name, teacher, part, seed) for part in (1.0, share)])
                exact, subset = pairs[-1]
                print(f"{name} {teacher} seed {seed}: exact {exact:.4f}, subset {subset:.4f}", flush=True)
            mean, low, high = interval([subset / exact - 1.0 for exact, subset in pairs])
            print(
                f"{name} {teacher}: {100 * share:g} % of the coordinates change the loss by "
                f"{100 * mean:+.2f} % ({100 * low:+.2f}, {100 * high:+.2f}) over {len(pairs)} seeds; exact "
                f"{statistics.mean(exact for exact, _ in pairs):.4f}",
                flush=True,
            )
            found[f"{name} {teacher}"] = {"losses": pairs, "difference": [mean, low, high]}
    return found


def _reached(options: argparse.Namespace, name: str, teacher: str, share: float, seed: int) -> float:
    settings = chosen(options) | {"steps": options.steps, "coordinates": share, "seed": seed}
    child = Child(**settings, contestant=name, teacher=teacher).wait()
    try:
        losses: list[float] = []
        while len(losses) < options.inner_steps:
            losses += child.ask("losses")["losses"]
    finally:
        child.close()
    return float(np.mean(losses[-(options.inner_steps // 4) :]))
