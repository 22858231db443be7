"""NumPy execution of compiled expressions: the oracle, and the inner loop of constant refitting.

``step`` runs one step as an optimizer does; ``evaluate`` runs whole sequences [T, N] at once, one NumPy
call per instruction; ``evaluate_with_tangents`` adds forward-mode derivatives by constants from the
derivative column of the operator table. All three agree: state starts at zero, t counts from 1.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import L2OError
from interchange.language.compiler import Instruction, Program, compile_program
from interchange.language.operators import OPERATORS

__all__ = [
    "Instruction",
    "Program",
    "compile_program",
    "evaluate",
    "evaluate_with_tangents",
    "initial_state",
    "step",
    "unbias_factor",
]

Array = np.ndarray
Tangents = dict[int, Any]


def initial_state(program: Program, shape: tuple[int, ...], dtype: Any = np.float64) -> tuple[Array, ...]:
    """Zero state: one array of ``shape`` per slot."""
    return tuple(np.zeros(shape, dtype) for _ in program.writes)


def unbias_factor(decay: float, t: Any) -> Any:
    """1 - decay**t in float64, without cancellation; ``t`` a number or an array."""
    return -np.expm1(np.multiply(t, math.log(decay)))


def step(
    program: Program, inputs: Mapping[str, Any], state: tuple[Array, ...], t: int
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """One step.

    Args:
        inputs: arrays of one shape, or scalars. ``t`` need not be among them.
        state: as of ``initial_state`` or of the step before; sets the dtype of the computation.
        t: from 1.

    Returns:
        The outputs and the new state, arrays of one shape.
    """
    shape = _shape(inputs, state)
    dtype = state[0].dtype if state else _result_dtype(inputs)
    values = {"t": t, **inputs}
    registers: list[Any] = []
    with np.errstate(all="ignore"):
        for ins in program.instructions:
            args = [registers[arg] for arg in ins.args]
            if ins.op == "input":
                result = np.asarray(_value(values, ins.name), dtype)[()]
            elif ins.op == "number":
                result = dtype.type(ins.value)
            elif ins.op == "read":
                result = state[ins.slot]
            elif ins.op == "ema":
                decay = _decay(program, ins, values)
                result = dtype.type(decay) * state[ins.slot] + dtype.type(1.0 - decay) * args[0]
            elif ins.op == "unbias":
                result = args[0] / dtype.type(unbias_factor(_decay(program, ins, values), t))
            elif ins.op == "cumsum":
                result = state[ins.slot] + args[0]
            elif ins.op == "cummax":
                result = args[0] if t == 1 else np.maximum(state[ins.slot], args[0])
            else:
                result = OPERATORS[ins.op].numpy(*args)
            registers.append(result)
    outputs = tuple(np.broadcast_to(registers[source], shape) for source in program.outputs)
    # Copies, so that a caller may reuse its gradient array.
    return outputs, tuple(np.array(np.broadcast_to(registers[source], shape)) for source in program.writes)


def evaluate(program: Program, inputs: Mapping[str, Any], dtype: Any = np.float64) -> tuple[Array, ...]:
    """The outputs over whole sequences, from zero state.

    Args:
        inputs: arrays [T, ...] with t = 1..T along the first axis, or scalars; names the program does
            not read only contribute their shape.
        dtype: of the computation.

    Returns:
        One array [T, ...] per output.
    """
    run = Sequences(program, inputs, np.dtype(dtype))
    last_use = {arg: i for i, ins in enumerate(program.instructions) for arg in ins.args}
    for ins in program.instructions:
        if ins.op == "read":
            last_use[program.writes[ins.slot]] = len(program.instructions)
    keep = set(program.outputs)
    with np.errstate(all="ignore"):
        for index, ins in enumerate(program.instructions):
            run.values.append(run.value(ins))
            for arg in ins.args:
                if last_use[arg] == index and arg not in keep:
                    run.values[arg] = None
    return tuple(np.broadcast_to(run.values[source], run.shape) for source in program.outputs)


def evaluate_with_tangents(
    program: Program, inputs: Mapping[str, Any], wrt: Sequence[str]
) -> tuple[Array, Array]:
    """The first output over whole sequences, and its derivatives by constants (float64, forward mode).

    Args:
        inputs: as for ``evaluate``.
        wrt: names of k scalar inputs, decays of ``ema`` and ``ema_hat`` included.

    Returns:
        Value [T, N] and tangents [k, T, N].
    """
    run = Sequences(program, inputs, np.dtype(np.float64))
    position = {name: k for k, name in enumerate(wrt)}
    with np.errstate(all="ignore"):
        for ins in program.instructions:
            run.values.append(run.value(ins))
            if ins.op == "input":
                run.tangents.append({position[ins.name]: 1.0} if ins.name in position else {})
            else:
                run.tangents.append(run.tangent(ins, run.values[-1]))
    source = program.outputs[0]
    tangents = np.zeros((len(position), *run.shape))
    for k, tangent in run.tangents[source].items():
        tangents[k] = tangent
    return np.broadcast_to(run.values[source], run.shape), tangents


class Sequences:
    """Registers over a whole sequence [T, ...]; values without a time axis stay scalars."""

    def __init__(self, program: Program, inputs: Mapping[str, Any], dtype: np.dtype) -> None:
        self.program = program
        self.shape = _shape(inputs, ())
        self.dtype = dtype
        steps = np.arange(1, (self.shape or (1,))[0] + 1, dtype=np.float64)
        self.t = steps.reshape(-1, *(1 for _ in self.shape[1:]))
        self.inputs = {"t": self.t, **inputs} if self.shape else inputs
        self.values: list[Any] = []
        self.tangents: list[Tangents] = []

    def value(self, ins: Instruction) -> Any:
        args = [self.values[arg] for arg in ins.args]
        if ins.op == "input":
            return np.asarray(_value(self.inputs, ins.name), self.dtype)[()]
        if ins.op == "number":
            return self.dtype.type(ins.value)
        if ins.op in OPERATORS and OPERATORS[ins.op].numpy is not None:
            return OPERATORS[ins.op].numpy(*args)
        if not self.shape:
            raise L2OError(f"expected at least one input with a time axis, because the rule uses {ins.op}")
        if ins.op == "read":
            return self._shift(self.values[self.program.writes[ins.slot]])
        if ins.op == "unbias":
            return args[0] / self._unbias_factor(ins).astype(self.dtype)
        if ins.op == "ema":
            decay = _decay(self.program, ins, self.inputs)
            drive = self.dtype.type(1.0 - decay) * args[0]
            return self.recur(self.dtype.type(decay), np.broadcast_to(drive, self.shape))
        given = np.broadcast_to(args[0], self.shape)
        if ins.op == "cummax":
            return np.maximum.accumulate(given, axis=0)
        return np.add.accumulate(given, axis=0) + self.dtype.type(0)  # 0 + -0.0, as a step adds, is 0.0

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
        if ins.op == "ema":
            decay = _decay(self.program, ins, self.inputs)
            return self._recurrence(decay, _combine(given, (1.0 - decay, self._shift(out) - args[0])))
        if ins.op == "unbias":
            decay, factor = _decay(self.program, ins, self.inputs), self._unbias_factor(ins)
            by_decay = out / factor * self.t * np.power(decay, self.t - 1.0)
            return _combine(given, (1.0 / factor, by_decay))
        if ins.op == "cumsum":
            return {k: np.cumsum(np.broadcast_to(d, self.shape), axis=0) for k, d in given[0].items()}
        if ins.op == "cummax":
            return self._running_maximum(np.broadcast_to(args[0], self.shape), out, given[0])
        return _combine(given, OPERATORS[ins.op].derivative(*args, out))

    def _recurrence(self, decay: float, drives: Tangents) -> Tangents:
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
        shifted = np.zeros(self.shape, self.dtype)
        shifted[1:] = np.broadcast_to(value, self.shape)[:-1]
        return shifted

    def _unbias_factor(self, ins: Instruction) -> Array:
        return unbias_factor(_decay(self.program, ins, self.inputs), self.t)


def _recur(decay: Any, drive: Array, time_axis: int) -> Array:
    """s[t] = decay * s[t-1] + drive[t] from s = 0, along ``time_axis``."""
    result = np.array(drive)
    moved = np.moveaxis(result, time_axis, 0)
    moved[:1] += 0.0  # b * 0 + -0.0, as a step adds, is 0.0
    for t in range(1, len(moved)):
        moved[t] += decay * moved[t - 1]
    return result


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


def _decay(program: Program, ins: Instruction, values: Mapping[str, Any]) -> float:
    """The exact float64 decay of an "ema" or "unbias"."""
    source = program.instructions[ins.args[1]]
    value = source.value if source.op == "number" else _value(values, source.name)
    if np.ndim(value) or not 0.0 < value < 1.0:
        raise L2OError(f"expected one number b with 0 < b < 1 as decay {source.name or value}, got {value}")
    return float(value)


def _value(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise L2OError(f"expected a value for {name!r}; given: {', '.join(values) or 'none'}")
    return values[name]


def _shape(inputs: Mapping[str, Any], state: tuple[Array, ...]) -> tuple[int, ...]:
    shapes = [np.shape(value) for value in (*inputs.values(), *state)]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        shown = ", ".join(f"{name} {np.shape(value)}" for name, value in inputs.items())
        raise L2OError(f"expected inputs of one shape [T, N], got {shown}") from None


def _result_dtype(inputs: Mapping[str, Any]) -> np.dtype:
    arrays = [np.asarray(value).dtype for value in inputs.values() if np.ndim(value)]
    return np.result_type(*arrays, np.float32) if arrays else np.dtype(np.float64)
