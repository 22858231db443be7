"""NumPy execution of compiled expressions: the oracle, and the inner loop of constant refitting.

``step`` runs one step as an optimizer does; ``evaluate`` runs whole sequences [T, N] at once, one NumPy
call per instruction; ``evaluate_with_tangents`` adds forward-mode derivatives by constants from the
derivative column of the operator table. All three agree: state starts at zero, t counts from 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import L2OError
from interchange.language.compiler import Instruction, Program, compile_cases, compile_program
from interchange.language.expression import Node, sees_tensors
from interchange.language.operators import OPERATORS, TENSOR
from interchange.language.registers import (
    Sequences,
    decay_of,
    of_tensor,
    shape_of,
    split,
    unbias_factor,
    value_of,
)
from interchange.language.view import View, of_shapes, slices

__all__ = [
    "Instruction",
    "Program",
    "compile_program",
    "evaluate",
    "evaluate_trees",
    "evaluate_with_tangents",
    "initial_state",
    "of_tensors",
    "step",
    "tree_with_tangents",
    "unbias_factor",
]

Array = np.ndarray


def initial_state(
    program: Program, shape: "tuple[int, ...] | View", dtype: Any = np.float64
) -> tuple[Array, ...]:
    """Zero state: one array per slot, of ``shape``, or in the shape that a tensor's view has for its kind."""
    if isinstance(shape, View):
        return tuple(np.zeros(shape.reduced(kind), dtype) for kind in program.slot_kinds)
    return tuple(np.zeros(shape, dtype) for _ in program.writes)


