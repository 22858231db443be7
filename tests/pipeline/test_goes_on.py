"""Runs gone on with: a finished one for more epochs, and what a signal or a kill has stopped."""

import dataclasses
import os
import signal

import pytest

from common.errors import L2OError
from common.run.runs import RunFolder
from common.run.shell import Interrupted
from interchange import Rule
from interchange.commands import record as recording
from interchange.commands import select as selection
from interchange.commands.optimize import OptimizeConfig
from interchange.commands.record import RecordConfig
from interchange.commands.select import SelectConfig
from interchange.files.checkpoint import load_checkpoint
from interchange.files.trajectories import load_trajectories
from interchange.meta import trainer as meta
from interchange.meta.config import EPOCHS, TrainConfig, TuneConfig
from interchange.rule.front import write_front
from tests.helpers.commands import call, metrics, rule_spec

pytest.importorskip("torch")

from torch_impl import backend
from torch_impl.optimize import optimize
from torch_impl.record import record
from torch_impl.select import select
from torch_impl.train import train
from torch_impl.tune import tune

TINY = TrainConfig(
    problem="quadratic", epochs=2, epoch_length=8, unroll=4, validate_every=1, validation_tasks=1, quiet=True
)


def test_the_usual_number_of_epochs_is_that_of_a_new_run_only():
    assert TrainConfig().epochs == EPOCHS and TrainConfig(resume="x").epochs == 0


def test_a_finished_run_goes_on_for_more_epochs(tmp_path):
    out = str(tmp_path / "run")
    train(dataclasses.replace(TINY, out=out))
    run = train(TrainConfig(resume=out, epochs=4, quiet=True))
    assert (
        [row["epoch"] for row in run.history]
        == [row["epoch"] for row in metrics(tmp_path / "run")]
        == [0, 1, 2, 3]
    )
    whole = train(dataclasses.replace(TINY, epochs=4, out=str(tmp_path / "whole")))
    assert [row["loss"] for row in whole.history] == [row["loss"] for row in run.history]  # a constant rate
    assert call(f"torch_impl.train --resume {out} --quiet") == 0 and len(metrics(tmp_path / "run")) == 4
    with pytest.raises(L2OError, match="--epochs: expected at least the run's own 4, got 3"):
        train(TrainConfig(resume=out, epochs=3, quiet=True))


