"""Halves of evolution's pairs in lanes, and pairs in processes: what each does alone, in both frameworks."""

import dataclasses

import numpy as np
import pytest

from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS, initial_weights
from interchange.backend import Half
from interchange.meta import evolution as shared
from interchange.meta.config import TrainConfig, TuneConfig
from interchange.meta.trainer import make_trainer
from interchange.rule.decay import with_weight_decay
from interchange.rule.rule import Rule
from tests.helpers.evolving import here


def digits(impl, dtype: str = "float64"):
    def task(number: int):
        given = Instance(PROBLEMS["digits-mlp"], number, batch_size=16)
        return impl.module("problems.tasks").ProblemTask(given, impl.DTYPES[dtype])

    return task


def network_of(impl, what: str, dtype: str = "float64"):
    backend = impl.module("backend")
    if what in TEACHERS:
        return backend.teacher_network(TEACHERS[what], initial_weights(TEACHERS[what], 1), dtype, "cpu")
    if what == "decayed":
        decayed = with_weight_decay(Rule.named("nesterov"), 0.01)
        return backend.rule_network(decayed, "cpu", problems=("digits-mlp", "quadratic"))
    return backend.rule_network(Rule.named(what), "cpu")


def halves_of(net, pairs: int, size: float, positions=None) -> list[Half]:
    generator = np.random.default_rng(5)
    weights = {name: np.array(w) for name, w in net.weights.items()}
    return [
        Half(
            k // 2,
            {n: _moved(w, size * generator.normal(size=w.shape)) for n, w in weights.items()},
            None if positions is None else positions[k],
        )
        for k in range(2 * pairs)
    ]


def _moved(w: np.ndarray, by: np.ndarray) -> np.ndarray:
    return (w + by * np.where(w == 0.0, 1.0, w)).astype(w.dtype)


def alone(monkeypatch) -> None:
    monkeypatch.setattr(shared, "_MOST_PAIRS", 0)


@pytest.mark.parametrize("what", ["rp_s_11", "nesterov", "adam", "decayed", "rp_s"])
@pytest.mark.usefixtures("code")
def test_halves_in_lanes_are_those_that_run_alone(impl, monkeypatch, what):
    """In two segments, so positions are divided and joined again; the constants differ a lot."""
    found = []
    for single in (False, True):
        with monkeypatch.context() as patch:
            if single:
                alone(patch)
            at = None
            for steps in (5, 4):
                net = network_of(impl, what)  # as in another process, where the first segment did not run
                ran = list(here(digits(impl), net)(halves_of(net, 3, 0.3, at), steps, True))
                at = [position for position, _ in ran]
            found.append(ran)
    assert len({float(losses[-1]) for _, losses in found[0]}) == 6
    for (at, losses), (expected, others) in zip(*found, strict=True):
        np.testing.assert_allclose(losses, others, rtol=1e-12)
        np.testing.assert_allclose(np.asarray(at.theta), np.asarray(expected.theta), rtol=1e-11, atol=1e-12)
        assert at.state.named().keys() == expected.state.named().keys()
        for name, a in expected.state.named().items():
            got = np.asarray(at.state.named()[name])
            np.testing.assert_allclose(got, np.asarray(a), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("what", ["rp_s_11", "adam", "rp_s"])
@pytest.mark.usefixtures("code")
def test_halves_in_lanes_are_close_to_those_that_run_alone_in_float32(impl, monkeypatch, what):
    """Adam's decay 0.999: 1 - b formed in float32 would be off by 1e-5."""
    net = network_of(impl, what, "float32")
    steps = {"torch": 10, "tf": 4}[impl.NAME]  # each makes rounding, which differs there, larger

    def losses() -> list[np.ndarray]:
        run = here(digits(impl, "float32"), net)
        return [found for _, found in run(halves_of(net, 2, 0.05), steps, False)]

    together = losses()
    alone(monkeypatch)
    np.testing.assert_allclose(together, losses(), rtol=3e-6)


@pytest.mark.usefixtures("code")
def test_a_lane_that_diverges_leaves_the_others_alone(impl, monkeypatch):
    net = network_of(impl, "nesterov")

    def losses() -> list[np.ndarray]:
        halves = halves_of(net, 2, 0.1)
        halves[1].weights["gain"] = np.asarray(1e200)
        return [found for _, found in here(digits(impl), net)(halves, 12, False)]

    together = losses()
    alone(monkeypatch)
    np.testing.assert_allclose(together, losses(), rtol=1e-12)
    assert [bool(np.isfinite(found).all()) for found in together] == [True, False, True, True]


# Workers that torch's tests left would count TensorFlow as a leak of memory; loky waits for ever then.
@pytest.fixture
def no_workers(impl) -> None:
    from joblib.externals.loky import get_reusable_executor

    if impl.NAME == "tf":
        get_reusable_executor().shutdown(wait=True)


@pytest.mark.slow_with(impl=("tf",))
@pytest.mark.slow_with(what=("rp_s_m",))
@pytest.mark.slow_with(what=("rp_s",), estimator=("es",))  # with pes there are whole horizons too
@pytest.mark.parametrize("estimator", ["es", "pes"])
@pytest.mark.parametrize("what", ["rule", "rp_s", "lanes", "rp_s_m"])
@pytest.mark.usefixtures("no_workers")
def test_worker_processes_change_no_number(impl, what, estimator):
    """Lanes: five pairs on one problem are two groups, one for each process."""
    given = {"epochs": 2, "epoch_length": 6, "unroll": 4, "pairs": 3, "validate_every": 1}
    given |= {"validation_tasks": 1, "estimator": estimator, "dtype": "float64", "lr": 0.01}
    backend, found = impl.module("backend"), []
    for jobs in (1, 2):
        if what in TEACHERS:
            row = dataclasses.replace(TEACHERS[what], scale=0.02)
            net = backend.teacher_network(row, initial_weights(row, 0), "float64", "cpu")
            config = TrainConfig(problem="digits-mlp", random_scaling=1.0, batch_size=8, **given)
        else:
            net = backend.rule_network(Rule.named("nesterov"), "cpu")
            many = {"problem": "digits-mlp", "batch_size": 8, "pairs": 5}
            config = TuneConfig(**given | (many if what == "lanes" else {"problem": "quadratic,lasso"}))
        learner = impl.module("meta.learner").Learner(net, dataclasses.replace(config, jobs=jobs))
        trainer = make_trainer(learner, rates=getattr(net, "rates", None))
        assert trainer.run(label="test", quiet=True)
        found.append(([row["loss"] for row in trainer.state.history], learner.weights()))
    (losses, weights), (others, moved) = found
    assert losses == pytest.approx(others, rel=1e-12 if impl.NAME == "tf" else 0.0)
    for name, w in weights.items():
        np.testing.assert_allclose(w, moved[name], rtol=1e-12 if impl.NAME == "tf" else 0.0)
