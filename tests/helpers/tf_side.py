"""TensorFlow's side of the tests that both frameworks share; see ``torch_side``."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import kernels
from common.rng import rng
from interchange.files.weights import Teacher
from interchange.protocols import Position, Task
from tf_impl.optimizers import base, baselines, torch_formulas
from tf_impl.optimizers.optimizers import LearnedOptimizer, NonFiniteError, SymbolicOptimizer
from tf_impl.problems.modules import ModuleTask
from tf_impl.problems.tasks import value_and_gradient
from tf_impl.recording.recorder import Recorder
from tf_impl.tensors import DTYPES, to_numpy, unflatten

__all__ = ["DTYPES", "NAME", "NonFiniteError", "Recorder", "unflatten", "value_and_gradient"]

NAME = "tf"
Optimizer = keras.optimizers.Optimizer
Parameters = Sequence[keras.Variable]
Row = Sequence[np.ndarray | float | None]

value, tensor = to_numpy, tf.constant


def module(name: str) -> ModuleType:
    return import_module(f"tf_impl.{name}")


def parameters(values: Sequence[np.ndarray], dtype: str = "float64") -> Parameters:
    return [keras.Variable(np.asarray(v), dtype=dtype, name=f"p{k}") for k, v in enumerate(values)]


def named(names: Sequence[str], values: Sequence[np.ndarray]) -> Parameters:
    """Variables with names."""
    return [
        keras.Variable(np.asarray(v), dtype="float64", name=n) for n, v in zip(names, values, strict=True)
    ]


def plain(found: Parameters) -> Parameters:
    """The variables themselves, which have their names."""
    return found


def native(x: np.ndarray) -> np.ndarray:
    return x


canonical = native


def rule(params: Parameters, given: Any, lr: float = 1.0, **options: Any) -> SymbolicOptimizer:
    return _built(SymbolicOptimizer(given, lr, **options), params)


def teacher(params: Parameters, given: Any, lr: float = 1.0, **options: Any) -> LearnedOptimizer:
    return _built(LearnedOptimizer(given, lr, **options), params)


def optimizer(params: Parameters, given: Any, lr: float = 1.0, **options: Any) -> Optimizer:
    return (teacher if isinstance(given, Teacher) else rule)(params, given, lr, **options)


def _built(one: Optimizer, params: Parameters) -> Optimizer:
    one.build(params)
    return one


baseline = baselines.make


def sgd(params: Parameters, lr: float) -> Optimizer:
    return torch_formulas.SGD(lr, name="sgd")


def set_rate(one: Optimizer, lr: float) -> None:
    one.learning_rate = lr


def tensors(params: Parameters, row: Row) -> list[tf.Tensor | None]:
    """Gradients in the dtypes of the parameters; None is none."""
    pairs = zip(row, params, strict=True)
    return [None if g is None else tf.cast(tf.constant(g, tf.float64), p.dtype) for g, p in pairs]


def feed(one: Optimizer, params: Parameters, row: Row) -> None:
    one.apply(tensors(params, row), params)


def tallies(one: Optimizer) -> list[list[int]]:
    """Of every tensor: steps, coordinates left alone in the last, and looks in a row at which all were."""
    return [tally.numpy().astype(int).tolist() for tally in one._tallies]


def counts(one: Optimizer, params: Parameters) -> list[int]:
    return [tallies(one)[one._get_variable_index(p)][0] for p in params]


def left_alone(one: Optimizer, params: Parameters) -> list[int]:
    return [tallies(one)[one._get_variable_index(p)][1] for p in params]


def state(one: Optimizer, p: keras.Variable) -> list[np.ndarray]:
    return [a.numpy() for a in one._states[one._get_variable_index(p)]]


def copied(one: Optimizer, params: Parameters, way: Callable[[Any], Any]) -> tuple[Optimizer, Parameters]:
    others = [keras.Variable(p.numpy(), dtype=p.dtype) for p in params]
    return _built(way(one), others), others


def take_path(path: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Only eager steps run compiled code; those that XLA compiles, by itself or within a graph, are fused."""
    if path == "compiled" and (reason := kernels.missing()):
        pytest.skip(reason)
    monkeypatch.setenv("L2O_KERNELS", "1" if path == "compiled" else "0")
    if "fused" in path:
        monkeypatch.setattr(base, "FUSED_FROM", 1)
    return {}


