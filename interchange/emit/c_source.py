"""Programs as C: the lines of one step, derivatives by constants, and what all coordinates share.

The text is plain C99 over ``real`` and a few functions that whoever includes it provides
(``common/kernels/rule.h`` or the head of a standalone file). Names are made of counters and numbers of
``repr``, so nothing in a rule can become code.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from common.errors import L2OError
from interchange.emit.c_operators import DERIVATIVES, EXACT_POWERS, ROWS, in_double
from interchange.language.compiler import Instruction, Program

# What compilers have no vector form of, even where nothing has to be reported of errors.
_CALL = re.compile(r"\b(log1p|cbrt|sinh|cosh|asinh|erfc?|sin|cos|tan|atan)\(")


@dataclasses.dataclass(frozen=True)
class Line:
    """``real name = text;`` for one coordinate; ``uses``: the names of other lines in it."""

    name: str
    text: str
    uses: tuple[str, ...]

    @property
    def calls(self) -> bool:
        """Whether it calls a function of the C library, which keeps a loop from becoming vector code."""
        return _CALL.search(self.text) is not None


@dataclasses.dataclass(frozen=True)
class Step:
    """A program's step in C.

    Attributes:
        once: declarations of what all coordinates share, in double; they read ``t`` and ``constant[k]``.
        lines: one coordinate's, in order; they read the texts of the inputs and of old state.
        outputs, writes: the texts of the program's outputs and of its new state.
        tangents: per output, and after them per slot, constant's number -> text of the derivative.
    """

    once: tuple[str, ...]
    lines: tuple[Line, ...]
    outputs: tuple[str, ...]
    writes: tuple[str, ...]
    tangents: tuple[dict[int, str], ...] = ()


def write_step(
    program: Program,
    inputs: Mapping[str, str],
    constants: Sequence[str],
    old: str = "s{slot}[i]",
    wrt: Sequence[str] = (),
    old_tangent: str = "",
    seed: str = "1.0",
) -> Step:
    """The lines of a step.

    Args:
        inputs: input name -> text of its value at coordinate ``i``; ``t`` and constants are not among them.
        constants: names in the order of the array ``constant``.
        old: text of the old value of a slot.
        wrt: constants to differentiate by, forward mode.
        old_tangent: text of the old derivative of a slot by a constant, with {slot} and {k}.
        seed: text of the derivative of a constant itself, with {k}.

    Raises:
        L2OError: the program sees tensors, so that one coordinate does not know enough.
    """
    if program.sees_tensors:
        raise L2OError("expected a rule of one coordinate: what sees tensors has no compiled step")
    return Writer(program, inputs, constants, old, wrt, old_tangent, seed).step()


# What a step knows of itself, as doubles.
_KNOWN = {"t": "t", "rows": "(double)rows", "cols": "(double)cols", "numel": "(double)n"}


class Writer:
    """The lines of a step, one instruction after the other; arguments as of ``write_step``."""

    def __init__(
        self,
        program: Program,
        inputs: Mapping[str, str],
        constants: Sequence[str],
        old: str = "s{slot}[i]",
        wrt: Sequence[str] = (),
        old_tangent: str = "",
        seed: str = "1.0",
    ) -> None:
        self._seed = seed
        self._program, self._inputs, self._old, self._old_tangent = program, inputs, old, old_tangent
        self._index = {name: k for k, name in enumerate(constants)}
        self._wrt = {name: k for k, name in enumerate(wrt)}
        self._once: list[str] = []
        self._lines: list[Line] = []
        self._texts: list[str] = []  # by register, as an operand for one coordinate
        self._scalar: list[bool] = []
        self._tangents: list[dict[int, str]] = []  # by register; of scalars the names of doubles
        self._names: set[str] = set()  # of lines
        self._reals: dict[str, str] = {}  # text of a double -> its name as a real
        self._moves = self._moving()

    def step(self) -> Step:
        for ins in self._program.instructions:
            self._write(ins)
        outputs = [self._texts[register] for register in self._program.outputs]
        writes = [self._texts[register] for register in self._program.writes]
        tangents = [self._vector_tangents(r) for r in (*self._program.outputs, *self._program.writes)]
        return Step(tuple(self._once), tuple(self._lines), tuple(outputs), tuple(writes), tuple(tangents))

    def _moving(self) -> set[tuple[int, int]]:
        """(slot, constant) whose derivative may differ from 0."""
        _, slots = self._program.reach(self._wrt)
        return {(slot, self._wrt[name]) for slot, names in enumerate(slots) for name in names}

    def _write(self, ins: Instruction) -> None:
        args = [self._texts[arg] for arg in ins.args]
        if ins.op == "number":
            self._define_once(_number(ins.value), {})
        elif ins.op == "input" and ins.name in self._inputs:
            self._texts.append(self._line(self._inputs[ins.name], ()))
            self._scalar.append(False)
            self._tangents.append({})
        elif ins.op == "input":
            text = _KNOWN.get(ins.name) or f"constant[{self._index[ins.name]}]"
            k = self._wrt.get(ins.name)
            self._define_once(text, {} if k is None else {k: self._seed.format(k=k)})
        elif ins.op == "read":
            self._define(self._line(self._old.format(slot=ins.slot), ()), self._old_tangents(ins.slot))
        elif ins.op == "ema":
            self._average(ins, args)
        elif ins.op == "cumsum":
            name = self._line(f"{self._old.format(slot=ins.slot)} + {args[0]}", args)
            self._define(name, self._sum(self._old_tangents(ins.slot), self._vector_tangents(ins.args[0])))
        elif ins.op == "cummax":
            self._maximum(ins, args)
        elif all(self._scalar[arg] for arg in ins.args):
            self._pointwise_once(ins)
        elif ins.op == "unbias":
            self._unbias(ins, args)
        else:
            self._pointwise(ins, args)

    # One coordinate's registers.

    def _line(self, text: str, uses: Sequence[str]) -> str:
        name = f"x{len(self._lines)}"
        self._lines.append(Line(name, text, tuple(dict.fromkeys(u for u in uses if u in self._names))))
        self._names.add(name)
        return name

    def _define(self, text: str, tangents: dict[int, str]) -> None:
        self._texts.append(text)
        self._scalar.append(False)
        self._tangents.append(tangents)

    def _pointwise(self, ins: Instruction, args: list[str]) -> None:
        row = ROWS[ins.op]
        if ins.op == "powabs" and self._program.instructions[ins.args[1]].op == "number":
            row = EXACT_POWERS.get(self._program.instructions[ins.args[1]].value, row)
        given = dict(zip("ab", args, strict=False))
        out = self._line(row.format(**given), args)
        total: dict[int, str] = {}
        for arg, partial in zip(ins.args, DERIVATIVES[ins.op], strict=True):
            moved = self._vector_tangents(arg)
            if not partial or not moved:
                continue
            factor = partial if partial == "1" else self._line(partial.format(**given, o=out), (*args, out))
            terms = {k: d if partial == "1" else self._times(factor, d) for k, d in moved.items()}
            total = self._sum(total, terms)
        self._define(out, total)

    def _average(self, ins: Instruction, args: list[str]) -> None:
        decay = f"k{ins.args[1]}"
        new = f"k{ins.args[2]}" if len(args) == 3 else f"(1.0 - {decay})"
        kept, rest = self._as_real(decay), self._as_real(new)
        old = self._old.format(slot=ins.slot)
        out = self._line(f"{kept} * {old} + {rest} * {args[0]}", args)
        total = {k: self._times(kept, d) for k, d in self._old_tangents(ins.slot).items()}
        driven = self._vector_tangents(ins.args[0])
        total = self._sum(total, {k: self._times(rest, d) for k, d in driven.items()})
        by_decay = self._tangents[ins.args[1]]
        if by_decay:
            slope = self._line(f"{old} - {args[0]}", args)
            total = self._sum(total, {k: self._times(self._as_real(d), slope) for k, d in by_decay.items()})
        self._define(out, total)

    def _unbias(self, ins: Instruction, args: list[str]) -> None:
        # A product: it takes an eighth of a step less than a quotient, and is at most one rounding off.
        factor = self._as_real(f"(1.0 / {self._factor(ins.args[1])})")
        out = self._line(f"{args[0]} * {factor}", args)
        total = {k: self._times(factor, d) for k, d in self._vector_tangents(ins.args[0]).items()}
        for k, d in self._tangents[ins.args[1]].items():
            slope = f"(t * pow(k{ins.args[1]}, t - 1.0) / {self._factor(ins.args[1])} * {d})"
            total = self._sum(total, {k: self._times(self._as_real(slope), out)})
        self._define(out, total)

    def _maximum(self, ins: Instruction, args: list[str]) -> None:
        old = self._old.format(slot=ins.slot)
        out = self._line(f"first ? {args[0]} : max_({old}, {args[0]})", args)
        before, new = self._old_tangents(ins.slot), self._vector_tangents(ins.args[0])
        total: dict[int, str] = {}
        if before or new:
            share = self._line(
                f"first ? (real)1 : {args[0]} < {out} ? (real)0 : {args[0]} == {old} ? (real)0.5 : (real)1",
                (*args, out),
            )
            rest = self._line(f"(real)1 - {share}", (share,))
            total = self._sum(
                {k: self._times(share, d) for k, d in new.items()},
                {k: self._times(rest, d) for k, d in before.items()},
            )
        self._define(out, total)

    # Derivatives.

    def _old_tangents(self, slot: int) -> dict[int, str]:
        moving = sorted(k for s, k in self._moves if s == slot)
        return {k: self._line(self._old_tangent.format(slot=slot, k=k), ()) for k in moving}

    def _vector_tangents(self, register: int) -> dict[int, str]:
        found = self._tangents[register]
        if not self._scalar[register]:
            return found
        return {k: self._as_real(d) for k, d in found.items()}

    def _times(self, a: str, b: str) -> str:
        return self._line(f"{a} * {b}", (a, b))

    def _sum(self, a: dict[int, str], b: dict[int, str]) -> dict[int, str]:
        both = {k: self._line(f"{a[k]} + {b[k]}", (a[k], b[k])) for k in a.keys() & b.keys()}
        return {k: both.get(k) or a.get(k) or b[k] for k in sorted(a.keys() | b.keys())}

    # What is the same for all coordinates: doubles k0, k1, ... by register.

    def _define_once(self, text: str, tangents: dict[int, str]) -> None:
        register = len(self._texts)
        self._once.append(f"const double k{register} = {text};")
        self._texts.append(self._as_real(f"k{register}"))
        self._scalar.append(True)
        self._tangents.append(tangents)

    def _as_real(self, text: str) -> str:
        """A number of the step as an operand for one coordinate, rounded once."""
        if text not in self._reals:
            self._reals[text] = f"r{len(self._reals)}"
            self._once.append(f"const real {self._reals[text]} = (real){text};")
        return self._reals[text]

    def _factor(self, register: int) -> str:
        """1 - b^t without cancellation, for the decay in a register."""
        return f"(-expm1(t * log(k{register})))"

    def _pointwise_once(self, ins: Instruction) -> None:
        names = [f"k{arg}" for arg in ins.args]
        if ins.op == "unbias":
            text = f"{names[0]} / {self._factor(ins.args[1])}"
            partials = (
                f"1.0 / {self._factor(ins.args[1])}",
                f"{{o}} * t * pow({names[1]}, t - 1.0) / {self._factor(ins.args[1])}",
            )
        else:
            text, partials = ROWS[ins.op], DERIVATIVES[ins.op]
        given = dict(zip("ab", names, strict=False))
        register = len(self._texts)
        terms: dict[int, list[str]] = {}
        for arg, partial in zip(ins.args, partials, strict=True):
            if partial:
                factor = in_double(partial.format(**given, o=f"k{register}"))
                for k, d in self._tangents[arg].items():
                    terms.setdefault(k, []).append(f"({factor}) * {d}")
        self._define_once(in_double(text.format(**given)), {})
        for k, parts in terms.items():
            name = f"d{register}_{k}"
            self._once.append(f"const double {name} = {' + '.join(parts)};")
            self._tangents[register][k] = name


def _number(value: float) -> str:
    return f"({value!r})" if value < 0.0 or repr(value).startswith("-") else repr(value)
