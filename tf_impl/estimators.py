"""Meta-gradient estimators beside the first-order one of ``unroll`` (MATH.md section 3)."""

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from tf_impl import unroll
from tf_impl.problems import Task
from tf_impl.tensors import to_tensor

LAST_SHARE = 0.3  # of a rollout's steps: the mean loss over them is the objective
_WORST = 10.0  # times the first loss: what a diverged rollout counts as


def objective(task: Task, network: unroll.Network, steps: int) -> tuple[float, np.ndarray]:
    """Mean loss over the last 30 % of a rollout of ``steps`` steps, and its losses [steps]."""
    losses = unroll.rollout(task, network, steps)[:-1]
    worst = _WORST * abs(float(losses[0])) if np.isfinite(losses[0]) else 0.0
    bounded = np.minimum(np.nan_to_num(losses, nan=worst, posinf=worst, neginf=worst), worst)
    return float(bounded[-max(1, round(LAST_SHARE * steps)) :].mean()), losses


def evolution(
    task: Callable[[int], Task],
    network: unroll.Network,
    steps: int,
    scales: Mapping[str, float],
    generator: np.random.Generator,
    pairs: int,
    sigma: float,
) -> tuple[dict[str, tf.Tensor], np.ndarray]:
    """Antithetic evolution strategies over the whole horizon.

    Unbiased for the objective smoothed over normal perturbations of the weights, and free of the bias of
    first-order and of truncated gradients (Salimans et al. 2017; Metz et al. 2019).

    Args:
        task: ``task(k)`` gives the optimizee of pair ``k``; both halves of a pair run on the same.
        scales: weight name -> size of a perturbation of 1.
        sigma: standard deviation of the perturbations, in units of ``scales``.

    Returns:
        Weight name -> gradient, and the losses [steps] of the last rollout.
    """
    start = {name: tf.convert_to_tensor(w) for name, w in network.weights.items()}
    grads = {name: tf.zeros_like(w) for name, w in start.items()}
    losses = np.zeros(0)
    for pair in range(pairs):
        one = task(pair)
        noise = {
            name: to_tensor(generator.normal(size=tuple(w.shape)), w.dtype, w.device)
            for name, w in start.items()
        }
        values = []
        for sign in (1.0, -1.0):
            for name, w in network.weights.items():
                w.assign(start[name] + sign * sigma * scales.get(name, 1.0) * noise[name])
            value, losses = objective(one, network, steps)
            values.append(value)
        slope = (values[0] - values[1]) / (2.0 * sigma * pairs)
        for name, e in noise.items():
            grads[name] += slope * e / scales.get(name, 1.0)
    for name, w in network.weights.items():
        w.assign(start[name])
    return grads, losses
