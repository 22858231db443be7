"""What a search shows while it runs."""

import math

import numpy as np

from common.cli import Progress
from common.errors import L2OError
from common.metrics import r2
from interchange.expression import complexity
from interchange.parse import parse
from interchange.program import compile_program, evaluate
from interchange.search import Task

_COORDINATES, _ROWS = 64, 5_000  # that R2 is taken of, at least
_SHOWN = 6  # rules


class LiveLine:
    """The front so far beside a progress bar: nodes and R2, of a few whole sequences."""

    def __init__(self, task: Task, progress: Progress) -> None:
        steps, coordinates = task.target.shape
        count = max(_COORDINATES, _ROWS // steps)
        chosen = np.unique(np.linspace(0, coordinates - 1, count).astype(int))
        self._features = {name: x[:, chosen] for name, x in task.features.items()}
        self._target = task.target[:, chosen]
        self._names = (*task.names, "t")
        self._scores: dict[str, tuple[int, float]] = {}
        self._progress = progress
        self.text = "nothing yet"

    def tick(self) -> None:
        """A second more."""
        self._progress.advance(**{"nodes:R2": self.text})

    def update(self, texts: list[str]) -> None:
        """Score the texts not seen before; no front is shown where none is finite."""
        for text in texts:
            if text not in self._scores:
                self._scores[text] = self._score(text)
        best, parts = 0.0, []
        for nodes, value in sorted(self._scores.values()):
            if value > best + 0.01:
                best = value
                parts.append(f"{nodes}:{value:.3f}")
        self.text = " ".join(parts[-_SHOWN:]) or "nothing yet"

    def _score(self, text: str) -> tuple[int, float]:
        try:
            node = parse(text, self._names)
            (out,) = evaluate(compile_program([node]), self._features)
        except L2OError:  # what is wrong is said at the end of the search
            return 0, -math.inf
        return complexity(node), r2(self._target, np.broadcast_to(out, self._target.shape))
