"""``optimize`` and ``evaluate`` as networks are trained: by passes, looked at along the way, resumed."""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from common.tables.baselines import parse_spec
from common.tables.problems import PROBLEMS, Instance
from common.tables.schedules import SCHEDULES
from interchange.commands.optimize import OptimizeConfig
from interchange.evaluation.config import EvaluateConfig
from interchange.files.checkpoint import load_checkpoint
from interchange.files.hdf5 import read_hdf5, write_hdf5
from interchange.files.results import load_evaluation
from interchange.files.schema import EVALUATION
from tests.helpers.commands import call, metrics

torch = pytest.importorskip("torch")

from torch_impl import backend, evaluate, optimize  # noqa: E402
from torch_impl.problems.tasks import table_task  # noqa: E402
from torch_impl.rollout import rollout  # noqa: E402
from torch_impl.sources import load  # noqa: E402

ON_DIGITS = {"problem": "digits-mlp", "batch_size": 100, "quiet": True}
A_PASS = Instance(PROBLEMS["digits-mlp"], 0, "evaluation", 100).steps(1)


def optimized(out: Path, optimizer: str = "adam", **settings):
    return optimize(OptimizeConfig(optimizer=optimizer, out=str(out), **ON_DIGITS | settings))


def evaluated(out: Path, **settings):
    tiny = {"optimizers": ("sgd:lr=0.1", "adam"), "seeds": 2, "validation_seeds": 1, "trials": 1}
    return evaluate(EvaluateConfig(out=str(out), **ON_DIGITS | tiny | {"report": False} | settings))


