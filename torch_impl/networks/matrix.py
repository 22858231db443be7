"""Tensor operators in torch, one per tensor row of interchange.language.operators: they see a matrix view.

``op_<name>(x, axes)`` is as in ``interchange.language.matrix``, whose axes are ``View.axes``; leading axes of
steps or lanes are batches. Derivatives under autograd are those of the iteration, 0 at 0, and even among
those that share a maximum. As in ``operators``, the emitter copies these bodies into standalone files.
"""

from collections.abc import Callable

import torch

from torch_impl.networks.operators import as_tensor

Tensor = torch.Tensor


def _over(reduce: "Callable[..., Tensor]", x: Tensor, axes: tuple) -> Tensor:
    """Of a plain number, and along no axis, x itself: torch would take no axis for all of them."""
    x = as_tensor(x)
    return reduce(x, dim=axes, keepdim=True) if axes and x.dim() else x


def op_mean(x: Tensor, axes: tuple) -> Tensor:
    return _over(torch.mean, x, axes[0] + axes[1] + axes[2])


def op_row_mean(x: Tensor, axes: tuple) -> Tensor:
    return _over(torch.mean, x, axes[1])


def op_col_mean(x: Tensor, axes: tuple) -> Tensor:
    return _over(torch.mean, x, axes[0])


def op_row_max(x: Tensor, axes: tuple) -> Tensor:
    return _over(torch.amax, x, axes[1])


def op_col_max(x: Tensor, axes: tuple) -> Tensor:
    return _over(torch.amax, x, axes[0])


def matrices(x: Tensor, axes: tuple) -> tuple[Tensor, list[int], tuple[int, ...]]:
    """x as [..., n, m], one side rows and the other columns, and what ``whole`` needs.

    The smaller side comes first.
    """
    rows, columns, parts = axes
    lead = x.dim() - len(rows + columns + parts)
    sizes = []
    for side in (rows, columns):
        size = 1
        for axis in side:
            size *= x.shape[axis]
        sizes.append(size)
    sides = (rows, columns) if sizes[0] <= sizes[1] else (columns, rows)
    order = [*range(lead)] + [x.dim() + axis for side in (parts, *sides) for axis in side]
    moved = x.permute(order)
    kept = moved.shape[: lead + len(parts)]
    return moved.reshape(*kept, min(sizes), max(sizes)), order, moved.shape


def whole(m: Tensor, order: list[int], shape: tuple[int, ...]) -> Tensor:
    """The inverse of ``matrices``."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return m.reshape(shape).permute(back)


def scaled(m: Tensor) -> tuple[Tensor, Tensor]:
    """The largest size in each matrix, and the matrix over it; nothing is 0/0 where that is 0."""
    size = torch.linalg.vector_norm(m.detach(), torch.inf, (-2, -1), keepdim=True)
    return size, m / torch.where(size == 0, 1.0, size)


def norm(m: Tensor) -> Tensor:
    """Of zeros 0, with derivatives that are 0."""
    return torch.linalg.vector_norm(m, 2, (-2, -1), keepdim=True)


def newton_schulz(m: Tensor) -> Tensor:
    """Five steps towards the polar factor from m / norm(m) (Jordan et al. 2024), on the smaller side.

    Of one row the result is m / norm(m) itself, which the iteration would only blur. Of zeros it is zeros,
    with derivatives that are 0. Autocast would multiply in 16 bits.
    """
    length = norm(m)
    m = m / torch.where(length == 0, torch.inf, length)
    if m.shape[-2] == 1:
        return m
    with torch.autocast(m.device.type, enabled=False):
        for _ in range(5):
            a = m @ m.mT
            if m.dim() == 2:
                b = torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315)
                m = torch.addmm(m, b, m, beta=3.4445)
            else:
                m = 3.4445 * m + (-4.7750 * a + 2.0315 * (a @ a)) @ m
    return m


def op_polar(x: Tensor, axes: tuple) -> Tensor:
    m, order, shape = matrices(x, axes)
    return whole(newton_schulz(scaled(m)[1]), order, shape)


def op_orth(x: Tensor, axes: tuple) -> Tensor:
    m, order, shape = matrices(x, axes)
    if m.shape[-2] == 1:
        return x
    size, m = scaled(m)
    polar = newton_schulz(m)
    length = norm(polar)
    return whole(polar * (size * (norm(m) / torch.where(length == 0, 1.0, length))), order, shape)


TENSOR: dict[str, Callable[..., Tensor]] = {
    "mean": op_mean,
    "row_mean": op_row_mean,
    "col_mean": op_col_mean,
    "row_max": op_row_max,
    "col_max": op_col_max,
    "polar": op_polar,
    "orth": op_orth,
}
