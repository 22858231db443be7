"""The TensorFlow side of the commands: this module is their ``interchange.backend.Backend``."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common.errors import L2OError
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
from tf_impl.loops import borrowed
from tf_impl.meta.learner import Learner
from tf_impl.meta.unroll import mean_loss_at
from tf_impl.meta.workers import join
from tf_impl.networks.rule import RuleNetwork
from tf_impl.networks.step_sizes import StepSizes
from tf_impl.networks.structure import structure_of
from tf_impl.networks.teacher import TeacherNetwork
from tf_impl.problems import products
from tf_impl.problems.tasks import ProblemTask, table_task, value_and_gradient
from tf_impl.rollout import descend, flat, leaves, rollout_job
from tf_impl.rollout import rollout as roll_out
from tf_impl.sources import Source
from tf_impl.sources import load as load_source
from tf_impl.tensors import CREATED_BY, DTYPES, device_of, to_numpy, unflatten

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

NAME = "tf"
TARGET = "tensorflow"
USAGE = """import keras
import numpy as np
from tf_impl import SymbolicOptimizer

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])  # your model and data here
x = np.random.default_rng(0).normal(size=(64, 4))
model.compile(optimizer=SymbolicOptimizer("{file}", learning_rate={lr}), loss="mse")
model.fit(x, x.sum(1), epochs=2, verbose=0)"""
_COUNTERS = ("iteration", "learning_rate", "_step")


def check_training(training: Training, device: str) -> None:
    """Refuse, by ``L2OError``, steps that the device cannot take; ``device`` as on the command line."""
    low = training.bfloat16 and "CPU" in device_of(device)
    if low and (fault := products.fault("bfloat16")):
        raise L2OError(
            "--bfloat16: expected a processor on which TensorFlow multiplies bfloat16, but here "
            f"{fault}; leave it out, or use --device cuda or torch_impl"
        )


def teacher_network(
    teacher: TeacherRow, weights: Mapping[str, np.ndarray], dtype: str, device: str, state_dtype: str = ""
) -> TeacherNetwork:
    """A teacher's network; ``dtype``, ``device`` and ``state_dtype`` as on the command line."""
    kept = tf.bfloat16 if state_dtype else None
    return TeacherNetwork(teacher, weights, DTYPES[dtype], device_of(device), kept)


def rule_network(rule: Rule, device: str, problems: Sequence[str] = (), kinds: bool = False) -> RuleNetwork:
    """A rule's network (``RuleNetwork``); a rule that cannot be one raises ``L2OError``."""
    return RuleNetwork(rule, device_of(device), problems, kinds)


def step_sizes_network(source: Sized, dtype: str, device: str) -> StepSizes:
    """A network of step sizes by tensor (``StepSizes``); ``dtype`` and ``device`` as on the command line."""
    return StepSizes(source, DTYPES[dtype], device_of(device))


def metrics_writer(folder: str) -> Callable[[Mapping[str, Any]], None]:
    """What takes the rows of a run's metrics and writes them for TensorBoard."""
    require("--tensorboard", "tensorboard")  # without it tf.summary writes no scalars, and does not say why
    writer = tf.summary.create_file_writer(folder)

    def write(row: Mapping[str, Any]) -> None:
        with writer.as_default(step=row["epoch"]):
            for name, value in numbers(row).items():
                tf.summary.scalar(name, value)
        writer.flush()

    return write


def trace(
    source: Source, network: Network | None, task: ProblemTask, steps: int, coordinates: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Inputs [n, F], gradient [n] and output [n] at ``coordinates``, and the loss, step by step."""
    lr, theta = source.spec.lr or source.spec.middle, task.initial()
    if network is not None:
        network.bind(task)
        state, structure = network.initial_state(theta), structure_of(network, task)
    else:
        variable = tf.Variable(theta)
        update = _updater(source.optimizer([variable], lr), [variable])
    for step in range(steps):
        loss, g = value_and_gradient(task, theta, step)
        if not (math.isfinite(float(loss)) and _finite(g)):
            return
        if network is not None:
            x, state = network.inputs(g, state)
            y, hidden = network.roll(x, state.network, state.t)
            state = dataclasses.replace(state, network=hidden)
            theta = theta + (lr * network.scale) * (y if structure is None else structure(y))
        else:
            update([g])
            x, before, theta = g[None], theta, tf.convert_to_tensor(variable)
            y = (theta - before) / lr
        if not (_finite(x) and _finite(y)):
            return
        picked = (tf.gather(a, coordinates, axis=-1) for a in (x, g, y))
        inputs, gradient, output = map(to_numpy, picked)
        yield inputs.T, gradient, output, float(loss)


def _updater(
    optimizer: keras.optimizers.Optimizer, parameters: list[tf.Variable]
) -> Callable[[list[tf.Tensor]], None]:
    """One update of ``parameters`` by their gradients, as a graph."""
    return tf.function(lambda grads: optimizer.apply(grads, parameters))


def _finite(values: tf.Tensor) -> bool:
    return bool(tf.reduce_all(tf.math.is_finite(values)))


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
    started, before = time.perf_counter(), np.zeros(0) if begun is None else begun.losses
    with borrowed(source, task, source.spec.lr or source.spec.middle, training) as loop:
        if begun is not None:
            loop.put_back(begun.standing, task)
        curve = Curve(lambda: task.test_scores(flat(loop.trained)), training.test_every, stop, told, begun)
        schedule = source.spec.schedule or "constant"
        losses, outcome = descend(task, loop, steps, curve, schedule, len(before))
        seconds = time.perf_counter() - started - curve.seconds
        if not _finite(flat(loop.parameters)):  # the last step may have ruined it
            outcome = DIVERGED
        test_loss, accuracy = (math.nan, math.nan) if outcome == DIVERGED else curve.end()
        standing = loop.standing(task) if outcome == INTERRUPTED else {}
        arrays = {f"theta/{name}": to_numpy(p) for name, p in zip(task.names, loop.trained, strict=True)}
    arrays |= {f"buffers/{name}": to_numpy(b) for name, b in task.buffers.items()}
    rest = {"test_loss": test_loss, "seconds": seconds, "curve": curve.array(), "standing": standing}
    return Trained(np.concatenate([before, losses]), outcome, accuracy, arrays, **rest)


def stepper(
    source: Source, lr: float, task: ProblemTask
) -> tuple[Callable[[int], None], Callable[[], float]]:
    """A fresh optimizer on one gradient of the task, to measure its cost."""
    parameters = leaves(task)
    grads = unflatten(value_and_gradient(task, task.initial(), 0)[1], task.shapes)
    optimizer = source.optimizer(parameters, lr, task.views)
    update = _updater(optimizer, parameters)

    def advance(count: int) -> None:
        for _ in range(count):
            update(grads)
        float(tf.reduce_sum(parameters[0]))  # waits for the device

    def floats() -> float:
        kept = [v for v in optimizer.variables if not v.name.endswith(_COUNTERS)]
        return sum(math.prod(v.shape) for v in kept) / sum(math.prod(p.shape) for p in parameters)

    return advance, floats
