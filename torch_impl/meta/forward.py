"""The first-order meta-gradient carried forward: for rules, whose weights are a handful of constants.

With E_t = d theta_t / d weights, dL/dweights = sum_t w_t <g_t, E_t>. E and the tangents of the rule's own
state go along with a rollout (real-time recurrent learning; Williams and Zipser 1989), so memory does not
grow with the steps, and an unroll sees what all steps before it did: no truncation bias (MATH.md section 3).
"""

import dataclasses

import torch

from common.errors import L2OError
from interchange.protocols import Network, Position, Tangents, Task
from torch_impl.meta.unroll import begun, decay_factor, inputs_at
from torch_impl.problems.tasks import value_and_gradient


def start(network: Network, position: Position) -> Tangents:
    """Zero tangents, as at the start of an epoch; a network whose weights are not numbers is refused."""
    if any(len(w.shape) for w in network.weights.values()):
        raise L2OError(
            "the forward meta-gradient expects a rule's constants, got weight arrays; use another --estimator"
        )
    arrays = (position.theta, *position.state.network)
    theta, *state = (
        torch.zeros((len(network.weights), *a.shape), dtype=a.dtype, device=a.device) for a in arrays
    )
    return Tangents(theta, tuple(state))


def advance(
    task: Task,
    network: Network,
    position: Position,
    tangents: Tangents,
    steps: int,
    loss: str,
    lr: float = 1.0,
) -> tuple[Position, Tangents, torch.Tensor, dict[str, torch.Tensor]]:
    """Take ``steps`` steps and carry the tangents along.

    Args:
        loss: ``sum`` of the losses after each of these steps, or the ``last`` one.

    Returns:
        The new position and tangents, losses [steps + 1], and weight name -> gradient.
    """
    position = begun(task, position)
    losses = [position.loss]
    total = torch.zeros(len(network.weights), dtype=torch.float64, device=position.theta.device)
    for left in range(steps, 0, -1):
        position, tangents = _one_step(task, network, position, tangents, lr)
        losses.append(position.loss)
        if loss == "sum" or left == 1:
            total += tangents.theta @ position.gradient
    return position, tangents, torch.stack(losses), dict(zip(network.weights, total, strict=True))


def _one_step(
    task: Task, network: Network, at: Position, tangents: Tangents, lr: float
) -> tuple[Position, Tangents]:
    """One step from a position whose loss and gradient are known."""
    names = tuple(network.weights)
    with torch.no_grad():
        x, state = inputs_at(network, at)

        def step(
            values: tuple[torch.Tensor, ...], hidden: tuple[torch.Tensor, ...]
        ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            return network.step(dict(zip(names, values, strict=True)), x, hidden, state.t)

        def along(
            by_value: tuple[torch.Tensor, ...], by_hidden: tuple[torch.Tensor, ...]
        ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            return torch.func.jvp(step, (values, state.network), (by_value, by_hidden))[1]

        values = tuple(network.weights.values())
        out, hidden = step(values, state.network)
        directions = torch.eye(len(names), dtype=torch.float64, device=x.device).unbind(1)
        by_out, by_hidden = torch.func.vmap(along)(directions, tangents.network)
        by_theta = decay_factor(network, lr) * tangents.theta + (lr * network.scale) * by_out
        theta = at.theta + (lr * network.scale) * out
    value, g = value_and_gradient(task, theta, at.step + 1)
    moved = Position(at.step + 1, theta, dataclasses.replace(state, network=hidden), value, g)
    return moved, Tangents(by_theta, by_hidden)
