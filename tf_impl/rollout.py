"""Rollouts of native optimizers on table problems: what evaluation and selection repeat many times."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common.baselines import falling
from common.metrics import DIVERGED
from interchange.commands.backend import Rollout
from tf_impl.optimizers import NonFiniteError
from tf_impl.problems import ProblemTask, table_task
from tf_impl.sources import Source
from tf_impl.tensors import unflatten

INTERRUPTED = "interrupted"


def rollout_job(config: Any, source: Source, lr: float, stream: str, number: int, steps: int) -> Rollout:
    """One rollout; what the worker processes run. Test images are looked at on the stream ``test`` only."""
    if config.jobs > 1 or config.cluster:
        with contextlib.suppress(RuntimeError):  # a worker that has begun keeps its threads
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)
    return rollout(source, lr, task(config, stream, number), steps, stream == "test")


def task(config: Any, stream: str, number: int) -> ProblemTask:
    """Optimizee ``number`` of the seeds ``stream``, on half B of the training data if not told otherwise."""
    return table_task(config, f"evaluate_{stream}", number, getattr(config, "split", "evaluation"))


def rollout(source: Source, lr: float, task: ProblemTask, steps: int, score: bool = True) -> Rollout:
    """Optimize a task with a native optimizer over its own parameter tensors.

    Args:
        score: look at the test images at the end.
    """
    started, parameters = time.perf_counter(), leaves(task)
    optimizer = source.optimizer(parameters, lr)
    losses, outcome = descend(task, parameters, optimizer, steps, cosine=source.spec.cosine)
    seconds = time.perf_counter() - started
    if outcome == DIVERGED or not score:
        return Rollout(losses, outcome, math.nan, seconds=seconds)
    theta = tf.concat([tf.reshape(p, [-1]) for p in parameters], 0)
    test_loss, accuracy = task.test_scores(theta)
    return Rollout(losses, outcome, accuracy, test_loss=test_loss, seconds=seconds)


def leaves(task: ProblemTask) -> list[tf.Variable]:
    """The task's initial parameters, one trainable tensor each."""
    return [tf.Variable(p) for p in unflatten(task.initial(), task.shapes)]


def descend(
    task: ProblemTask,
    parameters: list[tf.Variable],
    optimizer: keras.optimizers.Optimizer,
    steps: int,
    stop: Callable[[float], bool] | None = None,
    cosine: bool = False,
) -> tuple[np.ndarray, str]:
    """The training loop: losses [step] before each update, and the outcome; ``parameters`` are changed.

    Args:
        stop: asked after every step with its loss; True ends the loop with the outcome ``interrupted``.
        cosine: the learning rate falls to 0 as a cosine over ``steps``.
    """
    rate = float(optimizer.learning_rate)
    update = updater(optimizer, parameters)
    losses: list[float] = []
    for step in range(steps):
        loss, grads = loss_and_gradients(task, parameters, step)
        losses.append(float(loss))
        if not math.isfinite(losses[-1]):
            return np.asarray(losses[:-1]), DIVERGED
        if cosine:
            optimizer.learning_rate = rate * falling(step, steps)
        try:
            update(grads)
        except (NonFiniteError, tf.errors.InvalidArgumentError):  # the latter from within a graph
            return np.asarray(losses), DIVERGED
        if stop is not None and stop(losses[-1]):
            return np.asarray(losses), INTERRUPTED
    return np.asarray(losses), "ok"


def updater(
    optimizer: keras.optimizers.Optimizer, parameters: list[tf.Variable]
) -> Callable[[list[tf.Tensor]], None]:
    """One update of ``parameters`` by their gradients, as a graph."""
    return tf.function(lambda grads: optimizer.apply(grads, parameters))


def loss_and_gradients(
    task: ProblemTask, parameters: list[tf.Variable], step: int
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Loss, 0-dim, on the batch of ``step``, and its gradients in the shapes of the parameters."""
    values = [tf.convert_to_tensor(p) for p in parameters]
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = task.loss(values, step)
    return loss, tape.gradient(loss, values, unconnected_gradients="zero")
