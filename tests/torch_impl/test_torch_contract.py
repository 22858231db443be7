"""What torch asks of its own optimizers' steps, asked of rules; names as in torch/testing/_internal
(OptimizerInfo cases). Settings, groups, directions, dtypes, layouts."""

import numpy as np
import pytest

from common import kernels
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from torch_impl.optimizers.optimizers import SymbolicOptimizer  # noqa: E402

RULES = {
    name: Rule.named(name) for name in ("sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "lion")
} | {
    "l2o": Rule.from_text(
        "-c0 * tanh(m_tilde / c1) - c2 * asinh(lag(g, 2))",
        {"c0": 0.2, "c1": 0.7, "c2": 0.3},
        {"m_tilde": "ema_hat(g, 0.9) / (sqrt(ema_hat(square(g), 0.99)) + 1e-8)"},
        scale=0.5,
    )
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
FOREACH = pytest.mark.parametrize("foreach", [False, True])
ADAM = RULES["adam"]


def problem(contiguous: bool = True, dtype: torch.dtype = torch.float32):
    """Weight, bias and the loss (Wx + b)^2 for one x."""
    draw = np.random.default_rng(0)
    weight = torch.tensor(draw.normal(size=(10, 5)), dtype=dtype)
    if not contiguous:
        weight = torch.tensor(draw.normal(size=(10, 5, 2)), dtype=dtype)[..., 0]
        assert not weight.is_contiguous()
    params = [weight.requires_grad_(), torch.tensor(draw.normal(size=10), dtype=dtype, requires_grad=True)]
    x = torch.tensor(draw.normal(size=5), dtype=dtype)
    return params, lambda: (params[0].mv(x) + params[1]).square().sum()


def descend(optimizer: torch.optim.Optimizer, loss, steps: int, schedulers=()) -> tuple[float, float]:
    """Loss before and after."""

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    first = closure().item()
    for _ in range(steps):
        optimizer.step(closure)
        for scheduler in schedulers:
            scheduler.step()
    return first, loss().item()


def copies(params) -> list[torch.Tensor]:
    return [p.detach().clone(memory_format=torch.preserve_format).requires_grad_() for p in params]


def give(params, grads) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g


@every_rule
@FOREACH
@pytest.mark.parametrize("contiguous", [True, False])
def test_forloop_goes_right_direction(rule, foreach, contiguous):
    params, loss = problem(contiguous)
    first, last = descend(SymbolicOptimizer(params, rule, lr=1e-3, foreach=foreach), loss, 20)
    assert last < first


@every_rule
@FOREACH
def test_forloop_goes_right_direction_with_lrscheduler(rule, foreach):
    params, loss = problem()
    optimizer = SymbolicOptimizer(params, rule, lr=2e-3, foreach=foreach)
    schedulers = [
        torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.9),
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, threshold=0.0),
    ]
    first = loss().item()
    for _ in range(20):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedulers[0].step()
        schedulers[1].step(loss().item())
    assert loss().item() < first
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-3 * 0.81)


@every_rule
@FOREACH
def test_param_group_with_lrscheduler_goes_right_direction(rule, foreach):
    params, loss = problem()
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 4e-3}]
    optimizer = SymbolicOptimizer(groups, rule, lr=2e-3, foreach=foreach)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
    first, last = descend(optimizer, loss, 10, [scheduler])
    assert last < first
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(5e-4), pytest.approx(1e-3)]


@every_rule
@pytest.mark.parametrize("shared", [False, True])
def test_tensor_lr(rule, shared):
    """As with a float, its identity kept; one tensor in two groups is one lr."""
    params, loss = problem(dtype=torch.float64)
    others = copies(params)
    lr = torch.tensor(2e-3, dtype=torch.float64)
    groups = [{"params": [p], "lr": lr} for p in params] if shared else params
    optimizer = SymbolicOptimizer(groups, rule, lr=lr)
    reference = SymbolicOptimizer(others, rule, lr=2e-3)
    schedule = None if shared else torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for step in range(6):
        optimizer.zero_grad()
        loss().backward()
        give(others, [p.grad.clone() for p in params])
        optimizer.step()
        reference.step()
        if schedule is None:
            lr.mul_(0.9)
        else:
            schedule.step()
        reference.param_groups[0]["lr"] = 2e-3 * 0.9 ** (step + 1)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-15)
    assert all(group["lr"] is lr for group in optimizer.param_groups)


