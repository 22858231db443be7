"""Compiled programs run as TensorFlow code, one step at a time."""

import math
from collections.abc import Mapping, Sequence

import tensorflow as tf

from interchange.language.compiler import Instruction, Program
from interchange.language.view import FULL, View
from tf_impl.networks.matrix import TENSOR
from tf_impl.networks.operators import OPERATORS, as_tensor, op_add, op_div, op_max, op_mul

Scalar = float | tf.Tensor


def _float64(value: Scalar) -> Scalar:
    """A Python number as it is, a tensor in float64."""
    return value if isinstance(value, int | float) else tf.cast(value, tf.float64)


def _one_minus_power(b: Scalar, t: Scalar) -> Scalar:
    """1 - b**t in float64, without cancellation for b near 1."""
    if isinstance(b, int | float) and isinstance(t, int | float):
        return -math.expm1(t * math.log(b))
    t, b = (tf.cast(as_tensor(value), tf.float64) for value in (t, b))
    return -tf.math.expm1(t * tf.math.log(b))


def _reshaped(x: Scalar, shape: tuple[int, ...], to: tuple[int, ...]) -> Scalar:
    """An array [..., *shape] as [..., *to]; numbers, and state of another shape, as they are."""
    n = len(shape)
    if shape == to or not tf.is_tensor(x) or tuple(x.shape[x.shape.rank - n :]) != shape:
        return x
    return tf.reshape(x, tf.concat([tf.shape(x)[: x.shape.rank - n], to], 0))


def _of_tensor(op: str, x: Scalar, view: View, like: tf.Tensor) -> tf.Tensor:
    """A tensor operator on a value; a tensor without elements has values that broadcast to nothing."""
    if op in ("polar", "orth"):
        x = tf.broadcast_to(tf.cast(as_tensor(x), like.dtype), tf.shape(like))
        x = tf.ensure_shape(x, like.shape)
    if tf.is_tensor(x) and 0 in x.shape:
        x = tf.zeros([max(1, n) for n in x.shape], x.dtype)
    return TENSOR[op](x, view.axes)


class Lowered:
    """A program as a pure function of inputs, state and step count.

    Values keep the dtype of the arrays put in; constants are Python floats or 0-dim float64 tensors,
    so 1 - b is formed in float64 whatever the arrays' dtype (FORMATS.md section 3, Numbers).
    """

    def __init__(self, program: Program) -> None:
        self.program = program

    def initial_state(self, like: tf.Tensor, view: View | None = None) -> tuple[tf.Tensor, ...]:
        """One zero array per state slot, as ``like``; with a view, those of rows as small as they are."""
        if view is None:
            return tuple(tf.zeros_like(like) for _ in self.program.writes)
        lead = like.shape[: like.shape.rank - len(view.shape)]
        return tuple(
            tf.zeros_like(like) if kind == FULL else tf.zeros((*lead, *view.reduced(kind)), like.dtype)
            for kind in self.program.slot_kinds
        )

    def step(
        self,
        inputs: Mapping[str, Scalar],
        state: tuple[tf.Tensor, ...],
        t: Scalar,
        view: View | None = None,
    ) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
        """One step.

        Args:
            inputs: every name the program reads but ``t``; arrays of one shape, constants 0-dim.
            state: one array per slot.
            t: the number of this step, from 1.
            view: of the tensor that the arrays are, which programs that see tensors need; the arrays may have
                leading axes (lanes).

        Returns:
            The program's outputs and the new state.
        """
        if view is None:
            return self._step(inputs, state, t, None)
        inputs = {n: _reshaped(x, view.shape, view.split) for n, x in inputs.items()} | view.sizes
        split = tuple(_reshaped(s, view.shape, view.split) for s in state)
        outputs, new_state = self._step(inputs, split, t, view)
        outputs = tuple(_reshaped(out, view.split, view.shape) for out in outputs)
        pairs = zip(new_state, state, strict=True)
        return outputs, tuple(tf.reshape(new, tf.shape(old)) for new, old in pairs)

    def _step(
        self, inputs: Mapping[str, Scalar], state: tuple[tf.Tensor, ...], t: Scalar, view: View | None
    ) -> tuple[tuple[Scalar, ...], tuple[tf.Tensor, ...]]:
        """``step`` of arrays in the shape that the view looks at."""
        values: list[Scalar] = []
        for ins in self.program.instructions:
            args = [values[i] for i in ins.args]
            if ins.op == "input":
                value = _float64(t) if ins.name == "t" else inputs[ins.name]
            elif ins.op == "number":
                value = ins.value
            elif ins.op == "read":
                value = state[ins.slot]
            elif ins.op == "ema":
                x, b = args[0], _float64(args[1])
                rest = args[2] if len(args) == 3 else 1.0 - b
                kept = op_mul(*self._matched(b, state[ins.slot]))
                value = op_add(*self._matched(kept, op_mul(*self._matched(rest, x))))
            elif ins.op == "unbias":
                value = self._unbiased(*self._matched(args[0], _one_minus_power(args[1], t)))
            elif ins.op == "cumsum":
                value = op_add(*self._matched(state[ins.slot], args[0]))
            elif ins.op == "cummax":
                old = state[ins.slot]
                x = tf.cast(as_tensor(args[0]), old.dtype)
                value = tf.where(tf.equal(t, 1), x, op_max(old, x))
            elif ins.op in TENSOR:
                value = _of_tensor(ins.op, args[0], view, inputs["g"])
            else:
                value = self._pointwise(ins, self._matched(*args))
            values.append(value)
        outputs = tuple(values[i] for i in self.program.outputs)
        new_state = tuple(
            self._kept(values[i], old) for i, old in zip(self.program.writes, state, strict=True)
        )
        return outputs, new_state

    def _matched(self, *args: Scalar) -> Sequence[Scalar]:
        return args

    def _pointwise(self, ins: Instruction, args: Sequence[Scalar]) -> Scalar:
        return OPERATORS[ins.op](*args)

    def _unbiased(self, x: Scalar, factor: Scalar) -> Scalar:
        return op_div(x, factor)

    def _kept(self, value: Scalar, old: tf.Tensor) -> tf.Tensor:
        """A value as state: like ``old``."""
        return tf.broadcast_to(tf.cast(as_tensor(value), old.dtype), tf.shape(old))


class LoweredBatched(Lowered):
    """A program that also runs in lanes: arrays [lane, N], and constants of every lane, [lane, 1] float64.

    A constant takes the dtype of the array it meets, as a 0-dim one does of itself.
    """

    def _matched(self, *args: Scalar) -> Sequence[Scalar]:
        args = tuple(a if isinstance(a, int | float) else tf.convert_to_tensor(a) for a in args)
        found = {a.dtype for a in args if isinstance(a, tf.Tensor) and a.shape.rank}
        if len(found) < 2:
            return args
        dtype = min(found, key=lambda dtype: dtype.size)
        return tuple(tf.cast(a, dtype) if isinstance(a, tf.Tensor) and a.shape.rank else a for a in args)
