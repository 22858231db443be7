"""What torch asks of its own optimizers' steps, asked of rules and teachers: settings, dtypes, layouts.

Names are those of torch/testing/_internal (OptimizerInfo cases).
"""

import numpy as np
import pytest

from common import kernels
from interchange.files.weights import Teacher
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from tests.helpers.samples import L2O, gradients  # noqa: E402
from tests.helpers.samples import start as values  # noqa: E402
from tests.helpers.torch_side import feed, optimizer, parameters  # noqa: E402
from torch_impl.optimizers import baselines  # noqa: E402
from torch_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer  # noqa: E402

NAMES = ("sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "lion")
RULES = {name: Rule.named(name) for name in NAMES} | {"l2o": L2O}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
FOREACH = pytest.mark.parametrize("foreach", [False, True])
ADAM, SGD = RULES["adam"], RULES["sgd"]
rule_and_teacher = pytest.mark.parametrize("given", [L2O, Teacher.named("rp_s")], ids=["rule", "teacher"])


def start(dtype: str = "float64") -> list[torch.nn.Parameter]:
    return parameters(values(), dtype)


def walked(params, given, grads, **options) -> torch.optim.Optimizer:
    """An optimizer after its steps."""
    one = optimizer(params, given, **options)
    for row in grads:
        feed(one, params, row)
    return one


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


def copies(params) -> list[torch.Tensor]:
    return [p.detach().clone(memory_format=torch.preserve_format).requires_grad_() for p in params]


def clones(grads) -> list[torch.Tensor]:
    return [g.clone() for g in grads]


def set_grads(params, grads) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g


@every_rule
@FOREACH
@pytest.mark.parametrize("contiguous", [True, False])
def test_param_group_with_lrschedulers_goes_right_direction(rule, foreach, contiguous):
    params, loss = problem(contiguous)
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 4e-3}]
    one = SymbolicOptimizer(groups, rule, lr=2e-3, foreach=foreach)
    step_lr = torch.optim.lr_scheduler.StepLR(one, step_size=10, gamma=0.9)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(one, threshold=0.0)
    first = loss().item()
    for _ in range(20):
        one.zero_grad()
        loss().backward()
        one.step()
        step_lr.step()
        plateau.step(loss().item())
    assert loss().item() < first
    assert [group["lr"] / 0.81 for group in one.param_groups] == pytest.approx([2e-3, 4e-3])


@every_rule
@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-dim", "1-element"])
@pytest.mark.parametrize("shared", [False, True])
def test_tensor_lr(rule, shape, shared):
    """As with a float, its identity kept; one tensor in two groups is one lr."""
    params, loss = problem(dtype=torch.float64)
    others = copies(params)
    lr = torch.full(shape, 2e-3, dtype=torch.float64)
    groups = [{"params": [p], "lr": lr} for p in params] if shared else params
    one, reference = SymbolicOptimizer(groups, rule, lr=lr), SymbolicOptimizer(others, rule, lr=2e-3)
    schedule = None if shared else torch.optim.lr_scheduler.ExponentialLR(one, 0.9)
    for step in range(6):
        one.zero_grad()
        loss().backward()
        set_grads(others, clones(p.grad for p in params))
        one.step()
        reference.step()
        if schedule is None:
            lr.mul_(0.9)
        else:
            schedule.step()
        reference.param_groups[0]["lr"] = 2e-3 * 0.9 ** (step + 1)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-15)
    assert all(group["lr"] is lr for group in one.param_groups)


@rule_and_teacher
def test_param_groups_have_their_own_settings(given):
    params, grads = start(), gradients(4)
    settings = ({"lr": 0.5}, {"lr": 0.0, "weight_decay": 0.1}, {"maximize": True, "weight_decay": 0.2})
    groups = [{"params": [p], **own} for p, own in zip(params, settings, strict=True)]
    one = walked(groups, given, [], lr=2.0)
    assert [group["lr"] for group in one.param_groups] == [0.5, 0.0, 2.0]
    for row in grads:
        feed(one, params, row)
    for k, options in enumerate(settings):
        alone = start()[k : k + 1]
        walked(alone, given, [row[k : k + 1] for row in grads], **{"lr": 2.0, **options})
        assert torch.equal(params[k], alone[0])
    assert torch.equal(params[1], start()[1]) and not torch.equal(params[2], start()[2])


@rule_and_teacher
def test_maximize_is_minimizing_the_negative(given):
    params, others = start(), start()
    walked(params, given, gradients(5), maximize=True, weight_decay=0.1, lr=0.5)
    walked(others, given, [[-g for g in row] for row in gradients(5)], weight_decay=0.1, lr=0.5)
    assert all(map(torch.equal, params, others))


@rule_and_teacher
@pytest.mark.parametrize("option", ["capturable", "differentiable"])
def test_masked_and_differentiable_steps_are_the_same_steps(given, option):
    params, others, grads = start(), start(), gradients(5)
    grads[2][1][0] = np.inf
    for p in params:
        p.requires_grad_(False)  # a leaf cannot be changed in place while gradients are recorded
    one = walked(params, given, grads, weight_decay=0.1, **{option: True})
    other = walked(others, given, grads, weight_decay=0.1)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q.detach(), rtol=1e-12, atol=1e-14)
        assert one.state[p]["step"] == other.state[q]["step"]


