"""How tensors are stepped: coordinate by coordinate, or whole, as a rule's matrix view sees them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch

from common.errors import L2OError
from interchange.language.view import FULL, View, chosen, outputs_first, vector
from interchange.rule.rule import Rule
from torch_impl.networks.lowering import Lowered

Tensor = torch.Tensor


@dataclasses.dataclass(frozen=True)
class Way:
    """How a tensor is stepped.

    Attributes:
        lowered: the rule's program; None of a teacher.
        view: how it sees the tensor, which then is stepped whole; None for coordinate by coordinate.
    """

    lowered: Lowered | None
    view: View | None = None

    @functools.cached_property
    def needs_all(self) -> bool:
        """Of a parameter in shards that is seen whole: whether its own numbers have to be gathered, too.

        They are read, or state of rows goes on where any coordinate of a row does.
        """
        if self.lowered is None:
            return True
        program = self.lowered.program
        return "theta" in program.inputs or any(kind != FULL for kind in program.slot_kinds)


class Ways:
    """Of a rule: one program for tensors with a matrix view and one for those without, where they differ."""

    def __init__(self, rule: Rule) -> None:
        self.sees_tensors = rule.sees_tensors
        programs = rule.programs()
        self._with = self._without = Lowered(programs[True])
        if programs[False] is not programs[True]:
            self._without = Lowered(programs[False])
        self._known: dict[tuple[Any, ...], Way] = {}

    def __call__(self, p: Tensor, option: Any) -> Way:
        """Of a tensor, whose group has this option ``matrix``; a complex one, pairs of numbers, is no matrix.

        Raises:
            L2OError: the option does not fit the tensor.
        """
        if not self.sees_tensors:
            return Way(self._with)
        key = tuple(p.shape), p.is_complex(), str(option)
        if key not in self._known:
            self._known[key] = self._of(tuple(p.shape), p.is_complex(), option)
        return self._known[key]

    def _of(self, shape: tuple[int, ...], pairs: bool, option: Any) -> Way:
        view = seen(shape, pairs, option)
        lowered = self._with if view.matrix else self._without
        return Way(lowered, view if lowered.program.sees_tensors else None)

    def check(
        self, params: Sequence[Tensor], option: Any, arrays: Sequence[Tensor], counts: list[int]
    ) -> None:
        """Refuse state that the rule does not keep (``L2OError``).

        Args:
            counts: how many of the arrays are each parameter's.
        """
        if not self.sees_tensors:
            slots = len(self._with.program.writes)
            if len(arrays) != slots * len(params):
                raise L2OError(
                    f"expected {slots} arrays of state for every parameter, as the rule has, got "
                    f"{len(arrays)} for {len(params)}; clear optimizer.state when the rule changes"
                )
            return
        for p, state in zip(params, states_of(arrays, counts), strict=True):
            way = self(p, option)
            expected = [(*p.shape, 2) if p.is_complex() else tuple(p.shape)] * len(way.lowered.program.writes)
            if way.view is not None:
                kinds = way.lowered.program.slot_kinds
                expected = [way.view.shape if kind == FULL else way.view.reduced(kind) for kind in kinds]
            if (got := [tuple(a.shape) for a in state]) != expected:
                raise L2OError(
                    f"expected arrays of state of shapes {expected} for a parameter of shape "
                    f"{tuple(p.shape)}, got {got}; clear optimizer.state when the rule or matrix changes"
                )


def seen(shape: tuple[int, ...], pairs: bool, option: Any) -> View:
    """How a tensor is seen whose group has this option ``matrix``; ``pairs``: it is complex.

    Raises:
        L2OError: the option does not fit the tensor.
    """
    return vector((*shape, 2)) if pairs else chosen(shape, option, outputs_first(shape))


def view_of(way: Way | None) -> View | None:
    """How a tensor is seen as a whole, if it is."""
    return None if way is None else way.view


def state_view_of(way: Way | None) -> View | None:
    """How state is kept of a tensor that is seen as a whole; of a teacher it is kept per coordinate."""
    return None if way is None or way.lowered is None else way.view


def states_of(arrays: Sequence[Tensor], counts: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """The arrays of each parameter in turn, of which there are so many."""
    found, start = [], 0
    for count in counts:
        found.append(tuple(arrays[start : start + count]))
        start += count
    return found


def whole(x: Tensor) -> Tensor:
    """All of a tensor that lies in shards; any other one as it is."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def shard(x: Tensor, like: Tensor) -> Tensor:
    """Of what every process has whole the shard that it has of ``like``; all of it where that is whole."""
    if not hasattr(like, "full_tensor") or hasattr(x, "full_tensor"):
        return x
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    everywhere = DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(mesh, like.placements)
