"""The planned executor of CPU steps: its values are the plain path's, whatever the cuts, proofs and packs."""

import itertools
import math

import numpy as np
import pytest

from interchange.operators import OPERATORS, TEMPORAL
from interchange.rule import Rule

torch = pytest.importorskip("torch")

from torch_impl import blocks, proofs  # noqa: E402
from torch_impl.certificate import FAR, bounds  # noqa: E402
from torch_impl.optimizers import NonFiniteError, SymbolicOptimizer  # noqa: E402
from torch_impl.symbolic import lower  # noqa: E402

CONSTANTS = {"c0": -0.7, "c1": 1.8, "b": 0.9}
POINTWISE = [name for name in OPERATORS if name not in {*TEMPORAL, "add", "sub", "mul", "div", "neg"}]
TEXTS = {
    **{
        name: f"{name}(g, c0 + theta) - 0.1 * {name}(c1, g)"
        if OPERATORS[name].arity == 2
        else f"{name}(g) - 0.1 * {name}(lag(g, 1))"
        for name in POINTWISE
    },
    "arithmetic": "(g + c0) * (c1 - g) / (2 - t * g) - -theta",
    "average": "ema(g, b) + ema_hat(g, b) * ema_hat(square(g), 0.5)",
    "average of one": "ema(c0, b) + ema_hat(t, 0.7) + g",
    "adam": "-ema_hat(g, b) / (sqrt(ema_hat(square(g), 0.99)) + 1e-8)",
    "scales": "ema_hat(g, b) - ema_hat(g, 0.5) + (c1 - ema_hat(g, b)) * (ema_hat(g, b) + 1)",
    "scales divided": "(c1 - ema_hat(g, b)) / ema_hat(abs(g), 0.3) - ema_hat(g, b) / (ema_hat(g, 0.2) + g)",
    "scaled state": "lag(ema_hat(g, b), 2) - 3 / ema_hat(exp(g), 0.5)",
    "scaled output": "-(-ema_hat(g, b))",
    "sums": "cumsum(g) * cummax(abs(g)) - cummax(-g)",
    "lags": "lag(g, 1) + lag(g, 3) + lag(theta, 2) + lag(lag(g, 1), 1) + lag(ema(g, b), 1)",
    "output is a slot": "lag(g, 1)",
    "output is an average": "ema(g, b)",
    "output is the gradient": "g",
    "output is the parameter": "theta",
    "output is a number": "c0 * t",
    "state is a number": "lag(t, 1) + g",
    "one average, two uses": "ema(g, b) - lag(ema(g, b), 2) * lag(ema(g, b), 1)",
    "average of an average": "ema(lag(ema(g, b), 1), 0.6) + ema(ema(g, b), b)",
    "roots": "sqrt(square(g)) + sqrt(g) + sqrt(cumsum(square(g))) + sqrt(lag(abs(g), 1))",
    "roots of what may be negative": "sqrt(abs(g) - 0.5) + sqrt(ema_hat(g, b)) + sqrt(-abs(g)) + sqrt(c0)",
    "hidden by greater": "greater(ema(1 / g, b), 0.5) + g",
}
# Rules whose update can be infinite or nan, or for whose operators there are no bounds.
UNPROVED = {
    TEXTS[name]
    for name in (
        *("pow", "powabs", "logabs", "log1p", "tan"),
        *("arithmetic", "scales divided", "scaled state", "hidden by greater"),
    )
}
quiet = pytest.mark.filterwarnings("ignore:rule 'rule' moves weights:RuntimeWarning")


def rule_of(text: str, scale: float = 1.0) -> Rule:
    used = {key: value for key, value in CONSTANTS.items() if key in text.replace("(", " ").replace(")", " ")}
    return Rule.from_text(text, used, scale=scale)


def pair(rule: Rule, shapes, dtype: torch.dtype, **options):
    """The same parameters under the planned path and the plain one."""
    draw = np.random.default_rng(0)
    params = [torch.tensor(draw.normal(size=s), dtype=dtype).requires_grad_() for s in shapes]
    others = [p.detach().clone().requires_grad_() for p in params]
    one = SymbolicOptimizer(params, rule, foreach=True, **options)
    return params, others, one, SymbolicOptimizer(others, rule, foreach=False, **options)


def feed(params, others, one, other, step: int, factor: float = 1.0) -> None:
    draw = np.random.default_rng(step)
    for p, q in zip(params, others, strict=True):
        p.grad = torch.tensor(factor * draw.normal(size=tuple(p.shape))).to(p.dtype)
        q.grad = p.grad.clone()
    one.step()
    other.step()


def assert_alike(params, others, one, other, rtol: float) -> None:
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol / 10, equal_nan=True)
        for key, value in one.state[p].items():
            torch.testing.assert_close(value, other.state[q][key], rtol=rtol, atol=rtol / 10, equal_nan=True)


