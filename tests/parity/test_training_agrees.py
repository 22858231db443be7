"""Meta-training in both backends from one seed gives one teacher; each goes on with the other's files."""

import dataclasses
import os
import signal

import numpy as np
import pytest

from common.tables.teachers import TEACHERS, initial_weights
from interchange import load_trajectories, load_weights
from interchange.commands.record import RecordConfig
from interchange.meta.config import TrainConfig
from interchange.meta.trainer import make_trainer
from tests.parity.backends import BACKENDS, assert_same_recordings, networks, tf_impl, torch, torch_impl

PROBLEMS = {"quadratic": "", "digits-mlp": "", "mnist-mlp": "synthetic"}


def meta_train(package, network, config: TrainConfig) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Losses [epoch, step], and the weights after the first epoch."""
    learner = package.meta.learner.Learner(network, config)
    trainer, unroll = make_trainer(learner), learner.first_order
    losses, after = [], []

    def watched(task, position, steps, coordinates):
        if position.step == 0:
            after.append(learner.weights())
        end, seen, grads = unroll(task, position, steps, coordinates)
        losses.extend(seen)
        return end, seen, grads

    learner.first_order = watched
    trainer.run(label="", quiet=True)
    return np.reshape(losses, (config.epochs, -1)), after[1]


def agree(config: TrainConfig) -> None:
    both = networks(config.teacher, config.seed)
    (losses, weights), (other, other_weights) = (
        meta_train(package, network, config) for (package, _), network in zip(BACKENDS, both, strict=True)
    )
    if config.problem == "quadratic":
        assert np.abs(other - losses).max() <= 1e-8 * losses[0, 0]
    else:
        np.testing.assert_allclose(other[0, :40], losses[0, :40], rtol=0, atol=1e-6)
    assert other_weights.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_allclose(other_weights[name], value, rtol=0, atol=1e-8, err_msg=name)


def settings(teacher: str, problem: str, **fields) -> TrainConfig:
    given = {"epochs": 2, "epoch_length": 40, "validate_every": 0, "batch_size": 32, "seed": 5}
    given |= {"teacher": teacher, "problem": problem, "dataset": PROBLEMS[problem], "dtype": "float64"}
    return TrainConfig(**given | fields)


# The larger problems take most of the time: all teachers on them in the slow test.
QUICK = [(t, "quadratic") for t in TEACHERS] + [(t, "digits-mlp") for t in ("rnnprop_lv", "rp_s")]


@pytest.mark.parametrize(("teacher", "problem"), QUICK)
def test_training_is_the_same_number_for_number(teacher, problem):
    agree(settings(teacher, problem))


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_training_is_the_same_over_20_epochs(teacher, problem):
    agree(settings(teacher, problem, epochs=20))


def test_scaled_tasks_with_a_convex_term_train_alike():
    agree(settings("rp_s", "digits-mlp", random_scaling=2.0, convex=True, coordinates=0.3, loss="last"))


MORE = {
    "mix": {"problem": "quadratic,digits-mlp", "tasks": 2},
    "imitation": {"imitation": 1.0, "coordinates": 0.5},
    "imitation of rnnprop": {"imitation": 1.0, "teacher": "rnnprop", "seed": 8},
    "second order": {"estimator": "second", "unroll": 10},
    "es": {"estimator": "es", "pairs": 2},
    "pes": {"estimator": "pes", "pairs": 2, "problem": "quadratic,lasso"},
    "structure": {"teacher": "rp_s_m", "tasks": 2, "coordinates": 0.5, "epoch_length": 12, "unroll": 5},
    "structure, second order": {"teacher": "rp_s_m", "estimator": "second", "epoch_length": 12, "unroll": 5},
    "structure, imitation": {"teacher": "rp_s_m", "imitation": 1.0, "epoch_length": 12, "unroll": 5},
    "structure, es": {"teacher": "rp_s_m", "estimator": "es", "pairs": 2, "epoch_length": 12},
    "structure, pes": {"teacher": "rp_s_m", "estimator": "pes", "pairs": 2, "epoch_length": 12, "unroll": 5},
    "row means": {"teacher": "rnnprop_f", "tasks": 2, "coordinates": 0.5, "epoch_length": 12, "unroll": 5},
}
SLOW = ("imitation of rnnprop", "pes", "row means", *(name for name in MORE if "structure, " in name))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, id=name, marks=[pytest.mark.slow] * (name in SLOW))
        for name, fields in MORE.items()
    ],
)
def test_every_kind_of_epoch_trains_alike(fields):
    """Losses, validation and weights, also averaged ones, after two epochs."""
    given = {"epochs": 2, "epoch_length": 40, "batch_size": 32, "seed": 5, "dtype": "float64"}
    given |= {"teacher": "rp_s", "problem": "digits-mlp", "validate_every": 1, "validation_tasks": 1}
    config = TrainConfig(**given | {"average": 1.0} | fields)
    weights = initial_weights(TEACHERS[config.teacher], config.seed)
    found = []
    for (package, _), network in zip(BACKENDS, networks(config.teacher, config.seed), strict=True):
        found.append(make_trainer(package.meta.learner.Learner(network, config)))
        found[-1].run(label="", quiet=True)
    ours, theirs = (trainer.learner.weights() for trainer in found)
    one, other = (trainer.state for trainer in found)
    assert one.updates == other.updates > 0 and one.summed.keys() == weights.keys()
    for row, its in zip(one.history, other.history, strict=True):
        assert its.keys() == row.keys() and its.get("imitates") == row.get("imitates")
        for key in row.keys() - {"seconds", "imitates"}:
            assert its[key] == pytest.approx(row[key], rel=1e-6), key
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=0, atol=1e-8, err_msg=name)
        np.testing.assert_allclose(other.summed[name], one.summed[name], rtol=0, atol=1e-8, err_msg=name)
    assert any(np.abs(value - weights[name]).max() > 1e-4 for name, value in ours.items())


@pytest.mark.parametrize(("first", "second"), [(torch_impl, tf_impl), (tf_impl, torch_impl)])
def test_one_backend_goes_on_with_the_others_checkpoint(first, second, tmp_path, monkeypatch):
    """Cut in the middle of the third epoch by a signal, resumed in the other framework."""
    config = settings("rp_s", "quadratic", epochs=4, validate_every=2, validation_tasks=1, quiet=True)
    whole = first.train(dataclasses.replace(config, out=str(tmp_path / "whole")))
    unroll, calls = first.meta.learner.Learner.first_order, []

    def cut(self, *args):
        calls.append(0)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return unroll(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(first.meta.learner.Learner, "first_order", cut)
        run = first.train(dataclasses.replace(config, out=str(tmp_path / "cut")))
    assert run.exit_code == 143 and len(run.history) == 2
    resumed = second.train(TrainConfig(resume=str(tmp_path / "cut"), quiet=True))
    assert [row["epoch"] for row in resumed.history] == [0, 1, 2, 3]
    for got, expected in zip(resumed.history, whole.history, strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], abs=1e-7)
    for name, value in whole.weights.items():
        np.testing.assert_allclose(resumed.weights[name], value, rtol=0, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("source", ["teacher:rp_s", "adam:lr=0.01", "lion"])
@pytest.mark.parametrize("problem", ["quadratic", "digits-mlp"])
def test_recordings_are_the_same_file_but_for_who_made_it(source, problem, tmp_path):
    config = RecordConfig(
        source=source, problem=problem, runs=3, steps=25, samples=3000, dtype="float64", quiet=True
    )
    files = [tmp_path / f"{package.__name__}.h5" for package, _ in BACKENDS]
    assert_same_recordings(
        *(
            load_trajectories(package.record(dataclasses.replace(config, out=str(file))))
            for (package, _), file in zip(BACKENDS, files, strict=True)
        ),
        atol=1e-9,
    )


def test_a_teacher_of_one_backend_is_a_teacher_of_the_other(tmp_path):
    config = settings("rp_s", "quadratic", epochs=1, out=str(tmp_path / "run"), quiet=True)
    tf_impl.train(config)
    weights = load_weights(tmp_path / "run")
    assert "tensorflow" in weights.created_by
    model = torch.nn.Linear(3, 2)
    optimizer = torch_impl.LearnedOptimizer(model.parameters(), tmp_path / "run")
    model(torch.ones(4, 3)).square().mean().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.weight, before)
