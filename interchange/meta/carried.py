"""What the forward meta-gradient carries along, and the pieces in which a step takes it (MATH.md section 3).

The tangents by one weight have no part in those by another, nor those of one coordinate in another's, but
within a tensor where the rule sees tensors. So a step goes piece by piece, and in a piece weight by weight:
beside the tangents themselves there is only what one piece takes by one weight. Of the state only those
arrays have tangents that depend on the weight at all. Tangents that a bound on memory has no room for lie in
a temporary file, but for those of the piece under way.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.coordinates import Subset
from common.errors import L2OError
from common.run.shelf import Shelf
from interchange.language.view import View, slices
from interchange.protocols import State, Tensor

if TYPE_CHECKING:
    from interchange.meta.rule_weights import RuleWeights

_MOST, _LEAST = 2**18, 2**12  # coordinates of a piece: more are no faster, fewer are much slower
_BESIDE = 8  # numbers per coordinate of a piece beside its registers and their tangents: inputs, sums
_GIB = 2**30

Tangents = list[tuple[Tensor, tuple[Tensor, ...]]]  # by weight: of theta [n], and of the arrays it moves


def flat(tangents: Tangents) -> list[Tensor]:
    """Tangents one after the other."""
    return [a for theta, slots in tangents for a in (theta, *slots)]


@dataclasses.dataclass(frozen=True)
class Move:
    """A weight that moves theta.

    Attributes:
        slots: numbers of the arrays of state that it moves too.
    """

    weight: str
    slots: tuple[int, ...]


def grouped(moves: Sequence[Move], arrays: Iterable[Tensor]) -> Tangents:
    """The inverse of ``flat``."""
    given = iter(arrays)
    return [(next(given), tuple(next(given) for _ in move.slots)) for move in moves]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Coordinates that go through a step together.

    Attributes:
        place: where they lie in the flat vector.
        views: of the tensors they are, for a rule that sees tensors.
        moves: the weights that move them; numbers: how many numbers the tangents have.
        shelved: the tangents lie in a file between steps.
    """

    place: slice
    views: tuple[View, ...]
    moves: tuple[Move, ...]
    numbers: int
    shelved: bool = False


@dataclasses.dataclass(eq=False)
class Part:
    """A piece on its way; a step replaces what it holds.

    Attributes:
        state: the optimizer's, of these coordinates.
        tangents: for every move; None while they lie in the file.
        chosen: the coordinates of the piece that have tangents, and the weights by which they stand for all
            of them; None where all have.
    """

    piece: Piece
    state: State
    tangents: Tangents | None = None
    chosen: tuple[Tensor, Tensor] | None = None


@dataclasses.dataclass(eq=False)
class Carried:
    """Where an epoch of forward meta-gradients stands; an unroll moves it on, and nothing of before is kept.

    Attributes:
        theta, loss, gradient: as of a ``Position``.
        parts: of all coordinates; empty before the first unroll.
        shelf: the file.
    """

    step: int
    theta: Tensor
    loss: Tensor | None = None
    gradient: Tensor | None = None
    parts: list[Part] = dataclasses.field(default_factory=list)
    shelf: Shelf = dataclasses.field(default_factory=lambda: Shelf("tangents beyond --memory"))

    def take(self, part: Part, tensor: Callable[[np.ndarray], Tensor]) -> Tangents:
        """The tangents of a part.

        Args:
            tensor: the framework's own of an array that nobody else has.
        """
        if part.tangents is not None:
            return part.tangents
        return grouped(part.piece.moves, map(tensor, self.shelf.get(part.piece.place.start)))

    def keep(self, part: Part, tangents: Tangents, array: Callable[[Tensor], np.ndarray]) -> None:
        """Keep tangents for ``take``; ``array`` may share their memory."""
        part.tangents = tangents
        if part.piece.shelved:
            self.shelf.put(part.piece.place.start, [array(a) for a in flat(tangents)])
            part.tangents = None


