"""The PySR engine. Julia runs in the last test alone; what stands for PySR elsewhere proves our side only."""

import ast
import importlib.machinery
import importlib.util
import math
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from common.errors import L2OError
from common.extras import install
from common.rng import rng
from interchange.language import expression as ex
from interchange.language.execute import compile_program, evaluate
from interchange.language.operators import OPERATORS
from interchange.language.parse import parse
from interchange.search import Task, julia, pysr
from interchange.search.child import run_engine
from interchange.search.standard import standardised

GOLDEN = Path(__file__).parents[2] / "golden"
COLUMNS = ("g", "ema(g, 0.9)")
REASON = pysr.missing()
SPEC = importlib.util.find_spec("pysr")
INSTALLED = Path(SPEC.origin) if SPEC else None
needs_pysr = pytest.mark.skipif(SPEC is None, reason=REASON)


def make_task(**changes) -> Task:
    x = rng(0, "pysr").normal(size=(200, 2))
    y = 1e-3 * np.tanh(2.0 * x[:, 0]) + 5e-4 * x[:, 1]
    settings = {"time": 60.0, "max_size": 20, "seed": 3, "threads": 2, "memory": 2 << 30}
    settings |= {"columns": COLUMNS, "rows": x, "y": y, "weights": np.linspace(0.5, 1.5, 200)}
    return Task(**({"names": ("g",), "features": {}, "target": np.zeros((0, 0))} | settings | changes))


def keywords(**changes) -> dict:
    task = make_task(**changes)
    return pysr.keywords(task, standardised(task))


def search(report=lambda texts: None, **changes) -> list[str]:
    return pysr.search(make_task(**changes), report)


class FakePySR:
    """Stands for pysr: takes what it is given, writes a golden file, fails if told to."""

    def __init__(self, write=True, error="", golden="pysr_hall_of_fame.csv"):
        self.write, self.error, self.golden, self.made, self.fitted = write, error, golden, {}, {}

    def module(self) -> types.ModuleType:
        module = types.ModuleType("pysr")
        module.__spec__ = importlib.machinery.ModuleSpec("pysr", None)
        module.PySRRegressor = lambda **keywords: self.made.update(keywords) or self
        return module

    def fit(self, X, y, **keywords):
        self.fitted = keywords | {"X": X, "y": y}
        self.folder = Path(self.made["tempdir"])
        if self.write:
            folder = self.folder / "tmp" / self.made["run_id"]
            folder.mkdir(parents=True)
            (folder / "hall_of_fame.csv.bak").write_text((GOLDEN / self.golden).read_text())
            (folder / "hall_of_fame.csv").write_text('Complexity,Loss,Equation\n1,0.5,"x0')  # half written
        if self.error:
            raise Exception(self.error)  # what pysr and juliacall raise


@pytest.fixture
def fake(monkeypatch):
    def put(**behaviour) -> FakePySR:
        stand_in = FakePySR(**behaviour)
        monkeypatch.setitem(sys.modules, "pysr", stand_in.module())
        monkeypatch.setattr(pysr, "missing", lambda: "")
        return stand_in

    for name in ("PYTHON_JULIAPKG_OFFLINE", "PYTHON_JULIACALL_THREADS", "PYTHON_JULIACALL_HEAP_SIZE_HINT"):
        monkeypatch.setenv(name, "")  # so that what search sets is undone
        monkeypatch.delenv(name)
    return put


def parameters(function: str) -> set[str]:
    """Parameters of a method of the installed ``PySRRegressor``, read without importing it."""
    source = INSTALLED.with_name("sr.py").read_text(encoding="utf-8")
    (cls,) = (n for n in ast.parse(source).body if getattr(n, "name", "") == "PySRRegressor")
    (method,) = (n for n in cls.body if getattr(n, "name", "") == function)
    return {argument.arg for argument in [*method.args.args, *method.args.kwonlyargs]}


MODES = {
    "threads": {},
    "evaluations": {"evaluations": 5000, "guesses": ("tanh(g)",)},
    "cluster": {"options": {"cluster_manager": "slurm", "worker_timeout": 60.0}},
    "numbers": {"options": dict.fromkeys(pysr.NUMBERS, 1)},
}


@needs_pysr
@pytest.mark.parametrize("mode", MODES)
def test_every_keyword_passed_exists_in_the_installed_pysr(mode, fake):
    stand_in = fake()
    search(**MODES[mode])
    assert set(stand_in.made) - parameters("__init__") == set()
    assert set(stand_in.fitted) - parameters("fit") == set()


