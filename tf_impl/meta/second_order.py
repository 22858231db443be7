"""The second-order meta-gradient, also without an optimizee graph (MATH.md section 3).

The first-order one (``unroll``) takes the gradients that enter the features for constants. Here they
are functions of where earlier updates led. One reverse sweep over the steps of an unroll, with
lambda_T = g_T and a_s = dL/dg_s from the backward pass of one step of the optimizer, which also takes the
cotangents of its state one step back:

    lambda_s = w_s g_s + (1 - lr wd) lambda_{s+1} + H_s a_s.

H_s a_s differentiates the optimizee's gradient once more, at one point, on the batch of step s. Where a
feature has no derivative, as sqrt at a gradient that always was 0, it counts as 0 (``operators``). So does
a_s where the gradient is 0 but for rounding, as that of a unit that is off or of a bias before batch norm:
features that divide by its size have derivatives of up to 1 / eps there, which only multiply rounding errors.

A Keras model's own batch norm is differentiated as Keras has it, by ``tf.nn.moments``, whose second
derivative lacks what goes through the mean.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from interchange.language.view import View
from interchange.protocols import Network, Position, State, Task
from tf_impl.meta.unroll import advance, begun, contribution, inputs_at
from tf_impl.networks.structure import Structure, structure_of
from tf_impl.problems.modules import ModuleTask
from tf_impl.tensors import Weights, unflatten

_ROUNDING = 16.0  # times the dtype's eps and the largest gradient


def unrolled(
    task: Task, network: Network, position: Position, steps: int, loss: str, lr: float = 1.0
) -> tuple[Position, tf.Tensor, dict[str, tf.Tensor]]:
    """Take ``steps`` steps as ``unroll.advance`` does, and the second-order meta-gradient of their losses.

    Parameters, gradient and state at ``position`` are constants.

    Args:
        loss: sum of the losses after each step (``sum``), of their logarithms (``log``), or the one after all
            (``last``).

    Returns:
        The new position, losses [steps + 1], weight name -> gradient.
    """
    position = begun(task, position)
    path, drawn = [position], [_running(task)]
    for _ in range(steps):
        drawn.append(_running(task))
        path.append(advance(task, network, path[-1], 1, lr)[0])
    end, structure = path[-1], structure_of(network, task)
    grads = {name: tf.zeros_like(w) for name, w in network.weights.items()}
    later, state = contribution(end, loss), _zeros(end.state)  # dL by theta and by the state, one step on
    with _undisturbed(task):
        for s in reversed(range(steps)):
            by_u = lr * network.scale * later
            by_g, by_theta, state, pieces = step_back(network, structure, path[s], by_u, state)
            for name, piece in pieces.items():
                grads[name] += piece
            if s == 0:
                break
            later = later + by_theta + _curvature(task, path[s], _felt(by_g, path[s].gradient), drawn[s])
            if loss != "last":
                later = later + contribution(path[s], loss)
    return end, tf.stack([at.loss for at in path]), grads


def step_back(
    network: Network, structure: Structure | None, at: Position, by_out: tf.Tensor, by_state: State
) -> tuple[tf.Tensor, tf.Tensor, State, dict[str, tf.Tensor]]:
    """The backward pass of one step of the optimizer.

    Args:
        by_out: dL by its output [N], after its structure; by_state: by the state after the step.

    Returns:
        dL by the gradient [N], by theta [N] (weight decay only), by the state before, and by the weights.
    """
    given = (at.gradient, at.theta, at.state.features, at.state.network)
    weights = {name: tf.convert_to_tensor(w) for name, w in network.weights.items()}
    by = (by_out, *by_state.features, *by_state.network)
    # A graph would keep what a network reads of itself: kinds of tensors, and whether there is weight decay.
    # What has a structure keeps neither, and the structure has a derivative within graphs only.
    fixed = bool(network.structure) or (network.tasks_batchable and not network.weight_decay)
    run = _compiled(network, structure, network.views) if fixed else _bound(network, structure)
    by_g, by_theta, features, hidden, pieces = run(tf.constant(at.state.t), *given, weights, by)
    return by_g, by_theta, State(at.state.t, features, hidden), pieces


def _bound(network: Network, structure: Structure | None) -> Callable[..., Any]:
    return functools.partial(_vjp_of_all, network, structure)


@functools.lru_cache(maxsize=2)
def _compiled(network: Network, structure: Structure | None, views: tuple[View, ...]) -> Callable[..., Any]:
    del views  # which the graph reads of the network
    return tf.function(_bound(network, structure))


def _vjp_of_all(
    network: Network,
    structure: Structure | None,
    t: tf.Tensor,
    g: tf.Tensor,
    theta: tf.Tensor,
    features: tuple[tf.Tensor, ...],
    hidden: tuple[tf.Tensor, ...],
    weights: Weights,
    by: tuple[tf.Tensor, ...],
) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...], tuple[tf.Tensor, ...], Weights]:
    """What ``by``, dL by the output and the state after, makes of dL by each of what comes before."""
    # Copies: two of these may be one tensor, as a gradient kept as state, and the tape tells tensors apart.
    g, theta, features, hidden, weights = tf.nest.map_structure(
        tf.identity, (g, theta, features, hidden, weights)
    )
    with tf.GradientTape() as tape:
        tape.watch([g, theta, *features, *hidden, *weights.values()])
        x, state = inputs_at(network, Position(0, theta, State(t, features, hidden), None, g))
        out, after = network.step(weights, x, state.network, state.t)
        out = out if structure is None else structure(out)
    return tape.gradient(
        [out, *state.features, *after],
        (g, theta, features, hidden, weights),
        output_gradients=list(by),
        unconnected_gradients="zero",
    )


def _felt(by_g: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
    """dL by the gradient, 0 where the gradient is nothing but rounding errors of larger ones."""
    size = tf.abs(g)
    edge = _ROUNDING * np.finfo(g.dtype.as_numpy_dtype).eps * tf.reduce_max(size)
    return tf.where(size > edge, by_g, tf.zeros_like(by_g))


def _curvature(task: Task, at: Position, vector: tf.Tensor, drawn: list[tf.Tensor]) -> tf.Tensor:
    """The Hessian [N, N] of the loss at ``at`` on its batch, times a vector [N]."""
    if hasattr(task, "curvature"):
        return task.curvature(at.theta, vector, at.step)
    for variable, value in zip(_variables(task), drawn, strict=True):
        variable.assign(value)  # the units dropout left out the first time
    theta = tf.identity(at.theta)
    with tf.GradientTape() as outer:
        outer.watch(theta)
        with tf.GradientTape() as inner:
            inner.watch(theta)
            loss = task.loss(unflatten(theta, task.shapes), at.step)
        g = inner.gradient(loss, theta, unconnected_gradients="zero")
    return tf.convert_to_tensor(
        outer.gradient(g, theta, output_gradients=vector, unconnected_gradients="zero")
    )


def _plain(task: Task) -> Task:
    """The task inside the variations of ``augment``."""
    while hasattr(task, "task"):
        task = task.task
    return task


def _variables(task: Task) -> list:
    """Of a Keras model, those nobody trains: batch norm's running values, dropout's seeds."""
    task = _plain(task)
    return list(task.module.non_trainable_variables) if isinstance(task, ModuleTask) else []


def _running(task: Task) -> list[tf.Tensor]:
    """The values of ``_variables``, as copies."""
    return [tf.identity(variable.value) for variable in _variables(task)]


def _zeros(state: State) -> State:
    return State(state.t, tuple(map(tf.zeros_like, state.features)), tuple(map(tf.zeros_like, state.network)))


@contextlib.contextmanager
def _undisturbed(task: Task) -> Iterator[None]:
    """Afterwards batch norm's running values are what they were before."""
    values, buffers = _running(task), dict(getattr(_plain(task), "buffers", {}))
    try:
        yield
    finally:
        for variable, value in zip(_variables(task), values, strict=True):
            variable.assign(value)
        if buffers:
            _plain(task).buffers.update(buffers)
