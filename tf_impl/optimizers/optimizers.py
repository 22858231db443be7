"""Teachers and rules as ordinary ``keras.optimizers.Optimizer``: drop them into any training loop."""

import base64
import binascii
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common.errors import L2OError
from common.run.storage import canonical_json
from interchange.files.reader import Tree
from interchange.files.weights import GATE_ORDER, Teacher, load_weights, weights_from_tree
from interchange.language.compiler import Instruction
from interchange.language.view import View
from interchange.rule.rule import Rule, zero_update
from tf_impl.networks.compiled import step_fresh
from tf_impl.networks.lowering import Lowered, Scalar
from tf_impl.networks.matrix import TENSOR
from tf_impl.networks.operators import as_tensor, op_div, op_mul
from tf_impl.networks.teacher import TeacherNetwork
from tf_impl.optimizers import layers
from tf_impl.optimizers.base import LearningRate, Own, State, work_dtype
from tf_impl.optimizers.guard import NonFinite, NonFiniteError

__all__ = ["LearnedOptimizer", "NonFinite", "NonFiniteError", "SymbolicOptimizer"]

AnyRule = Rule | str | os.PathLike[str]


@keras.saving.register_keras_serializable(package="symbolic_l2o")
class SymbolicOptimizer(layers.LayeredOptimizer):
    """A rule as an optimizer: theta += lr * scale * expression(g).

    Args:
        rule: a ``Rule`` or the path of a rule file.
        learning_rate: multiplier on the rule's update; 1 is the rule as distilled or tuned. A number, a
            schedule, or a function without arguments.
        constants: in place of some of the rule's own.
        center: subtract what the rule does at zero gradient.
        weight_decay: decoupled, theta *= 1 - lr * weight_decay.
        views: how a rule that sees tensors sees them: a built model, or path of a variable -> a view of
            ``layers.views``, False for what is no matrix, or axes of rows and of columns. Of others: rows
            along the last axis, but for embeddings, depthwise kernels and biases.
        undecayed: paths of variables without weight decay (``layers.per_layer``).
        nonfinite: ``skip`` leaves coordinates alone whose step would not be finite, and warns; ``raise``
            raises as well; ``off`` does not look.
        keywords: of every Keras optimizer: ``clipnorm``, ``clipvalue``, ``global_clipnorm``, ``use_ema``,
            ``ema_momentum``, ``ema_overwrite_frequency``, ``loss_scale_factor``,
            ``gradient_accumulation_steps``, ``name``.

    State per parameter: ``rule.state_floats`` arrays in its shape, float32 at least, and a step count; what
    a rule keeps for rows, columns or tensors is as small as those.
    """

    _fuses = True

    def __init__(
        self,
        rule: AnyRule,
        learning_rate: LearningRate = 1.0,
        *,
        constants: Mapping[str, float] | None = None,
        center: bool = False,
        weight_decay: float | None = None,
        views: Mapping[str, Any] | keras.Layer | None = None,
        undecayed: Sequence[str] = (),
        nonfinite: NonFinite = "skip",
        **keywords: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, nonfinite, views, undecayed, **keywords)
        rule = rule if isinstance(rule, Rule) else Rule.load(rule)
        self.rule = rule.with_constants(constants or {})
        plain = None if constants is None else {name: float(value) for name, value in constants.items()}
        vars(self).update(constants=plain)  # past Keras' tracking
        self.center = bool(center)
        missing = [name for name, node in self.rule.features.items() if node is None]
        if missing:
            raise L2OError(
                f"rule {self.rule.name!r}: feature {missing[0]!r} has no definition over g, so it can be "
                "evaluated on arrays only; add its expression under 'features'"
            )
        moves = 0.0 if center else zero_update(self.rule)
        if moves > 0.0:
            warnings.warn(
                f"rule {rule.name!r} moves weights at zero gradient, by up to {moves:.3g} * learning_rate a "
                "step; center=True subtracts that",
                RuntimeWarning,
                stacklevel=2,
            )
        self._run = self.rule.centered() if center else self.rule
        self._lowered = {has_matrix: _Plain(program) for has_matrix, program in self._run.programs().items()}

    def _source(self) -> tuple[str, str]:
        return self.rule.source()

    def _sees_tensors(self) -> bool:
        return self._run.sees_tensors

    def _step_sizes(self) -> Mapping[str, float]:
        return self.rule.step_sizes

    def _of(self, view: View | None) -> tuple[Lowered, View | None]:
        """The program for a tensor, and the view where that sees more than a coordinate."""
        lowered = self._lowered[view is None or view.matrix]
        return lowered, view if lowered.program.sees_tensors else None

    def _zero_state(self, p: tf.Tensor, view: View | None) -> State:
        lowered, seen = self._of(view)
        return lowered.initial_state(p, seen)

    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: State, t: tf.Tensor, view: View | None
    ) -> tuple[tf.Tensor, State]:
        lowered, seen = self._of(view)
        (out,), state = lowered.step({"g": g, "theta": p, **self._run.constants}, state, t, seen)
        u = tf.broadcast_to(tf.cast(as_tensor(out), p.dtype), p.shape)
        return u if self._run.scale == 1.0 else self._run.scale * u, state

    def _step_compiled(
        self,
        own: Own,
        theta: tf.Tensor,
        g: tf.Tensor,
        lr: tf.Tensor,
        tally: tf.Tensor,
        *state: tf.Tensor,
    ) -> tuple[tf.Tensor, ...] | None:
        rule, guard, rate, before = self._run, self.nonfinite != "off", float(lr), tally.numpy()
        (lowered, seen), keep = self._of(own.view), 1.0 - rate * own.decay
        if seen is not None:
            return None
        found = step_fresh(
            lowered.program, rule.scale, rule.constants, rate, keep, guard, theta, g, before[0], state
        )
        if found is None:
            return None
        moved, t, left, new = found
        return moved, tf.constant([t, left, *before[2:]], tf.float64), *new

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {
            "rule": self.rule.to_json(),
            "constants": self.constants,
            "center": self.center,
        }

    @classmethod
    def _arguments(cls, config: dict[str, Any]) -> dict[str, Any]:
        return config | {"rule": Rule.from_json(config["rule"])}


