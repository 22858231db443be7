"""Rules on sharded parameters: FSDP2 on two processes steps as one process does."""

import os

import pytest

from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

STEPS = 6
BAD_STEP = 3
RULE = Rule.from_text(
    "-ema_hat(g, b1) / (sqrt(ema_hat(square(g), b2)) + eps) - 0.1 * asinh(lag(g, 1)) * cummax(abs(g))",
    {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
)
# Matrices keep their momentum, sums of rows and columns, and a number; others two averages.
SEEING = Rule.from_text(
    "by_matrix(-polar(g + ema(g, b1)) / "
    "(1 + ema(row_mean(abs(g)), b1) + col_max(abs(theta)) * lag(mean(g), 1)), "
    "-ema_hat(g, b1) / (sqrt(ema_hat(square(g), b2)) + eps))",
    {"b1": 0.9, "b2": 0.999, "eps": 1e-2},  # keys have a bias whose gradient is rounding
)
# Matrices keep what they have a number of for every coordinate, and their own numbers are not read.
MUON = Rule.from_text(
    "by_matrix(-polar(g + ema(g, b1)), -ema_hat(g, b1) / (sqrt(ema_hat(square(g), b2)) + eps))",
    {"b1": 0.9, "b2": 0.999, "eps": 1e-2},
)
MATRICES = {"linear.weight": (5, 6), "grouped.weight": (10, 2, 2), "attention.in_proj_weight": (15, 5)}
MATRICES |= {"attention.out_proj.weight": (5, 5)}


def network() -> "torch.nn.Module":
    """Tensors of 5 and 1 rows, which two processes cannot share evenly."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))


class Layers(torch.nn.Module):
    """Layers of which a rule sees some as matrices, none of which two processes can share evenly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(7, 6)
        self.linear = torch.nn.Linear(6, 5)
        self.norm = torch.nn.LayerNorm(5)
        self.depthwise = torch.nn.Conv1d(5, 5, 3, padding=1, groups=5)
        self.grouped = torch.nn.Conv1d(4, 10, 2, groups=2)
        self.attention = torch.nn.MultiheadAttention(5, 1, batch_first=True)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        """Of [batch, 3] to [batch, 1]."""
        words = ((x.sum(1, keepdim=True) * torch.arange(1, 5)).abs() * 10).long() % 7
        seen = self.norm(self.linear(self.embedding(words)))  # [batch, 4, 5]
        seen = self.grouped(self.depthwise(seen.mT).mT)[:, :5].mT
        return self.attention(seen, seen, seen)[0].sum((1, 2))[:, None].clone()


def data() -> tuple["torch.Tensor", "torch.Tensor"]:
    x = torch.linspace(-1.0, 1.0, 48).reshape(16, 3)
    return x, x.sum(1, keepdim=True).square()


def train(net: "torch.nn.Module", rule: Rule, spoil) -> "torch.optim.Optimizer":
    from torch_impl import SymbolicOptimizer, param_groups

    optimizer = SymbolicOptimizer(param_groups(net, weight_decay=0.1), rule, lr=0.01)
    x, y = data()
    for step in range(STEPS):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        if step == BAD_STEP:
            spoil(next(net.parameters()).grad)
        optimizer.step()
    return optimizer


def sharded(rank: int, folder: str, make, rule: Rule) -> None:
    """One of the two processes; the first writes what it ends with."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = make()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))

    def spoil(g) -> None:
        if rank == 1:  # one shard only: that coordinate is left alone
            g.to_local()[-1, 0] = float("nan")

    seen, gathered = spy_on_polar(), spy_on_gathering()
    optimizer = train(net, rule, spoil)
    shapes = [tuple(p.to_local().shape) for p in net.parameters()]
    values = [p.full_tensor().detach() for p in net.parameters()]
    states = [
        {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in optimizer.state[p].items()}
        for p in net.parameters()
    ]
    ends = {"shapes": shapes, "values": values, "states": states, "polar": seen, "gathered": gathered}
    torch.save(ends, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def spy_on_polar() -> list[tuple[int, ...]]:
    """The shapes of what polar is given from now on in this process, whole tensors all."""
    from torch_impl.networks.matrix import TENSOR

    seen, polar = [], TENSOR["polar"]

    def spied(x: "torch.Tensor", axes: tuple) -> "torch.Tensor":
        assert not hasattr(x, "full_tensor")
        seen.append(tuple(x.shape))
        return polar(x, axes)

    TENSOR["polar"] = spied
    return seen


def spy_on_gathering() -> list[tuple[int, ...]]:
    """The shapes of what the optimizer gathers from now on in this process."""
    from torch_impl.optimizers import base

    seen, whole = [], base.whole

    def spied(x: "torch.Tensor") -> "torch.Tensor":
        seen.append(tuple(x.shape))
        return whole(x)

    base.whole = spied
    return seen


def as_one(tmp_path, make, rule: Rule) -> tuple["torch.nn.Module", list[dict]]:
    """The network that one process trains, with which two were found to agree, and what the two end with."""
    torch.multiprocessing.spawn(sharded, (str(tmp_path), make, rule), nprocs=2)
    net = make()

    def spoil(g) -> None:
        g[-1, 0] = float("nan")

    optimizer = train(net, rule, spoil)
    ends = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for end in ends:
        for k, p in enumerate(net.parameters()):
            torch.testing.assert_close(end["values"][k], p.detach(), rtol=1e-5, atol=1e-6)
            assert end["states"][k].keys() == optimizer.state[p].keys()
            for key, value in optimizer.state[p].items():
                torch.testing.assert_close(end["states"][k][key], value, rtol=1e-4, atol=1e-6)
    assert all(end["states"][0]["step"] == STEPS for end in ends)
    return net, ends


def test_two_processes_with_uneven_shards_step_as_one(tmp_path):
    _, ends = as_one(tmp_path, network, RULE)
    assert ends[0]["shapes"] == [(3, 3), (3,), (1, 5), (1,)] and ends[1]["shapes"][2:] == [(0, 5), (0,)]


@pytest.mark.slow
def test_sharded_matrices_are_gathered_for_operators_and_other_tensors_go_their_own_way(tmp_path):
    net, ends = as_one(tmp_path, Layers, SEEING)
    names, split = (
        [name for name, _ in net.named_parameters()],
        {(15, 5): (3, 5, 5), (10, 2, 2): (2, 5, 2, 2)},
    )
    expected = sorted(split.get(shape, shape) for shape in MATRICES.values()) * STEPS
    for end in ends:
        assert sorted(map(tuple, end["polar"])) == sorted(expected)
        for name, state in zip(names, end["states"], strict=True):
            assert len(state) == (5 if name in MATRICES else 4), name
    shapes = dict(zip(names, ends[0]["states"], strict=True))
    assert shapes["attention.in_proj_weight"]["s1"].shape == (3, 5, 1)
    assert shapes["linear.weight"]["s1"].shape == (5, 1) and shapes["linear.weight"]["s2"].numel() == 1


@pytest.mark.slow
def test_of_a_sharded_matrix_that_is_not_read_gradient_and_momentum_are_gathered_and_nothing_else(tmp_path):
    _, ends = as_one(tmp_path, Layers, MUON)
    for end in ends:
        assert len(end["polar"]) == len(MATRICES) * STEPS
        assert sorted(end["gathered"]) == sorted(2 * STEPS * list(MATRICES.values()))
