"""Teachers, inner loop and meta-gradients: TensorFlow against torch in float64, and against the oracle."""

import dataclasses

import numpy as np
import pytest

from common import reference
from common.rng import rng
from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS, initial_weights
from interchange.rule.decay import with_schedule, with_weight_decay
from interchange.rule.rule import Rule
from tests.helpers.evolving import evolution

torch = pytest.importorskip("torch")
tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")

import tf_impl.meta.unroll  # noqa: E402
import tf_impl.networks.rule  # noqa: E402
import tf_impl.networks.teacher  # noqa: E402
import tf_impl.problems.tasks  # noqa: E402
import torch_impl.meta.unroll  # noqa: E402
import torch_impl.networks.rule  # noqa: E402
import torch_impl.networks.teacher  # noqa: E402
import torch_impl.problems.tasks  # noqa: E402

STEPS = 12
DECAYED = with_weight_decay(with_schedule(Rule.named("adam"), 0.05), 0.2)


def pair(name: str, problem: str, seed: int = 1):
    """(task, network) in torch and in TensorFlow."""
    given = Instance(PROBLEMS[problem], seed, batch_size=32)
    one = torch_impl.problems.tasks.ProblemTask(given, torch.float64)
    other = tf_impl.problems.tasks.ProblemTask(given, tf.float64)
    if name in ("decayed", "kinds"):
        rule, kinds = dataclasses.replace(DECAYED, scale=0.01), name == "kinds"
        network = torch_impl.networks.rule.RuleNetwork(rule, kinds=kinds)
        return (one, network), (other, tf_impl.networks.rule.RuleNetwork(rule, kinds=kinds))
    weights = initial_weights(TEACHERS[name], seed)
    return (
        (one, torch_impl.networks.teacher.TeacherNetwork(TEACHERS[name], weights, torch.float64)),
        (other, tf_impl.networks.teacher.TeacherNetwork(TEACHERS[name], weights, tf.float64)),
    )


def close(got, expected, tolerance: float, what: str = "") -> None:
    got, expected = np.asarray(got), np.asarray(expected)
    atol = tolerance * max(np.abs(expected).max(initial=0.0), 1e-300)
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol, err_msg=what)


@pytest.mark.parametrize("problem", ["quadratic", "digits-mlp"])
@pytest.mark.parametrize("name", [*TEACHERS, "decayed", "kinds"])
@pytest.mark.usefixtures("code")
def test_losses_gradients_inputs_and_meta_gradients_agree(name, problem):
    (task, network), (other_task, other_network) = pair(name, problem)
    start, other_start = (
        torch_impl.meta.unroll.start(task, network),
        tf_impl.meta.unroll.start(other_task, other_network),
    )
    for _ in range(2):  # the second unroll starts from carried state
        end, *recorded = torch_impl.meta.unroll.advance(task, network, start, STEPS)
        other_end, *other_recorded = tf_impl.meta.unroll.advance(
            other_task, other_network, other_start, STEPS
        )
        for got, expected, what in zip(other_recorded, recorded, ("loss", "gradient", "input"), strict=True):
            close(got, expected, 1e-9, what)
        for loss in ("sum", "last"):
            for coordinates in (None, rng(0, "test").choice(recorded[1].shape[1], 50, replace=False)):
                keep = torch_impl.meta.unroll.decay_factor(network)
                assert keep == tf_impl.meta.unroll.decay_factor(other_network)
                c = torch_impl.meta.unroll.cotangents(recorded[1], loss, keep)
                other_c = tf_impl.meta.unroll.cotangents(other_recorded[1], loss, keep)
                expected = torch_impl.meta.unroll.meta_gradient(
                    network, start.state, recorded[2], c, coordinates
                )
                got = tf_impl.meta.unroll.meta_gradient(
                    other_network, other_start.state, other_recorded[2], other_c, coordinates
                )
                assert got.keys() == expected.keys()
                for key, value in expected.items():
                    close(got[key], value, 1e-8, key)
        start, other_start = end, other_end


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.usefixtures("code")
def test_rollouts_equal_the_oracle(name):
    _, (task, network) = pair(name, "quadratic", 4)
    expected, _ = reference.unroll(
        TEACHERS[name],
        {key: w.numpy() for key, w in network.weights.items()},
        task.initial().numpy(),
        reference.quadratic(*task.instance.constants()[:2]),
        STEPS,
    )
    np.testing.assert_allclose(tf_impl.meta.unroll.rollout(task, network, STEPS), expected, rtol=1e-10)


@pytest.mark.usefixtures("code")
def test_evolution_strategies_agree():
    (task, network), (other_task, other_network) = pair("rp_s", "quadratic")
    settings = {"steps": 5, "scales": {"out/b": 0.5}, "pairs": 2, "sigma": 0.01}
    expected, losses = evolution(lambda k: task, network, generator=rng(0, "evolution"), **settings)
    got, other_losses = evolution(
        lambda k: other_task, other_network, generator=rng(0, "evolution"), **settings
    )
    close(other_losses, losses, 1e-10)
    for key, value in expected.items():
        close(got[key], value, 1e-6, key)
        close(other_network.weights[key], network.weights[key], 1e-15)


@pytest.fixture(scope="module")
def gradients() -> np.ndarray:
    """1,000 steps of Adam on digits-mlp at 40 coordinates of all tensors, float32 [step, coordinate]."""
    task = torch_impl.problems.tasks.ProblemTask(Instance(PROBLEMS["digits-mlp"], 0), torch.float32)
    theta = task.initial().requires_grad_()
    adam, rows = torch.optim.Adam([theta], lr=0.003), []
    chosen = np.linspace(0, len(theta) - 1, 40).astype(int)
    for step in range(1000):
        _, theta.grad = torch_impl.problems.tasks.value_and_gradient(task, theta, step)
        rows.append(theta.grad.numpy()[chosen])
        adam.step()
    return np.stack(rows)


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.usefixtures("code")
def test_float32_outputs_agree_in_open_loop_over_1000_recorded_steps(name, gradients):
    weights = initial_weights(TEACHERS[name], 2)
    one = torch_impl.networks.teacher.TeacherNetwork(TEACHERS[name], weights, torch.float32)
    other = tf_impl.networks.teacher.TeacherNetwork(TEACHERS[name], weights, tf.float32)
    state = one.initial_state(torch.zeros(40))
    other_state = other.initial_state(tf.zeros(40))
    for step, g in enumerate(gradients):
        with torch.no_grad():
            x, state = one.inputs(torch.from_numpy(g), state)
            out, hidden = one.step(one.weights, x, state.network, state.t)
            state = dataclasses.replace(state, network=hidden)
        other_x, other_state = other.inputs(tf.constant(g), other_state)
        other_out, hidden = other.step(other.weights, other_x, other_state.network, other_state.t)
        other_state = dataclasses.replace(other_state, network=hidden)
        for a, b in ((x, other_x), (out, other_out)):
            a, b = a.numpy(), b.numpy()
            assert (np.abs(a - b) <= 2e-6 * np.maximum(1.0, np.abs(a))).all(), (name, step)
