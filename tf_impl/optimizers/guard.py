"""Optimizers that leave coordinates alone whose step is not finite (FORMATS.md section 3)."""

import abc
import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from interchange.language.view import View
from tf_impl.optimizers.base import CoordinateOptimizer, LearningRate, Own, compiling, work_dtype

_LOOK_EVERY = 100  # steps
_MOST_IN_A_ROW = 10  # looks at which a tensor is left alone as a whole
# From here on a number of float32 is infinite in the dtype. (XLA takes casts there and back for nothing.)
_INFINITE_FROM = {"float16": 2.0**16 - 2.0**4, "bfloat16": 2.0**128 - 2.0**119}
_ADVICE = "lower the learning rate, or look for nan or inf in the gradients"
NonFinite = Literal["skip", "raise", "off"]


class NonFiniteError(RuntimeError):
    """Steps stayed non-finite."""


class GuardedOptimizer(CoordinateOptimizer, abc.ABC):
    """A coordinate whose new value or state would not be finite is left alone, the others go on.

    A tensor's t advances unless all of it was left alone; its tally is [t, coordinates left alone in the last
    step, looks in a row at which that were all]. At every 100th step (in mode ``raise`` at every one) one
    looks: where coordinates were left alone a warning says so, once for every tensor; ``NonFiniteError``
    says that a whole tensor was at ten looks in a row, or in mode ``raise`` any coordinate.
    Steps of a graph raise ``tf.errors.InvalidArgumentError`` instead. Functions compiled by XLA, and steps of
    several replicas, cannot tell anything: ask ``check_finite`` after them.
    """

    def __init__(
        self, learning_rate: LearningRate, weight_decay: float | None, nonfinite: NonFinite, **keywords: Any
    ) -> None:
        if nonfinite not in ("skip", "raise", "off"):
            raise ValueError(f"nonfinite: expected skip, raise or off, got {nonfinite!r}")
        super().__init__(learning_rate, weight_decay, **keywords)
        self.nonfinite = nonfinite
        vars(self).update(_told=set(), _seen=[], _looking=False)  # past Keras' tracking

    def _settings(self) -> dict[str, Any]:
        return {"nonfinite": self.nonfinite}

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
        if self.nonfinite == "off":
            return super()._advance(own, fused, theta, g, lr, tally, *state)
        (before, _, in_a_row), size = tf.unstack(tally), math.prod(theta.shape)
        t = before + 1.0
        moved, new = self._moved(own, theta, g, lr, t, state)
        if fused and own.view is None:
            # XLA gives a loop one result, and would copy state that it overwrites before the last look at it.
            # So the first loop writes a number that tells all, and the others compute the state again; by a
            # factor and a divisor of 1 that XLA does not know, it cannot make one of the two.
            one = tf.cast(t > 0.0, moved.dtype)
            whole = tf.where(_fits(moved, theta.dtype), moved, math.nan)
            moved = tf.add_n([whole, *(0.0 * array for array in new)]) / one
            ok = tf.math.is_finite(moved)
            _, new = self._moved(own, theta, g * tf.cast(one, g.dtype), lr, t, state)
            left = tf.cond(
                tf.math.is_finite(tf.reduce_sum(moved)), lambda: 0, lambda: _left(tf.math.is_finite(moved))
            )
        else:
            ok = _fits(moved, theta.dtype)  # so is u, which is in it
            for array in new:
                ok &= _of_coordinates(tf.math.is_finite(array), theta.shape, self._state_view(own))
            left = _left(ok)
        tally = tf.stack([tf.where(left < max(size, 1), t, before), tf.cast(left, tf.float64), in_a_row])
        state = (
            tf.where(_of_state(ok, a.shape, self._state_view(own)), a, b)
            for a, b in zip(new, state, strict=True)
        )
        return tf.where(ok, tf.cast(moved, theta.dtype), theta), tally, *state

    def _state_view(self, own: Own) -> View | None:
        """How state is kept of a tensor that is seen as a whole; None for every coordinate's own."""
        return own.view

    def _tallied(
        self, tally: tf.Tensor, k: int, variable: tf.Variable, g: tf.Tensor, lr: tf.Tensor
    ) -> tf.Tensor:
        if self.nonfinite == "off" or (tf.executing_eagerly() and not self._looking):
            return tally
        self._seen.append((k, variable, g, lr))
        size = math.prod(variable.shape)
        row = tf.where(tally[1] < max(size, 1), tf.zeros_like(tally[2]), tally[2] + 1.0)
        return tf.where(self._looking, tf.stack([tally[0], tally[1], row]), tally)

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        """Keras' loop over the tensors, and a look after it."""
        step = (self._iterations + 1) // (self.gradient_accumulation_steps or 1)
        looking = tf.equal(step % (1 if self.nonfinite == "raise" else _LOOK_EVERY), 0)
        vars(self).update(_looking=looking, _seen=[])
        super()._backend_update_step(grads, trainable_variables, learning_rate)
        seen = self._seen
        vars(self).update(_looking=False, _seen=[])  # neither tensors nor those of a graph are to stay
        if not seen or compiling() or tf.distribute.get_strategy().num_replicas_in_sync > 1:
            return
        if tf.executing_eagerly():
            self._look(seen)
        else:
            tf.cond(looking, lambda: self._look(seen), lambda: None)

    def _look(self, seen: Sequence[tuple[int, tf.Variable, tf.Tensor, tf.Tensor]]) -> None:
        """Tell of the tensors that have been stepped; a graph calls Python if there is something to tell."""
        tallies = [tf.convert_to_tensor(self._tallies[k]) for k, *_ in seen]
        if tf.executing_eagerly():
            for (k, variable, g, lr), tally in zip(seen, tallies, strict=True):
                self._tell(k, g, lr, variable, tally, *self._states[k])
            return

        def tell() -> None:
            for (k, variable, g, lr), tally in zip(seen, tallies, strict=True):
                arrays = map(tf.convert_to_tensor, (variable, tally, *self._states[k]))
                tf.py_function(functools.partial(self._tell_of_graph, k), [g, lr, *arrays], [])

        tf.cond(tf.reduce_any(tf.stack(tallies)[:, 1] > 0.0), tell, lambda: None)

    def _tell_of_graph(self, k: int, *arrays: tf.Tensor) -> None:
        try:
            self._tell(k, *arrays)
        except NonFiniteError as error:  # of few errors TensorFlow keeps the type
            raise ValueError(str(error)) from None

    def _tell(
        self,
        k: int,
        g: tf.Tensor,
        lr: tf.Tensor,
        variable: tf.Variable | tf.Tensor,
        tally: tf.Tensor,
        *state: tf.Tensor | keras.Variable,
    ) -> None:
        """Report on tensor ``k``; what it was that was not finite is found by computing the step again."""
        if not tally[1] > 0.0:
            return
        own, (theta, *state) = self._own(k), map(tf.convert_to_tensor, (variable, *state))
        t, work = tally[0] + tf.cast(tally[1] >= math.prod(theta.shape), tf.float64), work_dtype(theta)
        u, new = self._update(tf.cast(theta, work), tf.cast(g, work), tuple(state), t, own.view)
        moved, _ = self._moved(own, theta, g, lr, t, tuple(state))
        states = [
            _of_coordinates(tf.math.is_finite(array), theta.shape, self._state_view(own)) for array in new
        ]
        looks = {
            "gradient": tf.math.is_finite(g),
            "update": tf.math.is_finite(u),
            "state": functools.reduce(tf.logical_and, states, tf.constant(True)),
            "moved parameter": _fits(moved, theta.dtype),
        }
        causes = [name for name, finite in looks.items() if not tf.reduce_all(finite)]
        self._report(k, tally, causes[0] if causes else "step")

    def check_finite(self) -> None:
        """Look now at how many coordinates the last step of every tensor left alone.

        That step may have been one of a compiled function, which cannot tell.

        Raises:
            NonFiniteError: a tensor was left alone as a whole at ten looks in a row; in mode ``raise`` any
                coordinate was.
        """
        for k, tally in enumerate(self._tallies if self.built and self.nonfinite != "off" else ()):
            if tally[1] > 0.0:
                self._report(k, tf.convert_to_tensor(tally), "step")

    def stuck(self) -> bool:
        """Whether the last step left every coordinate of every parameter alone."""
        sizes = [math.prod(v.shape) for v in self._trainable_variables] if self.built else []
        left = [float(tally[1]) for tally in (self._tallies if sizes else ())]
        return bool(sizes) and all(0 < size <= found for size, found in zip(sizes, left, strict=True))

    def _report(self, k: int, tally: tf.Tensor, cause: str) -> None:
        """Raise ``NonFiniteError`` or warn, as the tally of tensor ``k`` is."""
        variable, (_, left, in_a_row) = self._trainable_variables[k], tally.numpy().astype(int)
        told = (
            f"{type(self).__name__}: {left} of {math.prod(variable.shape)} coordinates of "
            f"{getattr(variable, 'path', variable.name)} of shape {tuple(variable.shape)} were left alone, "
            f"because the {cause} was not finite"
        )
        if self.nonfinite == "raise" or in_a_row >= _MOST_IN_A_ROW:
            again = f", at {in_a_row} looks in a row" if in_a_row >= _MOST_IN_A_ROW else ""
            raise NonFiniteError(f"{told}{again}; {_ADVICE}")
        if k not in self._told:
            self._told.add(k)
            warnings.warn(f"{told}; {_ADVICE}", RuntimeWarning, stacklevel=2)


