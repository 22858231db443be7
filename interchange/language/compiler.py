"""Expressions compiled to flat programs with shared work and shared state.

One program serves every executor: NumPy (interchange.language.execute), torch and TF lowering, and the source
emitters. Equal sub-expressions become one register; equal running state becomes one slot (``ema`` and
``ema_hat`` of the same input, every ``lag`` of the same input). State starts at zero; ``t`` counts from 1.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from common.errors import L2OError
from interchange.language.expression import Node, branch, call, number, of_t_alone, to_text
from interchange.language.operators import OPERATORS, TENSOR
from interchange.language.view import FULL, SIZES

_REDUCES = {
    "mean": FULL,
    "row_mean": frozenset({"columns"}),
    "row_max": frozenset({"columns"}),
    "col_mean": frozenset({"rows"}),
    "col_max": frozenset({"rows"}),
}

_FLAT = ("sign", "greater")  # operators without a derivative


@dataclass(frozen=True)
class Instruction:
    """One step; its result is the register of the same index.

    ``op`` is "input" (name), "number" (value), a pointwise operator, a tensor operator, or one of

    * "read": the OLD value of ``slot``;
    * "ema" (args x, b): b*s + (1-b)*x, where s is the old value of ``slot``; with a third argument, 1-b,
      where b changes with t, so that no dtype has to take 1-b of a b near 1;
    * "unbias" (args ema register, b): ema / (1 - b**t);
    * "cumsum" (args x): s + x;
    * "cummax" (args x): the larger of s and x; at t = 1 it is x.
    """

    op: str
    args: tuple[int, ...] = ()
    name: str = ""
    value: float = 0.0
    slot: int = -1


@dataclass(frozen=True, eq=False)
class Program:
    """A straight-line program.

    Attributes:
        instructions: the result of instruction i is register i; arguments come before their use.
        outputs: one register per compiled root.
        inputs: names read: features, constants, "g", "t", "theta", sizes of the tensor.
        writes: per state slot the register whose value it takes at the end of the step.
        numbers: inputs that are numbers, no arrays, where that is known; only ``kinds`` asks.
    """

    instructions: tuple[Instruction, ...]
    outputs: tuple[int, ...]
    inputs: tuple[str, ...]
    writes: tuple[int, ...]
    numbers: frozenset[str] = frozenset()

    @functools.cached_property
    def kinds(self) -> tuple[frozenset[str] | None, ...]:
        """Per register over what of a tensor it varies: "rows", "columns", "parts"; None for plain numbers.

        All three is a value for every coordinate, none of them one for the tensor (``View.reduced``).
        """
        kinds: list[frozenset[str] | None] = []
        for ins in self.instructions:
            given = [kinds[arg] for arg in ins.args]
            if ins.op == "input":
                kind = None if ins.name in self.numbers else FULL
            elif ins.op == "read":
                kept = kinds[self.writes[ins.slot]]
                kind = FULL if kept is None else kept
            elif ins.op in _REDUCES:
                kind = None if given[0] is None else given[0] - _REDUCES[ins.op]
            elif ins.op in TENSOR:
                kind = FULL
            else:
                known = [kind for kind in given if kind is not None]
                kind = frozenset().union(*known) if known else None
                # State of a plain number is kept for every coordinate, as it always was.
                kind = FULL if kind is None and ins.slot >= 0 else kind
            kinds.append(kind)
        return tuple(kinds)

    @property
    def slot_kinds(self) -> tuple[frozenset[str], ...]:
        """Per state slot the kind of the value it keeps."""
        kinds = self.kinds
        return tuple(FULL if kinds[register] is None else kinds[register] for register in self.writes)

    @functools.cached_property
    def sees_tensors(self) -> bool:
        """Whether a step has to know the tensor's view."""
        return any(ins.op in TENSOR for ins in self.instructions) or not SIZES.keys().isdisjoint(self.inputs)

    def reach(self, names: Collection[str]) -> tuple[tuple[frozenset[str], ...], tuple[frozenset[str], ...]]:
        """Those of ``names`` by which each output, and each slot after any steps, has a derivative."""
        slots = tuple(frozenset[str]() for _ in self.writes)
        while True:
            registers: list[frozenset[str]] = []
            for ins in self.instructions:
                found = frozenset[str]().union(*(registers[arg] for arg in ins.args))
                if ins.op == "input" and ins.name in names:
                    found = frozenset({ins.name})
                elif ins.op in _FLAT:
                    found = frozenset()
                registers.append(found | slots[ins.slot] if ins.slot >= 0 else found)
            after = tuple(registers[register] for register in self.writes)
            if after == slots:
                return tuple(registers[register] for register in self.outputs), slots
            slots = after

    def spent(self) -> tuple[tuple[int, ...], ...]:
        """Per instruction the registers that nothing needs after it."""
        last = {arg: number for number, ins in enumerate(self.instructions) for arg in ins.args}
        kept = {*self.outputs, *self.writes}
        found: list[list[int]] = [[] for _ in self.instructions]
        for register in last.keys() - kept:
            found[last[register]].append(register)
        return tuple(map(tuple, found))

    @functools.cached_property
    def _key(self) -> str:
        return repr(self)  # it tells -0.0 from 0.0, as 1/x does

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self._key == other._key

    def __hash__(self) -> int:  # of every step, which looks for its compiled code
        return hash(self._key)


