"""``--dataset``, ``--data-dir``, ``--random-scaling``, ``--convex`` and ``--start`` on the command line."""

import importlib
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.data import datasets
from interchange.files.results import load_evaluation
from interchange.files.weights import load_weights

pytest.importorskip("torch")

TINY = ["--epochs", "1", "--epoch-length", "4", "--unroll", "2", "--validate-every", "0", "--quiet"]
EVALUATE = ["--optimizers", "adam:lr=0.01", "--steps", "30", "--seeds", "2", "--batch-size", "32", "--quiet"]


@pytest.fixture(autouse=True)
def restored_logging():
    """The commands hand warnings to logging for the rest of their process, which here is the tests'."""
    yield
    logging.captureWarnings(False)


def run(command: str, *arguments: str) -> int:
    return importlib.import_module(f"torch_impl.{command}").main([*map(str, arguments)])


def refused(capsys, command: str, *arguments: str) -> str:
    """The one line a command ends with; its exit code is 2."""
    code = run(command, *arguments)
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(f"python -m torch_impl.{command}: error: ")
    return err


def own_npz(folder: Path) -> Path:
    """300 images of 5x4 whose class is written into one of three pixels."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 300)
    x = generator.integers(0, 60, (300, 5, 4), dtype=np.uint8)
    x[np.arange(300), y, y] = 255
    np.savez(folder / "mine.npz", x=x, y=y)
    return folder / "mine.npz"


def evaluation(folder: Path) -> list:
    return load_evaluation(folder / "evaluation.h5").rows


@pytest.mark.parametrize("dataset", ["synthetic", "digits", "mine.npz"])
def test_evaluate_runs_on_other_data(dataset, tmp_path):
    given = own_npz(tmp_path) if dataset == "mine.npz" else dataset
    arguments = ["--problem", "mnist-mlp", "--dataset", given, *EVALUATE, "--out", tmp_path / "e"]
    assert run("evaluate", *arguments) == 0
    rows = evaluation(tmp_path / "e")
    assert len(rows) == 2
    for row in rows:
        assert row.losses[-5:].mean() < 0.8 * row.losses[:5].mean()
        assert row.accuracy > (0.6 if dataset != "digits" else 0.3)


def test_train_runs_on_a_users_own_data_and_resumes_there(tmp_path):
    given, out = own_npz(tmp_path), tmp_path / "run"
    arguments = ["--problem", "digits-mlp", "--dataset", given, *TINY, "--out", out]
    assert run("train", *arguments) == 0
    assert json.loads((out / "config.json").read_text())["dataset"] == str(given)
    expected = load_weights(out).weights
    shutil.rmtree(out / "checkpoint")
    assert run("train", "--resume", out, "--quiet") == 0
    assert all(np.array_equal(load_weights(out).weights[name], w) for name, w in expected.items())


def test_problems_of_every_data_set_run_on_its_files(tmp_path):
    """CIFAR's class halves among them; the folder is named or in the environment."""
    generator = np.random.default_rng(0)
    for name, row in datasets.DATASETS.items():
        y = np.arange(600, dtype=np.uint8) % row.num_classes
        shape = row.image_shape if row.image_shape[2] > 1 else row.image_shape[:2]
        x = generator.integers(0, 256, (600, *shape), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", x_train=x[:500], y_train=y[:500], x_test=x[500:], y_test=y[500:])
    few = ["--steps", "3", "--batch-size", "8", "--data-dir", tmp_path, "--quiet"]
    for problem, more in (
        ("mnist-conv", []),
        ("fashion-sigmoid", []),
        ("cifar-small-conv", []),
        ("cifar-conv", ["--dataset", "cifar100"]),
    ):
        arguments = ["adam:lr=0.001", "--problem", problem, *more, *few, "--out", tmp_path / problem]
        assert run("optimize", *arguments) == 0
        (row,) = [
            json.loads(line) for line in (tmp_path / problem / "metrics.jsonl").read_text().splitlines()
        ]
        assert row["steps"] == 3 and np.isfinite(row["loss"]) and 0 <= row["accuracy"] <= 1


@pytest.mark.parametrize("command", ["train", "evaluate", "optimize", "record"])
def test_wrong_data_are_refused_with_one_line(command, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("L2O_DATA", raising=False)
    first = ["adam:lr=0.01"] if command in ("optimize", "record") else []
    out = ["--out", tmp_path / "out"]

    def message(problem: str, *arguments: object) -> str:
        return refused(capsys, command, *first, "--problem", problem, *arguments, *out)

    assert "--dataset digits: quadratic is a function" in message("quadratic", "--dataset", "digits")
    assert "unknown data set 'digit' (did you mean 'digits'?)" in message("digits-mlp", "--dataset", "digit")
    assert "expected an npz" in message("digits-mlp", "--dataset", tmp_path / "none.npz")
    assert "data set 'cifar10' not found (looked in nowhere" in message("lenet")
    assert f"looked in {tmp_path}" in message("lenet", "--data-dir", tmp_path)
    assert "take larger images (--dataset)" in message("lenet", "--dataset", "digits")
    assert "--start: " in message("digits-mlp", "--start", tmp_path / "none")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.json"))


def test_train_with_random_scaling_and_the_convex_term_is_another_training(tmp_path, capsys):
    found = []
    for k, more in enumerate(([], ["--random-scaling", "3", "--convex"])):
        out = tmp_path / str(k)
        assert run("train", "--problem", "digits-mlp", *TINY, *more, "--out", out) == 0
        found.append(load_weights(out).weights["out/w"])
        assert np.isfinite(found[-1]).all()
    assert not np.array_equal(*found)
    config = json.loads((tmp_path / "1" / "config.json").read_text())
    assert (config["random_scaling"], config["convex"]) == (3.0, True)
    assert "at least 0" in refused(capsys, "train", "--random-scaling", "-1")


def test_a_command_starts_from_what_optimize_left(tmp_path):
    """Transfer: the first loss is near the last of the run, far below that of a fresh start."""
    data = ["--problem", "mnist-conv", "--dataset", "synthetic", "--batch-size", "32", "--quiet"]
    assert run("optimize", "adam:lr=0.01", *data, "--steps", "40", "--out", tmp_path / "first") == 0
    start = ["--start", tmp_path / "first"]
    few = ["--optimizers", "sgd:lr=0.0001", "--steps", "2", "--seeds", "1"]
    assert run("evaluate", *few, *data, *start, "--out", tmp_path / "e") == 0
    (row,) = evaluation(tmp_path / "e")
    assert row.losses[0] < 0.5 and row.accuracy > 0.8
    assert run("train", *data, *TINY, *start, "--out", tmp_path / "t") == 0
    assert json.loads((tmp_path / "t" / "metrics.jsonl").read_text().splitlines()[0])["loss"] < 1.0