@needs_pysr
def test_asking_whether_pysr_runs_imports_neither_pysr_nor_julia(tmp_path):
    code = (
        "import sys; from interchange.search.pysr import missing; print(repr(missing()))\n"
        "assert not {'pysr', 'juliacall'} & set(sys.modules), sorted(sys.modules)"
    )
    julia_program = tmp_path / "julia"
    julia_program.write_text("#!/bin/sh\necho julia version 1.10.9\n")
    julia_program.chmod(0o755)
    home = {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    nowhere, here = (
        subprocess.check_output([sys.executable, "-c", code], env=home | {"PATH": path}, text=True)
        for path in ("/nowhere", str(tmp_path))
    )
    assert "needs Julia: could not find Julia" in nowhere and nowhere.count("\n") == 1
    assert here.strip() == "''"  # a Julia that only says its version


def test_without_pysr_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert pysr.missing() == f"needs pysr, which is not installed: {install('pysr')}"


@pytest.mark.skipif(not REASON, reason="Julia is here: nothing is missing")
def test_the_engine_says_in_one_line_what_is_missing():
    with pytest.raises(L2OError) as caught:
        run_engine("pysr", make_task())
    assert "\n" not in str(caught.value) and "engine 'pysr'" in str(caught.value)
    assert REASON.partition("needs ")[2].partition(":")[0] in str(caught.value)  # pysr or Julia


def test_a_search_hands_over_the_rows_and_returns_the_front(fake, caplog):
    stand_in, task, reported = fake(), make_task(), []
    found = pysr.search(task, reported.append)
    assert reported[-1] == found and found and not caplog.records
    assert stand_in.fitted["variable_names"] == ["x0", "x1"]
    assert stand_in.fitted["complexity_of_variables"] == [1, 3]
    assert stand_in.fitted["weights"] is task.weights
    sizes = np.sqrt(np.square(task.rows).mean(axis=0))
    np.testing.assert_allclose(stand_in.fitted["X"] * sizes, task.rows, rtol=1e-12)
    np.testing.assert_allclose(stand_in.fitted["y"] * task.y.std(), task.y, rtol=1e-12)
    smallest = parse(found[0])  # of the two lines that are a multiple of x1, the better one
    assert smallest.args[1] == parse("ema(g, 0.9)")
    factor = 0.8466517432110211 * task.y.std() / sizes[1]
    assert smallest.args[0].value == pytest.approx(factor, rel=1e-12)
    assert not stand_in.folder.exists()
    assert os.environ["PYTHON_JULIAPKG_OFFLINE"] == "yes"
    assert os.environ["PYTHON_JULIACALL_THREADS"] == "2"
    assert os.environ["PYTHON_JULIACALL_HEAP_SIZE_HINT"] == "2048M"
    assert set(julia.DEFINED) <= set(stand_in.made["extra_sympy_mappings"])


def test_what_was_found_before_a_failure_is_kept(fake, caplog):
    fake(error="JuliaError: out of luck\nstack")
    assert search()
    assert "until then are kept: JuliaError: out of luck" in caplog.text and "stack" not in caplog.text
    fake(error="could not find Julia 1.10.3 - 1.11\nx", write=False)
    with pytest.raises(L2OError, match=r"PySR failed: could not find Julia .*import pysr"):
        search()


def test_a_front_is_reported_while_the_search_runs(fake, monkeypatch):
    stand_in, reported = fake(), []
    write = stand_in.fit

    def slow(*args, **keywords):
        write(*args, **keywords)
        ends = time.monotonic() + 10.0
        while not reported and time.monotonic() < ends:
            time.sleep(0.05)
        stand_in.live = list(reported)

    monkeypatch.setattr(stand_in, "fit", slow)
    found = search(reported.append)
    assert stand_in.live == [found] and found


def test_a_limit_of_evaluations_makes_the_search_reproducible(fake):
    settings = keywords(evaluations=5000)
    expected = {"parallelism": "serial", "deterministic": True, "random_state": 3, "max_evals": 5000}
    assert {key: settings[key] for key in expected} == expected
    settings = keywords(max_size=3)
    assert settings["parallelism"] == "multithreading" and settings["maxsize"] == 7
    assert not {"random_state", "deterministic"} & set(settings)
    stand_in = fake()
    search(options={"cluster_manager": "slurm", "procs": 8})
    assert (stand_in.made["parallelism"], stand_in.made["procs"]) == ("multiprocessing", 8)
    assert stand_in.made["cluster_manager"] == "slurm"
    assert stand_in.made["heap_size_hint_in_bytes"] == 2 << 30
    assert 0.0 < stand_in.made["timeout_in_seconds"] <= 60.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"operators": ["add", "gamma"]}}, "operator 'gamma': PySR has no such operator here"),
        ({"options": {"operators": ["lag"]}}, "operator 'lag'"),
        ({"options": {"elementwise_loss": "run(`ls`)"}}, "option 'elementwise_loss'.*has no such option"),
        ({"options": {"populations": "31"}}, "'populations': expected a number, got '31'"),
        ({"options": {"cluster_manager": "slurm; f()"}}, "'cluster_manager': expected one of slurm, pbs"),
        ({"options": {"parallelism": "threads"}}, "'parallelism': expected one of serial"),
        ({"options": {"parallelism": "serial", "cluster_manager": "pbs"}}, "expected parallelism multiproc"),
        ({"options": {"parallelism": "multithreading"}, "evaluations": 9}, "expected a serial search"),
    ],
)
def test_options_that_pysr_is_not_given(changes, message, fake):
    stand_in = fake()
    with pytest.raises(L2OError, match=message):
        search(**changes)
    assert not stand_in.made


