"""One row of a table is enough: added while the program runs, it is seen by everyone who reads the table."""

import dataclasses
import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from common import gallery
from common.run.cli import parser_for
from common.tables import networks as net
from common.tables.baselines import BASELINES, Baseline, baseline_names
from common.tables.problems import PROBLEMS, Problem
from common.tables.teachers import TEACHERS, TeacherRow
from interchange.emit import TARGETS, Target, c_operators
from interchange.evaluation.config import EvaluateConfig
from interchange.language.operators import OPERATORS, Operator
from interchange.meta.config import TrainConfig
from interchange.rule.rule import Rule

BACKENDS = {"torch": "torch", "tf": "tensorflow"}


@pytest.fixture(params=BACKENDS)
def backend(request) -> SimpleNamespace:
    pytest.importorskip("torch")  # first, where both are there
    pytest.importorskip(BACKENDS[request.param])
    names = ("networks.operators", "optimizers.baselines", "networks.rule", "tensors")
    modules = {n.rpartition(".")[2]: importlib.import_module(f"{request.param}_impl.{n}") for n in names}
    package = importlib.import_module(f"{request.param}_impl")
    return SimpleNamespace(name=request.param, train=package.train, evaluate=package.evaluate, **modules)


def add(monkeypatch, table, name: str, row) -> None:
    """A row more, as if it stood in the table's file."""
    monkeypatch.setitem(table._rows, name, row)


def choices(config: type, field: str) -> set[str]:
    parser = parser_for(config, prog="test", description="")
    assert f"--{field}" in parser.format_help()
    return set(next(f for f in dataclasses.fields(config) if f.name == field).metadata["choices"]())


def test_a_problem_and_a_teacher_are_rows(backend, monkeypatch, tmp_path):
    add(monkeypatch, PROBLEMS, "tiny", Problem("tiny", "classifier", "digits", net.mlp(3), note="a note"))
    row = TeacherRow(name="small", inputs=("g_tilde",), lstm=(4,), output="tanh", source="nobody")
    add(monkeypatch, TEACHERS, "small", row)
    assert "tiny" in choices(TrainConfig, "problem") and "small" in choices(TrainConfig, "teacher")
    assert "`tiny`" in gallery.page() and "a note" in gallery.page() and "`small`" in gallery.page()
    run = backend.train(
        TrainConfig(
            problem="tiny", teacher="small", epochs=1, epoch_length=4, unroll=2, validation_tasks=1,
            out=str(tmp_path / "run"), quiet=True,
        )
    )  # fmt: skip
    assert run.teacher == row and np.isfinite(run.history[0]["loss"])


def test_a_baseline_is_a_row_and_a_maker(backend, monkeypatch, tmp_path):
    add(monkeypatch, BASELINES, "half-sgd", Baseline("half-sgd", 0.1, {"momentum": 0.5}, "nobody"))
    monkeypatch.setitem(backend.baselines.MAKERS, "half-sgd", backend.baselines.MAKERS["sgd"])
    assert "half-sgd" in baseline_names(backend.name) and "`half-sgd`" in gallery.page()
    (row,) = backend.evaluate(
        EvaluateConfig(
            problem="quadratic", optimizers=("half-sgd:lr=0.01",), steps=(20,), seeds=1, trials=0,
            out=str(tmp_path / "out"), report=False, quiet=True,
        )
    )  # fmt: skip
    assert row.optimizer == "half-sgd:lr=0.01" and row.losses[-1] < row.losses[0]


def test_an_operator_is_a_row_here_and_one_in_each_backend(backend, monkeypatch):
    """The parser, the oracle, printing, compiled code and both frameworks take it from there."""
    fourth = Operator("fourth", 1, lambda a: a**4, lambda a, out: (4.0 * a**3,), symbol="fourth")
    add(monkeypatch, OPERATORS, "fourth", fourth)
    monkeypatch.setitem(c_operators.ROWS, "fourth", "{a} * {a} * {a} * {a}")
    monkeypatch.setitem(c_operators.DERIVATIVES, "fourth", ("(real)4 * {a} * {a} * {a}",))
    monkeypatch.setitem(backend.operators.OPERATORS, "fourth", lambda a: a * a * a * a)
    rule = Rule.from_text("-fourth(g)")
    assert rule.evaluate({"g": np.array([[2.0]])}).item() == -16.0
    assert "fourth" in rule.latex() and "* " in TARGETS["c"].emit(rule)
    for kernels in ("1", "0"):
        monkeypatch.setenv("L2O_KERNELS", kernels)
        network = backend.rule.RuleNetwork(rule)
        g = backend.tensors.to_tensor(np.array([2.0, -1.0]), backend.tensors.DTYPES["float64"])
        x, state = network.inputs(g, network.initial_state(g))
        out, _ = network.roll(x, state.network, state.t)
        assert np.asarray(out).tolist() == [-16.0, -1.0]


def test_a_target_is_a_row(monkeypatch, tmp_path):
    from interchange.export import main

    add(monkeypatch, TARGETS, "again", Target(".again", "targets.to_latex", "LaTeX once more"))
    assert main(["adam", "--to", "again", "-o", str(tmp_path / "adam.again")]) == 0
    text = (tmp_path / "adam.again").read_text("utf-8")
    assert text == TARGETS["latex"].emit(Rule.named("adam"))
