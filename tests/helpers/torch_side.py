"""Torch's side of the tests that both frameworks share; ``tf_side`` has the same names.

Values go in and come out as NumPy arrays; an optimizer and its parameters go together.
"""

import dataclasses
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from common import kernels
from interchange.files.weights import Teacher
from interchange.protocols import Position, Task
from torch_impl.optimizers import baselines
from torch_impl.optimizers.base import CoordinateOptimizer
from torch_impl.optimizers.optimizers import LearnedOptimizer, NonFiniteError, SymbolicOptimizer
from torch_impl.problems.modules import ModuleTask
from torch_impl.problems.tasks import value_and_gradient
from torch_impl.recording.recorder import Recorder
from torch_impl.tensors import DTYPES, to_numpy, unflatten

__all__ = ["DTYPES", "NAME", "NonFiniteError", "Recorder", "unflatten", "value_and_gradient"]

NAME = "torch"
Optimizer = torch.optim.Optimizer
Parameters = Sequence[torch.nn.Parameter]
Row = Sequence[np.ndarray | float | None]

value, tensor = to_numpy, torch.from_numpy


def module(name: str) -> ModuleType:
    return import_module(f"torch_impl.{name}")


def parameters(values: Sequence[np.ndarray], dtype: str = "float64") -> Parameters:
    return [torch.nn.Parameter(torch.tensor(np.asarray(v)).to(getattr(torch, dtype))) for v in values]


def named(names: Sequence[str], values: Sequence[np.ndarray]) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters with names, as optimizers are given them."""
    return list(zip(names, parameters(values), strict=True))


def plain(found: list[tuple[str, torch.nn.Parameter]]) -> Parameters:
    """The parameters without their names."""
    return [p for _, p in found]


def native(x: np.ndarray) -> np.ndarray:
    """A layer's array in canonical layout, [in, out] or [kh, kw, in, out], as this framework lays it out."""
    return np.moveaxis(x, (-1, -2), (0, 1)) if x.ndim > 1 else x


def canonical(x: np.ndarray) -> np.ndarray:
    """The inverse of ``native``."""
    return np.moveaxis(x, (0, 1), (-1, -2)) if x.ndim > 1 else x


def rule(params: Parameters, given: Any, lr: float = 1.0, **options: Any) -> SymbolicOptimizer:
    return SymbolicOptimizer(params, given, lr, **options)


def teacher(params: Parameters, given: Any, lr: float = 1.0, **options: Any) -> LearnedOptimizer:
    return LearnedOptimizer(params, given, lr, **options)


def optimizer(params: Parameters, given: Any, lr: float = 1.0, **options: Any) -> Optimizer:
    """Of a rule or a teacher."""
    return (teacher if isinstance(given, Teacher) else rule)(params, given, lr, **options)


baseline = baselines.make


def sgd(params: Parameters, lr: float) -> Optimizer:
    return torch.optim.SGD(params, lr)


def set_rate(one: Optimizer, lr: float) -> None:
    one.param_groups[0]["lr"] = lr


def give(params: Parameters, row: Row) -> None:
    """Gradients in the dtypes of the parameters; None is none."""
    for p, g in zip(params, row, strict=True):
        p.grad = None if g is None else torch.tensor(np.asarray(g)).to(p.dtype)


def feed(one: Optimizer, params: Parameters, row: Row) -> None:
    """A step."""
    give(params, row)
    one.step()


def counts(one: Optimizer, params: Parameters) -> list[int]:
    """Steps taken, tensor by tensor."""
    return [int(one.state[p]["step"]) if one.state[p] else 0 for p in params]


def left_alone(one: Optimizer, params: Parameters) -> list[int]:
    """Coordinates that the last step left alone, tensor by tensor."""
    return [int(one.state[p]["skipped"]) for p in params]


def state(one: Optimizer, p: torch.nn.Parameter) -> list[np.ndarray]:
    """A parameter's arrays of state, without its counts."""
    return [to_numpy(a) for key, a in one.state[p].items() if key not in ("step", "skipped")]


def copied(one: Optimizer, params: Parameters, way: Callable[[Any], Any]) -> tuple[Optimizer, Parameters]:
    """A copy of an optimizer on copies of its parameters."""
    return way((one, params))


