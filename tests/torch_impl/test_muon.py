"""Muon: torch's own on matrices and kernels as matrices, AdamW on the rest, one learning rate."""

import numpy as np
import pytest

from common.errors import L2OError
from common.tables.baselines import parse_spec, parse_specs
from common.tables.problems import Instance, problem_row

torch = pytest.importorskip("torch")

from torch_impl.optimizers import baselines  # noqa: E402
from torch_impl.optimizers.muon import Muon  # noqa: E402
from torch_impl.problems.tasks import ProblemTask  # noqa: E402
from torch_impl.rollout import descend, leaves  # noqa: E402
from torch_impl.sources import load  # noqa: E402

SHAPES = ((3, 3, 2, 5), (5,), (7, 4), (4,), ())


def parameters() -> list[torch.nn.Parameter]:
    generator = np.random.default_rng(0)
    return [torch.nn.Parameter(torch.tensor(generator.normal(size=shape))) for shape in SHAPES]


def gradients(steps: int) -> list[list[torch.Tensor]]:
    generator = np.random.default_rng(1)
    return [[torch.tensor(generator.normal(size=shape)) for shape in SHAPES] for _ in range(steps)]


def test_it_is_torchs_muon_on_matrices_and_adamw_on_vectors():
    """With changing learning rates and a tensor that gets no gradient for a while."""
    params, others = parameters(), parameters()
    options = {"momentum": 0.8, "weight_decay": 0.1}
    mine = baselines.make("muon", params, 0.02, options)
    views = [torch.nn.Parameter(p.detach().reshape(-1, p.shape[-1])) for p in (others[0], others[2])]
    rest = [others[k] for k in (1, 3, 4)]
    muon = torch.optim.Muon(views, 0.02, 0.1, 0.8, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, 0.02, weight_decay=0.1)
    for step, row in enumerate(gradients(12)):
        for optimizer in (mine, muon, adamw):
            optimizer.param_groups[0]["lr"] = 0.02 / (step + 1)
        for p, g in zip(params, row, strict=True):
            p.grad = None if p is params[1] and step in (0, 3) else g
        mine.step()
        for q, g in zip((views[0], rest[0], views[1], rest[1], rest[2]), row, strict=True):
            q.grad = None if q is rest[0] and step in (0, 3) else g.reshape(q.shape)
        muon.step()
        adamw.step()
        for p, q in zip(params, (views[0], rest[0], views[1], rest[1], rest[2]), strict=True):
            assert torch.equal(p.detach().reshape(q.shape), q.detach())
    assert all(not torch.equal(p, q) for p, q in zip(params, parameters(), strict=True))


def test_the_momentum_of_a_kernel_is_a_matrix_and_all_state_is_counted():
    params = parameters()
    optimizer = Muon(params)
    for p, g in zip(params, gradients(1)[0], strict=True):
        p.grad = g
    optimizer.step()
    assert optimizer.state[params[0]]["momentum_buffer"].shape == (18, 5)
    assert set(optimizer.state) == set(params) and "exp_avg" in optimizer.state[params[1]]
    optimizer.zero_grad()
    before = [p.detach().clone() for p in params]
    optimizer.step()  # no gradient is kept from the step before
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_a_tensor_that_is_alone_is_adamws():
    """x [batch, n] of a function has rows that know nothing of each other."""
    (x, y), g = (torch.nn.Parameter(torch.ones(6, 3)) for _ in range(2)), torch.arange(18.0).reshape(6, 3)
    mine, adamw = Muon([x], 0.01), torch.optim.AdamW([y], 0.01, weight_decay=0.0)
    for _ in range(3):
        x.grad, y.grad = g, g
        mine.step()
        adamw.step()
    assert torch.equal(x, y)


def test_a_closure_is_called_and_its_loss_returned():
    params = parameters()
    optimizer = Muon(params, 0.01)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(10)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("problem", ["digits-conv", "digits-mlp", "quadratic-k10"])
def test_it_trains_a_network_and_a_function(problem):
    task = ProblemTask(Instance(problem_row(problem), 0), torch.float32)
    parameters = leaves(task)
    source = load(parse_spec("muon"))
    losses, outcome = descend(task, parameters, source.optimizer(parameters, 0.02), 60)
    assert outcome == "ok" and losses[-1] < 0.6 * losses[0]


def test_only_torch_offers_it():
    names = {backend: [spec.text for spec in parse_specs(["all"], backend)] for backend in ("torch", "tf")}
    assert [name for name in names["torch"] if name not in names["tf"]] == ["muon"]
    assert set(names["tf"]) < set(names["torch"])
    sources = pytest.importorskip("tf_impl.sources", reason="tensorflow is not installed")
    with pytest.raises(L2OError, match=r"^muon: expected one of sgd, .*, got muon, which only torch has$"):
        sources.load(parse_spec("muon"))
