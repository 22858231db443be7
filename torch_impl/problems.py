"""Optimizees: a loss over one flat parameter vector, from the problem table or any ``nn.Module``."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from common.problems import PROBLEMS, Instance, Layer, Split, parameter_specs
from common.rng import derived_seed
from torch_impl.tensors import DTYPES, device_of, flatten, unflatten


class Task(Protocol):
    """What the inner loop needs of an optimizee.

    Attributes:
        names, shapes: of the parameter tensors, in the order they lie in the flat vector.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def initial(self) -> torch.Tensor:
        """The initial parameters, a flat vector [N]."""

    def loss(self, parameters: list[torch.Tensor], step: int) -> torch.Tensor:
        """The loss, 0-dim, of parameters in their own shapes on the batch of ``step``."""


def value_and_gradient(task: Task, theta: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (0-dim) and gradient [N] of a task at the flat vector ``theta`` on the batch of ``step``."""
    leaf = theta.detach().requires_grad_()
    with torch.enable_grad():
        loss = task.loss(unflatten(leaf, task.shapes), step)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


class ProblemTask:
    """One instance of a row of the problem table."""

    def __init__(
        self,
        instance: Instance,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        specs = parameter_specs(instance.problem)
        self.instance, self.dtype, self.device = instance, dtype, device
        self.names = tuple(spec.name for spec in specs)
        self.shapes = tuple(spec.shape for spec in specs)
        problem = instance.problem
        if problem.kind == "quadratic":
            self._data = tuple(torch.tensor(part, dtype=dtype, device=device) for part in instance.data())
        else:
            self._data = _images(problem.dataset, instance.split, instance.data_dir, dtype, str(device))

    def initial(self) -> torch.Tensor:
        """The initial parameters, a flat vector [N]."""
        return flatten(self.instance.initial_parameters(), self.dtype, self.device)

    def loss(self, parameters: list[torch.Tensor], step: int) -> torch.Tensor:
        """The loss, 0-dim, on the mini-batch of ``step`` (from 0)."""
        if self.instance.problem.kind == "quadratic":
            w, y = self._data
            residual = torch.einsum("bij,bj->bi", w, parameters[0]) - y
            return residual.square().sum(1).mean()
        images, labels = self._data
        rows = torch.from_numpy(self.instance.batch_indices(step)).to(images.device)
        return F.cross_entropy(self.logits(parameters, images[rows]), labels[rows])

    def logits(self, parameters: list[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Class scores [batch, classes] of images [batch, h, w, c]."""
        return forward(self.instance.problem.layers, parameters, images)

    def accuracy(self, theta: torch.Tensor) -> float:
        """Share of the split's images classified correctly; nan where there are no classes."""
        if self.instance.problem.kind != "classifier":
            return float("nan")
        images, labels = self._data
        with torch.no_grad():
            scores = self.logits(unflatten(theta, self.shapes), images)
            return float((scores.argmax(1) == labels).to(torch.float64).mean())


def table_task(
    config: Any, stream: str, number: int, split: Split = "meta_train", problem: str = ""
) -> ProblemTask:
    """Optimizee ``number`` of a stream of seeds, as a command's configuration describes it.

    Args:
        config: with ``seed, problem, batch_size, data_dir, dtype, device``.
        problem: instead of ``config.problem``.
    """
    seed = derived_seed(config.seed, stream, number)
    row = PROBLEMS[problem or config.problem]
    instance = Instance(row, seed, split, config.batch_size, config.data_dir)
    return ProblemTask(instance, DTYPES[config.dtype], device_of(config.device))


@functools.lru_cache(maxsize=8)
def _images(
    dataset: str, split: str, data_dir: str, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    from common import datasets

    images, labels = datasets.load(dataset, data_dir).split(split)
    return torch.tensor(images, dtype=dtype, device=device), torch.tensor(labels, device=device)


def forward(layers: tuple[Layer, ...], parameters: list[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Run the layers of the table on images [batch, h, w, c], parameters in canonical layout."""
    x, rest = images, iter(parameters)
    for layer in layers:
        if layer.kind == "flatten":
            x = x.flatten(1)
        elif layer.kind == "dense":
            w, b = next(rest), next(rest)
            x = torch.addmm(b, x, w)
        elif layer.kind == "relu":
            x = F.relu(x)
        elif layer.kind == "conv":
            w, b = next(rest), next(rest)
            nchw = F.conv2d(
                x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), b, stride=layer.stride, padding=layer.pad
            )
            x = nchw.permute(0, 2, 3, 1)
        elif layer.kind == "pool":
            x = F.max_pool2d(x.permute(0, 3, 1, 2), layer.size).permute(0, 2, 3, 1)
    return x


class ModuleTask:
    """Any ``nn.Module`` with a loss as an optimizee.

    Args:
        module: the model; its parameters' current values are the start. It is not changed, except
            that layers with buffers (batch norm) update them as in training.
        loss: ``loss(module_output, target)``, 0-dim.
        batches: the mini-batches, each ``(input, target)``, taken in turn and repeated.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Callable[[Any, Any], torch.Tensor],
        batches: Iterable[tuple[Any, Any]],
    ) -> None:
        self.module, self._loss, self._batches = module, loss, list(batches)
        if not self._batches:
            raise ValueError("batches: expected at least one (input, target), got none")
        parameters = dict(module.named_parameters())
        self.names = tuple(parameters)
        self.shapes = tuple(tuple(p.shape) for p in parameters.values())

    def initial(self) -> torch.Tensor:
        """The module's current parameters, a flat vector [N]."""
        return torch.cat([p.detach().reshape(-1) for p in self.module.parameters()])

    def loss(self, parameters: list[torch.Tensor], step: int) -> torch.Tensor:
        """The loss, 0-dim, on the mini-batch of ``step``, counted round."""
        inputs, target = self._batches[step % len(self._batches)]
        named = dict(zip(self.names, parameters, strict=True))
        return self._loss(torch.func.functional_call(self.module, named, (inputs,)), target)


def coordinate_table(shapes: Iterable[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """For every coordinate of the flat vector: number of its tensor, place within the tensor (i4 [N])."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    tensor = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    place = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    return tensor, place
