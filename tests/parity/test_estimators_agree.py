"""Evolution strategies, whole and persistent, and the forward meta-gradient: TensorFlow against torch."""

import dataclasses
import functools

import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor

from common.rng import rng
from common.tables.problems import PROBLEMS, Instance
from interchange.backend import Half
from interchange.meta import evolution as shared
from interchange.meta.config import TuneConfig
from interchange.meta.trainer import make_trainer
from tests.helpers.evolving import Persistent, evolution, here
from tests.parity.backends import BACKENDS, all_close, close, networks, tasks, tf, tf_impl


def digits(which: int):
    return lambda k: tasks("digits-mlp", k, 16)[which]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("name", ["nesterov", "rp_s"])
@pytest.mark.usefixtures("code")
def test_evolution_agrees(name, log):
    (expected, losses), (got, others) = (
        evolution(digits(which), net, 6, {"gain": 0.1}, rng(0, "evolution"), 2, 0.05, log)
        for which, net in enumerate(networks(name))
    )
    np.testing.assert_allclose(others, losses, rtol=1e-10)
    all_close(got, expected, 1e-9)


@pytest.mark.parametrize("name", ["nesterov", "rp_s_11", "rp_s"])
@pytest.mark.usefixtures("code")
def test_halves_in_lanes_are_those_that_run_alone_in_tensorflow(monkeypatch, name):
    """Two segments in both; one half diverges, and disturbs no other."""
    found = []
    for most in (4, 0):
        monkeypatch.setattr(shared, "_MOST_PAIRS", most)
        net, at = networks(name)[1], [None] * 6
        generator = np.random.default_rng(0)
        weights = [{n: np.asarray(w) for n, w in net.weights.items()} for _ in at]
        for k, given in enumerate(weights):
            weights[k] = {n: w * generator.normal(1.0, 0.1, w.shape) for n, w in given.items()}
        if name == "nesterov":
            weights[1]["gain"] = np.asarray(1e200)
        run = here(digits(1), net)
        for steps in (4, 3):
            halves = [Half(k // 2, weights[k], position) for k, position in enumerate(at)]
            ran = list(run(halves, steps, True))
            at = [position for position, _ in ran]
        found.append(ran)
    for k, ((at, losses), (expected, others)) in enumerate(zip(*found, strict=True)):
        np.testing.assert_allclose(losses, others, rtol=1e-12)
        assert np.isfinite(others).all() == (k != 1 or name != "nesterov")
        if np.isfinite(others).all():
            np.testing.assert_allclose(at.theta, expected.theta, rtol=1e-11, atol=1e-12)
            for name_of, a in expected.state.named().items():
                np.testing.assert_allclose(at.state.named()[name_of], a, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("code")
def test_a_rule_in_lanes_forms_one_minus_its_decay_in_float64_in_tensorflow(monkeypatch):
    net = networks("adam")[1]
    halves = [Half(k // 2, {n: np.asarray(w) * 0.99 for n, w in net.weights.items()}) for k in range(4)]
    instance = functools.partial(Instance, PROBLEMS["digits-mlp"], batch_size=16)
    run = here(lambda k: tf_impl.problems.tasks.ProblemTask(instance(k), tf.float32), net)
    together = [losses for _, losses in run(halves, 8, False)]
    monkeypatch.setattr(shared, "_MOST_PAIRS", 0)
    np.testing.assert_allclose(together, [losses for _, losses in run(halves, 8, False)], rtol=3e-6)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("name", ["nesterov", "rp_s"])
@pytest.mark.usefixtures("code")
def test_persistent_evolution_agrees_piece_by_piece(name, relative):
    particles = [
        Persistent(
            digits(which), net, {"gain": 0.1}, 0.05, 2, rng(0, "evolution"), horizon=9, relative=relative
        )
        for which, net in enumerate(networks(name))
    ]
    for steps in (4, 4, 1):
        (expected, losses), (got, others) = (one.advance(steps) for one in particles)
        np.testing.assert_allclose(others, losses, rtol=1e-10)
        all_close(got, expected, 1e-9)


@pytest.mark.usefixtures("code")
def test_the_forward_meta_gradient_and_its_tangents_agree():
    found = []
    for (backend, _), net, task in zip(BACKENDS, networks("adam"), tasks("digits-mlp", 0, 16), strict=True):
        at = backend.meta.unroll.start(task, net)
        tangents = backend.meta.forward.start(net, at)
        for _ in range(2):  # the second time from tangents carried over
            given = task, net, at, tangents
            at, tangents, losses, grads = backend.meta.forward.advance(*given, 8, "sum", 0.01)
        found.append((np.asarray(losses), np.asarray(tangents.theta), grads))
    (losses, theta, expected), (others, moved, got) = found
    np.testing.assert_allclose(others, losses, rtol=1e-10)
    close(moved, theta, 1e-9)
    all_close(got, expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["es", "pes"])
def test_worker_processes_change_no_number_in_tensorflow(estimator):
    # Workers that torch's tests left would count TensorFlow as a leak of memory; loky waits for ever then.
    get_reusable_executor().shutdown(wait=True)
    settings = {"epochs": 2, "epoch_length": 6, "unroll": 4, "validate_every": 1, "validation_tasks": 1}
    config = TuneConfig(problem="quadratic", pairs=2, estimator=estimator, dtype="float64", **settings)
    found = []
    for jobs in (1, 2):
        net = networks("nesterov")[1]
        learner = tf_impl.meta.learner.Learner(net, dataclasses.replace(config, jobs=jobs))
        trainer = make_trainer(learner, rates=net.rates)
        assert trainer.run(label="test", quiet=True)
        found.append(
            [row["loss"] for row in trainer.state.history] + [float(w) for w in net.weights.values()]
        )
    assert found[0] == pytest.approx(found[1], rel=1e-12)
