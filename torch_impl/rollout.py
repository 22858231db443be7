"""Rollouts of native optimizers on table problems: what evaluation and selection repeat many times."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from common.metrics import DIVERGED
from common.tables.schedules import SCHEDULES
from common.training import PLAIN, Training
from interchange.evaluation.curve import Curve
from interchange.rollout import INTERRUPTED, Rollout
from torch_impl.optimizers.average import Averaged
from torch_impl.optimizers.guard import GuardedOptimizer
from torch_impl.optimizers.optimizers import NonFiniteError
from torch_impl.problems.tasks import ProblemTask, table_task
from torch_impl.sources import Source
from torch_impl.tensors import unflatten
from torch_impl.threads import fitting


def rollout_job(
    config: Any, source: Source, lr: float, stream: str, number: int, steps: int, schedule: str
) -> Rollout:
    """One rollout; what the worker processes run. Test images are looked at on the stream ``test`` only."""
    if config.jobs > 1 or config.cluster:
        torch.set_num_threads(1)
    own = task(config, stream, number)
    return rollout(source, lr, own, steps, schedule, stream == "test", config.training)


def task(config: Any, stream: str, number: int) -> ProblemTask:
    """Optimizee ``number`` of the seeds ``stream``, on half B of the training data if not told otherwise."""
    return table_task(config, f"evaluate_{stream}", number, config.split)


def rollout(
    source: Source,
    lr: float,
    task: ProblemTask,
    steps: int,
    schedule: str = "constant",
    score: bool = True,
    training: Training = PLAIN,
) -> Rollout:
    """Optimize a task with a native optimizer over its own parameter tensors.

    Args:
        schedule: row of ``common.tables.schedules`` that the learning rate follows.
        score: look at the test images at the end.
        training: how steps are taken.
    """
    started, parameters = time.perf_counter(), leaves(task)
    named = zip(task.names, parameters, strict=True)
    optimizer = source.optimizer(named, lr, task.views, training)
    kept = Averaged(parameters, optimizer, training.average)
    curve = Curve(lambda: task.test_scores(flat(kept.tensors)), training.test_every if score else 0)
    losses, outcome = descend(task, parameters, optimizer, steps, curve, schedule, training)
    seconds = time.perf_counter() - started - curve.seconds
    test_loss, accuracy = curve.end() if score and outcome != DIVERGED else (math.nan, math.nan)
    rest = {"test_loss": test_loss, "seconds": seconds, "curve": curve.array()}
    return Rollout(losses, outcome, accuracy, **rest)


def flat(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """All parameters as a vector [N]."""
    return torch.cat([p.detach().reshape(-1) for p in parameters])


def leaves(task: ProblemTask) -> list[torch.Tensor]:
    """The task's initial parameters, one trainable tensor each."""
    return [p.clone().requires_grad_() for p in unflatten(task.initial(), task.shapes)]


def descend(
    task: ProblemTask,
    parameters: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    stop: Callable[[float], bool] | None = None,
    schedule: str = "constant",
    training: Training = PLAIN,
    first: int = 0,
) -> tuple[np.ndarray, str]:
    """The training loop: losses [step] before each update, and the outcome; ``parameters`` are changed.

    Args:
        stop: asked after every step with its loss; True ends the loop with the outcome ``interrupted``.
        schedule: row of ``common.tables.schedules`` that the learning rate follows.
        training: how steps are taken.
        first: the step to begin with, of a run that was interrupted.
    """
    with fitting(task):
        losses, outcome = _descend(task, parameters, optimizer, range(first, steps), stop, schedule, training)
    # Losses that stay as they are because nothing can move are no result.
    stuck = outcome == "ok" and isinstance(optimizer, GuardedOptimizer) and optimizer.stuck()
    return np.asarray(losses), DIVERGED if stuck else outcome


def _descend(
    task: ProblemTask,
    parameters: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    steps: range,
    stop: Callable[[float], bool] | None,
    schedule: str,
    training: Training,
) -> tuple[list[float], str]:
    rates, factor = [group["lr"] for group in optimizer.param_groups], SCHEDULES[schedule].factor
    losses: list[float] = []
    for step in steps:
        optimizer.zero_grad()
        losses.append(_backward(task, parameters, step, training.accumulate))
        if not math.isfinite(losses[-1]):
            return losses[:-1], DIVERGED
        if schedule != "constant":
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor(step, steps.stop)
        if training.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, training.clip_norm)
        try:
            optimizer.step()
        except NonFiniteError:
            return losses, DIVERGED
        if stop is not None and stop(losses[-1]):
            return losses, INTERRUPTED
    return losses, "ok"


def _backward(task: ProblemTask, parameters: list[torch.Tensor], step: int, batches: int) -> float:
    """The mean loss of a step's mini-batches, whose mean gradient is in the parameters then."""
    total = 0.0
    for number in range(step * batches, (step + 1) * batches):
        loss = task.loss(parameters, number)
        loss = loss if batches == 1 else loss / batches
        loss.backward()
        total += float(loss.detach())
    return total
