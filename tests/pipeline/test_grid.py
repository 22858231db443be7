"""Evaluations over many problems: resumed after a kill, in parallel, with failures, and what they report."""

import csv
import dataclasses
import importlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.data import datasets
from common.errors import L2OError
from common.reference import quadratic
from common.rng import derived_seed
from common.run.cli import Progress
from common.tables.baselines import falling, parse_spec
from common.tables.problems import PROBLEMS, Instance
from common.tables.suites import SUITES, Entry
from interchange.backend import Rollout
from interchange.evaluation import grid
from interchange.evaluation.cells import Cell, Store, code_of
from interchange.evaluation.config import EvaluateConfig
from interchange.files.results import load_evaluation
from interchange.rule.rule import Rule

pytest.importorskip("torch")

from torch_impl import backend
from torch_impl.evaluate import evaluate, main
from torch_impl.sources import load

ROOT = Path(__file__).parents[2]
TINY = {"steps": (6, 12), "seeds": 2, "validation_seeds": 1, "trials": 3, "dtype": "float64"}
TINY |= {"optimizers": ("sgd:lr=0.1", "adam"), "quiet": True, "report": False}
TWO = "quadratic,lasso"


@pytest.fixture(autouse=True)
def restored_logging():
    """The command hands warnings to logging for the rest of its process, which here is the tests'."""
    yield
    logging.captureWarnings(False)


@pytest.fixture
def counted(monkeypatch) -> list[tuple]:
    """The rollouts that are run, as (problem, optimizer, lr, stream, number, steps)."""
    seen = []
    run = backend.rollout_job

    def spy(config, source, lr, stream, number, steps):
        seen.append((config.problem, source.spec.text, lr, stream, number, steps))
        return run(config, source, lr, stream, number, steps)

    monkeypatch.setattr(backend, "rollout_job", spy)
    return seen


def config_of(out: Path, **settings) -> EvaluateConfig:
    return EvaluateConfig(**TINY | {"problem": TWO, "out": str(out)} | settings)


def losses(rows) -> dict:
    return {(r.problem, r.optimizer, r.horizon, r.seed): r.losses.tolist() for r in rows}


