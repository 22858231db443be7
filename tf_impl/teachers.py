"""Teachers as coordinate-wise networks over named weight arrays.

Arrays are laid out [feature or unit, coordinate], coordinates contiguous, so that every gate of the
LSTM is one contiguous block.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from common.teachers import TeacherRow
from tf_impl.features import FeatureStream
from tf_impl.tensors import State, Weights


class TeacherNetwork:
    """A teacher's network with its weights: a function from weights to an optimizer.

    Args:
        teacher: the row.
        weights: arrays by canonical name (``TeacherRow.weight_shapes``).
    """

    def __init__(
        self,
        teacher: TeacherRow,
        weights: Mapping[str, np.ndarray],
        dtype: tf.DType = tf.float32,
        device: str = "cpu",
    ) -> None:
        self.teacher = teacher
        self.scale, self.shrink = teacher.scale, 0.0
        self.features = FeatureStream(teacher.expressions())
        with tf.device(device):
            self.weights: Weights = {
                name: tf.Variable(weights[name], dtype=dtype) for name in teacher.weight_shapes()
            }
        self._features, self._step = tf.function(self.features.step), tf.function(self._one_step)

    def settle(self, task: Any) -> None:
        """Nothing of a teacher depends on the problem."""

    def rows(self, theta: tf.Tensor) -> list[tf.Tensor]:
        """Inputs beside the features: none."""
        return []

    def initial_state(self, theta: tf.Tensor) -> State:
        """Zero state for a flat vector [N]."""
        network = tuple(
            tf.zeros([size, theta.shape[0]], theta.dtype) for size in self.teacher.lstm for _ in ("h", "c")
        )
        return State(0, self.features.initial_state(theta), network)

    def inputs(self, g: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        """The network's inputs [F, N] for gradient [N]; first order, so outside the meta-gradient."""
        x, features = self._features(g, state.features, tf.constant(state.t + 1))
        return x, State(state.t + 1, features, state.network)

    def step(
        self, weights: Weights, x: tf.Tensor, network: tuple[tf.Tensor, ...], t: int
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Output [N] before ``scale``, and the new network state, for inputs x [F, N]."""
        del t  # a rule's network reads it
        return self._step({name: tf.convert_to_tensor(w) for name, w in weights.items()}, x, network)

    def _one_step(
        self, weights: Weights, x: tf.Tensor, network: tuple[tf.Tensor, ...]
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        if self.teacher.pre:
            x = tf.nn.elu(weights["pre/w"] @ x + weights["pre/b"][:, None])
        new_state: list[tf.Tensor] = []
        for layer in range(len(self.teacher.lstm)):
            h, c = lstm_cell(
                weights[f"lstm_{layer}/w_input"],
                weights[f"lstm_{layer}/w_hidden"],
                weights[f"lstm_{layer}/bias"],
                x,
                *network[2 * layer : 2 * layer + 2],
            )
            new_state += [h, c]
            x = h
        out = (weights["out/w"] @ x + weights["out/b"][:, None])[0]
        return (tf.tanh(out) if self.teacher.output == "tanh" else out), tuple(new_state)


def lstm_cell(
    w_input: tf.Tensor,
    w_hidden: tf.Tensor,
    bias: tf.Tensor,
    x: tf.Tensor,
    h: tf.Tensor,
    c: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """One LSTM cell, gates in the order i, f, g, o, one bias [4H]; x [D, N], h and c [H, N]."""
    i, f, g, o = tf.split(w_input @ x + w_hidden @ h + bias[:, None], 4)
    c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
    return tf.sigmoid(o) * tf.tanh(c), c
