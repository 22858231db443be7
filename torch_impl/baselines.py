"""Hand-made optimizers by name: torch.optim's own, and Lion."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from common.baselines import BASELINES


class Lion(torch.optim.Optimizer):
    """Lion: u = -sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g; decoupled weight decay.

    Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                m = state["m"]
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * torch.sign(torch.lerp(p.grad, m, group["beta1"])))
                m.lerp_(p.grad, 1.0 - group["beta2"])
        return loss


def make(
    name: str, params: Iterable[torch.Tensor], lr: float, options: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The baseline ``name`` of the table over ``params``; ``options`` replace the row's defaults."""
    o = BASELINES[name].options | dict(options or {})
    betas = (o.get("beta1"), o.get("beta2"))
    if name in ("sgd", "momentum", "nesterov"):
        return torch.optim.SGD(params, lr, momentum=o["momentum"], nesterov=name == "nesterov")
    if name == "rmsprop":
        return torch.optim.RMSprop(params, lr, alpha=o["alpha"], eps=o["eps"])
    if name == "adam":
        return torch.optim.Adam(params, lr, betas=betas, eps=o["eps"])
    if name == "adamw":
        return torch.optim.AdamW(params, lr, betas=betas, eps=o["eps"], weight_decay=o["weight_decay"])
    return Lion(params, lr, **o)
