"""What a teacher's output goes through, tensor by tensor, on flat vectors (MATH.md section 3b)."""

from collections.abc import Sequence

import torch

from interchange.language.view import View, slices
from interchange.protocols import Network, Task, lanes_of
from torch_impl.networks.matrix import TENSOR


class Structure:
    """A tensor operator on a flat vector of lanes, each of which holds one tensor after another.

    Args:
        name: of the operator.
        views: of the tensors of a lane.
    """

    def __init__(self, name: str, views: tuple[View, ...], lanes: int = 1) -> None:
        self._act, self._views, self._lanes = TENSOR[name], views, lanes

    def __call__(self, y: torch.Tensor) -> torch.Tensor:
        """S(y) [N]."""
        y = y.unflatten(-1, (self._lanes, -1)) if self._lanes > 1 else y
        lead = y.shape[:-1]
        parts = (
            self._act(y[..., place].reshape(*lead, *view.split), view.axes).reshape(*lead, -1)
            for place, view in slices(self._views)
        )
        return torch.cat(list(parts), -1).flatten()

    def back(self, y: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """(dS/dy at y)^T c [N]."""
        leaf = y.detach().requires_grad_()
        with torch.enable_grad():
            acted = self(leaf)
        return torch.autograd.grad(acted, leaf, c)[0]


def structure_of(network: Network, task: Task) -> Structure | None:
    """A network's structure as it sees the tensors of a task, or of the lanes of ``BatchedTasks``.

    Raises:
        L2OError: the task does not say how its tensors are seen.
    """
    if not network.structure:
        return None
    return Structure(network.structure, *lanes_of(task, f"structure {network.structure}"))


def by_outputs(
    network: Network,
    task: Task,
    outs: Sequence[torch.Tensor],
    c: torch.Tensor,
    coordinates: torch.Tensor | None = None,
) -> torch.Tensor:
    """What c [T, N], of updates, is of outputs [T, n]: the same, or pulled back through the structure.

    Args:
        task: an optimizee, or ``BatchedTasks``.
        outs: of ``unroll.advance``.
        c: may be overwritten where there is a structure; without one it is of the coordinates already.
        coordinates: numbers of the n coordinates, all if None.
    """
    structure = structure_of(network, task)
    if structure is None:
        return c
    for s, y in enumerate(outs):
        c[s] = structure.back(y, c[s])
    return c if coordinates is None else c.index_select(1, coordinates)
