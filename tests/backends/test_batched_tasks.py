"""Optimizees side by side as one: what each does is what it does alone, in both frameworks."""

import numpy as np
import pytest

from common.data.coordinates import choose_subset
from common.rng import rng
from common.tables.teachers import TEACHERS, initial_weights
from interchange.meta.config import TrainConfig, TuneConfig
from interchange.meta.trainer import make_trainer
from interchange.rule.rule import Rule


def test_state_of_other_shapes_is_refused_before_compiled_code_runs(impl):
    """Code believes what it is told of arrays: those of another teacher would be read beyond their end."""
    network, other = teacher(impl), teacher(impl, "rp_s")
    if network.compiled is None:
        pytest.skip("no compiled code here")
    to_tensor, float64 = impl.module("tensors").to_tensor, impl.DTYPES["float64"]
    theta, x = to_tensor(np.zeros(7), float64), to_tensor(np.ones((2, 7)), float64)
    short = to_tensor(np.zeros(5), float64)
    for state in (other.initial_state(theta), network.initial_state(short)):
        with pytest.raises(ValueError, match="state: expected shapes"):
            network.roll(x, state.network, 1)
        with pytest.raises(ValueError, match="state: expected shapes"):
            network.vjp(state, x[None], x[:1])
    assert network.roll(x, network.initial_state(theta).network, 1)[0].shape == (7,)


def trained(impl, config, network, together: bool, wrap=None) -> tuple[dict, list[dict]]:
    """Weights and metrics after the run; without ``together`` each optimizee takes its unrolls alone."""

    class Learner(impl.module("meta.learner").Learner):
        calls = 0

        def table_task(self, config, stream, number, problem=""):
            one = super().table_task(config, stream, number, problem=problem)
            return one if wrap is None else wrap(one, number)

        def first_order_batch(self, *args):
            found = super().first_order_batch(*args) if together else None
            self.calls += found is not None
            return found

    learner = Learner(network, config)
    trainer = make_trainer(learner)
    trainer.run(label="", quiet=True)
    assert (learner.calls > 0) == together
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in trainer.state.history]
    return learner.weights(), rows


def teacher(impl, name="rnnprop"):
    return impl.module("backend").teacher_network(
        TEACHERS[name], initial_weights(TEACHERS[name], 0), "float64", "cpu"
    )


def config(**given) -> TrainConfig:
    fixed = {"dtype": "float64", "epochs": 2, "epoch_length": 12, "unroll": 5, "tasks": 3, "batch_size": 16}
    fixed |= {"problem": "digits-mlp", "validate_every": 2, "validation_tasks": 1}
    return TrainConfig(**fixed | given)


def assert_alike(one, other, tolerance=1e-9):
    assert one[1] == [pytest.approx(row, rel=tolerance) for row in other[1]]
    for name, w in one[0].items():
        np.testing.assert_allclose(w, other[0][name], rtol=tolerance, atol=tolerance)


class Exploding:
    """A task whose gradient is not finite at its seventh step."""

    def __init__(self, task):
        self.task, self.names, self.shapes = task, task.names, task.shapes

    def initial(self):
        return self.task.initial()

    def loss(self, parameters, step):
        return self.task.loss(parameters, step) * (float("inf") if step == 6 else 1.0)


VARIETY = {
    "one-problem": {},
    "subset": {"coordinates": 0.3},
    "last-loss": {"loss": "last", "unroll": 12},
    "mixed": {"problem": "quadratic,digits-mlp", "tasks": 4},
    "varied": {"problem": "quadratic", "random_scaling": 1.0, "convex": True},
}
# TensorFlow's graphs take their time.
OFTEN = [("torch", kind) for kind in VARIETY] + [("tf", "subset"), ("tf", "mixed")]
SELDOM = [pytest.param("tf", kind, marks=pytest.mark.slow) for kind in VARIETY if ("tf", kind) not in OFTEN]


@pytest.mark.parametrize(("impl", "kind"), OFTEN + SELDOM, indirect=["impl"])
def test_several_as_one_train_as_each_alone(impl, kind):
    given = config(**VARIETY[kind])
    one, other = (trained(impl, given, teacher(impl), together) for together in (True, False))
    assert_alike(one, other)


@pytest.mark.slow_with(impl=("tf",), share=(1.0,))
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_one_that_diverges_leaves_the_others_as_they_are(impl, share):
    def wrap(task, number):
        return Exploding(task) if number % 3 == 1 else task

    settings = config(coordinates=share, validate_every=0)
    one, other = (trained(impl, settings, teacher(impl), together, wrap) for together in (True, False))
    assert one[1][-1]["diverged"] == other[1][-1]["diverged"] == 2
    assert_alike(one, other)