def pieces(monkeypatch, size: int, staged: int = 2**20) -> None:
    monkeypatch.setattr(blocks, "PIECE", size)
    monkeypatch.setattr(blocks, "STAGED", staged)


@quiet
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("way", ["cut", "proved", "staged", "twice", "packed"])
def test_every_way_gives_the_values_of_the_plain_path(text, way, monkeypatch):
    """``cut``: as it comes; the others force one of the ways a tensor may be stepped."""
    pieces(monkeypatch, 1000 if way == "packed" else 4, staged=0 if way == "twice" else 2**20)
    if way in ("staged", "twice"):
        monkeypatch.setattr(proofs.Proofs, "find", lambda *_: None)
    looked_at, whole = [], blocks.Blocks._looked_at
    monkeypatch.setattr(blocks.Blocks, "_looked_at", lambda *a: looked_at.append(1) or whole(*a))
    shapes = [(3, 2), (5,), (1,)] if way in ("cut", "packed") else [(11,)]
    options = {"lr": 0.05, "weight_decay": 0.1}
    params, others, one, other = pair(
        rule_of(text, 1.5 if way == "cut" else 0.5), shapes, torch.float64, **options
    )
    for step in range(6):
        feed(params, others, one, other, step)
        assert_alike(params, others, one, other, 1e-11)
    if way == "proved":
        assert bool(looked_at) is (text in UNPROVED)


@pytest.mark.parametrize("name", ["adam", "lion", "rmsprop", "nesterov", "sgd"])
def test_usual_rules_are_proved_at_once_and_the_proof_lasts(name, monkeypatch):
    pieces(monkeypatch, 4)
    monkeypatch.setattr(blocks.Blocks, "_looked_at", None)
    made = []
    whole = proofs.Proofs._made
    monkeypatch.setattr(proofs.Proofs, "_made", lambda *a: made.append(1) or whole(*a))
    params, others, one, other = pair(Rule.named(name), [(11,)], torch.float32, lr=0.01)
    for step in range(30):
        feed(params, others, one, other, step)
    assert_alike(params, others, one, other, 1e-4)
    assert len(made) <= (3 if one.rule.state_floats else 30)


def test_a_proof_is_made_anew_when_gradients_grow_or_somebody_changes_the_state(monkeypatch):
    pieces(monkeypatch, 4)
    made = []
    whole = proofs.Proofs._made
    monkeypatch.setattr(proofs.Proofs, "_made", lambda *a: made.append(1) or whole(*a))
    params, others, one, other = pair(Rule.named("adam"), [(11,)], torch.float32, lr=0.01)
    counts = []
    for step in range(12):
        if step == 4:
            one.state[params[0]]["s0"].mul_(2.0)
            other.state[others[0]]["s0"].mul_(2.0)
        if step == 9:
            for optimizer in (one, other):
                optimizer.param_groups[0]["constants"]["eps"] = 1e-3
        feed(params, others, one, other, step, factor=1e6 if step in (6, 7, 8) else 1.0)
        counts.append(len(made))
    assert [b - a for a, b in itertools.pairwise(counts[2:])] == [0, 1, 0, 1, 0, 0, 1, 0, 0]
    assert_alike(params, others, one, other, 1e-4)


@quiet
@pytest.mark.parametrize("text", [t for t in TEXTS.values() if "pow" not in t])
def test_proved_bounds_hold(text):
    """What comes out of 30 steps lies within the bounds computed for each of them."""
    rule = rule_of(text)
    program, constants = rule.program(), rule.constants
    lowered = lower(rule)
    draw = torch.Generator().manual_seed(0)
    state = lowered.initial_state(torch.zeros(200, dtype=torch.float64))
    for t in range(1, 31):
        g, theta = (torch.randn(200, dtype=torch.float64, generator=draw) for _ in range(2))
        inputs = {name: (x.min().item(), x.max().item()) for name, x in (("g", g), ("theta", theta))}
        slots = [(s.min().item(), s.max().item()) for s in state]
        found = bounds(program, inputs, slots, constants, t, FAR[torch.float64])
        (u,), state = lowered.step({**constants, "g": g, "theta": theta}, state, t)
        if found is None:
            continue
        for value, (low, high) in zip((u, *state), (found[0], *found[1]), strict=True):
            value = torch.as_tensor(value, dtype=torch.float64)
            assert low <= value.min() and value.max() <= high and math.isfinite(high - low)


@pytest.mark.parametrize(
    ("text", "proved"),
    [
        ("1 / g", False),
        ("1 / (abs(g) + 1e-3)", True),
        ("1 / (abs(g) + 1e-3 - 1e-3)", False),
        ("1 / (square(g) * square(g) + 1e-40)", False),
        ("exp(g)", True),
        ("exp(100 * g)", False),
        ("g * 1e29", True),
        ("square(g * 1e29)", False),
        ("log(g)", True),
        ("ema_hat(g, 0.9) / sqrt(ema_hat(square(g), 0.9))", False),
        ("pow(g, g)", False),
    ],
)
def test_only_what_must_be_finite_is_proved(text, proved):
    found = bounds(
        Rule.from_text(text).program(), {"g": (-2.0, 3.0)}, [(-1.0, 1.0)] * 2, {}, 5, FAR[torch.float32]
    )
    assert (found is not None) is proved


