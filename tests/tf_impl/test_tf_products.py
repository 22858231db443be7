"""``--bfloat16`` where TensorFlow cannot multiply bfloat16: one line instead of a process that dies."""

import subprocess

import pytest

pytest.importorskip("tensorflow")

from tests.helpers.commands import call
from tests.helpers.processes import launched, started
from tf_impl.problems import products

LINES = {
    "optimize": "tf_impl.optimize sgd --bfloat16 --steps 2",
    "evaluate": "tf_impl.evaluate --optimizers sgd:lr=0.1 --seeds 1 --bfloat16 --steps 2",
}
OLD = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # oneDNN then does as on a processor without products of bfloat16


@pytest.mark.parametrize("command", LINES)
def test_it_is_refused_before_anything_is_written(command, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(products, "fault", lambda dtype: asked.append(dtype) or "a step ends by SIGSEGV")
    assert call(f"{LINES[command]} --out {tmp_path / 'o'}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and asked == ["bfloat16"] and not list(tmp_path.iterdir())
    assert "--bfloat16: expected a processor" in error and "here a step ends by SIGSEGV; leave it" in error


@pytest.mark.parametrize("line", ["--steps 2 --quiet", "--steps 2 --quiet --problem quadratic --bfloat16"])
def test_nobody_is_asked_where_nothing_is_multiplied_in_bfloat16(line, tmp_path, monkeypatch):
    monkeypatch.setattr(products, "fault", lambda dtype: pytest.fail(dtype))
    assert call(f"tf_impl.optimize sgd {line} --out {tmp_path / 'o'}") == 2 * ("--bfloat16" in line)


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["digits-mlp", "digits-conv"])
def test_the_answer_is_what_a_training_comes_to(problem, tmp_path):
    line = f"sgd --problem {problem} --bfloat16 --steps 2 --quiet --out {tmp_path}/"
    asked = launched(["-m", "tf_impl.optimize", *f"{line}asked".split()], **OLD)
    unasked = (
        "import sys\nfrom tf_impl.problems import products\nproducts.fault = lambda dtype: ''\n"
        "from tf_impl.optimize import main\nsys.exit(main(sys.argv[1:]))"
    )
    trained = started(unasked, *f"{line}unasked".split(), **OLD)
    told, _ = asked.communicate(timeout=300)[1], trained.communicate(timeout=300)
    refused = asked.returncode == 2 and "--bfloat16: expected a processor" in told
    assert refused == (trained.returncode != 0) and refused == (not (tmp_path / "asked").exists())
    assert refused or asked.returncode == 0


@pytest.mark.parametrize(
    ("dtype", "code", "stderr", "told"),
    [
        ("none", 0, "AbortedError: warned of only", ""),
        (
            "one",
            -6,
            "  what():  could not create a primitive. Run",
            "ends the process by SIGABRT: could not create a primitive",
        ),
        ("two", -11, "I0000 a line of no error", "ends the process by SIGSEGV"),
        ("three", 1, "Traceback\nModuleNotFoundError: No module\n", "fails: ModuleNotFoundError: No module"),
    ],
)
def test_how_the_child_ended_is_told_in_one_line(dtype, code, stderr, told, monkeypatch):
    ended = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: ended)
    assert products.fault(dtype) == (told and f"a training step with products in {dtype} {told}")
