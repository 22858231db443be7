"""Runs with every kind of epoch, cut where it hurts and resumed: the same bits as uncut ones."""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import common.tables.curriculum
from common.errors import L2OError
from interchange.commands.record import RecordConfig
from interchange.meta import state as standing
from interchange.meta.config import TrainConfig
from tests.helpers.commands import assert_same_run, metrics

pytest.importorskip("torch")

from interchange.meta.validation import Validation
from torch_impl.meta.learner import Learner
from torch_impl.record import record
from torch_impl.train import train

SETTINGS = TrainConfig(
    problem="quadratic", teacher="rp_s", epochs=4, epoch_length=20, unroll=8, lr=0.01, lr_decay=0.3,
    validate_every=2, validation_tasks=1, checkpoint_seconds=0.0, seed=5, quiet=True,
)  # fmt: skip
KINDS = {
    "tasks": {"tasks": 3, "coordinates": 0.5},
    "mix": {"problem": "quadratic,digits-mlp", "batch_size": 16, "tasks": 2},
    "horizon": {"epoch_length": 200, "horizon": "8..40", "average": 0.7},
    "imitation": {"imitation": 0.5, "tasks": 2, "seed": 6},
    "second": {"estimator": "second", "loss": "last"},
    "es": {"estimator": "es", "pairs": 2, "average": 0.5},
    "pes": {"estimator": "pes", "pairs": 2, "problem": "quadratic,lasso"},
    "curriculum": {"curriculum": True, "epochs": 6, "validate_every": 1},
    "structure": {
        "problem": "digits-mlp", "batch_size": 8, "structure": "orth", "inputs": "m_tilde+g_row", "tasks": 2,
        "coordinates": 0.3, "epoch_length": 8, "unroll": 3,
    },
    "structure by pes": {
        "problem": "digits-mlp", "batch_size": 8, "structure": "orth", "estimator": "pes", "pairs": 2,
        "epoch_length": 8, "unroll": 3,
    },
}  # fmt: skip
every_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "structure")) for kind in KINDS]
)
# What the validations of the curriculum are made to say, by stage and epoch: a gain and two losses, from the
# restored weights a loss, a gain and a loss.
SCORES = {(0, 0): 10.0, (0, 1): 9.0, (0, 2): 11.0, (0, 3): 9.5}
SCORES |= {(1, 3): 8.0, (1, 4): 8.5, (1, 5): 7.0, (1, 6): 7.5, (2, 6): 6.0}


class CutError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def short_stages(monkeypatch):
    """Short epochs of a curriculum, and scores that take it from stage to stage."""
    monkeypatch.setattr(common.tables.curriculum, "LENGTHS", (8, 16, 24))
    judge = Validation.score

    def score(validation: Validation) -> float:
        found, state = judge(validation), validation.state
        assert np.isfinite(found)
        return found if state.stage is None else SCORES[state.stage.index, state.epoch]

    monkeypatch.setattr(Validation, "score", score)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """kind -> folder of an uncut run, made when first asked for, and its number of checkpoints."""
    made: dict[str, tuple[Path, int]] = {}

    def of(kind: str) -> tuple[Path, int]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind) / "run"
            train(dataclasses.replace(SETTINGS, **KINDS[kind], out=str(folder)))
            made[kind] = folder, max(int(p.stem[-8:]) for p in folder.glob("checkpoint/*.h5"))
        return made[kind]

    return of


@every_kind
def test_cut_after_any_checkpoint_and_resumed_it_is_the_same_run(kind, whole, tmp_path, monkeypatch):
    expected, count = whole(kind)
    save = standing.save_checkpoint
    assert count >= 3
    for number in sorted({1, count // 2, count - 1}):
        folder, left = tmp_path / str(number), [number]

        def cut(*args, left=left):
            save(*args)
            left[0] -= 1
            if left[0] == 0:
                raise CutError

        monkeypatch.setattr(standing, "save_checkpoint", cut)
        with pytest.raises(CutError):
            train(dataclasses.replace(SETTINGS, **KINDS[kind], out=str(folder)))
        monkeypatch.setattr(standing, "save_checkpoint", save)
        train(TrainConfig(resume=str(folder), quiet=True))
        assert_same_run(folder, expected)


@pytest.mark.parametrize("kind", ["mix", "imitation", "es", "pes"])
def test_stopped_by_a_signal_at_any_update_and_resumed_it_is_the_same_run(kind, whole, tmp_path, monkeypatch):
    expected, _ = whole(kind)
    descend = Learner.descend
    for number in (1, 4):
        folder, left = tmp_path / str(number), [number]

        def signalled(self, grads, rates, left=left):
            descend(self, grads, rates)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Learner, "descend", signalled)
        config = dataclasses.replace(SETTINGS, **KINDS[kind], checkpoint_seconds=1000.0, out=str(folder))
        code = train(config).exit_code
        assert code == 143 or (kind == "es" and number == 4)
        monkeypatch.setattr(Learner, "descend", descend)
        assert train(TrainConfig(resume=str(folder), quiet=True)).exit_code == 0
        assert_same_run(folder, expected)


@every_kind
def test_every_kind_trains_and_says_in_its_metrics_what_it_did(kind, whole):
    folder, _ = whole(kind)
    history = metrics(folder)
    assert all(np.isfinite(row["loss"]) and row["diverged"] == 0 for row in history)
    keys = set().union(*history)
    assert ("steps" in keys) == (kind in ("horizon", "curriculum"))
    assert ("averaged" in keys) == (kind in ("horizon", "es"))
    assert ("imitates" in keys) == (kind == "imitation")
    if kind == "imitation":
        assert 0 < sum("imitates" in row for row in history) < len(history)
    if kind == "curriculum":
        assert [row["steps"] for row in history] == [8, 8, 8, 16, 16, 16]
        assert [row["validation"] for row in history] == [9.0, 11.0, 9.5, 8.5, 7.0, 7.5]


def test_a_run_on_several_problems_has_a_short_name_and_its_recording_asks_for_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(SETTINGS, problem="quadratic,lasso,rastrigin", epochs=1)
    folder = train(config).folder
    assert folder == Path("runs/rp_s-quadratic+2-5")
    with pytest.raises(L2OError, match="was trained on quadratic,lasso,rastrigin; choose one"):
        record(RecordConfig(source=str(folder), quiet=True))
    record(RecordConfig(source=str(folder), problem="lasso", runs=3, steps=5, samples=300, quiet=True))
