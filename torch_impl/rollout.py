"""Rollouts of native optimizers on table problems: what evaluation and selection repeat many times."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from common.metrics import DIVERGED
from interchange.commands.backend import Rollout
from torch_impl.optimizers import NonFiniteError
from torch_impl.problems import ProblemTask, table_task
from torch_impl.sources import Source
from torch_impl.tensors import unflatten

INTERRUPTED = "interrupted"


def rollout_job(config: Any, source: Source, lr: float, stream: str, number: int, steps: int) -> Rollout:
    """One rollout; what the worker processes run."""
    if config.jobs > 1:
        torch.set_num_threads(1)
    return rollout(source, lr, task(config, stream, number), steps)


def task(config: Any, stream: str, number: int) -> ProblemTask:
    """Optimizee ``number`` of the seeds ``stream``, on half B of the training data if not told otherwise."""
    return table_task(config, f"evaluate_{stream}", number, getattr(config, "split", "evaluation"))


def rollout(source: Source, lr: float, task: ProblemTask, steps: int) -> Rollout:
    """Optimize a task with a native optimizer over its own parameter tensors."""
    parameters = leaves(task)
    losses, outcome = descend(task, parameters, source.optimizer(parameters, lr), steps)
    if outcome == DIVERGED:
        return Rollout(losses, DIVERGED, math.nan)
    theta = torch.cat([p.detach().reshape(-1) for p in parameters])
    return Rollout(losses, "ok", task.test_accuracy(theta))


def leaves(task: ProblemTask) -> list[torch.Tensor]:
    """The task's initial parameters, one trainable tensor each."""
    return [p.clone().requires_grad_() for p in unflatten(task.initial(), task.shapes)]


def descend(
    task: ProblemTask,
    parameters: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    stop: Callable[[float], bool] | None = None,
) -> tuple[np.ndarray, str]:
    """The training loop: losses [step] before each update, and the outcome; ``parameters`` are changed.

    Args:
        stop: asked after every step with its loss; True ends the loop with the outcome ``interrupted``.
    """
    losses: list[float] = []
    for step in range(steps):
        loss = task.loss(parameters, step)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return np.asarray(losses[:-1]), DIVERGED
        optimizer.zero_grad()
        loss.backward()
        try:
            optimizer.step()
        except NonFiniteError:
            return np.asarray(losses), DIVERGED
        if stop is not None and stop(losses[-1]):
            return np.asarray(losses), INTERRUPTED
    return np.asarray(losses), "ok"
