"""Programs planned for steps on the CPU without autograd: which torch call writes into which buffer.

``Kernel`` turns a program into a list of calls on vectors of one length. Every call has an ``out``, so that a
step allocates nothing and vectors that fit the cache stay there. Cutting parameters into such vectors is
``torch_impl.blocks``' part.
"""

import dataclasses

import torch

from interchange.compiler import Instruction, Program
from torch_impl.analysis import feeding, finished, needed, never_negative
from torch_impl.calls import IN_PLACE, Call, form
from torch_impl.scalars import Scalars, Values

Tensor = torch.Tensor


@dataclasses.dataclass(frozen=True)
class _Number:
    """An operand that is one number per step: as a 0-dim tensor, or as a float."""

    index: int
    as_float: bool = False


@dataclasses.dataclass(frozen=True)
class _Vector:
    """A register with a value per element: ``scale`` (a number's index; none is 1) times vector ``index``."""

    index: int
    scale: int | None = None


@dataclasses.dataclass(frozen=True)
class _Step:
    op: str
    out: int
    args: tuple[int | _Number, ...]  # an int is a vector's index


class Kernel:
    """One step of a program with one output, planned.

    Places number what the calls read and write: 0 is the gradient, 1 the parameter, then the state slots,
    numbers (0-dim), and buffers.

    Args:
        scale: factor on the output.
        exact: every operator as ``lowering.Lowered`` has it. Otherwise averages are formed by ``lerp`` and
            bias corrections move to where they cost nothing, which is shorter and differs by rounding, but
            gives nan, for the output too, where a state is infinite.
        in_place: averages and sums are written to their slots at once, so there is no way back, and an output
            that is a quotient or product is left to ``apply``.

    Attributes:
        calls: functions of (tensors by place, floats), in order.
        slots: places of the old state.
        new: places of the new state; below ``buffers`` where it is an input or the old state of another slot.
        out: place of the update, up to ``factor``.
        buffers: places that need a buffer.
        reads_theta: whether the parameter is read.
    """

    def __init__(self, program: Program, scale: float, exact: bool, in_place: bool = False) -> None:
        program, self._scale = finished(program, scale)
        self._program, self._exact = program, exact
        self._scalars = Scalars()
        self._steps: list[_Step] = []
        self._signs, self._feeding = never_negative(program), feeding(program)
        self._vectors = 2 + len(program.writes)  # indices 0 and 1 and the slots are there from the start
        self._known: dict[int, _Number | _Vector] = {}
        self._scaled: dict[_Vector, int] = {}
        for i in sorted(needed(program)):
            self._known[i] = self._translate(i, program.instructions[i])
        out = self._known[program.outputs[0]]
        self._factor = out.scale if isinstance(out, _Vector) else None
        if isinstance(out, _Number) or 0 < out.index < 2 + len(program.writes):
            # A vector of its own, because the step changes parameter and state before it uses the update.
            out = self._vector("fill", out if isinstance(out, _Number) else out.index)
        kept = [out.index]
        for register in program.writes:
            value = self._plain(self._known[register])
            kept.append(self._fill(value) if isinstance(value, _Number) else value)
        self._last: tuple[str, int, int] | None = None  # op and vectors of an output that is not formed
        if in_place and kept[0] not in kept[1:]:
            self._leave_last(kept)
        self.slots = list(range(2, 2 + len(program.writes)))
        self.reads_theta = any(ins.name == "theta" for ins in program.instructions)
        self._place(kept, in_place)

    def values(self, dtype: torch.dtype) -> Values:
        """Room for the numbers of one step."""
        return self._scalars.values(self._number_places, dtype)

    def factor(self, values: Values) -> float:
        """What the vector at ``out`` has to be multiplied with."""
        return self._scale * (1.0 if self._factor is None else values.floats[self._factor])

    def apply(self, r: list[Tensor], theta: Tensor, rate: float) -> None:
        """theta += rate * (what is at ``out``)."""
        if self._last is None:
            theta.add_(r[self.out], alpha=rate)
        else:
            op, a, b = self._last
            (theta.addcdiv_ if op == "div" else theta.addcmul_)(r[a], r[b], value=rate)

    def _leave_last(self, kept: list[int]) -> None:
        if not self._steps or self._steps[-1].out != kept[0] or self._steps[-1].op not in ("div", "mul"):
            return
        step, changed = self._steps[-1], {1, *range(2, 2 + len(self._program.writes))}
        if all(isinstance(arg, int) and arg not in changed for arg in step.args):
            self._last = (step.op, *step.args)
            self._steps.pop()
            kept[:1] = step.args

    def _translate(self, i: int, ins: Instruction) -> _Number | _Vector:
        if ins.op == "number":
            return _Number(self._scalars.number(ins.value))
        if ins.op == "input":
            if ins.name in ("g", "theta"):
                return _Vector(("g", "theta").index(ins.name))
            return _Number(0 if ins.name == "t" else self._scalars.constant(ins.name))
        args = [self._known[arg] for arg in ins.args]
        slot = 2 + ins.slot
        if ins.op == "read":
            return _Vector(slot)
        if ins.op == "ema":
            rest = _Number(self._scalars.result("rest", args[1].index), as_float=True)
            if self._exact or i not in self._feeding:
                return self._vector("ema", slot, self._plain(args[0]), args[1], rest)
            return self._vector("lerp", slot, self._plain(args[0]), rest)
        if ins.op in ("cumsum", "cummax"):
            extra = (_Number(0, as_float=True),) if ins.op == "cummax" else ()
            op = "add" if ins.op == "cumsum" else "cummax"
            return self._vector(op, slot, self._plain(args[0]), *extra)
        if not any(isinstance(arg, _Vector) for arg in args):
            return _Number(self._scalars.result(ins.op, *(arg.index for arg in args)))
        if ins.op == "unbias" and self._exact:
            return self._vector(
                "div", self._plain(args[0]), _Number(self._scalars.result("factor", args[1].index))
            )
        if not self._exact and (moved := self._moved(ins, args)):
            return moved
        op = "root" if ins.op == "sqrt" and self._signs[ins.args[0]] else ins.op
        return self._vector(op, *map(self._plain, args))

    def _moved(self, ins: Instruction, args: list[_Number | _Vector]) -> _Vector | None:
        """The register with the scales of its arguments moved on or used up, where that saves a call."""
        if ins.op in ("unbias", "neg"):
            scalars, unbias = self._scalars, ins.op == "unbias"
            divisor = scalars.result("factor", args[1].index) if unbias else scalars.number(-1.0)
            return _Vector(args[0].index, self._combined("div", args[0].scale, divisor))
        scales = [arg.scale if isinstance(arg, _Vector) else None for arg in args]
        if not any(scale is not None for scale in scales):
            return None
        bare = [arg.index if isinstance(arg, _Vector) else arg for arg in args]
        if ins.op in ("mul", "div"):
            out = self._vector(ins.op, *bare)
            return _Vector(out.index, self._combined(ins.op, *scales))
        if ins.op == "sqrt" and self._signs[ins.args[0]]:
            return _Vector(self._vector("root", *bare).index, self._scalars.result("sqrt", scales[0]))
        if ins.op == "add" and scales[1] is None:
            args, scales, bare = args[::-1], scales[::-1], bare[::-1]
        if ins.op in ("add", "sub") and scales[1] is not None:
            scale = _Number(scales[1], as_float=True)
            return self._vector(f"{ins.op} scaled", self._plain(args[0]), bare[1], scale)
        return None

    def _combined(self, op: str, one: int | None, other: int | None) -> int | None:
        if other is None:
            return one
        return self._scalars.result(op, self._scalars.number(1.0) if one is None else one, other)

    def _vector(self, op: str, *args: int | _Number) -> _Vector:
        self._steps.append(_Step(op, self._vectors, args))
        self._vectors += 1
        return _Vector(self._vectors - 1)

    def _plain(self, value: _Number | _Vector) -> int | _Number:
        """The operand itself: a vector whose scale is 1, by its index, or a number."""
        if isinstance(value, _Number):
            return value
        if value.scale is None:
            return value.index
        if value not in self._scaled:
            self._scaled[value] = self._vector("mul", value.index, _Number(value.scale)).index
        return self._scaled[value]

    def _fill(self, number: _Number) -> int:
        return self._vector("fill", number).index

    def _place(self, kept: list[int], in_place: bool) -> None:
        """Places for vectors and numbers, and the calls; a buffer is free once nothing needs its vector."""
        inputs = 2 + len(self.slots)
        numbers = [arg for step in self._steps for arg in step.args if isinstance(arg, _Number)]
        tensors = {number.index for number in numbers if not number.as_float}
        self._number_places = {k: inputs + n for n, k in enumerate(sorted(tensors))}
        place = {k: k for k in range(inputs)}
        last = {arg: n for n, step in enumerate(self._steps) for arg in step.args if isinstance(arg, int)}
        first = inputs + len(tensors)
        self.buffers: list[int] = []
        self.calls: list[Call] = []
        free: list[int] = []
        written = kept[len(kept) - len(self.slots) :]
        running = {
            vector: slot
            for slot, vector in zip(self.slots, written, strict=True)
            if in_place and vector >= inputs and slot not in kept and last.get(slot) == self._writer(vector)
        }
        for n, step in enumerate(self._steps):
            used = {arg for arg in step.args if isinstance(arg, int)}
            dying = [place[arg] for arg in used if last[arg] == n and arg not in kept and arg >= inputs]
            if step.op in IN_PLACE:
                free += dying
            if step.out in running:
                place[step.out] = running[step.out]
            elif (step.out in kept and not in_place) or not free:
                self.buffers.append(first + len(self.buffers))
                place[step.out] = self.buffers[-1]
            else:
                place[step.out] = free.pop()
            if step.op not in IN_PLACE:
                free += dying
            where = [
                place[a] if isinstance(a, int) else a.index if a.as_float else self._number_places[a.index]
                for a in step.args
            ]
            self.calls.append(form(step.op)(place[step.out], *where))
        self.out, self.new = place[kept[0]], [place[k] for k in written]
        if self._last is not None:
            self._last = (self._last[0], *(place[k] for k in self._last[1:]))

    def _writer(self, vector: int) -> int:
        return next(n for n, step in enumerate(self._steps) if step.out == vector)
