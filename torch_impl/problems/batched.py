"""Several optimizees side by side as one: their coordinates one after the other in a flat vector."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from interchange.protocols import State, Task
from torch_impl.problems.tasks import ProblemTask, value_and_gradient


class BatchedTasks:
    """Optimizees in lanes; what each does is what it does alone.

    Args:
        tasks: of any problems; those of one problem with dense layers only are computed at once.

    Attributes:
        sizes: coordinates of each.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)
        self.sizes = [sum(torch.Size(shape).numel() for shape in task.shapes) for task in tasks]
        self.work = sum(getattr(task, "work", math.inf) for task in tasks)
        kinds = set(map(kind, tasks))
        self._stacked = ProblemTask.stacked(tasks) if len(kinds) == 1 and None not in kinds else None

    def value_and_gradient(self, theta: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses [lane] and gradient [N] of all at the flat vector ``theta``, each on its own batch."""
        if self._stacked is None:
            parts = zip(self.tasks, theta.split(self.sizes), strict=True)
            losses, gradients = zip(*(value_and_gradient(*part, step) for part in parts), strict=True)
            return torch.stack(losses), torch.cat(gradients)
        leaf = theta.detach().requires_grad_()
        with torch.enable_grad():
            losses = self._stacked(leaf.view(len(self.tasks), -1), step)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), gradient


def kind(task: Task) -> Any:
    """What optimizees have in common that are computed at once; None of one that never is."""
    if type(task) is not ProblemTask or ProblemTask.stacked([task]) is None:
        return None
    return task.instance.problem, task.instance.split, task.instance.data_dir


def joined(positions: Sequence[Any], apart: bool = False) -> Any:
    """Positions at one step as a single one, of ``BatchedTasks``.

    Args:
        apart: the network's state gets a first axis for the lanes, as networks with ``batched`` have it.
    """
    first = positions[0]
    if first.loss is None:
        given = (None, None)
    else:
        given = torch.stack([at.loss for at in positions]), torch.cat([at.gradient for at in positions])

    def together(group: str, stacked: bool = False) -> tuple[torch.Tensor, ...]:
        arrays = zip(*(getattr(at.state, group) for at in positions), strict=True)
        return tuple(torch.stack(lanes) if stacked else torch.cat(lanes, -1) for lanes in arrays)

    theta = torch.cat([at.theta for at in positions])
    return dataclasses.replace(
        first,
        theta=theta,
        state=State(first.state.t, together("features"), together("network", apart)),
        loss=given[0],
        gradient=given[1],
    )


def divided(position: Any, sizes: Sequence[int], apart: bool = False) -> list[Any]:
    """The inverse of ``joined``: the position of every lane; arrays are views."""
    thetas, gradients = position.theta.split(sizes), position.gradient.split(sizes)
    groups = [
        zip(*(list(a) if stacked else a.split(sizes, -1) for a in arrays), strict=True)
        if arrays
        else [()] * len(sizes)
        for arrays, stacked in ((position.state.features, False), (position.state.network, apart))
    ]
    lanes = zip(thetas, position.loss, gradients, *groups, strict=True)
    return [
        dataclasses.replace(
            position, theta=theta, state=State(position.state.t, *parts), loss=loss, gradient=gradient
        )
        for theta, loss, gradient, *parts in lanes
    ]
