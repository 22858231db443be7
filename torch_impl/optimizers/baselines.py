"""Hand-made optimizers by name: torch.optim's own, Lion and Schedule-Free AdamW, and other packages'."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from common.errors import L2OError
from common.tables.baselines import BASELINES, DECAYS, missing, on
from interchange.language.view import View
from interchange.rule.rule import Rule
from torch_impl.optimizers.base import loss_of
from torch_impl.optimizers.decay import decay
from torch_impl.optimizers.groups import seen_as
from torch_impl.optimizers.optimizers import SymbolicOptimizer
from torch_impl.optimizers.packaged import PACKAGED


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
        loss = loss_of(closure)
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


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-Free AdamW: gradients at y = (1 - b1) z + b1 x, steps of z, x the mean of z; y is kept.

    Defazio et al., "The road less scheduled", 2024, algorithm 1 without warmup and with Adam's corrected v; c
    is 1 / t, which holds as long as lr does not grow. State: v and y - z. Loss and accuracy are those of y;
    the authors' code reports the test accuracy of x = y + (1 / b1 - 1) (y - z).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2.5e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, beta in {"beta1": beta1, "beta2": beta2}.items():
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"{name}: expected a number of [0, 1), got {beta}")
        options = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of every parameter that has a gradient; returns the closure's loss."""
        loss = loss_of(closure)
        for group in self.param_groups:
            lr, b1, b2 = group["lr"], group["beta1"], group["beta2"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float64)
                    state["v"], state["e"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1.0
                t, v, e = float(state["step"]), state["v"], state["e"]
                v.mul_(b2).addcmul_(p.grad, p.grad, value=1.0 - b2)
                u = p.grad / (v / (1.0 - b2**t)).sqrt_().add_(group["eps"])
                if group["weight_decay"]:
                    u.add_(p, alpha=group["weight_decay"])
                p.sub_(e, alpha=1.0 / t).sub_(u, alpha=lr * (1.0 - b1 * (1.0 - 1.0 / t)))
                e.add_(u, alpha=lr * b1).mul_(1.0 - 1.0 / t)
        return loss


def _nadamw(
    params: Iterable[Any], lr: float, betas: tuple[float, float], o: Mapping[str, float]
) -> torch.optim.Optimizer:
    rest = {key: o[key] for key in ("eps", "weight_decay", "momentum_decay")}
    optimizer = torch.optim.NAdam(params, lr, betas, decoupled_weight_decay=True, **rest)
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        # torch would keep the product of the momenta in float32, which is off by 1e-7 after one step.
        optimizer.state[p].update(
            step=torch.zeros(()),
            mu_product=torch.ones((), dtype=torch.float64),
            exp_avg=torch.zeros_like(p),
            exp_avg_sq=torch.zeros_like(p),
        )
    return optimizer


def _muon(params: Iterable[Any], lr: float, momentum: float, weight_decay: float) -> SymbolicOptimizer:
    """The rule of the gallery, in float32 at least; torch.optim's own iterates in bfloat16."""
    rule = Rule.named("muon", momentum=momentum, beta2=0.999)
    return SymbolicOptimizer(params, rule, lr, weight_decay=weight_decay, nonfinite="off")


def _betas(o: Mapping[str, float]) -> tuple[float, float]:
    return o["beta1"], o["beta2"]


# A row of the table -> what makes it of parameters, lr and options.
MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params, lr, momentum, nesterov=0.0: torch.optim.SGD(
        params, lr, momentum, nesterov=on(nesterov)
    ),
    "momentum": torch.optim.SGD,
    "nesterov": functools.partial(torch.optim.SGD, nesterov=True),
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adam": lambda params, lr, **o: torch.optim.Adam(params, lr, _betas(o), o["eps"]),
    "adamw": lambda params, lr, **o: torch.optim.AdamW(params, lr, _betas(o), o["eps"], o["weight_decay"]),
    "nadamw": lambda params, lr, **o: _nadamw(params, lr, _betas(o), o),
    "lion": Lion,
    "schedule-free": ScheduleFree,
    "muon": _muon,
    **PACKAGED,
}


def make(
    name: str,
    params: Iterable[torch.Tensor],
    lr: float,
    options: Mapping[str, float] | None = None,
    views: Sequence[View] | None = None,
    decay_vectors: bool = True,
) -> torch.optim.Optimizer:
    """The baseline ``name`` of the table over ``params``; ``options`` replace the row's defaults.

    Args:
        options: ``weight_decay``, decoupled, and ``l2`` too, whatever the row has.
        views: of the parameters, for what sees tensors.
        decay_vectors: without, weight decay is of tensors of two axes or more alone.
    """
    row = BASELINES[name].options
    o = row | dict(options or {})
    if reason := missing(name):
        raise L2OError(f"expected an optimizer that can run here, got {name}, which {reason}")
    beside = {key: o.pop(key) for key in DECAYS if key in o and key not in row}
    optimizer = MAKERS[name](seen_as(views, params, decay_vectors), lr, **o)
    decay(optimizer, **beside)
    return optimizer
