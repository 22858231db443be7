"""Evaluations over many problems: resumed after a kill, in parallel, with failures, and what they report."""

import dataclasses
import importlib
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from common.data import datasets
from common.errors import L2OError
from common.rng import derived_seed
from common.run.cli import Progress
from common.tables.baselines import BASELINES, absent, baseline_names, packaged_names, parse_spec
from common.tables.problems import PROBLEMS, Instance
from common.tables.schedules import SCHEDULES
from common.tables.suites import SUITES, Entry
from interchange.evaluation import grid
from interchange.evaluation.cells import Cell, Store, code_of
from interchange.evaluation.config import EvaluateConfig
from interchange.files.results import load_evaluation
from interchange.rollout import Rollout
from interchange.rule.rule import Rule
from interchange.rule.source import Source
from tests.helpers.commands import ROOT, call, csv_rows, descended, rule_spec

pytest.importorskip("torch")

from torch_impl import backend
from torch_impl.evaluate import evaluate
from torch_impl.sources import load

TINY = {"steps": (6, 12), "seeds": 2, "validation_seeds": 1, "trials": 3, "dtype": "float64"}
TINY |= {"optimizers": ("sgd:lr=0.1", "adam"), "quiet": True, "report": False}
TWO = "quadratic,lasso"


@pytest.fixture
def counted(monkeypatch) -> list[tuple]:
    """The rollouts that are run, as (problem, optimizer, lr, stream, number, steps)."""
    seen = []
    run = backend.rollout_job

    def spy(config, source, lr, stream, number, steps, schedule):
        seen.append((config.problem, source.spec.text, lr, stream, number, steps))
        return run(config, source, lr, stream, number, steps, schedule)

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
    found = {(row["problem"], row["horizon"]) for row in csv_rows(tmp_path / "both" / "summary.csv")}
    assert found == set(itertools.product(TWO.split(","), ("6", "12")))
    kept = load_evaluation(tmp_path / "both" / "evaluation.h5").rows
    assert [(r.seconds, r.trained_on) for r in kept] == [(r.seconds, False) for r in rows]
    assert all(r.seconds > 0.0 for r in rows)


