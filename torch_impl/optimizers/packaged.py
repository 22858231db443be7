"""Hand-made optimizers of the package pytorch-optimizer, which is imported when one is made."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from interchange.language.view import View, chosen, outputs_first
from torch_impl.optimizers.base import loss_of
from torch_impl.optimizers.decay import decay


class NorMuon(torch.optim.Optimizer):
    """The package's NorMuon on the matrices of a network and its AdamW on the rest.

    It works on copies [rows, columns], as the package's own view of a tensor is that of torch's layers; of
    several matrices in one tensor (packed queries, keys, values; groups of a convolution) each has its own.

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

        super().__init__(params, {"lr": lr, "matrix": matrix, "weight_decay": weight_decay})
        self._seen = {
            p: chosen(tuple(p.shape), group["matrix"], outputs_first(tuple(p.shape)))
            for group in self.param_groups
            for p in group["params"]
        }
        self._copies = {p: _matrices(p.detach().clone(), view) for p, view in self._seen.items()}
        muon = {"lr": lr, "momentum": momentum, "beta2": beta2, "update_scale": "match_rms"}
        halves = {True: muon, False: {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8}}
        groups = []
        for use_muon, options in halves.items():
            for group in self.param_groups:
                seen = [p for p in group["params"] if self._seen[p].matrix == use_muon]
                if own := [m for p in seen for m in self._copies[p]]:
                    decay = group["weight_decay"]
                    groups.append(options | {"params": own, "use_muon": use_muon, "weight_decay": decay})
        self._theirs = NorMuon(groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of every parameter that has a gradient; returns the closure's loss."""
        loss = loss_of(closure)
        given = {p: view for p, view in self._seen.items() if p.grad is not None}
        for p, copies in self._copies.items():
            slopes = _matrices(p.grad, self._seen[p]) if p in given else [None] * len(copies)
            for copy, now, g in zip(copies, _matrices(p.detach(), self._seen[p]), slopes, strict=True):
                copy.copy_(now)
                copy.grad = g
        for group in self._theirs.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        self._theirs.step()
        for p, view in given.items():
            p.copy_(_tensor(self._copies[p], view))
            self.state[p] = {
                f"{key}_{k}": value
                for k, copy in enumerate(self._copies[p])
                for key, value in self._theirs.state[copy].items()
            }
        return loss


def _matrices(x: torch.Tensor, view: View) -> list[torch.Tensor]:
    """The matrices [rows, columns] of a tensor, or the tensor itself where it is none."""
    if not view.matrix:
        return [x]
    moved = x.reshape(view.split).permute(_order(view)).reshape(-1, view.sizes["rows"], view.sizes["cols"])
    return list(moved.contiguous())


def _tensor(matrices: list[torch.Tensor], view: View) -> torch.Tensor:
    """The inverse of ``_matrices``."""
    if not view.matrix:
        return matrices[0]
    order = _order(view)
    moved = torch.stack(matrices).reshape([view.split[axis] for axis in order])
    return moved.permute([order.index(axis) for axis in range(len(order))]).reshape(view.shape)


def _order(view: View) -> list[int]:
    """The axes of what a tensor is cut into: parts, rows, columns."""
    rows, columns, parts = view.axes
    return [axis + len(view.split) for axis in parts + rows + columns]


def _soap(params: Iterable[Any], lr: float, **o: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    betas, most = (o["beta1"], o["beta2"]), int(o["max_dim"])
    optimizer = SOAP(params, lr, betas, weight_decay=0.0, max_precondition_dim=most, eps=o["eps"])
    decay(optimizer, o["weight_decay"])  # its own leaves the first step out
    return optimizer


def _ademamix(params: Iterable[Any], lr: float, **o: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import AdEMAMix

    rest = {key: o[key] for key in ("alpha", "eps", "weight_decay")}
    return AdEMAMix(params, lr, (o["beta1"], o["beta2"], o["beta3"]), weight_decouple=True, **rest)


def _mars(groups: list[dict[str, Any]], lr: float, **o: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import MARS

    for group in groups:  # vectors have a weight decay of their own there
        group["weight_decay_1d"] = group.setdefault("weight_decay", o["weight_decay"])
    return MARS(groups, lr, (o["beta1"], o["beta2"]), o["gamma"], lr_1d=lr, eps=o["eps"])


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

    optimizer = Seeded(params, lr, o["momentum"], 0.0, max_size_triangular=int(o["max_dim"]))
    decay(optimizer, o["weight_decay"])  # its own is of matrices alone
    return optimizer


# A row of the table -> what makes it of parameters, lr and options.
PACKAGED: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "normuon": NorMuon,
    "soap": _soap,
    "ademamix": _ademamix,
    "mars": _mars,
    "psgd": _psgd,
}
