"""Weight decay of every optimizer of torch: what it adds to a step, which tensors it spares, torch's own."""

import importlib.util
import itertools

import numpy as np
import pytest

from common.tables.baselines import BASELINES, parse_spec
from common.training import Training
from interchange.language.view import of_shapes
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from torch_impl.optimizers import baselines  # noqa: E402
from torch_impl.sources import load  # noqa: E402

SHAPES, LR, STEPS = ((4, 3), (3,)), 0.05, 5
HERE = importlib.util.find_spec("pytorch_optimizer") is not None
SPECS = [name for name, row in BASELINES.items() if HERE or not row.package] + ["teacher:rp_s", "rule:muon"]
SPARING = Training(decay_vectors=False)


def gradients() -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES] for _ in range(STEPS)]


def path(text: str, grads: list, l2: float = 0.0, along: list | None = None, **training: bool) -> list:
    """Parameters before every step and after the last; ``l2`` of those of ``along`` is in the gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in SHAPES]
    optimizer = load(parse_spec(text)).optimizer(params, LR, of_shapes(SHAPES), Training(**training))
    seen = [[p.detach().clone() for p in params]]
    for step, row in enumerate(grads):
        for k, (p, g) in enumerate(zip(params, row, strict=True)):
            p.grad = g + l2 * along[step][k] if along else g.clone()
        optimizer.step()
        seen.append([p.detach().clone() for p in params])
    return seen


def steps(seen: list, k: int) -> torch.Tensor:
    return torch.stack([after[k] - before[k] for before, after in itertools.pairwise(seen)])


def joined(text: str, more: str) -> str:
    return f"{text}{',' if ':' in text else ':'}{more}"


@pytest.mark.parametrize("spares", [False, True], ids=["all", "no vectors"])
@pytest.mark.parametrize("name", [name for name in SPECS if name != "schedule-free"])
def test_decoupled_weight_decay_adds_minus_lr_times_it_times_the_parameter_to_a_step(name, spares):
    """Schedule-Free alone pulls z (tests/parity/test_optimizers_agree.py)."""
    plain, decayed = (
        path(joined(name, f"weight_decay={value}"), gradients(), decay_vectors=not spares)
        for value in (0, 0.2)
    )
    for k, shape in enumerate(SHAPES):
        pulled = 0.0 if spares and len(shape) < 2 else -LR * 0.2
        want = steps(plain, k) + pulled * torch.stack([row[k] for row in decayed[:-1]])
        np.testing.assert_allclose(steps(decayed, k), want, rtol=0, atol=2e-7)  # psgd's are of float32


@pytest.mark.parametrize("name", SPECS)
def test_l2_is_a_gradient_more(name):
    penalised = path(joined(name, "weight_decay=0,l2=0.3"), gradients())
    plain = path(joined(name, "weight_decay=0"), gradients(), 0.3, penalised)
    for got, want in zip(penalised[-1], plain[-1], strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-7)


def test_l2_spares_vectors_where_it_is_to_and_leaves_the_callers_gradient_alone():
    params = [torch.nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in SHAPES]
    optimizer = load(parse_spec("sgd:l2=0.5")).optimizer(params, 1.0, None, SPARING)
    given = [torch.zeros_like(p) for p in params]
    for p, g in zip(params, given, strict=True):
        p.grad = g
    optimizer.step()
    assert torch.equal(params[0].detach(), torch.full(SHAPES[0], 0.5, dtype=torch.float64))
    assert torch.equal(params[1].detach(), torch.ones(SHAPES[1], dtype=torch.float64))
    assert not any(g.any() for g in given)


TORCHS = {
    "sgd:momentum=0.9,l2=0.1": lambda p: torch.optim.SGD(p, LR, 0.9, weight_decay=0.1),
    "sgd:momentum=0.9,nesterov=1,l2=0.1": lambda p: torch.optim.SGD(
        p, LR, 0.9, nesterov=True, weight_decay=0.1
    ),
    "nesterov:l2=0.1": lambda p: torch.optim.SGD(p, LR, 0.9, nesterov=True, weight_decay=0.1),
    "adam:l2=0.1": lambda p: torch.optim.Adam(p, LR, weight_decay=0.1),
    "rmsprop:l2=0.1": lambda p: torch.optim.RMSprop(p, LR, weight_decay=0.1),
    "adagrad:l2=0.1": lambda p: torch.optim.Adagrad(p, LR, weight_decay=0.1),
    "adam:weight_decay=0.1": lambda p: torch.optim.AdamW(p, LR, weight_decay=0.1),
}


@pytest.mark.parametrize("text", TORCHS)
def test_it_is_torchs_where_torch_has_it(text):
    start = path(text, [])[0]
    params = [torch.nn.Parameter(p.clone()) for p in start]
    theirs = TORCHS[text](params)
    for row in gradients():
        for p, g in zip(params, row, strict=True):
            p.grad = g.clone()
        theirs.step()
    for got, want in zip(path(text, gradients())[-1], params, strict=True):
        np.testing.assert_allclose(got, want.detach(), rtol=1e-12)


def test_a_schedule_lowers_the_pull_too():
    (p,) = params = [torch.nn.Parameter(torch.ones(2, dtype=torch.float64))]
    optimizer = baselines.make("sgd", params, 1.0, {"weight_decay": 0.5})
    p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert p.tolist() == [0.95, 0.95]


def test_a_rule_has_its_own_option_or_the_optimizers():
    assert parse_spec("rule:lamb:weight_decay=0.1").options == {}
    assert parse_spec("rule:lamb,weight_decay=0.1").options == {"weight_decay": 0.1}
    assert parse_spec("rule:lamb:weight_decay=0.1,l2=1").target == "lamb:weight_decay=0.1"
    assert Rule.named("lamb", weight_decay=0.1).constants["weight_decay"] == 0.1
