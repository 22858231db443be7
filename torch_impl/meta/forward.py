"""The first-order meta-gradient carried forward: for rules, whose weights are a handful of constants.

With E_t = d theta_t / d weights, dL/dweights = sum_t w_t <g_t, E_t>. E and the tangents of the rule's own
state go along with a rollout (real-time recurrent learning; Williams and Zipser 1989), so memory does not
grow with the steps, and an unroll sees what all steps before it did: no truncation bias (MATH.md section 3).
A step goes through the coordinates piece by piece (``interchange.meta.carried``). Of step sizes by tensor the
tangents are what the updates of each tensor have added up to, one number per coordinate for all of them.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import torch

from common.data.coordinates import Subset
from interchange.meta.carried import Carried, Part, Piece, Tangents, bare, chosen_in, flat, pieces
from interchange.protocols import Position, State, Task
from torch_impl.meta.unroll import advance as one_after
from torch_impl.meta.unroll import begun, contribution, decay_factor, inputs_at
from torch_impl.networks.rule import RuleNetwork
from torch_impl.networks.step_sizes import StepSizes
from torch_impl.problems.tasks import value_and_gradient
from torch_impl.threads import fitting

_BLOCK = 2**24  # numbers: the system gets blocks so large back at once


def start(task: Task, network: RuleNetwork | StepSizes) -> Carried:
    """The start of an epoch."""
    network.bind(task)
    return Carried(0, task.initial())


def advance(
    task: Task,
    network: RuleNetwork | StepSizes,
    at: Carried,
    steps: int,
    loss: str,
    lr: float = 1.0,
    *,
    coordinates: Subset | None = None,
    memory: float = 0.0,
    optimizees: int = 1,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Take ``steps`` steps from ``at``, which moves on, and carry the tangents along.

    Args:
        loss: ``sum`` of the losses after each of these steps, of their logarithms (``log``), or the ``last``.
        coordinates: those that have tangents, all if None; of the epoch's first unroll, and so of all.
        memory, optimizees: as for ``carried.pieces``.

    Returns:
        Losses [steps + 1], and weight name -> gradient.

    Raises:
        L2OError: weights are arrays, or ``memory`` is too little.
    """
    if isinstance(network, StepSizes):
        return _of_step_sizes(task, network, at, steps, loss, lr)
    if not at.parts:
        share = 1.0 if coordinates is None else len(coordinates) / len(at.theta)
        found = pieces(network, task.shapes, at.theta.itemsize, memory, share, optimizees)
        at.parts = _begun(network, found, at, coordinates)
    if at.gradient is None:
        at.loss, at.gradient = value_and_gradient(task, at.theta, at.step)
    losses = [at.loss]
    zero = torch.zeros((), dtype=torch.float64, device=at.theta.device)
    total = dict.fromkeys(network.weights, zero)
    for k in range(steps):
        _step(network, at, lr, total, contribution(at, loss) if loss != "last" and k > 0 else None)
        at.loss, at.gradient = value_and_gradient(task, at.theta, at.step)
        losses.append(at.loss)
    last = contribution(at, loss)
    for part in at.parts:
        _add(total, part, at.take(part, _tensor_as(at.theta)), last)
    return torch.stack(losses), total


