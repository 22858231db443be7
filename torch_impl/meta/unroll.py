"""The inner loop and the meta-gradient that needs no optimizee graph (MATH.md section 3).

Inside a rollout nothing is differentiated but the optimizee's loss at one point. The inputs of the
optimizer network and the gradients g_t are kept; with updates that add up,
theta_t = theta_0 + sum_{s<t} lr u_s, the meta-gradient of sum_t w_t f_t is

    dL/dphi = sum_s < c_s , d u_s / d phi >,    c_s = lr sum_{t>s} w_t g_t,

one backward pass of the network as a sequence, chunk by chunk over coordinates. A teacher's network has
compiled code for its steps and this pass (``common.kernels``); the chunks here are for what has none. The
coordinates of a rule that sees tensors do not come apart: it goes back step by step, each computed once more.
Of a teacher with a structure S, u_s = scale S(y_s), they do after one step more: y_s is kept, and c_s becomes
(dS/dy at y_s)^T c_s, which is of all coordinates whatever subset then goes through the network.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from common.metrics import log_slopes, loss_at
from interchange.meta.carried import Carried
from interchange.protocols import Network, Position, State, Task, start
from torch_impl.networks.structure import Structure, structure_of
from torch_impl.problems.batched import BatchedTasks
from torch_impl.problems.tasks import value_and_gradient
from torch_impl.tensors import to_numpy
from torch_impl.threads import fitting

# Coordinates of one backward pass that is not compiled. The sizes do not depend on the number of threads, so
# neither do the bits of the sum; the upper one bounds memory, the lower one the overhead per operation.
_SMALLEST_CHUNK, _LARGEST_CHUNK, _CHUNKS = 2048, 6144, 4
_KEPT, _BESIDE = 8, 64  # numbers that autograd keeps of a step: per number of state or input, and beside


def advance(
    task: Task | BatchedTasks,
    network: Network,
    position: Position,
    steps: int,
    lr: float = 1.0,
    *,
    coordinates: torch.Tensor | None = None,
    reuse: bool = False,
    keep: bool = True,
    outs: list[torch.Tensor] | None = None,
) -> tuple[Position, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take ``steps`` steps theta += lr * scale * out, or lr * scale * structure(out), with no graph.

    Args:
        coordinates: numbers of the n coordinates whose gradients and inputs are kept, all if None. Of a
            network with a structure all gradients are kept.
        reuse: the state of ``position`` is not needed any more and may be overwritten.
        keep: gradients and inputs are wanted; without, they are empty.
        outs: takes the outputs [N] of every step, of a network with a structure, for ``by_outputs``.

    Returns:
        The new position, losses [steps + 1] (of lanes [steps + 1, lane]), gradients [steps + 1, n], inputs
        [steps, F, n].
    """
    structure = structure_of(network, task)

    felt = coordinates if structure is None else None
    with fitting(task):
        position = begun(task, position)
        losses, first = [position.loss], _chosen(position.gradient, felt)
        # Filled row by row: stacked from a list they would need their memory twice.
        gradients, inputs = first.new_empty((steps + 1) * keep, len(first)), first.new_empty(0)
        gradients[:1] = first
        del first
        for step in range(steps):
            position, x, y = _moved(network, structure, position, lr, reuse or step > 0)
            if keep:
                if structure is not None and outs is not None:
                    outs.append(y)
                x = _chosen(x, coordinates)
                if step == 0:
                    inputs = x.new_empty(steps, *x.shape)
                inputs[step] = x
            del x, y  # a network's activations take their place
            position = begun(task, position)
            losses.append(position.loss)
            if keep:
                gradients[step + 1] = _chosen(position.gradient, felt)
        return position, torch.stack(losses), gradients, inputs


def _chosen(a: torch.Tensor, coordinates: torch.Tensor | None) -> torch.Tensor:
    return a if coordinates is None else a.index_select(-1, coordinates)


def begun(task: Task | BatchedTasks, position: Position) -> Position:
    """The position with its loss and gradient."""
    if position.loss is not None:
        return position
    loss, g = value_and_gradient(task, position.theta, position.step)
    return dataclasses.replace(position, loss=loss, gradient=g)


def contribution(position: Position | Carried, loss: str) -> torch.Tensor:
    """The derivative [N] by theta of what one step's loss adds to the objective ``loss``."""
    if loss != "log":
        return position.gradient
    return position.gradient * float(log_slopes(float(position.loss)))


