"""What torch asks of its own optimizers' state and hooks, asked of rules and teachers.

Names are those of torch/testing/_internal (OptimizerInfo cases).
"""

import copy
import io
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest

from common.errors import L2OError
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from tests.helpers import torch_side  # noqa: E402
from tests.helpers.samples import L2O, enlarged, start  # noqa: E402
from torch_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer  # noqa: E402

ADAM = Rule.named("adam")
SGD = Rule.from_text("-g")
DTYPES = ["float64", "float32", "bfloat16", "float16"]
OPTIMIZERS = {
    "rp_s": lambda params, **o: LearnedOptimizer(params, "rp_s", **o),
    "rnnprop": lambda params, **o: LearnedOptimizer(params, "rnnprop", **o),
    "dm": lambda params, **o: LearnedOptimizer(params, "dm", **o),
    "rp_s_m": lambda params, **o: LearnedOptimizer(params, enlarged("rp_s_m"), **o),
    "rnnprop_f": lambda params, **o: LearnedOptimizer(params, enlarged("rnnprop_f"), **o),
    "adam": lambda params, **o: SymbolicOptimizer(params, ADAM, **o),
}


def parameters(dtype: str = "float64") -> list[torch.nn.Parameter]:
    return torch_side.parameters(start(), dtype)


def again(params) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


def feed(optimizer, params, steps: range) -> None:
    for step in steps:
        draw = np.random.default_rng(step)
        torch_side.feed(optimizer, params, [draw.normal(size=tuple(p.shape)) for p in params])


def assert_equal(params, others, one, other) -> None:
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        assert one.state[p].keys() == other.state[q].keys()
        for key, value in one.state[p].items():
            assert value.dtype == other.state[q][key].dtype and torch.equal(value, other.state[q][key])


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """Read as torch reads files from strangers."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def older(state: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that came later: settings take their defaults, counters start at 0."""
    state = copy.deepcopy(state)
    for group in state["param_groups"]:
        for key in ("rule", "constants", "center", "foreach", "capturable", "differentiable", "maximize"):
            group.pop(key, None)
    for values in state["state"].values():
        del values["skipped"]
    return state


def with_steps_as(kind: type):
    """Numbers where torch had none but tensors later (its test_load_nontensor_step)."""

    def changed(state: dict[str, Any]) -> dict[str, Any]:
        state = copy.deepcopy(state)
        for values in state["state"].values():
            values["step"] = kind(values["step"])
        return state

    return changed


