"""Reading ONNX files back: what is in them, and every way they can be wrong or hostile."""

import random

import numpy as np
import pytest

from common.errors import L2OError
from common.tables.teachers import TEACHERS
from interchange.emit import TARGETS
from interchange.files.weights import SHIPPED, Teacher
from interchange.inspect import __main__ as inspect
from interchange.inspect.onnx import KNOWN, read_onnx
from interchange.language.operators import OPERATORS, POINTWISE
from interchange.rule.rule import Rule
from tests.helpers.effort import few_calls

onnx = pytest.importorskip("onnx", reason="onnx is not installed: extra [onnx]")
helper = onnx.helper

RULE = Rule.from_text(
    "c0 * tanh(f) + c1", {"c0": -0.5, "c1": 0.25}, {"f": "ema_hat(g, 0.9)"}, name="a\x1b[31mrule", scale=0.1
)
CONTENT = TARGETS["onnx"].emit(RULE)


@pytest.fixture
def write(tmp_path):
    """A model, or bytes, as a file."""

    def save(content) -> str:
        path = tmp_path / "f.onnx"
        path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
        return str(path)

    return save


def model(content: bytes = CONTENT):
    return onnx.load_from_string(content)


def change(edit) -> bytes:
    changed = model()
    edit(changed)
    return changed.SerializeToString()


def set_property(key: str, value: str):
    def edit(changed):
        for entry in changed.metadata_props:
            if entry.key == key:
                entry.value = value

    return edit


def constant(changed):
    return next(node for node in changed.functions[0].node if node.op_type == "Constant").attribute[0]


def adding(kind: str, inputs: list[str], **options):
    return lambda m: m.functions[0].node.append(helper.make_node(kind, inputs, ["y"], **options))


def external(tensor):
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


FAULTS = {
    "external data": (lambda m: external(m.graph.initializer[0]), "another file"),
    "external constant": (lambda m: external(constant(m).t), "another file"),
    "subgraph": (adding("Loop", ["x0"], body=helper.make_graph([], "body", [], [])), "'.Loop'"),
    "hidden subgraph": (
        lambda m: constant(m).g.CopyFrom(helper.make_graph([], "hidden", [], [])), "an integer or a constant"
    ),
    "foreign operator": (adding("ConstantOfShape", ["x0"]), "ConstantOfShape"),
    "foreign domain": (adding("Add", ["g", "g"], domain="evil"), "evil.Add"),
    "itself": (adding("RuleStep", [], domain="symbolic_l2o"), "RuleStep"),
    "second function": (lambda m: m.functions.append(m.functions[0]), "one function"),
    "no function": (lambda m: m.ClearField("functions"), "one function"),
    "second domain": (lambda m: m.opset_import.append(helper.make_opsetid("evil", 1)), "one function"),
    "node outside": (lambda m: m.graph.node.append(helper.make_node("Add", ["g", "g"], ["y"])), "one node"),
    "training": (lambda m: m.training_info.add(), "training"),
    "sparse": (lambda m: m.graph.sparse_initializer.add(), "sparse"),
    "bomb": (lambda m: m.graph.initializer[0].dims.append(1 << 50), "do not fit its shape"),
    "negative": (lambda m: m.graph.initializer[0].dims.append(-1), "and a shape"),
    "big constant": (lambda m: constant(m).t.dims.extend([1, 1]), "one number"),
    "dtype": (lambda m: setattr(m.graph.initializer[0], "data_type", 8), "expected float32"),
    "twice": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "twice"),
    "no number": (lambda m: m.graph.initializer.pop(), "constants/c1"),
    "other ONNX": (lambda m: m.ClearField("metadata_props"), "of this project"),
    "version": (set_property("format_version", "2.0.0"), "this reader knows 1"),
    "kind": (set_property("kind", "evil"), "a rule or a teacher"),
    "rule": (set_property("rule", '{"format": "l2o-rule"}'), "format_version"),
    "expression": (set_property("rule", RULE.to_json().replace("tanh(f)", "tanh(h)")), "sha256"),
    "key twice": (lambda m: m.metadata_props.append(m.metadata_props[0]), "twice"),
}  # fmt: skip


DAMAGED = [CONTENT[:100], b"\x08", b"\x08" + b"\xff" * 50, CONTENT[:-3] + b"\xff\xff\xff"]


