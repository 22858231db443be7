"""The first-order meta-gradient carried forward: for rules, whose weights are a handful of constants.

With E_t = d theta_t / d weights, dL/dweights = sum_t w_t <g_t, E_t>. E and the tangents of the rule's own
state go along with a rollout (real-time recurrent learning; Williams and Zipser 1989), so memory does not
grow with the steps, and an unroll sees what all steps before it did: no truncation bias (MATH.md section 3).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from common.errors import L2OError
from interchange.language.view import View
from interchange.protocols import Network, Position, Tangents, Task
from tf_impl.meta.unroll import begun, decay_factor, inputs_at
from tf_impl.problems.tasks import value_and_gradient


def start(network: Network, position: Position) -> Tangents:
    """Zero tangents, as at the start of an epoch; a network whose weights are not numbers is refused."""
    if any(len(w.shape) for w in network.weights.values()):
        raise L2OError(
            "the forward meta-gradient expects a rule's constants, got weight arrays; use another --estimator"
        )
    arrays = (position.theta, *position.state.network)
    theta, *state = (tf.zeros((len(network.weights), *a.shape), a.dtype) for a in arrays)
    return Tangents(theta, tuple(state))


def advance(
    task: Task,
    network: Network,
    position: Position,
    tangents: Tangents,
    steps: int,
    loss: str,
    lr: float = 1.0,
) -> tuple[Position, Tangents, tf.Tensor, dict[str, tf.Tensor]]:
    """Take ``steps`` steps and carry the tangents along.

    Args:
        loss: ``sum`` of the losses after each of these steps, or the ``last`` one.

    Returns:
        The new position and tangents, losses [steps + 1], and weight name -> gradient.
    """
    position = begun(task, position)
    losses = [position.loss]
    total = tf.zeros(len(network.weights), tf.float64)
    for left in range(steps, 0, -1):
        position, tangents = _one_step(task, network, position, tangents, lr)
        losses.append(position.loss)
        if loss == "sum" or left == 1:
            total += tf.cast(tf.linalg.matvec(tangents.theta, position.gradient), tf.float64)
    return position, tangents, tf.stack(losses), dict(zip(network.weights, tf.unstack(total), strict=True))


def _one_step(
    task: Task, network: Network, at: Position, tangents: Tangents, lr: float
) -> tuple[Position, Tangents]:
    """One step from a position whose loss and gradient are known."""
    x, state = inputs_at(network, at)
    weights = {name: tf.convert_to_tensor(w) for name, w in network.weights.items()}
    t = tf.constant(state.t, tf.float64)
    along = _along(network, network.views)
    out, hidden, by_out, by_hidden = along(weights, x, state.network, tangents.network, t)
    by_theta = decay_factor(network, lr) * tangents.theta + (lr * network.scale) * by_out
    theta = at.theta + (lr * network.scale) * out
    value, g = value_and_gradient(task, theta, at.step + 1)
    moved = Position(at.step + 1, theta, dataclasses.replace(state, network=hidden), value, g)
    return moved, Tangents(by_theta, by_hidden)


@functools.lru_cache(maxsize=8)
def _along(network: Network, views: tuple[View, ...]) -> Callable[..., Any]:
    """``_all_along`` as a graph, which keeps what the network knows of tensors: their views."""
    del views
    return tf.function(functools.partial(_all_along, network))


def _all_along(
    network: Network,
    weights: dict[str, tf.Tensor],
    x: tf.Tensor,
    hidden: tuple[tf.Tensor, ...],
    tangents: tuple[tf.Tensor, ...],
    t: tf.Tensor,
) -> tuple[tf.Tensor, tuple[tf.Tensor, ...], tf.Tensor, tuple[tf.Tensor, ...]]:
    """Output and state of one step, and their derivatives by each of the k weights, one after the other."""
    names, zero = tuple(weights), tf.zeros((), tf.float64)
    found = []
    for k, one in enumerate(names):
        by_weight = [tf.ones_like(weights[one]) if name == one else zero for name in names]
        primals = [*(weights[name] for name in names), *hidden]
        with tf.autodiff.ForwardAccumulator(primals, [*by_weight, *(a[k] for a in tangents)]) as carried:
            out, new = network.step(weights, x, hidden, t)
        found.append([carried.jvp(a, unconnected_gradients="zero") for a in (out, *new)])
    by_out, *by_hidden = (tf.stack(parts) for parts in zip(*found, strict=True))
    return out, tuple(new), by_out, tuple(by_hidden)
