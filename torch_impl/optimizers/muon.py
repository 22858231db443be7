"""Muon on the matrices of a network and AdamW on everything else, as one optimizer."""

from collections.abc import Callable, Iterable

import torch


class Muon(torch.optim.Optimizer):
    """torch.optim's Muon with updates as large as AdamW's, so that both halves share one learning rate.

    Jordan et al. 2024; the size of its updates is Liu et al. 2025's (``match_rms_adamw``). A kernel
    [kh, kw, in, out] is the matrix [kh * kw * in, out]. AdamW has the vectors, and a tensor that is alone: a
    function's x [batch, n] is no layer.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float = 8e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        params = list(params)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        matrices = [p for p in params if p.dim() > 1 and len(params) > 1]
        rest = [p for p in params if p.dim() < 2 or len(params) == 1]
        self._seen = {p: p.detach().view(-1, p.shape[-1]) for p in matrices} | {p: p.detach() for p in rest}
        self._halves: list[torch.optim.Optimizer] = []
        if matrices:
            views = [self._seen[p] for p in matrices]
            self._halves.append(
                torch.optim.Muon(views, lr, weight_decay, momentum, adjust_lr_fn="match_rms_adamw")
            )
        if rest:
            views = [self._seen[p] for p in rest]
            self._halves.append(torch.optim.AdamW(views, lr, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for p, view in self._seen.items():
            view.grad = None if p.grad is None else p.grad.reshape(view.shape)
        (group,) = self.param_groups
        for half in self._halves:
            half.param_groups[0]["lr"] = group["lr"]
            half.step()
        for p, view in self._seen.items():
            for half in self._halves:
                if view in half.state:
                    self.state[p] = half.state[view]
        return loss
