"""Muon in float32 on matrices and kernels of any layout, AdamW on the rest, one learning rate."""

import copy

import numpy as np
import pytest

from common.errors import L2OError
from common.tables.baselines import parse_spec, parse_specs
from common.tables.problems import Instance, problem_row

torch = pytest.importorskip("torch")

from torch_impl.optimizers import baselines  # noqa: E402
from torch_impl.optimizers.muon import Muon, canonical_groups, orthogonal  # noqa: E402
from torch_impl.problems.tasks import ProblemTask  # noqa: E402
from torch_impl.rollout import descend, leaves  # noqa: E402
from torch_impl.sources import load  # noqa: E402

SHAPES = ((5, 2, 3, 3), (5,), (7, 4), (4,), ())
MATRICES = (0, 2)


def parameters(dtype=torch.float64) -> list[torch.nn.Parameter]:
    generator = np.random.default_rng(0)
    return [torch.nn.Parameter(torch.tensor(generator.normal(size=shape), dtype=dtype)) for shape in SHAPES]


def gradients(steps: int, dtype=torch.float64) -> list[list[torch.Tensor]]:
    generator = np.random.default_rng(1)
    return [[torch.tensor(generator.normal(size=s), dtype=dtype) for s in SHAPES] for _ in range(steps)]


def newton_schulz(x: np.ndarray) -> np.ndarray:
    """The published iteration (Jordan et al. 2024) on [rows, columns]."""
    m = x.T if x.shape[0] > x.shape[1] else x
    m = m / np.linalg.norm(m)
    for _ in range(5):
        a = m @ m.T
        m = 3.4445 * m + (-4.7750 * a + 2.0315 * a @ a) @ m
    return m.T if x.shape[0] > x.shape[1] else m


def test_it_is_the_published_formula_on_matrices_and_torchs_adamw_on_the_rest():
    """With changing learning rates and a tensor that gets no gradient for a while."""
    params, others = parameters(), parameters()
    mine = baselines.make("muon", params, 0.02, {"momentum": 0.8, "weight_decay": 0.1})
    rest = [k for k in range(len(SHAPES)) if k not in MATRICES]
    adamw = torch.optim.AdamW([others[k] for k in rest], 0.02, weight_decay=0.1)
    buffers = {k: np.zeros(SHAPES[k]) for k in MATRICES}
    for step, row in enumerate(gradients(12)):
        lr = 0.02 / (step + 1)
        for optimizer in (mine, adamw):
            optimizer.param_groups[0]["lr"] = lr
        for k, (p, q, g) in enumerate(zip(params, others, row, strict=True)):
            p.grad = q.grad = None if k == 1 and step in (0, 3) else g
        mine.step()
        adamw.step()
        for k in MATRICES:
            g, shape = row[k].numpy(), SHAPES[k]
            buffers[k] = 0.8 * buffers[k] + 0.2 * g
            u = newton_schulz((0.2 * g + 0.8 * buffers[k]).reshape(shape[0], -1))
            size = 0.2 * np.sqrt(max(u.shape))
            others[k].data = others[k].data * (1.0 - 0.1 * lr) - lr * size * torch.tensor(u.reshape(shape))
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=1e-13)
    assert all(not torch.equal(p, q) for p, q in zip(params, parameters(), strict=True))