@pytest.mark.parametrize(
    ("content", "told"),
    [*((change(edit), told) for edit, told in FAULTS.values()), *((content, "") for content in DAMAGED)],
    ids=[*FAULTS, *(f"damaged {k}" for k in range(len(DAMAGED)))],
)
def test_every_fault_is_one_clear_line(content, told, write, capsys):
    path = write(content)
    with pytest.raises(L2OError, match=r"f\.onnx: ") as error:
        read_onnx(path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert inspect.main([path]) == 2 and told in capsys.readouterr().err


def test_large_files_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "f.onnx"
    with open(path, "wb") as file:
        file.write(CONTENT)
        file.truncate(65 << 20)
    with pytest.raises(L2OError, match="at most 67108864 bytes"):
        read_onnx(path)
    with pytest.raises(L2OError):
        read_onnx(tmp_path)


def test_no_mutant_crashes_hangs_or_passes_for_the_original(write):
    dice, read = random.Random(1), 0
    for _ in range(300):
        mutant = bytearray(CONTENT)
        for _ in range(dice.choice((1, 1, 4))):
            mutant[dice.randrange(len(mutant))] = dice.randrange(256)
        path = write(bytes(mutant))
        try:
            with few_calls(200_000):
                found = read_onnx(path)
        except L2OError as error:
            assert "\n" not in str(error)
        else:
            read += 1
            numbers = found.changed() or mutant == CONTENT
            assert not found.as_written or numbers or _same_graph(mutant)
    assert 0 < read < 200


def _same_graph(mutant: bytes) -> bool:
    one, other = model(bytes(mutant)), model()
    for each in (one, other):
        each.ClearField("metadata_props")
    return one == other


def test_what_was_written_is_read(write):
    found = read_onnx(write(CONTENT))
    assert (found.source, found.is_rule, found.as_written, found.changed()) == (RULE, True, True, {})
    assert found.inputs == {"g": ("N",), "state_0": ("N",), "t": ()}
    assert found.outputs == {"u": ("N",), "new_state_0": ("N",)}
    assert found.opset == 15


def test_edited_constants_are_seen_and_other_edits_too(write):
    def edit(changed):
        changed.graph.initializer[1].raw_data = np.array(3.0).tobytes()

    found = read_onnx(write(change(edit)))
    assert found.as_written
    assert found.changed() == {"constants/c0": 3.0}
    swap = lambda m: setattr(m.functions[0].node[-1], "op_type", "Identity")  # noqa: E731
    assert not read_onnx(write(change(swap))).as_written


def test_edited_numbers_and_words_of_a_teacher_are_seen(write):
    content = TARGETS["onnx"].emit(Teacher.named("rp_s"))
    dice, seen = random.Random(2), 0
    for tensor in model(content).graph.initializer:
        mutant = model(content)
        (edited,) = [t for t in mutant.graph.initializer if t.name == tensor.name]
        raw = bytearray(edited.raw_data)
        raw[dice.randrange(len(raw))] ^= 1
        edited.raw_data = bytes(raw)
        assert not read_onnx(write(mutant)).as_written, tensor.name
        seen += 1
    assert seen > 6
    for key in ("weights_sha256", "values_sha256", "teacher"):
        mutant = model(content)
        (entry,) = [entry for entry in mutant.metadata_props if entry.key == key]
        entry.value = entry.value.replace("rp_s", "rp_t") if key == "teacher" else entry.value[::-1]
        assert not read_onnx(write(mutant)).as_written, key
    del mutant.metadata_props[:3]
    with pytest.raises(L2OError):
        read_onnx(write(mutant))


@pytest.mark.parametrize("name", SHIPPED)
def test_teachers_are_read_back(name, write):
    teacher = Teacher.named(name)
    found = read_onnx(write(TARGETS["onnx"].emit(teacher)))
    assert found.as_written
    assert (found.source.row, found.source.sha256) == (teacher.row, teacher.sha256)
    for key, array in teacher.weights.items():
        np.testing.assert_array_equal(found.source.weights[key], np.float32(array))


def test_a_teacher_with_other_weights_than_its_row_needs_is_refused(write):
    changed = model(TARGETS["onnx"].emit(Teacher.named("rp_s")))
    changed.graph.initializer[2].raw_data = np.full(6, np.inf, np.float32).tobytes()
    with pytest.raises(L2OError, match="finite"):
        read_onnx(write(changed))
    del changed.graph.initializer[2]
    with pytest.raises(L2OError, match="missing"):
        read_onnx(write(changed))


def test_every_operator_written_is_on_the_list_and_none_else():
    used = set()
    for name in POINTWISE:
        text = f"{name}({', '.join(['g', 'theta'][: OPERATORS[name].arity])}) + ema_hat(g, 0.5) * cummax(t)"
        used |= {node.op_type for node in model(TARGETS["onnx"].emit(Rule.from_text(text))).functions[0].node}
    seeing = "polar(g) + orth(g) + mean(g) + row_max(g)"
    used |= {node.op_type for node in model(TARGETS["onnx"].emit(Rule.from_text(seeing))).functions[0].node}
    for name in SHIPPED:
        used |= {node.op_type for node in model(TARGETS["onnx"].emit(Teacher.named(name))).functions[0].node}
    assert {"tanh", "linear"} == {row.output for row in TEACHERS.values()}
    assert used == KNOWN


def test_inspect_describes_both_kinds(write):
    text = inspect.describe(write(change(lambda m: setattr(m.graph.initializer[1], "raw_data", bytes(8)))))
    assert text.startswith("l2o-onnx rule a?[31mrule, opset 15, ")
    assert "  u = 0.1 * (c0 * tanh(f) + c1)" in text
    assert "  changed in the file: constants/c0 = 0.0" in text
    assert "  input g [N]" in text
    text = inspect.describe(write(TARGETS["onnx"].emit(Teacher.named("rp_s"))))
    assert "  input lstm_0/h [7, N]" in text
    assert "  pre/w [6, 2] float32" in text