@every_rule
@FOREACH
def test_param_groups_lr(rule, foreach):
    params, loss = problem()
    groups = [{"params": params[:1], "lr": 0.0}, {"params": params[1:]}]
    before = copies(params)
    first, last = descend(SymbolicOptimizer(groups, rule, lr=1e-3, foreach=foreach), loss, 10)
    assert torch.equal(params[0], before[0]) and not torch.equal(params[1], before[1])
    assert last < first


@every_rule
@FOREACH
def test_param_groups_weight_decay(rule, foreach):
    """Each group its own, decoupled: beside an update that has not seen it."""
    params, _ = problem(dtype=torch.float64)
    others, before = copies(params), copies(params)
    groups = [{"params": params[:1], "weight_decay": 0.5}, {"params": params[1:]}]
    for tensors, given in ((params, groups), (others, others)):
        give(tensors, [torch.ones_like(p) for p in tensors])
        SymbolicOptimizer(given, rule, lr=0.1, foreach=foreach).step()
    torch.testing.assert_close(params[0], others[0] - 0.05 * before[0], rtol=1e-13, atol=1e-14)
    assert torch.equal(params[1], others[1])


@pytest.mark.parametrize("name", ["momentum", "rmsprop", "adagrad", "adam", "l2o"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_foreach_matches_forloop(name, weight_decay, maximize, dtype):
    draw = torch.Generator().manual_seed(0)
    shapes = [(3, 7), (5,), (), (0, 4), (30,), (2, 3, 4)]
    params = [torch.randn(s, generator=draw).to(dtype).requires_grad_() for s in shapes]
    others = copies(params)
    options = {"lr": 0.05, "weight_decay": weight_decay, "maximize": maximize}
    one = SymbolicOptimizer(params, RULES[name], foreach=True, **options)
    other = SymbolicOptimizer(others, RULES[name], foreach=False, **options)
    for _ in range(8):
        give(params, [torch.randn(s, generator=draw).to(dtype) for s in shapes])
        give(others, [p.grad.clone() for p in params])
        one.step()
        other.step()
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance / 10)
        assert one.state[p].keys() == other.state[q].keys()
        for key, value in one.state[p].items():
            torch.testing.assert_close(value, other.state[q][key], rtol=max(tolerance / 10, 1e-12), atol=1e-6)


@every_rule
def test_mixed_device_dtype(rule):
    """One group with parameters of several dtypes: each as if it were alone."""
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    params = [torch.linspace(-1.0, 1.0, 12).to(d).requires_grad_() for d in dtypes]
    others = copies(params)
    together = SymbolicOptimizer(params, rule, lr=0.1)
    alone = [SymbolicOptimizer([q], rule, lr=0.1) for q in others]
    for step in range(4):
        for p, q in zip(params, others, strict=True):
            p.grad = torch.cos(torch.arange(12.0) + step).to(p.dtype)
            q.grad = p.grad.clone()
        together.step()
        for optimizer in alone:
            optimizer.step()
    for p, q in zip(params, others, strict=True):  # in the end float32 is rounded to the 16 bits
        rounding = torch.finfo(p.dtype).eps if p.itemsize == 2 else {4: 1e-6, 8: 1e-14}[p.itemsize]
        torch.testing.assert_close(p, q, rtol=rounding, atol=rounding / 10)
    assert {together.state[p]["s0"].dtype for p in params if "s0" in together.state[p]} <= set(dtypes[:2])


@every_rule
@FOREACH
@pytest.mark.parametrize("shape", [(6,), (4, 3)], ids=["complex", "complex_2d"])
def test_complex(rule, foreach, shape):
    """A complex parameter moves as its real and imaginary part do."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(shape, dtype=torch.complex128, generator=draw).requires_grad_()
    parts = torch.view_as_real(z).detach().clone().requires_grad_()
    optimizers = [SymbolicOptimizer([p], rule, lr=0.1, foreach=foreach) for p in (z, parts)]
    for _ in range(4):
        z.grad = torch.randn(shape, dtype=torch.complex128, generator=draw)
        parts.grad = torch.view_as_real(z.grad).clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(torch.view_as_real(z), parts)
    assert all(not value.is_complex() for value in optimizers[0].state[z].values())


@every_rule
@FOREACH
def test_step_is_noop_when_params_have_no_grad(rule, foreach):
    params, _ = problem()
    before = copies(params)
    optimizer = SymbolicOptimizer(params, rule, weight_decay=0.1, foreach=foreach)
    optimizer.step()
    assert all(map(torch.equal, params, before)) and not any(optimizer.state.values())


@every_rule
@FOREACH
def test_step_is_noop_for_zero_grads(rule, foreach):
    params, _ = problem()
    before = copies(params)
    optimizer = SymbolicOptimizer(params, rule, foreach=foreach)
    for _ in range(3):
        give(params, [torch.zeros_like(p) for p in params])
        optimizer.step()
    assert all(map(torch.equal, params, before))


@every_rule
@FOREACH
def test_step_is_noop_for_empty_grads(rule, foreach):
    p = torch.zeros(0, 3).requires_grad_()
    optimizer = SymbolicOptimizer([p], rule, foreach=foreach)
    for _ in range(3):
        p.grad = torch.zeros(0, 3)
        optimizer.step()
    assert optimizer.state[p]["step"] == 3 and p.shape == (0, 3)


@every_rule
def test_non_empty_state(rule):
    """``rule.state_floats`` arrays in the parameter's shape and layout, a step count and the guard's."""
    params, loss = problem()
    optimizer = SymbolicOptimizer(params, rule, lr=1e-3)
    descend(optimizer, loss, 2)
    for p in params:
        state = optimizer.state[p]
        assert set(state) == {"step", "skipped", *(f"s{i}" for i in range(rule.state_floats))}
        assert state["step"] == 2 and state["step"].shape == () and state["step"].dtype == torch.float32
        assert all(state[f"s{i}"].shape == p.shape for i in range(rule.state_floats))


@FOREACH
def test_channels_last_and_turned_parameters_keep_their_layout(foreach):
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 4, 5, generator=draw)
    params = [
        image.to(memory_format=torch.channels_last).requires_grad_(),
        torch.randn(4, 3).t().requires_grad_(),
    ]
    others = [p.detach().contiguous().clone().requires_grad_() for p in params]
    layouts = [p.stride() for p in params]
    optimizers = [SymbolicOptimizer(x, RULES["l2o"], lr=0.1, foreach=foreach) for x in (params, others)]
    for mixed in (False, True, False):
        for p, q in zip(params, others, strict=True):
            q.grad = torch.randn(p.shape, generator=draw)
            p.grad = q.grad.clone() if mixed else torch.empty_like(p).copy_(q.grad)
        for optimizer in optimizers:
            optimizer.step()
    for p, q, stride in zip(params, others, layouts, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-7)
        assert p.stride() == stride == optimizers[0].state[p]["s0"].stride()


@FOREACH
def test_rosenbrock(foreach):
    """The valley is followed as torch's Adam follows it."""
    starts = [torch.tensor([1.5, 1.5], dtype=torch.float64, requires_grad=True) for _ in range(2)]
    optimizers = [
        SymbolicOptimizer(starts[:1], ADAM, lr=0.1, foreach=foreach),
        torch.optim.Adam(starts[1:], lr=0.1),
    ]
    for _ in range(700):
        for x, optimizer in zip(starts, optimizers, strict=True):
            optimizer.zero_grad()
            ((1.0 - x[0]) ** 2 + 100.0 * (x[1] - x[0] ** 2) ** 2).backward()
            optimizer.step()
    torch.testing.assert_close(*starts, rtol=1e-9, atol=0)
    assert (starts[0] - 1.0).norm() < 0.2


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())
def test_defaults_changed_to_foreach(monkeypatch):
    """Without a word about it many tensors are stepped at once; with foreach=False one by one."""
    seen = []
    whole, single = SymbolicOptimizer._step_compiled, SymbolicOptimizer._step_one
    monkeypatch.setattr(SymbolicOptimizer, "_step_compiled", lambda *a: seen.append("many") or whole(*a))
    monkeypatch.setattr(SymbolicOptimizer, "_step_one", lambda *a: seen.append("one") or single(*a))
    for foreach, expected in ((None, ["many"]), (True, ["many"]), (False, ["one", "one"])):
        params, loss = problem()
        seen.clear()
        descend(SymbolicOptimizer(params, ADAM, lr=1e-3, foreach=foreach), loss, 1)
        assert seen == expected
