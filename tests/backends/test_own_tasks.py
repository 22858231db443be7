"""A caller's own models as optimizees of ``optimize``, ``evaluate``, ``select`` and ``record``."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import L2OError
from interchange.commands.optimize import OptimizeConfig
from interchange.commands.record import RecordConfig
from interchange.commands.select import SelectConfig
from interchange.evaluation.config import EvaluateConfig
from interchange.files.checkpoint import load_checkpoint
from interchange.files.trajectories import load_trajectories
from interchange.rule.front import write_front
from interchange.rule.rule import Rule
from tests.helpers.commands import metrics

LR, STEPS = 0.2, 7


def numbers(number: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Weights of two layers, inputs [batch, example, 4] and labels of three classes."""
    draw = np.random.default_rng(number)
    shapes = ((4, 6), (6,), (6, 3), (3,))
    x = draw.normal(size=(5, 8, 4))
    return (
        [draw.normal(size=shape) for shape in shapes],
        x,
        (x[..., 0] > 0).astype(np.int64) + (x[..., 1] > 0),
    )


def torch_task(number: int) -> Any:
    torch = pytest.importorskip("torch")
    from torch_impl import ModuleTask

    weights, x, y = numbers(number)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    with torch.no_grad():
        for p, w in zip(net.parameters(), weights, strict=True):
            p.copy_(torch.from_numpy(w.T))
    batches = list(zip(torch.from_numpy(x), torch.from_numpy(y), strict=True))
    return ModuleTask(net, torch.nn.functional.cross_entropy, batches[:4], test=batches[4:])


def tf_task(number: int) -> Any:
    pytest.importorskip("tensorflow")
    import keras

    from tf_impl import ModuleTask

    weights, x, y = numbers(number)
    layers = [keras.layers.Dense(6, "tanh", dtype="float64"), keras.layers.Dense(3, dtype="float64")]
    net = keras.Sequential([keras.Input((4,), dtype="float64"), *layers])
    net.set_weights(weights)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64")
    batches = list(zip(x, y, strict=True))
    return ModuleTask(net, loss, batches[:4], test=batches[4:])


MAKERS = {"torch": torch_task, "tf": tf_task}


@pytest.fixture(params=list(MAKERS))
def package(request) -> str:
    pytest.importorskip({"torch": "torch", "tf": "tensorflow"}[request.param])
    return request.param


def tasks_of(package: str, seen: list | None = None) -> Callable[[str, int], Any]:
    def tasks(stream: str, number: int) -> Any:
        if seen is not None:
            seen.append((stream, number))
        return MAKERS[package](number)

    return tasks


def command(package: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"{package}_impl"), name)


