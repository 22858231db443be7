"""Imitation: an epoch along a hand-made optimizer's trajectory (Chen et al. 2020; MATH.md section 2).

The expert trains the optimizee; the network that is trained sees the same gradients, carries its own state,
and learns to take the expert's steps: its loss at step t is 0.5 ||(theta_{t+1} - theta_t) - u_t||^2 / N.
"""

import dataclasses

import torch

from interchange.protocols import Imitation, Task
from interchange.rule.rule import Rule
from torch_impl.meta import unroll
from torch_impl.networks.rule import RuleNetwork
from torch_impl.networks.structure import structure_of
from torch_impl.problems.tasks import value_and_gradient


def start(task: Task, network: unroll.Network, expert: str, lr: float) -> Imitation:
    """The start of an epoch that imitates a rule of the gallery at a learning rate."""
    network.bind(task)
    theta = task.initial()
    loss, g = value_and_gradient(task, theta, 0)
    rule = RuleNetwork(Rule.named(expert), theta.device)
    rule.bind(task)
    at = unroll.Position(0, theta, rule.initial_state(theta), loss, g)
    return Imitation(rule, lr, at, network.initial_state(theta))


def advance(
    task: Task, network: unroll.Network, position: Imitation, steps: int
) -> tuple[Imitation, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take ``steps`` of the expert's steps and see what the network would have done.

    Returns:
        The new position; losses of imitation [steps]; for ``unroll.meta_gradient`` the network's inputs
        [steps, F, N] and c = d loss / d u [steps, N], by the outputs where there is a structure.
    """
    expert, at, state = position.expert, position.at, position.state
    losses, inputs, c, structure = [], [], [], structure_of(network, task)
    for _ in range(steps):
        with torch.no_grad():
            x, state = unroll.inputs_at(network, dataclasses.replace(at, state=state))
            y, hidden = network.roll(x, state.network, state.t)
            out = y if structure is None else structure(y)
        state, before = dataclasses.replace(state, network=hidden), at.theta
        at = unroll.advance(task, expert, at, 1, position.lr)[0]
        miss = network.scale * out - (at.theta - before)
        losses.append(0.5 * miss.square().mean())
        inputs.append(x)
        by_out = miss / len(miss)
        c.append(by_out if structure is None else structure.back(y, by_out))
    return (
        dataclasses.replace(position, at=at, state=state),
        torch.stack(losses),
        torch.stack(inputs),
        torch.stack(c),
    )