def step(
    program: Program, inputs: Mapping[str, Any], state: tuple[Array, ...], t: int, view: View | None = None
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """One step.

    Args:
        inputs: arrays of one shape, or scalars. ``t`` need not be among them.
        state: as of ``initial_state`` or of the step before; sets the dtype of the computation.
        t: from 1.
        view: of the tensor that the arrays are, which tensor operators need.

    Returns:
        The outputs, arrays of one shape, and the new state, arrays as ``state`` has them.
    """
    shape = shape_of(inputs, () if view else state)
    dtype = state[0].dtype if state else _result_dtype(inputs)
    values = {"t": t, **(view.sizes if view else {}), **split(inputs, view)}
    full = view.split if view else shape
    registers: list[Any] = []
    with np.errstate(all="ignore"):
        for ins in program.instructions:
            args = [registers[arg] for arg in ins.args]
            if ins.op == "input":
                result = np.asarray(value_of(values, ins.name), dtype)[()]
            elif ins.op == "number":
                result = dtype.type(ins.value)
            elif ins.op == "read":
                result = state[ins.slot]
            elif ins.op == "ema" and len(args) == 3:
                result = args[1] * state[ins.slot] + args[2] * args[0]
            elif ins.op == "ema":
                decay = decay_of(program, ins, values)
                result = dtype.type(decay) * state[ins.slot] + dtype.type(1.0 - decay) * args[0]
            elif ins.op in TENSOR:
                result = of_tensor(ins.op, args[0], view, full)
            elif ins.op == "unbias":
                result = args[0] / dtype.type(unbias_factor(decay_of(program, ins, values), t))
            elif ins.op == "cumsum":
                result = state[ins.slot] + args[0]
            elif ins.op == "cummax":
                result = args[0] if t == 1 else np.maximum(state[ins.slot], args[0])
            else:
                result = OPERATORS[ins.op].numpy(*args)
            registers.append(result)
    outputs = tuple(np.broadcast_to(registers[source], full).reshape(shape) for source in program.outputs)
    kept = [a.shape for a in initial_state(program, view)] if view else [shape] * len(program.writes)
    # Copies, so that a caller may reuse its gradient array.
    pairs = zip(program.writes, kept, strict=True)
    return outputs, tuple(np.array(np.broadcast_to(registers[source], own)) for source, own in pairs)


def evaluate(
    program: Program, inputs: Mapping[str, Any], dtype: Any = np.float64, view: View | None = None
) -> tuple[Array, ...]:
    """The outputs over whole sequences, from zero state.

    Args:
        inputs: arrays [T, ...] with t = 1..T along the first axis, or scalars; names the program does
            not read only contribute their shape.
        dtype: of the computation.
        view: of the tensor whose values at every step the arrays are, which tensor operators need.

    Returns:
        One array [T, ...] per output.
    """
    run = Sequences(program, inputs, np.dtype(dtype), view)
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
    return tuple(run.whole(run.values[source]) for source in program.outputs)


def evaluate_trees(
    roots: Sequence[Node],
    inputs: Mapping[str, Any],
    dtype: Any = np.float64,
    shapes: Sequence[View | Sequence[int]] | None = None,
) -> tuple[Array, ...]:
    """``evaluate`` of expressions that may see tensors.

    Args:
        inputs: arrays [T, N] whose columns are the coordinates of tensors one after another, or numbers.
        shapes: of those tensors, in canonical layout, or their views; needed where an expression sees them.

    Raises:
        L2OError: shapes are missing or do not make up N.
    """
    if not any(map(sees_tensors, roots)):
        return evaluate(compile_program(roots), inputs, dtype)
    programs, parts = compile_cases(roots), []
    for own, view in of_tensors(inputs, shapes):
        outs = evaluate(programs[view.matrix], own, dtype, view)
        parts.append([np.reshape(out, (len(out), -1)) for out in outs])
    return tuple(np.concatenate(outs, axis=1) for outs in zip(*parts, strict=True))


def of_tensors(
    inputs: Mapping[str, Any], shapes: Sequence[View | Sequence[int]] | None
) -> Iterator[tuple[dict[str, Any], View]]:
    """The inputs [T, N] cut into tensors: arrays [T, *shape] and the view of each; see ``evaluate_trees``."""
    if shapes is None:
        raise L2OError("a rule that sees tensors needs their shapes, as evaluate(..., shapes=[(64, 32)])")
    views = of_shapes(shapes)
    whole = shape_of(inputs, ())
    total = sum(view.sizes["numel"] for view in views)
    if len(whole) != 2 or whole[1] != total:
        raise L2OError(f"expected inputs [T, N] with N = {total}, as the shapes say, got {whole}")
    for place, view in slices(views):
        shape = (whole[0], *view.shape)
        yield (
            {
                name: np.reshape(np.broadcast_to(x, whole)[:, place], shape) if np.ndim(x) else x
                for name, x in inputs.items()
            },
            view,
        )


def tree_with_tangents(
    root: Node,
    inputs: Mapping[str, Any],
    wrt: Sequence[str],
    shapes: Sequence[View | Sequence[int]] | None = None,
) -> tuple[Array, Array]:
    """``evaluate_with_tangents`` of an expression that may see tensors: value [T, N], tangents [k, T, N].

    Args:
        inputs, shapes: as for ``evaluate_trees``.
    """
    if not sees_tensors(root):
        return evaluate_with_tangents(compile_program([root]), inputs, wrt)
    programs, values, tangents = compile_cases([root]), [], []
    for own, view in of_tensors(inputs, shapes):
        value, tangent = evaluate_with_tangents(programs[view.matrix], own, wrt, view)
        values.append(np.reshape(value, (len(value), -1)))
        tangents.append(np.reshape(tangent, (*tangent.shape[:2], -1)))
    return np.concatenate(values, axis=1), np.concatenate(tangents, axis=2)


def evaluate_with_tangents(
    program: Program, inputs: Mapping[str, Any], wrt: Sequence[str], view: View | None = None
) -> tuple[Array, Array]:
    """The first output over whole sequences, and its derivatives by constants (float64, forward mode).

    Args:
        inputs: as for ``evaluate``.
        wrt: names of k scalar inputs, decays of ``ema`` and ``ema_hat`` included.
        view: as for ``evaluate``.

    Returns:
        Value [T, N] and tangents [k, T, N].
    """
    run = Sequences(program, inputs, np.dtype(np.float64), view)
    position = {name: k for k, name in enumerate(wrt)}
    with np.errstate(all="ignore"):
        for ins in program.instructions:
            run.values.append(run.value(ins))
            if ins.op == "input":
                run.tangents.append({position[ins.name]: 1.0} if ins.name in position else {})
            else:
                run.tangents.append(run.tangent(ins, run.values[-1]))
    source = program.outputs[0]
    tangents = np.zeros((len(position), *run.given))
    for k, tangent in run.tangents[source].items():
        tangents[k] = run.whole(tangent)
    return run.whole(run.values[source]), tangents


def _result_dtype(inputs: Mapping[str, Any]) -> np.dtype:
    arrays = [np.asarray(value).dtype for value in inputs.values() if np.ndim(value)]
    return np.result_type(*arrays, np.float32) if arrays else np.dtype(np.float64)
