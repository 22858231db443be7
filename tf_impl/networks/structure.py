"""What a teacher's output goes through, tensor by tensor, on flat vectors (MATH.md section 3b)."""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from interchange.language.view import View, slices
from interchange.protocols import Network, Task, lanes_of
from tf_impl.networks.matrix import TENSOR
from tf_impl.problems.direct import Direct


class Structure:
    """A tensor operator on a flat vector of lanes, each of which holds one tensor after another.

    Args:
        name: of the operator.
        views: of the tensors of a lane.
    """

    def __init__(self, name: str, views: tuple[View, ...], lanes: int = 1) -> None:
        self._act, self._views, self._lanes = TENSOR[name], views, lanes
        self._forth, self._back = Direct(self._acted), Direct(self._pulled_back)

    def __call__(self, y: tf.Tensor) -> tf.Tensor:
        """S(y) [N]."""
        return self._forth(y)

    def back(self, y: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
        """(dS/dy at y)^T c [N]."""
        return self._back(y, c)

    def _acted(self, y: tf.Tensor) -> tf.Tensor:
        lead = [self._lanes] if self._lanes > 1 else []
        y = tf.reshape(y, [*lead, -1])
        parts = (
            tf.reshape(self._act(tf.reshape(y[..., place], [*lead, *view.split]), view.axes), [*lead, -1])
            for place, view in slices(self._views)
        )
        return tf.reshape(tf.concat(list(parts), -1), [-1])

    def _pulled_back(self, y: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(y)
            out = self._acted(y)
        return tape.gradient(out, y, output_gradients=c)


_known = functools.lru_cache(maxsize=8)(Structure)  # with its graphs


def structure_of(network: Network, task: Task) -> Structure | None:
    """A network's structure as it sees the tensors of a task, or of the lanes of ``BatchedTasks``.

    Raises:
        L2OError: the task does not say how its tensors are seen.
    """
    if not network.structure:
        return None
    return _known(network.structure, *lanes_of(task, f"structure {network.structure}"))


def by_outputs(
    network: Network,
    task: Task,
    outs: Sequence[tf.Tensor],
    c: tf.Tensor,
    coordinates: np.ndarray | None = None,
) -> tf.Tensor:
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
    pulled = (structure.back(y, tf.convert_to_tensor(c[s])) for s, y in enumerate(outs))
    if isinstance(c, np.ndarray):
        for s, row in enumerate(pulled):
            c[s] = row
        return c if coordinates is None else c[:, coordinates]
    c = tf.stack(list(pulled))
    return c if coordinates is None else tf.gather(c, coordinates, axis=1)
