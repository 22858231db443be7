"""The numbers of a planned step: constants, t, and what is computed from them, in float64 on the host."""

import math
from collections.abc import Callable, Mapping

import torch

from torch_impl.operators import OPERATORS

_Compute = Callable[[list[float]], float]  # of the numbers before


class Scalars:
    """Numbers by index, each computed from those before it; index 0 is t.

    Only what depends on t is computed anew while the constants stay the same.
    """

    def __init__(self) -> None:
        self._known: dict[tuple, int] = {("t",): 0}
        self._names: dict[int, str] = {}
        self._compute: list[_Compute | None] = [None]
        self._varies = [True]

    def number(self, value: float) -> int:
        """A literal; its index."""
        return self._add(("number", repr(value)), lambda known: value, False)

    def constant(self, name: str) -> int:
        """A constant of the rule."""
        index = self._add(("constant", name), None, False)
        self._names[index] = name
        return index

    def result(self, op: str, *args: int) -> int:
        """``op`` of other numbers: an operator, "rest" (1 - b), "factor" (1 - b**t) or "unbias"."""
        with_time = op in ("factor", "unbias")
        varies = with_time or any(self._varies[arg] for arg in args)
        return self._add((op, *args), _computation(op, args), varies)

    def _add(self, key: tuple, compute: _Compute | None, varies: bool) -> int:
        if key not in self._known:
            self._known[key] = len(self._compute)
            self._compute.append(compute)
            self._varies.append(varies)
        return self._known[key]

    def values(self, places: Mapping[int, int], dtype: torch.dtype) -> "Values":
        """Room for the numbers of a step; those with a place are tensors too."""
        return Values(self, places, dtype)

    def order(self, every: bool) -> list[tuple[int, _Compute]]:
        """What to compute, in order: every result, or those that depend on t."""
        return [
            (k, compute)
            for k, compute in enumerate(self._compute)
            if compute is not None and (every or self._varies[k])
        ]

    @property
    def names(self) -> Mapping[int, str]:
        """Constants by index."""
        return self._names

    def __len__(self) -> int:
        return len(self._compute)


class Values:
    """The numbers of one step: ``floats`` by index, and ``tensors``, 0-dim, by place."""

    def __init__(self, scalars: Scalars, places: Mapping[int, int], dtype: torch.dtype) -> None:
        self._scalars, self._far = scalars, torch.finfo(dtype).max
        self.floats = [math.nan] * len(scalars)
        self.tensors = {place: torch.zeros((), dtype=dtype) for place in places.values()}
        self._of_index = {index: self.tensors[place] for index, place in places.items()}
        self._every, self._varying = scalars.order(True), scalars.order(False)
        self._constants: dict[str, float] = {}

    def fill(self, constants: Mapping[str, float], t: int) -> None:
        """Make them the numbers of step ``t``."""
        floats, order = self.floats, self._varying
        floats[0] = float(t)
        if 0 in self._of_index:
            self._of_index[0].fill_(t)
        if constants != self._constants or math.isnan(floats[-1]):
            order, self._constants = self._every, dict(constants)
            for index, name in self._scalars.names.items():
                self._set(index, constants[name])
        for index, compute in order:
            value = compute(floats)
            if value != floats[index]:
                self._set(index, value)

    def _set(self, index: int, value: float) -> None:
        self.floats[index] = value
        if index in self._of_index:
            fits = abs(value) <= self._far or math.isnan(value)
            self._of_index[index].fill_(value if fits else math.copysign(math.inf, value))


def _computation(op: str, args: tuple[int, ...]) -> _Compute:
    i, j = args[0], args[-1]

    def factor(known: list[float]) -> float:
        return -math.expm1(known[0] * math.log(known[j]))  # without cancellation

    def quotient(known: list[float]) -> float:
        return known[i] / known[j] if known[j] else float(OPERATORS["div"](known[i], known[j]))

    forms: dict[str, _Compute] = {
        "rest": lambda known: 1.0 - known[i],
        "factor": factor,
        "unbias": lambda known: known[i] / factor(known),
        "mul": lambda known: known[i] * known[j],
        "div": quotient,
        "sqrt": lambda known: math.sqrt(abs(known[i])),
    }
    return forms.get(op) or (lambda known: float(OPERATORS[op](*(known[arg] for arg in args))))
