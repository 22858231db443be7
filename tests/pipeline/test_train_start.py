"""What ``python -m torch_impl.train`` starts from: fine-tuning, variants of a row, older runs."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.tables.teachers import TEACHERS, initial_weights, variant
from interchange.files.weights import Teacher, load_weights, save_weights
from interchange.meta.config import TrainConfig, TuneConfig
from interchange.meta.state import LATER_FIELDS
from tests.helpers.commands import assert_same_run, call, flags, unfinished

pytest.importorskip("torch")

from interchange.meta.state import TrainerState
from torch_impl.meta.learner import Learner
from torch_impl.networks.teacher import TeacherNetwork
from torch_impl.train import train

TRAIN = "torch_impl.train"


SETTINGS = {
    "problem": "quadratic", "teacher": "rnnprop", "epochs": 4, "epoch_length": 12, "unroll": 4,
    "lr_decay": 0.3, "validate_every": 2, "validation_tasks": 1, "checkpoint_seconds": 0.0, "seed": 5,
}  # fmt: skip

SMALL = {"problem": "quadratic", "epoch_length": 10, "unroll": 5, "validation_tasks": 1, "quiet": True}


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A whole run."""
    folder = tmp_path_factory.mktemp("first") / "run"
    train(TrainConfig(**SETTINGS, out=str(folder), quiet=True))
    return folder


def test_init_starts_from_another_runs_teacher(tmp_path, first):
    """At a vanishing learning rate the result is the start."""
    tiny = SETTINGS | {"epochs": 1, "validate_every": 0, "lr": 1e-9, "seed": 6}
    for given in (first, first / "teacher.h5"):
        folder = tmp_path / given.name
        assert call(TRAIN, *flags(tiny), "--init", given, "--out", folder, "--quiet") == 0
        got = load_weights(folder).weights
        for name, array in load_weights(first).weights.items():
            np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-6)


def test_init_from_another_kind_of_teacher_is_refused(tmp_path, first, refused):
    row, run = TEACHERS["rnnprop"], tmp_path / "run"
    # The same name and shapes, and a name that no row has.
    for name, changed in (("other", {"eps": 1e-3}), ("mine", {"name": "../mine"})):
        other = dataclasses.replace(row, **changed)
        save_weights(tmp_path / f"{name}.h5", other, initial_weights(other, 0), "test")
    message = refused(TRAIN, *flags(SETTINGS), "--teacher", "rp_s", "--init", first, "--out", run)
    assert "expected its rnnprop teacher as it is, got flags for one with other name, lstm, pre" in message
    assert "leave out --teacher" in message
    settings = [*flags(SETTINGS), "--out", run]
    assert "other eps;" in refused(f"{TRAIN} --init {tmp_path}/other.h5", *settings)
    for changed, what in (
        ("--inputs mt+g", "inputs"),
        ("--scale 0.1", "scale"),
        ("--weights truncated", "weights"),
    ):
        assert f"other {what};" in refused(f"{TRAIN} --init {first} {changed} --out {run}")
    assert "got '../mine'; add its row" in refused(f"{TRAIN} --init {tmp_path}/mine.h5 --out {run}")
    assert not run.exists()


def test_inputs_scale_and_initial_weights_replace_the_rows(tmp_path):
    """After one epoch at a vanishing learning rate the weights are the initial ones."""
    folder = tmp_path / "run"
    tiny = SETTINGS | {"teacher": "rp_s", "epochs": 1, "lr": 1e-9, "validate_every": 0}
    more = {"inputs": "mt+gt+mom5+mom99", "scale": 0.1, "weights": "truncated"}
    train(TrainConfig(**tiny | more, out=str(folder), quiet=True))
    found = load_weights(folder)
    inputs = ("m_tilde", "g_tilde", "mom5", "mom99")
    assert found.row == dataclasses.replace(TEACHERS["rp_s"], inputs=inputs, scale=0.1)
    assert found.row == variant(TEACHERS["rp_s"], "+".join(inputs), 0.1)
    for name, array in initial_weights(found.row, 5, "truncated").items():
        np.testing.assert_allclose(found.weights[name], array, rtol=0, atol=1e-6)
    max(folder.glob("checkpoint/*.h5")).unlink()  # back within the epoch
    assert train(TrainConfig(resume=str(folder), quiet=True)).teacher == found.row


