"""Several optimizees side by side as one: their coordinates one after the other in a flat vector."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from interchange.protocols import State, Task
from tf_impl.problems.tasks import ProblemTask, value_and_gradient


class BatchedTasks:
    """Optimizees in lanes; what each does is what it does alone.

    Args:
        tasks: of any problems; those of one problem with dense layers only are computed at once.

    Attributes:
        sizes: coordinates of each.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)
        self.sizes = [sum(math.prod(shape) for shape in task.shapes) for task in tasks]
        kinds = set(map(kind, tasks))
        self._stacked = ProblemTask.stacked(tasks) if len(kinds) == 1 and None not in kinds else None

    def value_and_gradient(self, theta: tf.Tensor, step: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Losses [lane] and gradient [N] of all at the flat vector ``theta``, each on its own batch."""
        if self._stacked is None:
            parts = zip(self.tasks, tf.split(theta, self.sizes), strict=True)
            losses, gradients = zip(*(value_and_gradient(*part, step) for part in parts), strict=True)
            return tf.stack(losses), tf.concat(gradients, 0)
        losses, gradient = self._stacked(tf.reshape(theta, [len(self.tasks), -1]), step)
        return losses, tf.reshape(gradient, [-1])


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
        given = tf.stack([at.loss for at in positions]), tf.concat([at.gradient for at in positions], 0)

    def together(group: str, stacked: bool = False) -> tuple[tf.Tensor, ...]:
        arrays = zip(*(getattr(at.state, group) for at in positions), strict=True)
        return tuple(_stacked(lanes) if stacked else _side_by_side(lanes) for lanes in arrays)

    theta = tf.concat([at.theta for at in positions], 0)
    return dataclasses.replace(
        first,
        theta=theta,
        state=State(first.state.t, together("features"), together("network", apart)),
        loss=given[0],
        gradient=given[1],
    )


def divided(position: Any, sizes: Sequence[int], apart: bool = False) -> list[Any]:
    """The inverse of ``joined``: the position of every lane; arrays are views."""
    thetas, gradients = tf.split(position.theta, sizes), tf.split(position.gradient, sizes)
    groups = [
        zip(*(list(a) if stacked else _split(a, sizes) for a in arrays), strict=True)
        if arrays
        else [()] * len(sizes)
        for arrays, stacked in ((position.state.features, False), (position.state.network, apart))
    ]
    lanes = zip(thetas, tf.unstack(position.loss), gradients, *groups, strict=True)
    return [
        dataclasses.replace(
            position, theta=theta, state=State(position.state.t, *parts), loss=loss, gradient=gradient
        )
        for theta, loss, gradient, *parts in lanes
    ]


def _stacked(lanes: Sequence[tf.Tensor | np.ndarray]) -> tf.Tensor | np.ndarray:
    return np.stack(lanes) if all(isinstance(a, np.ndarray) for a in lanes) else tf.stack(lanes)


def _side_by_side(lanes: Sequence[tf.Tensor | np.ndarray]) -> tf.Tensor | np.ndarray:
    if all(isinstance(a, np.ndarray) for a in lanes):
        return np.concatenate(lanes, -1)
    return tf.concat(lanes, -1)


def _split(a: tf.Tensor | np.ndarray, sizes: Sequence[int]) -> Sequence[tf.Tensor | np.ndarray]:
    if isinstance(a, np.ndarray):
        return np.split(a, np.cumsum(sizes)[:-1], -1)
    return tf.split(a, sizes, -1)
