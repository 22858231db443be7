"""Evolution strategies, whole and persistent, and the forward meta-gradient: TensorFlow against torch."""

import dataclasses

import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor

from common.rng import rng
from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS, initial_weights
from interchange.backend import Half
from interchange.meta import evolution as shared
from interchange.meta.config import TuneConfig
from interchange.meta.trainer import make_trainer
from interchange.rule.rule import Rule
from tests.helpers.evolving import Persistent, evolution, here

torch = pytest.importorskip("torch")
tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")

import tf_impl.meta.forward  # noqa: E402
import tf_impl.meta.learner  # noqa: E402
import tf_impl.meta.unroll  # noqa: E402
import tf_impl.networks.rule  # noqa: E402
import tf_impl.networks.teacher  # noqa: E402
import tf_impl.problems.tasks  # noqa: E402
import torch_impl.meta.forward  # noqa: E402
import torch_impl.meta.unroll  # noqa: E402
import torch_impl.networks.rule  # noqa: E402
import torch_impl.networks.teacher  # noqa: E402
import torch_impl.problems.tasks  # noqa: E402

BACKENDS = ((torch_impl, torch.float64), (tf_impl, tf.float64))


def tasks(backend, dtype):
    return lambda k: backend.problems.tasks.ProblemTask(
        Instance(PROBLEMS["digits-mlp"], k, batch_size=16), dtype
    )


def network(backend, dtype, name: str):
    if name == "rp_s":
        return backend.networks.teacher.TeacherNetwork(
            TEACHERS[name], initial_weights(TEACHERS[name], 1), dtype
        )
    return backend.networks.rule.RuleNetwork(Rule.named(name))


def assert_close(got, expected, tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        value = value.numpy()
        atol = tolerance * max(np.abs(value).max(initial=0.0), 1e-300)
        np.testing.assert_allclose(np.asarray(got[name]), value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("name", ["nesterov", "rp_s"])
@pytest.mark.usefixtures("code")
def test_evolution_agrees(name, log):
    found = []
    for backend, dtype in BACKENDS:
        net = network(backend, dtype, name)
        found.append(
            evolution(tasks(backend, dtype), net, 6, {"gain": 0.1}, rng(0, "evolution"), 2, 0.05, log)
        )
    (expected, losses), (got, others) = found
    np.testing.assert_allclose(others, losses, rtol=1e-10)
    assert_close(got, expected, 1e-9)


@pytest.mark.parametrize("name", ["nesterov", "rp_s_11", "rp_s"])
@pytest.mark.usefixtures("code")
def test_halves_in_lanes_are_those_that_run_alone_in_tensorflow(monkeypatch, name):
    """Two segments in both; one half diverges, and disturbs no other."""
    found = []
    for most in (4, 0):
        monkeypatch.setattr(shared, "_MOST_PAIRS", most)
        net, at = network(tf_impl, tf.float64, name), [None] * 6
        generator = np.random.default_rng(0)
        weights = [{n: np.asarray(w) for n, w in net.weights.items()} for _ in at]
        for k, given in enumerate(weights):
            weights[k] = {n: w * generator.normal(1.0, 0.1, w.shape) for n, w in given.items()}
        if name == "nesterov":
            weights[1]["gain"] = np.asarray(1e200)
        run = here(tasks(tf_impl, tf.float64), net)
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
    net = network(tf_impl, tf.float32, "adam")
    halves = [Half(k // 2, {n: np.asarray(w) * 0.99 for n, w in net.weights.items()}) for k in range(4)]
    run = here(tasks(tf_impl, tf.float32), net)
    together = [losses for _, losses in run(halves, 8, False)]
    monkeypatch.setattr(shared, "_MOST_PAIRS", 0)
    np.testing.assert_allclose(together, [losses for _, losses in run(halves, 8, False)], rtol=3e-6)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("name", ["nesterov", "rp_s"])
@pytest.mark.usefixtures("code")
def test_persistent_evolution_agrees_piece_by_piece(name, relative):
    particles = [
        Persistent(
            tasks(backend, dtype),
            network(backend, dtype, name),
            {"gain": 0.1},
            0.05,
            2,
            rng(0, "evolution"),
            horizon=9,
            relative=relative,
        )
        for backend, dtype in BACKENDS
    ]
    for steps in (4, 4, 1):
        (expected, losses), (got, others) = (one.advance(steps) for one in particles)
        np.testing.assert_allclose(others, losses, rtol=1e-10)
        assert_close(got, expected, 1e-9)


@pytest.mark.usefixtures("code")
def test_the_forward_meta_gradient_and_its_tangents_agree():
    found = []
    for backend, dtype in BACKENDS:
        net, task = network(backend, dtype, "adam"), tasks(backend, dtype)(0)
        at = backend.meta.unroll.start(task, net)
        tangents = backend.meta.forward.start(net, at)
        for _ in range(2):  # the second time from tangents carried over
            at, tangents, losses, grads = backend.meta.forward.advance(
                task, net, at, tangents, 8, "sum", 0.01
            )
        found.append((np.asarray(losses), np.asarray(tangents.theta), grads))
    (losses, theta, expected), (others, moved, got) = found
    np.testing.assert_allclose(others, losses, rtol=1e-10)
    np.testing.assert_allclose(moved, theta, rtol=0, atol=1e-9 * np.abs(theta).max())
    for name, value in expected.items():
        assert float(got[name]) == pytest.approx(float(value), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["es", "pes"])
def test_worker_processes_change_no_number_in_tensorflow(estimator):
    # Workers that torch's tests left would count TensorFlow as a leak of memory; loky waits for ever then.
    get_reusable_executor().shutdown(wait=True)
    config = TuneConfig(
        problem="quadratic",
        epochs=2,
        epoch_length=6,
        unroll=4,
        pairs=2,
        validate_every=1,
        validation_tasks=1,
        estimator=estimator,
        dtype="float64",
    )
    found = []
    for jobs in (1, 2):
        net = tf_impl.networks.rule.RuleNetwork(Rule.named("nesterov"))
        learner = tf_impl.meta.learner.Learner(net, dataclasses.replace(config, jobs=jobs))
        trainer = make_trainer(learner, rates=net.rates)
        assert trainer.run(label="test", quiet=True)
        found.append(
            [row["loss"] for row in trainer.state.history] + [float(w) for w in net.weights.values()]
        )
    assert found[0] == pytest.approx(found[1], rel=1e-12)