@pytest.mark.parametrize("size", [4, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_infinite_second_moment_freezes_its_coordinate_as_it_should(size, dtype, monkeypatch):
    """1e20 squared overflows: v = inf, u = 0 there from then on, while the others move."""
    pieces(monkeypatch, size)
    params, others, one, other = pair(Rule.named("adam"), [(9,), (3,)], dtype, lr=0.1)
    for step in range(5):
        for p, q in zip(params, others, strict=True):
            p.grad = torch.ones_like(p)
            if step == 1:
                p.grad[1] = 1e20
            q.grad = p.grad.clone()
        before = [p.detach().clone() for p in params]
        one.step()
        other.step()
        assert_alike(params, others, one, other, 1e-5)
        for p, old in zip(params, before, strict=True):
            assert (p != old).sum() == p.numel() - (step > 0)
            assert one.state[p]["skipped"] == 0
    assert all(torch.isinf(one.state[p]["s1"][1]) for p in params)


@pytest.mark.parametrize("staged", [0, 2**20])
@pytest.mark.parametrize("size", [4, 1000])
@pytest.mark.parametrize("place", [0, 10])
def test_a_bad_coordinate_leaves_all_pieces_of_its_tensor_alone(size, staged, place, monkeypatch):
    pieces(monkeypatch, size, staged)
    params, others, one, other = pair(
        Rule.named("adam"), [(11,), (2,), (3,)], torch.float32, weight_decay=0.1
    )
    for step in range(3):
        feed(params, others, one, other, step)
    for times in (1, 2):
        for p in params:
            p.grad = torch.ones_like(p)
        params[0].grad[place] = torch.nan
        kept = params[0].detach().clone(), {k: v.clone() for k, v in one.state[params[0]].items()}
        one.step()
        assert torch.equal(params[0], kept[0])
        assert all(torch.equal(kept[1][k], v) for k, v in one.state[params[0]].items() if k != "skipped")
        assert [int(one.state[p]["step"]) - 3 for p in params] == [0, times, times]
    assert one.state[params[0]]["skipped"] == 2


def test_tensors_beside_one_that_raises_are_stepped_and_counted():
    params, others, one, other = pair(
        Rule.named("adam"), [(3,), (4,), (2,)], torch.float64, nonfinite="raise"
    )
    feed(params, others, one, other, 0)
    for p, q in zip(params, others, strict=True):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    params[1].grad[0], others[1].grad = torch.nan, None
    with pytest.raises(NonFiniteError):
        one.step()
    other.step()
    assert [int(one.state[p]["step"]) for p in params] == [2, 1, 2]
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_updates_may_be_as_large_as_the_dtype_allows(monkeypatch):
    """Their sum overflows, which is no reason to skip them; one more factor does make them infinite."""
    pieces(monkeypatch, 4)
    g = torch.full((9,), 3e38)
    for scale, moved in ((0.5, True), (2.0, False)):
        p = torch.zeros(9, requires_grad=True)
        p.grad = g
        SymbolicOptimizer([p], Rule.from_text("-g", scale=scale), lr=1e-38).step()
        torch.testing.assert_close(p.detach(), torch.full((9,), -1.5 if moved else 0.0))


def test_state_tensors_keep_their_identity_and_share_no_memory():
    params, others, one, other = pair(Rule.named("adam"), [(11,), (4,), (5,)], torch.float32)
    feed(params, others, one, other, 0)
    before = {id(value) for p in params for value in one.state[p].values()}
    feed(params, others, one, other, 1)
    arrays = [value for p in params for value in one.state[p].values()]
    assert {id(value) for value in arrays} == before
    assert len({value.untyped_storage().data_ptr() for value in arrays}) == len(arrays)
    assert all(value.untyped_storage().nbytes() == value.numel() * value.element_size() for value in arrays)


def test_tensors_of_one_pack_keep_their_own_t():
    params, others, one, other = pair(Rule.named("adam"), [(3,), (4,)], torch.float64, lr=0.1)
    for step in range(4):
        draw = np.random.default_rng(step)
        for p, q in zip(params, others, strict=True):
            p.grad = torch.tensor(draw.normal(size=tuple(p.shape)))
            q.grad = p.grad.clone()
        if step == 1:
            params[0].grad = others[0].grad = None
        one.step()
        other.step()
    assert [int(one.state[p]["step"]) for p in params] == [3, 4]
    assert_alike(params, others, one, other, 1e-12)
