"""TensorFlow's second-order meta-gradient against a tape over the whole graph and differences."""

import dataclasses
import os
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.rng import rng
from common.tables import layers as net
from common.tables.problems import PROBLEMS, Instance, Problem
from common.tables.teachers import TEACHERS, initial_weights
from interchange.protocols import State, Task
from interchange.rule.rule import Rule
from tf_impl.meta import unroll
from tf_impl.meta.second_order import _step_back, unrolled
from tf_impl.networks.rule import RuleNetwork
from tf_impl.networks.teacher import TeacherNetwork
from tf_impl.problems.augment import ConvexTerm, RandomScaling
from tf_impl.problems.tasks import ModuleTask, ProblemTask, value_and_gradient
from tf_impl.tensors import unflatten

RULES = {
    "adam": dataclasses.replace(Rule.named("adam"), scale=0.01),
    "lags-t-and-decay": Rule.from_text(
        "-c0 * tanh(g / c1) / (1 + c2 * t) - c3 * lag(g, 1) - c4 * lag(g, 2) - c5 * theta",
        {"c0": 0.1, "c1": 0.7, "c2": 0.1, "c3": 0.05, "c4": -0.02, "c5": 0.3},
    ),
}
# No bias before batch norm: its gradient is rounding errors only, and so would the reference be.
NORM_LAYERS = (net.Layer("conv", out=4, size=3, pad=1, bias=False), net.NORM, net.RELU, *net.mlp())
NORM = Problem("probe", "classifier", "digits", NORM_LAYERS)


def problem(name: str = "digits-mlp") -> ProblemTask:
    return ProblemTask(Instance(NORM if name == "norm" else PROBLEMS[name], 0, batch_size=16), tf.float64)


def model(dtype: str = "float64", bias: bool = False) -> ModuleTask:
    """Batch norm (after a bias, if asked for), dropout, inputs that always are 0, units that never are on."""
    generator = rng(0, "test")
    options = {"dtype": dtype}
    layers = [
        keras.layers.Dense(8, use_bias=bias, **options),
        keras.layers.BatchNormalization(**options),
        keras.layers.ReLU(**options),
        keras.layers.Dropout(0.3, seed=7, **options),
        keras.layers.Dense(3, **options),
    ]
    module = keras.Sequential([keras.Input((6,), dtype=dtype), *layers])
    for variable in module.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    beta = layers[1].beta
    beta.assign(np.concatenate([[-50.0, -50.0], beta.numpy()[2:]]))
    x, y = generator.normal(size=(4, 16, 6)).astype(dtype), generator.integers(3, size=(4, 16))
    x[..., 3:] = 0.0
    return ModuleTask(
        module,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype),
        zip(x, y, strict=True),
    )


def task_of(name: str) -> Task:
    if name == "module":
        return model()
    if name == "scaled":
        return ConvexTerm(RandomScaling(problem("norm"), 1.0, 0, 0), 0, 0)
    return problem(name)


def network_of(name: str, dtype: tf.DType = tf.float64) -> unroll.Network:
    """A rule, or a teacher whose weights are large enough that saturation and memory matter."""
    if name in RULES:
        return RuleNetwork(RULES[name])
    weights = {key: 2.0 * w for key, w in initial_weights(TEACHERS[name], 1).items()}
    return TeacherNetwork(TEACHERS[name], weights, dtype)


@mock.patch.dict(os.environ, {"L2O_KERNELS": "0"})  # no tape sees what compiled code does
def by_tape(
    task: Task, network: unroll.Network, at: unroll.Position, steps: int, loss: str, lr: float = 1.0
) -> dict[str, tf.Tensor]:
    """The definition: one graph through every gradient, feature, update and loss."""
    weights = {name: tf.identity(w) for name, w in network.weights.items()}
    theta, state, losses = tf.identity(at.theta), at.state, []
    value, g = value_and_gradient(task, theta, at.step)
    with tf.GradientTape() as tape:
        tape.watch(list(weights.values()))
        for k in range(steps + 1):
            if k:
                with tf.GradientTape() as inner:
                    inner.watch(theta)
                    value = task.loss(unflatten(theta, task.shapes), at.step + k)
                g = inner.gradient(value, theta)
            losses.append(value)
            if k < steps:
                x, state = unroll.inputs_at(network, unroll.Position(at.step + k, theta, state, value, g))
                out, hidden = network.step(weights, x, state.network, state.t)
                state = dataclasses.replace(state, network=hidden)
                theta = theta + lr * network.scale * out
        total = tf.add_n(losses) if loss == "sum" else losses[-1]
    return tape.gradient(total, weights, unconnected_gradients="zero")