def chosen_state(state: State, coordinates: torch.Tensor | None) -> State:
    """The network's state at the given coordinates, a copy; the state itself if None."""
    if coordinates is None:
        return state
    return dataclasses.replace(state, network=tuple(a.index_select(-1, coordinates) for a in state.network))


def cotangents(
    gradients: torch.Tensor,
    loss: str,
    keep: float = 1.0,
    losses: torch.Tensor | None = None,
    counts: Sequence[int] = (),
    *,
    reuse: bool = False,
) -> torch.Tensor:
    """c_s [T, N] = sum_{t>s} w_t keep^(t-s-1) g_t from gradients [T + 1, N].

    Args:
        loss: w is all 1 (``sum``), e_T (``last``) or one over the losses (``log``).
        keep: what weight decay leaves of theta in a step (``decay_factor``).
        losses: for ``log``, [T + 1], or of lanes [T + 1, lane], which have ``counts`` coordinates each.
        reuse: the gradients are not needed any more and may be overwritten.
    """
    if loss == "log":
        slopes = log_slopes(to_numpy(losses))
        slopes = np.repeat(slopes, counts, 1) if counts else slopes[:, None]
        gradients, reuse = gradients * gradients.new_tensor(slopes), True
    c = gradients[1:] if reuse else gradients[1:].clone()
    for t in range(len(c) - 2, -1, -1):
        if loss == "last":
            torch.mul(c[t + 1], keep, out=c[t])
        else:
            c[t].add_(c[t + 1], alpha=keep)
    return c


def meta_gradient(
    network: Network,
    state: State,
    inputs: torch.Tensor,
    c: torch.Tensor,
    coordinates: np.ndarray | None = None,
    memory: float = 0.0,
) -> dict[str, torch.Tensor]:
    """sum_s <c_s, d u_s / d weights> by one backward pass of the network as a sequence.

    Args:
        state: at the start of the unroll.
        inputs: [T, F, N]; c: [T, N], with the learning rate in it, by the outputs (``structure.by_outputs``).
        coordinates: numbers of the coordinates to use, all if None; the result is scaled by N/n, so
            a random subset is unbiased.
        memory: GiB that one pass may take beside ``inputs`` and ``c``, about, where it is not compiled: it
            decides on how many coordinates go through at once; 0 leaves that to what is fast.

    Returns:
        Weight name -> gradient.
    """
    factor = network.scale
    if coordinates is not None:
        index = torch.from_numpy(coordinates).to(inputs.device)
        factor *= inputs.shape[2] / len(coordinates)
        inputs, c, state = inputs[:, :, index], c[:, index], chosen_state(state, index)
    if (found := network.vjp(state, inputs, c)) is not None:
        return {name: grad * factor for name, grad in found.items()}
    if network.sees_tensors:
        return _swept(network, state, inputs, c * factor)
    size = _chunk(state, inputs, c, memory)

    def part_of(low: int) -> tuple[torch.Tensor | None, ...]:
        part = slice(low, low + size)
        hidden = tuple(a[..., part].contiguous() for a in state.network)
        return _part(network, state.t, hidden, inputs[..., part], c[:, part] * factor)

    grads = {name: torch.zeros_like(w) for name, w in network.weights.items()}
    lows = range(0, c.shape[1], size)
    parts = map(part_of, lows) if len(lows) == 1 or c.is_cuda else _pool().map(part_of, lows)
    for pieces in parts:
        for name, piece in zip(grads, pieces, strict=True):
            if piece is not None:
                grads[name] += piece
    return grads


