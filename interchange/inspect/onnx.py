"""Read the ONNX files this project writes (interchange.emit), checked before anything is allocated or run.

A pass of its own over the parsed protobuf: one file, of limited size, without external data, subgraphs,
foreign functions or operators that no emitter uses. ONNX's own loader and checker promise none of that.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from common.errors import L2OError
from common.run.storage import loads_json, read_file
from interchange.emit.onnx.rule import DOMAIN, FORMAT, require_onnx
from interchange.emit.onnx.teacher import values_sha256
from interchange.files.weights import Teacher, teacher_from_arrays
from interchange.rule.rule import Rule

SIZE_LIMIT = 64 << 20
NODE_LIMIT = 100_000  # a rule of the largest size allowed, its temporal state included, has fewer
_DTYPES = {1: np.dtype("<f4"), 7: np.dtype("<i8"), 11: np.dtype("<f8")}  # of TensorProto.DataType
KNOWN = frozenset(
    re.findall(
        r"\w+",
        "Abs Add Asinh Atan Cast Concat Constant Cos Cosh Div Elu Equal Erf Exp Expand Floor Greater IsNaN "
        "GreaterOrEqual Identity Less LessOrEqual Log MatMul Max Min Mul Neg Or Pow ReduceMax ReduceMean "
        "ReduceSum Reshape Shape Sigmoid Sign Sin Sinh Split Sqrt Squeeze Sub Tan Tanh Transpose Unsqueeze "
        "Where",
    )
)


@dataclasses.dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file of this project holds.

    Attributes:
        source: the rule or teacher of the metadata; a teacher with the weights of the initializers.
        values: initializer -> array.
        inputs, outputs: name -> shape, "N" where it is open.
        nodes: of the function.
        as_written: the graph is, byte for byte, what this version writes for ``source`` with ``values``, and
            a teacher's ``values`` have their hash; if not, another version wrote it or somebody changed it.
    """

    source: Rule | Teacher
    values: dict[str, np.ndarray]
    inputs: dict[str, tuple]
    outputs: dict[str, tuple]
    opset: int
    nodes: int
    as_written: bool

    @property
    def is_rule(self) -> bool:
        """A rule, not a teacher."""
        return isinstance(self.source, Rule)

    def changed(self) -> dict[str, float]:
        """The scale and constants that are not those of the rule in the metadata."""
        written = {"scale": self.source.scale}
        written |= {f"constants/{name}": value for name, value in self.source.constants.items()}
        return {name: float(self.values[name]) for name in written if self.values[name] != written[name]}


def read_onnx(path: str | os.PathLike[str]) -> OnnxFile:
    """Read and check an ONNX file of this project; every fault is one ``L2OError`` that names the file."""
    require_onnx()
    import onnx

    content = read_file(path, SIZE_LIMIT)
    try:
        model = onnx.ModelProto.FromString(content)
        fault = next(_faults(model), "")
        if fault:
            raise L2OError(f"{fault}; export it again with python -m interchange.export")
        values = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
        source = _source(model, values)
        inputs = {info.name: _shape(info) for info in model.graph.input}
        options = {"vector": inputs.get("g") == (1, "cols"), "double": _is_double(model)}
        return OnnxFile(
            source,
            values,
            inputs,
            {info.name: _shape(info) for info in model.graph.output},
            model.opset_import[0].version,
            len(model.functions[0].node),
            _sealed(model, source, values)
            and _unlabelled(content) == _unlabelled(_emit(source, values, options)),
        )
    except L2OError as error:
        raise L2OError(f"{path}: {error}") from None
    except Exception as error:  # google.protobuf's DecodeError, which only protobuf's own module names
        if type(error).__name__ != "DecodeError":
            raise
        raise L2OError(f"{path}: not ONNX, or damaged; restore a copy or export it again") from None


