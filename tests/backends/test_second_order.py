"""The second-order meta-gradient of both frameworks against a graph of everything, differences and itself."""

import dataclasses

import numpy as np
import pytest

from common.tables import networks as net
from common.tables.problems import PROBLEMS, Instance, Problem
from common.tables.teachers import TEACHERS, initial_weights
from interchange.protocols import Task
from interchange.rule.rule import Rule
from tests.helpers.evolving import by_constants, learner_of
from tests.helpers.samples import EMA_AND_TANH

RULES = {
    "adam": dataclasses.replace(Rule.named("adam"), scale=0.01),
    "tanh": EMA_AND_TANH,
    "lags-t-and-decay": Rule.from_text(
        "-c0 * tanh(g / c1) / (1 + c2 * t) - c3 * lag(g, 1) - c4 * lag(g, 2) - c5 * theta",
        {"c0": 0.1, "c1": 0.7, "c2": 0.1, "c3": 0.05, "c4": -0.02, "c5": 0.3},
    ),
}
NETWORKS = ("dm", "rnnprop", "rp_s", "rp_si", *RULES)
SOON = ("dm", "rp_s", "lags-t-and-decay")  # with 1 and 20 steps too
# No bias before batch norm: its gradient is rounding errors only, and so would the reference be.
NORM_LAYERS = (net.Layer("conv", out=4, size=3, pad=1, bias=False), net.NORM, net.RELU, *net.mlp())
NORM = Problem("probe", "classifier", "digits", NORM_LAYERS)


def task_of(impl, name: str = "digits-mlp") -> Task:
    if name == "module":
        return impl.probe()
    if name == "scaled":
        augment = impl.module("problems.augment")
        return augment.ConvexTerm(augment.RandomScaling(task_of(impl, "norm"), 1.0, 0, 0), 0, 0)
    given = Instance(NORM if name == "norm" else PROBLEMS[name], 0, batch_size=16)
    return impl.module("problems.tasks").ProblemTask(given, impl.DTYPES["float64"])


def network_of(impl, name: str, dtype: str = "float64"):
    """A rule, or a teacher whose weights are large enough that saturation and memory matter."""
    if name in RULES:
        return impl.module("backend").rule_network(RULES[name], "cpu")
    weights = {key: 2.0 * w for key, w in initial_weights(TEACHERS[name], 1).items()}
    return impl.module("backend").teacher_network(TEACHERS[name], weights, dtype, "cpu")


def unrolled(impl, *given):
    """Where it ends, losses and meta-gradient."""
    return impl.module("meta.second_order").unrolled(*given)


def advanced(impl, task: Task, network, steps: int):
    """A position with state carried over."""
    unroll = impl.module("meta.unroll")
    at = unroll.start(task, network)
    return unroll.advance(task, network, at, steps)[0] if steps else at


def assert_equal(network, got, expected) -> None:
    """Relative to the largest entry of each array, and to four roundings of the largest of all.

    At Adam's first step its update is the gradient's sign whatever the decays are: the derivatives by them
    are 0 by terms as large as the others', so all that is left of them is rounding.
    """
    assert list(got) == list(expected)
    got, expected = by_constants(network, got), by_constants(network, expected)
    largest = max(float(np.abs(want).max()) for want in expected.values())
    assert largest > 1e-6
    for name, want in expected.items():
        room = 1e-9 * float(np.abs(want).max()) + 1e-15 * largest
        assert float(np.abs(got[name] - want).max()) <= room, name


def slow(condition: bool) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if condition else []


def of_the_whole_graph():
    """Framework, network, steps and how many came before; TensorFlow's graphs take their time."""
    for name in NETWORKS:
        for steps in (1, 5, 20):
            for before in (0, 7):
                yield pytest.param(
                    "torch", name, steps, before, marks=slow(steps != 5 and (before or name not in SOON))
                )
            seldom = steps != 5 or name == "tanh"
            yield pytest.param("tf", name, steps, 3, marks=slow(seldom))


@pytest.mark.parametrize(("impl", "name", "steps", "before"), of_the_whole_graph(), indirect=["impl"])
@pytest.mark.parametrize("loss", ["sum", "last", pytest.param("log", marks=pytest.mark.slow)])
def test_it_equals_the_gradient_of_the_whole_graph(impl, name, steps, before, loss):
    task, network = task_of(impl), network_of(impl, name)
    at = advanced(impl, task, network, before)
    expected = impl.whole_graph(task, network, at, steps, loss)
    assert_equal(network, unrolled(impl, task, network, at, steps, loss)[2], expected)


