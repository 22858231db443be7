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
from tests.parity.backends import (
    BACKENDS,
    SELDOM,
    all_close,
    close,
    networks,
    tasks,
    tf,
    tf_impl,
    torch,
    torch_impl,
)

STEPS = 12
DECAYED = dataclasses.replace(with_weight_decay(with_schedule(Rule.named("adam"), 0.05), 0.2), scale=0.01)
RULES = {"decayed": {"kinds": False}, "kinds": {"kinds": True}}
QUICK = ("rp_s", "rp_s_m", "kinds")  # on the larger problem
pytestmark = pytest.mark.slow_with(name=[name for name in TEACHERS if name.endswith(("_m", "_f"))])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        pytest.param(n, p, marks=[] if p == "quadratic" or n in QUICK else pytest.mark.slow)
        for p in ("quadratic", "digits-mlp")
        for n in (*TEACHERS, *RULES, "rp_s_11")
    ],
)
@pytest.mark.slow_with(code=("plain",), name=SELDOM)
@pytest.mark.usefixtures("code")
def test_losses_gradients_inputs_and_meta_gradients_agree(name, problem):
    both = networks(DECAYED, **RULES[name]) if name in RULES else networks(name)
    unrolls = [backend.meta.unroll for backend, _ in BACKENDS]
    decay, other = (unroll.decay_factor(network) for unroll, network in zip(unrolls, both, strict=True))
    assert decay == other
    given = list(zip(unrolls, both, tasks(problem), strict=True))
    at = [unroll.start(task, network) for unroll, network, task in given]
    for _ in range(2):  # the second unroll starts from carried state
        outs, back = ([], []), [backend.networks.structure.by_outputs for backend, _ in BACKENDS]
        ran = [
            u.advance(task, n, start, STEPS, outs=kept)
            for (u, n, task), start, kept in zip(given, at, outs, strict=True)
        ]
        (_, *expected), (_, *got) = ran
        for a, b, what in zip(got, expected, ("loss", "gradient", "input"), strict=True):
            close(a, b, 1e-9, what)
        some = rng(0, "test").choice(expected[1].shape[1], 50, replace=False)
        for loss, coordinates in (("sum", None), ("sum", some), ("last", some), ("log", None)):
            grads = []
            for k, ((unroll, network, task), start, found) in enumerate(zip(given, at, ran, strict=True)):
                _, losses, gradients, inputs = found
                c = unroll.cotangents(gradients, loss, decay, losses=losses)
                c = back[k](network, task, outs[k], c)
                grads.append(unroll.meta_gradient(network, start.state, inputs, c, coordinates))
            all_close(grads[1], grads[0], 1e-8)
        at = [end for end, *_ in ran]


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.usefixtures("code")
def test_rollouts_equal_the_oracle(name):
    task, network = tasks("quadratic", 4)[1], networks(name, 4)[1]
    weights = {key: w.numpy() for key, w in network.weights.items()}
    quadratic = reference.quadratic(*task.instance.constants()[:2])
    expected, _ = reference.unroll(TEACHERS[name], weights, task.initial().numpy(), quadratic, STEPS)
    np.testing.assert_allclose(tf_impl.meta.unroll.rollout(task, network, STEPS), expected, rtol=1e-10)


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


@pytest.mark.parametrize("steps", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.usefixtures("code")
def test_float32_outputs_agree_in_open_loop_over_recorded_steps(name, steps, gradients):
    weights = initial_weights(TEACHERS[name], 2)
    one = torch_impl.networks.teacher.TeacherNetwork(TEACHERS[name], weights, torch.float32)
    other = tf_impl.networks.teacher.TeacherNetwork(TEACHERS[name], weights, tf.float32)
    state = one.initial_state(torch.zeros(40))
    other_state = other.initial_state(tf.zeros(40))
    for step, g in enumerate(gradients[:steps]):
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