def test_init_brings_its_teacher_and_goes_on_from_another_problem(tmp_path, first):
    """Without --teacher, into the folder named after what it resolves to; a shipped teacher likewise."""
    out = tmp_path / "tuned"
    tuning = {"problem": "digits-conv", "epochs": 1, "epoch_length": 4, "unroll": 2, "batch_size": 8}
    assert call(TRAIN, *flags(tuning), "--init", first, "--out", out, "--quiet") == 0
    found, before = load_weights(out), load_weights(first).weights
    assert found.row == TEACHERS["rnnprop"]
    assert all(0 < np.abs(array - before[name]).max() < 0.1 for name, array in found.weights.items())
    config = json.loads((out / "config.json").read_text())
    assert (config["teacher"], config["init"]) == ("rnnprop", str(first))
    run = train(TrainConfig(**tuning, init="dm", lr=1e-9, out=str(tmp_path / "dm"), quiet=True))
    assert run.teacher == TEACHERS["dm"]
    np.testing.assert_allclose(run.weights["out/w"], Teacher.named("dm").weights["out/w"], atol=1e-6)


def test_the_teacher_not_given_is_resolved_in_folder_and_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, name in (("", "rp_s"), ("dm", "dm")):
        assert train(TrainConfig(init=given, epochs=1, **SMALL)).teacher == TEACHERS[name]
        assert json.loads(Path(f"runs/{name}-quadratic-0/config.json").read_text())["teacher"] == name


def test_fine_tuning_resumes_without_the_run_it_started_from(tmp_path):
    """Its row is not in the table, its folder is gone: from a checkpoint and from the start, bit for bit."""
    first, whole = str(tmp_path / "first"), tmp_path / "whole"
    train(TrainConfig(teacher="rp_s", inputs="mt+g", scale=0.02, epochs=1, out=first, **SMALL))
    settings = {k: v for k, v in SETTINGS.items() if k != "teacher"}
    train(TrainConfig(**settings, init=first, out=str(whole), quiet=True))
    assert load_weights(whole).row == load_weights(first).row == variant(TEACHERS["rp_s"], "mt+g", 0.02)
    shutil.rmtree(first)
    within, early = unfinished(whole, tmp_path / "within"), unfinished(whole, tmp_path / "early")
    max(within.glob("checkpoint/*.h5")).unlink()
    shutil.rmtree(early / "checkpoint")
    for folder in (within, early):
        assert call(f"{TRAIN} --resume {folder} --quiet") == 0
        assert_same_run(folder, whole)
    train(TrainConfig(**SETTINGS | {"epochs": 1}, out=str(early), overwrite=True, quiet=True))
    assert not (early / "init.h5").exists()


def test_a_run_older_than_some_settings_resumes(tmp_path, first):
    """Its configuration lacks them, and its checkpoints' hash was taken without them."""
    folder = unfinished(first, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    old = {key: value for key, value in config.items() if key not in LATER_FIELDS}
    assert len(config) - len(old) >= 3
    (folder / "config.json").write_text(json.dumps(old))
    max(folder.glob("checkpoint/*.h5")).unlink()
    assert call(f"{TRAIN} --resume {folder} --quiet") == 0
    assert_same_run(folder, first)


# Of version 0.1.0, whose runs must resume.
OLD_TRAIN, OLD_TUNE = TrainConfig(teacher="rp_s", seed=3, lr=0.01), TuneConfig(rule="r.json", seed=3)
OLD_HASHES = {
    OLD_TRAIN: "a0d4372ead64bb092761612d66bd42aa980b9d42fb2d78cd0e643b4652987786",
    OLD_TUNE: "b33c78a5278a0e345b928043078999d5ba5295fc5a09d71d2ffc5ee51a7e0f23",
}


@pytest.mark.parametrize("config", OLD_HASHES, ids=lambda config: type(config).__name__)
def test_settings_not_used_leave_the_hash_of_a_configuration(config):
    network = TeacherNetwork(TEACHERS["rp_s"], initial_weights(TEACHERS["rp_s"], 0))
    assert TrainerState(Learner(network, config)).config_hash == OLD_HASHES[config]
    used = {"scale": 0.1, "inputs": "mt+gt", "weights": "truncated", "loss": "last"}
    if not hasattr(config, "scale"):  # of a rule, by evolution strategies, which have no --loss
        used = {"sigma": 0.2}
    for name, value in {**used, "lr": 0.5}.items():
        changed = dataclasses.replace(config, **{name: value})
        assert TrainerState(Learner(network, changed)).config_hash != OLD_HASHES[config], name


def test_an_older_run_without_a_copy_of_its_init_resumes_from_its_checkpoint(tmp_path):
    begun = train(TrainConfig(epochs=1, out=str(tmp_path / "begun"), **SMALL))
    tuned = train(TrainConfig(epochs=1, init=str(begun.folder), out=str(tmp_path / "tuned"), **SMALL))
    shutil.rmtree(begun.folder)
    (tuned.folder / "init.h5").unlink()
    again = train(TrainConfig(resume=str(tuned.folder), quiet=True))
    assert all(np.array_equal(again.weights[name], array) for name, array in tuned.weights.items())