# Paths of a step -> an optimizer's settings.
PATHS = {
    "compiled": {},
    "plain": {},
    "one by one": {"foreach": False},
    "capturable": {"capturable": True},
    "differentiable": {"differentiable": True},
    "graph": {},  # of torch.compile
}


def take_path(path: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of optimizers that step this way; the compiled one fails if it leaves a tensor to another."""
    if path == "compiled":
        if reason := kernels.missing():
            pytest.skip(reason)
        monkeypatch.delattr(CoordinateOptimizer, "_step_one")
    else:
        monkeypatch.setenv("L2O_KERNELS", "0")
    torch._dynamo.reset()
    return PATHS[path]


def stepper(one: Optimizer, params: Parameters, path: str) -> Callable[..., None]:
    """The step of a path, by gradients."""
    for p in params:
        p.requires_grad_(False)  # a leaf cannot be changed in place while gradients are recorded
    step = torch.compile(one.step, backend="eager") if path == "graph" else one.step

    def by(*row: np.ndarray | float) -> None:
        give(params, row)
        step()

    return by


def tells(path: str) -> type[Exception]:
    """The error of a path's step that may not go on."""
    return NonFiniteError


def probe(dtype: str = "float64", bias: bool = False) -> ModuleTask:
    """Batch norm (after a bias, if asked for), dropout, inputs that always are 0, units that never are on."""
    generator, kind = torch.Generator().manual_seed(0), DTYPES[dtype]
    layers = [torch.nn.Linear(6, 8, bias), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.3)]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(8, 3)).to(kind)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
        net[1].bias[:2] = -50.0
    x = torch.randn(4, 16, 6, generator=generator, dtype=torch.float64).to(kind)
    x[..., 3:] = 0.0
    y = torch.randint(3, (4, 16), generator=generator)
    return ModuleTask(net, torch.nn.functional.cross_entropy, zip(x, y, strict=True))


def running_values(task: Task) -> list[torch.Tensor]:
    """Those of batch norm."""
    return list(
        (dict(task.module.named_buffers()) if isinstance(task, ModuleTask) else task.buffers).values()
    )


def seed(number: int) -> None:
    torch.manual_seed(number)


def next_draw() -> list[torch.Tensor]:
    """What torch would draw now."""
    return [torch.rand(3)]


def structured(task: Task, network: Any, y: torch.Tensor) -> torch.Tensor:
    """A teacher's output through its structure; a rule's as it is."""
    if not network.structure:
        return y
    act, found = module("networks.matrix").TENSOR[network.structure], []
    for part, view in zip(unflatten(y, task.shapes), task.views, strict=True):
        found.append(act(part.reshape(view.split), view.axes).reshape(-1))
    return torch.cat(found)


def whole_graph(
    task: Task, network: Any, at: Position, steps: int, loss: str, lr: float = 1.0, second: bool = True
) -> dict[str, torch.Tensor]:
    """The meta-gradient by its definition: one graph through every update, feature and loss.

    Args:
        second: through every gradient too; else gradients enter the features as constants.
    """
    weights = {name: w.clone().requires_grad_() for name, w in network.weights.items()}
    theta, state, losses = at.theta, at.state, []
    for step in range(at.step, at.step + steps + 1):
        if step == at.step:
            value, g = value_and_gradient(task, theta, step)
        else:
            value = task.loss(unflatten(theta, task.shapes), step)
            slope = torch.autograd.grad(value, theta, create_graph=True) if second else None
            g = slope[0] if second else value_and_gradient(task, theta, step)[1]
        losses.append(value)
        if step < at.step + steps:
            here = Position(step, theta, state, value, g)
            x, state = module("meta.unroll").inputs_at(network, here)
            out, hidden = network.step(weights, x, state.network, state.t)
            state = dataclasses.replace(state, network=hidden)
            theta = theta + lr * network.scale * structured(task, network, out)
    losses = torch.stack(losses)
    total = {"sum": losses.sum(), "last": losses[-1], "log": losses.log().sum()}[loss]
    grads = torch.autograd.grad(total, list(weights.values()), materialize_grads=True)
    return dict(zip(weights, grads, strict=True))
