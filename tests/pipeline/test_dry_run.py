"""``--dry-run`` says what ``train``, ``tune`` and ``evaluate`` would take, and leaves nothing behind."""

import contextlib
import dataclasses
import importlib
import io
import json
import re
import subprocess
from typing import Any

import pytest

from common.errors import L2OError
from common.machine import memory
from interchange.commands import estimate as estimates
from interchange.commands import forecast as forecasts
from interchange.commands.estimate import Estimate, estimate
from interchange.commands.forecast import forecast
from interchange.evaluation import tuning
from interchange.evaluation.config import EvaluateConfig
from interchange.meta.config import TrainConfig, TuneConfig
from tests.helpers.commands import call

pytest.importorskip("torch")

from torch_impl import evaluate


@pytest.fixture
def here(monkeypatch):
    """What a child process tries, tried by this one: quicker, though the peak of its memory is its past's."""
    run = subprocess.run

    def in_this_process(words: list[str], **options: Any) -> subprocess.CompletedProcess:
        home = re.fullmatch(r"from (\S+) import answer; answer\(\)", words[-1])
        if home is None:
            return run(words, **options)
        with monkeypatch.context() as own, contextlib.redirect_stdout(io.StringIO()) as printed:
            own.setattr("sys.stdin", io.StringIO(options["input"]))
            importlib.import_module(home[1]).answer()
        return subprocess.CompletedProcess(words, 0, printed.getvalue(), "")

    monkeypatch.setattr(subprocess, "run", in_this_process)
    monkeypatch.setattr(estimates, "_WORTH", 0.05)
    monkeypatch.setattr(forecasts, "_WORTH", 0.01)


def test_a_training_is_tried_for_a_few_steps_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("torch_impl.train --problem quadratic --epochs 7 --validate-every 3 --dry-run") == 0
    sizes, each, all_of_it, most = capsys.readouterr().out.splitlines()
    assert sizes == "quadratic 1,280 parameters" and each.startswith("a step ")
    assert all_of_it.startswith("7 epochs and 4 validations: about ") and "GiB" in most
    assert not list(tmp_path.iterdir())


def test_a_comparison_is_tried_for_a_few_steps_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = "torch_impl.evaluate --problem quadratic --optimizers sgd adam:lr=0.1 --steps 4 8 --dry-run"
    assert call(line) == 0
    sizes, each, all_of_it, most = capsys.readouterr().out.splitlines()
    assert (
        sizes.startswith("quadratic 1,280 parameters: 0.00488 MiB") and "0.00977 MiB for" in sizes
    )  # Adam's
    assert each.startswith("a step of quadratic, ms: sgd ") and ", adam:lr=0.1 " in each
    # 9 rates on 3 validation seeds to the longer horizon, 5 test seeds to each; adam is not tuned.
    assert all_of_it.startswith("about 47 runs, 336 steps: about ") and "GiB" in most
    assert not list(tmp_path.iterdir())


def test_a_comparison_takes_what_its_runs_take(here, monkeypatch, tmp_path):
    """But for grids that grow; with a fixed rate, a fixed schedule, several of them, a knob, looks."""
    monkeypatch.setattr(tuning, "_GROWTH", 0)
    monkeypatch.setattr(tuning, "_USUAL", 0)
    settings = {
        "problem": "quadratic,digits-mlp",
        "optimizers": ("momentum", "adam:schedule=linear", "lion:lr=0.1"),
    }
    settings |= {"steps": (4, 8), "seeds": 2, "validation_seeds": 2, "trials": 3, "knob": True, "quiet": True}
    settings |= {"schedules": ("constant", "cosine"), "report": False, "test_every": 3}
    config = EvaluateConfig(**settings)
    found = forecast(config, "torch")
    runs = {(part.problem, part.optimizer): part for part in found.parts}
    evaluate(dataclasses.replace(config, out=str(tmp_path / "e")))
    done: dict[tuple[str, str, str], list[int]] = {}
    for path in (tmp_path / "e" / "cells").rglob("*.json"):
        key = json.loads(path.read_text())["key"]
        name = key["optimizer"]["target"], key["problem"], key["stream"]
        done.setdefault(name, []).append(key["steps"])
    for (problem, text), part in runs.items():
        name, tests = text.partition(":")[0], done[text.partition(":")[0], problem, "test"]
        tried = done.get((name, problem, "validation"), [])
        assert sorted(tests) == [4, 4, 8, 8] and part.looks == 2 * (2 + 3)
        assert part.runs <= len(tests) + len(tried) and part.steps <= sum(tests) + sum(tried)
        assert part.runs >= 0.5 * (len(tests) + len(tried)) and bool(tried) == (name != "lion")
        assert part.parameters == (1280 if problem == "quadratic" else 2780) and part.floats == (
            1 + (name == "adam")
        )
    assert found.seconds > found.start > 0.0 and found.bytes == found.peak >= found.before > 2**26
    two = dataclasses.replace(found, jobs=2)
    assert two.bytes == 2 * found.peak + found.before and "with --jobs 2" in str(two)
    assert "more than this machine has" in str(dataclasses.replace(found, peak=2.0 * memory()))


def test_a_tuning_of_several_problems_takes_what_its_steps_take(here):
    config = TuneConfig(rule="adam", problem="quadratic,lasso", epochs=6, epoch_length=20, unroll=20)
    found = estimate(config, "tune", "torch")
    assert found.parameters == {"quadratic": 1280, "lasso": 1280}
    assert found.growth == 0.0 and found.further == 0  # evolution strategies keep no steps
    assert found.seconds >= 6 * found.epoch > 0.0 and found.peak > 2**26


def test_what_is_more_than_the_machine_has_is_said():
    some = Estimate({"x": 3}, 1.0, 200.0, 9.0, 3, 2, 1.0, 2.0**30, 2.0**20, 14)
    assert (some.seconds, some.bytes) == (1.0 + 600.0 + 18.0, 2.0**30 + 14 * 2.0**20)
    assert "1.01 of" in str(some) and "more than" not in str(some)
    assert "more than this machine has" in str(dataclasses.replace(some, peak=2.0 * memory()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"curriculum": True}, "leave out --curriculum"),
        ({"problem": "mnist-mlp", "data_dir": "/nowhere"}, "mnist"),
        ({"init": "no-such-run"}, "no-such-run"),
    ],
)
def test_what_the_command_refuses_is_refused(changes, words, here):
    with pytest.raises(L2OError, match=words) as caught:
        estimate(TrainConfig(**{"epochs": 2, "problem": "quadratic"} | changes), "train", "torch")
    assert "\n" not in str(caught.value)


def test_a_bound_on_memory_is_looked_at(here):
    fields = {"rule": "nesterov", "problem": "quadratic", "estimator": "forward", "epochs": 2}
    assert estimate(TuneConfig(**fields, memory=0.001), "tune", "torch").growth == 0.0
    with pytest.raises(
        L2OError, match=r"--memory: expected at least 0.000\d+ GiB, .* of 1,280 of 1,280 coord"
    ):
        estimate(TuneConfig(**fields, memory=1e-6), "tune", "torch")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"problem": "mnist-mlp", "data_dir": "/nowhere"}, "mnist"),
        ({"optimizers": ("adamm",)}, "unknown optimizer 'adamm'"),
        ({"passes": (1,)}, "quadratic is a function and has no data"),
    ],
)
def test_what_a_comparison_refuses_is_refused(changes, words, here):
    with pytest.raises(L2OError, match=words) as caught:
        forecast(EvaluateConfig(**{"problem": "quadratic", "optimizers": ("sgd",)} | changes), "torch")
    assert "\n" not in str(caught.value)
