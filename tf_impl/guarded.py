"""Optimizers that leave a tensor alone whose update is not finite (FORMATS.md section 3)."""

import abc
from typing import Any, Literal

import tensorflow as tf

from tf_impl.coordinatewise import CoordinateOptimizer, LearningRate, State
from tf_impl.fused import finite, written_out

_MOST_IN_A_ROW = 10
NonFinite = Literal["skip", "raise", "off"]


class NonFiniteError(RuntimeError):
    """Updates stayed non-finite."""


class GuardedOptimizer(CoordinateOptimizer, abc.ABC):
    """An update that is not finite is skipped for its whole tensor, state included.

    Eager steps raise ``NonFiniteError``, those of a graph fail an assertion; XLA drops assertions, so after
    steps of a function compiled by it ``check_finite`` has to be asked.
    """

    def __init__(
        self, learning_rate: LearningRate, weight_decay: float | None, nonfinite: NonFinite, **keywords: Any
    ) -> None:
        if nonfinite not in ("skip", "raise", "off"):
            raise ValueError(f"nonfinite: expected skip, raise or off, got {nonfinite!r}")
        super().__init__(learning_rate, weight_decay, **keywords)
        self.nonfinite = nonfinite

    def _settings(self) -> dict[str, Any]:
        return {"nonfinite": self.nonfinite}

    @property
    def _most(self) -> int:
        return 1 if self.nonfinite == "raise" else _MOST_IN_A_ROW

    def _guarded(
        self, p: tf.Tensor, g: tf.Tensor, state: State, t: tf.Tensor, fused: bool
    ) -> tuple[tf.Tensor | None, tf.Tensor, State]:
        if self.nonfinite == "off":
            return super()._guarded(p, g, state, t, fused)
        u, new = self._update(p, g, state, t)
        if fused:
            (u,) = written_out(u)
            ok, g = written_out(finite(u), g)
            _, new = self._update(p, g, state, t)
        else:
            ok = tf.reduce_all(tf.math.is_finite(u))
        return ok, u, tuple(tf.where(ok, a, b) for a, b in zip(new, state, strict=True))

    def _look(self, k: int, tally: tf.Tensor) -> None:
        if self.nonfinite == "off":
            return
        if not tf.executing_eagerly():
            tf.debugging.assert_less(
                tally[1], tf.constant(self._most, tf.float64), self._stuck(k, self._most)
            )
        elif (in_a_row := int(tally[1])) >= self._most:
            raise NonFiniteError(self._stuck(k, in_a_row))

    def check_finite(self) -> None:
        """Raise ``NonFiniteError`` where the last updates of a tensor were skipped 10 times in a row."""
        for k, tally in enumerate(self._tallies if self.built else ()):
            if (in_a_row := int(tally.numpy()[1])) >= self._most:
                raise NonFiniteError(self._stuck(k, in_a_row))

    def _stuck(self, k: int, in_a_row: int) -> str:
        return (
            f"{type(self).__name__}: the update of a parameter of shape "
            f"{tuple(self._trainable_variables[k].shape)} was not finite {in_a_row} times in a row; lower "
            "learning_rate, or look for nan or inf in the gradients"
        )
