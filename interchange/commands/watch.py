"""What a run of ``optimize`` tells while it goes on."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.run.cli import Progress
from interchange.rollout import INTERRUPTED, Begun, Trained

_POINTS = 200  # of a run's losses that TensorBoard gets
_STRETCH = 120.0  # seconds of a run that a kill may lose


class Watch:
    """Told of every step and look of a run: it shows progress, and tells TensorBoard.

    Args:
        number: of the run, of so many steps.
        tell: gets rows of metrics, if anybody does.
        stopped: whether to stop.
    """

    def __init__(
        self,
        number: int,
        steps: int,
        progress: Progress,
        tell: Callable[[Mapping[str, Any]], None] | None,
        stopped: Callable[[], bool],
    ) -> None:
        self.number, self._progress, self._tell, self._stopped = number, progress, tell, stopped
        self._step, self._every, self._losses = 0, max(1, steps // _POINTS), []
        self._pause = math.inf

    def through(
        self,
        fit: Callable[[Begun | None], Trained],
        begun: Begun | None = None,
        keep: Callable[[Trained], None] | None = None,
    ) -> Trained:
        """The run, in stretches that are kept: once it is killed nothing can be.

        Args:
            fit: goes on with what has begun.
            keep: gets the run after each stretch but the last; None of one that could not go on from there.
        """
        self.begin(begun)
        while True:
            self._pause = math.inf if keep is None else time.monotonic() + _STRETCH
            run = fit(begun)
            run = dataclasses.replace(run, seconds=run.seconds + (begun.seconds if begun else 0.0))
            if run.outcome != INTERRUPTED or keep is None or self._stopped():
                return run
            keep(run)
            begun = Begun(run.losses, run.curve, run.standing, run.seconds)

    def begin(self, begun: Begun | None) -> None:
        """With what there was before the run was interrupted."""
        for loss in [] if begun is None else begun.losses.tolist():
            self._step += 1
            self._progress.advance(run=str(self.number + 1), loss=loss)

    def step(self, loss: float) -> bool:
        """After a step with its loss; True ends the run."""
        self._progress.advance(run=str(self.number + 1), loss=loss)
        self._step += 1
        if self._tell is not None:
            self._losses.append(loss)
            if self._step % self._every == 0:
                self._told(self._step, loss=float(np.mean(self._losses)))
                self._losses = []
        return self._stopped() or time.monotonic() >= self._pause

    def look(self, step: int, test_loss: float, accuracy: float) -> None:
        """After a look at the test images."""
        self._told(step, test_loss=test_loss, accuracy=accuracy)

    def _told(self, step: int, **figures: float) -> None:
        if self._tell is not None:
            known = {name: value for name, value in figures.items() if math.isfinite(value)}
            self._tell({"epoch": step} | {f"run_{self.number}/{name}": v for name, v in known.items()})
