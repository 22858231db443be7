"""What ``python -m torch_impl.train`` starts from: fine-tuning, variants of a row, older runs."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.tables.teachers import TEACHERS, initial_weights, variant
from interchange.files.weights import Teacher, load_weights, save_weights
from interchange.meta.config import TrainConfig, TuneConfig
from interchange.meta.state import LATER_FIELDS

pytest.importorskip("torch")

from interchange.meta.state import TrainerState
from torch_impl.meta.learner import Learner
from torch_impl.networks.teacher import TeacherNetwork
from torch_impl.train import main, train

PROG = "python -m torch_impl.train"
SETTINGS = {
    "problem": "quadratic",
    "teacher": "rnnprop",
    "epochs": 4,
    "epoch_length": 12,
    "unroll": 4,
    "lr_decay": 0.3,
    "validate_every": 2,
    "validation_tasks": 1,
    "checkpoint_seconds": 0.0,
    "seed": 5,
}
SMALL = {"problem": "quadratic", "epoch_length": 10, "unroll": 5, "validation_tasks": 1, "quiet": True}


def flags(fields: dict) -> list[str]:
    return [part for key, value in fields.items() for part in ("--" + key.replace("_", "-"), str(value))]


def rows(folder: Path) -> list[dict]:
    """The metrics without the times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    (folder / "teacher.h5").unlink()
    return folder


def assert_same_run(folder: Path, expected: Path) -> None:
    """The same bits in every weight, and the same metrics."""
    got, want = load_weights(folder), load_weights(expected)
    assert got.row == want.row and got.weights.keys() == want.weights.keys()
    assert all(array.tobytes() == got.weights[name].tobytes() for name, array in want.weights.items())
    assert rows(folder) == rows(expected)


@pytest.fixture(autouse=True)
def restored_logging():
    """The command hands warnings to logging for the rest of its process, which here is the tests'."""
    yield
    logging.captureWarnings(False)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A whole run."""
    folder = tmp_path_factory.mktemp("first") / "run"
    train(TrainConfig(**SETTINGS, out=str(folder), quiet=True))
    return folder


def refused(capsys, *arguments: str) -> str:
    """Run the command in this process; it must end with code 2 and one line on stderr, which is returned."""
    code = main(arguments)
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.startswith(f"{PROG}: error: ") and err.endswith("\n") and err.count("\n") == 1
    return err


def test_init_starts_from_another_runs_teacher(tmp_path, first):
    """At a vanishing learning rate the result is the start."""
    tiny = SETTINGS | {"epochs": 1, "validate_every": 0, "lr": 1e-9, "seed": 6}
    for given in (first, first / "teacher.h5"):
        folder = tmp_path / given.name
        assert main([*flags(tiny), "--init", str(given), "--out", str(folder), "--quiet"]) == 0
        got = load_weights(folder).weights
        for name, array in load_weights(first).weights.items():
            np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-6)


def test_init_from_another_kind_of_teacher_is_refused(tmp_path, first, capsys):
    out = ["--out", str(tmp_path / "run")]
    message = refused(capsys, *flags(SETTINGS), "--teacher", "rp_s", "--init", str(first), *out)
    assert "expected its rnnprop teacher as it is, got flags for one with other name, lstm, pre" in message
    assert "leave out --teacher" in message
    row = dataclasses.replace(TEACHERS["rnnprop"], eps=1e-3)  # the same name and shapes
    save_weights(tmp_path / "other.h5", row, initial_weights(row, 0), "test")
    assert "other eps;" in refused(capsys, *flags(SETTINGS), "--init", str(tmp_path / "other.h5"), *out)
    for changed, what in ((["--inputs", "mt+g"], "inputs"), (["--scale", "0.1"], "scale")):
        assert f"other {what};" in refused(capsys, "--init", str(first), *changed, *out)
    assert "other weights;" in refused(capsys, "--init", str(first), "--weights", "truncated", *out)
    row = dataclasses.replace(row, name="../mine")
    save_weights(tmp_path / "mine.h5", row, initial_weights(row, 0), "test")
    assert "got '../mine'; add its row" in refused(capsys, "--init", str(tmp_path / "mine.h5"), *out)
    assert not (tmp_path / "run").exists()


def test_inputs_scale_and_initial_weights_replace_the_rows(tmp_path, capsys):
    """After one epoch at a vanishing learning rate the weights are the initial ones."""
    folder, tiny = tmp_path / "run", ["--epochs", "1", "--lr", "1e-9", "--validate-every", "0"]
    more = ["--inputs", "mt+gt+mom5+mom99", "--scale", "0.1", "--weights", "truncated"]
    assert main([*flags(SETTINGS), "--teacher", "rp_s", *tiny, *more, "--out", str(folder)]) == 0
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
    assert main([*flags(tuning), "--init", str(first), "--out", str(out), "--quiet"]) == 0
    found = load_weights(out)
    assert found.row == TEACHERS["rnnprop"]
    before = load_weights(first).weights
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
    within, early = copy_of(whole, tmp_path / "within"), copy_of(whole, tmp_path / "early")
    max(within.glob("checkpoint/*.h5")).unlink()
    shutil.rmtree(early / "checkpoint")
    for folder in (within, early):
        assert main(["--resume", str(folder), "--quiet"]) == 0
        assert_same_run(folder, whole)
    tiny = SETTINGS | {"epochs": 1, "validate_every": 0}
    assert main([*flags(tiny), "--out", str(early), "--overwrite", "--quiet"]) == 0
    assert not (early / "init.h5").exists()


def test_a_run_older_than_some_settings_resumes(tmp_path, first):
    """Its configuration lacks them, and its checkpoints' hash was taken without them."""
    folder = copy_of(first, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    old = {key: value for key, value in config.items() if key not in LATER_FIELDS}
    assert len(config) - len(old) >= 3
    (folder / "config.json").write_text(json.dumps(old))
    max(folder.glob("checkpoint/*.h5")).unlink()
    assert main(["--resume", str(folder), "--quiet"]) == 0
    assert_same_run(folder, first)


# Of version 0.1.0, whose runs must resume.
TRAIN, TUNE = TrainConfig(teacher="rp_s", seed=3, lr=0.01), TuneConfig(rule="r.json", seed=3)
OLD_HASHES = {
    TRAIN: "a0d4372ead64bb092761612d66bd42aa980b9d42fb2d78cd0e643b4652987786",
    TUNE: "b33c78a5278a0e345b928043078999d5ba5295fc5a09d71d2ffc5ee51a7e0f23",
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
