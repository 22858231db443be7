"""The registers of a program over whole sequences, with derivatives by constants; what every executor asks.

``Sequences`` makes one NumPy call per instruction on arrays [T, ...].
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import L2OError
from interchange.language.compiler import Instruction, Program
from interchange.language.matrix import DERIVATIVES
from interchange.language.operators import OPERATORS, TENSOR
from interchange.language.view import View

Array = np.ndarray
Tangents = dict[int, Any]


def unbias_factor(decay: float, t: Any) -> Any:
    """1 - decay**t in float64, without cancellation; ``t`` a number or an array."""
    return -np.expm1(np.multiply(t, math.log(decay)))


class Sequences:
    """Registers over a whole sequence [T, ...]; values without a time axis stay scalars."""

    def __init__(
        self, program: Program, inputs: Mapping[str, Any], dtype: np.dtype, view: View | None = None
    ) -> None:
        self.program, self.view, self.dtype = program, view, dtype
        self.given = shape_of(inputs, ())
        self.shape = self.given
        if view:
            self.shape = (*self.given[: len(self.given) - len(view.shape)], *view.split)
        steps = np.arange(1, (self.shape or (1,))[0] + 1, dtype=np.float64)
        self.t = steps.reshape(-1, *(1 for _ in self.shape[1:]))
        self.inputs = {"t": self.t, **inputs} if self.shape else inputs
        if view:
            self.inputs = {"t": self.t, **view.sizes, **split(inputs, view)}
        self.values: list[Any] = []
        self.tangents: list[Tangents] = []

    def value(self, ins: Instruction) -> Any:
        args = [self.values[arg] for arg in ins.args]
        if ins.op == "input":
            return np.asarray(value_of(self.inputs, ins.name), self.dtype)[()]
        if ins.op == "number":
            return self.dtype.type(ins.value)
        if ins.op in OPERATORS and OPERATORS[ins.op].numpy is not None:
            return OPERATORS[ins.op].numpy(*args)
        if ins.op in TENSOR:
            return of_tensor(ins.op, args[0], self.view, self.shape)
        if not self.shape:
            raise L2OError(f"expected at least one input with a time axis, because the rule uses {ins.op}")
        if ins.op == "read":
            return self._shift(self.values[self.program.writes[ins.slot]])
        if ins.op == "unbias":
            return args[0] / self._unbias_factor(ins).astype(self.dtype)
        if ins.op == "ema" and len(args) == 3:
            return _recur(args[1], self._in_time(args[2] * args[0]), time_axis=0)
        if ins.op == "ema":
            decay = decay_of(self.program, ins, self.inputs)
            drive = self.dtype.type(1.0 - decay) * args[0]
            return self.recur(self.dtype.type(decay), self._in_time(drive))
        given = self._in_time(args[0])
        if ins.op == "cummax":
            return np.maximum.accumulate(given, axis=0)
        return np.add.accumulate(given, axis=0) + self.dtype.type(0)  # 0 + -0.0, as a step adds, is 0.0

    def whole(self, value: Any) -> Array:
        """A value as one array in the shape of the inputs."""
        return np.broadcast_to(value, self.shape).reshape(self.given)

    def _in_time(self, value: Any) -> Array:
        """A value with its time axis, and otherwise in the shape that it has: sums of a tensor stay small."""
        shape = np.shape(value)
        if self.view is None or not shape:
            return np.broadcast_to(value, self.shape)
        return np.broadcast_to(value, (self.shape[0], *shape[1:]))

    def recur(self, decay: Any, drive: Array) -> Array:
        """s[t] = decay * s[t-1] + drive[t] from s = 0, along the time axis."""
        return _recur(decay, drive, time_axis=0)

    def tangent(self, ins: Instruction, out: Any) -> Tangents:
        """Derivatives of register ``ins`` by each constant it depends on; absent means zero."""
        if ins.op == "read":
            return {k: self._shift(d) for k, d in self.tangents[self.program.writes[ins.slot]].items()}
        given = [self.tangents[arg] for arg in ins.args]
        if not any(given):
            return {}
        args = [self.values[arg] for arg in ins.args]
        if ins.op in TENSOR:
            return {k: self._along(ins.op, args[0], d) for k, d in given[0].items()}
        if ins.op == "ema" and len(args) == 3:
            return self._recurrence(args[1], {k: args[2] * d for k, d in given[0].items()})
        if ins.op == "ema":
            decay = decay_of(self.program, ins, self.inputs)
            return self._recurrence(decay, _combine(given, (1.0 - decay, self._shift(out) - args[0])))
        if ins.op == "unbias":
            decay, factor = decay_of(self.program, ins, self.inputs), self._unbias_factor(ins)
            by_decay = out / factor * self.t * np.power(decay, self.t - 1.0)
            return _combine(given, (1.0 / factor, by_decay))
        if ins.op == "cumsum":
            return {k: np.cumsum(np.broadcast_to(d, self.shape), axis=0) for k, d in given[0].items()}
        if ins.op == "cummax":
            return self._running_maximum(np.broadcast_to(args[0], self.shape), out, given[0])
        return _combine(given, OPERATORS[ins.op].derivative(*args, out))

    def _along(self, op: str, x: Any, tangent: Any) -> Array:
        x = np.broadcast_to(x, self.shape)
        return DERIVATIVES[op](x, np.broadcast_to(tangent, self.shape), self.view.axes)

    def _recurrence(self, decay: Any, drives: Tangents) -> Tangents:
        stacked = np.stack([np.broadcast_to(drive, self.shape) for drive in drives.values()])
        return dict(zip(drives, _recur(decay, stacked, time_axis=1), strict=True))

    def _running_maximum(self, x: Array, out: Array, given: Tangents) -> Tangents:
        """New maxima take the tangent of x, ties the mean of old and new."""
        share = np.where(x < out, 0.0, 1.0)
        share[1:] -= 0.5 * (x[1:] == out[:-1])
        results = {}
        for k, tangent in given.items():
            result = np.array(np.broadcast_to(tangent, self.shape), dtype=np.float64)
            for t in range(1, len(result)):
                result[t] = share[t] * result[t] + (1.0 - share[t]) * result[t - 1]
            results[k] = result
        return results

    def _shift(self, value: Any) -> Array:
        given = self._in_time(value)
        shifted = np.zeros(given.shape, self.dtype)
        shifted[1:] = given[:-1]
        return shifted

    def _unbias_factor(self, ins: Instruction) -> Array:
        return unbias_factor(decay_of(self.program, ins, self.inputs), self.t)


def _recur(decay: Any, drive: Array, time_axis: int) -> Array:
    """s[t] = decay * s[t-1] + drive[t] from s = 0, along ``time_axis``."""
    result = np.array(drive)
    moved = np.moveaxis(result, time_axis, 0)
    moved[:1] += 0.0  # b * 0 + -0.0, as a step adds, is 0.0
    for t in range(1, len(moved)):
        moved[t] += (decay[t] if np.ndim(decay) else decay) * moved[t - 1]
    return result


def of_tensor(op: str, x: Any, view: View | None, shape: tuple[int, ...]) -> Any:
    """A tensor operator on a register; an array without elements has values that broadcast to nothing."""
    if view is None:
        raise L2OError(f"{op} sees tensors: it needs their shapes, as evaluate(..., shapes=[(64, 32)])")
    if op in ("polar", "orth"):
        x = np.broadcast_to(x, shape)
    if not np.size(x):
        x = np.zeros([max(1, n) for n in np.shape(x)], x.dtype)
    return OPERATORS[op].tensor(x, view.axes)


def split(inputs: Mapping[str, Any], view: View | None) -> Mapping[str, Any]:
    """Arrays [..., *view.shape] as operators look at them."""
    if view is None or view.shape == view.split:
        return inputs
    n = len(view.shape)
    return {
        name: np.reshape(value, (*np.shape(value)[:-n], *view.split)) if np.ndim(value) >= n else value
        for name, value in inputs.items()
    }


def _combine(given: Sequence[Tangents], partials: Sequence[Any]) -> Tangents:
    """The chain rule: per constant the sum of partial times tangent over the arguments."""
    total: Tangents = {}
    for tangents, partial in zip(given, partials, strict=True):
        if type(partial) is float and partial == 0.0:
            continue
        for k, tangent in tangents.items():
            term = _product(partial, tangent)
            total[k] = total[k] + term if k in total else term
    return total


def _product(partial: Any, tangent: Any) -> Any:
    # Most partials and all seeds are exactly 1, and a product over a large array is the cost here.
    if type(partial) is float and partial == 1.0:
        return tangent
    if type(tangent) is float and tangent == 1.0:
        return partial
    return partial * tangent


def decay_of(program: Program, ins: Instruction, values: Mapping[str, Any]) -> float:
    """The exact float64 decay of an "ema" or "unbias"."""
    source = program.instructions[ins.args[1]]
    value = source.value if source.op == "number" else value_of(values, source.name)
    if np.ndim(value) or not 0.0 < value < 1.0:
        raise L2OError(f"expected one number b with 0 < b < 1 as decay {source.name or value}, got {value}")
    return float(value)


def value_of(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise L2OError(f"expected a value for {name!r}; given: {', '.join(values) or 'none'}")
    return values[name]


def shape_of(inputs: Mapping[str, Any], state: tuple[Array, ...]) -> tuple[int, ...]:
    shapes = [np.shape(value) for value in (*inputs.values(), *state)]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        shown = ", ".join(f"{name} {np.shape(value)}" for name, value in inputs.items())
        raise L2OError(f"expected inputs of one shape [T, N], got {shown}") from None