@pytest.mark.usefixtures("code")
def test_rules_run_side_by_side_too(impl):
    rule = Rule.from_text(
        "-c0 * tanh(ema(g, b) / c1) - c2 * lag(g, 2)", {"c0": 0.3, "b": 0.8, "c1": 0.1, "c2": 0.02}
    )
    settings = TuneConfig(
        problem="digits-mlp", estimator="first", dtype="float64", epochs=2, epoch_length=12, unroll=6, tasks=2
    )
    one, other = (
        trained(impl, settings, impl.module("backend").rule_network(rule, "cpu"), together)
        for together in (True, False)
    )
    assert_alike(one, other)


@pytest.mark.parametrize(
    ("problem", "stacked"), [("digits-mlp", True), ("digits-conv", False), ("quadratic", False)]
)
def test_dense_networks_are_computed_at_once_and_others_one_by_one(impl, problem, stacked):
    settings = config(problem=problem)
    tasks = [impl.module("problems.tasks").table_task(settings, "meta_train", k) for k in range(3)]
    several = impl.module("problems.batched").BatchedTasks(tasks)
    assert (several._stacked is not None) == stacked
    thetas = [np.asarray(task.initial()) for task in tasks]
    losses, gradient = several.value_and_gradient(impl.tensor(np.concatenate(thetas)), 4)
    pairs = zip(tasks, thetas, strict=True)
    alone = [impl.value_and_gradient(task, impl.tensor(theta), 4) for task, theta in pairs]
    np.testing.assert_allclose(np.asarray(losses), [float(loss) for loss, _ in alone], rtol=1e-12)
    expected = np.concatenate([np.asarray(g) for _, g in alone])
    np.testing.assert_allclose(np.asarray(gradient), expected, rtol=1e-9, atol=1e-12)


def third(impl, task, network):
    """The position after three steps."""
    unroll = impl.module("meta.unroll")
    return unroll.advance(task, network, unroll.start(task, network), 3)[0]


def test_positions_are_joined_and_divided_again(impl):
    network, table_task = teacher(impl), impl.module("problems.tasks").table_task
    tasks = [table_task(config(problem=name), "meta_train", 0) for name in ("quadratic", "digits-mlp")]
    at, batched = [third(impl, task, network) for task in tasks], impl.module("problems.batched")
    parts = batched.divided(batched.joined(at), [len(p.theta) for p in at])
    for old, new in zip(at, parts, strict=True):
        assert new.step == old.step and new.state.t == old.state.t
        for name, a in old.state.named().items():
            np.testing.assert_array_equal(np.asarray(new.state.named()[name]), np.asarray(a))
        for name in ("theta", "gradient", "loss"):
            np.testing.assert_array_equal(np.asarray(getattr(new, name)), np.asarray(getattr(old, name)))


@pytest.mark.slow_with(impl=("tf",))
@pytest.mark.parametrize(
    "together", [pytest.param(True, id="together"), pytest.param(False, id="alone", marks=pytest.mark.slow)]
)
def test_a_subset_of_coordinates_is_unbiased(impl, together):
    """Over 200 draws the mean of the estimates contains the exact meta-gradient, entry by entry."""
    network = teacher(impl, "rp_s")
    learner = impl.module("meta.learner").Learner(network, config(coordinates=0.1, tasks=2))
    tasks = [make_trainer(learner).tasks("meta_train", k) for k in range(2)]
    at = [third(impl, task, network) for task in tasks]
    sizes = [[int(np.prod(shape)) for shape in task.shapes] for task in tasks]

    def found(draw):
        """The meta-gradient of one unroll of two optimizees, their coordinates drawn anew."""
        subsets = None
        if draw is not None:
            subsets = [choose_subset(sizes[k], 0.1, rng(0, "draws", draw, k)) for k in range(2)]
            assert all(len(subset) == round(0.1 * len(at[0].theta)) for subset in subsets)
        if together:
            grads = learner.first_order_batch(tasks, at, 4, subsets, lambda losses: 1.0)[2]
        else:
            # An unroll of one optimizee may write into the state it begins with.
            fresh = [third(impl, task, network) for task in tasks]
            rows = zip(tasks, fresh, [4, 4], subsets or [None] * 2, strict=True)
            parts = [learner.first_order(*row)[2] for row in rows]
            grads = {name: parts[0][name] + parts[1][name] for name in parts[0]}
        return np.concatenate([np.asarray(g).ravel() for g in grads.values()])

    exact = found(None)
    draws = np.stack([found(k) for k in range(200)])
    error = np.abs(draws.mean(0) - exact)
    assert np.mean(error <= 4.0 * draws.std(0, ddof=1) / np.sqrt(200) + 1e-12) > 0.999
    assert np.linalg.norm(draws.mean(0) - exact) < 0.2 * np.linalg.norm(exact)
    assert np.linalg.norm(draws[0] - exact) > 1e-3 * np.linalg.norm(exact)
