"""Parameter groups of a model: which of its tensors are matrices, and which of them decay."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from common.errors import L2OError
from interchange.language.view import View
from torch_impl.optimizers.decay import SPARED

Option = bool | tuple[Any, ...]  # a group's ``matrix``

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.CrossMapLRN2d,
)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def param_groups(model: nn.Module, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """Groups for any optimizer, as in ``SymbolicOptimizer(param_groups(model, weight_decay=0.1), rule)``.

    Their option ``matrix`` says how a rule that sees tensors sees them. Rows are a layer's outputs: axis 0 of
    a linear layer and of a convolution, axis 1 of a transposed one. A grouped convolution is one matrix for
    every group, packed queries, keys and values are three. No matrices are embeddings, depthwise kernels,
    biases, parameters of norms, and what has one row or one column. Parameters of other modules are seen as
    without groups, rows along axis 0.

    Biases, parameters of norms, and what has fewer than two axes do not decay; embeddings do. A shared
    parameter comes once: it is no matrix, or does not decay, if one of its owners says so. Frozen parameters
    are left out.

    Args:
        weight_decay: of all that decay; None for the optimizer's own.
    """
    matrices: dict[nn.Parameter, Option] = {}
    decaying: dict[nn.Parameter, bool] = {}
    for module in model.modules():
        for name, p in _own(module):
            if not p.requires_grad:
                continue
            option = matrix_of(module, name, p)
            matrices[p] = option and matrices.get(p, option)
            decaying[p] = decaying.get(p, True) and _decays(module, name, p)
    groups: dict[tuple[Option, bool], dict[str, Any]] = {}
    for p, option in matrices.items():
        key = option, decaying[p]
        if key not in groups:
            decay = weight_decay if decaying[p] else 0.0
            groups[key] = {"params": [], "matrix": option} | (
                {} if decay is None else {"weight_decay": decay}
            )
        groups[key]["params"].append(p)
    return list(groups.values())


def seen_as(
    views: Sequence[View] | None, params: Iterable[Any], decay_vectors: bool = True
) -> list[dict[str, Any]]:
    """Groups of parameters, named or not, seen alike, by their views if there are any, and decaying alike.

    Args:
        decay_vectors: without, weight decay is of tensors of two axes or more alone.
    """
    params = list(params)
    groups: dict[tuple[Option, bool], dict[str, Any]] = {}
    for p, view in zip(params, [None] * len(params) if views is None else views, strict=True):
        tensor = p[1] if _is_named(p) else p
        key = bool(view and view.matrix) and view.axes[:2], decay_vectors or tensor.dim() > 1
        if key not in groups:
            seen = {} if views is None else {"matrix": key[0]}
            groups[key] = {"params": [], **seen} | ({} if key[1] else {"weight_decay": 0.0, SPARED: True})
        groups[key]["params"].append(p)
    return list(groups.values())


def listed(group: dict[str, Any]) -> list[Tensor]:
    """The tensors of a new group, named or not; ``params`` that are an iterator become a list.

    What else torch refuses is left to it.
    """
    params = group.get("params", ())
    if not isinstance(params, (Tensor, set)):
        params = group["params"] = list(params)
    rows = [params] if isinstance(params, Tensor) else params
    rows = [row[1] if _is_named(row) else row for row in rows]
    return [row for row in rows if isinstance(row, Tensor)]


def by_step_size(
    group: dict[str, Any], sizes: Mapping[str, float], lr: float | Tensor
) -> list[dict[str, Any]]:
    """A new group as groups of one step size each, which is in their learning rate; as it is without any.

    Args:
        sizes: by parameter name.
        lr: of the group.

    Raises:
        L2OError: a parameter has no name, or no step size.
    """
    if not sizes:
        return [group]
    parts: dict[float, list[tuple[str, Tensor]]] = {}
    known = f"{', '.join(list(sizes)[:6])}{', ...' * (len(sizes) > 6)}"
    for row in group["params"]:
        if not _is_named(row):
            raise L2OError(
                "params: expected named parameters, such as model.named_parameters(), because there are step "
                f"sizes for {known}; give them, or dataclasses.replace(rule, step_sizes={{}})"
            )
        if row[0] not in sizes:
            raise L2OError(
                f"params: expected the names that there are step sizes for ({known}), got {row[0]!r}; rename "
                "them in step_sizes, or tune on this model"
            )
        parts.setdefault(sizes[row[0]], []).append(row)
    return [group | {"params": part, "lr": lr * size} for size, part in parts.items()]


def _is_named(row: Any) -> bool:
    return isinstance(row, tuple) and len(row) == 2


def _own(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's own parameters; those that make up a parametrized one are its, not the parametrization's."""
    yield from module.named_parameters(recurse=False)
    for name, parts in getattr(module, "parametrizations", {}).items():
        yield from ((name, p) for p in parts.parameters())


def matrix_of(module: nn.Module, name: str, p: nn.Parameter) -> Option:
    """The option ``matrix`` of a parameter of this name in its module."""
    if p.dim() < 2 or p.is_complex() or _is_bias(name) or isinstance(module, (*_NORMS, *_EMBEDDINGS)):
        return False
    rows, parts = 0, 1
    if isinstance(module, nn.modules.conv._ConvNd):
        rows, parts = int(module.transposed), module.groups
        if parts == module.in_channels > 1:
            return False
    elif isinstance(module, nn.MultiheadAttention) and name == "in_proj_weight":
        parts = 3
    if parts > 1 and p.shape[0] % parts:
        parts = 1  # a part of a parametrization
    columns = tuple(axis for axis in range(p.dim()) if axis != rows)
    sizes = [size // parts if axis == 0 else size for axis, size in enumerate(p.shape)]
    if min(sizes[rows], math.prod(sizes) // max(1, sizes[rows])) < 2:
        return False
    if rows == 0 and parts == 1:
        return True
    return ((rows,), columns) if parts == 1 else ((rows,), columns, parts, 0)


def _decays(module: nn.Module, name: str, p: nn.Parameter) -> bool:
    return p.dim() > 1 and not _is_bias(name) and not isinstance(module, _NORMS)


def _is_bias(name: str) -> bool:
    return name.startswith("bias") or name.endswith("bias")
