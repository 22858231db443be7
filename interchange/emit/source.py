"""What the source-code emitters share: copying tested operator functions, and writing a program as lines.

Generated code holds names only as literals, identifiers only from counters, and floats by
``repr``, so that nothing in a rule file can become code.
"""

import ast
import dataclasses
import functools
import importlib.util
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from common.errors import L2OError
from interchange.language.checks import RAW
from interchange.language.equation import Equation
from interchange.language.execute import Instruction, Program
from interchange.language.expression import to_text
from interchange.language.operators import OPERATORS, TENSOR


def pointwise_operators(program: Program, infix: Iterable[str]) -> tuple[str, ...]:
    """The operators of a program that need a function: pointwise and not written infix."""
    used = dict.fromkeys(ins.op for ins in program.instructions)
    return tuple(op for op in used if op in OPERATORS and OPERATORS[op].numpy and op not in infix)


def tensor_operators(programs: Iterable[Program]) -> tuple[str, ...]:
    """The operators of programs that see whole tensors."""
    return tuple(dict.fromkeys(ins.op for p in programs for ins in p.instructions if ins.op in TENSOR))


def branches(rule: Equation) -> tuple[Program, ...]:
    """The rule's programs: one, or those for tensors with and without a matrix view where they differ."""
    programs = rule.programs()
    return (programs[True],) if programs[True] is programs[False] else (programs[True], programs[False])


def kept(program: Program) -> str:
    """What every slot of state has an axis for, (rows, columns), as a literal (``axes.kept_shape``)."""
    return repr([("rows" in kind, "columns" in kind) for kind in program.slot_kinds])


def copied_source(module: str, functions: Iterable[str]) -> str:
    """The source text of functions of a module, and of everything at its top level they use.

    The module is read, never imported, so no framework is needed. In the order of the file; two blank
    lines between functions. ``L2OError`` if the module or a function is not there.
    """
    text, definitions = _read(module)
    wanted, queue = set(), list(functions)
    while queue:
        name = queue.pop()
        if name not in definitions:
            raise L2OError(f"expected {name} in {module}, got no such definition; add the operator there")
        if name not in wanted:
            wanted.add(name)
            used = {node.id for node in ast.walk(definitions[name]) if isinstance(node, ast.Name)}
            queue.extend(used & definitions.keys())
    assignments, bodies = [], []
    for node in (node for name, node in definitions.items() if name in wanted):
        group = bodies if isinstance(node, ast.FunctionDef) else assignments
        group.append(ast.get_source_segment(text, node))
    return "\n\n\n".join(["\n".join(assignments)] * bool(assignments) + bodies)


@functools.cache
def _read(module: str) -> tuple[str, dict[str, ast.FunctionDef | ast.Assign]]:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin:
        raise L2OError(f"expected the module {module} to be installed, to copy operators from; reinstall")
    text = Path(spec.origin).read_text(encoding="utf-8")
    return text, _top_level(ast.parse(text))


def _top_level(tree: ast.Module) -> dict[str, ast.FunctionDef | ast.Assign]:
    kinds = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    kinds += [
        node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    ]
    return {_name(node): node for node in sorted(kinds, key=lambda node: node.lineno)}


def _name(node: ast.FunctionDef | ast.Assign) -> str:
    return node.name if isinstance(node, ast.FunctionDef) else node.targets[0].id


@dataclasses.dataclass(frozen=True)
class Body:
    """A program as source: assignments, and the text that stands for each register."""

    lines: str
    texts: tuple[str, ...]


def body(program: Program, write: Callable[[Instruction, list[str], str], str], indent: str) -> Body:
    """One assignment per instruction, ``x0 = ...``; numbers and constants are written where they are used.

    Args:
        write: (instruction, texts of its arguments, text of b for "ema" and "unbias", "" where the arguments
            have it because it changes with t) -> right-hand side.
    """
    lines, texts = [], []
    for ins in program.instructions:
        args = [texts[arg] for arg in ins.args]
        fixed = ins.op == "unbias" or (ins.op == "ema" and len(args) == 2)
        decay = _decay(program.instructions[ins.args[1]]) if fixed else ""
        text = write(ins, args, decay)
        if ins.op != "number" and (ins.op != "input" or ins.name in RAW):
            lines.append(f"{indent}x{len(lines)} = {text}")
            text = f"x{len(lines) - 1}"
        texts.append(text)
    return Body("\n".join(lines), tuple(texts))


