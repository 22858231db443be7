"""The export command: every target, rules and teachers by every name they have, text and bytes."""

import pytest

from interchange import export as export_command
from interchange.emit import TARGETS
from interchange.files.weights import Teacher, save_weights
from interchange.inspect.onnx import read_onnx
from interchange.rule.rule import Rule
from tests.helpers.commands import call


@pytest.fixture
def rule_file(tmp_path) -> str:
    path = tmp_path / "rule.json"
    Rule.from_text("c0 * ema(g, 0.9)", {"c0": -0.5}, name="mine").save(path)
    return str(path)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_written(target, rule_file, tmp_path):
    out = tmp_path / f"out{TARGETS[target].suffix}"
    assert call(f"interchange.export {rule_file} --to {target} -o {out}") == 0
    content = export_command.export(Rule.load(rule_file), target)
    assert out.read_bytes() == (content if isinstance(content, bytes) else content.encode())


def test_text_is_printed_and_bytes_are_not(rule_file, capsys, refused):
    assert call(f"interchange.export {rule_file} --to optax") == 0
    assert capsys.readouterr().out == TARGETS["optax"].emit(Rule.load(rule_file))
    assert "add -o NAME.onnx" in refused(f"interchange.export {rule_file} --to onnx")


@pytest.mark.parametrize("source", ["{}/teacher.h5", "{}", "teacher:{}", "rp_s", "teacher:rp_s"])
def test_a_teacher_is_found_by_every_name(source, tmp_path):
    teacher = Teacher.named("rp_s")
    folder, out = tmp_path / "run", tmp_path / "f.onnx"
    save_weights(folder / "teacher.h5", teacher.row, teacher.weights, "a test")
    assert call(f"interchange.export {source.format(folder)} --to onnx -o {out}") == 0
    assert read_onnx(out).source.row == teacher.row


def test_a_run_with_rules_is_its_rule_where_a_teacher_has_no_form(tmp_path, capsys, refused):
    teacher, rule = Teacher.named("rp_s"), Rule.named("adam")
    save_weights(tmp_path / "teacher.h5", teacher.row, teacher.weights, "a test")
    assert "a teacher has no form as latex" in refused(f"interchange.export {tmp_path} --to latex")
    rule.save(tmp_path / "rules" / "best.json")
    assert call(f"interchange.export {tmp_path} --to latex") == 0
    assert capsys.readouterr().out == TARGETS["latex"].emit(rule)
    assert "a teacher has no form as latex" in refused(f"interchange.export teacher:{tmp_path} --to latex")
    assert call(f"interchange.export {tmp_path} --to onnx -o {tmp_path / 'f.onnx'}") == 0
    assert read_onnx(tmp_path / "f.onnx").source.row == teacher.row


@pytest.mark.parametrize("source", ["rule:{}", "adam", "rule:adam"])
def test_a_rule_is_found_by_every_name(source, rule_file, tmp_path):
    out = tmp_path / "f.onnx"
    assert call(f"interchange.export {source.format(rule_file)} --to onnx -o {out}") == 0
    assert read_onnx(out).source.name == ("adam" if "adam" in source else "mine")


def test_a_file_that_cannot_be_written_is_one_line(capsys):
    assert call("interchange.export adam --to onnx -o /dev/null/f.onnx") == 74
    error = capsys.readouterr().err
    assert "cannot write" in error and error.count("\n") == 1
