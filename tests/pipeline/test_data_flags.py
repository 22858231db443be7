"""``--dataset``, ``--data-dir``, ``--random-scaling``, ``--convex`` and ``--start`` on the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.data import datasets
from interchange.files.results import load_evaluation
from interchange.files.weights import load_weights
from tests.helpers.commands import call, metrics

pytest.importorskip("torch")

TRAIN = "torch_impl.train --epochs 1 --epoch-length 4 --unroll 2 --validate-every 0 --quiet"
EVALUATE = "torch_impl.evaluate --quiet"


def own_npz(folder: Path) -> Path:
    """300 images of 5x4 in three classes, told by one bright pixel."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 300)
    x = generator.integers(0, 60, (300, 5, 4), dtype=np.uint8)
    x[np.arange(300), y, y] = 255
    np.savez(folder / "mine.npz", x=x, y=y)
    return folder / "mine.npz"


@pytest.mark.parametrize("dataset", ["synthetic", "digits", "mine.npz"])
def test_evaluate_runs_on_other_data(dataset, tmp_path):
    given, out = own_npz(tmp_path) if dataset == "mine.npz" else dataset, tmp_path / "e"
    line = f"{EVALUATE} --optimizers adam:lr=0.01 --steps 30 --seeds 2 --batch-size 32"
    assert call(f"{line} --problem mnist-mlp --dataset {given} --out {out}") == 0
    rows = load_evaluation(out / "evaluation.h5").rows
    assert len(rows) == 2
    for row in rows:
        assert row.losses[-5:].mean() < 0.8 * row.losses[:5].mean()
        assert row.accuracy > (0.6 if dataset != "digits" else 0.3)


def test_train_runs_on_a_users_own_data_and_resumes_there(tmp_path):
    given, out = own_npz(tmp_path), tmp_path / "run"
    assert call(f"{TRAIN} --problem digits-mlp --dataset {given} --out {out}") == 0
    assert json.loads((out / "config.json").read_text())["dataset"] == str(given)
    expected = load_weights(out).weights
    shutil.rmtree(out / "checkpoint")
    assert call(f"torch_impl.train --resume {out} --quiet") == 0
    assert all(np.array_equal(load_weights(out).weights[name], w) for name, w in expected.items())


@pytest.mark.parametrize(
    "problem", ["mnist-conv", "fashion-sigmoid", "cifar-small-conv", "cifar-conv --dataset cifar100"]
)
def test_problems_of_every_data_set_run_on_its_files(problem, tmp_path):
    """CIFAR's class halves among them; the folder is named."""
    generator = np.random.default_rng(0)
    for name, row in datasets.DATASETS.items():
        y = np.arange(600, dtype=np.uint8) % row.num_classes
        shape = row.image_shape if row.image_shape[2] > 1 else row.image_shape[:2]
        x = generator.integers(0, 256, (600, *shape), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", x_train=x[:500], y_train=y[:500], x_test=x[500:], y_test=y[500:])
    line = f"torch_impl.optimize adam:lr=0.001 --problem {problem} --steps 3 --batch-size 8 --quiet"
    assert call(f"{line} --data-dir {tmp_path} --out {tmp_path / 'out'}") == 0
    (row,) = metrics(tmp_path / "out")
    assert row["steps"] == 3 and np.isfinite(row["loss"]) and 0 <= row["accuracy"] <= 1


def test_a_command_starts_from_what_optimize_left(tmp_path):
    """Transfer: the first loss is near the last of the run, far below that of a fresh start."""
    data = "--problem mnist-conv --dataset synthetic --batch-size 32 --quiet"
    first, evaluated, run = (tmp_path / name for name in ("first", "e", "t"))
    assert call(f"torch_impl.optimize adam:lr=0.01 {data} --steps 40 --out {first}") == 0
    few = "--optimizers sgd:lr=0.0001 --steps 2 --seeds 1"
    assert call(f"{EVALUATE} {few} {data} --start {first} --out {evaluated}") == 0
    (row,) = load_evaluation(evaluated / "evaluation.h5").rows
    assert row.losses[0] < 0.5 and row.accuracy > 0.8
    assert call(f"{TRAIN} {data} --start {first} --out {run}") == 0
    assert metrics(run)[0]["loss"] < 1.0
