"""Muon on the matrices of a network and AdamW on everything else, as one optimizer."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim.adamw import adamw

from common.errors import L2OError

_BETAS, _EPS = (0.9, 0.999), 1e-8  # of AdamW
Matrix = bool | tuple[Sequence[int], Sequence[int]]


class Muon(torch.optim.Optimizer):
    """Muon with updates as large as AdamW's, so that both halves share one learning rate.

    Jordan et al. 2024; the size of its updates is Liu et al. 2025's (torch.optim's ``match_rms_adamw``).
    Where torch.optim's own iterates in bfloat16 and takes matrices alone, this one iterates in float32 at
    least and takes kernels as matrices.

    Args:
        matrix: which tensors are matrices; a group may have its own. True: all of two or more axes, with a
            row for every entry of axis 0, the outputs of torch's layers. False: none, as for embeddings.
            (axes of rows, axes of columns): those, for tensors of another layout.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 8e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        matrix: Matrix = True,
    ) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum: expected a number of [0, 1), got {momentum}")
        options = {"momentum": momentum, "weight_decay": weight_decay, "matrix": matrix}
        super().__init__(params, {"lr": lr, **options})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; ``matrix`` of the group counts before the optimizer's."""
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            order_of(p, self.param_groups[-1]["matrix"])  # axes that do not fit are refused at once

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rest = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                if order := order_of(p, group["matrix"]):
                    self._step_matrix(p, group, *order)
                else:
                    rest.append(p)
            self._step_rest(rest, group)
        return loss

    def _step_matrix(self, p: torch.Tensor, group: dict[str, Any], order: Sequence[int], rows: int) -> None:
        state, momentum = self.state[p], group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"].lerp_(p.grad, 1.0 - momentum)
        moved = p.grad.lerp(buffer, momentum).permute(order)
        update = orthogonal(moved.reshape(rows, -1))
        size = 0.2 * math.sqrt(max(update.shape))
        update = update.reshape(moved.shape).permute(tuple(map(order.index, range(p.dim()))))
        p.mul_(1.0 - group["lr"] * group["weight_decay"])
        p.sub_(group["lr"] * size * update.to(p.dtype))

    def _step_rest(self, params: list[torch.Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                zeros = torch.zeros_like(p), torch.zeros_like(p)
                self.state[p].update(step=torch.zeros(()), exp_avg=zeros[0], exp_avg_sq=zeros[1])
        kept = [[self.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq", "step")]
        adamw(
            params,
            [p.grad for p in params],
            *kept[:2],
            [],
            kept[2],
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=_EPS,
            maximize=False,
        )


def order_of(p: torch.Tensor, matrix: Matrix) -> tuple[tuple[int, ...], int] | None:
    """Axes of a tensor with those of its rows first, and the number of rows; None where it is no matrix.

    Raises:
        L2OError: ``matrix`` is none of what ``Muon`` takes, or has not every axis once.
    """
    if matrix is False or (matrix is True and p.dim() < 2):
        return None
    axes = range(p.dim())
    try:
        rows, columns = ((0,), axes[1:]) if matrix is True else map(tuple, matrix)
        order = tuple(axes[axis] for axis in (*rows, *columns))
    except (IndexError, TypeError, ValueError):
        rows, order = (), ()
    if not rows or sorted(order) != list(axes):
        raise L2OError(
            f"matrix: expected True, False or (axes of rows, axes of columns) with every axis of a tensor of "
            f"shape {tuple(p.shape)} once, as ((0,), (1,)), got {matrix}"
        )
    return order, math.prod(p.shape[axis] for axis in order[: len(rows)])


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """A matrix near the polar factor of ``x`` [rows, columns]: Jordan et al.'s five Newton-Schulz steps.

    In float32 at least; singular values come out between 0.68 and 1.15, those near 0 of the largest less.
    """
    m = x.to(torch.promote_types(x.dtype, torch.float32))
    m = m.mT if m.shape[0] > m.shape[1] else m
    tiny = torch.finfo(m.dtype).tiny
    m = m / m.abs().amax().clamp_min(tiny)  # squares of small numbers vanish
    m = m / m.norm().clamp_min(tiny)
    for _ in range(5):
        a = m @ m.mT
        m = 3.4445 * m + (-4.7750 * a + 2.0315 * (a @ a)) @ m
    return m.mT if x.shape[0] > x.shape[1] else m


def canonical_groups(params: Iterable[torch.Tensor]) -> list[dict[str, Any]]:
    """Groups of tensors in canonical layout, [in, out] and [kh, kw, in, out], by their number of axes.

    A tensor that is alone is no matrix: a function's x [batch, n] is no layer.
    """
    params, groups = list(params), {}
    for p in params:
        groups.setdefault(p.dim() if len(params) > 1 else 0, []).append(p)
    return [
        {"params": own, "matrix": ((axes - 1,), tuple(range(axes - 1))) if axes > 1 else False}
        for axes, own in groups.items()
    ]
