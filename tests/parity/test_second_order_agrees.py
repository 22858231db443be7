"""Second-order meta-gradients: TensorFlow against torch in float64."""

import dataclasses

import numpy as np
import pytest

from common.tables import layers as net
from common.tables.problems import PROBLEMS, Instance, Problem
from common.tables.teachers import TEACHERS, initial_weights
from interchange.rule.decay import with_schedule, with_weight_decay
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")
tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")

import tf_impl.meta.second_order  # noqa: E402
import tf_impl.meta.unroll  # noqa: E402
import tf_impl.networks.rule  # noqa: E402
import tf_impl.networks.teacher  # noqa: E402
import tf_impl.problems.tasks  # noqa: E402
import torch_impl.meta.second_order  # noqa: E402
import torch_impl.meta.unroll  # noqa: E402
import torch_impl.networks.rule  # noqa: E402
import torch_impl.networks.teacher  # noqa: E402
import torch_impl.problems.tasks  # noqa: E402

STEPS = 10
# No bias before batch norm: its gradient is rounding errors only, other ones in each backend.
NORM_LAYERS = (net.Layer("conv", out=4, size=3, pad=1, bias=False), net.NORM, net.RELU, *net.mlp())
NORM = Problem("probe", "classifier", "digits", NORM_LAYERS)


def tasks(problem: str):
    row = NORM if problem == "norm" else PROBLEMS[problem]
    given = Instance(row, 1, batch_size=32)
    return (
        torch_impl.problems.tasks.ProblemTask(given, torch.float64),
        tf_impl.problems.tasks.ProblemTask(given, tf.float64),
    )


def teachers(name: str):
    weights = initial_weights(TEACHERS[name], 1)
    return (
        torch_impl.networks.teacher.TeacherNetwork(TEACHERS[name], weights, torch.float64),
        tf_impl.networks.teacher.TeacherNetwork(TEACHERS[name], weights, tf.float64),
    )


def rules(name: str):
    rule = dataclasses.replace(Rule.named(name), scale=0.01)
    rule = with_schedule(with_weight_decay(rule, 0.1), 0.01)
    return torch_impl.networks.rule.RuleNetwork(rule), tf_impl.networks.rule.RuleNetwork(rule)


def assert_agree(networks, problem: str) -> None:
    """Losses, ends and meta-gradients of two unrolls, the second from carried state.

    Relative to the largest entry of each array, and to four roundings of the largest of all gradients.
    """
    (network, other), (task, other_task) = networks, tasks(problem)
    start, other_start = (
        torch_impl.meta.unroll.start(task, network),
        tf_impl.meta.unroll.start(other_task, other),
    )
    for loss in ("sum", "last"):
        start, losses, expected = torch_impl.meta.second_order.unrolled(task, network, start, STEPS, loss)
        other_start, other_losses, got = tf_impl.meta.second_order.unrolled(
            other_task, other, other_start, STEPS, loss
        )
        assert got.keys() == expected.keys()
        ends = {"losses": (losses, other_losses), "theta": (start.theta, other_start.theta)}
        largest = max(float(np.abs(w).max()) for w in expected.values())
        for key, (a, b) in (ends | {key: (w, got[key]) for key, w in expected.items()}).items():
            a, b = np.asarray(a), np.asarray(b)
            assert np.abs(a).max() > 0.0, key
            room = 1e-9 * np.abs(a).max() + (0.0 if key in ends else 1e-15 * largest)
            assert np.abs(a - b).max() <= room, (loss, key)


def cases(names: list[str], problems: list[str], quick: str) -> list:
    """Every name on every problem; quick are all names on digits-mlp, and one name on all."""
    return [
        pytest.param(n, p, marks=[] if n == quick or p == "digits-mlp" else pytest.mark.slow)
        for n in names
        for p in problems
    ]


@pytest.mark.parametrize(
    ("name", "problem"),
    cases(["dm", "rnnprop", "rp_s", "rp_si"], ["quadratic", "digits-mlp", "norm"], "rp_s"),
)
def test_second_order_gradients_of_teachers_agree(name, problem):
    assert_agree(teachers(name), problem)


@pytest.mark.parametrize(
    ("name", "problem"), cases(["adam", "nesterov", "psi"], ["rastrigin", "digits-mlp", "norm"], "adam")
)
def test_second_order_gradients_of_rules_agree(name, problem):
    assert_agree(rules(name), problem)
