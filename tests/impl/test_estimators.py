"""Evolution strategies against what they estimate."""

import numpy as np
import pytest
import torch

from common.problems import PROBLEMS, Instance
from interchange import Rule
from torch_impl.estimators import LAST_SHARE, evolution, objective
from torch_impl.problems import ProblemTask
from torch_impl.symbolic import RuleNetwork

STEPS, SIGMA = 10, 0.1
SCALES = {"c0": 0.05, "c1": 1.0}


def task(number: int) -> ProblemTask:
    return ProblemTask(Instance(PROBLEMS["quadratic"], number), torch.float64)


def network() -> RuleNetwork:
    return RuleNetwork(Rule.from_text("c0 * ema(g, c1)", constants={"c0": -0.05, "c1": 0.5}))


def value_at(moves: dict[str, float]) -> float:
    net = network()
    for name, w in net.weights.items():
        w += moves[name]
    return objective(task(0), net, STEPS)[0]


def test_the_objective_is_the_mean_of_the_last_losses():
    value, losses = objective(task(0), network(), STEPS)
    assert len(losses) == STEPS
    assert value == pytest.approx(losses[-round(LAST_SHARE * STEPS) :].mean(), rel=1e-14)


def test_evolution_estimates_the_slope_of_the_smoothed_objective():
    net = network()
    draws = []
    for draw in range(100):
        grads, _ = evolution(lambda pair: task(0), net, STEPS, SCALES, np.random.default_rng(draw), 2, SIGMA)
        draws.append([float(grads[name]) for name in SCALES])
    mean, error = np.mean(draws, 0), np.std(draws, 0, ddof=1) / np.sqrt(len(draws))
    # d/dw E f(w + sigma s e) by Gauss-Hermite quadrature over both perturbations, differences outside.
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    for k, name in enumerate(SCALES):
        slope, h = 0.0, 1e-4 * SCALES[name]
        for a, wa in zip(nodes, weights, strict=True):
            for b, wb in zip(nodes, weights, strict=True):
                at = {"c0": SIGMA * SCALES["c0"] * a, "c1": SIGMA * SCALES["c1"] * b}
                up, down = ({**at, name: at[name] + sign * h} for sign in (1.0, -1.0))
                slope += wa * wb * (value_at(up) - value_at(down)) / (2.0 * h)
        slope /= weights.sum() ** 2
        assert abs(mean[k] - slope) < 4.0 * error[k]
    assert abs(mean[0]) > 10.0 * error[0]  # the slope itself is seen, not only noise around it


def test_evolution_leaves_the_weights_as_they_were_and_repeats_itself():
    net = network()
    before = {name: w.clone() for name, w in net.weights.items()}
    first, _ = evolution(task, net, STEPS, SCALES, np.random.default_rng(0), 3, SIGMA)
    again, _ = evolution(task, net, STEPS, SCALES, np.random.default_rng(0), 3, SIGMA)
    assert all(torch.equal(net.weights[name], before[name]) for name in before)
    assert all(torch.equal(first[name], again[name]) for name in before)


def test_a_rollout_that_diverges_counts_as_ten_times_its_first_loss():
    net = network()
    net.weights["c0"].fill_(1e12)
    value, losses = objective(task(0), net, 60)
    assert not np.isfinite(losses).all()
    assert value == pytest.approx(10.0 * losses[0])
