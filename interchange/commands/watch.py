"""What a run of ``optimize`` tells while it goes on."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.run.cli import Progress
from interchange.rollout import Begun

_POINTS = 200  # of a run's losses that TensorBoard gets


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
        return self._stopped()

    def look(self, step: int, test_loss: float, accuracy: float) -> None:
        """After a look at the test images."""
        self._told(step, test_loss=test_loss, accuracy=accuracy)

    def _told(self, step: int, **figures: float) -> None:
        if self._tell is not None:
            known = {name: value for name, value in figures.items() if math.isfinite(value)}
            self._tell({"epoch": step} | {f"run_{self.number}/{name}": v for name, v in known.items()})
