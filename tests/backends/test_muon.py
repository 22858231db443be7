"""The baseline ``muon``: the rule of that name on a problem's tensors, in both frameworks."""

import numpy as np
import pytest

from common.tables.baselines import parse_spec
from common.tables.problems import Instance, problem_row
from interchange.language.view import canonical, vector
from interchange.rule.rule import Rule

SHAPES = ((3, 2, 2, 5), (5,), (4, 7), (7,))


def test_it_steps_as_the_rule_with_adamws_beta2_does(impl):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape) for shape in SHAPES]
    rows = [[rng.normal(size=shape) for shape in SHAPES] for _ in range(6)]
    params, views = impl.parameters(start), [canonical(shape) for shape in SHAPES]
    source = impl.module("sources").load(parse_spec("muon:momentum=0.8,weight_decay=0.1"))
    optimizer = source.optimizer(params, 0.02, views)
    rule = Rule.named("muon", momentum=0.8, beta2=0.999)
    g = np.stack([np.concatenate([x.ravel() for x in row]) for row in rows])
    theta = np.concatenate([x.ravel() for x in start])
    for row, u in zip(rows, rule.evaluate({"g": g}, shapes=SHAPES), strict=True):
        impl.feed(optimizer, params, row)
        theta = (1.0 - 0.02 * 0.1) * theta + 0.02 * u
    got = np.concatenate([impl.value(p).ravel() for p in params])
    np.testing.assert_allclose(got, theta, rtol=0, atol=1e-12)


def test_a_functions_x_is_no_layer(impl):
    """x [batch, n] of a function has rows that know nothing of each other."""
    values = [np.ones((6, 3))]
    params, others = impl.parameters(values), impl.parameters(values)
    muon = impl.module("sources").load(parse_spec("muon")).optimizer(params, 0.01, [vector((6, 3))])
    adam = impl.baseline("adam", others, 0.01)
    for _ in range(3):
        impl.feed(muon, params, [np.arange(18.0).reshape(6, 3)])
        impl.feed(adam, others, [np.arange(18.0).reshape(6, 3)])
    np.testing.assert_allclose(impl.value(params[0]), impl.value(others[0]), rtol=1e-12)


@pytest.mark.parametrize("problem", ["digits-conv", "digits-mlp", "quadratic-k10"])
def test_it_trains_networks_and_functions(impl, problem):
    dtype = impl.module("tensors").DTYPES["float32"]
    task = impl.module("problems.tasks").ProblemTask(Instance(problem_row(problem), 0), dtype)
    source = impl.module("sources").load(parse_spec("muon"))
    losses = impl.module("rollout").rollout(source, 0.02, task, 60, score=False).losses
    assert losses[-1] < 0.6 * losses[0]
