"""Proofs that updates are finite, kept from step to step (torch_impl.certificate makes them)."""

import dataclasses
import weakref
from collections.abc import Mapping, Sequence

import torch

from interchange.compiler import Program
from torch_impl.analysis import never_negative, steady
from torch_impl.certificate import FAR, Interval, bounds, measured

Tensor = torch.Tensor

_GROWTH = 4.0  # how much larger gradients may become before a proof is made anew
_MARGIN = 1.01  # by which a lasting proof exceeds what it needs: the rounding of so many steps at the most
_LASTS = 10_000


@dataclasses.dataclass
class _Proof:
    """For one tensor: the state's bounds after its last step, and what they hold for.

    Attributes:
        state, versions: the state's tensors, and how often they had been changed, since when nobody may.
        slots: bounds of the state.
        g: size of the gradient up to which a step stays within ``slots``; 0 where that was not proved.
        until: last step of that.
        constants: of the rule.
    """

    state: list[weakref.ref]
    versions: list[int]
    slots: list[Interval]
    g: float
    until: int
    constants: Mapping[str, float]


class Proofs:
    """The proofs of one rule at vectors of one dtype."""

    def __init__(self, program: Program, scale: float, dtype: torch.dtype) -> None:
        self._program, self._dtype, self._far = program, dtype, FAR[dtype]
        known = never_negative(program)
        self._positive = [known[register] for register in program.writes]
        self._reads_theta = any(ins.name == "theta" for ins in program.instructions)
        self._steady = steady(program)
        self._most = self._far / max(1.0, abs(scale))
        self._kept: dict[int, _Proof] = {}

    def find(
        self,
        state: Sequence[Tensor],
        vectors: tuple[Tensor, Tensor, Sequence[Tensor]],
        constants: Mapping[str, float],
        t: int,
    ) -> _Proof | None:
        """That step ``t`` gives a finite update, or None; ``vectors`` are p, g and state as vectors."""
        p, g, flat = vectors
        if p.dtype != self._dtype or g.dtype != self._dtype:
            return None
        inputs = {"g": measured(g)}
        known = self._recalled(state)
        if known and inputs["g"][1] <= known.g and t <= known.until and constants == known.constants:
            return known
        if self._reads_theta:
            inputs["theta"] = measured(p)
        slots = known.slots if known else list(map(measured, flat, self._positive))
        return self._made(state, inputs, slots, constants, t)

    def keep(self, proof: _Proof, state: Sequence[Tensor]) -> None:
        """The step has been taken; only now the state's versions are known."""
        if state and not any(s.is_inference() for s in state):
            proof.versions = [s._version for s in state]
            self._kept[id(state[0])] = proof

    def _recalled(self, state: Sequence[Tensor]) -> _Proof | None:
        proof = self._kept.get(id(state[0])) if state else None
        if proof is None:
            return None
        for ref, s, version in zip(proof.state, state, proof.versions, strict=True):
            if ref() is not s or s._version != version:
                return None
        return proof

    def _made(
        self,
        state: Sequence[Tensor],
        inputs: dict[str, Interval],
        slots: list[Interval],
        constants: Mapping[str, float],
        t: int,
    ) -> _Proof | None:
        refs = [weakref.ref(s) for s in state]
        if self._steady:
            wide = {"g": _times(inputs["g"], _GROWTH)}
            if (new := self._within(wide, slots, constants, t)) is not None:
                room = [_times(_hull(*pair), _MARGIN) for pair in zip(slots, new, strict=True)]
                new = self._within(wide, room, constants, t)
                if new is not None and all(map(_inside, new, room)):
                    return _Proof(refs, [], room, wide["g"][1], t + _LASTS, dict(constants))
        new = self._within(inputs, slots, constants, t)
        return None if new is None else _Proof(refs, [], new, 0.0, t, {})

    def _within(
        self, inputs: dict[str, Interval], slots: list[Interval], constants: Mapping[str, float], t: int
    ) -> list[Interval] | None:
        found = bounds(self._program, inputs, slots, constants, t, self._far)
        return found[1] if found is not None and max(map(abs, found[0])) < self._most else None


def _times(a: Interval, factor: float) -> Interval:
    return a[0] * factor, a[1] * factor


def _hull(a: Interval, b: Interval) -> Interval:
    return min(a[0], b[0], 0.0), max(a[1], b[1], 0.0)


def _inside(a: Interval, b: Interval) -> bool:
    """Whether a is in b, but for what ``bounds`` adds for rounding."""
    return b[0] * 1.0001 <= a[0] and a[1] <= b[1] * 1.0001
