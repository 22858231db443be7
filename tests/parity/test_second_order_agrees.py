"""Second-order meta-gradients: TensorFlow against torch in float64."""

import dataclasses

import numpy as np
import pytest

from common.tables import networks as net
from common.tables.problems import Problem
from interchange.rule.decay import with_schedule, with_weight_decay
from interchange.rule.rule import Rule
from tests.helpers.evolving import by_constants
from tests.parity.backends import BACKENDS, networks, tasks

STEPS = 10
# No bias before batch norm: its gradient is rounding errors only, other ones in each backend.
NORM_LAYERS = (net.Layer("conv", out=4, size=3, pad=1, bias=False), net.NORM, net.RELU, *net.mlp())
NORM = Problem("probe", "classifier", "digits", NORM_LAYERS)


def subject(name: str) -> str | Rule:
    """A teacher's name, or a rule with weight decay and a schedule."""
    if name not in ("adam", "nesterov", "psi"):
        return name
    rule = dataclasses.replace(Rule.named(name), scale=0.01)
    return with_schedule(with_weight_decay(rule, 0.1), 0.01)


def cases(names: list[str], problems: list[str], quick: str) -> list:
    """Every name on every problem; quick are all names on digits-mlp, and one name on all."""
    return [
        pytest.param(n, p, marks=[] if n == quick or p == "digits-mlp" else pytest.mark.slow)
        for n in names
        for p in problems
    ]


@pytest.mark.parametrize(
    ("name", "problem"),
    cases(["dm", "rnnprop", "rp_s", "rp_si"], ["quadratic", "digits-mlp", "norm"], "rp_s")
    + cases(["adam", "nesterov", "psi"], ["rastrigin", "digits-mlp", "norm"], "adam"),
)
def test_second_order_gradients_agree(name, problem):
    """Losses, ends and meta-gradients of two unrolls, the second from carried state.

    Relative to the largest entry of each array, and to four roundings of the largest of all gradients.
    """
    kinds = [backend.meta for backend, _ in BACKENDS]
    both = list(
        zip(kinds, tasks(NORM if problem == "norm" else problem), networks(subject(name)), strict=True)
    )
    at = [meta.unroll.start(task, network) for meta, task, network in both]
    for loss in ("sum", "last"):
        found = [
            meta.second_order.unrolled(task, network, start, STEPS, loss)
            for (meta, task, network), start in zip(both, at, strict=True)
        ]
        grads = [by_constants(network, by) for (*_, network), (*_, by) in zip(both, found, strict=True)]
        (one, losses, _), (other, other_losses, _), (expected, got) = *found, grads
        assert got.keys() == expected.keys()
        ends = {"losses": (losses, other_losses), "theta": (one.theta, other.theta)}
        largest = max(np.abs(w).max() for w in expected.values())
        for key, (a, b) in (ends | {key: (w, got[key]) for key, w in expected.items()}).items():
            a, b = np.asarray(a), np.asarray(b)
            assert np.abs(a).max() > 0.0, key
            room = 1e-9 * np.abs(a).max() + (0.0 if key in ends else 1e-15 * largest)
            assert np.abs(a - b).max() <= room, (loss, key)
        at = [one, other]
