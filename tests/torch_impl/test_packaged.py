"""Hand-made optimizers of pytorch-optimizer: finite, as large as they should be, repeatable, views right."""

import importlib.util

import numpy as np
import pytest

from common.tables.baselines import BASELINES, packaged_names, parse_spec
from common.tables.problems import Instance, problem_row
from interchange.language.view import of_shapes

torch = pytest.importorskip("torch")

from torch_impl.backend import stepper  # noqa: E402
from torch_impl.optimizers.groups import seen_as  # noqa: E402
from torch_impl.problems.tasks import ProblemTask  # noqa: E402
from torch_impl.rollout import descend, leaves  # noqa: E402
from torch_impl.sources import load  # noqa: E402

NAMES = tuple(packaged_names("torch"))
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("pytorch_optimizer") is None,
    reason="pytorch_optimizer is not installed: .[optimizers]",
)


def trained(name: str, problem: str, lr: float, steps: int) -> tuple[np.ndarray, list[torch.Tensor]]:
    task = ProblemTask(Instance(problem_row(problem), 0), torch.float32)
    parameters, source = leaves(task), load(parse_spec(name))
    losses, outcome = descend(task, parameters, source.optimizer(parameters, lr, task.views), steps)
    assert outcome == "ok"
    return losses, parameters


def test_they_are_the_ones_that_need_a_package():
    assert NAMES == ("normuon", "soap", "ademamix", "mars", "psgd")
    assert all(BASELINES[name].backends == ("torch",) for name in NAMES)


@needs_package
@pytest.mark.parametrize("problem", ["digits-mlp", "digits-conv"])
@pytest.mark.parametrize("name", NAMES)
def test_the_middle_of_the_grid_trains_a_network_and_the_best_rate_is_within_the_grid(name, problem):
    middle = BASELINES[name].lr
    last = {}
    for k in (-3, 0, 3):
        losses, parameters = trained(name, problem, middle * 2.0**k, 60)
        assert all(torch.isfinite(p).all() for p in parameters)
        last[k] = losses[-10:].mean()
    assert last[0] < 0.5 * losses[0] and last[-3] > min(last[0], last[3])


@needs_package
@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_repeated_whatever_else_draws_and_draws_nothing_itself(name):
    torch.manual_seed(5)
    np.random.seed(5)
    want = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    first, _ = trained(name, "digits-mlp", BASELINES[name].lr, 12)
    assert torch.equal(torch.rand(3), want[0]) and np.array_equal(np.random.rand(3), want[1])
    again, _ = trained(name, "digits-mlp", BASELINES[name].lr, 12)
    np.testing.assert_array_equal(first, again)


@needs_package
def test_normuon_sees_the_outputs_as_rows_in_both_layouts():
    """As the package's own does on torch's layout; sums in another order differ by bfloat16's rounding."""
    from pytorch_optimizer import NorMuon as Theirs

    from torch_impl.optimizers.packaged import NorMuon

    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(6, 4, 3, 2, generator=generator), torch.randn(5, 7, generator=generator)]
    bias, orders = torch.randn(6, generator=generator), ((2, 3, 1, 0), (1, 0))
    theirs = [torch.nn.Parameter(w.clone()) for w in (*weights, bias)]
    bare = [torch.nn.Parameter(w.clone()) for w in (*weights, bias)]
    ours = [w.permute(order).contiguous() for w, order in zip(weights, orders, strict=True)]
    ours = [torch.nn.Parameter(w) for w in (*ours, bias.clone())]
    adamw = {"use_muon": False, "lr": 0.05, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    muon = {"use_muon": True, "lr": 0.05, "update_scale": "match_rms", "weight_decay": 0.1}
    optimizers = [
        Theirs([muon | {"params": theirs[:2]}, adamw | {"params": theirs[2:]}]),
        NorMuon(bare, 0.05, weight_decay=0.1),
        NorMuon(seen_as(of_shapes([p.shape for p in ours]), ours), 0.05, weight_decay=0.1),
    ]
    for _ in range(3):
        for p, b, q, order in zip(theirs, bare, ours, (*orders, (0,)), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            b.grad, q.grad = p.grad.clone(), p.grad.permute(order).contiguous()
        for optimizer in optimizers:
            optimizer.step()
    for p, b, q, w, order in zip(theirs, bare, ours, (*weights, bias), (*orders, (0,)), strict=True):
        assert torch.equal(p, b)
        moved = (p.detach() - w).norm()
        assert moved > 0.05 and (p.detach().permute(order) - q.detach()).norm() < 0.03 * moved
    assert set(optimizers[2].state) == set(ours)


@needs_package
def test_normuon_takes_each_of_packed_matrices_and_transposed_kernels_for_what_they_are():
    from torch_impl.optimizers.packaged import NorMuon

    generator = torch.Generator().manual_seed(0)
    packed, kernel = (torch.randn(s, generator=generator) for s in ((6, 5), (4, 3, 2, 2)))
    apart = [*packed.split(2), kernel.transpose(0, 1).reshape(3, 16)]
    together = [torch.nn.Parameter(w.clone()) for w in (packed, kernel)]
    apart = [torch.nn.Parameter(w.clone()) for w in apart]
    options = (((0,), (1,), 3, 0), ((1,), (0, 2, 3)))
    groups = [{"params": [p], "matrix": o} for p, o in zip(together, options, strict=True)]
    optimizers = NorMuon(groups, 0.05), NorMuon(apart, 0.05)
    for _ in range(3):
        together[0].grad, together[1].grad = (torch.randn(p.shape, generator=generator) for p in together)
        grads = [*together[0].grad.split(2), together[1].grad.transpose(0, 1).reshape(3, 16)]
        for p, g in zip(apart, grads, strict=True):
            p.grad = g.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(together[0], torch.cat(apart[:3])) and not torch.equal(together[0], packed)
    assert torch.equal(together[1].transpose(0, 1).reshape(3, 16), apart[3])


@needs_package
@pytest.mark.parametrize(("name", "floats"), [("soap", 2 * 90 + 2 * (36 + 225)), ("psgd", 90 + 36 + 225)])
def test_state_in_lists_is_counted(name, floats):
    """A matrix [6, 15]: moments, and a factor, with SOAP its basis too, for either side."""

    class Task:
        names, shapes, views = ("w",), [(6, 15)], of_shapes([(6, 15)])
        theta = torch.ones(90)

        def initial(self) -> torch.Tensor:
            return self.theta

        def loss(self, parameters: list[torch.Tensor], step: int) -> torch.Tensor:
            return parameters[0].square().sum()

    advance, count = stepper(load(parse_spec(name)), 0.01, Task())
    advance(3)
    assert count() == pytest.approx(floats / 90)


@needs_package
@pytest.mark.parametrize(("name", "betas"), [("normuon", (0.9, 0.999)), ("mars", (0.9, 0.95))])
def test_a_vector_is_adamws_at_the_same_rate_and_weight_decay(name, betas):
    x, y, other = (torch.nn.Parameter(torch.ones(4)) for _ in range(3))
    mine = load(parse_spec(f"{name}:weight_decay=0.1")).optimizer([x, other], 0.01)
    theirs = torch.optim.AdamW([y], 0.01, betas, weight_decay=0.1)
    for scale in (1.0, -3.0, 0.5):
        x.grad = y.grad = scale * torch.arange(4.0)
        other.grad = torch.zeros(4)
        mine.step()
        theirs.step()
    torch.testing.assert_close(x.detach(), y.detach(), rtol=1e-6, atol=1e-6)