KILLED = """
import sys, time
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


def cells_of(config: EvaluateConfig) -> list[Path]:
    return sorted(Path(config.out, "cells").rglob("*.json"))


def test_a_killed_evaluation_goes_on_without_the_cells_that_were_finished(tmp_path, counted, capsys):
    config = config_of(tmp_path / "out", quiet=False)
    words = f"9 --problem {TWO} --steps 6 12 --seeds 2 --validation-seeds 1 --trials 3 --dtype float64"
    words += f" --optimizers sgd:lr=0.1 adam --out {config.out} --no-report"
    command = [sys.executable, "-c", KILLED, *words.split()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        process.kill()
    assert len(cells_of(config)) == 9 and not Path(config.out, "evaluation.h5").exists()
    rows = evaluate(config)
    total = len(cells_of(config))
    assert len(counted) == len(set(counted)) == total - 9
    assert f"9 of {total} cells were there" in capsys.readouterr().err
    whole = evaluate(config_of(tmp_path / "whole"))
    assert losses(rows) == losses(whole)
    counted.clear()
    assert losses(evaluate(config)) == losses(whole) and not counted


def test_a_torn_or_changed_cell_is_run_again(tmp_path, counted):
    config = config_of(tmp_path)
    before = losses(evaluate(config))
    cells = cells_of(config)
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


OTHER = {"seed": 1, "dtype": "float32", "batch_size": 7, "start_scale": 0.5, "split": "meta_train"}


@pytest.mark.parametrize("change", [{name: value} for name, value in OTHER.items()], ids=OTHER)
def test_cells_of_another_configuration_are_not_reused(change, tmp_path, counted):
    config = config_of(tmp_path, problem="quadratic", trials=0)
    evaluate(config)
    Path(config.out, "evaluation.h5").unlink()
    counted.clear()
    rows = evaluate(dataclasses.replace(config, **change))
    assert len(counted) == 8
    assert {row.split for row in rows} == {change.get("split", "evaluation")}


def test_cells_belong_to_a_rules_content_not_its_place(tmp_path, counted):
    def cells_run(name: str, c0: float) -> int:
        Rule.from_text("c0 * g", {"c0": c0}).save(tmp_path / name)
        (tmp_path / "out" / "evaluation.h5").unlink(missing_ok=True)
        counted.clear()
        optimizers = (f"rule:{tmp_path / name}",)
        evaluate(config_of(tmp_path / "out", optimizers=optimizers, problem="quadratic", trials=0))
        return len(counted)

    assert [cells_run("a.json", -0.1), cells_run("b.json", -0.1), cells_run("b.json", -0.2)] == [4, 0, 4]


def key_of(config: EvaluateConfig, created_by: str = "1") -> Path:
    store = Store(Path(config.out), config, {"sgd": load(parse_spec("sgd"))}, created_by)
    return store.path(Cell("sgd", config.problem, 0.1, "test", 0, 5))


def test_own_data_of_another_content_are_other_cells(tmp_path):
    config = config_of(tmp_path, problem="mnist-mlp", dataset=str(tmp_path / "mine.npz"))
    keys = set()
    for value in (0, 1):
        x = np.random.default_rng(value).integers(0, 255, (60, 4, 4), dtype=np.uint8)
        np.savez(tmp_path / "mine.npz", x=x, y=np.arange(60) % 3)
        keys.add(key_of(config))
    assert len(keys) == 2


def test_a_failure_is_an_outcome_is_told_and_is_tried_again(tmp_path, monkeypatch, caplog):
    config, run = config_of(tmp_path, problem="quadratic"), backend.rollout_job

    def job(config, source, lr, stream, number, steps, schedule):
        if source.spec.text == "adam" and stream == "test" and number == 1:
            raise MemoryError("no\nmemory")
        return run(config, source, lr, stream, number, steps, schedule)

    monkeypatch.setattr(backend, "rollout_job", job)
    rows = evaluate(config)
    failed = [row for row in rows if row.outcome != "ok"]
    assert len(failed) == 2 and {(r.optimizer, r.seed) for r in failed} == {("adam", 1)}
    assert {r.outcome for r in failed} == {"failed: MemoryError: no memory"}
    assert "MemoryError" in caplog.text
    table = {(row["optimizer"], row["horizon"]): row for row in csv_rows(tmp_path / "summary.csv")}
    assert (table["adam", "6"]["diverged"], table["adam", "6"]["loss_mean"]) == ("1", "inf")
    assert table["sgd:lr=0.1", "6"]["diverged"] == "0"
    monkeypatch.setattr(backend, "rollout_job", run)
    assert {row.outcome for row in evaluate(config)} == {"ok"}


def test_the_suite_runs_at_its_own_horizons_and_says_what_was_trained_on(tmp_path, monkeypatch):
    entries = (Entry("quadratic", 5, trained_on=True), Entry("lasso", 4), Entry("lasso", 8))
    monkeypatch.setitem(SUITES._rows, "core", entries)
    spec = rule_spec(tmp_path, c0=-0.1)
    settings = {"problem": "suite:core", "steps": (), "optimizers": (spec, "sgd"), "seeds": 2}
    rows = evaluate(config_of(tmp_path / "out", **settings))
    found = {Entry(row.problem, row.horizon, row.trained_on) for row in rows}
    assert found == set(entries)
    table = csv_rows(tmp_path / "out" / "standings.csv")
    assert {row["group"]: row["problems"] for row in table} == {"all": "3", "unseen": "2", "trained on": "1"}
    with pytest.raises(L2OError, match="a suite has its own horizons; leave --steps out"):
        evaluate(config_of(tmp_path / "other", problem="suite:core", steps=(5,)))


def evaluate_of(backend: str) -> Callable:
    pytest.importorskip({"torch": "torch", "tf": "tensorflow"}[backend])
    return importlib.import_module(f"{backend}_impl.evaluate").evaluate


@pytest.mark.parametrize("package", ["torch", pytest.param("tf", marks=pytest.mark.slow)])
def test_cosine_lets_the_learning_rate_fall_to_nothing_over_each_horizon(package, tmp_path):
    config = config_of(tmp_path, problem="quadratic", optimizers=("sgd:lr=0.3,schedule=cosine",), seeds=1)
    for row in evaluate_of(package)(config):

        def move(theta, g, step, horizon=row.horizon):
            return theta - 0.3 * 0.5 * (1.0 + math.cos(math.pi * step / horizon)) * g

        instance = Instance(PROBLEMS["quadratic"], derived_seed(0, "evaluate_test", 0), "evaluation")
        np.testing.assert_allclose(row.losses, descended(instance, row.horizon, move)[0], rtol=1e-9)


@pytest.mark.parametrize("package", ["torch", "tf"])
def test_a_rule_with_cosine_and_the_test_loss(package, tmp_path):
    """Both backends: same losses to the last test image, validation runs have no score."""
    spec = rule_spec(tmp_path, "c0 * ema(g, 0.9)", c0=-0.5) + ",schedule=cosine"
    settings = {"problem": "digits-mlp", "optimizers": (spec,), "seeds": 1, "steps": (8,), "trials": 1}
    config = config_of(tmp_path / package, **settings)
    (row,) = evaluate_of(package)(config)
    again = evaluate(config_of(tmp_path / "other", **settings))[0]
    np.testing.assert_allclose(row.losses, again.losses, rtol=1e-8)
    assert row.test_loss == pytest.approx(again.test_loss, rel=1e-7) and row.accuracy == again.accuracy
    assert 0.5 < row.test_loss < 3.0 and 0.0 < row.accuracy <= 1.0
    for path in cells_of(config):
        kept = json.loads(path.read_text())
        assert (kept["accuracy"] is None) == (kept["key"]["stream"] == "validation")


def test_a_schedule_is_tuned_for_each_horizon_in_runs_of_its_own(counted, tmp_path):
    evaluate(config_of(tmp_path, problem="quadratic", optimizers=("sgd", "adam:schedule=cosine")))
    tried = {(text, steps) for _, text, _, stream, _, steps in counted if stream == "validation"}
    assert tried == {("sgd", 12), ("adam:schedule=cosine", 6), ("adam:schedule=cosine", 12)}


def test_a_spec_fixes_a_schedule_of_the_table_and_no_other():
    with pytest.raises(L2OError, match="unknown schedule 'wave'"):
        parse_spec("adam:schedule=wave")
    assert parse_spec("adam:schedule=cosine,beta1=0.8").options.keys() == parse_spec("adam").options.keys()
    assert parse_spec("rule:r.json,schedule=cosine").schedule == "cosine" and not parse_spec("adam").schedule


def test_every_schedule_begins_at_1_and_only_falls():
    for row in (row for row in SCHEDULES.values() if not row.extra):
        factors = [row.factor(step, 50) for step in range(51)]
        assert factors[0] == 1.0 and factors == sorted(factors, reverse=True)
        assert (abs(factors[-1]) < 1e-12) == row.ends
    warm = [SCHEDULES["warmup-cosine"].factor(step, 100) for step in range(101)]
    assert warm[:6] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0] and warm[5:] == sorted(warm[5:], reverse=True)
    assert warm[5:] == [SCHEDULES["cosine"].factor(step, 95) for step in range(96)]
    for name in ("warmup", "warmup-cosine", "warmup-linear", "step"):
        for steps in (1, 2, 19, 30):  # also where there is hardly a step to warm up in
            factors = [SCHEDULES[name].factor(step, steps) for step in range(steps)]
            assert max(factors) == 1.0 and min(factors) > 0.0


@pytest.mark.parametrize("package", ["torch", pytest.param("tf", marks=pytest.mark.slow)])
def test_rate_and_schedule_are_chosen_with_equal_trials_for_all(package, tmp_path):
    rule = rule_spec(tmp_path, "c0 * ema(g, 0.9)", c0=-0.5)
    chosen = {"problem": "quadratic", "optimizers": ("sgd", rule, "adam:schedule=linear"), "seeds": 1}
    config = config_of(tmp_path / package, **chosen, schedules=("constant", "root-0.01", "cosine"), trials=3)
    rows = {row.optimizer: row for row in evaluate_of(package)(config)}
    assert rows["adam:schedule=linear"].settings["schedule"] == "linear"
    assert rows["sgd"].trials == rows[rule].trials >= 9
    tried = {json.loads(path.read_text())["key"]["schedule"] for path in cells_of(config)}
    assert tried == {"constant", "root-0.01", "cosine", "linear"}


@pytest.mark.parametrize("package", ["torch", pytest.param("tf", marks=pytest.mark.slow)])
def test_the_knob_that_was_chosen_is_run_kept_and_shown(package, tmp_path, capsys):
    """The losses of a test cell are those of the optimizer with this knob, for a baseline and a rule."""
    rule = rule_spec(tmp_path, "c0 * ema(g, c1)", c0=-0.5, c1=0.9)
    line = f"{package}_impl.evaluate --problem quadratic --steps 12 --seeds 1 --validation-seeds 1 --trials 3"
    line += f" --knob --dtype float64 --no-report --optimizers momentum sgd {rule} --out"
    assert call(line, tmp_path / "e") == 0
    table = capsys.readouterr().out
    kept = {row.optimizer: row for row in load_evaluation(tmp_path / "e" / "evaluation.h5").rows}
    shown = {row["optimizer"]: row["knob"] for row in csv_rows(tmp_path / "e" / "summary.csv")}
    instance = Instance(PROBLEMS["quadratic"], derived_seed(0, "evaluate_test", 0), "evaluation")
    for text, name, dampening in (("momentum", "momentum", 1.0), (rule, "c1", 0.5)):
        ((knob, b),), lr = kept[text].settings["knob"].items(), kept[text].settings["lr"]
        assert knob == name and b in (0.95, 0.8)  # not as it was
        assert shown[text] == f"{knob}={b:.6g}" and shown[text] in table
        m = [0.0]

        def move(theta, g, step, b=b, lr=lr, m=m, scale=1.0 if name == "momentum" else 1.0 - b, c=dampening):
            m[0] = b * m[0] + scale * g
            return theta - lr * c * m[0]

        np.testing.assert_allclose(kept[text].losses, descended(instance, 12, move)[0], rtol=1e-9)
    assert shown["sgd"] == "" and kept["sgd"].settings["knob"] == {}
    assert kept["momentum"].trials == kept[rule].trials >= kept["sgd"].trials + 6
    keys = [json.loads(path.read_text())["key"] for path in (tmp_path / "e" / "cells").rglob("*.json")]
    assert {key["knob"] for key in keys} == {None, 0.95, 0.8}


def test_cells_of_other_knobs_are_other_cells_and_are_found_again(tmp_path, counted):
    config = config_of(tmp_path, problem="quadratic", optimizers=("adam",), knob=True)
    before = losses(evaluate(config))
    assert counted and len(set(counted)) < len(counted)  # same rate, other knob
    counted.clear()
    Path(config.out, "evaluation.h5").unlink()
    assert losses(evaluate(config)) == before and not counted
    with pytest.raises(L2OError, match="only more optimizers or seeds may be added"):
        evaluate(dataclasses.replace(config, knob=False))


def test_what_all_does_not_reach_is_named_with_the_remedy(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    names = list(packaged_names("torch"))
    for name in names:
        missing = dataclasses.replace(BASELINES[name], package="no_such_package")
        monkeypatch.setitem(BASELINES._rows, name, missing)
    reason = 'needs no_such_package: python -m pip install -e ".[optimizers]" in the checkout'
    line = f"torch_impl.evaluate --problem quadratic --steps 3 --seeds 1 --trials 0 --out {tmp_path / 'e'}"
    assert call(f"{line} --optimizers all") == 0
    said = capsys.readouterr().out
    assert all(f"{name}: not here, {reason}\n" in said for name in names)
    kept = load_evaluation(tmp_path / "e" / "evaluation.h5")
    assert kept.config["absent"] == dict.fromkeys(names, reason)
    assert {row.optimizer for row in kept.rows} == {*baseline_names("torch")}
    page = (tmp_path / "e" / "report.html").read_text()
    assert "Not compared" in page and all(f'<th scope="row">{name}</th>' in page for name in names)
    assert "no_such_package" not in (tmp_path / "e" / "summary.csv").read_text()
    with pytest.raises(
        L2OError, match=r"^soap: expected .*, got soap, which needs no_such_package: python -m pip inst"
    ):
        evaluate(config_of(tmp_path / "f", optimizers=("soap",)))
    assert not absent(["adam"], "torch") and not absent(["all"], "tf")


def fake_pool(tmp_path: Path, seconds: dict[str, int]) -> list[Cell]:
    """The order in which two problems' cells are run, with stand-ins for rollouts."""
    config = config_of(tmp_path, trials=1)
    order: list[Cell] = []

    def run(function, arguments):
        for _, _, _, cell in arguments:
            order.append(cell)
            yield cell, Rollout(np.ones(cell.steps), "ok", math.nan)

    sources = {"sgd": load(parse_spec("sgd"))}
    store = Store(tmp_path / "cells", config, sources, "1")
    courses = {p: grid.course(sources, p, (6,), config) for p in seconds}
    with Progress("evaluate", 0, quiet=True) as progress:
        pool = grid.Pool(store, lambda cell: seconds[cell.problem] * cell.steps, progress)
        tested = pool.run(courses, run, lambda cell: (None, None, None, cell))
    assert set(tested) == set(seconds) and pool.total == len(order) == len(set(order))
    return order


