"""A finished run that takes more epochs, and its metrics for TensorBoard."""

import dataclasses

import pytest

from common.errors import L2OError
from interchange.meta.config import EPOCHS, TrainConfig
from tests.helpers.commands import call, metrics

pytest.importorskip("torch")

from torch_impl.train import train

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
