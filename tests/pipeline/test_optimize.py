"""``optimize``: losses and parameters of plain training, as a function and as a command."""

import dataclasses
import json
import math
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from common.rng import derived_seed
from common.tables.problems import PROBLEMS, Instance, parameter_specs
from interchange.commands import watch
from interchange.commands.optimize import Optimization, OptimizeConfig
from interchange.files.checkpoint import has_checkpoint, load_checkpoint
from tests.helpers.commands import call, csv_rows, descended, metrics, rule_spec
from tests.helpers.processes import launched

pytest.importorskip("torch")

from torch_impl import optimize, rollout
from torch_impl.problems.tasks import table_task

QUADRATIC = {"problem": "quadratic", "steps": 30, "dtype": "float64", "quiet": True}


def losses(folder: Path) -> dict[str, list[float]]:
    table = csv_rows(folder / "losses.csv")
    assert [int(row["step"]) for row in table] == list(range(1, len(table) + 1))
    return {k: [float(r[k]) for r in table if r[k]] for k in table[0] if k != "step"}


def optimized(out: Path, optimizer: str = "sgd:lr=0.3", **settings) -> Optimization:
    return optimize(OptimizeConfig(optimizer=optimizer, out=str(out), **QUADRATIC | settings))


def test_losses_and_parameters_are_the_oracles(tmp_path):
    result = optimized(tmp_path / "o", runs=3)
    figures, ends = [], []
    for number, run in enumerate(result.runs):
        instance = Instance(PROBLEMS["quadratic"], derived_seed(0, "optimize", number), "meta_train")
        want, theta = descended(instance, 30, lambda theta, g, _: theta - 0.3 * g)
        np.testing.assert_allclose(run.losses, want, rtol=1e-9)
        figures.append(np.mean(want[-20:]))
        ends.append(theta)
        assert run.loss == pytest.approx(figures[-1], rel=1e-9) and math.isnan(run.accuracy)
    assert result.best == np.argmin(figures) and result.exit_code == 0
    for number, values in enumerate(losses(result.folder).values()):
        assert values == result.runs[number].losses.tolist()
    assert [row["loss"] for row in metrics(result.folder)] == [run.loss for run in result.runs]
    arrays, meta = load_checkpoint(result.folder)
    np.testing.assert_allclose(arrays["theta/x"].ravel(), ends[result.best], rtol=1e-8, atol=1e-12)
    assert list(arrays) == ["theta/x"] and (meta["run"], meta["step"]) == (result.best, 30)
    assert meta["optimizer"] == "sgd:lr=0.3" and meta["loss"] == result.runs[result.best].loss
    names = {path.name for path in result.folder.iterdir()}
    assert names == {"checkpoint", "config.json", "env.json", "lock", "losses.csv", "metrics.jsonl"}
    assert len(list(result.folder.glob("checkpoint/*"))) == 1


def test_the_checkpoint_reaches_the_printed_accuracy_on_the_test_images(tmp_path, capsys):
    folder = tmp_path / "o"
    assert call(f"torch_impl.optimize adam:lr=0.01 --problem digits-mlp --steps 60 --out {folder}") == 0
    loss, rest = capsys.readouterr().out.splitlines()
    arrays, _ = load_checkpoint(folder)
    specs = parameter_specs(PROBLEMS["digits-mlp"])
    assert {name: a.shape for name, a in arrays.items()} == {f"theta/{s.name}": s.shape for s in specs}
    x, labels = Instance(PROBLEMS["digits-mlp"], 0, "test").data()
    x = x.reshape(len(x), -1)
    for k in range(3):
        x = x @ arrays[f"theta/layer_{k}/w"] + arrays[f"theta/layer_{k}/b"]
        x = np.maximum(x, 0.0) if k < 2 else x
    accuracy = (x.argmax(1) == labels).mean()
    assert accuracy > 0.75
    figure = np.mean(losses(folder)["run_0"][-20:])
    assert loss == f"loss {figure:.4g} after 60 steps, test accuracy {accuracy:.4f}"
    assert rest == f"parameters: {folder / 'checkpoint'} (run 0); use them by --start"
    assert json.loads((folder / "config.json").read_text())["optimizer"] == "adam:lr=0.01"


def test_another_run_starts_where_one_ended(tmp_path):
    """Of one seed and problem: a quadratic's loss goes on where it was."""
    first, longer = optimized(tmp_path / "a"), optimized(tmp_path / "b", steps=31)
    second = optimized(tmp_path / "c", start=str(first.folder))
    assert second.runs[0].losses[0] == pytest.approx(longer.runs[0].losses[-1], rel=1e-12)
    assert second.runs[0].losses[0] < 0.5 * first.runs[0].losses[0]


