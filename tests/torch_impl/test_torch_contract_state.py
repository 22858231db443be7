"""What torch asks of its own optimizers' state and hooks, asked of rules; names as in torch/testing/_internal
(OptimizerInfo cases)."""

import copy
import io
import itertools
import pickle

import numpy as np
import pytest

from common.errors import L2OError
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from torch_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer  # noqa: E402

ADAM = Rule.named("adam")
SGD = Rule.from_text("-g")
L2O = Rule.from_text(
    "-c0 * tanh(m_tilde / c1) - c2 * asinh(lag(g, 2))",
    {"c0": 0.2, "c1": 0.7, "c2": 0.3},
    {"m_tilde": "ema_hat(g, 0.9) / (sqrt(ema_hat(square(g), 0.99)) + 1e-8)"},
    scale=0.5,
)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    draw = np.random.default_rng(0)
    return [torch.nn.Parameter(torch.tensor(draw.normal(size=s)).to(dtype)) for s in ((4, 3), (5,), ())]


def feed(optimizer, params, steps: range) -> None:
    for step in steps:
        draw = np.random.default_rng(step)
        for p in params:
            p.grad = torch.tensor(np.asarray(draw.normal(size=tuple(p.shape)))).to(p.dtype)
        optimizer.step()


def saved(optimizer: torch.optim.Optimizer) -> dict:
    """The state dict through a file, read as torch reads files from strangers."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_equal(params, others, one, other) -> None:
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        assert one.state[p].keys() == other.state[q].keys()
        for key, value in one.state[p].items():
            assert value.dtype == other.state[q][key].dtype and torch.equal(value, other.state[q][key])


@pytest.mark.parametrize("rule", [ADAM, L2O], ids=["adam", "l2o"])
def test_state_dict_deterministic(rule):
    """Two optimizers, one loaded from the other midway, make the same steps."""
    params = parameters()
    optimizer = SymbolicOptimizer(params, rule, lr=0.1)
    feed(optimizer, params, range(5))
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SymbolicOptimizer(others, rule, lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    feed(optimizer, params, range(5, 9))
    feed(other, others, range(5, 9))
    assert_equal(params, others, optimizer, other)
    assert optimizer.state_dict()["param_groups"] == other.state_dict()["param_groups"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_save_load_equality_with_weights_only(dtype):
    """State stays float32 under parameters of 16 bits; so do rule, constants and settings."""
    params = parameters(dtype)
    optimizer = SymbolicOptimizer(params, L2O, lr=0.1, constants={"c0": torch.tensor(0.4)}, weight_decay=0.01)
    feed(optimizer, params, range(5))
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SymbolicOptimizer(others, SGD)
    other.load_state_dict(saved(optimizer))
    assert other.rule == optimizer.rule and other.rule.constants["c0"] == pytest.approx(0.4)
    assert other.param_groups[0]["weight_decay"] == 0.01
    work = torch.promote_types(dtype, torch.float32)
    assert all(other.state[q][f"s{i}"].dtype == work for q in others for i in range(4))
    feed(optimizer, params, range(5, 9))
    feed(other, others, range(5, 9))
    assert_equal(params, others, optimizer, other)


def test_can_load_older_state_dict():
    """One without the keys that came later: settings take their defaults, counters start at 0."""
    params = parameters()
    optimizer = SymbolicOptimizer(params, ADAM, lr=0.1)
    feed(optimizer, params, range(3))
    older = copy.deepcopy(optimizer.state_dict())
    for group in older["param_groups"]:
        for key in ("rule", "constants", "center", "foreach", "capturable", "differentiable", "maximize"):
            del group[key]
    for state in older["state"].values():
        del state["skipped"]
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SymbolicOptimizer(others, ADAM)
    other.load_state_dict(older)
    assert other.param_groups[0]["lr"] == 0.1 and other.param_groups[0]["foreach"] is None
    feed(optimizer, params, range(3, 6))
    feed(other, others, range(3, 6))
    assert_equal(params, others, optimizer, other)


@pytest.mark.parametrize("kind", [int, float])
def test_load_nontensor_step(kind):
    params = parameters()
    optimizer = SymbolicOptimizer(params, ADAM, lr=0.1)
    feed(optimizer, params, range(3))
    older = copy.deepcopy(optimizer.state_dict())
    for state in older["state"].values():
        state["step"] = kind(state["step"])
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SymbolicOptimizer(others, ADAM)
    other.load_state_dict(older)
    feed(optimizer, params, range(3, 6))
    feed(other, others, range(3, 6))
    assert_equal(params, others, optimizer, other)


def test_a_dict_of_other_groups_is_refused():
    params = parameters()
    one = SymbolicOptimizer(params, ADAM)
    two = SymbolicOptimizer([{"params": params[:1]}, {"params": params[1:]}], ADAM)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        two.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        one.load_state_dict(SymbolicOptimizer(params[:2], ADAM).state_dict())


OPTIMIZERS = {
    "rp_s": lambda params: LearnedOptimizer(params, "rp_s"),
    "rnnprop": lambda params: LearnedOptimizer(params, "rnnprop"),
    "dm": lambda params: LearnedOptimizer(params, "dm"),
    "adam": lambda params: SymbolicOptimizer(params, ADAM),
}


@pytest.mark.parametrize(("one", "other"), itertools.permutations(OPTIMIZERS, 2))
def test_state_of_another_optimizer_is_refused_and_nothing_changes(one, other):
    """The compiled step would read and write beyond the arrays."""
    check_refused(one, parameters(), other, parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_another_model_is_refused_and_nothing_changes(name):
    larger = [torch.nn.Parameter(torch.randn(3 * len(p), *p.shape[1:])) for p in parameters()[:2]]
    check_refused(name, parameters()[:2], name, larger)


def check_refused(one, params, other, others) -> None:
    giver, taker = OPTIMIZERS[one](params), OPTIMIZERS[other](others)
    feed(giver, params, range(2))
    feed(taker, others, range(2))
    before = copy.deepcopy(taker.state_dict())
    state = giver.state_dict()
    if "adam" in (one, other) and one != other:  # a rule comes with its group
        for group, own in zip(state["param_groups"], before["param_groups"], strict=True):
            group |= {key: own[key] for key in ("rule", "constants", "center") if key in own}
    with pytest.raises(L2OError, match="expected arrays of state of shapes"):
        taker.load_state_dict(state)
    after = taker.state_dict()
    assert after["param_groups"] == before["param_groups"]
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    feed(taker, others, range(2, 4))


def test_deepcopy_copies_all_public_attrs():
    params = parameters()
    optimizer = SymbolicOptimizer(params, ADAM)
    feed(optimizer, params, range(2))
    public = {key for key in vars(optimizer) if not key.startswith("_")}
    assert {key for key in vars(copy.deepcopy(optimizer)) if not key.startswith("_")} == public


@pytest.mark.parametrize("way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_goes_on_bit_by_bit_with_rule_constants_and_groups(way):
    params = parameters()
    groups = [
        {"params": params[:1], "rule": L2O, "constants": {"c2": 0.1}},
        {"params": params[1:], "lr": 0.2},
    ]
    optimizer = SymbolicOptimizer(groups, ADAM, lr=torch.tensor(0.1), maximize=True)
    feed(optimizer, params, range(3))
    other, others = way((optimizer, params))
    feed(other, others, range(3, 7))
    assert not torch.equal(params[0], others[0])
    feed(optimizer, params, range(3, 7))
    assert_equal(params, others, optimizer, other)
    assert repr(other) == repr(optimizer)


def test_pickles_from_before_the_rule_was_in_the_groups_are_read():
    params = parameters()
    optimizer = SymbolicOptimizer(params, L2O)
    state = copy.deepcopy(optimizer.__getstate__()) | {"rule_json": L2O.to_json()}
    for group in (state["defaults"], *state["param_groups"]):
        for key in ("rule", "constants", "center", "foreach", "capturable"):
            del group[key]
    older = SymbolicOptimizer.__new__(SymbolicOptimizer)
    older.__setstate__(state)
    assert older.rule == L2O
    others = older.param_groups[0]["params"]
    feed(older, others, range(3))
    feed(optimizer, params, range(3))
    assert_equal(params, others, optimizer, older)


def test_post_hook_and_pre_hook():
    params = parameters()
    optimizer = SymbolicOptimizer(params, ADAM)
    seen = []

    def before(given, args, kwargs):
        seen.append(("before", given is optimizer, params[0].detach().clone()))

    def after(given, args, kwargs):
        seen.append(("after", given is optimizer, params[0].detach().clone()))

    handles = optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)
    start = params[0].detach().clone()
    feed(optimizer, params, range(1))
    assert [(when, same) for when, same, _ in seen] == [("before", True), ("after", True)]
    assert torch.equal(seen[0][2], start) and torch.equal(seen[1][2], params[0])
    for handle in handles:
        handle.remove()
    feed(optimizer, params, range(1, 2))
    assert len(seen) == 2


def test_step_all_hooks():
    """Those of all optimizers and its own, in torch's order."""
    params, order = parameters(), []
    optimizer = SymbolicOptimizer(params, ADAM)
    handles = [
        register_optimizer_step_pre_hook(lambda *_: order.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: order.append("global post")),
        optimizer.register_step_pre_hook(lambda *_: order.append("pre")),
        optimizer.register_step_post_hook(lambda *_: order.append("post")),
    ]
    try:
        feed(optimizer, params, range(1))
    finally:
        for handle in handles:
            handle.remove()
    assert order == ["global pre", "pre", "post", "global post"]


