"""The curriculum of Chen et al. 2020 over epoch lengths: scores in, decisions out (MATH.md section 2).

A stage trains with epochs of one length and is judged at the next. It goes on while it improves, ends once
it has improved and no longer does, and the curriculum ends where a whole stage brings nothing.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

LENGTHS = (100, 200, 500, 1000, 1500, 2000, 2500, 3000)  # of epochs, steps
FEWEST_EVALUATIONS = 3  # of a stage, before it may end

Decision = Literal["keep", "go on", "advance", "stop"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Where the curriculum stands.

    Attributes:
        index: of ``LENGTHS``.
        evaluations: of this stage so far.
        improved: one of them was better than the weights the stage began with.
        best: the lowest score of the stage; the first is that of the weights it began with.
        ended: nothing is trained any more.
        lengths: of the epochs of every stage, steps; ``LENGTHS`` if empty.
    """

    index: int = 0
    evaluations: int = 0
    improved: bool = False
    best: float = math.inf
    ended: bool = False
    lengths: tuple[int, ...] = ()

    @property
    def stages(self) -> tuple[int, ...]:
        """Steps of an epoch of every stage."""
        return self.lengths or LENGTHS

    @property
    def length(self) -> int:
        """Steps of an epoch."""
        return self.stages[self.index]

    @property
    def judged_at(self) -> int:
        """Steps of an evaluation: the next stage's length, in the last stage its own."""
        return self.stages[min(self.index + 1, len(self.stages) - 1)]

    def begun(self, score: float) -> "Stage":
        """The stage with the score of the weights it begins with."""
        return dataclasses.replace(self, best=score)

    def judged(self, score: float) -> "tuple[Stage, Decision]":
        """The stage after an evaluation, and what to do.

        Returns:
            ``keep``: the weights are the best so far. ``go on``: they are not. ``advance``: restore the best
            and evaluate them at ``judged_at`` for ``begun``. ``stop``: restore the best, that was all.
        """
        count = self.evaluations + 1
        if score < self.best:
            return dataclasses.replace(self, evaluations=count, improved=True, best=score), "keep"
        after = dataclasses.replace(self, evaluations=count)
        if count < FEWEST_EVALUATIONS:
            return after, "go on"
        if self.improved and self.index + 1 < len(self.stages):
            return Stage(self.index + 1, lengths=self.lengths), "advance"
        return dataclasses.replace(after, ended=True), "stop"

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint, as JSON has no infinity; the lengths are in the configuration."""
        values = dataclasses.asdict(self) | {"best": self.best if math.isfinite(self.best) else None}
        return {name: value for name, value in values.items() if name != "lengths"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], lengths: tuple[int, ...] = ()) -> "Stage":
        """The inverse of ``to_dict``, with the configuration's lengths."""
        best = math.inf if values["best"] is None else values["best"]
        return cls(**dict(values) | {"best": best, "lengths": lengths})
