"""Optimizees of the problem table: a loss over one flat parameter vector."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.data import datasets
from common.data.datasets import Split
from common.run.config import OnProblem
from common.tables.problems import Instance, parameter_specs
from interchange.meta.tasks import table_instance, views_of
from interchange.protocols import Task
from tf_impl.problems import graphs
from tf_impl.problems.functions import function
from tf_impl.problems.layers import forward, stackable
from tf_impl.tensors import DTYPES, device_of, flatten, to_tensor, unflatten

_ACCURACY_BATCH = 500


def value_and_gradient(task: Task, theta: tf.Tensor, step: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Loss (0-dim) and gradient [N] of a task at the flat vector ``theta`` on the batch of ``step``.

    Of ``BatchedTasks`` the losses [lane].
    """
    if hasattr(task, "value_and_gradient"):
        return task.value_and_gradient(theta, step)
    with tf.GradientTape() as tape:
        tape.watch(theta)
        loss = task.loss(unflatten(theta, task.shapes), step)
    return loss, tf.convert_to_tensor(tape.gradient(loss, theta, unconnected_gradients="zero"))


class ProblemTask:
    """One instance of a row of the problem table.

    Args:
        start: initial values by parameter name (and ``buffers/...``) instead of the instance's own.

    Attributes:
        buffers: running mean and variance of every batch norm, updated by ``loss`` as in training.
        graph: the loss of parameters, a list, and the new buffers, called with ``given`` beside them.
    """

    def __init__(
        self,
        instance: Instance,
        dtype: tf.DType = tf.float32,
        device: str = "cpu",
        start: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        specs = parameter_specs(instance.problem)
        self.instance, self.dtype, self.device, self._start = instance, dtype, device, start
        self.names = tuple(spec.name for spec in specs)
        self.shapes = tuple(spec.shape for spec in specs)
        self.views = views_of(instance.problem)
        self.buffers: dict[str, tf.Tensor] = {}
        problem = instance.problem
        self.graph, self._slope = graphs.loss(problem, function), graphs.slope(problem, function)
        if problem.kind == "function":
            self._data = tuple(to_tensor(part, dtype, device) for part in instance.constants())
        else:
            self._data = _images(
                problem.dataset, problem.class_halves, instance.split, instance.data_dir, device
            )
            whole = instance.whole()
            spread = (whole.divisor, whole.offset, whole.spread)
            self._spread = [tf.constant(part, tf.float32) for part in spread]
        self.reset()

    def reset(self) -> None:
        """Batch norm's running values as at the start."""
        given = {} if self._start is None else self._start
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name.endswith("/gamma"):
                for part, value in (("mean", 0.0), ("var", 1.0)):
                    key = name.replace("gamma", part)
                    values = given.get(f"buffers/{key}", np.full(shape, value))
                    self.buffers[key] = to_tensor(values, self.dtype, self.device)

    def initial(self) -> tf.Tensor:
        """The initial parameters, a flat vector [N]; batch norm's running values start anew."""
        self.reset()
        if self._start is None:
            values = self.instance.initial_parameters()
        else:
            values = self.instance.scaled({name: self._start[name] for name in self.names})
        return flatten(values, self.dtype, self.device)

    def loss(self, parameters: list[tf.Tensor], step: int) -> tf.Tensor:
        """The loss, 0-dim, on the mini-batch of ``step`` (from 0)."""
        loss, buffers = self.graph(parameters, *self.given(step))
        self.keep(buffers)
        return loss

    def keep(self, buffers: Mapping[str, tf.Tensor]) -> None:
        """Running values of batch norm as they are after a step."""
        self.buffers.update(buffers)

    def value_and_gradient(self, theta: tf.Tensor, step: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Loss (0-dim) and gradient [N] at the flat vector ``theta`` on the batch of ``step``: one graph."""
        loss, gradient, buffers = self._slope(tf.convert_to_tensor(theta), *self.given(step))
        self.buffers.update(buffers)
        return loss, gradient

    def curvature(self, theta: tf.Tensor, vector: tf.Tensor, step: int) -> tf.Tensor:
        """The Hessian [N, N] of the loss at ``theta`` on the batch of ``step``, times a vector [N]."""
        return graphs.curvature(self.instance.problem, function)(theta, vector, *self.given(step))

    def given(self, step: int) -> tuple[Any, ...]:
        """What the graphs of the problem (``graphs``) need beside parameters, for the batch of ``step``."""
        if self.instance.problem.kind == "function":
            noise = self.instance.noise(step)
            if noise is None:
                return self._data
            a, b, c = self._data
            return a, b + to_tensor(noise, self.dtype, self.device), c
        if self.instance.problem.varied:  # a data set of the batch alone
            images, labels = map(tf.constant, self.instance.varied(step))
            return self.buffers, images, labels, tf.range(labels.shape[0], dtype=tf.int64), *self._spread
        return self.buffers, *self._data, tf.constant(self.instance.batch_indices(step)), *self._spread

    @staticmethod
    def stacked(
        tasks: "Sequence[ProblemTask]",
    ) -> "Callable[[tf.Tensor, int], tuple[tf.Tensor, tf.Tensor]] | None":
        """Losses [lane] and gradients of parameters [lane, N] of tasks of one problem, all at once.

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
            one_each = tasks

        def losses(theta: tf.Tensor, step: int) -> tuple[tf.Tensor, tf.Tensor]:
            rows = tf.constant(np.stack([task.instance.batch_indices(step) for task in one_each]))
            return first._slope(theta, {}, *first._data, rows, *first._spread)[:2]

        return losses

    def _seen(self, images: tf.Tensor) -> tf.Tensor:
        return graphs.normalised(images, *self._spread, self.dtype)

    def logits(self, parameters: list[tf.Tensor], images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Class scores [batch, classes] of normalised images [batch, h, w, c].

        Batch norm uses the batch's own statistics in ``training``, else the running ones.
        """
        named, row = dict(zip(self.names, parameters, strict=True)), self.instance.problem
        return forward(row.layers, named, images, self.buffers, training, training and row.bfloat16)

    def accuracy(self, theta: tf.Tensor) -> float:
        """Share of the split's images classified correctly; nan where there are no classes."""
        return self.scores(theta)[1]

    def scores(self, theta: tf.Tensor) -> tuple[float, float]:
        """Mean loss over the split's images, and the share classified correctly; nan where there are none.

        There are no classes where the images are the target.
        """
        problem = self.instance.problem
        if problem.kind != "classifier":
            return float("nan"), float("nan")
        images, labels = self._data
        parameters, total, right = unflatten(theta, self.shapes), 0.0, 0
        for low in range(0, len(labels), _ACCURACY_BATCH):
            part = slice(low, low + _ACCURACY_BATCH)
            seen = self._seen(images[part])
            scores = self.logits(parameters, seen)
            total += float(tf.reduce_sum(graphs.each(problem, scores, seen, labels[part])))
            right += int(tf.reduce_sum(tf.cast(tf.argmax(scores, 1) == labels[part], tf.int64)))
        share = right / len(labels) if problem.target == "labels" else math.nan
        return total / len(labels), share

    def test_accuracy(self, theta: tf.Tensor) -> float:
        """``accuracy`` on the test images that belong to the split; nan where there are none."""
        return self.test_scores(theta)[1]

    def test_scores(self, theta: tf.Tensor) -> tuple[float, float]:
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
) -> tuple[tf.Tensor, tf.Tensor]:
    images, labels = datasets.load(dataset, data_dir).split(split, class_halves)
    with tf.device(device):
        return tf.constant(images), tf.constant(labels)