def test_state_dict_pre_hook_and_post_hook():
    params = parameters()
    optimizer = SymbolicOptimizer(params, ADAM)
    optimizer.register_state_dict_pre_hook(lambda o: o.param_groups[0].update(lr=0.25))
    optimizer.register_state_dict_post_hook(lambda o, made: {**made, "note": "kept"})
    made = optimizer.state_dict()
    assert made["param_groups"][0]["lr"] == 0.25 and made["note"] == "kept"


def test_load_state_dict_pre_hook_and_post_hook():
    """The state is taken from what the last pre-hook returns, in its dtype, before any post-hook looks."""
    params = parameters(torch.bfloat16)
    optimizer = SymbolicOptimizer(params, ADAM)
    feed(optimizer, params, range(2))
    other, seen = SymbolicOptimizer(params, ADAM), []

    def double(_, given):
        given = copy.deepcopy(given)
        given["state"][0]["s0"] *= 2.0
        return given

    other.register_load_state_dict_pre_hook(double)
    other.register_load_state_dict_post_hook(lambda o: seen.append(o.state[params[0]]["s0"].clone()))
    other.load_state_dict(optimizer.state_dict())
    assert seen[0].dtype == torch.float32 and torch.equal(seen[0], 2.0 * optimizer.state[params[0]]["s0"])
    assert len(other._optimizer_load_state_dict_pre_hooks) == 1  # none of the optimizer's own stays behind


