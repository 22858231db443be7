"""Weight decay of any ``torch.optim.Optimizer``: what torch's own have differs from one to the next."""

from collections.abc import Mapping
from typing import Any

import torch

SPARED = "spared"  # of a group: its tensors do not decay


def decay(optimizer: torch.optim.Optimizer, weight_decay: float = 0.0, l2: float = 0.0) -> None:
    """From now on g += l2 * theta and theta *= 1 - lr * weight_decay come before every step of an optimizer.

    It must not read its parameters. Groups with a true ``spared`` are left alone.
    """
    if not (weight_decay or l2):
        return

    @torch.no_grad()
    def before(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None or group.get(SPARED):
                    continue
                if l2:
                    p.grad = p.grad.add(p, alpha=l2)  # the caller may look at the gradient's own still
                if weight_decay:
                    p.mul_(1.0 - group["lr"] * weight_decay)

    optimizer.register_step_pre_hook(before)