def pieces(
    network: "RuleWeights",
    shapes: Iterable[Sequence[int]],
    itemsize: int,
    memory: float = 0.0,
    share: float = 1.0,
    optimizees: int = 1,
) -> list[Piece]:
    """The pieces of an optimizee that the network is bound to.

    Args:
        shapes: of its tensors.
        itemsize: bytes of a number.
        memory: GiB that all tangents and the pass through a piece may take; 0 leaves it to what is fast.
        share: of the coordinates that have tangents.
        optimizees: that have tangents at once.

    Raises:
        L2OError: the network is no rule with a number per constant, or needs more memory.
    """
    if any(len(w.shape) for w in network.weights.values()):
        raise L2OError(
            "the forward meta-gradient expects a rule's constants, got weight arrays; use another --estimator"
        )
    sizes = [math.prod(shape) for shape in shapes]
    total, bound = sum(sizes), memory * _GIB
    found = _cut(network, total, _MOST)
    if not memory:
        return found
    registers = max(len(program.instructions) for program in network.programs.values())
    own = share * sum(piece.numbers for piece in found) / max(1, total)
    each = itemsize * (2 * registers + _BESIDE + own)  # bytes of a coordinate that goes through a step
    fewest = max(sizes) if network.sees_tensors else min(total, _LEAST)
    if bound < each * fewest:
        raise L2OError(
            f"--memory: expected at least {math.ceil(1e6 * each * fewest / _GIB) / 1e6:g} GiB, for the "
            f"tangents of {fewest:,} of {total:,} coordinates at once, got {memory:g}; raise it"
        )
    most = max(fewest, min(_MOST, int(bound / 2 / each)))
    left, kept = bound - each * most, []
    for piece in _cut(network, total, most):
        size = optimizees * share * itemsize * piece.numbers
        kept.append(piece if size <= left else dataclasses.replace(piece, shelved=True))
        left -= 0 if kept[-1].shelved else size
    return kept


def bare(network: "RuleWeights", shapes: Iterable[Sequence[int]]) -> list[Piece]:
    """Pieces without tangents, for a rollout that holds little beside parameters and state."""
    found = _cut(network, sum(map(math.prod, shapes)), _MOST)
    return [dataclasses.replace(piece, moves=(), numbers=0) for piece in found]


def chosen_in(piece: Piece, coordinates: Subset) -> tuple[np.ndarray, np.ndarray]:
    """The chosen coordinates of a piece, counted from its first, and their weights."""
    low, high = np.searchsorted(coordinates.numbers, (piece.place.start, piece.place.stop))
    return coordinates.numbers[low:high] - piece.place.start, coordinates.weights[low:high]


def _cut(network: "RuleWeights", total: int, most: int) -> list[Piece]:
    """All coordinates in pieces of at most so many, or of one tensor."""
    if not network.sees_tensors:
        moves = _moves(network, [network.reach[True]])
        numbers = sum(1 + len(move.slots) for move in moves)
        ends = [(low, min(low + most, total)) for low in range(0, total, most)]
        return [Piece(slice(low, high), (), moves, numbers * (high - low)) for low, high in ends]
    groups: list[list[tuple[slice, View]]] = []
    for place, view in slices(network.views):
        if groups and place.stop - groups[-1][0][0].start <= most:
            groups[-1].append((place, view))
        else:
            groups.append([(place, view)])
    return [_of_tensors(network, group) for group in groups]


def _of_tensors(network: "RuleWeights", group: list[tuple[slice, View]]) -> Piece:
    views = tuple(view for _, view in group)
    moves = _moves(network, [network.reach[view.matrix] for view in views])
    sizes = [
        math.prod(view.reduced(kind)) for view in views for kind in network.programs[view.matrix].slot_kinds
    ]
    place = slice(group[0][0].start, group[-1][0].stop)
    each = place.stop - place.start
    numbers = sum(each + sum(sizes[slot] for slot in move.slots) for move in moves)
    return Piece(place, views, moves, numbers)


def _moves(network: "RuleWeights", reached: list[Any]) -> tuple[Move, ...]:
    """What the weights move of tensors one after another, whose outputs and slots they reach."""
    outs = frozenset[str]().union(*(out for out, _ in reached))
    slots = [slot for _, own in reached for slot in own]
    return tuple(
        Move(name, tuple(k for k, slot in enumerate(slots) if name in slot))
        for name in network.weights
        if name in outs
    )