def _of_step_sizes(
    task: Task, network: StepSizes, at: Carried, steps: int, loss: str, lr: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """``advance`` of step sizes by tensor."""
    if not at.parts:
        everything = Piece(slice(0, len(at.theta)), (), (), 0)
        at.parts = [Part(everything, network.initial_state(at.theta), [(torch.zeros_like(at.theta), ())])]
    (part,) = at.parts
    ((moved, _),) = part.tangents
    position = begun(task, Position(at.step, at.theta, part.state, at.loss, at.gradient))
    losses, total = [position.loss], torch.zeros_like(at.theta, dtype=torch.float64)
    for left in range(steps, 0, -1):
        before = position.theta
        position = one_after(task, network, position, 1, lr, keep=False)[0]
        moved = moved + (position.theta - before)
        losses.append(position.loss)
        if loss != "last" or left == 1:
            total += moved * contribution(position, loss)
    part.state, part.tangents = position.state, [(moved, ())]
    at.step, at.theta, at.loss, at.gradient = position.step, position.theta, position.loss, position.gradient
    return torch.stack(losses), network.by_tensor(total)


def rollout(task: Task, network: RuleNetwork, steps: int, lr: float = 1.0) -> np.ndarray:
    """Losses [steps + 1] of one whole rollout, float64; no gradient, and nothing else kept.

    As ``unroll.rollout``, but piece by piece, so that a large optimizee takes no more memory than it must.
    """
    at = start(task, network)
    at.parts = _begun(network, bare(network, task.shapes), at, None)
    with fitting(task):
        losses, _ = advance(task, network, at, steps, "last", lr)
    return losses.double().cpu().numpy()


def _begun(network: RuleNetwork, found: list[Piece], at: Carried, coordinates: Subset | None) -> list[Part]:
    """Pieces at the start of an epoch: zero state, zero tangents."""
    parts, room = [], _Room(min(_BLOCK, 16 * len(at.theta)))
    for piece in found:
        like, chosen = at.theta[piece.place], None
        state = network.part(piece.views).initial_state(like)
        if coordinates is not None:
            numbers, weights = chosen_in(piece, coordinates)
            chosen = torch.from_numpy(numbers).to(like.device), like.new_tensor(weights)
        first, hidden = _at(chosen, like, state.network)
        tangents = [
            (torch.zeros_like(first), tuple(torch.zeros_like(hidden[slot]) for slot in move.slots))
            for move in piece.moves
        ]
        if not piece.shelved:
            tangents = [(room.moved(theta), tuple(map(room.moved, slots))) for theta, slots in tangents]
        features, hidden = (tuple(map(room.moved, arrays)) for arrays in (state.features, state.network))
        parts.append(Part(piece, State(state.t, features, hidden), chosen=chosen))
        at.keep(parts[-1], tangents, _array)
    return parts


class _Room:
    """Large blocks of memory for many arrays: the system gets them back, as it does not the heap's holes."""

    def __init__(self, numbers: int) -> None:
        self._numbers, self._left = numbers, torch.empty(0)

    def moved(self, a: torch.Tensor) -> torch.Tensor:
        """A copy of an array that lies here."""
        if len(self._left) < a.numel() or self._left.dtype != a.dtype:
            self._left = a.new_empty(max(self._numbers, a.numel()))
        own, self._left = self._left[: a.numel()], self._left[a.numel() :]
        return own.view(a.shape).copy_(a)


def _replace(old: Iterable[torch.Tensor], new: Iterable[torch.Tensor]) -> None:
    """Write arrays in the places of others, which they may have become each other of, as by a lag."""
    old, new = list(old), list(new)
    places = {a.data_ptr() for a in old}
    new = [b.clone() if b.data_ptr() in places and b is not a else b for a, b in zip(old, new, strict=True)]
    for a, b in zip(old, new, strict=True):
        if b is not a:
            a.copy_(b)


def _at(
    chosen: tuple[torch.Tensor, torch.Tensor] | None, a: torch.Tensor, arrays: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Arrays [..., n] of a piece at its chosen coordinates."""
    if chosen is None:
        return a, arrays
    return a[..., chosen[0]], tuple(b[..., chosen[0]] for b in arrays)


def _step(
    network: RuleNetwork, at: Carried, lr: float, total: dict[str, torch.Tensor], counted: torch.Tensor | None
) -> None:
    """Theta, state and tangents one step on, the gradient used up; what is ``counted`` is in ``total``."""
    theta, keep, rate = torch.empty_like(at.theta), decay_factor(network, lr), lr * network.scale
    with torch.no_grad():
        for part in at.parts:
            place, own = part.piece.place, network.part(part.piece.views)
            here = Position(at.step, at.theta[place], part.state, at.loss, at.gradient[place])
            x, state = inputs_at(own, here)
            tangents = at.take(part, _tensor_as(at.theta))
            if counted is not None:
                _add(total, part, tangents, counted)
            seen, hidden = _at(part.chosen, x, state.network)
            after = own.carry(part.piece.moves, seen, hidden, tangents, state.t, keep, rate)
            if part.piece.shelved:
                at.keep(part, after, _array)
            else:
                _replace(flat(tangents), flat(after))
            out, hidden = own.roll(x, state.network, state.t)
            torch.add(at.theta[place], out, alpha=rate, out=theta[place])
            _replace((*part.state.features, *part.state.network), (*state.features, *hidden))
            part.state = dataclasses.replace(part.state, t=state.t)
    at.step, at.theta, at.loss, at.gradient = at.step + 1, theta, None, None


def _add(total: dict[str, torch.Tensor], part: Part, tangents: Tangents, gradient: torch.Tensor) -> None:
    """Add a part's <g, d theta / d weight>, 0-dim float64, to those by weight."""
    g = gradient[part.piece.place]
    if part.chosen is not None:
        g = g[part.chosen[0]] * part.chosen[1]
    for move, (by_theta, _) in zip(part.piece.moves, tangents, strict=True):
        total[move.weight] = total[move.weight] + torch.dot(by_theta, g).double()


def _array(a: torch.Tensor) -> np.ndarray:
    return a.cpu().numpy()


def _tensor_as(like: torch.Tensor) -> Callable[[np.ndarray], torch.Tensor]:
    return lambda a: torch.from_numpy(a).to(like.device)
