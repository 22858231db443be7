"""What training an optimizee leaves."""

import dataclasses
import math

import numpy as np

from common.metrics import DIVERGED, loss_at
from common.training import NO_CURVE

INTERRUPTED = "interrupted"  # an outcome


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One optimizer from one seed.

    Attributes:
        losses: [step], each before that step's update.
        accuracy, test_loss: on the test images at the end; nan where there are none or nobody asked.
        seconds: of wall clock, without looks at the test images.
        curve: f8 [look, 3], step, test loss and accuracy along the way; nan where there are none.
    """

    losses: np.ndarray
    outcome: str
    accuracy: float
    curve: np.ndarray = dataclasses.field(default_factory=NO_CURVE.copy, kw_only=True)
    test_loss: float = dataclasses.field(default=math.nan, kw_only=True)
    seconds: float = dataclasses.field(default=math.nan, kw_only=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Trained(Rollout):
    """One optimizee after its training.

    Attributes:
        outcome: ``ok``, ``diverged`` or ``interrupted``.
        arrays: ``theta/<name>`` in canonical layout and ``buffers/<name>``, as a checkpoint holds them.
        standing: where it stood when it was interrupted, the backend's own; empty where it cannot go on.
    """

    arrays: dict[str, np.ndarray]
    standing: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, kw_only=True)

    @property
    def loss(self) -> float:
        """The loss at the end: the mean of the last 20, inf where it diverged."""
        return math.inf if self.outcome == DIVERGED else loss_at(self.losses, len(self.losses))


@dataclasses.dataclass(frozen=True, eq=False)
class Begun:
    """A run that was interrupted: losses [step], curve [look, 3], where it stood, and its time so far."""

    losses: np.ndarray
    curve: np.ndarray
    standing: dict[str, np.ndarray]
    seconds: float = 0.0
