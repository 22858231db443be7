"""Test loss and accuracy along a training."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from common.training import NO_CURVE
from interchange.rollout import Begun

Curves = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]


class Curve:
    """What is asked after every step of a training with its loss; True ends it, as ``stop`` says.

    Args:
        scores: test loss and accuracy of the parameters as they are.
        every: steps between two looks; 0 for none before the end.
        told: what gets step, test loss and accuracy of every look.
        begun: what there was before.

    Attributes:
        seconds: that looking took.
    """

    def __init__(
        self,
        scores: Callable[[], tuple[float, float]],
        every: int,
        stop: Callable[[float], bool] | None = None,
        told: Callable[[int, float, float], None] | None = None,
        begun: Begun | None = None,
    ) -> None:
        self._scores, self._every, self._stop, self._told = scores, every, stop, told
        self._step, self.seconds = 0 if begun is None else len(begun.losses), 0.0
        # The interruption was looked at as an end is, which it was not.
        rows = [] if begun is None else [row for row in begun.curve.tolist() if row[0] % every == 0]
        self._rows = [(int(step), *scores) for step, *scores in rows]

    def __call__(self, loss: float) -> bool:
        self._step += 1
        if self._every and self._step % self._every == 0:
            self._look()
        return self._stop is not None and self._stop(loss)

    def end(self) -> tuple[float, float]:
        """Test loss and accuracy at the end."""
        if not self._rows or self._rows[-1][0] != self._step:
            self._look()
        return self._rows[-1][1:]

    def array(self) -> np.ndarray:
        """Step, test loss and accuracy at every look, f8 [look, 3]; none where nobody asked for it."""
        return np.array(self._rows, np.float64).reshape(-1, 3) if self._every else NO_CURVE

    def _look(self) -> None:
        started = time.perf_counter()
        self._rows.append((self._step, *self._scores()))
        self.seconds += time.perf_counter() - started
        if self._told is not None:
            self._told(*self._rows[-1])


def accuracies(runs: Sequence[Any], names: Mapping[str, str]) -> Curves:
    """Panel's title -> optimizer -> steps [look], and accuracies [seed, look], nan after a run's end.

    Args:
        runs: objects with ``optimizer, problem, horizon, curve``.
        names: the optimizers that are wanted.
    """
    panels: dict[str, dict[str, list[np.ndarray]]] = {}
    for run in runs:
        if run.optimizer in names and np.isfinite(run.curve[:, 2]).any():
            title = f"{run.problem}, {run.horizon} steps"
            panels.setdefault(title, {}).setdefault(run.optimizer, []).append(run.curve)
    return {title: {name: _stacked(own) for name, own in panel.items()} for title, panel in panels.items()}


def _stacked(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    steps = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    found = np.full((len(curves), len(steps)), np.nan)
    for line, curve in zip(found, curves, strict=True):
        line[np.searchsorted(steps, curve[:, 0])] = curve[:, 2]
    return steps, found
