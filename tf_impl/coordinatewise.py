"""What the optimizers of this backend share: theta += lr * u(g) as a Keras optimizer."""

import abc
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from common.errors import L2OError
from tf_impl.tensors import DTYPES

LearningRate = float | keras.optimizers.schedules.LearningRateSchedule


class CoordinateOptimizer(keras.optimizers.Optimizer, abc.ABC):
    """theta += lr * u(g), one coordinate like another; every tensor counts its own steps.

    Other than in Keras' own optimizers lr is kept in float64 (0.1 is not 0.1 in float32), state is
    float32 at least, and weight decay is of one piece with the update, as in torch: theta *=
    1 - lr * weight_decay after u has seen theta, both or neither.

    Args:
        learning_rate: a number >= 0, a schedule, or a function without arguments.
        weight_decay: decoupled; None is none.
        keywords: of every Keras optimizer, such as ``clipnorm``, ``use_ema`` and ``name``.
    """

    def __init__(self, learning_rate: LearningRate, weight_decay: float | None, **keywords: Any) -> None:
        if isinstance(learning_rate, int | float):
            learning_rate = float(learning_rate)
            if not learning_rate >= 0.0:
                raise ValueError(f"learning_rate: expected a number >= 0, got {learning_rate}")
        if weight_decay is not None and not weight_decay >= 0.0:
            raise ValueError(f"weight_decay: expected a number >= 0, got {weight_decay}")
        super().__init__(learning_rate, weight_decay=weight_decay, **keywords)
        if isinstance(learning_rate, float):
            self._untrack_variable(self._learning_rate)
            with keras.name_scope(self.name):
                self._learning_rate = keras.Variable(
                    learning_rate,
                    dtype="float64",
                    trainable=False,
                    aggregation="only_first_replica",
                    name="learning_rate",
                )

    @abc.abstractmethod
    def _zero_state(self, p: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Zero state for one parameter."""

    @abc.abstractmethod
    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: tuple[tf.Tensor, ...], t: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Update u in the shape of ``p`` and the new state; ``t`` counts from 1."""

    def _settings(self) -> dict[str, Any]:
        """The constructor's arguments beside Keras' own, JSON-ready."""
        return {}

    @classmethod
    def _arguments(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The constructor's arguments of a ``get_config``."""
        return config

    def _prepare(self, variables: Sequence[keras.Variable]) -> None:
        """What is to be done once, before the state is made."""

    def _accepts(self, k: int, u: tf.Tensor) -> tf.Tensor | None:
        """Whether to make the update of tensor ``k``, a scalar; None is yes, without asking."""
        del k, u
        return None

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make the state: per tensor a step count and what ``_zero_state`` says."""
        if self.built:
            return
        super().build(variables)
        self._prepare(variables)
        self._steps = [self._slot(v, "step", (), "int64") for v in variables]
        self._states = [
            [
                self._slot(v, f"s{i}", tuple(a.shape), a.dtype.name)
                for i, a in enumerate(self._zero_state(_zeros(v)))
            ]
            for v in variables
        ]

    def _slot(self, v: keras.Variable, name: str, shape: tuple[int, ...], dtype: str) -> keras.Variable:
        beside = v.value if isinstance(v, keras.Variable) else v
        path = getattr(v, "path", v.name).replace("/", "_").replace(":", "_")
        with self._distribution_strategy.extended.colocate_vars_with(beside):
            return self.add_variable(shape, "zeros", dtype, name=f"{path}_{name}")

    def update_step(
        self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """One update of one tensor; a sparse gradient is made dense, as u(0) need not be 0."""
        k = self._get_variable_index(variable)
        work = work_dtype(variable)
        g, theta = tf.cast(_dense(gradient, variable), work), tf.cast(variable, work)
        old = tuple(tf.convert_to_tensor(slot) for slot in self._states[k])
        t = tf.convert_to_tensor(self._steps[k]) + 1
        u, new = self._update(theta, g, old, t)
        lr = tf.cast(learning_rate, tf.float64)
        moved = theta + tf.cast(lr, work) * u
        if self.weight_decay and self._use_weight_decay(variable):
            moved = theta * tf.cast(1.0 - lr * self.weight_decay, work) + tf.cast(lr, work) * u
        ok = self._accepts(k, u)
        if ok is not None:
            moved, t = tf.where(ok, moved, theta), tf.where(ok, t, t - 1)
            new = tuple(tf.where(ok, a, b) for a, b in zip(new, old, strict=True))
        self.assign(variable, moved)
        self.assign(self._steps[k], t)
        for slot, array in zip(self._states[k], new, strict=True):
            self.assign(slot, array)

    def get_config(self) -> dict[str, Any]:
        """What makes the same optimizer again, JSON-ready and exact."""
        return super().get_config() | self._settings()

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "CoordinateOptimizer":
        """The optimizer of a ``get_config``."""
        return super().from_config(cls._arguments(dict(config)), custom_objects)

    def _apply_weight_decay(self, variables: Sequence[keras.Variable]) -> None:
        """Nothing: Keras calls it before the update, whose own part it is here."""

    def load_own_variables(self, store: Any) -> None:
        """As in Keras, but state of another optimizer is refused (Keras goes on without it).

        Raises:
            L2OError: the number of arrays is not this optimizer's.
        """
        if self.built and len(store.keys()) != len(self.variables):
            raise L2OError(
                f"{self.name}: expected state of {len(self.variables)} arrays, got {len(store.keys())}; load "
                "it into an optimizer with the same rule, teacher and settings"
            )
        super().load_own_variables(store)


def work_dtype(variable: tf.Variable | keras.Variable) -> tf.DType:
    """The dtype updates are computed in: the variable's, float32 at least."""
    return DTYPES.get(tf.as_dtype(variable.dtype).name, tf.float32)


def _zeros(variable: keras.Variable) -> tf.Tensor:
    with tf.init_scope():
        return tf.zeros(tuple(variable.shape), work_dtype(variable))


def _dense(gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> tf.Tensor:
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])
