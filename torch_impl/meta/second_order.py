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
"""

import contextlib
from collections.abc import Iterator

import torch

from interchange.protocols import Network, Position, State, Task
from torch_impl.meta.unroll import advance, begun, contribution, inputs_at, pulled_back
from torch_impl.networks.structure import Structure, structure_of
from torch_impl.tensors import unflatten

_ROUNDING = 16.0  # times the dtype's eps and the largest gradient


def unrolled(
    task: Task, network: Network, position: Position, steps: int, loss: str, lr: float = 1.0
) -> tuple[Position, torch.Tensor, dict[str, torch.Tensor]]:
    """Take ``steps`` steps as ``unroll.advance`` does, and the second-order meta-gradient of their losses.

    Parameters, gradient and state at ``position`` are constants.

    Args:
        loss: sum of the losses after each step (``sum``), of their logarithms (``log``), or the one after all
            (``last``).

    Returns:
        The new position, losses [steps + 1], weight name -> gradient.
    """
    position = begun(task, position)
    path, drawn = [position], [_random_state(position.theta.device)]
    for _ in range(steps):
        drawn.append(_random_state(position.theta.device))
        path.append(advance(task, network, path[-1], 1, lr)[0])
    end, structure = path[-1], structure_of(network, task)
    grads = {name: torch.zeros_like(w) for name, w in network.weights.items()}
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
    return end, torch.stack([at.loss for at in path]), grads


def step_back(
    network: Network, structure: Structure | None, at: Position, by_out: torch.Tensor, by_state: State
) -> tuple[torch.Tensor, torch.Tensor, State, dict[str, torch.Tensor]]:
    """The backward pass of one step of the optimizer.

    Args:
        by_out: dL by its output [N], after its structure; by_state: by the state after the step.

    Returns:
        dL by the gradient [N], by theta [N] (weight decay only), by the state before, and by the weights.
    """

    def leaf(a: torch.Tensor) -> torch.Tensor:
        return a.detach().requires_grad_()

    with torch.enable_grad():
        weights = {name: leaf(w) for name, w in network.weights.items()}
        g, theta = leaf(at.gradient), leaf(at.theta)
        features, hidden = tuple(map(leaf, at.state.features)), tuple(map(leaf, at.state.network))
        here = Position(at.step, theta, State(at.state.t, features, hidden), at.loss, g)
        x, state = inputs_at(network, here)
        out, after = network.step(weights, x, state.network, state.t)
        out = out if structure is None else structure(out)
    ends, by = (out, *state.features, *after), (by_out, *by_state.features, *by_state.network)
    by = pulled_back(ends, by, (g, theta, *features, *hidden, *weights.values()))
    first, second = 2 + len(features), 2 + len(features) + len(hidden)
    before = State(at.state.t, by[2:first], by[first:second])
    return by[0], by[1], before, dict(zip(weights, by[second:], strict=True))


def _felt(by_g: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """dL by the gradient, 0 where the gradient is nothing but rounding errors of larger ones."""
    size = g.abs()
    edge = _ROUNDING * torch.finfo(g.dtype).eps * size.max()
    return torch.where(size > edge, by_g, 0.0)


def _curvature(
    task: Task, at: Position, vector: torch.Tensor, drawn: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """The Hessian [N, N] of the loss at ``at`` on its batch, times a vector [N]."""
    if hasattr(task, "curvature"):
        return task.curvature(at.theta, vector, at.step)
    theta = at.theta.detach().requires_grad_()
    cuda = [theta.device] if theta.is_cuda else []
    with torch.enable_grad(), torch.random.fork_rng(cuda):
        torch.set_rng_state(drawn[0])  # the units dropout left out the first time
        if cuda:
            torch.cuda.set_rng_state(drawn[1], theta.device)
        loss = task.loss(unflatten(theta, task.shapes), at.step)
        (g,) = torch.autograd.grad(loss, theta, create_graph=True)
        if not g.requires_grad:
            return torch.zeros_like(vector)
        return torch.autograd.grad(g, theta, vector, materialize_grads=True)[0]


def _random_state(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Of torch's generators on the host and on the device, as copies."""
    host = torch.get_rng_state()
    return (host, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (host,)


def _zeros(state: State) -> State:
    return State(
        state.t, tuple(map(torch.zeros_like, state.features)), tuple(map(torch.zeros_like, state.network))
    )


@contextlib.contextmanager
def _undisturbed(task: Task) -> Iterator[None]:
    """Afterwards batch norm's running values are what they were before."""
    while hasattr(task, "task"):  # the variations of ``augment``
        task = task.task
    found = getattr(task, "buffers", {})
    kept = {name: a.clone() for name, a in found.items()}
    try:
        yield
    finally:
        for name, a in kept.items():
            found[name].copy_(a)