def test_batch_norms_running_values_are_kept_and_given_back(tmp_path):
    settings = {"problem": "mnist-conv", "dataset": "synthetic", "steps": 2, "batch_size": 8, "quiet": True}
    config = OptimizeConfig(optimizer="sgd:lr=0.01", out=str(tmp_path / "o"), **settings)
    arrays, _ = load_checkpoint(optimize(config).folder)
    task = table_task(dataclasses.replace(config, start=config.out), "optimize", 0)
    assert len(task.buffers) == 4
    for name, buffer in task.buffers.items():
        assert not np.allclose(buffer.numpy(), float(name.endswith("var")), atol=1e-3)  # as it begins
        np.testing.assert_array_equal(buffer.numpy(), arrays[f"buffers/{name}"])


SPECS = ["teacher:{run}", "teacher:{run}/teacher.h5,lr=0.5", "{rule}", "lion", "adamw:lr=0.01"]


@pytest.mark.parametrize("spec", SPECS)
def test_any_optimizer_trains(spec, trained, tmp_path):
    spec = spec.format(run=trained, rule=rule_spec(tmp_path, c0=-0.3))
    (run,) = optimized(tmp_path / "o", spec).runs
    assert run.outcome == "ok" and len(run.losses) == 30 and np.ptp(run.losses) > 0
    if spec.startswith("rule"):
        (same,) = optimized(tmp_path / "sgd").runs
        np.testing.assert_allclose(run.losses, same.losses, rtol=1e-9)


def test_the_split_chooses_the_images(tmp_path):
    found = [
        optimized(tmp_path / split, "sgd", split=split, problem="digits-mlp", steps=3).runs[0].losses[0]
        for split in ("meta_train", "evaluation")
    ]
    assert found[0] != found[1]


def test_a_run_that_diverges_among_others_is_an_outcome(tmp_path, monkeypatch):
    """One of three starts is so far off that its first loss overflows."""
    before = rollout.leaves

    def far(task):
        parameters = before(task)
        if task.instance.seed == derived_seed(0, "optimize", 1):
            parameters[0].data.fill_(1e308)
        return parameters

    monkeypatch.setattr(rollout, "leaves", far)
    result = optimized(tmp_path / "o", runs=3)
    rows = metrics(result.folder)
    assert [run.outcome for run in result.runs] == ["ok", "diverged", "ok"]
    assert [row["outcome"] for row in rows] == ["ok", "diverged", "ok"]
    assert rows[1]["loss"] is None and rows[1]["steps"] == 0
    assert [len(column) for column in losses(result.folder).values()] == [30, 0, 30] and result.best in (0, 2)


@pytest.mark.parametrize("stretch", [120.0, 0.0], ids=["at once", "after it was kept"])
def test_divergence_is_one_line_and_nothing_is_written_or_in_the_way(stretch, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(watch, "_STRETCH", stretch)
    folder = tmp_path / "o"
    place = f"--problem quadratic --steps 80 --out {folder} --quiet"
    message = refused(f"torch_impl.optimize sgd:lr=1e6 {place}")
    assert "sgd:lr=1e6 diverged on quadratic at step " in message and "lower its lr" in message
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert call(f"torch_impl.optimize sgd:lr=0.3 {place}") == 0


def test_a_last_step_that_ruins_the_parameters_is_a_divergence(tmp_path, refused):
    """Every loss was finite; theta - 3e38 g is not."""
    line = "torch_impl.optimize sgd:lr=3e38 --problem quadratic --batch-size 1 --steps 1 --quiet --out"
    assert "diverged on quadratic at step 2" in refused(line, tmp_path / "o")


def test_a_run_is_replaced_on_demand_only_and_never_while_it_is_the_start(tmp_path, refused):
    folder = tmp_path / "o"
    place = f"--problem quadratic --out {folder} --quiet"
    one = f"torch_impl.optimize sgd:lr=0.3 --steps 3 {place}"
    assert call(f"{one} --runs 2") == 0
    assert "already holds a run" in refused(one)
    assert "is where --start reads from" in refused(f"{one} --start {folder} --overwrite")
    assert len(metrics(folder)) == 2 and has_checkpoint(folder)
    assert call(f"{one} --overwrite") == 0
    assert len(metrics(folder)) == 1 and list(losses(folder)) == ["run_0"]
    refused(f"torch_impl.optimize sgd:lr=1e6 --steps 80 --overwrite {place}")  # diverges
    assert not (folder / "losses.csv").exists() and not has_checkpoint(folder)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_leaves_a_whole_checkpoint_and_the_losses_so_far(number, code, tmp_path):
    folder = tmp_path / "o"
    line = f"-m torch_impl.optimize sgd:lr=0.3 --problem quadratic --steps 1000000 --runs 3 --out {folder}"
    process = launched(line.split())
    assert any("1/3000000" in line for line in process.stderr)  # the first step is done
    time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err
    arrays, meta = load_checkpoint(folder)
    assert 1 <= meta["step"] == len(losses(folder)["run_0"]) < 1_000_000
    assert arrays["theta/x"].shape == (128, 10) and np.isfinite(arrays["theta/x"]).all()
    assert [(row["outcome"], row["steps"]) for row in metrics(folder)] == [("interrupted", meta["step"])]
    assert out.splitlines()[0].endswith("(interrupted)")
