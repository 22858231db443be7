"""Teachers and rules as ordinary ``keras.optimizers.Optimizer``: drop them into any training loop."""

import abc
import base64
import binascii
import os
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from common.errors import L2OError
from common.storage import canonical_json
from interchange.rule import Rule
from interchange.walk import Tree
from interchange.weights import GATE_ORDER, Teacher, load_weights, weights_from_tree
from tf_impl.coordinatewise import CoordinateOptimizer, LearningRate, work_dtype
from tf_impl.operators import as_tensor
from tf_impl.symbolic import lower
from tf_impl.teachers import TeacherNetwork

_MOST_IN_A_ROW = 10
NonFinite = Literal["skip", "raise", "off"]


class NonFiniteError(RuntimeError):
    """Updates stayed non-finite."""


class _GuardedOptimizer(CoordinateOptimizer, abc.ABC):
    """What both optimizers below share: an update that is not finite is skipped for its whole tensor,
    state included (FORMATS.md section 3, Non-finite updates).

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

    def _prepare(self, variables: Sequence[keras.Variable]) -> None:
        self._skipped = [self._slot(v, "skipped", (), "int64") for v in variables]

    def _accepts(self, k: int, u: tf.Tensor) -> tf.Tensor | None:
        if self.nonfinite == "off":
            return None
        ok = tf.reduce_all(tf.math.is_finite(u))
        skipped = tf.where(ok, tf.zeros((), tf.int64), tf.convert_to_tensor(self._skipped[k]) + 1)
        self.assign(self._skipped[k], skipped)
        if not tf.executing_eagerly():
            tf.debugging.assert_less(skipped, tf.constant(self._most, tf.int64), self._stuck(k, self._most))
        elif int(skipped) >= self._most:
            raise NonFiniteError(self._stuck(k, int(skipped)))
        return ok

    def check_finite(self) -> None:
        """Raise ``NonFiniteError`` where the last updates of a tensor were skipped 10 times in a row."""
        for k, slot in enumerate(self._skipped if self.built else ()):
            if int(slot.numpy()) >= self._most:
                raise NonFiniteError(self._stuck(k, int(slot.numpy())))

    def _stuck(self, k: int, in_a_row: int) -> str:
        return (
            f"{type(self).__name__}: the update of a parameter of shape "
            f"{tuple(self._trainable_variables[k].shape)} was not finite {in_a_row} times in a row; lower "
            "learning_rate, or look for nan or inf in the gradients"
        )


@keras.saving.register_keras_serializable(package="symbolic_l2o")
class SymbolicOptimizer(_GuardedOptimizer):
    """A rule as an optimizer: theta += lr * scale * expression(g).

    Args:
        rule: a ``Rule`` or the path of a rule file.
        learning_rate: multiplier on the rule's update; 1 is the rule as distilled or tuned. A number, a
            schedule, or a function without arguments.
        weight_decay: decoupled, theta *= 1 - lr * weight_decay.
        nonfinite: ``skip`` keeps a tensor whose update is not finite as it is, ``raise`` raises at once,
            ``off`` does not look.
        keywords: of every Keras optimizer: ``clipnorm``, ``clipvalue``, ``global_clipnorm``, ``use_ema``,
            ``ema_momentum``, ``ema_overwrite_frequency``, ``loss_scale_factor``,
            ``gradient_accumulation_steps``, ``name``.

    State per parameter: ``rule.state_floats`` arrays in its shape, float32 at least, and a step count.
    """

    def __init__(
        self,
        rule: Rule | str | os.PathLike[str],
        learning_rate: LearningRate = 1.0,
        *,
        weight_decay: float | None = None,
        nonfinite: NonFinite = "skip",
        **keywords: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, nonfinite, **keywords)
        self.rule = rule if isinstance(rule, Rule) else Rule.load(rule)
        missing = [name for name, node in self.rule.features.items() if node is None]
        if missing:
            raise L2OError(
                f"rule {self.rule.name!r}: feature {missing[0]!r} has no definition over g, so it can be "
                "evaluated on arrays only; add its expression under 'features'"
            )
        self._lowered = lower(self.rule)

    def _zero_state(self, p: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return self._lowered.initial_state(p)

    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: tuple[tf.Tensor, ...], t: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        (out,), state = self._lowered.step({"g": g, "theta": p, **self.rule.constants}, state, t)
        return self.rule.scale * tf.broadcast_to(tf.cast(as_tensor(out), p.dtype), p.shape), state

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"rule": self.rule.to_json()}

    @classmethod
    def _arguments(cls, config: dict[str, Any]) -> dict[str, Any]:
        return config | {"rule": Rule.from_json(config["rule"])}


@keras.saving.register_keras_serializable(package="symbolic_l2o")
class LearnedOptimizer(_GuardedOptimizer):
    """A meta-trained teacher as an optimizer: theta += lr * scale * output(LSTM(features(g))).

    Args:
        teacher: a run folder, a ``teacher.h5`` file, or ``Teacher``.
        learning_rate: multiplier on the teacher's update.
        weight_decay, nonfinite, keywords: as for ``SymbolicOptimizer``.

    State per parameter tensor of n elements: h and c of every cell, [hidden, n], and the features'.
    """

    def __init__(
        self,
        teacher: Teacher | str | os.PathLike[str],
        learning_rate: LearningRate = 1.0,
        *,
        weight_decay: float | None = None,
        nonfinite: NonFinite = "skip",
        **keywords: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, nonfinite, **keywords)
        self._given = teacher if isinstance(teacher, Teacher) else load_weights(teacher)
        self._network = TeacherNetwork(self._given.row, self._given.weights)

    def _prepare(self, variables: Sequence[keras.Variable]) -> None:
        super()._prepare(variables)
        with tf.init_scope():  # constants of one graph cannot be used in another
            self._weights = {
                dtype.name: {name: tf.constant(w, dtype) for name, w in self._given.weights.items()}
                for dtype in {work_dtype(v) for v in variables}
            }

    def _zero_state(self, p: tf.Tensor) -> tuple[tf.Tensor, ...]:
        zero = self._network.initial_state(tf.reshape(p, [-1]))
        return zero.features + zero.network

    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: tuple[tf.Tensor, ...], t: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        network = self._network
        count = len(state) - 2 * len(network.teacher.lstm)
        x, features = network.features.step(tf.reshape(g, [-1]), state[:count], t)
        out, hidden = network.step(self._weights[p.dtype.name], x, state[count:], t)
        return network.scale * tf.reshape(out, p.shape), features + hidden

    def _settings(self) -> dict[str, Any]:
        teacher = {
            "row": self._given.row.to_dict(),
            "weights": {name: _to_text(array) for name, array in self._given.weights.items()},
            "sha256": self._given.sha256,
            "created_by": self._given.created_by,
        }
        return super()._settings() | {"teacher": teacher}

    @classmethod
    def _arguments(cls, config: dict[str, Any]) -> dict[str, Any]:
        return config | {"teacher": _teacher(config["teacher"])}


def _to_text(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON, exact: its bytes, little-endian, in base64."""
    little = np.ascontiguousarray(array, np.dtype(f"<f{array.dtype.itemsize}"))
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"dtype": little.dtype.str, "shape": list(array.shape), "data": data}


def _teacher(given: dict[str, Any]) -> Teacher:
    """The teacher of a configuration, checked like one of a file."""
    try:
        arrays = {
            name: np.frombuffer(
                base64.b64decode(w["data"], validate=True), {"<f4": "<f4", "<f8": "<f8"}[w["dtype"]]
            )
            .reshape(w["shape"])
            .astype(w["dtype"][1:])
            for name, w in given["weights"].items()
        }
        attributes = {
            "format": "l2o-teacher",
            "created_by": given["created_by"],
            "gate_order": GATE_ORDER,
            "teacher_json": canonical_json(given["row"]),
        }
        tree = Tree(arrays, {"": attributes}, given["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise L2OError(
            f"configuration of a LearnedOptimizer: not a teacher ({error}); save it again"
        ) from None
    return weights_from_tree(tree, "configuration of a LearnedOptimizer")