def test_guesses_are_written_over_the_standardised_columns():
    assert julia.to_julia(parse("x0 + x1 + -2.0 * -x0")) == "((x0 + x1) + (-2.0 * (-1.0 * x0)))"
    assert julia.to_guess(parse("-x0"), ("add",)) == "" and julia.to_guess(parse("-x0"), ("mul",))
    guesses = ("tanh(ema(g, 0.9)) - -g / 2.0", "g + ema(g, 0.9) + -0.5 * sqrt(g)", "exp(g)", "lag(g, 1)")
    task = make_task(guesses=guesses)
    data, texts = standardised(task), keywords(guesses=guesses)["guesses"]
    assert len(texts) == 2 and "sqrt_abs(" in texts[1] and "(-1.0 *" not in texts[1]
    g, average = task.rows.T
    wanted = [np.tanh(average) + g / 2.0, g + average - 0.5 * np.sqrt(np.abs(g))]
    columns = dict(zip(("x0", "x1"), data.rows.T[:, None], strict=True))
    for text, values in zip(texts, wanted, strict=True):
        nodes = julia.read_front(f'Complexity,Loss,Equation\n1,1,"{text}"\n', 2)
        (value,) = evaluate(compile_program(nodes), columns)
        np.testing.assert_allclose(np.asarray(value)[0] * data.spread, values, rtol=1e-12)


def test_single_precision_literals_are_read_and_equations_without_a_meaning_dropped(caplog):
    text = (GOLDEN / "pysr_hall_of_fame_float32.csv").read_text()
    found = julia.read_front(text, 1)
    assert list(map(ex.to_text, found)) == ["-1.5e-05", "x0 * 2.25", "cos(x0 + 0.5) / 400000000.0"]
    (record,) = caplog.records
    assert "an equation of PySR is dropped" in record.message and "NaN" in record.message
    assert julia.read_front(text[:-1], 1) == julia.read_front(text[: text.index("2.25")], 1) == []


def test_golden_halls_of_fame_are_read_to_the_last_digit(caplog):
    x = rng(2, "pysr").normal(size=(2, 50))
    a, b = x
    nodes = julia.read_front((GOLDEN / "pysr_hall_of_fame.csv").read_text(), 2)
    expected = [
        b,
        b * 0.8466517432110211,
        np.tanh(b * -1.25e-5),
        a / np.sqrt(np.abs(b)) + 0.5,  # the plain square root would be nan below 0
        a / math.sqrt(1.0 + 2.5**2) + np.sign(b) * np.abs(b) ** 1e-3,
        np.log(np.abs(a) + 1e-8) * (b > a - 3.5),
        np.maximum(-a, b**2) + np.abs(a) ** 0.5,
    ]
    values = evaluate(compile_program(nodes), dict(zip(("x0", "x1"), x[:, None], strict=True)))
    assert len(nodes) == len(expected) and not caplog.records
    for value, wanted in zip(values, expected, strict=True):
        np.testing.assert_allclose(np.asarray(value)[0], wanted, rtol=1e-13)


@pytest.mark.parametrize("op", [op for op in julia.JULIA if op != "neg"])  # which is written as a product
def test_an_operator_comes_back_as_its_row(op):
    node = ex.call(op, *(ex.name(f"x{k}") for k in range(OPERATORS[op].arity)))
    assert parse(julia.to_julia(node), ("x0", "x1"), julia.DIALECT) == node


# What of Julia our definitions use beside + * / ^ and signs.
JULIA = {name: getattr(np, name) for name in ("sqrt", "abs", "log", "exp", "sign")}
JULIA |= {"one": np.ones_like, "oftype": lambda like, value: np.asarray(value, like.dtype)}


@pytest.mark.parametrize("op", julia.DEFINED.values())
def test_a_definition_in_julia_means_the_row(op):
    head, body = julia.JULIA[op].split(" = ")
    names = head.partition("(")[2].rstrip(")").split(", ")
    assert len(names) == OPERATORS[op].arity
    edge = np.array([0.0, -0.0, 1e-300, -1e8, 700.0, -700.0])
    values = [np.concatenate([rng(k, "pysr").normal(size=100), np.roll(edge, k)]) for k in range(len(names))]
    with np.errstate(all="ignore"):
        wanted = OPERATORS[op].numpy(*values)
        got = eval(body.replace("^", "**"), JULIA, dict(zip(names, values, strict=True)))
        np.testing.assert_allclose(got, wanted, rtol=1e-14)


@pytest.mark.slow
@pytest.mark.skipif(bool(REASON), reason=REASON or "Julia is here")
def test_pysr_itself_finds_a_rule():
    x = rng(5, "pysr").normal(size=(500, 2))
    y = 1e-3 * np.sqrt(np.abs(x[:, 0])) - 2e-3 * x[:, 1]
    settings = {"weights": np.ones(500), "columns": ("a", "b"), "names": ("a", "b"), "time": 120.0}
    nodes = run_engine("pysr", make_task(rows=x, y=y, **settings))
    features = dict(zip("ab", x.T[:, None], strict=True))
    errors = [np.abs(value - y).max() for value in evaluate(compile_program(nodes), features)]
    assert min(errors) < 1e-6