def test_the_most_expensive_cells_come_first_and_no_problem_waits_for_another(tmp_path):
    order = fake_pool(tmp_path, {"quadratic": 1, "lasso": 9})
    half = len(order) // 2
    assert [cell.problem for cell in order] == ["lasso"] * half + ["quadratic"] * half
    streams = [(cell.problem, cell.stream) for cell in order]
    assert streams.index(("lasso", "test")) < streams.index(("quadratic", "validation"))


def test_the_total_of_a_comparison_is_shown_once_it_is_known(tmp_path, capsys):
    line = f"torch_impl.evaluate --problem {TWO} --optimizers sgd adam --steps 25 --seeds 4 --trials 3"
    assert call(f"{line} --no-report --out {tmp_path / 'e'}") == 0
    counts = re.findall(r"^evaluate: (\S+)", capsys.readouterr().err, re.MULTILINE)
    totals = {count.partition("/")[2] for count in counts}
    assert len(totals) == 2 and "" in totals  # "12 done" and then "60/64"
    done, _, total = counts[-1].partition("/")
    assert done == total


def test_the_command_prints_a_table_per_problem_and_where_each_rule_stands(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    rule, out = rule_spec(tmp_path, c0=-0.1), tmp_path / "e"
    line = f"torch_impl.evaluate --problem {TWO} --steps 25 --seeds 2 --trials 0 --out {out}"
    line += f" --optimizers sgd adam {rule}"
    assert call(line) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks[:2]] == ["lasso", "quadratic"]
    assert blocks[2].startswith(f"{rule}: of 2 problems, at least as good as the best")
    assert blocks[3] == f"evaluation: {out / 'evaluation.h5'}\nreport: {out / 'report.html'}"
    page = (out / "report.html").read_text()
    assert "rule r is at least as good as" in page and page.count("<svg") == 2
    (out / "report.html").unlink()
    assert call(f"{line} --no-report") == 0
    assert not (out / "report.html").exists()


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_in_one_line_and_its_cells_can_be_run_again(tmp_path, monkeypatch):
    config, run = config_of(tmp_path, problem="quadratic", jobs=2), backend.rollout_job
    monkeypatch.setattr(backend, "rollout_job", _killed_at_the_test)
    with pytest.raises(L2OError, match=r"a worker process ended .*on disk is kept"):
        evaluate(config)
    monkeypatch.setattr(backend, "rollout_job", run)
    kept = len(cells_of(config))
    assert kept > 0 and len(evaluate(config)) == 8