def assert_equal(got: dict[str, tf.Tensor], expected: dict[str, tf.Tensor]) -> None:
    """Relative to the largest entry of each array, and to four roundings of the largest of all."""
    assert got.keys() == expected.keys()
    largest = max(float(np.abs(want).max()) for want in expected.values())
    assert largest > 1e-6
    for name, want in expected.items():
        assert np.abs(got[name] - want).max() <= 1e-9 * np.abs(want).max() + 1e-15 * largest, name


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        pytest.param(name, steps, marks=[] if name in ("rp_s", *RULES) or steps == 5 else pytest.mark.slow)
        for name in ("dm", "rnnprop", "rp_s", "rp_si", *RULES)
        for steps in (1, 5, 20)
    ],
)
def test_it_equals_a_tape_over_the_whole_graph(name, steps):
    task, network = problem(), network_of(name)
    at = unroll.advance(task, network, unroll.start(task, network), 3)[0]
    for loss in ("sum", "last"):
        assert_equal(unrolled(task, network, at, steps, loss)[2], by_tape(task, network, at, steps, loss))


@pytest.mark.parametrize("name", ["rp_s", pytest.param("lags-t-and-decay", marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", ["quadratic", "rastrigin", "digits-conv", "scaled", "module"])
def test_any_optimizee_works(task, name):
    grads = []
    for get in (lambda *a: unrolled(*a)[2], by_tape):
        one, network = task_of(task), network_of(name)
        grads.append(get(one, network, unroll.start(one, network), 4, "sum", 0.3))
    assert_equal(*grads)


@pytest.mark.parametrize("name", RULES)
def test_it_equals_differences_of_the_losses_themselves(name):
    """A rule over g has no feature outside the graph, so this is the whole derivative of its rollouts."""
    task, network, steps = problem(), network_of(name), 6
    got = unrolled(task, network, unroll.start(task, network), steps, "sum")[2]
    for key, w in network.weights.items():
        value = float(w)
        h, ends = 1e-5 * max(abs(value), 1e-9), []
        for sign in (1.0, -1.0):
            w.assign(value + sign * h)
            ends.append(unroll.rollout(task, network, steps).sum())
        w.assign(value)
        assert float(got[key]) == pytest.approx((ends[0] - ends[1]) / (2.0 * h), rel=1e-4, abs=1e-8), key


@pytest.mark.parametrize("which", ["norm", "module"])
def test_it_steps_as_advance_does_and_leaves_running_values_alone(which):
    network, ends = network_of("rp_s"), []
    for take in (unroll.advance, lambda *a: unrolled(*a, "sum")):
        task = task_of(which)
        at = unroll.advance(task, network, unroll.start(task, network), 3)[0]
        end, losses = take(task, network, at, 4)[:2]
        running = task.module.non_trainable_variables if which == "module" else task.buffers.values()
        arrays = [end.theta, end.gradient, end.loss, losses, *end.state.named().values(), *running]
        ends.append([np.asarray(a) for a in arrays])
    for got, want in zip(*ends, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["dm", "rnnprop", "rp_s", "rp_si", *RULES])
def test_gradients_that_always_are_zero_leave_it_finite(name):
    task, network = model("float32", bias=True), network_of(name, tf.float32)
    at = unroll.start(task, network)
    _, _, gradients, _ = unroll.advance(task, network, at, 8)
    assert int(np.all(gradients == 0, 0).sum()) >= 24  # weights of the inputs that are 0
    assert 0.0 < np.abs(gradients[:, 48:56]).max() < 1e-6
    grads = unrolled(task, network, at, 8, "sum")[2]
    assert max(float(np.abs(grad).max()) for grad in grads.values()) < 1e6
    assert all(np.isfinite(grad).all() for grad in grads.values())


def test_a_rule_without_constants_has_no_gradient():
    network, task = RuleNetwork(Rule.from_text("-0.1 * sign(g)")), problem("quadratic")
    end, losses, grads = unrolled(task, network, unroll.start(task, network), 3, "sum")
    assert grads == {} and len(losses) == 4 and end.step == 3


def test_two_arrays_of_state_may_be_one_tensor():
    network, g = network_of("rp_s"), tf.constant([0.3, -0.2], tf.float64)
    by, found = tf.ones([7, 2], tf.float64), []
    for copied in (tf.identity, lambda a: a):
        features, hidden = network.initial_state(g).features, tf.fill([7, 2], tf.constant(0.1, tf.float64))
        state = State(3, features, (hidden, copied(hidden)))
        by_state = State(3, features, (by, by))
        found.append(_step_back(network, unroll.Position(3, g, state, None, g), g, by_state)[2].network)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
