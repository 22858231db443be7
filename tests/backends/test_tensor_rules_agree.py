"""Meta-training of rules that see tensors: TensorFlow against torch, by every estimator."""

import functools

import numpy as np
import pytest

from common.rng import rng
from tests.helpers.evolving import Persistent, evolution
from tests.helpers.tensor_rules import RULES
from tests.parity.backends import all_close, networks, tasks, tf_impl, torch_impl

IMPLS = (torch_impl, tf_impl)
pytestmark = pytest.mark.slow


def first(impl, task, network, at):
    _, _, gradients, inputs = impl.meta.unroll.advance(task, network, at, 5)
    c = impl.meta.unroll.cotangents(gradients, "sum", impl.meta.unroll.decay_factor(network))
    return impl.meta.unroll.meta_gradient(network, at.state, inputs, c)


def second(impl, task, network, at):
    return impl.meta.second_order.unrolled(task, network, at, 5, "sum")[2]


@pytest.mark.parametrize("problem", ["digits-mlp", "digits-conv"])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("estimate", [first, second])
def test_meta_gradients_agree(name, problem, estimate):
    found = []
    for impl, task, network in zip(IMPLS, tasks(problem, 0, 8), networks(RULES[name]), strict=True):
        at = impl.meta.unroll.advance(task, network, impl.meta.unroll.start(task, network), 3)[0]
        found.append(estimate(impl, task, network, at))
    all_close(found[1], found[0], 1e-9)


def digits(which: int):
    return lambda k: tasks("digits-mlp", k, 8)[which]


@pytest.mark.parametrize("name", RULES)
def test_evolution_strategies_agree(name):
    found, pieces = [], []
    for which, network in enumerate(networks(RULES[name])):
        run = functools.partial(evolution, digits(which), network)
        found.append(run(5, network.rates, rng(0, "evolution"), 2, 0.05))
        persistent = Persistent(
            digits(which), network, network.rates, 0.05, 2, rng(0, "evolution"), horizon=5
        )
        pieces += [persistent.advance(steps) for steps in (3, 2)]
    for (expected, losses), (got, others) in (found, pieces[::2], pieces[1::2]):
        np.testing.assert_allclose(others, losses, rtol=1e-10)
        all_close(got, expected, 1e-8)
