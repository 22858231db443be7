"""Hand-made optimizers of the package pytorch-optimizer, which is imported when one is made."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from interchange.language.view import chosen, outputs_first
from torch_impl.optimizers.base import loss_of


class NorMuon(torch.optim.Optimizer):
    """The package's NorMuon on the matrices of a network and its AdamW on the rest.

    It works on views [rows, columns], as the package's own view of a tensor is that of torch's layers.

    Args:
        matrix: which tensors are matrices, as the option of a group of ``SymbolicOptimizer``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 8e-3,
        momentum: float = 0.95,
        beta2: float = 0.95,
        weight_decay: float = 0.0,
        matrix: Any = None,
    ) -> None:
        from pytorch_optimizer import NorMuon

        super().__init__(params, {"lr": lr, "matrix": matrix})
        found = {p: _order(p, group["matrix"]) for group in self.param_groups for p in group["params"]}
        self._views = {
            p: p.detach().permute(place[0]).view(place[1], -1) if place else p.detach()
            for p, place in found.items()
        }
        self._orders = {p: place[0] if place else range(p.dim()) for p, place in found.items()}
        muon = {"lr": lr, "momentum": momentum, "beta2": beta2, "update_scale": "match_rms"}
        halves = {True: muon, False: {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8}}
        groups = []
        for use_muon, options in halves.items():
            views = [self._views[p] for p, place in found.items() if bool(place) == use_muon]
            if views:
                groups.append(options | {"params": views, "use_muon": use_muon, "weight_decay": weight_decay})
        self._theirs = NorMuon(groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of every parameter that has a gradient; returns the closure's loss."""
        loss = loss_of(closure)
        for p, view in self._views.items():
            view.grad = None if p.grad is None else p.grad.permute(*self._orders[p]).reshape(view.shape)
        for group in self._theirs.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        self._theirs.step()
        self.state.update(
            {p: self._theirs.state[view] for p, view in self._views.items() if p.grad is not None}
        )
        return loss


def _order(p: torch.Tensor, option: Any) -> tuple[tuple[int, ...], int] | None:
    """Axes of a tensor with those of its rows first, and the number of rows; None where it is no matrix."""
    view = chosen(tuple(p.shape), option, outputs_first(tuple(p.shape)))
    if not view.matrix or view.parts:
        return None
    return tuple(axis + p.dim() for axis in view.axes[0] + view.axes[1]), view.sizes["rows"]


def _soap(params: Iterable[Any], lr: float, **o: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    rest = {key: o[key] for key in ("eps", "weight_decay")}
    return SOAP(params, lr, (o["beta1"], o["beta2"]), max_precondition_dim=int(o["max_dim"]), **rest)


def _ademamix(params: Iterable[Any], lr: float, **o: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import AdEMAMix

    rest = {key: o[key] for key in ("alpha", "eps", "weight_decay")}
    return AdEMAMix(params, lr, (o["beta1"], o["beta2"], o["beta3"]), weight_decouple=True, **rest)


def _mars(params: Iterable[Any], lr: float, **o: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import MARS

    decay = {"weight_decay": o["weight_decay"], "weight_decay_1d": o["weight_decay"]}
    return MARS(params, lr, (o["beta1"], o["beta2"]), o["gamma"], lr_1d=lr, eps=o["eps"], **decay)


def _psgd(params: Iterable[Any], lr: float, **o: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import Kron

    class Seeded(Kron):
        """Its probes are drawn by the step's number, and whoever else draws does not notice."""

        def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
            loss, drawn = loss_of(closure), np.random.get_state()
            seed = self.param_groups[0].get("step", 0)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                np.random.seed(seed)
                super().step()
            np.random.set_state(drawn)
            return loss

    return Seeded(params, lr, o["momentum"], o["weight_decay"], max_size_triangular=int(o["max_dim"]))


# A row of the table -> what makes it of parameters, lr and options.
PACKAGED: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "normuon": NorMuon,
    "soap": _soap,
    "ademamix": _ademamix,
    "mars": _mars,
    "psgd": _psgd,
}
