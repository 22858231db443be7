"""A rule as one ONNX file: one step, float32 or double, as a function of the domain ``symbolic_l2o``.

Inputs: ``g`` [N], ``theta`` [N] if the rule reads it, ``state_0`` ... [N], zero before the first step, and
``t``, int64 [], the number of this step from 1. Outputs: ``u`` [N], with the scale and before the learning
rate, and ``new_state_0`` ... [N]. It is the pure step: who runs it keeps state and counts t, and skips steps
whose u is not finite. ``scale`` and the constants are initializers in double, ``constants/c0`` and so on, so
that 1 - b and 1 - b**t are exact whatever value they are given.

Of a rule that sees tensors [N] is [rows, cols], a row for every output and a column for every input; state
of a row, a column or the tensor is [rows, 1], [1, cols] or [1, 1]. The file is for tensors with a matrix
view, or with ``vector`` for the others, which are one row: [1, cols].
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from common.extras import require
from interchange.emit.onnx.matrix import TENSOR, size
from interchange.emit.onnx.operators import ONNX, Nodes, one_minus_power
from interchange.language.equation import Equation
from interchange.language.execute import Instruction, Program
from interchange.language.view import FULL, SIZES

DOMAIN = "symbolic_l2o"
# Files are for old runtimes too: the first version that has functions, and the opset that came with it, or
# the one in which the axes of reductions became inputs. onnx itself would write newer ones.
IR_VERSION, OPSET, OPSET_OF_REDUCTIONS = 8, 15, 18
FORMAT, FORMAT_VERSION = "l2o-onnx", "1.0.0"

_DOC = (
    "One optimizer step. theta <- theta + lr * u. States are zero before the first step; t is the number of "
    "this step, from 1. Where u is not finite, keep theta, the states and t."
)


def emit(rule: Equation, vector: bool = False, double: bool = False) -> bytes:
    """The file's bytes; the same rule gives the same bytes. A feature without definition: ``L2OError``.

    Args:
        vector: for tensors without a matrix view; it is nothing to rules that see no tensors.
        double: float64 in place of float32; refused for operators of which runtimes have no such kernel.
    """
    program = rule.program(not vector)
    raw = ["g", *(["theta"] if "theta" in program.inputs else [])]
    states = [f"state_{slot}" for slot in range(len(program.writes))]
    values = {"scale": rule.scale, **{f"constants/{name}": v for name, v in rule.constants.items()}}
    names = {**{name: name for name in raw}, **{name: f"constants/{name}" for name in rule.constants}}
    whole = ("N",) if not rule.sees_tensors else (1 if vector else "rows", "cols")
    shapes = {}
    for slot, kind in enumerate(program.slot_kinds):
        if kind != FULL:
            kept = [n if name in kind else 1 for n, name in zip(whole, ("rows", "columns"), strict=True)]
            shapes |= {f"state_{slot}": kept, f"new_state_{slot}": kept}
    initializers = {key: np.float64(value) for key, value in values.items()}
    step = Step("RuleStep", [*raw, *states, "t"], initializers, shapes, whole, double)
    registers = lower(step.nodes, program, names, states)
    u = step.nodes.add("Mul", step.nodes.single("scale"), registers[program.outputs[0]])
    step.output("u", u)
    for slot, register in enumerate(program.writes):
        step.output(f"new_state_{slot}", registers[register])
    return step.model({"kind": "rule", "rule": rule.to_json()})


def lower(nodes: Nodes, program: Program, names: Mapping[str, str], states: Sequence[str]) -> list[str]:
    """The nodes of a program; per register the name of its value, [N] or 0-dim.

    Args:
        names: per input of the program but t, the name of its value [N]; of constants double [].
        states: per slot the name of its old value [N].
    """
    lowering = _Lowering(nodes, program, names, states)
    for ins in program.instructions:
        lowering.registers.append(lowering.write(ins))
    return lowering.registers


@dataclasses.dataclass
class _Lowering:
    nodes: Nodes
    program: Program
    names: Mapping[str, str]
    states: Sequence[str]
    registers: list[str] = dataclasses.field(default_factory=list)

    def write(self, ins: Instruction) -> str:
        n, args = self.nodes, [self.registers[arg] for arg in ins.args]
        if ins.op == "number":
            return n.number(ins.value)
        if ins.op == "input":
            if ins.name in SIZES:
                return size(n, ins.name)
            name = self.names.get(ins.name, "t")
            return name if name in ("g", "theta") else n.single(name)
        if ins.op == "read":
            return self.states[ins.slot]
        if ins.op == "ema" and len(args) == 3:
            return n.add("Add", n.add("Mul", args[1], self.states[ins.slot]), n.add("Mul", args[2], args[0]))
        if ins.op == "ema":
            b = self._decay(ins)
            rest = n.single(n.add("Sub", n.number(1.0, np.float64), b))
            kept = n.add("Mul", n.single(b), self.states[ins.slot])
            return n.add("Add", kept, n.add("Mul", rest, args[0]))
        if ins.op == "unbias":
            factor = one_minus_power(n, self._decay(ins), n.double("t"))
            return n.add("Div", args[0], n.single(factor))
        if ins.op == "cumsum":
            return n.add("Add", self.states[ins.slot], args[0])
        if ins.op == "cummax":
            first = n.add("Equal", n.double("t"), n.number(1.0, np.float64))
            return n.add("Where", first, args[0], ONNX["max"](n, self.states[ins.slot], args[0]))
        return self._of_tensor(ins) if ins.op in TENSOR else n.pointwise(ins.op, *args)

    def _of_tensor(self, ins: Instruction) -> str:
        n, x, kind = self.nodes, self.registers[ins.args[0]], self.program.kinds[ins.args[0]]
        if ins.op in ("polar", "orth"):
            return TENSOR[ins.op](n, x if kind == FULL else n.add("Expand", x, n.shape_of("g")))
        return x if kind is None else TENSOR[ins.op](n, x)

    def _decay(self, ins: Instruction) -> str:
        """b in double."""
        source = self.program.instructions[ins.args[1]]
        if source.op == "number":
            return self.nodes.number(source.value, np.float64)
        return self.names[source.name]


class Step:
    """One step as a function: its inputs, its nodes, and the model around it.

    Args:
        inputs: names of values of the shape ``whole``; "t" is int64 []. ``shapes`` tells others.
        initializers: name -> array; further inputs of the function, which the model holds.
        double: float64 in place of float32.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        initializers: Mapping[str, np.ndarray],
        shapes: Mapping[str, Sequence] | None = None,
        whole: tuple = ("N",),
        double: bool = False,
    ) -> None:
        require_onnx()
        self.name, self.inputs, self.initializers = name, list(inputs), dict(initializers)
        self.shapes, self.whole = dict(shapes or {}), whole
        self.nodes, self.outputs = Nodes(np.float64 if double else np.float32), []

    def output(self, name: str, value: str) -> None:
        """Declare an output of the shape ``whole``, to which a value is repeated, or of ``shapes``."""
        if name in self.shapes:
            self.nodes.add("Identity", value, output=name)
        else:
            self.nodes.add("Expand", value, self.nodes.shape_of("g"), output=name)
        self.outputs.append(name)

    def model(self, metadata: Mapping[str, str]) -> bytes:
        """The checked model's bytes: the function called once, initializers, ``metadata``."""
        from onnx import checker, helper, numpy_helper

        given = [*self.inputs, *self.initializers]
        nodes = self.nodes.needed(self.outputs)
        reduces = any(node.op_type.startswith("Reduce") for node in nodes)
        opsets = [helper.make_opsetid("", OPSET_OF_REDUCTIONS if reduces else OPSET)]
        function = helper.make_function(DOMAIN, self.name, given, self.outputs, nodes, opsets)
        call = helper.make_node(self.name, given, self.outputs, domain=DOMAIN)
        graph = helper.make_graph(
            [call],
            self.name,
            [self._info(name) for name in self.inputs],
            [self._info(name) for name in self.outputs],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in self.initializers.items()],
        )
        model = helper.make_model(
            graph,
            functions=[function],
            opset_imports=[*opsets, helper.make_opsetid(DOMAIN, 1)],
            ir_version=IR_VERSION,
            producer_name="symbolic-l2o",
            doc_string=_DOC,
        )
        helper.set_model_props(model, {"format": FORMAT, "format_version": FORMAT_VERSION, **metadata})
        checker.check_model(model, full_check=True)
        return model.SerializeToString(deterministic=True)

    def _info(self, name: str) -> object:
        from onnx import TensorProto, helper

        if name == "t":
            return helper.make_tensor_value_info(name, TensorProto.INT64, [])
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.nodes.dtype))
        return helper.make_tensor_value_info(name, kind, self.shapes.get(name, self.whole))


def require_onnx() -> None:
    """``L2OError`` with the remedy where the package onnx is not installed."""
    require("an ONNX file", "onnx")
