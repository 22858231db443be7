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


def network() -> "torch.nn.Module":
    """Tensors of 5 and 1 rows, which two processes cannot share evenly."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))


def data() -> tuple["torch.Tensor", "torch.Tensor"]:
    x = torch.linspace(-1.0, 1.0, 48).reshape(16, 3)
    return x, x.sum(1, keepdim=True).square()


def train(net: "torch.nn.Module", spoil) -> "torch.optim.Optimizer":
    from torch_impl.optimizers.optimizers import SymbolicOptimizer

    optimizer = SymbolicOptimizer(net.parameters(), RULE, lr=0.01, weight_decay=0.1)
    x, y = data()
    for step in range(STEPS):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        if step == BAD_STEP:
            spoil(next(net.parameters()).grad)
        optimizer.step()
    return optimizer


def sharded(rank: int, folder: str) -> None:
    """One of the two processes; the first writes what it ends with."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = network()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))

    def spoil(g) -> None:
        if rank == 1:  # one shard only: that coordinate is left alone
            g.to_local()[-1, 0] = float("nan")

    optimizer = train(net, spoil)
    shapes = [tuple(p.to_local().shape) for p in net.parameters()]
    values = [p.full_tensor().detach() for p in net.parameters()]
    states = [
        {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in optimizer.state[p].items()}
        for p in net.parameters()
    ]
    torch.save({"shapes": shapes, "values": values, "states": states}, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_two_processes_with_uneven_shards_step_as_one(tmp_path):
    torch.multiprocessing.spawn(sharded, (str(tmp_path),), nprocs=2)
    net = network()

    def spoil(g) -> None:
        g[-1, 0] = float("nan")

    optimizer = train(net, spoil)
    ends = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert ends[0]["shapes"] == [(3, 3), (3,), (1, 5), (1,)] and ends[1]["shapes"][2:] == [(0, 5), (0,)]
    for end in ends:
        for k, p in enumerate(net.parameters()):
            torch.testing.assert_close(end["values"][k], p.detach(), rtol=1e-5, atol=1e-6)
            assert end["states"][k]["step"] == optimizer.state[p]["step"] == STEPS
            for key, value in optimizer.state[p].items():
                torch.testing.assert_close(end["states"][k][key], value, rtol=1e-4, atol=1e-6)