def _part(
    network: Network, t: int, hidden: tuple[torch.Tensor, ...], inputs: torch.Tensor, c: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    """The gradient of one chunk of coordinates, weight by weight."""
    weights = {name: w.detach().requires_grad_() for name, w in network.weights.items()}
    outs = []
    for s in range(len(inputs)):
        out, hidden = network.step(weights, inputs[s], hidden, t + 1 + s)
        outs.append(out)
    total = torch.stack(outs)
    if not total.requires_grad:  # no constant of a rule has a gradient, as under greater
        return (None,) * len(weights)
    return torch.autograd.grad(total, list(weights.values()), c, allow_unused=True)


def _swept(network: Network, state: State, inputs: torch.Tensor, c: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of all coordinates, step by step: what autograd keeps of iterations is one step's."""
    before, weights = [state.network], {n: w.detach().requires_grad_() for n, w in network.weights.items()}
    for s in range(len(inputs) - 1):
        before.append(network.roll(inputs[s], before[-1], state.t + 1 + s)[1])
    grads = {name: torch.zeros_like(w) for name, w in weights.items()}
    count, by_hidden = len(state.network), tuple(map(torch.zeros_like, state.network))
    for s in reversed(range(len(inputs))):
        hidden = tuple(a.detach().requires_grad_() for a in before.pop())
        out, after = network.step(weights, inputs[s], hidden, state.t + 1 + s)
        by = pulled_back((out, *after), (c[s], *by_hidden), (*hidden, *weights.values()))
        by_hidden = by[:count]
        for name, piece in zip(grads, by[count:], strict=True):
            grads[name] += piece
    return grads


def pulled_back(
    ends: Sequence[torch.Tensor], by: Sequence[torch.Tensor], starts: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """dL by ``starts`` from dL by ``ends``, which are made of them; 0 where there is none."""
    used = [(end, cotangent) for end, cotangent in zip(ends, by, strict=True) if end.requires_grad]
    if not used:  # a rule without a constant or input that has a derivative
        return tuple(map(torch.zeros_like, starts))
    outs, cotangents = zip(*used, strict=True)
    return torch.autograd.grad(outs, starts, cotangents, materialize_grads=True)


def _chunk(state: State, inputs: torch.Tensor, c: torch.Tensor, memory: float) -> int:
    """Coordinates of one backward pass."""
    if not memory:
        return min(max(-(-c.shape[1] // _CHUNKS), _SMALLEST_CHUNK), _LARGEST_CHUNK)
    numbers = sum(len(a) if a.dim() > 1 else 1 for a in state.network) + inputs.shape[1]
    passes = 1 if c.is_cuda else _CHUNKS  # at once
    bytes_each = len(inputs) * (_KEPT * numbers + _BESIDE) * c.element_size() * passes
    return max(1, int(memory * 2**30 / bytes_each))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads for chunks: many small operations scale far better over chunks than inside one."""
    count = min(_CHUNKS, len(os.sched_getaffinity(0)))
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


def rollout(task: Task, network: Network, steps: int, lr: float = 1.0) -> np.ndarray:
    """Losses [steps + 1] of one whole rollout, float64, no meta-gradient and nothing else kept."""
    return segment(task, network, start(task, network), steps, lr)[1]


def segment(
    task: Task, network: Network, position: Position, steps: int, lr: float = 1.0
) -> tuple[Position, np.ndarray]:
    """The position after ``steps`` steps and the losses [steps + 1], float64; nothing else is kept."""
    position, losses, _, _ = advance(task, network, position, steps, lr, keep=False)
    return position, losses.double().cpu().numpy()


def mean_loss_at(tasks: Iterable[Task], network: Network, steps: int) -> float:
    """Mean over tasks of the loss at ``steps`` (MATH.md section 6); inf if a rollout diverges."""
    return float(np.mean([loss_at(rollout(task, network, steps)[:-1], steps) for task in tasks]))


def decay_factor(network: Network, lr: float = 1.0) -> float:
    """What weight decay leaves of theta in one step: 1 without."""
    return 1.0 - lr * network.scale * network.weight_decay


def inputs_at(network: Network, at: Position) -> tuple[torch.Tensor, State]:
    """The network's inputs [F, N] at a position whose gradient is known, and the state after their step."""
    x, state = network.inputs(at.gradient, at.state)
    rows = network.rows(at.theta)
    return (torch.cat([x, *rows]) if rows else x), state


def _moved(
    network: Network, structure: Structure | None, at: Position, lr: float, reuse: bool
) -> tuple[Position, torch.Tensor, torch.Tensor]:
    """The position after a step, loss and gradient still to be taken; inputs [F, N] and outputs [N] of it."""
    with torch.no_grad():
        x, state = inputs_at(network, at)
        y, hidden = network.roll(x, state.network, state.t, reuse=reuse)
        out = y if structure is None else structure(y)
        theta = torch.add(at.theta, out, alpha=lr * network.scale)
    return Position(at.step + 1, theta, dataclasses.replace(state, network=hidden)), x, y