def of_optimizees():
    for task in ("quadratic", "lasso", "rastrigin", "digits-conv", "norm", "scaled", "module"):
        for name in ("rp_s", *RULES):
            yield pytest.param("torch", task, name)
        if task not in ("lasso", "norm"):
            for name in ("rp_s", "lags-t-and-decay"):
                yield pytest.param("tf", task, name, marks=slow(name != "rp_s"))


@pytest.mark.parametrize(("impl", "task", "name"), of_optimizees(), indirect=["impl"])
def test_any_optimizee_works(impl, task, name):
    grads = []
    for get in (lambda *a: unrolled(impl, *a)[2], impl.whole_graph):
        one, network = task_of(impl, task), network_of(impl, name)
        at = advanced(impl, one, network, 0)
        impl.seed(5)
        grads.append(get(one, network, at, 4, "sum", 0.3))
    assert_equal(network, *grads)


@pytest.mark.parametrize("name", RULES)
def test_it_equals_differences_of_the_losses_themselves(impl, name):
    """A rule over g has no feature outside the graph, so this is the whole derivative of its rollouts."""
    task, network, steps = task_of(impl), network_of(impl, name), 6
    got = unrolled(impl, task, network, advanced(impl, task, network, 0), steps, "sum")[2]
    learner = learner_of(network)
    weights = learner.weights()

    def total(moved: dict[str, np.ndarray]) -> float:
        learner.put(weights | moved)
        return impl.module("meta.unroll").rollout(task, network, steps).sum()

    for key, w in weights.items():
        h = 1e-5 * max(abs(float(w)), 1e-9)
        up, down = total({key: w + h}), total({key: w - h})
        assert float(got[key]) == pytest.approx((up - down) / (2.0 * h), rel=1e-4, abs=1e-8), key


@pytest.mark.parametrize("which", ["norm", "module"])
def test_it_steps_as_advance_does_and_leaves_running_values_alone(impl, which):
    network, ends = network_of(impl, "rp_s"), []
    for take in (impl.module("meta.unroll").advance, lambda *a: unrolled(impl, *a, "sum")):
        task = task_of(impl, which)
        impl.seed(5)
        end, losses = take(task, network, advanced(impl, task, network, 3), 4)[:2]
        assert end.step == end.state.t == 7
        arrays = [end.theta, end.gradient, end.loss, losses, *end.state.named().values()]
        ends.append([np.asarray(a) for a in (*arrays, *impl.running_values(task), *impl.next_draw())])
    for got, want in zip(*ends, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow_with(impl=("tf",), name=[name for name in NETWORKS if name not in SOON])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_gradients_that_always_are_zero_leave_it_finite(impl, name, dtype):
    task, network = impl.probe(dtype, bias=True), network_of(impl, name, dtype)
    at = advanced(impl, task, network, 0)
    gradients = np.asarray(impl.module("meta.unroll").advance(task, network, at, 8)[2])
    assert int(np.all(gradients == 0, 0).sum()) >= 24  # weights of the inputs that are 0
    assert 0.0 < np.abs(gradients[:, 48:56]).max() < 1e-6
    grads = unrolled(impl, task, network, at, 8, "sum")[2]
    assert all(np.isfinite(grad).all() for grad in grads.values())
    assert max(float(np.abs(grad).max()) for grad in grads.values()) < 1e6


def test_a_rule_without_constants_has_no_gradient(impl):
    network = impl.module("backend").rule_network(Rule.from_text("-0.1 * sign(g)"), "cpu")
    task = task_of(impl, "quadratic")
    end, losses, grads = unrolled(impl, task, network, advanced(impl, task, network, 0), 3, "sum")
    assert grads == {} and len(losses) == 4 and end.step == 3


class Touching:
    """0.5 x^2 twice, which starts where its gradient is 0, then x; and a coordinate with gradient 1."""

    names, shapes = ("x",), ((2,),)

    def __init__(self, impl) -> None:
        self.start = impl.module("tensors").to_tensor(np.zeros(2), impl.DTYPES["float64"])

    def initial(self):
        return self.start

    def loss(self, parameters, step: int):
        x, y = parameters[0][0], parameters[0][1]
        return y + (0.5 * x * x if step < 2 else x)


def test_a_gradient_that_is_zero_is_not_divided_by(impl):
    """By the book the derivative of g_tilde is 1e8 there, of a jump no step of training sees as a slope."""
    features = {"g_tilde": "g / (sqrt(ema_hat(square(g), 0.9)) + 1e-8)"}
    rule = Rule.from_text("-c0 * g_tilde - c1", {"c0": 0.01, "c1": 0.0}, features)
    network, task = impl.module("backend").rule_network(rule, "cpu"), Touching(impl)
    grads = unrolled(impl, task, network, advanced(impl, task, network, 0), 2, "last")[2]
    assert 1.0 <= abs(float(grads["c1"])) < 10.0
