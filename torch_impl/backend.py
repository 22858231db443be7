"""The torch side of the commands: this module is their ``interchange.backend.Backend``."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from common.extras import require
from common.metrics import DIVERGED
from common.run.runs import numbers
from common.tables.teachers import TeacherRow
from common.training import PLAIN, Training
from interchange.evaluation.curve import Curve
from interchange.meta.rule_weights import KINDS
from interchange.protocols import Network
from interchange.rollout import INTERRUPTED, Begun, Trained
from interchange.rule.rule import Rule
from interchange.rule.step_sizes import Sized
from torch_impl import rollout
from torch_impl.meta.learner import Learner
from torch_impl.meta.unroll import mean_loss_at
from torch_impl.meta.workers import join
from torch_impl.networks.rule import RuleNetwork
from torch_impl.networks.step_sizes import StepSizes
from torch_impl.networks.structure import structure_of
from torch_impl.networks.teacher import TeacherNetwork
from torch_impl.optimizers.average import Averaged
from torch_impl.problems.tasks import ProblemTask, table_task, value_and_gradient
from torch_impl.rollout import rollout as roll_out
from torch_impl.rollout import rollout_job
from torch_impl.sources import Source
from torch_impl.sources import load as load_source
from torch_impl.tensors import CREATED_BY, DTYPES, device_of, to_numpy
from torch_impl.threads import fitting

__all__ = [
    "CREATED_BY",
    "KINDS",
    "NAME",
    "TARGET",
    "USAGE",
    "Learner",
    "check_training",
    "device_of",
    "fit",
    "join",
    "load_source",
    "mean_loss_at",
    "metrics_writer",
    "roll_out",
    "rollout_job",
    "rule_network",
    "step_sizes_network",
    "stepper",
    "table_task",
    "teacher_network",
    "trace",
]

NAME = TARGET = "torch"
USAGE = """import torch
from torch_impl import SymbolicOptimizer

model = torch.nn.Linear(4, 1)  # your model and data here
x = torch.randn(64, 4)
optimizer = SymbolicOptimizer(model.parameters(), "{file}", lr={lr})
for _ in range(100):
    optimizer.zero_grad()
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    optimizer.step()"""


def check_training(training: Training, device: str) -> None:
    """Refuse, by ``L2OError``, steps that the device cannot take; ``device`` as on the command line."""
    del training, device  # torch multiplies bfloat16 on every processor


def teacher_network(
    teacher: TeacherRow, weights: Mapping[str, np.ndarray], dtype: str, device: str, state_dtype: str = ""
) -> TeacherNetwork:
    """A teacher's network; ``dtype``, ``device`` and ``state_dtype`` as on the command line."""
    kept = torch.bfloat16 if state_dtype else None
    return TeacherNetwork(teacher, weights, DTYPES[dtype], device_of(device), kept)


def rule_network(rule: Rule, device: str, problems: Sequence[str] = (), kinds: bool = False) -> RuleNetwork:
    """A rule's network (``RuleNetwork``); a rule that cannot be one raises ``L2OError``."""
    return RuleNetwork(rule, device_of(device), problems, kinds)


def step_sizes_network(source: Sized, dtype: str, device: str) -> StepSizes:
    """A network of step sizes by tensor (``StepSizes``); ``dtype`` and ``device`` as on the command line."""
    return StepSizes(source, DTYPES[dtype], device_of(device))


