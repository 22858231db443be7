"""Plain training with one graph a step, which is traced once and then used by rollout after rollout.

A rollout differs from the next in its start, its data and its learning rate. These are values of variables
and arguments of the graph, so that only another optimizer or another problem needs another graph.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.run.storage import canonical_json
from common.training import PLAIN, Training
from interchange.files.weights import Teacher
from tf_impl.optimizers.optimizers import NonFiniteError
from tf_impl.problems.direct import Direct
from tf_impl.problems.tasks import ProblemTask
from tf_impl.sources import Source
from tf_impl.tensors import to_numpy, to_tensor, unflatten

_MOST, _NUMBERS = 64, 2**25  # loops that are kept, and numbers in their variables, 128 MiB in float32

_kept: dict[Any, "Loop"] = {}  # the last one used at the end


class Loop:
    """An optimizer, the parameters it trains, and loss, gradient and update on a batch as one graph.

    ``begin`` comes before the first step of a rollout.

    Attributes:
        size: numbers in all variables.
        graph: of a step, called with ``ProblemTask.given``.
    """

    def __init__(self, source: Source, task: ProblemTask, lr: float, training: Training) -> None:
        with tf.device(task.device):
            tensors = zip(task.names, task.shapes, strict=True)
            self.parameters = [tf.Variable(tf.zeros(shape, task.dtype), name=name) for name, shape in tensors]
            self._last = tf.Variable(math.nan, dtype=task.dtype)
            # Of loss and gradients of a step's mini-batches but its last.
            summed = [self._last, *self.parameters] if training.accumulate > 1 else []
            self._sums = [tf.Variable(tf.zeros(v.shape, v.dtype)) for v in summed]
            averaged = self.parameters if training.average else []
            self._averages = [tf.Variable(tf.zeros(p.shape, p.dtype)) for p in averaged]
            self._share = tf.Variable(1.0, dtype=task.dtype)  # of the parameters in their average
        self.optimizer = source.optimizer(self.parameters, lr, task.views, training)
        variables = (*self.parameters, *self._sums, *self._averages, *self.optimizer.variables)
        self.size, self._training = sum(math.prod(v.shape) for v in variables), training
        self._loss = task.graph
        self.graph, self._more = Direct(self._one_step), Direct(self._one_batch)

    def begin(self, task: ProblemTask, lr: float) -> None:
        """The task's start, and an optimizer that has not taken a step."""
        for parameter, value in zip(self.parameters, unflatten(task.initial(), task.shapes), strict=True):
            parameter.assign(value)
        beside = (*self._sums, *self._averages, *self.optimizer.variables)
        for variable in beside:  # all that an optimizer of this package has begins at 0
            variable.assign(tf.zeros(variable.shape, variable.dtype))
        self.optimizer.learning_rate = lr
        self._share.assign(1.0)

    @property
    def trained(self) -> list[tf.Variable]:
        """The parameters, or their moving averages where they are asked for."""
        return self._averages or self.parameters

    def standing(self, task: ProblemTask) -> dict[str, np.ndarray]:
        """What a run needs to go on: parameters, averages, running values, and the optimizer's state."""
        found = {f"variables/{k}": v for k, v in enumerate(self._all())}
        return {k: to_numpy(v) for k, v in found.items()} | {
            f"buffers/{name}": to_numpy(b) for name, b in task.buffers.items()
        }

    def put_back(self, standing: Mapping[str, np.ndarray], task: ProblemTask) -> None:
        """The inverse of ``standing``, of a run at its beginning."""
        rate = float(self.optimizer.learning_rate)
        for k, variable in enumerate(self._all()):
            variable.assign(standing[f"variables/{k}"])
        self.optimizer.learning_rate = rate  # where its schedule begins
        task.keep(
            {name: to_tensor(standing[f"buffers/{name}"], task.dtype, task.device) for name in task.buffers}
        )

    def _all(self) -> list[tf.Variable]:
        return [*self.parameters, *self._averages, self._share, *self.optimizer.variables]

    def step(self, task: ProblemTask, number: int) -> tuple[float, bool]:
        """Take a step; the loss before it, and whether its update was one to go on from."""
        count = self._training.accumulate
        try:
            for batch in range(count * number, count * (number + 1) - 1):
                task.keep(self._more(*task.given(batch))[1])
            loss, buffers = self.graph(*task.given(count * (number + 1) - 1))
        except (NonFiniteError, tf.errors.InvalidArgumentError) as error:  # the latter from within a graph
            if "not finite" not in str(error):
                raise
            return float(self._last), False
        task.keep(buffers)
        return float(loss), True

    def _slopes(self, *given: Any) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Loss and gradients of a mini-batch, in one list, and batch norm's running values after it."""
        values = [tf.convert_to_tensor(p) for p in self.parameters]
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss, buffers = self._loss(values, *given)
        return [loss, *tape.gradient(loss, values, unconnected_gradients="zero")], buffers

    def _one_batch(self, *given: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        found, buffers = self._slopes(*given)
        for total, value in zip(self._sums, found, strict=True):
            total.assign_add(value)
        return found[0], buffers

    def _one_step(self, *given: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        found, buffers = self._slopes(*given)
        if self._sums:
            found = [(a + b) / self._training.accumulate for a, b in zip(self._sums, found, strict=True)]
            for total in self._sums:
                total.assign(tf.zeros_like(total))
        loss, *gradients = found
        if self._training.clip_norm:
            gradients = clipped(gradients, self._training.clip_norm)
        with tf.control_dependencies([self._last.assign(loss)]):  # known even where the update fails
            self.optimizer.apply(gradients, self.parameters)
        if self._averages:  # as torch.optim.swa_utils has it, the first step's parameters are the first value
            for kept, p in zip(self._averages, self.parameters, strict=True):
                kept.assign_add(self._share * (p - kept))
            self._share.assign(1.0 - self._training.average)
        return loss, buffers


def clipped(gradients: Sequence[tf.Tensor], most: float) -> list[tf.Tensor]:
    """Gradients of a norm over all tensors of at most ``most``, by the formula of torch's clip_grad_norm_."""
    factor = most / (tf.linalg.global_norm(gradients) + 1e-6)
    return [tf.minimum(factor, tf.ones_like(factor)) * g for g in gradients]


@contextlib.contextmanager
def borrowed(source: Source, task: ProblemTask, lr: float, training: Training = PLAIN) -> Iterator[Loop]:
    """A loop at its beginning: one that was used before, if there is one for this optimizer and problem.

    Nobody else has it during the ``with`` block, and one that failed is not used again.
    """
    if not hasattr(task, "instance"):  # a caller's own model has a graph of its own
        loop = Loop(source, task, lr, training)
        loop.begin(task, lr)
        yield loop
        return
    key = _content(source), task.instance.problem, task.dtype, task.device, training
    if (loop := _kept.pop(key, None)) is None:
        loop = Loop(source, task, lr, training)
    loop.begin(task, lr)
    yield loop
    _kept[key] = loop
    while len(_kept) > _MOST or sum(one.size for one in _kept.values()) > _NUMBERS:
        del _kept[next(iter(_kept))]


def _content(source: Source) -> tuple:
    """What an optimizer is but for its learning rate; of a file the content, as workers get copies of it."""
    loaded, options = source.loaded, source.spec.options.items()
    if isinstance(loaded, Teacher):
        row = canonical_json([loaded.row.to_dict(), loaded.step_sizes])
        return row, *(w.tobytes() for w in loaded.weights.values()), *options
    return (source.sha256, source.spec.target, *options)
