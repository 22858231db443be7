"""Trajectories -> the sequences a rule is fitted on and the rows a search engine sees.

Splits are by run, never by row (MATH.md section 4). Runs that diverged are left out, and said so. A table
of samples has no runs: it is cut into contiguous blocks of rows.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from common.errors import L2OError
from common.rng import rng
from interchange import expression as ex
from interchange.expression import Node
from interchange.program import compile_program, evaluate
from interchange.trajectories import Samples, Trajectories

LAGS = (1, 2, 3)
DECAYS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
BLOCKS = {"train": (0.0, 0.7), "valid": (0.7, 0.85), "test": (0.85, 1.0)}  # of the rows of a table

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
    """Whole sequences of one split.

    Attributes:
        features: name -> float64 [T, N]; N runs over the coordinates of all runs.
        target: float64 [T, N], the output before ``scale`` and learning rate.
    """

    features: dict[str, np.ndarray]
    target: np.ndarray

    def part(self, columns: np.ndarray) -> "Sequences":
        """The given coordinates only."""
        return Sequences({n: x[:, columns] for n, x in self.features.items()}, self.target[:, columns])


def sequences(trajectories: Trajectories, split: str) -> Sequences:
    """All coordinates of the runs of one split (``train``, ``valid`` or ``test``).

    A block of a table is one step of as many coordinates as it has rows: [1, rows].

    Raises:
        L2OError: no such split, or no run of it that went to its end.
    """
    if trajectories.samples is not None:
        return _block(trajectories.samples, list(trajectories.features), split)
    names = trajectories.split.get(split, ())
    runs = [trajectories.runs[name] for name in names if not trajectories.runs[name].diverged]
    if len(runs) < len(names):
        _log.warning(
            "%d of %d runs of split %r diverged and are left out", len(names) - len(runs), len(names), split
        )
    if not runs:
        raise L2OError(f"expected runs in split {split!r} that did not diverge, got none; record more runs")
    steps = min(len(run.step) for run in runs)
    features = {
        name: np.concatenate([run.x[:steps, :, k] for run in runs], axis=1).astype(np.float64)
        for k, name in enumerate(trajectories.features)
    }
    return Sequences(features, np.concatenate([run.y[:steps] for run in runs], axis=1).astype(np.float64))


def _block(table: Samples, names: Sequence[str], split: str) -> Sequences:
    count = len(table.y)
    if split not in BLOCKS or count < 10:
        raise L2OError(
            f"expected one of {', '.join(BLOCKS)} and at least 10 rows, got {split!r} of {count}; import more"
        )
    start, stop = (round(count * part) for part in BLOCKS[split])
    features = {name: table.x[None, start:stop, k].astype(np.float64) for k, name in enumerate(names)}
    return Sequences(features, table.y[None, start:stop].astype(np.float64))


def dictionary(
    features: Sequence[str], lags: Sequence[int] = LAGS, decays: Sequence[float] = DECAYS
) -> list[Node]:
    """The search's input columns: every feature, its lags, its moving averages."""
    nodes = [ex.name(feature) for feature in features]
    columns = list(nodes)
    columns += [ex.call("lag", node, ex.number(k)) for k in lags for node in nodes]
    columns += [ex.call("ema", node, ex.number(b)) for b in decays for node in nodes]
    return columns


def column_values(columns: Sequence[Node], features: Mapping[str, np.ndarray]) -> np.ndarray:
    """The columns over whole sequences, [len(columns), T, N]."""
    return np.stack(evaluate(compile_program(columns), features))


def choose_rows(
    values: np.ndarray, target: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most ``count`` rows, spread evenly over steps: X [n, columns], y [n]."""
    steps, coordinates = target.shape
    generator = rng(seed, "rows")
    per_step = max(1, min(coordinates, count // steps))
    rows = np.linspace(0, steps - 1, min(steps, count), dtype=int)[:, None]
    picks = np.stack([generator.choice(coordinates, per_step, replace=False) for _ in rows])
    return values[:, rows, picks].reshape(len(values), -1).T, target[rows, picks].reshape(-1)
