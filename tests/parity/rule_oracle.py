"""The NumPy oracle of a rule, and how far it moves itself where every node errs by 2 ulp."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interchange.language.compiler import Instruction, Program
from interchange.language.execute import Sequences, initial_state, step
from interchange.language.matrix import DERIVATIVES
from interchange.language.operators import OPERATORS, TEMPORAL, TENSOR
from interchange.language.view import View
from interchange.rule.rule import Rule

Array = np.ndarray

K = 8.0  # units by which a target may be off
# Which branch a register takes, or which side of a pole it is on.
SIDES = {
    **dict.fromkeys(("pow", "powabs"), lambda a, b: np.where(a == 0, np.sign(b), 2.0)),
    "powreal": lambda a, b: np.where(a == 0, np.sign(b), 2.0 * np.sign(a) + 4.0 * np.floor(b) * (a < 0)),
    **dict.fromkeys(("sign", "logabs", "root", "ln"), np.sign),
    "log1p": lambda a: np.sign(1.0 + a),
    "div": lambda a, b: np.sign(b),
    "greater": lambda a, b: a > b,
    "tan": lambda a: np.floor(a / np.pi + 0.5),
    **dict.fromkeys(("sin", "cos"), lambda a: np.floor(2.0 * a / np.pi + 0.5)),
}
# What comes down to 0 and goes up again: sign, log or 1 / x of it then has a branch that no lane need hit.
_TOUCHING = ("abs", "sqrt", "square")
_LARGEST = ("row_max", "col_max")
# Autodiff takes slopes from values, which cancels where they are near 1: the same written another way.
_SLOPES = {"sigmoid": lambda out: out * (1.0 - out), "tanh": lambda out: (1.0 - out) * (1.0 + out)}
# What compilers of graphs and fused calls regroup.
_REWRITTEN = ("add", "sub", "mul", "div", "square", "cube", "cumsum", "exp", "pow", "powabs")
KINKS = SIDES | {
    **dict.fromkeys(("abs", "sqrt", "log", "cbrt", "relu"), np.sign),
    **dict.fromkeys(("pow", "powabs"), lambda a, b: np.where(a == 0, np.sign(b), 2.0 * np.sign(a))),
    **dict.fromkeys(("max", "min"), lambda a, b: np.sign(a - b)),
}


def oracle(rule: Rule, g: Array, theta: Array, program: Program | None = None) -> Array:
    """u [T, N] in the inputs' dtype, one step after the other."""
    program = program or rule.program()
    # A slot more than the program has, because a state sets the dtype.
    state, out = initial_state(program, g.shape[1:], g.dtype), []
    for t, (row, at) in enumerate(zip(g, theta, strict=True), 1):
        (u,), state = step(program, {**rule.constants, "g": row, "theta": at}, state, t)
        out.append(u)
    return g.dtype.type(rule.scale) * np.stack(out).astype(g.dtype)