def _killed_at_the_test(config, source, lr, stream, number, steps, schedule):
    from torch_impl.rollout import rollout_job

    if stream == "test":
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    return rollout_job(config, source, lr, stream, number, steps, schedule)


def test_cells_of_other_data_or_other_code_are_not_reused(tmp_path, monkeypatch):
    config = config_of(tmp_path, problem="digits-mlp")
    before = key_of(config)
    assert key_of(config) == before and key_of(config, "2") != before
    whole = datasets.load("digits")
    other = dataclasses.replace(whole, y_test=whole.y_test[::-1].copy())
    monkeypatch.setattr(datasets, "load", lambda *_: other)
    assert key_of(config) != before


def test_cells_belong_to_the_version_of_an_optimizers_package(tmp_path, monkeypatch):
    config, seen = config_of(tmp_path, problem="quadratic"), set()
    for version in ("4.1.0", "4.2.0"):
        monkeypatch.setattr(metadata, "version", lambda package, now=version: now)
        for text in ("soap", "adam"):
            store = Store(tmp_path, config, {text: Source(parse_spec(text), None)}, "1")
            seen.add(store.path(Cell(text, "quadratic", 0.1, "test", 0, 5)))
    assert len(seen) == 3


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
    rows = evaluate(config_of(tmp_path / "out", optimizers=optimizers, steps=(4,), seeds=1))
    assert {row.problem: row.trained_on for row in rows} == {"quadratic": False, "lasso": True}


@pytest.mark.parametrize("optional", [True, False])
def test_what_a_suite_can_do_without_is_left_out_by_name_where_its_data_are_missing(
    optional, tmp_path, monkeypatch, caplog
):
    entries = (Entry("quadratic", 6), Entry("fashion-mlp", 6, optional=optional))
    monkeypatch.setitem(SUITES._rows, "tiny", entries)
    monkeypatch.delenv("L2O_DATA", raising=False)
    config = config_of(tmp_path, problem="suite:tiny", steps=())
    if not optional:
        with pytest.raises(L2OError, match="data set 'fashion-mnist' not found"):
            evaluate(config)
        return
    assert {row.problem for row in evaluate(config)} == {"quadratic"}
    assert "fashion-mlp is left out: data set 'fashion-mnist' not found" in caplog.text
    assert list(load_evaluation(tmp_path / "evaluation.h5").config["left_out"]) == ["fashion-mlp"]
