"""A trained teacher as one ONNX file: features, LSTM cells and output of one step, float32 or double.

Inputs: ``g`` [N], the features' moving averages ``state_0`` ... [N], per cell ``lstm_0/h`` and ``lstm_0/c``
[H, N], all zero before the first step, and ``t``, int64 [], the number of this step from 1. Outputs: ``u``
[N], with the scale and before the learning rate, and each state's new value, named ``new_`` and its name. The
weights are initializers by their names, shapes and gate order (i, f, g, o) in teacher files (FORMATS.md 2).
Of a teacher with a structure, or with features that see tensors, ``g``, the averages and ``u`` are
[rows, cols], N = rows x cols coordinates row after row; a tensor without a matrix view is one row.
"""

from collections.abc import Mapping

import numpy as np

from common.run.storage import canonical_json, content_hash
from common.tables.teachers import GAIN
from interchange.emit.onnx.matrix import TENSOR
from interchange.emit.onnx.operators import Nodes
from interchange.emit.onnx.rule import Step, lower
from interchange.files.weights import Teacher
from interchange.language.checks import RAW
from interchange.language.execute import compile_program
from interchange.language.parse import parse


def emit(teacher: Teacher, double: bool = False) -> bytes:
    """The file's bytes; the same weights give the same bytes."""
    row = teacher.row
    program = compile_program([parse(text, RAW) for text in row.expressions().values()])
    averages = [f"state_{slot}" for slot in range(len(program.writes))]
    cells = {f"lstm_{k}/{part}": (size, "N") for k, size in enumerate(row.lstm) for part in "hc"}
    dtype = np.float64 if double else np.float32
    weights = {name: np.asarray(array, dtype) for name, array in teacher.weights.items()}
    step = Step(
        "TeacherStep",
        ["g", *averages, *cells, "t"],
        {"scale": np.float64(row.scale), **weights},
        {**cells, **{f"new_{name}": shape for name, shape in cells.items()}},
        ("rows", "cols") if teacher.sees_tensors else ("N",),
        double,
    )
    n = step.nodes
    registers = lower(n, program, {"g": "g"}, averages)
    x = n.add(
        "Concat", *(_row(n, registers[output], teacher.sees_tensors) for output in program.outputs), axis=0
    )
    if row.pre:
        x = _elu(n, _linear(n, "pre", x))
    new_cells = {}
    for layer in range(len(row.lstm)):
        x, new_cells[f"new_lstm_{layer}/c"] = _cell(n, f"lstm_{layer}", x, row.lstm[layer])
        new_cells[f"new_lstm_{layer}/h"] = x
    out = n.add("Squeeze", _linear(n, "out", x), n.integers(0))
    if row.pre_tanh_scale:
        out = n.add("Mul", out, GAIN)
    if row.output == "tanh":
        out = n.add("Tanh", out)
    if teacher.sees_tensors:
        out = n.add("Reshape", out, n.shape_of("g"))
    if row.structure:
        out = TENSOR[row.structure](n, out)
    step.output("u", n.add("Mul", n.single("scale"), out))
    for slot, register in enumerate(program.writes):
        step.output(f"new_state_{slot}", registers[register])
    for name in cells:
        step.output(f"new_{name}", new_cells[f"new_{name}"])
    told = {"kind": "teacher", "teacher": canonical_json(row.to_dict()), "weights_sha256": teacher.sha256}
    return step.model(told | {"values_sha256": values_sha256(told, step.initializers)})


def values_sha256(metadata: Mapping[str, str], values: Mapping[str, np.ndarray]) -> str:
    """Hash of the initializers, by name, and of what the metadata say of them."""
    arrays = [[name, a.dtype.str, a.shape, content_hash(a.tobytes())] for name, a in sorted(values.items())]
    return content_hash([metadata["teacher"], metadata.get("weights_sha256", ""), arrays])


def _row(n: Nodes, value: str, matrix: bool) -> str:
    """[1, N] of a feature; one without dimensions, such as t/1000, is repeated N times."""
    value = n.add("Expand", value, n.shape_of("g"))
    return n.add("Reshape", value, n.integers(1, -1)) if matrix else n.add("Unsqueeze", value, n.integers(0))


def _linear(n: Nodes, layer: str, x: str) -> str:
    """w x + b for x [D, N]."""
    bias = n.add("Unsqueeze", f"{layer}/b", n.integers(1))
    return n.add("Add", n.add("MatMul", f"{layer}/w", x), bias)


def _elu(n: Nodes, x: str) -> str:
    """Composed in double, of which runtimes have no kernel."""
    if n.dtype is np.float32:
        return n.add("Elu", x)
    below = n.add("Sub", n.add("Exp", n.add("Min", x, n.number(0.0))), n.number(1.0))
    return n.add("Where", n.add("Greater", x, n.number(0.0)), x, below)


def _cell(n: Nodes, layer: str, x: str, size: int) -> tuple[str, str]:
    """New h and c [H, N] of one LSTM cell with forget gate (Gers et al. 2000)."""
    driven = n.add("MatMul", f"{layer}/w_input", x)
    kept = n.add("MatMul", f"{layer}/w_hidden", f"{layer}/h")
    bias = n.add("Unsqueeze", f"{layer}/bias", n.integers(1))
    i, f, g, o = n.split(n.add("Add", n.add("Add", driven, kept), bias), 4, size)
    gates = [n.add("Sigmoid", gate) for gate in (i, f, o)]
    forgotten = n.add("Mul", gates[1], f"{layer}/c")
    c = n.add("Add", forgotten, n.add("Mul", gates[0], n.add("Tanh", g)))
    return n.add("Mul", gates[2], n.add("Tanh", c)), c
