"""What the optimizers of this backend share: theta += lr * u(g) as a Keras optimizer."""

import abc
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from common.errors import L2OError
from interchange.language.view import View
from tf_impl.networks.operators import as_tensor
from tf_impl.optimizers.loading import TALLY, Resumable
from tf_impl.tensors import DTYPES

LearningRate = float | keras.optimizers.schedules.LearningRateSchedule
State = tuple[tf.Tensor, ...]

FUSED_FROM = 65536  # elements: below, half a second of compiling is more than most runs get back


class Own(NamedTuple):
    """What a step asks of one tensor: its weight decay, and how it is seen where the rule sees tensors."""

    decay: float
    view: View | None = None


class CoordinateOptimizer(Resumable, abc.ABC):
    """theta += lr * u(g), one coordinate like another; every tensor counts its own steps.

    Other than in Keras' own optimizers lr is kept in float64 (0.1 is not 0.1 in float32), state is
    float32 at least, and weight decay is of one piece with the update, as in torch: theta *=
    1 - lr * weight_decay after u has seen theta, both or neither.

    Args:
        learning_rate: a number >= 0, a schedule, or a function without arguments.
        weight_decay: decoupled; None is none.
        l2: of the tensors that decay this times the parameter is added to the gradient.
        keywords: of every Keras optimizer, such as ``clipnorm``, ``use_ema`` and ``name``.

    Pickles keep the state, other than those of Keras; it is there again once ``build`` is called.
    """

    _fuses = False

    def __init__(
        self, learning_rate: LearningRate, weight_decay: float | None, l2: float = 0.0, **keywords: Any
    ) -> None:
        if isinstance(learning_rate, int | float | np.number):
            learning_rate = float(learning_rate)
            if not learning_rate >= 0.0:
                raise ValueError(f"learning_rate: expected a number >= 0, got {learning_rate}")
        if weight_decay is not None and not weight_decay >= 0.0:
            raise ValueError(f"weight_decay: expected a number >= 0, got {weight_decay}")
        if not l2 >= 0.0:
            raise ValueError(f"l2: expected a number >= 0, got {l2}")
        number = isinstance(learning_rate, float)
        # A function, so that Keras makes no variable in float32: one taken back could not be checkpointed.
        given = (lambda: learning_rate) if number else learning_rate
        super().__init__(given, weight_decay=weight_decay, **keywords)
        # Past Keras' tracking, whose checkpoints know no keys but text.
        vars(self).update(_compiled={}, l2=l2)
        if number:
            with keras.name_scope(self.name):
                self._learning_rate = keras.Variable(
                    learning_rate,
                    dtype="float64",
                    trainable=False,
                    aggregation="only_first_replica",
                    name="learning_rate",
                )

    @abc.abstractmethod
    def _zero_state(self, p: tf.Tensor, view: View | None) -> State:
        """Zero state for one parameter."""

    @abc.abstractmethod
    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: State, t: tf.Tensor, view: View | None
    ) -> tuple[tf.Tensor, State]:
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

    def _view(self, k: int) -> View | None:
        """How tensor ``k`` is seen; None where no coordinate asks for others."""
        return None

    def _step_size(self, k: int) -> float:
        """Factor on the learning rate of tensor ``k``."""
        return 1.0

    def _own(self, k: int) -> Own:
        decays = self.weight_decay and self._use_weight_decay(self._trainable_variables[k])
        return Own(float(self.weight_decay) if decays else 0.0, self._view(k))

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make the state: per tensor a tally [t, ...] of three numbers, and what ``_zero_state`` says."""
        if self.built:
            return
        for v in variables:
            if not tf.as_dtype(v.dtype).is_floating:
                raise L2OError(
                    f"{type(self).__name__}: expected variables of real floating point, got {v.name!r} of "
                    f"{tf.as_dtype(v.dtype).name}; leave it out, or keep real and imaginary parts apart"
                )
        super().build(variables)
        self._resume()
        self._prepare(variables)
        self._tallies = [self._slot(v, "step", (TALLY,), "float64") for v in variables]
        self._states = [
            [
                self._slot(v, f"s{i}", tuple(a.shape), a.dtype.name)
                for i, a in enumerate(self._zero_state(_zeros(v), self._view(k)))
            ]
            for k, v in enumerate(variables)
        ]
        self._resume_pending()

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
        slots = [self._tallies[k], *self._states[k]]
        lr = tf.cast(as_tensor(learning_rate), tf.float64) * self._step_size(k)
        g = _dense(gradient, variable)
        if self.l2 and self._use_weight_decay(variable):
            g += self.l2 * tf.cast(variable, g.dtype)
        own = self._own(k)
        given = tf.convert_to_tensor(variable), g, lr, *map(tf.convert_to_tensor, slots)
        found = self._step_compiled(own, *given) if tf.executing_eagerly() else None
        moved, tally, *state = found or self._stepper(variable, own)(*given)
        tally = self._tallied(tally, k, variable, g, lr)
        # Whoever has an ``assign`` of his own is asked at every write.
        usual = getattr(self.assign, "__func__", None) is keras.optimizers.Optimizer.assign
        quick = found is not None and usual and not tf.distribute.has_strategy()
        assign = _assign if quick else self.assign
        for target, array in zip((variable, *slots), (moved, tally, *state), strict=True):
            assign(target, array)

    def _step_compiled(
        self,
        own: Own,
        theta: tf.Tensor,
        g: tf.Tensor,
        lr: tf.Tensor,
        tally: tf.Tensor,
        *state: tf.Tensor,
    ) -> tuple[tf.Tensor, ...] | None:
        """``_advance`` by compiled code, outside graphs; None where there is none."""
        return None

    def _tallied(
        self, tally: tf.Tensor, k: int, variable: tf.Variable, g: tf.Tensor, lr: tf.Tensor
    ) -> tf.Tensor:
        """The tally of tensor ``k`` after a step, as it is to be kept."""
        del k, variable, g, lr
        return tally

    def _stepper(self, variable: tf.Variable, own: Own) -> Callable[..., tuple[tf.Tensor, ...]]:
        """``_advance``, by XLA where that is worth its compilation; compiled once for every shape."""
        size, known = math.prod(variable.shape), self._compiled
        inside, fits = compiling(), self._fuses and "CPU" in variable.device
        # In a graph XLA is slower than TensorFlow's own products of matrices, outside it has less to call.
        worth = size >= FUSED_FROM and (own.view is None or tf.executing_eagerly())
        if inside or not fits or not worth:
            return functools.partial(self._advance, own, inside and fits)
        key = (tuple(variable.shape), variable.dtype, own)
        if key not in known:
            # A partial of its own for each, as TensorFlow warns where one function is traced often.
            known[key] = tf.function(functools.partial(self._advance, own, True), jit_compile=True)
        return known[key]

    def _advance(
        self,
        own: Own,
        fused: bool,
        theta: tf.Tensor,
        g: tf.Tensor,
        lr: tf.Tensor,
        tally: tf.Tensor,
        *state: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        """One step as a pure function: the new parameter, tally and state."""
        del fused  # the same here
        moved, new = self._moved(own, theta, g, lr, tally[0] + 1.0, state)
        return (
            tf.cast(moved, theta.dtype),
            tally + tf.constant([1.0] + [0.0] * (TALLY - 1), tf.float64),
            *new,
        )

    def _moved(
        self, own: Own, theta: tf.Tensor, g: tf.Tensor, lr: tf.Tensor, t: tf.Tensor, state: State
    ) -> tuple[tf.Tensor, State]:
        """The moved parameter, not yet in its own dtype, and the new state."""
        work = work_dtype(theta)
        p, rate = tf.cast(theta, work), tf.cast(lr, work)
        u, new = self._update(p, tf.cast(g, work), state, t, own.view)
        return (p * tf.cast(1.0 - lr * own.decay, work) if own.decay else p) + rate * u, new

    def get_config(self) -> dict[str, Any]:
        """What makes the same optimizer again, JSON-ready and exact."""
        return super().get_config() | self._settings() | ({"l2": self.l2} if self.l2 else {})

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "CoordinateOptimizer":
        """The optimizer of a ``get_config``."""
        return super().from_config(cls._arguments(dict(config)), custom_objects)

    def _apply_weight_decay(self, variables: Sequence[keras.Variable]) -> None:
        """Nothing: Keras calls it before the update, whose own part it is here."""


def work_dtype(variable: tf.Variable | keras.Variable) -> tf.DType:
    """The dtype updates are computed in: the variable's, float32 at least."""
    return DTYPES.get(tf.as_dtype(variable.dtype).name, tf.float32)


def compiling() -> bool:
    """Whether XLA will compile what is being traced."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _assign(variable: tf.Variable | keras.Variable, value: tf.Tensor) -> None:
    """``variable.assign`` outside graphs, whose checks take longer than the step of a small tensor."""
    resource = variable.value if isinstance(variable, keras.Variable) else variable
    tf.raw_ops.AssignVariableOp(resource=resource.handle, value=value)


def _zeros(variable: keras.Variable) -> tf.Tensor:
    with tf.init_scope():
        return tf.zeros(tuple(variable.shape), work_dtype(variable))


def _dense(gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> tf.Tensor:
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])
