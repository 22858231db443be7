"""The export command: every target, rules and teachers by every name they have, text and bytes."""

import pytest

from interchange import export as export_command
from interchange.emit import TARGETS
from interchange.files.weights import Teacher, save_weights
from interchange.inspect.onnx import read_onnx
from interchange.rule.rule import Rule


@pytest.fixture
def rule_file(tmp_path) -> str:
    path = tmp_path / "rule.json"
    Rule.from_text("c0 * ema(g, 0.9)", {"c0": -0.5}, name="mine").save(path)
    return str(path)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_written(target, rule_file, tmp_path):
    out = tmp_path / f"out{TARGETS[target].suffix}"
    assert export_command.main([rule_file, "--to", target, "-o", str(out)]) == 0
    content = export_command.export(Rule.load(rule_file), target)
    assert out.read_bytes() == (content if isinstance(content, bytes) else content.encode())


def test_text_is_printed_and_bytes_are_not(rule_file, capsys):
    assert export_command.main([rule_file, "--to", "optax"]) == 0
    assert capsys.readouterr().out == TARGETS["optax"].emit(Rule.load(rule_file))
    assert export_command.main([rule_file, "--to", "onnx"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "add -o NAME.onnx" in printed.err


@pytest.mark.parametrize("source", ["{}/teacher.h5", "{}", "teacher:{}", "rp_s", "teacher:rp_s"])
def test_a_teacher_is_found_by_every_name(source, tmp_path):
    teacher = Teacher.named("rp_s")
    folder, out = tmp_path / "run", tmp_path / "f.onnx"
    save_weights(folder / "teacher.h5", teacher.row, teacher.weights, "a test")
    assert export_command.main([source.format(folder), "--to", "onnx", "-o", str(out)]) == 0
    assert read_onnx(out).source.row == teacher.row


@pytest.mark.parametrize("source", ["rule:{}", "adam", "rule:adam"])
def test_a_rule_is_found_by_every_name(source, rule_file, tmp_path):
    out = tmp_path / "f.onnx"
    assert export_command.main([source.format(rule_file), "--to", "onnx", "-o", str(out)]) == 0
    assert read_onnx(out).source.name == ("adam" if "adam" in source else "mine")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rp_s", "--to", "torch"], "export it to onnx"),
        (["rp_x", "--to", "onnx"], "rp_x: no such file"),
        (["teacher:rp_x", "--to", "onnx"], "shipped teacher"),
        (["adam", "--to", "onxx"], "did you mean 'onnx'"),
        (["adam", "--to", "onnx", "-o", "/dev/null/f.onnx"], "cannot write"),
    ],
)
def test_faults_are_one_line(arguments, told, capsys):
    assert export_command.main(arguments) != 0
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