def test_passes_are_steps_over_all_images_looked_at_after_each(tmp_path):
    result = optimized(tmp_path / "o", passes=2, runs=2)
    images = len(Instance(PROBLEMS["digits-mlp"], 0, "meta_train").data()[1])
    assert [len(run.losses) for run in result.runs] == [2 * (images // 100)] * 2
    for run, row in zip(result.runs, metrics(result.folder), strict=True):
        assert run.curve[:, 0].tolist() == [images // 100, 2 * (images // 100)]
        assert run.curve[-1, 1:].tolist() == [run.test_loss, run.accuracy]
        assert row["curve"] == run.curve.tolist() and row["test_loss"] == run.test_loss
    (third,) = optimized(tmp_path / "third", passes=1, accumulate=3).runs
    assert len(third.losses) == images // 300 and third.curve[:, 0].tolist() == [images // 300]
    # The same command goes on: here there is a run more to do.
    longer = optimized(tmp_path / "o2", passes=2, runs=2)
    again = tmp_path / "o2" / "metrics.jsonl"
    again.write_text(again.read_text().splitlines(keepends=True)[0])
    np.testing.assert_array_equal(
        optimized(tmp_path / "o2", passes=2, runs=2).runs[0].curve, longer.runs[0].curve
    )


def test_an_evaluation_by_passes_keeps_the_figures_along_the_way(tmp_path, monkeypatch):
    rows = evaluated(tmp_path / "e", passes=(2,), report=True)
    kept = load_evaluation(tmp_path / "e").rows
    for row, one in zip(rows, kept, strict=True):
        assert row.horizon == 2 * A_PASS and row.curve[:, 0].tolist() == [A_PASS, 2 * A_PASS]
        np.testing.assert_array_equal(row.curve, one.curve)
        assert row.curve[-1, 1:].tolist() == [row.test_loss, row.accuracy]
    assert "Test accuracy along the way" in (tmp_path / "e" / "report.html").read_text()
    monkeypatch.setattr(backend, "rollout_job", None)  # nothing is run anew
    for row, one in zip(rows, evaluated(tmp_path / "e", passes=(2,)), strict=True):
        np.testing.assert_array_equal(row.curve, one.curve)


def test_an_evaluation_from_before_there_were_these_settings_goes_on(tmp_path, monkeypatch):
    evaluated(tmp_path / "e", steps=(4,))
    file = tmp_path / "e" / "evaluation.h5"
    tree = read_hdf5(file, EVALUATION.format, EVALUATION.version)
    config = json.loads(tree.attributes[""]["config_json"])
    for name in ("passes", "test_every", "decay_vectors"):
        del config[name]
    tree.attributes[""] = {"created_by": "before", "config_json": json.dumps(config)}
    write_hdf5(file, tree, EVALUATION.format, "1.1.0")
    assert [row.curve.shape for row in load_evaluation(file).rows] == [(0, 3)] * 4
    jobs, run = [], backend.rollout_job
    monkeypatch.setattr(backend, "rollout_job", lambda *given: jobs.append(given) or run(*given))
    assert len(evaluated(tmp_path / "e", steps=(4,), seeds=3)) == 6
    assert {given[3:5] for given in jobs} == {("test", 2)}


def test_a_training_from_before_there_were_these_settings_goes_on(tmp_path):
    first = optimized(tmp_path / "o", steps=4, runs=2)
    file, rows = first.folder / "metrics.jsonl", metrics(first.folder)
    before = dataclasses.fields(OptimizeConfig)
    config = json.loads((first.folder / "config.json").read_text())
    (first.folder / "config.json").write_text(
        json.dumps({f.name: config[f.name] for f in before if f.name not in ("passes", "test_every")})
    )
    kept = {name: value for name, value in rows[0].items() if name != "test_loss"} | {"seconds": 1.0}
    file.write_text(json.dumps(kept) + "\n")
    second = optimized(tmp_path / "o", steps=4, runs=2)
    assert second.runs[0].seconds == 1.0 and second.runs[1].losses.tolist() == first.runs[1].losses.tolist()


@pytest.mark.parametrize("package", ["torch", "tf"])
def test_the_average_is_what_is_kept(package, tmp_path):
    """Of a decay next to 1 it stays where the first step went."""
    if package == "tf":
        pytest.importorskip("tensorflow")
    run = importlib.import_module(f"{package}_impl").optimize
    settings = {"problem": "quadratic", "optimizer": "sgd:lr=0.1", "dtype": "float64", "quiet": True}
    ends = []
    for name, more in {"one": {"steps": 1}, "kept": {"steps": 9, "average": 1 - 1e-12}}.items():
        config = OptimizeConfig(**settings | more, out=str(tmp_path / name))
        ends.append(load_checkpoint(run(config).folder)[0]["theta/x"])
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-10)


def test_weight_decays_are_tuned_by_all_that_leave_theirs_open_with_equal_trials(tmp_path):
    texts = ("sgd", "adamw", "adamw:weight_decay=0.3", "lion:lr=0.001")
    settings = {"optimizers": texts, "problem": "quadratic", "dtype": "float64", "seeds": 1, "batch_size": 0}
    rows = {
        r.optimizer: r for r in evaluated(tmp_path / "e", steps=(6,), weight_decays=(0.0, 2.0), **settings)
    }
    assert rows["sgd"].trials == rows["adamw"].trials >= rows["adamw:weight_decay=0.3"].trials + 3
    keys = [json.loads(path.read_text())["key"] for path in (tmp_path / "e" / "cells").rglob("*.json")]
    tried: dict[tuple, set] = {}
    for key in keys:
        name = key["optimizer"]["target"], key["optimizer"]["options"].get("weight_decay")
        tried.setdefault(name, set()).add(key.get("weight_decay"))
    assert tried == {
        ("sgd", None): {0.0, 2.0}, ("adamw", 0.01): {0.0, 2.0}, ("adamw", 0.3): {None}, ("lion", 0.0): {0.0},
    }  # fmt: skip
    assert rows["adamw:weight_decay=0.3"].settings["knob"] == {}
    for name in ("sgd", "adamw"):  # what was chosen is what was run
        row = rows[name]
        decay, lr = row.settings["knob"]["weight_decay"], row.settings["lr"]
        config = OptimizeConfig(optimizer=name, problem="quadratic", dtype="float64")
        source = load(parse_spec(f"{name}:lr={lr!r},weight_decay={decay!r}"))
        run = rollout(source, lr, table_task(config, "evaluate_test", 0, "evaluation"), 6)
        np.testing.assert_array_equal(row.losses, run.losses)
    assert "weight_decay=" in (tmp_path / "e" / "summary.csv").read_text()


def test_tensorboard_gets_losses_and_figures_along_the_way(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = optimized(tmp_path / "o", steps=6, runs=2, test_every=3, tensorboard=True)
    (file,) = (result.folder / "tensorboard").iterdir()
    events = EventAccumulator(str(file))
    events.Reload()
    for number, run in enumerate(result.runs):
        for name, want in (
            ("loss", run.losses),
            ("accuracy", run.curve[:, 2]),
            ("test_loss", run.curve[:, 1]),
        ):
            points = events.Scalars(f"run_{number}/{name}")
            np.testing.assert_allclose([point.value for point in points], want, rtol=1e-6)
            assert [p.step for p in points] == ([3, 6] if name != "loss" else [1, 2, 3, 4, 5, 6])


def rates(scheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_the_schedules_are_torchs_where_torch_has_them():
    known, steps = torch.optim.lr_scheduler, 40
    rows = {
        "step": lambda o: known.MultiStepLR(o, [20, 30], 0.1),
        "cosine": lambda o: known.CosineAnnealingLR(o, steps),
        "linear": lambda o: known.LinearLR(o, 1.0, 0.0, steps),
        "warmup": lambda o: known.LinearLR(o, 0.5, 1.0, 1),
    }
    for name, make in rows.items():
        want = rates(make(torch.optim.SGD([torch.zeros(1)], 1.0)), steps)
        got = [SCHEDULES[name].factor(step, steps) for step in range(steps)]
        np.testing.assert_allclose(got, want, rtol=1e-12, err_msg=name)


def test_all_schedules_are_the_usual_ones_and_others_where_they_are_named(tmp_path):
    rows = evaluated(tmp_path / "e", steps=(3,), schedules=("all", "step"), optimizers=("sgd",), seeds=1)
    usual = [name for name, row in SCHEDULES.items() if not row.extra]
    assert rows[0].trials >= len(usual) + 1
    tried = {json.loads(path.read_text())["key"]["schedule"] for path in (tmp_path / "e").rglob("*.json")}
    assert tried == {*usual, "step"} and "warmup" not in usual


@pytest.mark.parametrize(
    ("line", "message"),
    {
        "optimize adam --problem quadratic --passes 2": "quadratic is a function and has no data",
        "optimize adam --steps 3 --passes 2": "--steps and --passes both say how long to train",
        "evaluate --steps 3 --passes 2": "--steps and --passes both say how long to train; leave one",
        "evaluate --problem suite:held --passes 2": "a suite has its own horizons; leave --passes out",
        "optimize adam --problem quadratic --label-smoothing 0.1": "quadratic has no labels; leave it out",
        "optimize adam --problem digits-autoencoder --label-smoothing 0.1": "has no labels; leave it out",
        "optimize adam --label-smoothing 2": "--label-smoothing: expected at most 1",
        "optimize adam --average 1": "--average: expected a decay below 1, got 1",
        "optimize adam --bfloat16 --dtype float64": "--bfloat16: expected --dtype float32 for all else",
        "optimize adam --bfloat16 --problem quadratic": "--bfloat16: quadratic has no layers; leave it out",
        "optimize adam --accumulate 0": "--accumulate: expected at least 1",
        "optimize adam --clip-norm -1": "--clip-norm: expected at least 0",
        "record rp_s,weight_decay=0.1 --problem quadratic": "outputs of a teacher; leave weight_decay out",
        "record rule:lion,l2=0.1 --problem quadratic": "the outputs of a rule; leave l2 out",
        "optimize adam:l2=-1": "expected l2=NUMBER, not negative",
        "optimize adam --test-every -1": "--test-every: expected at least 0",
    }.items(),
)
def test_what_makes_no_sense_is_one_line(line, message, tmp_path, capsys):
    assert call(f"torch_impl.{line} --out {tmp_path / 'o'}") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "o").exists()