def plainly(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses of gradient descent, and test loss and accuracy after every step, by NumPy alone."""
    (w1, b1, w2, b2), x, y = numbers(number)
    losses, scores = [], []

    def forward(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
        h = np.tanh(x @ w1 + b1)
        z = h @ w2 + b2
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return h, p, -np.log(p[np.arange(len(y)), y]).mean()

    for step in range(STEPS):
        inputs, labels = x[step % 4], y[step % 4]
        h, p, loss = forward(inputs, labels)
        losses.append(loss)
        d = (p - np.eye(3)[labels]) / len(labels)
        e = (d @ w2.T) * (1.0 - h * h)
        w2, b2 = w2 - LR * (h.T @ d), b2 - LR * d.sum(0)
        w1, b1 = w1 - LR * (inputs.T @ e), b1 - LR * e.sum(0)
        _, p, loss = forward(x[4], y[4])
        scores.append((step + 1, loss, (p.argmax(1) == y[4]).mean()))
    return np.array(losses), np.array(scores)


def test_optimize_trains_them_and_looks_at_their_test_data(package, tmp_path):
    config = OptimizeConfig(optimizer=f"sgd:lr={LR}", steps=STEPS, runs=2, test_every=1, quiet=True)
    config = OptimizeConfig(**vars(config) | {"out": str(tmp_path / "o")})
    result, seen = command(package, "optimize")(config, tasks_of(package)), []
    for number, run in enumerate(result.runs):
        losses, scores = plainly(number)
        np.testing.assert_allclose(run.losses, losses, rtol=1e-9)
        np.testing.assert_allclose(run.curve, scores, rtol=1e-9)
    arrays, meta = load_checkpoint(result.folder)
    assert meta["problem"] == "" and {a.size for a in arrays.values()} == {24, 6, 18, 3}
    file = result.folder / "metrics.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    again = command(package, "optimize")(config, tasks_of(package, seen))
    assert [row["loss"] for row in metrics(result.folder)] == [run.loss for run in result.runs]
    assert again.runs[1].losses.tolist() == result.runs[1].losses.tolist() and ("optimize", 1) in seen


def test_evaluate_tunes_and_tests_on_them_and_keeps_no_run(package, tmp_path):
    settings = {"optimizers": ("sgd", "adam:lr=0.05"), "steps": (4,), "seeds": 2, "validation_seeds": 1}
    settings |= {"trials": 3, "test_every": 2, "report": False, "quiet": True, "out": str(tmp_path / "e")}
    seen: list = []
    rows = command(package, "evaluate")(EvaluateConfig(**settings), tasks_of(package, seen))
    assert {(row.problem, row.horizon) for row in rows} == {("own", 4)} and rows[0].trials >= 3
    assert {stream for stream, _ in seen} == {"evaluate_validation", "evaluate_test"}
    for row in rows:
        assert row.outcome == "ok" and row.curve[:, 0].tolist() == [2, 4] and np.isfinite(row.accuracy)
        assert row.curve[-1, 1:].tolist() == [row.test_loss, row.accuracy] and row.ms_per_step > 0
    assert not (tmp_path / "e" / "cells").exists() and (tmp_path / "e" / "evaluation.h5").exists()
    (start,) = {round(row.losses[0], 9) for row in rows if row.seed == 1}
    assert start == pytest.approx(plainly(1)[0][0], rel=1e-6)


def test_select_rolls_rules_out_on_them(package, tmp_path):
    rules = [Rule.from_text("c0 * g", {"c0": c}, name=f"r{k}") for k, c in enumerate((1e-4, -0.2, -1e-4))]
    write_front(tmp_path, rules)
    config = SelectConfig(front=str(tmp_path), steps=STEPS, tasks=2, more=0, quiet=True)
    seen: list = []
    best = command(package, "select")(config, tasks_of(package, seen))[0]
    assert best.constants["c0"] == -0.2 and set(seen) >= {("validation", 0), ("validation", 1)}
    want = np.exp(np.mean([np.log(plainly(number)[0].mean()) for number in range(2)]))
    assert best.provenance["loss"]["problem"] == "" and abs(best.provenance["loss"]["valid"] / want - 1) < 0.2


@pytest.mark.parametrize("source", ["adam:lr=0.01", "rp_s"])
def test_record_records_them(source, package, tmp_path):
    config = RecordConfig(source=source, steps=5, runs=3, samples=300, out=str(tmp_path / "t.h5"), quiet=True)
    config = RecordConfig(**vars(config) | {"dtype": "float64"})
    found = load_trajectories(command(package, "record")(config, tasks_of(package)))
    for number, run in enumerate(found.runs.values()):
        assert (run.problem, run.problem_json, run.loss.shape) == ("user", "{}", (5,))
        assert run.loss[0] == pytest.approx(plainly(number)[0][0], rel=1e-9)


def test_test_data_are_seen_without_dropout_and_leave_the_model_as_it_is(package):
    if package == "torch":
        import torch

        from torch_impl import ModuleTask

        net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(3))
        x, y = torch.ones(8, 4) * torch.arange(8)[:, None], torch.arange(8) % 3
        task = ModuleTask(net, torch.nn.functional.cross_entropy, [(x, y)], test=[(x, y), (x, y)])
    else:
        import keras
        import tensorflow as tf

        from tf_impl import ModuleTask

        layers = [keras.layers.Dense(3), keras.layers.Dropout(0.5), keras.layers.BatchNormalization()]
        net = keras.Sequential([keras.Input((4,)), *layers])
        x, y = np.ones((8, 4), np.float32) * np.arange(8, dtype=np.float32)[:, None], np.arange(8) % 3
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        task = ModuleTask(net, loss, [(x, y)], test=[(tf.constant(x), y), (x, y)])
    before = {name: np.array(value) for name, value in task.buffers.items()}
    first, again = (task.test_scores(task.initial()) for _ in range(2))
    assert first == again and 0.0 <= first[1] <= 1.0 and first[0] > 0.0
    for name, value in task.buffers.items():
        np.testing.assert_array_equal(np.array(value), before[name])
    assert package == "tf" or net.training


def test_what_is_of_the_tables_data_is_refused(package, tmp_path):
    out = {"out": str(tmp_path / "o"), "quiet": True}
    cases: dict[str, Callable[[], Any]] = {
        "passes: tasks of your own": lambda: OptimizeConfig(optimizer="sgd", passes=2, **out),
        "label_smoothing: tasks of": lambda: OptimizeConfig(optimizer="sgd", label_smoothing=0.1, **out),
        "bfloat16: tasks of your own": lambda: OptimizeConfig(optimizer="sgd", bfloat16=True, **out),
        "jobs, cluster: tasks of your own": lambda: EvaluateConfig(optimizers=("sgd",), jobs=2, **out),
        "jobs: expected 1 with tasks of": lambda: SelectConfig(front=str(tmp_path), jobs=2, **out),
        "without names": lambda: OptimizeConfig(optimizer="sgd", **out),
    }
    write_front(tmp_path, [Rule.from_text("-g", name="r")])
    for message, make in cases.items():
        config = make()
        name = type(config).__name__.removesuffix("Config").lower()
        tasks = (lambda stream, number: 3) if message == "without names" else tasks_of(package)
        with pytest.raises(L2OError, match=message):
            command(package, name)(config, tasks)
    assert not Path(tmp_path / "o").exists()