def test_every_problem_is_tuned_by_itself_and_as_alone(tmp_path):
    rows = evaluate(config_of(tmp_path / "both"))
    assert len(rows) == 2 * 2 * 2 * 2 and len({r.trials for r in rows if r.optimizer == "adam"}) <= 2
    for problem in TWO.split(","):
        alone = evaluate(config_of(tmp_path / problem, problem=problem))
        own = [row for row in rows if row.problem == problem]
        assert losses(own) == losses(alone)
        assert [r.settings for r in own] == [r.settings for r in alone]
    with (tmp_path / "both" / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {(row["problem"], row["horizon"]) for row in table} == {
        (problem, steps) for problem in TWO.split(",") for steps in ("6", "12")
    }
    kept = load_evaluation(tmp_path / "both" / "evaluation.h5").rows
    assert [(r.seconds, r.trained_on) for r in kept] == [(r.seconds, False) for r in rows]
    assert all(r.seconds > 0.0 for r in rows)


KILLED = """
import os, signal, sys, time
from torch_impl import backend
run, left = backend.rollout_job, [int(sys.argv[1])]
def job(*arguments):
    if left[0] == 0:
        print("waiting", flush=True)
        time.sleep(600)
    left[0] -= 1
    return run(*arguments)
backend.rollout_job = job
from torch_impl.evaluate import main
main(sys.argv[2:])
"""


def test_a_killed_evaluation_goes_on_without_the_cells_that_were_finished(tmp_path, counted, capsys):
    config = config_of(tmp_path / "out", quiet=False)
    words = [
        "--problem",
        TWO,
        "--steps",
        "6",
        "12",
        "--seeds",
        "2",
        "--validation-seeds",
        "1",
        "--trials",
        "3",
    ]
    words += ["--dtype", "float64", "--optimizers", *config.optimizers, "--out", config.out, "--no-report"]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, "9", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "waiting\n"
        os.kill(process.pid, signal.SIGKILL)
    cells = list(Path(config.out, "cells").rglob("*.json"))
    assert len(cells) == 9 and not Path(config.out, "evaluation.h5").exists()
    rows = evaluate(config)
    total = len(list(Path(config.out, "cells").rglob("*.json")))
    assert len(counted) == len(set(counted)) == total - 9
    assert f"9 of {total} cells were there" in capsys.readouterr().err
    whole = evaluate(config_of(tmp_path / "whole"))
    assert losses(rows) == losses(whole)
    counted.clear()
    assert losses(evaluate(config)) == losses(whole) and not counted


def test_a_torn_or_changed_cell_is_run_again(tmp_path, counted):
    config = config_of(tmp_path)
    before = losses(evaluate(config))
    cells = sorted(Path(config.out, "cells").rglob("*.json"))
    cells[0].write_bytes(cells[0].read_bytes()[:-30])
    cells[1].write_text(cells[1].read_text().replace('"losses":[', '"losses":[7.5,'))
    cells[2].write_text("[]")
    cells[3].write_bytes(cells[4].read_bytes())  # whole, but of another cell
    counted.clear()
    assert losses(evaluate(config)) == before and len(counted) == 4


def test_an_optimizer_and_a_seed_are_added_to_a_finished_evaluation(tmp_path, counted):
    config = config_of(tmp_path, problem="quadratic", trials=0)
    before = losses(evaluate(config))
    counted.clear()
    more = dataclasses.replace(config, optimizers=(*config.optimizers, "lion"), seeds=3)
    rows = evaluate(more)
    assert len(counted) == 2 * (2 + 3)  # two horizons: a third seed for two optimizers, three for the new one
    assert before.items() <= losses(rows).items()
    fewer = ({"optimizers": config.optimizers}, {"seeds": 2})
    for change in (*fewer, {"steps": (6,)}, {"seed": 1}, {"trials": 1}):
        less = dataclasses.replace(more, **change)
        with pytest.raises(L2OError, match=r"only more optimizers or seeds may be added.*--overwrite"):
            evaluate(less)
    counted.clear()
    evaluate(dataclasses.replace(config, overwrite=True))
    assert len(counted) == 8


OTHER = {
    "seed": {"seed": 1},
    "arithmetic": {"dtype": "float32"},
    "batch size": {"batch_size": 7},
    "start": {"start_scale": 0.5},
    "part of the data": {"split": "meta_train"},
}


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_cells_of_another_configuration_are_not_reused(change, tmp_path, counted):
    config = config_of(tmp_path, problem="quadratic", trials=0)
    evaluate(config)
    Path(config.out, "evaluation.h5").unlink()
    counted.clear()
    rows = evaluate(dataclasses.replace(config, **change))
    assert len(counted) == 8
    assert {row.split for row in rows} == {change.get("split", "evaluation")}


def test_cells_belong_to_a_rules_content_not_its_place(tmp_path, counted):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    for path in (first, second):
        Rule.from_text("c0 * g", {"c0": -0.1}).save(path)
    settings = {"problem": "quadratic", "trials": 0}
    evaluate(config_of(tmp_path / "out", optimizers=(f"rule:{first}",), **settings))
    Path(tmp_path, "out", "evaluation.h5").unlink()
    counted.clear()
    evaluate(config_of(tmp_path / "out", optimizers=(f"rule:{second}",), **settings))
    assert not counted
    Path(tmp_path, "out", "evaluation.h5").unlink()
    Rule.from_text("c0 * g", {"c0": -0.2}).save(second)
    evaluate(config_of(tmp_path / "out", optimizers=(f"rule:{second}",), **settings))
    assert len(counted) == 4


def test_own_data_of_another_content_are_other_cells(tmp_path):
    config = config_of(tmp_path, problem="mnist-mlp", dataset=str(tmp_path / "mine.npz"))
    cell, keys = Cell("sgd", "mnist-mlp", 0.1, "test", 0, 5), []
    for value in (0, 1):
        generator = np.random.default_rng(value)
        x, y = generator.integers(0, 255, (60, 4, 4), dtype=np.uint8), np.arange(60) % 3
        np.savez(tmp_path / "mine.npz", x=x, y=y)
        keys.append(Store(tmp_path, config, {"sgd": load(parse_spec("sgd"))}, "1").path(cell))
    assert keys[0] != keys[1]


def test_a_failure_is_an_outcome_is_told_and_is_tried_again(tmp_path, monkeypatch, caplog):
    config, run = config_of(tmp_path, problem="quadratic"), backend.rollout_job

    def job(config, source, lr, stream, number, steps):
        if source.spec.text == "adam" and stream == "test" and number == 1:
            raise MemoryError("no\nmemory")
        return run(config, source, lr, stream, number, steps)

    monkeypatch.setattr(backend, "rollout_job", job)
    rows = evaluate(config)
    failed = [row for row in rows if row.outcome != "ok"]
    assert [(r.optimizer, r.seed, r.outcome) for r in failed] == [
        ("adam", 1, "failed: MemoryError: no memory")
    ] * 2
    assert [record.getMessage() for record in caplog.records if "MemoryError" in record.getMessage()] != []
    with (tmp_path / "summary.csv").open(newline="") as file:
        table = {(row["optimizer"], row["horizon"]): row for row in csv.DictReader(file)}
    assert (table["adam", "6"]["diverged"], table["adam", "6"]["loss_mean"]) == ("1", "inf")
    assert table["sgd:lr=0.1", "6"]["diverged"] == "0"
    monkeypatch.setattr(backend, "rollout_job", run)
    assert {row.outcome for row in evaluate(config)} == {"ok"}


def test_a_diverging_optimizer_is_reported_not_lost(tmp_path):
    rows = evaluate(config_of(tmp_path, optimizers=("sgd:lr=1e9", "adam"), steps=(60,)))
    lost = [row for row in rows if row.outcome == "diverged"]
    assert {(r.optimizer, r.problem) for r in lost} == {("sgd:lr=1e9", p) for p in TWO.split(",")}
    assert len(lost) == 4 and all(len(row.losses) < 60 for row in lost)


def test_the_suite_runs_at_its_own_horizons_and_says_what_was_trained_on(tmp_path, monkeypatch):
    entries = (Entry("quadratic", 5, trained_on=True), Entry("lasso", 4), Entry("lasso", 8))
    monkeypatch.setitem(SUITES._rows, "core", entries)
    Rule.from_text("c0 * g", {"c0": -0.1}).save(tmp_path / "r.json")
    spec = f"rule:{tmp_path / 'r.json'}"
    settings = {"problem": "suite:core", "steps": (), "optimizers": (spec, "sgd"), "seeds": 2}
    rows = evaluate(config_of(tmp_path / "out", **settings))
    assert {(r.problem, r.horizon, r.trained_on) for r in rows} == {
        (e.problem, e.steps, e.trained_on) for e in entries
    }
    with (tmp_path / "out" / "standings.csv").open(newline="") as file:
        table = {row["group"]: row["problems"] for row in csv.DictReader(file)}
    assert table == {"all": "3", "unseen": "2", "trained on": "1"}
    with pytest.raises(L2OError, match="a suite has its own horizons; leave --steps out"):
        evaluate(config_of(tmp_path / "other", problem="suite:core", steps=(5,)))


@pytest.mark.parametrize("package", ["torch_impl", pytest.param("tf_impl", marks=pytest.mark.slow)])
def test_cosine_lets_the_learning_rate_fall_to_nothing_over_each_horizon(package, tmp_path):
    pytest.importorskip("torch" if package == "torch_impl" else "tensorflow")
    run = importlib.import_module(f"{package}.evaluate").evaluate
    spec = "sgd:lr=0.3,cosine=1"
    for row in run(config_of(tmp_path, problem="quadratic", optimizers=(spec,), seeds=1)):
        instance = Instance(PROBLEMS["quadratic"], derived_seed(0, "evaluate_test", 0), "evaluation")
        loss_and_grad = quadratic(*instance.constants()[:2])
        theta = instance.initial_parameters()["x"].ravel()
        for step, got in enumerate(row.losses):
            loss, g = loss_and_grad(theta, step)
            assert got == pytest.approx(loss, rel=1e-9)
            theta = theta - 0.3 * 0.5 * (1.0 + math.cos(math.pi * step / row.horizon)) * g
    assert falling(0, 6) == 1.0 and falling(3, 6) == pytest.approx(0.5)


@pytest.mark.parametrize("package", ["torch_impl", "tf_impl"])
def test_a_rule_with_cosine_and_the_test_loss(package, tmp_path):
    """Both backends: same losses to the last test image, validation runs have no score."""
    pytest.importorskip("torch" if package == "torch_impl" else "tensorflow")
    run = importlib.import_module(f"{package}.evaluate").evaluate
    Rule.from_text("c0 * ema(g, 0.9)", {"c0": -0.5}).save(tmp_path / "r.json")
    spec = f"rule:{tmp_path / 'r.json'},cosine=1"
    settings = {"problem": "digits-mlp", "optimizers": (spec,), "seeds": 1, "steps": (8,), "trials": 1}
    (row,) = run(config_of(tmp_path / package, **settings))
    again = evaluate(config_of(tmp_path / "other", **settings))[0]
    np.testing.assert_allclose(row.losses, again.losses, rtol=1e-8)
    assert row.test_loss == pytest.approx(again.test_loss, rel=1e-7) and row.accuracy == again.accuracy
    assert 0.5 < row.test_loss < 3.0 and 0.0 < row.accuracy <= 1.0
    for path in Path(tmp_path, package, "cells").rglob("*.json"):
        kept = json.loads(path.read_text())
        assert (kept["accuracy"] is None) == (kept["key"]["stream"] == "validation")


def test_a_schedule_is_tuned_for_each_horizon_in_runs_of_its_own(counted, tmp_path):
    evaluate(config_of(tmp_path, problem="quadratic", optimizers=("sgd", "adam:cosine=1")))
    tried = {(text, steps) for _, text, _, stream, _, steps in counted if stream == "validation"}
    assert tried == {("sgd", 12), ("adam:cosine=1", 6), ("adam:cosine=1", 12)}


def test_cosine_is_refused_where_it_makes_no_sense():
    with pytest.raises(L2OError, match="expected cosine=1"):
        parse_spec("adam:cosine=0.5")
    assert parse_spec("adam:cosine=1,beta1=0.8").options.keys() == parse_spec("adam").options.keys()
    assert parse_spec("rule:r.json,cosine=1").cosine and not parse_spec("adam:cosine=0").cosine


def fake_pool(tmp_path: Path, seconds: dict[str, int]) -> list[Cell]:
    """The order in which two problems' cells are run, with stand-ins for rollouts."""
    config = config_of(tmp_path, trials=1)
    order: list[Cell] = []

    def run(function, arguments):
        for _, _, _, cell in arguments:
            order.append(cell)
            yield cell, Rollout(np.ones(cell.steps), "ok", math.nan)

    specs = {"sgd": parse_spec("sgd")}
    store = Store(tmp_path / "cells", config, {"sgd": load(specs["sgd"])}, "1")
    courses = {p: grid.course(specs, p, (6,), config) for p in seconds}
    with Progress("evaluate", 0, quiet=True) as progress:
        pool = grid.Pool(store, lambda cell: seconds[cell.problem] * cell.steps, progress)
        tested = pool.run(courses, run, lambda cell: (None, None, None, cell))
    assert set(tested) == set(seconds) and pool.total == len(order) == len(set(order))
    return order


def test_the_most_expensive_cells_come_first_and_no_problem_waits_for_another(tmp_path):
    order = fake_pool(tmp_path, {"quadratic": 1, "lasso": 9})
    assert [cell.problem for cell in order] == ["lasso"] * (len(order) // 2) + ["quadratic"] * (
        len(order) // 2
    )
    streams = [(cell.problem, cell.stream) for cell in order]
    assert streams.index(("lasso", "test")) < streams.index(("quadratic", "validation"))


BAD = {
    "unknown problem": (["--problem", "quadratic,digits"], "unknown problem 'digits'"),
    "unknown suite": (["--problem", "suite:cor"], "unknown suite 'cor'"),
    "steps of a suite": (["--problem", "suite:core", "--steps", "5"], "leave --steps out"),
    "cluster": (["--cluster", "slurm"], "expected a cluster of the form"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--optimizers", "sgd", "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""
    assert not list(tmp_path.iterdir())


def test_the_command_prints_a_table_per_problem_and_where_each_rule_stands(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    Rule.from_text("c0 * g", {"c0": -0.1}).save(tmp_path / "r.json")
    words = ["--problem", TWO, "--steps", "25", "--seeds", "2", "--trials", "0", "--out", str(tmp_path / "e")]
    assert main([*words, "--optimizers", "sgd", "adam", f"rule:{tmp_path / 'r.json'}"]) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks[:2]] == ["lasso", "quadratic"]
    assert blocks[2].startswith(f"rule:{tmp_path / 'r.json'}: of 2 problems, at least as good as the best")
    assert blocks[3] == f"evaluation: {tmp_path / 'e' / 'evaluation.h5'}"
    page = (tmp_path / "e" / "report.html").read_text()
    assert "rule r is at least as good as" in page and page.count("<svg") == 2
    (tmp_path / "e" / "report.html").unlink()
    assert main([*words, "--optimizers", "sgd", "adam", f"rule:{tmp_path / 'r.json'}", "--no-report"]) == 0
    assert not (tmp_path / "e" / "report.html").exists()


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_in_one_line_and_its_cells_can_be_run_again(tmp_path, monkeypatch):
    config, run = config_of(tmp_path, problem="quadratic", jobs=2), backend.rollout_job
    monkeypatch.setattr(backend, "rollout_job", _killed_at_the_test)
    with pytest.raises(L2OError, match=r"a worker process ended .*on disk is kept"):
        evaluate(config)
    monkeypatch.setattr(backend, "rollout_job", run)
    kept = len(list(Path(config.out, "cells").rglob("*.json")))
    assert kept > 0 and len(evaluate(config)) == 8


def _killed_at_the_test(config, source, lr, stream, number, steps):
    from torch_impl.rollout import rollout_job

    if stream == "test":
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    return rollout_job(config, source, lr, stream, number, steps)


def test_cells_of_other_data_or_other_code_are_not_reused(tmp_path, monkeypatch):
    def path(created_by: str = "x") -> Path:
        config = EvaluateConfig(problem="digits-mlp")
        sources = {"sgd": load(parse_spec("sgd"))}
        store = Store(tmp_path, config, sources, created_by)
        return store.path(Cell("sgd", "digits-mlp", 0.1, "test", 0, 5))

    before = path()
    assert path() == before and path("y") != before
    whole = datasets.load("digits")
    other = dataclasses.replace(whole, y_test=whole.y_test[::-1].copy())
    monkeypatch.setattr(datasets, "load", lambda *_: other)
    assert path() != before


@pytest.mark.parametrize("name", ["some.py", "folder/inside/some.py", "kernels/some.c", "kernels/some.h"])
def test_cells_belong_to_the_source_code_wherever_it_lies(tmp_path, name):
    file = tmp_path / "common" / name
    file.parent.mkdir(parents=True)
    seen = []
    for text in ("a = 1;", "a = 2;"):
        file.write_text(text)
        seen.append(code_of(tmp_path / "common"))
    file.rename(file.with_stem("another"))
    assert len({*seen, code_of(tmp_path / "common")}) == 3


def test_a_problem_that_a_rule_was_tuned_on_counts_as_trained_on(tmp_path):
    record = {"tuned": {"problem": "lasso,digits-mlp"}}
    Rule.from_text("-c * g", {"c": 0.1}, provenance=record).save(tmp_path / "rule.json")
    optimizers = ("sgd:lr=0.1", f"rule:{tmp_path / 'rule.json'},lr=1")
    fields = TINY | {"optimizers": optimizers, "steps": (4,), "seeds": 1}
    rows = evaluate(EvaluateConfig(problem=TWO, out=str(tmp_path / "out"), **fields))
    assert {row.problem: row.trained_on for row in rows} == {"quadratic": False, "lasso": True}