class _Plain(Lowered):
    """A program that is never differentiated."""

    def _pointwise(self, ins: Instruction, args: Sequence[Scalar]) -> Scalar:
        if ins.op == "sqrt" and isinstance(args[0], tf.Tensor):  # what Lowered adds is for derivatives at 0
            return tf.sqrt(tf.abs(args[0]))
        return super()._pointwise(ins, args)

    def _unbiased(self, x: Scalar, factor: Scalar) -> Scalar:
        return op_mul(x, op_div(1.0, factor))  # one division, of a scalar


@keras.saving.register_keras_serializable(package="symbolic_l2o")
class LearnedOptimizer(layers.LayeredOptimizer):
    """A meta-trained teacher as an optimizer: theta += lr * scale * output(LSTM(features(g))).

    Of a teacher with a structure matrices get structure(output(...)).

    Args:
        teacher: a run folder, a ``teacher.h5`` file, or ``Teacher``.
        learning_rate: multiplier on the teacher's update.
        views: how a teacher that sees tensors, by its structure or features, does: as ``SymbolicOptimizer``.
        weight_decay, undecayed, nonfinite, keywords: as there.

    State per parameter tensor of n elements: h and c of every cell, [hidden, n], and the features'.
    """

    def __init__(
        self,
        teacher: Teacher | str | os.PathLike[str],
        learning_rate: LearningRate = 1.0,
        *,
        weight_decay: float | None = None,
        views: Mapping[str, Any] | keras.Layer | None = None,
        undecayed: Sequence[str] = (),
        nonfinite: NonFinite = "skip",
        **keywords: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, nonfinite, views, undecayed, **keywords)
        self._given = teacher if isinstance(teacher, Teacher) else load_weights(teacher)
        self._network = TeacherNetwork(self._given.row, self._given.weights)

    def _source(self) -> tuple[str, str]:
        return self._given.source()

    def _sees_tensors(self) -> bool:
        return self._given.sees_tensors

    def _step_sizes(self) -> Mapping[str, float]:
        return self._given.step_sizes

    def _view(self, k: int) -> View | None:
        view = super()._view(k)
        return view if view is not None and (view.matrix or self._network.features.sees_tensors) else None

    def _state_view(self, own: Own) -> None:
        return None  # state is of every coordinate

    def _prepare(self, variables: Sequence[keras.Variable]) -> None:
        super()._prepare(variables)
        with tf.init_scope():  # constants of one graph cannot be used in another
            self._weights = {
                dtype.name: {name: tf.constant(w, dtype) for name, w in self._given.weights.items()}
                for dtype in {work_dtype(v) for v in variables}
            }

    def _zero_state(self, p: tf.Tensor, view: View | None) -> State:
        zero = self._network.initial_state(tf.reshape(p, [-1]))
        return zero.features + zero.network

    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: State, t: tf.Tensor, view: View | None
    ) -> tuple[tf.Tensor, State]:
        network = self._network
        count = len(state) - 2 * len(network.teacher.lstm)
        views = () if view is None else (view,)
        x, features = network.features.step(tf.reshape(g, [-1]), state[:count], t, views)
        out, hidden = network.step(self._weights[p.dtype.name], x, state[count:], t)
        if view is not None and network.structure:
            out = TENSOR[network.structure](tf.reshape(out, view.split), view.axes)
        return network.scale * tf.reshape(out, p.shape), features + hidden

    def _settings(self) -> dict[str, Any]:
        teacher = {
            "row": self._given.row.to_dict(),
            "weights": {name: _to_text(array) for name, array in self._given.weights.items()},
            "sha256": self._given.sha256,
            "created_by": self._given.created_by,
            "step_sizes": self._given.step_sizes,
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
            "step_sizes_json": canonical_json(given.get("step_sizes", {})),
        }
        tree = Tree(arrays, {"": attributes}, given["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise L2OError(
            f"configuration of a LearnedOptimizer: not a teacher ({error}); save it again"
        ) from None
    return weights_from_tree(tree, "configuration of a LearnedOptimizer")
