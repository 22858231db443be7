"""Rules in parameter groups: their own equations and constants, gradients through steps, compiled steps."""

import copy

import numpy as np
import pytest

from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounter  # noqa: E402

from tests.helpers import torch_side  # noqa: E402
from tests.helpers.samples import RULE, start  # noqa: E402
from torch_impl.optimizers.optimizers import SymbolicOptimizer  # noqa: E402

ADAM = Rule.named("adam")
AVERAGE = Rule.from_text("-c0 * ema_hat(g, b) - 0.1 * tanh(lag(g, 1))", {"c0": 0.5, "b": 0.8})
BIASED = Rule.from_text("0.25 - g")


def parameters(dtype: str = "float64") -> list[torch.nn.Parameter]:
    return torch_side.parameters(start(), dtype)


def feed(optimizers, params, steps: range) -> None:
    """Steps of optimizers that share the parameters among them."""
    for number in steps:
        draw = np.random.default_rng(number)
        torch_side.give(params, [draw.normal(size=tuple(p.shape)) for p in params])
        for optimizer in optimizers:
            optimizer.step()


def assert_close(params, others, rtol: float = 1e-13, atol: float = 1e-15) -> None:
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=rtol, atol=atol)


def test_two_groups_with_different_rules_are_two_optimizers(tmp_path):
    RULE.save(tmp_path / "rule.json")
    params, others = parameters(), parameters()
    own = {"params": params[:1], "rule": tmp_path / "rule.json", "constants": {"c0": 0.9}}
    together = SymbolicOptimizer([own, {"params": params[1:]}], ADAM, lr=0.1, constants={"beta1": 0.5})
    apart = [
        SymbolicOptimizer(others[:1], RULE.with_constants({"c0": 0.9}), lr=0.1),
        SymbolicOptimizer(others[1:], ADAM.with_constants({"beta1": 0.5}), lr=0.1),
    ]
    feed([together], params, range(5))
    feed(apart, others, range(5))
    assert all(map(torch.equal, params, others))
    assert together.state[params[0]].keys() - together.state[params[1]].keys() == {"s2", "s3"}


@pytest.mark.parametrize("foreach", [False, True])
def test_constants_may_be_changed_between_steps(foreach):
    """A number in the group, or a tensor in place; compared with the plain step."""
    c0 = torch.tensor(0.5, dtype=torch.float64)
    params, others = parameters(), parameters()
    optimizer = SymbolicOptimizer(params, AVERAGE, constants={"c0": c0}, foreach=foreach)
    other = SymbolicOptimizer(others, AVERAGE, foreach=False)
    feed([optimizer], params, range(3))
    feed([other], others, range(3))
    c0.fill_(0.125)
    optimizer.param_groups[0]["constants"]["b"] = other.param_groups[0]["constants"]["b"] = 0.4
    other.param_groups[0]["constants"]["c0"] = 0.125
    feed([optimizer], params, range(3, 6))
    feed([other], others, range(3, 6))
    assert_close(params, others, rtol=1e-12, atol=1e-14)
    assert optimizer.rule.constants == {"c0": 0.125, "b": 0.4}


def test_a_rule_that_moves_weights_at_zero_gradient_is_warned_of_once():
    params = parameters()
    with pytest.warns(RuntimeWarning, match=r"by up to 0\.25 \* lr a step; center=True") as told:
        SymbolicOptimizer([{"params": [p]} for p in params], BIASED)
    assert len(told) == 1 and told[0].filename == __file__


@pytest.mark.parametrize("foreach", [False, True])
def test_center_subtracts_what_the_rule_does_at_zero_gradient(foreach):
    (p,) = params = parameters()[1:2]
    optimizer = SymbolicOptimizer(params, BIASED, lr=0.1, center=True, foreach=foreach)
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p, before)
    p.grad = torch.ones_like(p)
    optimizer.step()
    torch.testing.assert_close(p.detach(), before - 0.1, rtol=1e-14, atol=1e-15)
    assert optimizer.rule == BIASED and copy.deepcopy(optimizer).param_groups[0]["center"]


def unrolled(lr, c0, b, start, steps: int = 5) -> torch.Tensor:
    """Loss after some differentiable steps on a quartic; its graph reaches all arguments."""
    p = start.clone()
    p.retain_grad()
    constants = {"c0": c0, "b": b}
    optimizer = SymbolicOptimizer(
        [p], AVERAGE, lr=lr, constants=constants, differentiable=True, weight_decay=0.1
    )
    for _ in range(steps):
        current = p.clone()
        (p.grad,) = torch.autograd.grad(current.pow(4).sum(), current, create_graph=True)
        optimizer.step()
    return p.square().sum()


def test_differentiable_hyper_gradients_equal_finite_differences():
    """By lr, by constants (a decay among them) and by the start, through state and bias corrections."""
    names = ("lr", "c0", "b")
    values = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.05, 0.5, 0.8)]
    start = torch.tensor([0.7, -0.4, 1.1], dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.grad(unrolled(*values, start), [*values, start])
    for k, name in enumerate(names):
        eps, sides = 1e-6, []
        for sign in (1.0, -1.0):
            moved = [v.detach() + sign * eps * (i == k) for i, v in enumerate(values)]
            sides.append(unrolled(*moved, start).item())
        numeric = (sides[0] - sides[1]) / (2 * eps)
        assert slopes[k].item() == pytest.approx(numeric, rel=1e-6), name
        assert abs(numeric) > 1e-3
    assert torch.isfinite(slopes[3]).all() and slopes[3].abs().min() > 1e-3


def waves(params, number: int) -> None:
    """Gradients of a step."""
    for p in params:
        p.grad = torch.cos(torch.arange(p.numel(), dtype=p.dtype).reshape(p.shape) + number)


@pytest.mark.slow_with(scheduled=("", "tensor"))
@pytest.mark.parametrize("scheduled", ["float", "tensor", ""])
def test_compiled_steps_are_not_compiled_again_after_the_second(scheduled):
    """Though t, lr and the numbers computed from them change at every step; values as uncompiled."""
    params, others = parameters(), parameters()
    lr = [torch.tensor(0.1, dtype=torch.float64) if scheduled == "tensor" else 0.1 for _ in range(2)]
    optimizer = SymbolicOptimizer(params, RULE, lr=lr[0], weight_decay=0.01)
    other = SymbolicOptimizer(others, RULE, lr=lr[1], weight_decay=0.01)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (optimizer, other) if scheduled]
    torch._dynamo.reset()
    optimizer._calls = 96  # so that the host looks for skipped steps at the fourth
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter)
    frames = []
    for number in range(7):
        waves(params, number)
        waves(others, number)
        with torch._dynamo.config.patch(error_on_recompile=number > 1):
            step()
        other.step()
        for schedule in schedules:
            schedule.step()
        frames.append(counter.frame_count)
    assert frames[0] > 0 and frames[1:] == [frames[1]] * 6, frames
    assert_close(params, others)
    assert optimizer.state[params[0]]["step"] == 7


@pytest.mark.slow
def test_a_step_compiled_by_inductor_is_the_same_step():
    params, others = parameters("float32"), parameters("float32")
    optimizer, other = (SymbolicOptimizer(x, RULE, lr=0.1) for x in (params, others))
    torch._dynamo.reset()
    step = torch.compile(optimizer.step)
    for number in range(5):
        waves(params, number)
        waves(others, number)
        if number == 2:
            params[1].grad[2] = others[1].grad[2] = torch.inf
        step()
        other.step()
    assert_close(params, others, rtol=1e-5, atol=1e-6)
    assert torch_side.counts(optimizer, params) == torch_side.counts(other, others)