class _Compiler:
    """Value numbering: an instruction that exists is not added again."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.writes: list[int] = []
        self._known: dict[tuple, int] = {}
        self._slot_written_with: dict[int, int] = {}
        self._done: dict[int, int] = {}

    def compile(self, node: Node) -> int:
        key = id(node)
        if key not in self._done:
            self._done[key] = self._compile(node)
        return self._done[key]

    def _compile(self, node: Node) -> int:
        if node.op == "number":
            return self._add("number", value=node.value)
        if node.op == "name":
            return self._add("input", name=node.name)
        if node.op == "lag":
            return self._lag(self.compile(node.args[0]), int(node.args[1].value))
        if node.op == "by_matrix":
            raise L2OError("by_matrix: expected the tree of one of its cases, as expression.branch gives")
        args = tuple(self.compile(arg) for arg in node.args)
        if node.op in ("ema", "ema_hat"):
            return self._average(node, args)
        if node.op in ("cumsum", "cummax"):
            return self._stateful(node.op, args)
        return self._add(OPERATORS[node.op].name, args)

    def _average(self, node: Node, args: tuple[int, ...]) -> int:
        if self.instructions[args[1]].op not in ("number", "input"):
            if node.op != "ema" or not of_t_alone(node.args[1]):
                raise L2OError(f"expected a number or a name as decay, got {to_text(node.args[1])}")
            return self._stateful("ema", (*args, self.compile(_complement(node.args[1]))))
        if node.args[0].op == "number":  # known at every step, 1 - b**t of it, so it needs no state
            if node.op == "ema_hat":
                return args[0]
            return self._add("div", (args[0], self._add("unbias", (self._add("number", value=1.0), args[1]))))
        average = self._stateful("ema", args)
        return average if node.op == "ema" else self._add("unbias", (average, args[1]))

    def _lag(self, register: int, steps: int) -> int:
        for _ in range(steps):
            slot = self._slot_written_with.get(register)
            if slot is None:
                slot = self._new_slot(register)
            register = self._add("read", slot=slot)
        return register

    def _stateful(self, op: str, args: tuple[int, ...]) -> int:
        register = self._known.get((op, args))
        if register is None:
            register = len(self.instructions)
            self.instructions.append(Instruction(op, args, slot=self._new_slot(register)))
            self._known[op, args] = register
        return register

    def _new_slot(self, register: int) -> int:
        self._slot_written_with[register] = len(self.writes)
        self.writes.append(register)
        return len(self.writes) - 1

    def _add(
        self, op: str, args: tuple[int, ...] = (), name: str = "", value: float = 0.0, slot: int = -1
    ) -> int:
        # repr tells -0.0 from 0.0, which 1/x can tell apart.
        key = (op, args, name, repr(value), slot)
        if key not in self._known:
            self._known[key] = len(self.instructions)
            self.instructions.append(Instruction(op, args, name, value, slot))
        return self._known[key]


def _complement(decay: Node) -> Node:
    """1 - b."""
    if decay.op == "sub" and decay.args[0] == number(1.0):
        return decay.args[1]
    return call("sub", number(1.0), decay)


def compile_program(roots: Sequence[Node], constants: Collection[str] = ()) -> Program:
    """One program for all roots, in order.

    Args:
        roots: from ``expression`` or the parser, without ``by_matrix`` (``expression.branch``).
        constants: names that stand for numbers, which ``Program.kinds`` has to know.
    """
    compiler = _Compiler()
    outputs = tuple(compiler.compile(root) for root in roots)
    instructions = tuple(compiler.instructions)
    inputs = tuple(ins.name for ins in instructions if ins.op == "input")
    numbers = frozenset((*constants, "t", *SIZES)).intersection(inputs)
    return Program(instructions, outputs, inputs, tuple(compiler.writes), numbers)


def compile_cases(roots: Sequence[Node], constants: Collection[str] = ()) -> dict[bool, Program]:
    """``compile_program`` for tensors with (True) and without (False) a matrix view.

    It is one program where both cases come to the same, as they do without ``by_matrix``.
    """
    seen, unseen = ([branch(root, has_matrix) for root in roots] for has_matrix in (True, False))
    program = compile_program(seen, constants)
    if all(one is other for one, other in zip(seen, unseen, strict=True)):
        return {True: program, False: program}
    other = compile_program(unseen, constants)
    return {True: program, False: program if other == program else other}