def metrics_writer(folder: str) -> Callable[[Mapping[str, Any]], None]:
    """What takes the rows of a run's metrics and writes them for TensorBoard."""
    require("--tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)

    def write(row: Mapping[str, Any]) -> None:
        for name, value in numbers(row).items():
            writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    return write


def trace(
    source: Source, network: Network | None, task: ProblemTask, steps: int, coordinates: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Inputs [n, F], gradient [n] and output [n] at ``coordinates``, and the loss, step by step."""
    lr, theta = source.spec.lr or source.spec.middle, task.initial()
    pick = torch.from_numpy(coordinates).to(theta.device)
    if network is not None:
        network.bind(task)
        state, structure = network.initial_state(theta), structure_of(network, task)
    else:
        theta = theta.requires_grad_()
        optimizer = source.optimizer([theta], lr)
    for step in range(steps):
        loss, g = value_and_gradient(task, theta, step)
        if not bool(torch.isfinite(loss) & torch.isfinite(g).all()):
            return
        with torch.no_grad():
            if network is not None:
                x, state = network.inputs(g, state)
                y, hidden = network.roll(x, state.network, state.t)
                state = dataclasses.replace(state, network=hidden)
                theta = theta + (lr * network.scale) * (y if structure is None else structure(y))
            else:
                x, before = g[None], theta.detach().clone()
                theta.grad = g
                optimizer.step()
                y = (theta.detach() - before) / lr
        if not bool(torch.isfinite(x).all() & torch.isfinite(y).all()):
            return
        yield to_numpy(x[:, pick].T), to_numpy(g[pick]), to_numpy(y[pick]), float(loss)


def fit(
    source: Source,
    task: ProblemTask,
    steps: int,
    stop: Callable[[float], bool],
    training: Training = PLAIN,
    told: Callable[[int, float, float], None] | None = None,
    begun: Begun | None = None,
) -> Trained:
    """Train an optimizee; ``stop`` is asked after every step with its loss, True ends the training."""
    started, parameters = time.perf_counter(), rollout.leaves(task)
    named, lr = zip(task.names, parameters, strict=True), source.spec.lr or source.spec.middle
    optimizer = source.optimizer(named, lr, task.views, training)
    kept = Averaged(parameters, optimizer, training.average)
    curve = Curve(
        lambda: task.test_scores(rollout.flat(kept.tensors)), training.test_every, stop, told, begun
    )
    before = np.zeros(0) if begun is None else begun.losses
    if begun is not None:
        _put_back(begun.standing, parameters, optimizer, kept, task)
    schedule = source.spec.schedule or "constant"
    losses, outcome = rollout.descend(
        task, parameters, optimizer, steps, curve, schedule, training, len(before)
    )
    seconds = time.perf_counter() - started - curve.seconds
    if not bool(torch.isfinite(rollout.flat(parameters)).all()):  # the last step may have ruined it
        outcome = DIVERGED
    test_loss, accuracy = (math.nan, math.nan) if outcome == DIVERGED else curve.end()
    arrays = {f"theta/{name}": to_numpy(p) for name, p in zip(task.names, kept.tensors, strict=True)}
    arrays |= {f"buffers/{name}": to_numpy(b) for name, b in task.buffers.items()}
    rest = {"test_loss": test_loss, "seconds": seconds, "curve": curve.array()}
    if outcome == INTERRUPTED and not source.packaged:
        rest["standing"] = _standing(parameters, optimizer, kept, task)
    return Trained(np.concatenate([before, losses]), outcome, accuracy, arrays, **rest)


def _standing(
    parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer, kept: Averaged, task: ProblemTask
) -> dict[str, np.ndarray]:
    """What a run needs to go on: parameters, averages, running values, and the optimizer's state."""
    found = {f"parameters/{k}": p.detach() for k, p in enumerate(parameters)}
    found |= {f"averages/{k}": p for k, p in enumerate(kept.kept)}
    found |= {f"buffers/{name}": b for name, b in task.buffers.items()}
    for k, p in enumerate(parameters):
        for name, value in optimizer.state[p].items():
            if value is not None:  # counts stay on the host
                found[f"{'state' if value.device == p.device else 'host'}/{k}/{name}"] = value
    return {name: to_numpy(value) for name, value in found.items()}


def _put_back(
    standing: Mapping[str, np.ndarray],
    parameters: Sequence[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    kept: Averaged,
    task: ProblemTask,
) -> None:
    """The inverse of ``_standing``, of a run at its beginning."""
    with torch.no_grad():
        for k, p in enumerate(parameters):
            p.copy_(torch.from_numpy(standing[f"parameters/{k}"]))
        for name, b in task.buffers.items():
            b.copy_(torch.from_numpy(standing[f"buffers/{name}"]))
    if "averages/0" in standing:
        averages = (torch.from_numpy(standing[f"averages/{k}"]) for k in range(len(parameters)))
        kept.kept = [a.to(p.device) for a, p in zip(averages, parameters, strict=True)]
    for key, value in standing.items():
        group, _, rest = key.partition("/")
        if group in ("state", "host"):
            number, _, name = rest.partition("/")
            p = parameters[int(number)]
            home = p.device if group == "state" else "cpu"
            optimizer.state[p][name] = torch.from_numpy(value).to(home)


def _numel(value: Any) -> int:
    """Numbers in what an optimizer keeps: a tensor, or a list of them, as of Kronecker factors."""
    if isinstance(value, list | tuple):
        return sum(map(_numel, value))
    return value.numel() if isinstance(value, torch.Tensor) else 0


def stepper(
    source: Source, lr: float, task: ProblemTask
) -> tuple[Callable[[int], None], Callable[[], float]]:
    """A fresh optimizer on one gradient of the task, to measure its cost."""
    parameters = rollout.leaves(task)
    task.loss(parameters, 0).backward()
    optimizer = source.optimizer(zip(task.names, parameters, strict=True), lr, task.views)

    def advance(count: int) -> None:
        with fitting(task):  # as in a rollout
            for _ in range(count):
                optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def floats() -> float:
        kept = sum(
            _numel(value)
            for state in optimizer.state.values()
            for key, value in state.items()
            if key not in ("step", "skipped")
        )
        return kept / sum(p.numel() for p in parameters)

    return advance, floats
