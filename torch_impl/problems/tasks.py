"""Optimizees of the problem table: a loss over one flat parameter vector."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from common.data import datasets
from common.data.datasets import Split
from common.run.config import OnProblem
from common.tables.problems import Instance, Problem, parameter_specs
from interchange.meta.tasks import table_instance, views_of
from interchange.protocols import Task
from torch_impl.problems.functions import function
from torch_impl.problems.layers import forward, stackable
from torch_impl.tensors import DTYPES, device_of, flatten, to_tensor, unflatten

_ACCURACY_BATCH = 500


def value_and_gradient(task: Task, theta: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (0-dim) and gradient [N] of a task at the flat vector ``theta`` on the batch of ``step``.

    Of ``BatchedTasks`` the losses [lane].
    """
    if hasattr(task, "value_and_gradient"):
        return task.value_and_gradient(theta, step)
    leaf = theta.detach().requires_grad_()
    with torch.enable_grad():
        loss = task.loss(unflatten(leaf, task.shapes), step)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


class ProblemTask:
    """One instance of a row of the problem table.

    Args:
        start: initial values by parameter name (and ``buffers/...``) instead of the instance's own.

    Attributes:
        buffers: running mean and variance of every batch norm, updated by ``loss`` as in training.
    """

    def __init__(
        self,
        instance: Instance,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        start: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        specs = parameter_specs(instance.problem)
        self.instance, self.dtype, self.device, self._start = instance, dtype, device, start
        self.names = tuple(spec.name for spec in specs)
        self.shapes = tuple(spec.shape for spec in specs)
        self.views = views_of(instance.problem)
        self.buffers: dict[str, torch.Tensor] = {}
        problem = instance.problem
        if problem.kind == "function":
            self._data = tuple(to_tensor(part, dtype, device) for part in instance.constants())
        else:
            self._data = _images(
                problem.dataset, problem.class_halves, instance.split, instance.data_dir, str(device)
            )
            whole = instance.whole()
            spread = (whole.divisor, whole.offset, whole.spread)
            self._spread = [torch.tensor(part, dtype=torch.float32, device=device) for part in spread]
        self.reset()

    @property
    def work(self) -> float:
        """Multiplications of a batch, about; inf for convolutions, which depends on the images' size."""
        problem = self.instance.problem
        if problem.kind == "classifier" and not stackable(problem.layers):
            return math.inf
        batch = self.instance.batch_size or problem.batch_size
        return batch * sum(math.prod(shape) for shape in self.shapes)

    def reset(self) -> None:
        """Batch norm's running values as at the start."""
        given = {} if self._start is None else self._start
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name.endswith("/gamma"):
                for part, value in (("mean", 0.0), ("var", 1.0)):
                    key = name.replace("gamma", part)
                    values = given.get(f"buffers/{key}", np.full(shape, value))
                    self.buffers[key] = to_tensor(values, self.dtype, self.device)

    def initial(self) -> torch.Tensor:
        """The initial parameters, a flat vector [N]; batch norm's running values start anew."""
        self.reset()
        if self._start is None:
            values = self.instance.initial_parameters()
        else:
            values = self.instance.scaled({name: self._start[name] for name in self.names})
        return flatten(values, self.dtype, self.device)

    def loss(self, parameters: list[torch.Tensor], step: int) -> torch.Tensor:
        """The loss, 0-dim, on the mini-batch of ``step`` (from 0)."""
        problem = self.instance.problem
        if problem.kind == "function":
            return function(problem, parameters, *self._constants(step))
        images, labels = self._data
        if problem.varied:
            images, labels = (torch.from_numpy(a).to(images.device) for a in self.instance.varied(step))
        else:
            rows = torch.from_numpy(self.instance.batch_indices(step)).to(images.device)
            images, labels = images[rows], labels[rows]
        seen = self._seen(images)
        return _each(problem, self.logits(parameters, seen, True), seen, labels, problem.smoothing).mean()

    def curvature(self, theta: torch.Tensor, vector: torch.Tensor, step: int) -> torch.Tensor:
        """The Hessian [N, N] of the loss at ``theta`` on the batch of ``step``, times a vector [N]."""
        leaf = theta.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.loss(unflatten(leaf, self.shapes), step)
            # Twice backwards took less than forwards through the backward pass, on networks of all kinds.
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
            return torch.autograd.grad(gradient, leaf, vector, materialize_grads=True)[0]

    @staticmethod
    def stacked(tasks: "Sequence[ProblemTask]") -> "Callable[[torch.Tensor, int], torch.Tensor] | None":
        """Losses [lane] of parameters [lane, N] of tasks of one problem, all at once.

        None where they are not: only networks of dense layers are.
        """
        problem, first = tasks[0].instance.problem, tasks[0]
        if (
            problem.kind != "classifier"
            or problem.target != "labels"
            or not stackable(problem.layers)
            or problem.varied
        ):
            return None
        # The same one several times in a row, as often as every other, gets its batch once.
        row = next((k for k, task in enumerate(tasks) if task is not first), len(tasks))
        one_each = tasks[::row]
        if len(tasks) % row or any(task is not one_each[k // row] for k, task in enumerate(tasks)):
            row, one_each = 1, tasks

        def losses(theta: torch.Tensor, step: int) -> torch.Tensor:
            images, labels = first._data
            rows = torch.from_numpy(np.stack([task.instance.batch_indices(step) for task in one_each]))
            seen, classes = first._seen(images[rows]), labels[rows].repeat_interleave(row, 0)
            sizes = [math.prod(shape) for shape in first.shapes]
            parts = zip(first.names, first.shapes, theta.split(sizes, 1), strict=True)
            named = {name: part.reshape(len(tasks), *shape) for name, shape, part in parts}
            scores = forward(problem.layers, named, seen)
            each = _each(problem, scores.flatten(0, 1), seen, classes.flatten(), problem.smoothing)
            return each.view(classes.shape).mean(1)

        return losses

    def _constants(self, step: int) -> tuple[torch.Tensor, ...]:
        noise = self.instance.noise(step)
        if noise is None:
            return self._data
        a, b, c = self._data
        return a, b + to_tensor(noise, self.dtype, self.device), c

    def _seen(self, images: torch.Tensor) -> torch.Tensor:
        divisor, offset, spread = self._spread
        return (images.float() / divisor).sub_(offset).div_(spread).to(self.dtype)

    def logits(
        self, parameters: list[torch.Tensor], images: torch.Tensor, training: bool = False
    ) -> torch.Tensor:
        """Class scores [batch, classes] of normalised images [batch, h, w, c].

        Batch norm uses the batch's own statistics in ``training``, else the running ones.
        """
        named, row = dict(zip(self.names, parameters, strict=True)), self.instance.problem
        return forward(row.layers, named, images, self.buffers, training, training and row.bfloat16)

    def accuracy(self, theta: torch.Tensor) -> float:
        """Share of the split's images classified correctly; nan where there are no classes."""
        return self.scores(theta)[1]

    def scores(self, theta: torch.Tensor) -> tuple[float, float]:
        """Mean loss over the split's images, and the share classified correctly; nan where there are none.

        There are no classes where the images are the target.
        """
        problem = self.instance.problem
        if problem.kind != "classifier":
            return float("nan"), float("nan")
        images, labels = self._data
        parameters, total, right = unflatten(theta, self.shapes), 0.0, 0
        with torch.no_grad():
            for low in range(0, len(labels), _ACCURACY_BATCH):
                part = slice(low, low + _ACCURACY_BATCH)
                seen = self._seen(images[part])
                scores = self.logits(parameters, seen)
                total += float(_each(problem, scores, seen, labels[part]).sum())
                right += int((scores.argmax(1) == labels[part]).sum())
        share = right / len(labels) if problem.target == "labels" else math.nan
        return total / len(labels), share

    def test_accuracy(self, theta: torch.Tensor) -> float:
        """``accuracy`` on the test images that belong to the split; nan where there are none."""
        return self.test_scores(theta)[1]

    def test_scores(self, theta: torch.Tensor) -> tuple[float, float]:
        """``scores`` on the test images that belong to the split; nan where there are none."""
        is_function = self.instance.problem.kind == "function"
        return (float("nan"), float("nan")) if is_function else self.on_test().scores(theta)

    def on_test(self) -> "ProblemTask":
        """The same network, batch norm's running values too, on the test images that belong to its split."""
        instance = self.instance
        first = instance.problem.class_halves and instance.split in ("meta_train", "test_a")
        other = dataclasses.replace(instance, split="test_a" if first else "test")
        task = ProblemTask(other, self.dtype, self.device)
        task.buffers = self.buffers
        return task


def _each(
    problem: Problem, scores: torch.Tensor, seen: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """The loss [batch] of every image: cross-entropy, or mean squares where images are the target."""
    if problem.target == "labels":
        return F.cross_entropy(scores, labels, reduction="none", label_smoothing=smoothing)
    return (scores - seen.flatten(1)).square().mean(1)


def table_task(
    config: OnProblem, stream: str, number: int, split: Split = "meta_train", problem: str = ""
) -> ProblemTask:
    """Optimizee ``number`` of a stream of seeds, as a command's configuration describes it.

    Args:
        config: with ``seed, problem, dataset, batch_size, data_dir, start, dtype, device``.
        problem: instead of ``config.problem``.
    """
    instance, start = table_instance(config, stream, number, split, problem)
    return ProblemTask(instance, DTYPES[config.dtype], device_of(config.device), start)


@functools.lru_cache(maxsize=8)
def _images(
    dataset: str, class_halves: bool, split: Split, data_dir: str, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = datasets.load(dataset, data_dir).split(split, class_halves)
    return torch.tensor(images, device=device), torch.tensor(labels, device=device)
