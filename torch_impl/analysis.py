"""What planning a program's calls (torch_impl.eager) asks about its registers."""

from collections.abc import Sequence

from interchange.compiler import Instruction, Program

_POSITIVE = frozenset({"square", "abs", "exp", "cosh", "sqrt", "sigmoid", "powabs"})
_KEEPS_SIGN = frozenset({"add", "mul", "div", "max", "min", "ema", "unbias", "cumsum", "cummax"})


def finished(program: Program, scale: float) -> tuple[Program, float]:
    """The program with ``scale`` on its output where that may overflow, and the factor left to apply."""
    instructions, out = list(program.instructions), program.outputs[0]
    if abs(scale) > 1.0:
        instructions += [Instruction("number", value=scale), Instruction("mul", (out, len(instructions)))]
        out, scale = len(instructions) - 1, 1.0
    while instructions[out].op == "neg":
        out, scale = instructions[out].args[0], -scale
    return Program(tuple(instructions), (out,), program.inputs, program.writes), scale


def needed(program: Program) -> set[int]:
    """Registers that the output or the state depends on."""
    return _behind([*program.outputs, *program.writes], program, ())


def feeding(program: Program) -> set[int]:
    """Registers whose nan is the output's too."""
    return _behind(program.outputs, program, ("greater",))


def _behind(todo: Sequence[int], program: Program, through: tuple[str, ...]) -> set[int]:
    found: set[int] = set()
    todo = list(todo)
    while todo:
        i = todo.pop()
        if i not in found:
            found.add(i)
            if program.instructions[i].op not in through:
                todo.extend(program.instructions[i].args)
    return found


def never_negative(program: Program) -> list[bool]:
    """Whether each register is +0 or more, or nan, whatever comes in: its root needs no absolute value.

    A slot is if what is written to it is; that is assumed of all slots, and taken back where it fails.
    """
    slots = [True] * len(program.writes)
    while True:
        known: list[bool] = []
        for ins in program.instructions:
            if ins.op == "number":
                known.append(ins.value > 0.0)
            elif ins.op == "read":
                known.append(slots[ins.slot])
            elif ins.op in _KEEPS_SIGN:
                args = ins.args[:1] if ins.op in ("ema", "unbias") else ins.args
                known.append(all(known[arg] for arg in args))
            else:
                known.append(ins.op in _POSITIVE)
        written = [known[i] for i in program.writes]
        if written == slots:
            return known
        slots = written


def steady(program: Program) -> bool:
    """Whether bounds that hold for a step hold for later ones, once the state keeps within bounds around 0.

    Bias corrections of state shrink towards 0; t, the parameter, and corrections of numbers go anywhere.
    """
    varying: list[bool] = []
    for ins in program.instructions:
        of_arrays = ins.op in ("read", "ema", "cumsum", "cummax") or ins.name == "g"
        varying.append(of_arrays or any(varying[arg] for arg in ins.args))
        if ins.name in ("t", "theta") or (ins.op == "unbias" and not varying[ins.args[0]]):
            return False
    return True
