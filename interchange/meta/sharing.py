"""What the loop of meta-training does with several workers: shares, means over all of them, signals."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import L2OError
from common.run.runs import Interrupt
from interchange.backend import Half
from interchange.meta.config import MetaLoop
from interchange.meta.evolution import Segments
from interchange.meta.schedule import EVOLVING
from interchange.meta.workers import Workers

_CODES = (143, 130)  # exit codes after SIGTERM and SIGINT
_ELSEWHERE = object()  # the position of a half that another worker has


def check_share(config: MetaLoop, workers: Workers) -> None:
    """Refuse what cannot be shared out evenly.

    Raises:
        L2OError: ``--tasks`` is not a multiple of the number of workers.
    """
    count, size = config.tasks, workers.size
    if config.estimator not in EVOLVING and count % size:
        raise L2OError(
            f"--tasks: expected a multiple of the {size} workers, which share them out, got {count}; "
            f"use --tasks {-(-count // size) * size}"
        )


def mean_of_all(
    workers: Workers,
    weights: Mapping[str, Any],
    grads: Mapping[str, Any],
    losses: np.ndarray,
    count: int,
    skipped: int,
    interrupt: Interrupt | None,
) -> tuple[dict[str, Any], np.ndarray, int, bool]:
    """What an update needs of several workers, in one message.

    Args:
        weights: by name; a gradient has their shapes.
        grads, losses: means over the ``count`` optimizees of this worker that did not diverge; no gradient
            where none is left. Losses [steps].
        skipped: number of those that did just now.

    Returns:
        Means over the optimizees of all workers, no gradient where none is left; how many diverged; whether
        to stop.
    """
    parts = {name: count * grads[name] if grads else 0.0 * w for name, w in weights.items()}
    numbers = np.concatenate([[count, skipped], _signals(interrupt), count * losses])
    sums, (live, skipped, *rest) = workers.sum(parts, numbers)
    stopped = _agreed(interrupt, rest[: len(_CODES)])
    if not live:
        return {}, losses, int(skipped), stopped
    means = {name: g / float(live) for name, g in sums.items()}
    return means, np.asarray(rest[len(_CODES) :]) / live, int(skipped), stopped


def told(workers: Workers, interrupt: Interrupt | None) -> bool:
    """Whether any worker was told to stop; all must ask together."""
    if workers.size == 1:
        return interrupt is not None and interrupt.requested
    return _agreed(interrupt, workers.total(_signals(interrupt)))


def shared_out(segments: Segments, workers: Workers) -> Segments:
    """Segments whose halves are shared out by pair; the losses go to every worker, positions stay."""

    def run(halves: Sequence[Half], steps: int, keep: bool) -> Iterator[tuple[Any, np.ndarray]]:
        mine = [k for k, half in enumerate(halves) if half.pair % workers.size == workers.rank]
        positions: list[Any] = [_ELSEWHERE if keep else None] * len(halves)
        losses = np.zeros((len(halves), steps + 1))
        for k, found in zip(mine, segments([halves[k] for k in mine], steps, keep), strict=True):
            positions[k], losses[k] = found
        losses = workers.total(losses.reshape(-1)).reshape(losses.shape)
        yield from zip(positions, losses, strict=True)

    return run


def _signals(interrupt: Interrupt | None) -> list[float]:
    """One for the signal that has come, by ``_CODES``."""
    code = interrupt.exit_code if interrupt is not None and interrupt.requested else 0
    return [float(code == known) for known in _CODES]


def _agreed(interrupt: Interrupt | None, signals: Sequence[float]) -> bool:
    """Whether any worker had one of the signals; all of them then leave with its exit code."""
    codes = [code for code, count in zip(_CODES, signals, strict=True) if count]
    if codes and interrupt is not None:
        interrupt.exit_code = codes[0]
    return bool(codes)
