"""Torch files of rules that see tensors: a group's rows, small state, the guard, derivatives."""

import numpy as np
import pytest

from interchange.language.execute import evaluate_with_tangents
from interchange.language.view import canonical, matrix
from interchange.rule.rule import Rule
from tests.helpers.layers import FACTORS, KINDS, MUON, RULES, SHAPES, gradients, updates
from tests.parity.rule_runners import load

torch = pytest.importorskip("torch")


def layers(shapes=SHAPES, dtype=torch.float64) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]


def feed(optimizer, params, row) -> None:
    for p, g in zip(params, row, strict=True):
        p.grad = torch.tensor(g).to(p.dtype)
    optimizer.step()


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, 1e-11), (torch.float32, 1e-3)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_layers_in_canonical_layout_get_the_oracles_updates(rule, kind, dtype, exact):
    params, rows = layers(dtype=dtype), gradients(kind)
    groups = [{"params": [p], "rows": (-1,) if p.dim() > 1 else None} for p in params]
    optimizer = load(rule, "torch").RuleOptimizer(groups)
    for row in rows:
        feed(optimizer, params, row)
    for p, u, shape in zip(params, updates(rule, rows), SHAPES, strict=True):
        np.testing.assert_allclose(
            p.detach().numpy(), u.sum(0), rtol=0, atol=exact * np.abs(u).max(initial=0.0)
        )
        if 0 not in shape:
            kept = [a.numel() for name, a in optimizer.state[p].items() if name.startswith("slot_")]
            assert sum(kept) == rule.state_size(shape)


def test_groups_without_rows_take_the_other_branch_and_the_usual_rows_are_axis_0():
    params, (row,) = layers([(3, 4)] * 3), gradients("usual", [(3, 4)] * 3, 1)
    groups = [
        {"params": params[:1]},
        {"params": params[1:2], "rows": (1,)},
        {"params": params[2:], "rows": ()},
    ]
    feed(load(MUON, "torch").RuleOptimizer(groups), params, row)
    views = matrix((3, 4), (0,)), canonical((3, 4)), canonical((3, 4), False)
    for p, g, view in zip(params, row, views, strict=True):
        u = MUON.evaluate({"g": g.reshape(1, -1)}, shapes=[view]).reshape(3, 4)
        np.testing.assert_allclose(p.detach().numpy(), u, rtol=0, atol=1e-12)


def test_state_of_a_row_goes_on_where_any_of_its_coordinates_does():
    rule = Rule.from_text("-g - 0 * ema(row_mean(tanh(g)), 0.5)")
    (p,) = params = layers([(4, 3)])
    optimizer = load(rule, "torch").RuleOptimizer(params, lr=10.0)
    g = np.ones((4, 3))
    g[0, 1] = g[2] = 1.7e308
    feed(optimizer, params, [g])
    np.testing.assert_array_equal(p.detach().numpy(), np.where(g == 1.0, -10.0, 0.0))
    np.testing.assert_allclose(
        optimizer.state[p]["slot_0"].ravel(), 0.5 * np.tanh(g).mean(1) * [1, 1, 0, 1], rtol=1e-14
    )
    assert int(optimizer.state[p]["skipped"]) == 4 and int(optimizer.state[p]["step"]) == 1


def test_saved_state_continues_exactly():
    params, rows = layers(dtype=torch.bfloat16), gradients("usual")
    module = load(FACTORS, "torch")
    optimizer = module.RuleOptimizer(params, lr=0.1, rows=None)
    for row in rows[:2]:
        feed(optimizer, params, row)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = module.RuleOptimizer(others)
    other.load_state_dict(optimizer.state_dict())
    for row in rows[2:]:
        feed(optimizer, params, row)
        feed(other, others, row)
    assert all(map(torch.equal, params, others))


@pytest.mark.parametrize("rule", [MUON, FACTORS], ids=["muon", "factors"])
@pytest.mark.parametrize("shape", [(5, 3), (7,)])
def test_derivatives_by_constants_are_the_oracles(rule, shape):
    module, view = load(rule, "torch"), canonical(shape)
    g = np.stack([row[0] for row in gradients("usual", [shape])])
    constants = {
        n: torch.tensor(v, dtype=torch.float64, requires_grad=True) for n, v in rule.constants.items()
    }
    theta, rows = torch.zeros(shape, dtype=torch.float64), (-1,) if len(shape) > 1 else None
    state, total = module.init(theta, rows=rows), 0.0
    weights = np.cos(np.arange(g.size)).reshape(g.shape)
    for slope, weight in zip(g, weights, strict=True):
        u, state = module.update(torch.tensor(slope), state, theta, constants, rows=rows)
        total = total + (u * torch.tensor(weight)).sum()
    found = torch.autograd.grad(total, list(constants.values()), allow_unused=True)
    inputs = {"g": g, **rule.constants}
    _, tangents = evaluate_with_tangents(rule.program(view.matrix), inputs, list(constants), view)
    for slope, tangent in zip(found, tangents, strict=True):
        expected = float((tangent * weights).sum())
        assert (0.0 if slope is None else float(slope)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