def test_grad_scaling_skips_a_step_whose_gradients_overflowed():
    """GradScaler leaves out the step; state is not even made."""
    params = parameters(torch.float32)
    optimizer = SymbolicOptimizer(params, ADAM, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = [p.detach().clone() for p in params]
    for factor, moved in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(factor * sum(p.square().sum() for p in params)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert bool(optimizer.state) is moved
        assert all(torch.equal(p, q) is not moved for p, q in zip(params, before, strict=True))
    assert scaler.get_scale() == 4.0
    torch.testing.assert_close(params[1].detach(), before[1] - 0.1 * before[1].sign(), rtol=1e-5, atol=1e-6)


def test_gradient_none_keeps_state_and_step():
    params = parameters()
    optimizer = SymbolicOptimizer(params, ADAM)
    feed(optimizer, params, range(2))
    kept = copy.deepcopy(optimizer.state[params[1]])
    params[1].grad = None
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert all(torch.equal(value, kept[key]) for key, value in optimizer.state[params[1]].items())
    assert optimizer.state[params[0]]["step"] == 3


def test_parameters_that_become_trainable_later_join():
    params = parameters()
    optimizer = SymbolicOptimizer(params[:1], ADAM, lr=0.1)
    feed(optimizer, params[:1], range(2))
    optimizer.add_param_group({"params": params[1:], "rule": SGD, "lr": 0.5})
    before = [p.detach().clone() for p in params]
    feed(optimizer, params, range(2, 3))
    torch.testing.assert_close(params[1].detach(), before[1] - 0.5 * params[1].grad, rtol=1e-14, atol=0)
    assert optimizer.state[params[0]]["step"] == 3 and optimizer.state[params[1]]["step"] == 1