def _left(ok: tf.Tensor) -> tf.Tensor:
    """How many are not."""
    return math.prod(ok.shape) - tf.reduce_sum(tf.cast(ok, tf.int32))


def _fits(moved: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Where numbers are finite in a dtype that may be a narrower one."""
    limit = _INFINITE_FROM.get(dtype.name)
    return tf.math.is_finite(moved) if limit is None else tf.abs(moved) < limit


def _of_coordinates(ok: tf.Tensor, shape: tf.TensorShape, view: View | None) -> tf.Tensor:
    """Per coordinate of a parameter of n of them, where state may have several rows [rows, n].

    State of a tensor that is seen through a view may be as small as ``View.reduced`` says.
    """
    if ok.shape == shape:
        return ok
    if view is not None:
        return tf.reshape(tf.broadcast_to(ok, view.split), shape)
    size = math.prod(shape)
    rows = math.prod(ok.shape) // max(size, 1)
    return tf.reshape(tf.reduce_all(tf.reshape(ok, [rows, size]), 0), shape)


def _of_state(ok: tf.Tensor, shape: tf.TensorShape, view: View | None) -> tf.Tensor:
    """Per element of state: whether its coordinate is ok, or any of those for which it is kept."""
    if ok.shape == shape:
        return ok
    if view is None:
        return tf.reshape(ok, [-1])
    summed = [axis for axis, (n, kept) in enumerate(zip(view.split, shape, strict=True)) if n != kept]
    return tf.reduce_any(tf.reshape(ok, view.split), summed, keepdims=True)