class Disturbed(Sequences):
    """The oracle on arrays [T, lanes, N], where every register of a lane errs in the lane's own way.

    Lane 0 is exact; in lane 1 what is near or below the smallest normal number is 0; in lane 2 no zero has
    a sign; in lane 3 what depends on constants and t only stays in float64, as torch and TensorFlow keep it;
    then all registers go 2 ulp up, 2 ulp down, and by chance: 2 ulp up or down, or any number of ulp from -2
    to 2; in lanes 14 and 15 the signs of zeros are chance too, and in 15 tiny values are 0. Lanes from
    ``near`` on err by K ulp and tell only what is then finite. With a ``view`` the N are one tensor's; what
    an operator says of a row is then N values, each with an error of its own.
    """

    lanes, near = 20, 16

    def __init__(
        self, program: Program, inputs: dict, dtype: np.dtype, seed: int, view: View | None = None
    ) -> None:
        super().__init__(program, {**inputs, **(view.sizes if view else {})}, dtype)
        self.seen = view
        self.rng = np.random.default_rng(seed)
        steps, _, columns = self.shape
        self.low = 4.0 * np.finfo(dtype).tiny  # a half of a half on the way may be what is flushed
        self.tainted: list[Array] = []
        self.spilled: list[Array] = []
        self.numbers: list[Any] = []
        lane = np.arange(self.lanes)[:, None]
        self.flushed, self.unsigned = np.isin(lane, (1, 15)), np.isin(lane, (2, 14, 15))
        self.chance, self.second = np.isin(lane, (14, 15)), lane % 2 == 1
        self.nothing = np.zeros((steps, columns), bool)

    def run(self, sides: dict, wrt: Sequence[str] = ()) -> None:
        """Every register; with tangents by ``wrt``, whose kinks then are among ``sides``."""
        position = {name: k for k, name in enumerate(wrt)}
        with np.errstate(all="ignore"):
            for ins in self.program.instructions:
                value = self.value(ins)
                self.numbers.append(self._number(ins))
                if self.numbers[-1] is not None:
                    value[..., 3, :] = (
                        self.numbers[-1] if np.ndim(self.numbers[-1]) == 0 else self.numbers[-1][:, 0]
                    )
                self.values.append(value)
                self.tainted.append(self._carried(ins, self.tainted, self._turns(ins, sides)))
                self.spilled.append(self._carried(ins, self.spilled, self._spills(ins)))
                if ins.op == "input":
                    self.tangents.append({position[ins.name]: 1.0} if ins.name in position else {})
                elif wrt:
                    self.tangents.append(self.tangent(ins, value))

    def value(self, ins: Instruction) -> Array:
        if ins.op == "cumsum":
            return self.recur(self.dtype.type(1), np.broadcast_to(self.values[ins.args[0]], self.shape))
        if ins.op in TENSOR:
            return self._err(self._whole(OPERATORS[ins.op].tensor, self.values[ins.args[0]]))
        value = super().value(ins)
        if ins.op == "read" or (ins.op == "ema" and len(ins.args) == 2):
            return value
        return self._err(value)

    def _whole(self, operator: Callable[..., Array], *values: Array) -> Array:
        """What an operator says of the whole tensors, [T, lanes, N]."""
        shape = (*self.shape[:2], *self.seen.split)
        tensors = [np.broadcast_to(value, self.shape).reshape(shape) for value in values]
        return np.broadcast_to(operator(*tensors, self.seen.axes), shape).reshape(self.shape)

    def _along(self, op: str, x: Array, tangent: Array) -> Array:
        return self._whole(DERIVATIVES[op], x, tangent)

    def tangent(self, ins: Instruction, out: Array) -> dict[int, Array]:
        tangents = super().tangent(ins, out)
        if ins.op in _SLOPES:
            given = self.tangents[ins.args[0]]
            slope = _SLOPES[ins.op](out)
            tangents = {k: np.where(self.second, slope * given[k], d) for k, d in tangents.items()}
        if len(set(ins.args)) < len(ins.args) and ins.op in OPERATORS and ins.op not in TEMPORAL:
            # Of x - x one derivative cancels the other, each with an error of its own where they are summed.
            given = self.tangents[ins.args[0]]
            one, other = OPERATORS[ins.op].derivative(*(self.values[arg] for arg in ins.args), out)
            tangents = {k: one * self._err(d) + other * self._err(d) for k, d in given.items()}
        return {k: self._err(d) for k, d in tangents.items()}

    def _number(self, ins: Instruction) -> Any:
        """The value in float64 of what depends on constants and t only, else None."""
        args = [self.numbers[arg] for arg in ins.args]
        if ins.op == "number":
            return np.float64(ins.value)
        if ins.op == "input" and np.shape(self.inputs[ins.name]) != self.shape:
            return np.asarray(self.inputs[ins.name], np.float64)
        if ins.op not in OPERATORS or ins.op in TEMPORAL | TENSOR or any(arg is None for arg in args):
            return None
        return OPERATORS[ins.op].numpy(*args)

    def recur(self, decay: Any, drive: Array) -> Array:
        signs, state = self._signs(self.shape), np.zeros(self.shape[1:], self.dtype)
        out = np.empty(self.shape, self.dtype)
        for t in range(len(out)):
            state = out[t] = self._moved(decay * state + drive[t], signs[t])
        return out

    def _err(self, value: Array) -> Array:
        value = np.asarray(value, self.dtype)
        shape = np.broadcast_shapes(value.shape, (self.lanes, 1))
        return self._moved(np.broadcast_to(value, shape), self._signs(shape))

    def _signs(self, shape: tuple[int, ...]) -> Array:
        """How many ulp each element of [..., lanes, N] errs by."""
        signs = self.rng.integers(-2, 3, size=shape).astype(self.dtype)
        signs[..., 6:11, :] = np.where(signs[..., 6:11, :] > 0, 2.0, -2.0)
        signs[..., :4, :] = 0.0
        signs[..., 4, :], signs[..., 5, :] = 2.0, -2.0
        signs[..., self.near :, :] = np.where(signs[..., self.near :, :] > 0, K, -K)
        signs[..., self.near, :], signs[..., self.near + 1, :] = K, -K
        return signs

    def _moved(self, value: Array, signs: Array) -> Array:
        fine = np.isfinite(value) & (value != 0)
        moved = np.where(fine, value + signs * np.spacing(np.where(fine, value, 1.0)), value)
        moved = np.where(self.flushed & (np.abs(moved) < self.low), 0.0 * moved, moved)
        zero = np.where(self.chance & (self.rng.random(moved.shape) < 0.5), -0.0, 0.0)
        return np.where(self.unsigned & (moved == 0), zero, moved).astype(self.dtype)

    def _turns(self, ins: Instruction, sides: dict) -> Array | bool:
        """Where the branch this register takes is another one in some lane: [T, N]."""
        if ins.op in ("sinh", "cosh"):  # torch's and others' are infinite from half the largest number on
            out = np.abs(np.broadcast_to(self.values[-1], self.shape))
            return ((out > 0.49 * np.finfo(self.dtype).max) & np.isfinite(out)).any(axis=1)
        if ins.op in _TOUCHING and ins.op not in sides:
            arg = np.broadcast_to(self.values[ins.args[0]], self.shape)[:, : self.near]
            return (arg > 0).any(axis=1) & (arg < 0).any(axis=1)
        if ins.op in _LARGEST and sides is KINKS:
            side = self._whole(
                lambda x, axes: x == OPERATORS[ins.op].tensor(x, axes), self.values[ins.args[0]]
            )
        elif ins.op not in sides:
            return False
        else:
            side = sides[ins.op](*[self.values[arg] for arg in ins.args])
        side = np.broadcast_to(side, self.shape)[:, : self.near]
        turned = ~((side == side[:, :1]) | (np.isnan(side) & np.isnan(side[:, :1]))).all(axis=1)
        if ins.op == "div":  # the sign of a zero is nobody's promise, so that of a / 0 is not either
            a, b = (np.broadcast_to(self.values[arg], self.shape)[:, 0] for arg in ins.args)
            turned |= (b == 0) & (a != 0)
        return turned

    def _spills(self, ins: Instruction) -> Array | bool:
        """Where a sum or product of finite numbers is beyond the largest or below the smallest: [T, N]."""
        if ins.op not in _REWRITTEN:
            return False
        args = [np.broadcast_to(self.values[arg], self.shape)[:, 0] for arg in ins.args]
        out = np.abs(np.broadcast_to(self.values[-1], self.shape)[:, 0])
        low = (out < self.low) & (ins.op not in ("add", "sub", "cumsum"))
        return (np.isinf(out) | low) & np.all([np.isfinite(arg) & (arg != 0) for arg in args], axis=0)

    def _carried(self, ins: Instruction, marks: list[Array], own: Array | bool) -> Array:
        """Marks of a register [T, N]: its own, its arguments', and through state those before."""
        if ins.op == "read":
            return np.concatenate([self.nothing[:1], marks[self.program.writes[ins.slot]][:-1]])
        mark = np.logical_or.reduce([self.nothing, *(marks[arg] for arg in ins.args)]) | own
        if ins.op in TENSOR:
            mark = np.broadcast_to(mark.any(axis=-1, keepdims=True), mark.shape)
        return np.logical_or.accumulate(mark, axis=0) if ins.op in TEMPORAL else mark


