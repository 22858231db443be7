"""Rollouts of native optimizers on table problems: what evaluation and selection repeat many times."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.metrics import DIVERGED
from common.tables.schedules import SCHEDULES
from common.training import PLAIN, Training
from interchange.evaluation.curve import Curve
from interchange.rollout import INTERRUPTED, Rollout
from tf_impl.loops import Loop, borrowed
from tf_impl.optimizers.guard import GuardedOptimizer
from tf_impl.problems.tasks import ProblemTask, table_task
from tf_impl.sources import Source
from tf_impl.tensors import unflatten


def rollout_job(
    config: Any, source: Source, lr: float, stream: str, number: int, steps: int, schedule: str
) -> Rollout:
    """One rollout; what the worker processes run. Test images are looked at on the stream ``test`` only."""
    if config.jobs > 1 or config.cluster:
        with contextlib.suppress(RuntimeError):  # a worker that has begun keeps its threads
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)
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
    started = time.perf_counter()
    with borrowed(source, task, lr, training) as loop:
        curve = Curve(lambda: task.test_scores(flat(loop.trained)), training.test_every if score else 0)
        losses, outcome = descend(task, loop, steps, curve, schedule)
        seconds = time.perf_counter() - started - curve.seconds
        test_loss, accuracy = curve.end() if score and outcome != DIVERGED else (math.nan, math.nan)
    rest = {"test_loss": test_loss, "seconds": seconds, "curve": curve.array()}
    return Rollout(losses, outcome, accuracy, **rest)


def flat(parameters: Sequence[tf.Variable]) -> tf.Tensor:
    """All parameters as a vector [N]."""
    return tf.concat([tf.reshape(p, [-1]) for p in parameters], 0)


def leaves(task: ProblemTask) -> list[tf.Variable]:
    """The task's initial parameters, one trainable tensor each."""
    values = zip(task.names, unflatten(task.initial(), task.shapes), strict=True)
    return [tf.Variable(value, name=name) for name, value in values]


def descend(
    task: ProblemTask,
    loop: Loop,
    steps: int,
    stop: Callable[[float], bool] | None = None,
    schedule: str = "constant",
    first: int = 0,
) -> tuple[np.ndarray, str]:
    """The training loop: losses [step] before each update, and the outcome; the parameters are changed.

    Args:
        loop: with parameters and optimizer, at its beginning.
        stop: asked after every step with its loss; True ends the loop with the outcome ``interrupted``.
        schedule: row of ``common.tables.schedules`` that the learning rate follows.
        first: the step to begin with, of a run that was interrupted.
    """
    rate, factor = float(loop.optimizer.learning_rate), SCHEDULES[schedule].factor
    losses: list[float] = []
    for step in range(first, steps):
        if schedule != "constant":
            loop.optimizer.learning_rate = rate * factor(step, steps)
        loss, moved = loop.step(task, step)
        if math.isfinite(loss):
            losses.append(loss)
        if not (moved and math.isfinite(loss)):
            return np.asarray(losses), DIVERGED
        if stop is not None and stop(loss):
            return np.asarray(losses), INTERRUPTED
    # Losses that stay as they are because nothing can move are no result.
    stuck = isinstance(loop.optimizer, GuardedOptimizer) and loop.optimizer.stuck()
    return np.asarray(losses), DIVERGED if stuck else "ok"