def test_it_goes_where_torchs_own_goes_which_iterates_in_bfloat16():
    (x, y), row = (parameters(torch.float32)[2] for _ in range(2)), gradients(1, torch.float32)[0]
    before = x.detach().clone()
    x.grad = y.grad = row[2]
    Muon([x], 0.02).step()
    torch.optim.Muon([y], 0.02, 0.0, 0.95, adjust_lr_fn="match_rms_adamw").step()
    mine, theirs = ((p.detach() - before).flatten() for p in (x, y))
    assert torch.cosine_similarity(mine, theirs, dim=0) > 0.999
    assert float(mine.norm() / theirs.norm()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_layer_gets_the_same_update_in_torchs_layout_and_in_the_problem_tables(dtype):
    """nn.Conv2d's [out, in, kh, kw] beside [kh, kw, in, out], nn.Linear's [out, in] beside [in, out]."""
    theirs = [*torch.nn.Conv2d(4, 6, (3, 2)).parameters(), *torch.nn.Linear(7, 3).parameters()]
    theirs = [torch.nn.Parameter(p.detach().to(dtype)) for p in theirs]
    ours = [torch.nn.Parameter(p.detach().permute(canonical_axes(p)).contiguous()) for p in theirs]
    optimizers = (Muon(theirs, 0.1, weight_decay=0.1), Muon(canonical_groups(ours), 0.1, weight_decay=0.1))
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for p, q in zip(theirs, ours, strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=dtype)
            q.grad = p.grad.permute(canonical_axes(p)).contiguous()
        for optimizer in optimizers:
            optimizer.step()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for p, q in zip(theirs, ours, strict=True):
        got = p.detach().permute(canonical_axes(p))
        torch.testing.assert_close(got, q.detach(), rtol=0, atol=tolerance)
    wrong = torch.nn.Parameter(ours[0].detach().clone())  # rows along the first axis of [kh, kw, in, out]
    right = torch.nn.Parameter(wrong.detach().clone())
    wrong.grad = right.grad = ours[0].grad
    Muon([wrong], 0.1).step()
    Muon(canonical_groups([right, torch.nn.Parameter(torch.ones(1))]), 0.1).step()
    assert (wrong - right).abs().max() > 1e-3


def canonical_axes(p: torch.Tensor) -> tuple[int, ...]:
    """From torch's layout of a layer to [kh, kw, in, out] or [in, out]."""
    return {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[p.dim()]


def test_the_momentum_has_the_shape_of_its_tensor_and_all_state_is_counted():
    params = parameters()
    optimizer = Muon(params)
    for p, g in zip(params, gradients(1)[0], strict=True):
        p.grad = g
    optimizer.step()
    assert optimizer.state[params[0]]["momentum_buffer"].shape == SHAPES[0]
    assert set(optimizer.state) == set(params) and "exp_avg" in optimizer.state[params[1]]
    optimizer.zero_grad()
    before = [p.detach().clone() for p in params]
    optimizer.step()  # no gradient is kept from the step before
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_its_state_is_saved_and_loaded():
    (params, others), rows = (parameters() for _ in range(2)), gradients(6)

    def stepped(optimizer: Muon, params: list[torch.nn.Parameter], row: list[torch.Tensor]) -> None:
        for p, g in zip(params, row, strict=True):
            p.grad = g
        optimizer.step()

    optimizer, again = Muon(params), Muon(others)
    for row in rows[:3]:
        stepped(optimizer, params, row)
    for p, q in zip(params, others, strict=True):
        q.data = p.detach().clone()
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for row in rows[3:]:
        stepped(optimizer, params, row)
        stepped(again, others, row)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("alone", [True, False], ids=["a function's x", "an embedding"])
def test_a_tensor_that_is_no_matrix_is_adamws(alone):
    """x [batch, n] of a function is alone and has rows that know nothing of each other."""
    (x, y), g = (torch.nn.Parameter(torch.ones(6, 3)) for _ in range(2)), torch.arange(18.0).reshape(6, 3)
    groups = canonical_groups([x]) if alone else [{"params": [x], "matrix": False}]
    mine, adamw = Muon(groups, 0.01), torch.optim.AdamW([y], 0.01, weight_decay=0.0)
    for _ in range(3):
        x.grad, y.grad = g, g
        mine.step()
        adamw.step()
    assert torch.equal(x, y)


@pytest.mark.parametrize(
    "matrix", [((0,), (0,)), ((), (0, 1)), ((0,), (2,)), ((0, 1, 1), ()), "rows", 3, ((0,),), ((0.5,), (1,))]
)
def test_axes_that_do_not_fit_are_refused_when_it_is_made(matrix):
    with pytest.raises(L2OError, match=r"^matrix: expected True, False or .*shape \(2, 3\) once, .*, got"):
        Muon([{"params": [torch.nn.Parameter(torch.ones(2, 3))], "matrix": matrix}])


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e25])
def test_gradients_of_any_size_have_an_update_of_the_usual_size_and_zero_has_none(size):
    x = torch.tensor(np.random.default_rng(0).normal(size=(4, 9)), dtype=torch.float32)
    got = orthogonal(size * x)
    assert got.dtype == torch.float32 and (got == 0).all() == (size == 0.0)
    if size:
        torch.testing.assert_close(got, orthogonal(x), rtol=0, atol=1e-4)
        assert torch.linalg.svdvals(got).sub(0.9).abs().max() < 0.25


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
    assert "muon" in names["torch"] and "muon" not in names["tf"]
    assert set(names["tf"]) < set(names["torch"])
    sources = pytest.importorskip("tf_impl.sources", reason="tensorflow is not installed")
    with pytest.raises(L2OError, match=r"^muon: expected one of sgd, .*, got muon, which only torch has$"):
        sources.load(parse_spec("muon"))
