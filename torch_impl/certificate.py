"""A proof, before a step, that its update will be finite: interval arithmetic over the program.

With it a large tensor may be stepped in place, piece by piece, without room for the way back. It costs one
pass over the gradient; the bounds of the state follow from one step to the next. Where the proof fails the
update need not be bad: it has to be looked at.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from interchange.compiler import Instruction, Program

Interval = tuple[float, float]

FAR = {torch.float32: 1e30, torch.float64: 1e250}  # bounds stay within, so rounding does not reach overflow
_NEAR = 1e-30  # a divisor that is less may be 0 by underflow
_WIDER = 1e-5  # per operation, relative: more than the rounding of float32


def measured(x: torch.Tensor, positive: bool = False) -> Interval:
    """An interval around the values of a vector; infinite or nan where they or squares are."""
    # Squares below the smallest number are lost: such values are below the summand.
    size = 1.01 * math.sqrt(torch.dot(x, x).item()) + 1e-18
    return (0.0 if positive else -size), size


def bounds(
    program: Program,
    inputs: Mapping[str, Interval],
    slots: Sequence[Interval],
    numbers: Mapping[str, float],
    t: int,
    far: float,
) -> tuple[Interval, list[Interval]] | None:
    """Intervals of the output and of the new state at step ``t``; None where one may leave (-far, far).

    Args:
        inputs: of "g" and "theta", as far as the program reads them.
        slots: of the old state.
        numbers: the constants.
    """
    known: list[Interval] = []
    for ins in program.instructions:
        args = [known[arg] for arg in ins.args]
        if ins.op == "number":
            value = (ins.value, ins.value)
        elif ins.op == "input":
            value = (float(t), float(t)) if ins.name == "t" else _given(ins, inputs, numbers)
        elif ins.op == "read":
            value = slots[ins.slot]
        elif ins.op == "unbias":
            factor = -math.expm1(t * math.log(args[1][0]))
            value = args[0][0] / factor, args[0][1] / factor
        elif ins.op == "ema":
            value = _hull(slots[ins.slot], args[0])
        elif ins.op == "cumsum":
            value = _sum(slots[ins.slot], args[0])
        elif ins.op == "cummax":
            value = _hull(slots[ins.slot], args[0])
        else:
            value = _pointwise(ins.op, args)
        if value is None:
            return None
        wider = 0.0 if ins.op in ("number", "input") else _WIDER
        low, high = value[0] - wider * abs(value[0]), value[1] + wider * abs(value[1])
        if not -far < low <= high < far:
            return None
        known.append((low, high))
    return known[program.outputs[0]], [known[i] for i in program.writes]


def _given(ins: Instruction, inputs: Mapping[str, Interval], numbers: Mapping[str, float]) -> Interval:
    return inputs[ins.name] if ins.name in inputs else (numbers[ins.name],) * 2


def _pointwise(op: str, args: list[Interval]) -> Interval | None:
    if op in _RULES:
        return _RULES[op](*args)
    if op in _RISING:
        low, high = _size(args[0]) if op == "cosh" else args[0]
        try:
            return _RISING[op](low), _RISING[op](high)
        except OverflowError:
            return None
    if op in _WITHIN:
        return _WITHIN[op]
    return None


def _hull(a: Interval, b: Interval) -> Interval:
    return min(a[0], b[0]), max(a[1], b[1])


def _sum(a: Interval, b: Interval) -> Interval:
    return a[0] + b[0], a[1] + b[1]


def _product(a: Interval, b: Interval) -> Interval:
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)


def _quotient(a: Interval, b: Interval) -> Interval | None:
    if not (b[0] > _NEAR or b[1] < -_NEAR):
        return None
    return _product(a, (1.0 / b[1], 1.0 / b[0]))


def _size(a: Interval) -> Interval:
    far = max(abs(a[0]), abs(a[1]))
    return (0.0 if a[0] <= 0.0 <= a[1] else min(abs(a[0]), abs(a[1]))), far


def _square(a: Interval) -> Interval:
    low, high = _size(a)
    return low * low, high * high


def _root(a: Interval) -> Interval:
    low, high = _size(a)
    return math.sqrt(low), math.sqrt(high)


def _log(a: Interval) -> Interval:
    low, high = _size(a)
    return math.log(low + 1e-8) - 1e-6, math.log(high + 1e-8) + 1e-6


_RULES: dict[str, Callable[..., Interval | None]] = {
    "add": _sum,
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "mul": _product,
    "div": _quotient,
    "neg": lambda a: (-a[1], -a[0]),
    "square": _square,
    "abs": _size,
    "sqrt": _root,
    "log": _log,
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "relu": lambda a: (max(a[0], 0.0), max(a[1], 0.0)),
    "aq": lambda a, b: _quotient(a, _root(_sum((1.0, 1.0), _square(b)))),
}
_RISING: dict[str, Callable[[float], float]] = {
    "cube": lambda a: a * a * a,
    "exp": math.exp,
    "cosh": math.cosh,
    "sinh": math.sinh,
    "cbrt": math.cbrt,
    "asinh": math.asinh,
}
_WITHIN: dict[str, Interval] = {
    **dict.fromkeys(("sign", "tanh", "sin", "cos", "erf", "softsign"), (-1.0, 1.0)),
    **dict.fromkeys(("greater", "sigmoid"), (0.0, 1.0)),
    "erfc": (0.0, 2.0),
    "atan": (-1.6, 1.6),
}