def stepper(one: Optimizer, params: Parameters, path: str) -> Callable[..., None]:
    one.build(params)
    apply = lambda *row: one.apply(row, params)  # noqa: E731
    if "graph" in path or path == "xla":
        apply = tf.function(apply, jit_compile=path == "xla")
    return lambda *row: apply(*tensors(params, row))


def tells(path: str) -> type[Exception]:
    """Compiled by XLA as a whole a step cannot tell anything."""
    return tf.errors.InvalidArgumentError if "graph" in path else NonFiniteError


def probe(dtype: str = "float64", bias: bool = False) -> ModuleTask:
    generator = rng(0, "test")
    layers = [
        keras.layers.Dense(8, use_bias=bias, dtype=dtype),
        keras.layers.BatchNormalization(dtype=dtype),
        keras.layers.ReLU(dtype=dtype),
        keras.layers.Dropout(0.3, seed=7, dtype=dtype),
        keras.layers.Dense(3, dtype=dtype),
    ]
    net = keras.Sequential([keras.Input((6,), dtype=dtype), *layers])
    for variable in net.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    beta = layers[1].beta
    beta.assign(np.concatenate([[-50.0, -50.0], beta.numpy()[2:]]))
    x, y = generator.normal(size=(4, 16, 6)).astype(dtype), generator.integers(3, size=(4, 16))
    x[..., 3:] = 0.0
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype)
    return ModuleTask(net, loss, zip(x, y, strict=True))


def running_values(task: Task) -> list[tf.Tensor]:
    values = task.module.non_trainable_variables if isinstance(task, ModuleTask) else task.buffers.values()
    return [tf.convert_to_tensor(v) for v in values]


def seed(number: int) -> None:
    """Layers keep seeds of their own here, among their running values."""


def next_draw() -> list[tf.Tensor]:
    return []


def structured(task: Task, network: Any, y: tf.Tensor) -> tf.Tensor:
    if not network.structure:
        return y
    act, found = module("networks.matrix").TENSOR[network.structure], []
    for part, view in zip(unflatten(y, task.shapes), task.views, strict=True):
        found.append(tf.reshape(act(tf.reshape(part, view.split), view.axes), [-1]))
    return tf.concat(found, 0)


@mock.patch.dict(os.environ, {"L2O_KERNELS": "0"})  # no tape sees what compiled code does
def whole_graph(
    task: Task, network: Any, at: Position, steps: int, loss: str, lr: float = 1.0, second: bool = True
) -> dict[str, tf.Tensor]:
    weights = {name: tf.identity(w) for name, w in network.weights.items()}
    theta, state, losses = tf.identity(at.theta), at.state, []
    value, g = value_and_gradient(task, theta, at.step)
    with tf.GradientTape() as tape:
        tape.watch(list(weights.values()))
        for step in range(at.step, at.step + steps + 1):
            if step > at.step:
                with tf.GradientTape() as inner:
                    inner.watch(theta)
                    value = task.loss(unflatten(theta, task.shapes), step)
                g = inner.gradient(value, theta)
                g = g if second else tf.stop_gradient(g)
            losses.append(value)
            if step < at.step + steps:
                here = Position(step, theta, state, value, g)
                x, state = module("meta.unroll").inputs_at(network, here)
                out, hidden = network.step(weights, x, state.network, state.t)
                state = dataclasses.replace(state, network=hidden)
                theta = theta + lr * network.scale * structured(task, network, out)
        losses = tf.stack(losses)
        total = {"sum": tf.reduce_sum(losses), "last": losses[-1], "log": tf.reduce_sum(tf.math.log(losses))}
    return tape.gradient(total[loss], weights, unconnected_gradients="zero")