WAYS = {
    "as it is": lambda state: state,
    "weights_only": through_a_file,
    "older": older,
    "int steps": with_steps_as(int),
    "float steps": with_steps_as(float),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_save_load_equality_and_state_dict_deterministic(make, way, dtype):
    """An optimizer loaded from another midway goes on bit by bit, and leaves what it was given alone."""
    params = parameters(dtype)
    optimizer = make(params, lr=0.1)
    feed(optimizer, params, range(5))
    others, given = again(params), way(optimizer.state_dict())
    kept, other = copy.deepcopy(given["state"]), make(others, lr=7.0)
    other.load_state_dict(given)
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    feed(other, others, range(5, 9))
    if way is not WAYS["as it is"]:
        torch.testing.assert_close(given["state"], kept, rtol=0, atol=0)
    feed(optimizer, params, range(5, 9))
    assert_equal(params, others, optimizer, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loaded_rule_brings_its_settings_and_keeps_the_constants_asked_for(dtype):
    """State stays float32 under parameters of 16 bits."""
    params = parameters(dtype)
    optimizer = SymbolicOptimizer(params, L2O, lr=0.1, constants={"c0": torch.tensor(0.4)}, weight_decay=0.01)
    feed(optimizer, params, range(5))
    others = again(params)
    other = SymbolicOptimizer(others, L2O, constants={"c0": 0.25})
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert other.rule.constants["c0"] == 0.25
    other.param_groups[0]["constants"] = optimizer.param_groups[0]["constants"]
    assert other.param_groups[0]["weight_decay"] == 0.01
    feed(optimizer, params, range(5, 9))
    feed(other, others, range(5, 9))
    assert_equal(params, others, optimizer, other)


def test_a_dict_of_other_groups_is_refused():
    params = parameters()
    one = SymbolicOptimizer(params, ADAM)
    two = SymbolicOptimizer([{"params": params[:1]}, {"params": params[1:]}], ADAM)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        two.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        one.load_state_dict(SymbolicOptimizer(params[:2], ADAM).state_dict())


@pytest.mark.parametrize(
    ("one", "other", "times"),
    [
        *((one, other, 1) for one, other in itertools.permutations(OPTIMIZERS, 2)),
        *((name, name, 3) for name in OPTIMIZERS),
    ],
)
def test_state_of_another_optimizer_or_model_is_refused_and_nothing_changes(one, other, times):
    """The compiled step would read and write beyond the arrays."""
    params = parameters()[:2]
    others = [torch.nn.Parameter(torch.randn(times * len(p), *p.shape[1:])) for p in params]
    giver, taker = OPTIMIZERS[one](params), OPTIMIZERS[other](others)
    feed(giver, params, range(2))
    feed(taker, others, range(2))
    before, state = copy.deepcopy(taker.state_dict()), giver.state_dict()
    if "adam" in (one, other) and one != other:  # a rule comes with its group
        for group, own in zip(state["param_groups"], before["param_groups"], strict=True):
            group |= {key: own[key] for key in ("rule", "constants", "center") if key in own}
    with pytest.raises(L2OError, match=r"expected arrays of state of shapes|expected state of the"):
        taker.load_state_dict(state)
    for group, own in zip(state["param_groups"], before["param_groups"], strict=True):
        group.pop("teacher", None)  # as in files from before it was there
        if "rule" not in own:
            group.pop("rule", None)
    if {one, other} != {"rp_s", "rp_s_m"}:  # of which nothing else can tell the state apart
        with pytest.raises(L2OError, match="expected arrays of state of shapes"):
            taker.load_state_dict(state)
    after = taker.state_dict()
    assert after["param_groups"] == before["param_groups"]
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    feed(taker, others, range(2, 4))


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
    found = SymbolicOptimizer.__new__(SymbolicOptimizer)
    found.__setstate__(state)
    assert found.rule == L2O
    others = found.param_groups[0]["params"]
    feed(found, others, range(3))
    feed(optimizer, params, range(3))
    assert_equal(params, others, optimizer, found)


def test_step_all_hooks():
    """Those of all optimizers and its own, in torch's order; removed, they are called no more."""
    params, seen = parameters(), []
    optimizer = SymbolicOptimizer(params, ADAM)

    def hook(name: str):
        return lambda *_: seen.append((name, params[0].detach().clone()))

    handles = [
        register_optimizer_step_pre_hook(hook("global pre")),
        register_optimizer_step_post_hook(hook("global post")),
        optimizer.register_step_pre_hook(hook("pre")),
        optimizer.register_step_post_hook(hook("post")),
    ]
    before = params[0].detach().clone()
    try:
        feed(optimizer, params, range(1))
    finally:
        for handle in handles:
            handle.remove()
    assert [name for name, _ in seen] == ["global pre", "pre", "post", "global post"]
    assert [torch.equal(p, before) for _, p in seen] == [True, True, False, False]
    feed(optimizer, params, range(1, 2))
    assert len(seen) == 4


def test_load_state_dict_pre_hook_and_post_hook():
    """The state is taken from what the last pre-hook returns, in its dtype, before any post-hook looks."""
    params = parameters("bfloat16")
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
    params = parameters("float32")
    optimizer = SymbolicOptimizer(params, ADAM, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = again(params)
    for factor, moved in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(factor * sum(p.square().sum() for p in params)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert bool(optimizer.state) is moved
        assert all(torch.equal(p, q) is not moved for p, q in zip(params, before, strict=True))
    assert scaler.get_scale() == 4.0
    torch.testing.assert_close(params[1].data, before[1] - 0.1 * before[1].sign(), rtol=1e-5, atol=1e-6)


def test_parameters_that_become_trainable_later_join():
    params = parameters()
    optimizer = SymbolicOptimizer(params[:1], ADAM, lr=0.1)
    feed(optimizer, params[:1], range(2))
    optimizer.add_param_group({"params": params[1:], "rule": SGD, "lr": 0.5})
    before = again(params)
    feed(optimizer, params, range(2, 3))
    torch.testing.assert_close(params[1].data, before[1] - 0.5 * params[1].grad, rtol=1e-14, atol=0)
    assert torch_side.counts(optimizer, params) == [3, 1, 1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.Adam(p), "an optimizer that is neither a rule nor a teacher"),
        (lambda p: torch.optim.SGD(p, 0.1), "an optimizer that is neither a rule nor a teacher"),
        (lambda p: SymbolicOptimizer(p, Rule.named("rmsprop")), "the rule 'rmsprop', u = "),
        (lambda p: LearnedOptimizer(p, "rp_s"), "the teacher whose hash begins with"),
    ],
)
def test_another_optimizers_state_is_refused_where_shapes_would_fit(make, words):
    params = parameters()
    giver, taker = make(params), SymbolicOptimizer(again(params), Rule.named("momentum"))
    feed(giver, params, range(2))
    with pytest.raises(ValueError, match=r"expected state of the rule 'momentum', u = .*, got") as caught:
        taker.load_state_dict(giver.state_dict())
    assert words in str(caught.value) and "\n" not in str(caught.value) and not taker.state
    with pytest.raises(ValueError, match="expected state of the teacher 'rp_s', got that of the rule 'sgd'"):
        LearnedOptimizer(again(params), "rp_s").load_state_dict(
            SymbolicOptimizer(params, Rule.named("sgd")).state_dict()
        )


@pytest.mark.parametrize("kind", [np.float64, np.float32, float])
def test_numpy_numbers_become_plain_ones_which_torch_loads_by_default(kind):
    params = parameters()
    optimizer = SymbolicOptimizer(
        params, Rule.named("adam"), lr=kind(0.5), constants={"beta1": kind(0.75)}, weight_decay=kind(0.25)
    )
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": kind(0.5)})
    for group in through_a_file(optimizer.state_dict())["param_groups"]:
        assert type(group["lr"]) is type(group["constants"]["beta1"]) is type(group["weight_decay"]) is float


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 2], ids=["before the first step", "later"])
def test_what_a_wrapper_keeps_in_a_parameters_state_changes_nothing_and_is_saved(name, before):
    """As timm's Lookahead does; it may be no tensor."""
    make = OPTIMIZERS[name]
    params = parameters("float32")
    others, thirds = again(params), again(params)
    plain, wrapped, loaded = make(params), make(others), make(thirds)
    feed(plain, params, range(5))
    feed(wrapped, others, range(before))
    for q in others:
        wrapped.state[q] |= {"slow": torch.ones(3), "count": 7}
    assert not wrapped.stuck()
    feed(wrapped, others, range(before, 4))
    loaded.load_state_dict(wrapped.state_dict())
    for q, r in zip(others, thirds, strict=True):
        r.data.copy_(q)
        assert torch.equal(loaded.state[r]["slow"], torch.ones(3)) and loaded.state[r]["count"] == 7
    feed(wrapped, others, range(4, 5))
    feed(loaded, thirds, range(4, 5))
    for p, q, r in zip(params, others, thirds, strict=True):
        assert torch.equal(p, q) and torch.equal(q, r)
    for q in others:
        q.grad.fill_(math.nan)
    wrapped.step()
    with pytest.warns(RuntimeWarning, match="because the gradient was not finite"):
        wrapped.check_finite()
