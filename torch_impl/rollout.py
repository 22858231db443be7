"""Rollouts of native optimizers on table problems: what evaluation and selection repeat many times."""

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from common.metrics import DIVERGED
from torch_impl.optimizers import NonFiniteError
from torch_impl.problems import ProblemTask, table_task
from torch_impl.sources import Source
from torch_impl.tensors import unflatten


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One optimizer from one seed: losses [step] before each update, and accuracy at the end."""

    losses: np.ndarray
    outcome: str
    accuracy: float


def rollout_job(config: Any, source: Source, lr: float, stream: str, number: int, steps: int) -> Rollout:
    """One rollout; what the worker processes run."""
    if config.jobs > 1:
        torch.set_num_threads(1)
    return rollout(source, lr, task(config, stream, number), steps)


def task(config: Any, stream: str, number: int) -> ProblemTask:
    """Optimizee ``number`` of the seeds ``stream`` on half B of the training data."""
    return table_task(config, f"evaluate_{stream}", number, "evaluation")


def rollout(source: Source, lr: float, task: ProblemTask, steps: int) -> Rollout:
    """Optimize a task with a native optimizer over its own parameter tensors."""
    parameters = [p.clone().requires_grad_() for p in unflatten(task.initial(), task.shapes)]
    optimizer = source.optimizer(parameters, lr)
    losses: list[float] = []
    for step in range(steps):
        loss = task.loss(parameters, step)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return Rollout(np.asarray(losses[:-1]), DIVERGED, math.nan)
        optimizer.zero_grad()
        loss.backward()
        try:
            optimizer.step()
        except NonFiniteError:
            return Rollout(np.asarray(losses), DIVERGED, math.nan)
    theta = torch.cat([p.detach().reshape(-1) for p in parameters])
    return Rollout(np.asarray(losses), "ok", held_out_accuracy(task, theta))


def held_out_accuracy(task: ProblemTask, theta: Any) -> float:
    """Accuracy on the test images; nan where there are none."""
    if task.instance.problem.kind != "classifier":
        return math.nan
    test = ProblemTask(dataclasses.replace(task.instance, split="test"), task.dtype, task.device)
    return test.accuracy(theta)
