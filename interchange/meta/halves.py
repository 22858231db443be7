"""Where halves of antithetic pairs wait between two segments."""

import dataclasses
import itertools
from typing import Any

from common.run.shelf import Shelf
from interchange.backend import Half, Learner


@dataclasses.dataclass(frozen=True)
class _Laid:
    """A position that lies in a file."""

    key: int
    step: int
    t: int
    names: tuple[str, ...]


class Positions:
    """Where the halves of large optimizees wait for their next segment: in a file, for there are many."""

    def __init__(self, learner: Learner) -> None:
        self._learner, self._keys = learner, itertools.count()
        self._shelf = Shelf("positions of perturbed runs")

    def lay(self, position: Any, before: Any) -> _Laid:
        """Lay a position down, in the place of that before, if there is one."""
        t, arrays = self._learner.position_arrays(position)
        key = before.key if isinstance(before, _Laid) else next(self._keys)
        self._shelf.put(key, list(arrays.values()))
        return _Laid(key, position.step, t, tuple(arrays))

    def fetched(self, half: Half) -> Half:
        """The half with its position in memory."""
        at = half.position
        if not isinstance(at, _Laid):
            return half
        arrays = dict(zip(at.names, self._shelf.get(at.key), strict=True))
        return dataclasses.replace(half, position=self._learner.position_from(at.step, at.t, arrays))
