"""Step sizes by tensor as a network: another network's outputs, times the factor of their tensor."""

import tensorflow as tf

from interchange.files.weights import Teacher
from interchange.protocols import State
from interchange.rule.step_sizes import Sized, StepSizeWeights
from tf_impl.networks.rule import RuleNetwork
from tf_impl.networks.teacher import TeacherNetwork
from tf_impl.tensors import Weights


class StepSizes(StepSizeWeights):
    """A rule or teacher whose step sizes are trained, as the logarithms that are its weights, float64, 0-dim.

    Args:
        source: the rule or teacher, with the step sizes to begin with.
        dtype: of a teacher's arithmetic.
    """

    def __init__(self, source: Sized, dtype: tf.DType = tf.float32, device: str = "cpu") -> None:
        plain = source.plain
        if isinstance(plain, Teacher):
            super().__init__(source, TeacherNetwork(plain.row, plain.weights, dtype, device))
        else:
            super().__init__(source, RuleNetwork(plain, device))
        with tf.device(device):
            self.weights: Weights = {
                name: tf.Variable(value, dtype=tf.float64) for name, value in self.starts.items()
            }

    def step(
        self, weights: Weights, x: tf.Tensor, network: tuple[tf.Tensor, ...], t: int
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Output [N] before ``structure`` and ``scale``, and the new state, for inputs x [F, N]."""
        out, network = self.inner.step(self.inner.weights, x, network, t)
        return self._sized(weights, out), network

    def roll(
        self, x: tf.Tensor, network: tuple[tf.Tensor, ...], t: int, *, reuse: bool = False
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """``step`` with the network's own weights, not recorded; ``reuse``: the old state may be lost."""
        out, network = self.inner.roll(x, network, t, reuse=reuse)
        return self._sized(self.weights, out), network

    def vjp(self, state: State, inputs: tf.Tensor, c: tf.Tensor) -> dict[str, tf.Tensor]:
        """sum_t <c_t, d out_t / d weights>: an output's derivative by its logarithm is the output.

        Args:
            inputs: [T, F, N]; c: [T, N].
        """
        network, total = state.network, tf.zeros(c.shape[1:], tf.float64)
        for s in range(len(inputs)):
            out, network = self.roll(tf.convert_to_tensor(inputs[s]), network, state.t + 1 + s)
            total += tf.cast(c[s] * out, tf.float64)
        return self.by_tensor(total)

    def by_tensor(self, total: tf.Tensor) -> dict[str, tf.Tensor]:
        """Sums over tensors of numbers [N], float64, by weight."""
        sums = tf.math.unsorted_segment_sum(total, self._place, len(self.weights))
        return dict(zip(self.weights, tf.unstack(sums), strict=True))

    def _sized(self, weights: Weights, out: tf.Tensor) -> tf.Tensor:
        factors = tf.exp(tf.stack([tf.convert_to_tensor(w) for w in weights.values()]))
        return out * tf.cast(tf.gather(factors, self._place), out.dtype)