@dataclass(frozen=True)
class Expected:
    """What the oracle says, all [T, N].

    Attributes:
        u: the update.
        unit: how far it moves where every node errs by 2 ulp, 2 ulp of itself at least.
        apart: where that turns a branch, or K ulp per node make it finite or not.
        spilled: where a sum or product on the way left the range of the dtype.
    """

    u: Array
    unit: Array
    apart: Array
    spilled: Array


def expect(
    rule: Rule, g: Array, theta: Array, seed: int = 0, add_theta: bool = False, view: View | None = None
) -> Expected:
    """The oracle and its own sensitivity; of theta + u where ``add_theta``. With a view N is one tensor."""
    lanes = Disturbed.lanes
    shape = (len(g), lanes, g.shape[1])
    inputs = {name: np.broadcast_to(a[:, None], shape) for name, a in {"g": g, "theta": theta}.items()}
    program = rule.program(view.matrix) if view else rule.program()
    run = Disturbed(program, {**rule.constants, **inputs}, g.dtype, seed, view)
    run.run(SIDES)
    with np.errstate(all="ignore"):
        u = g.dtype.type(rule.scale) * np.broadcast_to(run.values[program.outputs[0]], shape)
        if add_theta:
            u = inputs["theta"] + u
        exact, others = u[:, 0], u[:, 1 : run.near]
        moved = np.abs(others - exact[:, None]).max(axis=1)
        moved = np.where(np.abs(exact) < run.low, np.fmax(moved, np.abs(exact)), moved)
        unit = np.where(np.isfinite(exact), np.fmax(moved, 2.0 * np.spacing(np.abs(exact))), 0.0)
    kinds = np.where(np.isfinite(u), 0, np.where(np.isnan(u), 3, np.sign(u)))
    never = np.isnan(u).all(axis=1)  # nan whichever way a branch goes
    apart = (kinds != kinds[:, :1]).any(axis=1) | (run.tainted[program.outputs[0]] & ~never)
    return Expected(exact, unit, apart, run.spilled[program.outputs[0]])


def errors(got: Array, expected: Expected, graph: bool = False) -> tuple[Array, Array]:
    """|got - u| in units, [T, N], 0 where equal, inf where only one is finite; and what is counted apart.

    Args:
        graph: what spilled and differs by more than K is apart too.
    """
    want = expected.u
    assert got.shape == want.shape and got.dtype == want.dtype, (got.shape, got.dtype, want.dtype)
    with np.errstate(all="ignore"):
        error = np.abs(got.astype(np.float64) - want) / expected.unit
    error = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, error)
    error = np.where(np.isnan(error), np.inf, error)
    apart = expected.apart | (graph & expected.spilled & (error > K))
    return np.where(apart, 0.0, error), apart
