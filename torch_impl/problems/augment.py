"""Variations of an optimizee during meta-training that make a teacher generalise (Lv et al. 2017)."""

import numpy as np
import torch

from common.rng import rng
from interchange.language.view import vector
from interchange.protocols import Task
from torch_impl.tensors import to_tensor, unflatten

_CONVEX_SIZE, _CONVEX_SCALING, _CONVEX_LARGEST = 20, 1.0, 10.0


class RandomScaling:
    """Another task in rescaled coordinates: f(c * theta) from theta_0 / c, c = exp(U(-r, r)) per coordinate.

    Args:
        r: half the width of the distribution of log c.
        seed, number: of the draw.
    """

    def __init__(self, task: Task, r: float, seed: int, number: int) -> None:
        self.task, self.names, self.shapes = task, task.names, task.shapes
        self.views = getattr(task, "views", ())
        count = sum(int(np.prod(shape)) for shape in task.shapes)
        self._factors = np.exp(rng(seed, "random_scaling", number).uniform(-r, r, count))

    def initial(self) -> torch.Tensor:
        """The initial parameters, a flat vector [N]."""
        theta = self.task.initial()
        return theta / to_tensor(self._factors, theta.dtype, theta.device)

    def loss(self, parameters: list[torch.Tensor], step: int) -> torch.Tensor:
        """The loss, 0-dim, of the parameters scaled back."""
        like = parameters[0]
        factors = unflatten(to_tensor(self._factors, like.dtype, like.device), self.shapes)
        return self.task.loss([p * c for p, c in zip(parameters, factors, strict=True)], step)


class ConvexTerm:
    """Another task plus mean(clip((c x - a)^2, 0, 10)) of 20 coordinates of its own from x_0 = 0.

    a ~ U(-1, 1) and c = exp(U(-1, 1)) are drawn with ``seed`` and ``number``.
    """

    def __init__(self, task: Task, seed: int, number: int) -> None:
        self.task = task
        self.names, self.shapes = (*task.names, "convex/x"), (*task.shapes, (_CONVEX_SIZE,))
        self.views = (*getattr(task, "views", ()), vector((_CONVEX_SIZE,)))
        generator = rng(seed, "convex", number)
        self._a = generator.uniform(-1.0, 1.0, _CONVEX_SIZE)
        self._factors = np.exp(generator.uniform(-_CONVEX_SCALING, _CONVEX_SCALING, _CONVEX_SIZE))

    def initial(self) -> torch.Tensor:
        """The initial parameters of the task, then 20 zeros, a flat vector [N + 20]."""
        theta = self.task.initial()
        return torch.cat([theta, theta.new_zeros(_CONVEX_SIZE)])

    def loss(self, parameters: list[torch.Tensor], step: int) -> torch.Tensor:
        """The loss, 0-dim, of the task plus the convex term."""
        *rest, x = parameters
        a, factors = (to_tensor(values, x.dtype, x.device) for values in (self._a, self._factors))
        term = (factors * x - a).square().clamp(0.0, _CONVEX_LARGEST).mean()
        return self.task.loss(rest, step) + term