@rule_and_teacher
def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned(given):
    params, calls = start(), []
    one = optimizer(params, given)

    def closure() -> torch.Tensor:
        one.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        calls.append(loss.item())
        return loss

    assert one.step(closure).item() == calls[0] and len(calls) == 1
    assert not any(map(torch.equal, params, start()))
    assert one.step() is None


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
        set_grads(params, [torch.randn(s, generator=draw).to(dtype) for s in shapes])
        set_grads(others, clones(p.grad for p in params))
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
        set_grads(params, [torch.cos(torch.arange(12.0) + step).to(d) for d in dtypes])
        set_grads(others, clones(p.grad for p in params))
        together.step()
        for one in alone:
            one.step()
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
        for one in optimizers:
            one.step()
    assert torch.equal(torch.view_as_real(z), parts)
    assert all(not value.is_complex() for value in optimizers[0].state[z].values())


@every_rule
@FOREACH
@pytest.mark.parametrize(
    ("shape", "grad", "steps", "weight_decay"),
    [((10, 5), None, 0, 0.1), ((10, 5), 0.0, 3, 0.0), ((0, 3), 0.0, 3, 0.1)],
    ids=["no grads", "zero grads", "empty grads"],
)
def test_step_is_noop(rule, foreach, shape, grad, steps, weight_decay):
    p = torch.full(shape, 0.5).requires_grad_()
    one = SymbolicOptimizer([p], rule, weight_decay=weight_decay, foreach=foreach)
    for _ in range(3):
        p.grad = None if grad is None else torch.full(shape, grad)
        one.step()
    assert torch.equal(p, torch.full(shape, 0.5)) and one.state[p].get("step", 0) == steps


@every_rule
def test_non_empty_state(rule):
    """``rule.state_floats`` arrays in the parameter's shape and layout, a step count and the guard's."""
    params = start("float32")
    one = walked(params, rule, gradients(2), lr=1e-3)
    for p in params:
        state = one.state[p]
        assert set(state) == {"step", "skipped", *(f"s{i}" for i in range(rule.state_floats))}
        assert state["step"] == 2 and state["step"].shape == () and state["step"].dtype == torch.float32
        assert all(state[f"s{i}"].shape == p.shape for i in range(rule.state_floats))


@pytest.mark.parametrize("kind", ["rule", "rule, one by one", "teacher"])
def test_channels_last_and_turned_parameters_keep_their_layout(kind):
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 4, 5, generator=draw)
    params = [
        image.to(memory_format=torch.channels_last).requires_grad_(),
        torch.randn(4, 3).t().requires_grad_(),
    ]
    others = [p.detach().contiguous().clone().requires_grad_() for p in params]
    layouts = [p.stride() for p in params]
    if kind == "teacher":
        optimizers = [LearnedOptimizer(x, "rp_s") for x in (params, others)]
    else:
        optimizers = [SymbolicOptimizer(x, L2O, 0.1, foreach=kind == "rule") for x in (params, others)]
    for mixed in (False, True, False):
        for p, q in zip(params, others, strict=True):
            q.grad = torch.randn(p.shape, generator=draw)
            p.grad = q.grad.clone() if mixed else torch.empty_like(p).copy_(q.grad)
        for one in optimizers:
            one.step()
    for p, q, stride in zip(params, others, layouts, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-7)
        assert p.stride() == stride
        assert kind == "teacher" or optimizers[0].state[p]["s0"].stride() == stride


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nadamw_is_torchs_but_for_the_rounding_of_its_product(dtype):
    params, others = start(dtype), start(dtype)
    mine = baselines.make("nadamw", params, 0.01, {"weight_decay": 0.1})
    theirs = torch.optim.NAdam(others, 0.01, weight_decay=0.1, decoupled_weight_decay=True)
    for row in gradients(50):
        feed(mine, params, row)
        feed(theirs, others, row)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        shapes = [{k: v.shape for k, v in state.items()} for state in (mine.state[p], theirs.state[q])]
        assert shapes[0] == shapes[1]


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())
@pytest.mark.parametrize(
    ("foreach", "expected"), [(None, ["many"]), (True, ["many"]), (False, ["one", "one"])]
)
def test_defaults_changed_to_foreach(foreach, expected, monkeypatch):
    """Without a word about it many tensors are stepped at once; with foreach=False one by one."""
    seen = []
    whole, single = SymbolicOptimizer._step_compiled, SymbolicOptimizer._step_one
    monkeypatch.setattr(SymbolicOptimizer, "_step_compiled", lambda *a: seen.append("many") or whole(*a))
    monkeypatch.setattr(SymbolicOptimizer, "_step_one", lambda *a: seen.append("one") or single(*a))
    walked(start()[:2], ADAM, [row[:2] for row in gradients(1)], foreach=foreach)
    assert seen == expected


@pytest.mark.usefixtures("code")
def test_autograd_is_told_of_a_step():
    """A graph that saw the parameter before refuses to go backwards with the new one."""
    params = start()
    loss = sum(p.square().sum() for p in params)
    walked(params, SGD, gradients(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiled_code_rounds_to_16_bits_as_torch_does(dtype):
    base = torch.linspace(-2.0, 2.0, 1001)
    params = [torch.nn.Parameter(base.to(dtype)) for _ in range(2)]
    for p, foreach in zip(params, (None, False), strict=True):
        one = SymbolicOptimizer([p], SGD, lr=0.0123, weight_decay=0.5, foreach=foreach)
        for _ in range(5):
            p.grad = (3.0 * torch.cos(base)).to(dtype)
            one.step()
    assert torch.equal(*params) and not torch.equal(params[0], base.to(dtype))


@pytest.mark.usefixtures("code")
def test_a_lag_of_the_gradient_survives_zero_grad_in_place():
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    one, updates = SymbolicOptimizer([p], Rule.from_text("lag(g, 1)")), []
    for g in (1.0, 2.0, 3.0, 4.0):
        one.zero_grad(set_to_none=False)
        before = p.item()
        (p * g).sum().backward()
        one.step()
        updates.append(p.item() - before)
    assert updates == [0.0, 1.0, 2.0, 3.0]