def _listed(program: Program, code: Body, scaled: str, copied: str) -> str:
    """The texts of the update and of every slot's new value."""
    texts = [scaled + code.texts[program.outputs[0]]]
    for register in program.writes:
        source = program.instructions[register]
        given = source.op == "input" and source.name in ("g", "theta", "t")
        texts.append(code.texts[register] + copied * given)
    return ", ".join(texts)


def steps(
    programs: Sequence[Program],
    write: Callable[[Instruction, list[str], str], str],
    indent: str,
    scaled: str = "",
    copied: str = "",
) -> str:
    """The lines of a step by ``branches`` that end in ``results = [...]``, update first and then the slots.

    Where tensors with a matrix view take another way than others, ``axes[0]`` says which one is taken.

    Args:
        scaled: what is written before the update.
        copied: what is written after a gradient or parameter that is kept as it is, because a slot must not
            share memory with the caller's.
    """
    texts = []
    for program in programs:
        deeper = indent + " " * 4 * (len(programs) - 1)
        code = body(program, write, deeper)
        ending = f"{deeper}results = [{_listed(program, code, scaled, copied)}]"
        texts.append(f"{code.lines}\n{ending}" if code.lines else ending)
    return texts[0] if len(texts) == 1 else f"{indent}if axes[0]:\n{texts[0]}\n{indent}else:\n{texts[1]}"


@dataclasses.dataclass(frozen=True)
class Sight:
    """What a generated file has more where its rule sees tensors; all "" where it does not.

    Attributes:
        functions: what axes are (``emit.axes``), and the shapes that every slot of state has.
        parameter: the further parameter of ``init`` and ``update``.
        axes: the line, indented by 4, that finds the axes of ``theta``.
        told: what the parameter is, for docstrings.
    """

    functions: str = ""
    parameter: str = ""
    axes: str = ""
    told: str = ""


def sight(rule: Equation, programs: Sequence[Program], usual: str) -> Sight:
    """Args:
    programs: the rule's ``branches``.
    usual: the axes of rows of two axes or more where nobody says, as a literal.
    """
    if not rule.sees_tensors:  # a program may not that has only to know whether there is a matrix
        return Sight()
    chosen = (
        kept(programs[0])
        if len(programs) == 1
        else f"{kept(programs[0])} if axes[0] else {kept(programs[1])}"
    )
    slots = (
        "def slot_shapes(shape, axes):\n"
        f"    kept = {chosen}\n"
        "    return [kept_shape(shape, axes, own) for own in kept]"
    )
    names = ["axes_of", "size_of", "kept_shape"]
    return Sight(
        copied_source("interchange.emit.axes", names) + "\n\n\n" + slots + "\n\n\n",
        ", rows=None",
        f"    axes = axes_of(theta.shape, rows, {usual})\n",
        ".\n\n    ``rows``: the axes that number the outputs, () for what is no matrix (vectors, ...);\n"
        f"    None is {usual} for two axes or more",
    )


def _decay(ins: Instruction) -> str:
    return repr(ins.value) if ins.op == "number" else constant(ins.name)


def constant(name: str) -> str:
    """The text that reads a constant."""
    return f"constants[{literal(name)}]"


def literal(value: str | float) -> str:
    """A Python literal in ASCII that reads back as exactly this value."""
    if isinstance(value, str):
        return json.dumps(value) if value.isascii() else ascii(value)
    return repr(value)


def header(rule: Equation) -> str:
    """The rule's record at the top of a file, as literals only."""
    features = {key: to_text(tree) for key, tree in rule.features.items() if tree is not None}
    values = {"NAME": rule.name, "EXPRESSION": to_text(rule.expression), "SCALE": rule.scale}
    lines = [f"{key} = {literal(value)}" for key, value in values.items()]
    for key, table in {"FEATURES": features, "CONSTANTS": rule.constants}.items():
        items = "".join(f"\n    {literal(name)}: {literal(value)}," for name, value in table.items())
        lines.append(f"{key} = {{{items}{chr(10) * bool(table)}}}")
    return "\n".join(lines)
