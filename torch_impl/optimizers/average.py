"""The moving average of parameters along a training."""

from collections.abc import Sequence
from typing import Any

import torch


class Averaged:
    """Exponential moving average of parameters over an optimizer's steps.

    As of ``torch.optim.swa_utils``: the first step's parameters are its first value.

    Args:
        decay: share of the average that stays at a step; 0 is no average.

    Attributes:
        kept: the averages; empty before the first step.
    """

    def __init__(
        self, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer, decay: float
    ) -> None:
        self._parameters, self._decay = parameters, decay
        self.kept: list[torch.Tensor] = []
        if decay:
            optimizer.register_step_post_hook(self._update)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The averages; the parameters themselves where there is none."""
        return self.kept or [p.detach() for p in self._parameters]

    def _update(self, *_: Any) -> None:
        now = [p.detach() for p in self._parameters]
        if not self.kept:
            self.kept = [p.clone() for p in now]
            return
        for kept, p in zip(self.kept, now, strict=True):
            kept.lerp_(p, 1.0 - self._decay)
