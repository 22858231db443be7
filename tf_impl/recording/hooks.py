"""One run of a Keras optimizer as it goes on: gradient and output at chosen coordinates.

Keras has no step hooks, and callbacks see no gradients; so the optimizer's own functions are wrapped.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common.data.coordinates import choose_coordinates, choose_tensors
from common.errors import L2OError
from tf_impl.optimizers import layers

_log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Part:
    """The coordinates of one parameter tensor.

    Attributes:
        number: of the tensor among the optimizer's.
        places: i8 [n] in the flattened tensor.
        g: its gradient there in the step going on [n].
        seen: whether it has had one in that step.
        live: whether it has had one in every step.
    """

    number: int
    variable: keras.Variable | tf.Variable
    places: np.ndarray
    g: tf.Variable
    seen: tf.Variable
    live: tf.Variable

    def pick(self, tensor: tf.Tensor) -> tf.Tensor:
        """The coordinates [n] of a tensor of the parameter's shape."""
        return tf.cast(tf.gather(tf.reshape(tensor, [-1]), self.places), self.g.dtype)


class Watch:
    """Wraps ``apply``, ``update_step`` and ``scale_loss`` of one optimizer until ``end``.

    What is seen goes into variables by operations beside the optimizer's own, so steps of a graph, compiled
    by XLA or not, are recorded as eager ones are, and nothing is copied to the host before the end.

    Args:
        count, seed, index: as for ``choose_coordinates``; drawn at the first step.
        steps: after which nothing more is recorded.
        include_lr: y is the whole move, the learning rate in it.
        whole: whole tensors are chosen, by ``choose_tensors``.

    Attributes:
        loss: the last one given, and 1 once there is one [2].
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        count: int,
        steps: int,
        seed: int,
        index: int,
        include_lr: bool,
        whole: bool = False,
    ) -> None:
        self._include_lr, self._whole = include_lr, whole
        self._outer, self._inner = optimizer, getattr(optimizer, "inner_optimizer", optimizer)
        if "update_step" in vars(self._inner):
            raise L2OError(f"{self._inner.name} is being recorded already; save that recording first")
        self._count, self._steps, self._address = count, steps, (seed, index)
        self.source = _source(self._inner)
        self.loss = tf.Variable(np.zeros(2), trainable=False)
        self._parts: list[_Part] = []
        self._own = self._inner.apply, self._inner.update_step, self._outer.scale_loss
        self._inner.apply, self._inner.update_step = self._apply, self._update_step
        self._outer.scale_loss = self._scale_loss

    def end(self) -> None:
        """Give the optimizer its own functions back; what was traced with ours writes no more."""
        del self._inner.apply, self._inner.update_step, self._outer.scale_loss
        if self._parts:
            self._ended.assign(True)

    @property
    def recorded(self) -> int:
        """Steps recorded so far."""
        return int(self._row.numpy()) if self._parts else 0

    def _scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """What Keras' ``train_step`` calls with a batch's loss."""
        self.loss.assign([tf.cast(loss, tf.float64), 1.0])
        return self._own[2](loss)

    def _apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        if not self._parts:
            self._draw(grads, trainable_variables)
        for part in self._parts:
            part.seen.assign(False)
        theta = self._picked()
        self._own[0](grads, trainable_variables)
        if self._parts:
            self._write(theta)

    def _update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> Any:
        """Called with clipped, unscaled and accumulated gradients, and only where there is one."""
        number = self._inner._get_variable_index(variable)
        for part in self._parts:
            if part.number == number:
                part.g.assign(part.pick(tf.convert_to_tensor(gradient)))
                part.seen.assign(True)
                self._lr.assign(tf.cast(learning_rate, tf.float64))
        return self._own[1](gradient, variable, learning_rate)

    def _picked(self) -> tf.Tensor:
        return tf.concat([part.pick(tf.convert_to_tensor(part.variable)) for part in self._parts], 0)

    def _write(self, theta: tf.Tensor) -> None:
        """Gradient, output and loss of the step just made, if it is one to record.

        With lr 0 what the optimizer does cannot be seen: waited for at the start, the end of a run later.
        """
        seen = tf.stack([part.seen for part in self._parts])
        stepped, moving = tf.reduce_any(seen), tf.not_equal(self._lr, 0.0)
        recorded = stepped & moving & ~self._ended.read_value()
        row = tf.where(recorded, self._row, self._steps)  # one row more takes what is not recorded
        move, lr = self._picked() - theta, tf.cast(tf.where(moving, self._lr, 1.0), theta.dtype)
        for rows, values in (
            (self._gs, tf.concat([part.g for part in self._parts], 0)),
            (self._ys, move if self._include_lr else move / lr),
            (self._thetas, theta),
            (self._lrs, [self._lr]),
            (self._losses, self.loss),
        ):
            rows.scatter_nd_update([[row]], [values])
        for part in self._parts:
            part.live.assign(part.live & (part.seen | ~recorded))
        lost = stepped & ~moving & (self._row > 0)
        self._row.assign_add(tf.cast(recorded, tf.int64))
        self._ended.assign(self._ended | lost | tf.equal(self._row, self._steps))

    def _draw(self, grads: Sequence[Any], variables: Sequence[Any] | None) -> None:
        """Choose coordinates from the tensors that have a gradient, and make room for them."""
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise L2OError("expected one replica to record, got several; record without a strategy")
        variables = list(self._inner._trainable_variables if variables is None else variables)
        if not self._inner.built:
            with keras.name_scope(self._inner.name):
                self._inner.build(variables)
        numbers = [self._inner._get_variable_index(v) for v in variables]
        known = self._inner._trainable_variables
        self._names = tuple(getattr(v, "path", v.name) for v in known)
        self._shapes = tuple(tuple(v.shape) for v in known)
        self._views = tuple(layers.of_variables(getattr(self._inner, "views", None) or {}, known))
        ready = [
            (k, v)
            for k, v, g in sorted(zip(numbers, variables, grads, strict=True), key=lambda row: row[0])
            if g is not None and math.prod(v.shape)
        ]
        for k, v in ready:
            kind = tf.as_dtype(v.dtype)
            if not kind.is_floating:
                raise L2OError(
                    f"{self._names[k]}: expected real floating point, got {kind.name}; leave it out"
                )
        if not ready:
            return
        sizes = [math.prod(v.shape) for _, v in ready]
        choose = choose_tensors if self._whole else choose_coordinates
        chosen = choose(sizes, self._count, *self._address)
        wide = any(tf.as_dtype(v.dtype) == tf.float64 for _, v in ready)
        dtype = np.float64 if wide else np.float32
        ends = np.cumsum(sizes)
        with tf.init_scope():  # variables are made outside the graph, whichever is being traced
            for (k, v), start, end in zip(ready, ends - sizes, ends, strict=True):
                places = chosen[(chosen >= start) & (chosen < end)] - start
                if len(places):
                    flags = (tf.Variable(value, trainable=False) for value in (False, True))
                    g = tf.Variable(np.zeros(len(places), dtype), trainable=False)
                    self._parts.append(_Part(k, v, places, g, *flags))
            self._gs, self._ys, self._thetas, self._lrs, self._losses = (
                tf.Variable(np.zeros((self._steps + 1, size), kind), trainable=False)
                for size, kind in [(len(chosen), dtype)] * 3 + [(1, np.float64), (2, np.float64)]
            )
            self._row = tf.Variable(0, dtype=tf.int64, trainable=False)
            self._lr = tf.Variable(0.0, dtype=tf.float64, trainable=False)
            self._ended = tf.Variable(False, trainable=False)

    def arrays(self) -> tuple[dict[str, np.ndarray], np.ndarray, bool]:
        """g, y, theta and lr [step, n], losses f8 [step], and whether a loss was ever given."""
        for part in self._parts:
            if not part.live.numpy():
                _log.warning("%s is left out: it lost its gradient", self._names[part.number])
        kept = np.repeat([bool(p.live.numpy()) for p in self._parts], [len(p.places) for p in self._parts])
        seen = {"g": self._gs, "y": self._ys, "theta": self._thetas}
        arrays = {name: rows.numpy()[: self.recorded, kept] for name, rows in seen.items()}
        lr, losses = (rows.numpy()[: self.recorded] for rows in (self._lrs, self._losses))
        arrays["lr"] = np.broadcast_to(lr, arrays["g"].shape)
        given = losses[:, 1] > 0
        first = losses[given.argmax(), 0]  # 0 where none is given
        return arrays, np.where(given, losses[:, 0], first), bool(given.any())

    def places(self) -> dict[str, Any]:
        """Where the coordinates are, by the names of a run's fields."""
        parts = [part for part in self._parts if part.live.numpy()]
        return {
            "param_index": np.repeat([part.number for part in parts], [len(part.places) for part in parts]),
            "flat_index": np.concatenate([part.places for part in parts]),
            "params_names": self._names,
            "params_shapes": self._shapes,
            "params_views": self._views if self._whole else None,
        }


def one_number(value: Any) -> tf.Tensor:
    """A loss as a 0-dim float64 tensor."""
    tensor = value if tf.is_tensor(value) else tf.constant(value, tf.float64)
    if tensor.shape.num_elements() != 1:
        raise L2OError(f"loss: expected one number, got shape {tuple(tensor.shape)}; take its mean")
    return tf.cast(tf.reshape(tensor, []), tf.float64)


def _source(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """The optimizer's class and settings, JSON-ready; what is neither number, flag nor text is left out."""

    def plain(value: Any) -> bool:
        return isinstance(value, (bool, str)) or (isinstance(value, (int, float)) and math.isfinite(value))

    given = optimizer.get_config()
    settings = {k: v for k, v in given.items() if plain(v) and k not in ("rule", "learning_rate")}
    return settings | {"name": type(optimizer).__name__, "lr": float(optimizer.learning_rate)}