def _faults(model: Any) -> Iterator[str]:
    """What no file written here has."""
    if any(isinstance(text, bytes) for text in _texts(model)):  # so protobuf hands over what is no UTF-8
        yield "text in it is not UTF-8"
    if {entry.key: entry.value for entry in model.metadata_props}.get("format") != FORMAT:
        yield f"expected an ONNX file of this project (format {FORMAT!r} in its metadata), got another"
    if len(model.metadata_props) != len({entry.key for entry in model.metadata_props}):
        yield "a key of the metadata is given twice"
    domains = [opset.domain for opset in model.opset_import]
    if domains != ["", DOMAIN] or len(model.functions) != 1 or model.functions[0].domain != DOMAIN:
        yield f"expected one function of the domain {DOMAIN} and no other"
        return
    function, graph = model.functions[0], model.graph
    if [(node.domain, node.op_type) for node in graph.node] != [(DOMAIN, function.name)]:
        yield "expected the call of the function as the graph's one node"
    if model.training_info or graph.sparse_initializer or function.attribute or function.attribute_proto:
        yield "unexpected training steps, sparse tensors or attributes of the function"
    if len(function.node) > NODE_LIMIT:
        yield f"expected at most {NODE_LIMIT} nodes, got {len(function.node)}"
    for node in function.node:
        if node.domain or node.op_type not in KNOWN:
            yield f"operator {f'{node.domain}.{node.op_type}'[:60]!r} is not among those written here"
    for attribute in (a for node in (*graph.node, *function.node) for a in node.attribute):
        graphs = attribute.HasField("g") or attribute.graphs
        if attribute.type not in (2, 4, 7) or attribute.ref_attr_name or graphs:  # INT, TENSOR, INTS
            yield f"attribute {attribute.name[:60]!r}: expected an integer or a constant"
        if attribute.type == 4 and (attribute.t.dims or _tensor_fault(attribute.t)):
            yield f"constant {attribute.name[:60]!r}: {_tensor_fault(attribute.t) or 'expected one number'}"
    yield from (fault for tensor in graph.initializer if (fault := _tensor_fault(tensor)))
    names = [tensor.name for tensor in graph.initializer]
    if len(names) != len(set(names)):
        yield "an initializer is given twice"


def _texts(model: Any) -> Iterator[str]:
    """Every text of a file that is used below."""
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    yield from (tensor.name for tensor in model.graph.initializer)
    for info in (*model.graph.input, *model.graph.output):
        yield info.name
        yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim)


def _tensor_fault(tensor: Any) -> str:
    name = tensor.name[:60]
    if tensor.data_location or tensor.external_data:
        return f"tensor {name!r} refers to another file"
    if tensor.data_type not in _DTYPES or any(size < 0 for size in tensor.dims):
        return f"tensor {name!r}: expected float32, float64 or int64 and a shape"
    if len(tensor.raw_data) != math.prod(tensor.dims) * _DTYPES[tensor.data_type].itemsize:
        return f"tensor {name!r}: {len(tensor.raw_data)} bytes do not fit its shape {list(tensor.dims)[:8]}"
    return ""


def _array(tensor: Any) -> np.ndarray:
    array = np.frombuffer(tensor.raw_data, _DTYPES[tensor.data_type]).reshape(tuple(tensor.dims))
    if not np.isfinite(array).all():
        raise L2OError(f"{tensor.name}: expected finite numbers; export it again")
    return array


def _shape(info: Any) -> tuple:
    return tuple(dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim)


def _source(model: Any, values: dict[str, np.ndarray]) -> Rule | Teacher:
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    version = metadata.get("format_version", "")
    if not re.fullmatch(r"1\.\d{1,6}\.\d{1,6}", version):
        raise L2OError(f"format_version {version[:20]!r}, this reader knows 1.x.y; update the software")
    kind = metadata.get("kind", "")
    if kind not in ("rule", "teacher") or kind not in metadata:
        raise L2OError(f"expected a rule or a teacher in the metadata, got {kind[:20]!r}; export it again")
    if kind == "rule":
        rule = Rule.from_json(metadata["rule"])
        expected = ["scale", *(f"constants/{name}" for name in rule.constants)]
        if list(values) != expected or any(array.shape for array in values.values()):
            raise L2OError(f"expected the numbers {', '.join(expected)[:200]}; export it again")
        return rule
    weights = {name: array for name, array in values.items() if name != "scale"}
    if values.get("scale", np.zeros(1)).shape:
        raise L2OError("expected the number scale; export it again")
    row = loads_json(metadata["teacher"], "metadata")
    return teacher_from_arrays(row, weights, metadata.get("weights_sha256", "")[:64], "", "weights")


def _sealed(model: Any, source: Rule | Teacher, values: dict[str, np.ndarray]) -> bool:
    """Whether a teacher's numbers have the hash in the metadata, where a rule's numbers are themselves."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return isinstance(source, Rule) or metadata.get("values_sha256") == values_sha256(metadata, values)


def _is_double(model: Any) -> bool:
    return any(info.name == "g" and info.type.tensor_type.elem_type == 11 for info in model.graph.input)


def _emit(source: Rule | Teacher, values: dict[str, np.ndarray], options: dict[str, bool]) -> bytes:
    """What is written for ``source`` with the numbers of a file; options of ``onnx.rule.emit``."""
    from interchange.emit import TARGETS

    scale = float(values["scale"])
    if isinstance(source, Rule):
        constants = {name: float(values[f"constants/{name}"]) for name in source.constants}
        changed = dataclasses.replace(source.with_constants(constants), scale=scale)
        return TARGETS["onnx"].emit(changed, **options)
    changed = dataclasses.replace(source, row=dataclasses.replace(source.row, scale=scale))
    return TARGETS["onnx"].emit(changed, double=options["double"])


def _unlabelled(content: bytes) -> bytes:
    import onnx

    model = onnx.ModelProto.FromString(content)
    model.ClearField("metadata_props")
    return model.SerializeToString(deterministic=True)