def test_tensorboard_gets_what_the_metrics_have(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    train(dataclasses.replace(TINY, out=str(out), tensorboard=True))
    (file,) = (out / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    found = [event.value for event in events.Scalars("validation")]
    assert found == pytest.approx([row["validation"] for row in metrics(out)])


class CutError(Exception):
    """Stands for the end of the process."""


def cut_at(monkeypatch, owner, name: str, count: int) -> list:
    """The calls of a function, the ``count``-th of which ends the process."""
    real, calls = getattr(owner, name), []

    def counted(*given, **more):
        calls.append(given)
        if len(calls) == count:
            raise CutError
        return real(*given, **more)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_a_recording_keeps_its_finished_trajectories(tmp_path, monkeypatch):
    config = RecordConfig(
        source="adam:lr=0.01", problem="quadratic", steps=6, runs=4, samples=200, quiet=True
    )
    whole = record(dataclasses.replace(config, out=str(tmp_path / "whole.h5")))
    config = dataclasses.replace(config, out=str(tmp_path / "cut.h5"))
    with monkeypatch.context() as patch, pytest.raises(CutError):
        cut_at(patch, recording, "_record_one", 3)
        record(config)
    other = dataclasses.replace(config, source="adam:lr=0.02", overwrite=True)
    calls = cut_at(monkeypatch, recording, "_record_one", 0)
    record(config)
    assert len(calls) == 2
    assert load_trajectories(config.out).sha256 == load_trajectories(whole).sha256
    assert sorted(os.listdir(tmp_path)) == ["cut.h5", "whole.h5"]
    with pytest.raises(CutError):
        cut_at(monkeypatch, recording, "_record_one", 2)
        record(other)
    calls = cut_at(monkeypatch, recording, "_record_one", 0)
    record(dataclasses.replace(config, overwrite=True))  # other settings: nothing of the other is taken
    assert len(calls) == 4
    assert load_trajectories(config.out).sha256 == load_trajectories(whole).sha256


@pytest.mark.parametrize("last", ["begun", "finished"])
def test_plain_training_goes_on_after_its_finished_runs(last, tmp_path, monkeypatch):
    config = OptimizeConfig(
        optimizer=rule_spec(tmp_path, c0=-0.3), problem="quadratic", steps=6, runs=4, quiet=True
    )
    whole = optimize(dataclasses.replace(config, out=str(tmp_path / "whole")))
    config = dataclasses.replace(config, out=str(tmp_path / "cut"))
    with monkeypatch.context() as patch, pytest.raises(CutError):
        if last == "begun":
            cut_at(patch, backend, "fit", 3)
        else:  # its parameters are in the checkpoint, and the run is in no table yet
            cut_at(patch, RunFolder, "log", 3)
        optimize(config)
    for other in ({"steps": 7}, {"optimizer": rule_spec(tmp_path, c0=-0.2)}):
        with pytest.raises(L2OError, match="already holds a run"):
            optimize(dataclasses.replace(config, **other))
    rule_spec(tmp_path, c0=-0.3)
    calls = cut_at(monkeypatch, backend, "fit", 0)
    result = optimize(config)
    assert len(calls) == 2 and result.best == whole.best
    assert (tmp_path / "cut/losses.csv").read_bytes() == (tmp_path / "whole/losses.csv").read_bytes()
    (arrays, meta), (wanted, told) = load_checkpoint(result.folder), load_checkpoint(whole.folder)
    assert arrays["theta/x"].tobytes() == wanted["theta/x"].tobytes() and meta == told
    assert metrics(result.folder) == metrics(whole.folder)
    with pytest.raises(L2OError, match="already holds a run; replace"):
        optimize(config)


def test_a_choice_keeps_the_losses_it_has_found(tmp_path, monkeypatch):
    rules = [Rule.from_text("c0 * g", {"c0": -k / 10}, name=str(k)) for k in (1, 2, 3)]
    for name in ("whole", "cut"):
        write_front(tmp_path / name, rules)
    config = SelectConfig(front=str(tmp_path / "whole"), problem="quadratic", steps=9, tasks=2, quiet=True)
    assert [rule.name for rule in select(config)] == ["3", "2", "1"]
    config = dataclasses.replace(config, front=str(tmp_path / "cut"))
    with monkeypatch.context() as patch, pytest.raises(CutError):
        cut_at(patch, selection, "_roll_out", 3)
        select(config)
    calls = cut_at(monkeypatch, selection, "_roll_out", 0)
    select(config)
    assert [(rule.name, len(numbers)) for rule, numbers, *_ in calls][:1] == [("3", 2)]
    files = sorted(os.listdir(tmp_path / "whole"))
    assert sorted(os.listdir(tmp_path / "cut")) == files and "scored" not in files
    for file in files:
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize(
    ("estimator", "per_tensor"),
    [("first", False), ("es", False), ("first", True)],
    ids=["first", "es", "sizes"],
)
@pytest.mark.parametrize("signalled", [True, False], ids=["SIGTERM", "cut"])
def test_a_tuning_goes_on_from_its_checkpoint(estimator, per_tensor, signalled, tmp_path, monkeypatch):
    Rule.named("momentum").save(tmp_path / "rule.json")
    config = TuneConfig(
        rule=str(tmp_path / "rule.json"), problem="quadratic", estimator=estimator, epochs=6, epoch_length=10,
        unroll=5, validate_every=1, validation_tasks=1, quiet=True, per_tensor=per_tensor,
        step_size=0.01 if per_tensor else 1.0,
    )  # fmt: skip
    real, updates, last = meta.Trainer._update, [], 0

    def update(self, grads) -> None:
        real(self, grads)
        updates.append(1)
        if len(updates) == last:
            if not signalled:
                raise CutError
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TuneConfig, "checkpoint_seconds", 0.0)
    monkeypatch.setattr(meta.Trainer, "_update", update)
    whole = tune(dataclasses.replace(config, out=str(tmp_path / "whole.json")))
    config = dataclasses.replace(config, out=str(tmp_path / "cut.json"))
    total, last = len(updates), len(updates) + 5
    with pytest.raises(Interrupted if signalled else CutError) as ended:
        tune(config)
    assert not signalled or ended.value.exit_code == 143
    assert not (tmp_path / "cut.json").exists() and (tmp_path / "cut.json.run").is_dir()
    assert tune(config) == whole
    assert len(updates) - last < total, "it went on, and did not begin anew"
    assert sorted(os.listdir(tmp_path)) == ["cut.json", "rule.json", "whole.json"]
