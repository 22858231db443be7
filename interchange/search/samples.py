"""Trajectories -> the sequences a rule is fitted on and the rows a search engine sees.

Splits are by run, never by row (MATH.md section 4). Runs that diverged are left out, and said so. A table
of samples has no runs: its last rows are held out, and the others validate by folds (``distill.tables``).
Engines see few rows, chosen by strata; all rows are there to refit and to score.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from common.errors import L2OError
from common.rng import rng
from interchange.files.trajectories import Run, Samples, Trajectories
from interchange.language.execute import compile_program, evaluate
from interchange.language.expression import Node

# Of the rows of a table. Those for validation are the ones for training, one fold after another.
BLOCKS = {"train": (0.0, 0.85), "valid": (0.0, 0.85), "test": (0.85, 1.0)}
PHASES = (0.1, 0.5)  # of the steps: where early and middle end
TAILS = 0.02  # of the rows, about: the largest |y| and |x|, shared among target and features
_PER_STRATUM = 8  # rows; with fewer on average the strata are too fine
_OPERATIONS = 32.0  # roundings of an optimizer's own arithmetic: 1 - b^t in float32 alone takes many
_LOST = 1e-2  # of the usual y: rounding above it hides what the optimizer does
_CHUNK = 200 << 20  # bytes of columns computed at once

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
    """Whole sequences of one split.

    Attributes:
        features: name -> float64 [T, N]; N runs over the coordinates of all runs. The raw gradient is there
            as ``g`` where the runs were recorded, the parameter as ``theta`` where that was recorded too.
        target: float64 [T, N], the output before ``scale`` and learning rate.
        layers: int [N], which tensor a coordinate belongs to, numbered over all problems; None if unknown.
        rounding: float64 [T, N], standard deviation of the target's: that of an optimizer which computed in
            the recording's dtype, and of the differences of theta where y was made of them; None of a table.
    """

    features: dict[str, np.ndarray]
    target: np.ndarray
    layers: np.ndarray | None = None
    rounding: np.ndarray | None = None

    def part(self, columns: np.ndarray) -> "Sequences":
        """The given coordinates only."""
        features = {name: x[:, columns] for name, x in self.features.items()}
        return Sequences(
            features,
            self.target[:, columns],
            None if self.layers is None else self.layers[columns],
            None if self.rounding is None else self.rounding[:, columns],
        )

    def only(self, names: Iterable[str]) -> "Sequences":
        """The given features and the raw gradient, where they are there; no array is copied."""
        kept = (*names, "g")
        features = {name: self.features[name] for name in kept if name in self.features}
        return Sequences(features, self.target, self.layers, self.rounding)

    def joined(self, other: "Sequences") -> "Sequences":
        """Both, coordinate after coordinate, cut to the shorter; the other's tensors count as new ones."""
        mine = {name: x for name, x in self.features.items() if name != "theta" or name in other.features}
        missing = [name for name in mine if name not in other.features]
        if missing:
            raise L2OError(
                f"expected sequences with the features {', '.join(self.features)}, "
                f"got none of {missing[0]!r}; compute it first"
            )
        steps = min(len(self.target), len(other.target))
        features = {
            name: np.concatenate([x[:steps], other.features[name][:steps]], axis=1)
            for name, x in mine.items()
        }
        own, theirs = (
            np.zeros(part.target.shape[1], int) if part.layers is None else part.layers
            for part in (self, other)
        )
        layers = np.concatenate([own, theirs + own.max(initial=-1) + 1])
        target = np.concatenate([self.target[:steps], other.target[:steps]], axis=1)
        if self.rounding is None and other.rounding is None:
            return Sequences(features, target, layers)
        parts = [
            np.zeros((steps, part.target.shape[1])) if part.rounding is None else part.rounding[:steps]
            for part in (self, other)
        ]
        return Sequences(features, target, layers, np.concatenate(parts, axis=1))


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Chosen cells of sequences.

    Attributes:
        steps, coordinates: int [n], where they stand in [T, N].
        weights: [n], how many cells each stands for; their sum is T N.
    """

    steps: np.ndarray
    coordinates: np.ndarray
    weights: np.ndarray

    def of(self, values: np.ndarray) -> np.ndarray:
        """The cells of ``values`` [T, N], as [n]."""
        return values[self.steps, self.coordinates]


def sequences(trajectories: Trajectories, split: str) -> Sequences:
    """All coordinates of the runs of one split (``train``, ``valid`` or ``test``).

    A block of a table is one step of as many coordinates as it has rows: [1, rows].

    Raises:
        L2OError: no such split, or no run of it that went to its end.
    """
    if trajectories.samples is not None:
        return _block(trajectories.samples, list(trajectories.features), split)
    runs, names = going(trajectories, split), trajectories.split.get(split, ())
    if len(runs) < len(names):
        _log.warning(
            "%d of %d runs of split %r diverged and are left out", len(names) - len(runs), len(names), split
        )
    if not runs:
        raise L2OError(f"expected runs in split {split!r} that did not diverge, got none; record more runs")
    outputs = [outputs_of(run, trajectories) for run in runs]
    errors = [_rounding(run, y) for run, y in zip(runs, outputs, strict=True)]
    steps = _steps(runs, outputs, errors)
    features = {
        name: np.concatenate([run.x[:steps, :, k] for run in runs], axis=1).astype(np.float64)
        for k, name in enumerate(trajectories.features)
    }
    if "g" not in features:
        features["g"] = np.concatenate([run.g[:steps] for run in runs], axis=1).astype(np.float64)
    if all(run.theta is not None for run in trajectories.runs.values()):  # in some is not enough
        features["theta"] = np.concatenate([run.theta[:steps] for run in runs], axis=1).astype(np.float64)
    target, error = (np.concatenate([part[:steps] for part in parts], axis=1) for parts in (outputs, errors))
    return Sequences(features, target, _layers(runs), error)


def going(trajectories: Trajectories, split: str) -> list[Run]:
    """The runs of a split that went to their end."""
    runs = (trajectories.runs[name] for name in trajectories.split.get(split, ()))
    return [run for run in runs if not run.diverged]


def outputs_of(run: Run, trajectories: Trajectories) -> np.ndarray:
    """float64 [step, coordinate]: y without the learning rate, also where it was recorded with it."""
    y = run.y.astype(np.float64)
    return y / run.lr if trajectories.config.get("include_lr") and run.lr is not None else y


def _rounding(run: Run, y: np.ndarray) -> np.ndarray:
    """What ``Sequences.rounding`` is, of one run whose outputs are ``y``: [step, coordinate]."""
    y = np.abs(y)
    size = y + np.sqrt(np.square(y).mean(0))  # terms that cancel are rounded by their own size
    deviation = _OPERATIONS * np.finfo(run.y.dtype).eps * size
    if run.theta is not None and run.lr is not None:
        spacing = np.spacing(np.abs(run.theta)).astype(np.float64)
        deviation = np.hypot(deviation, spacing / np.sqrt(12.0) / run.lr)
    return np.maximum(deviation, np.finfo(np.float64).tiny)


def _steps(runs: Sequence[Run], outputs: Sequence[np.ndarray], errors: Sequence[np.ndarray]) -> int:
    """Steps that all runs have, without a last part in which rounding hides y: its rate was too small."""
    steps = min(len(run.step) for run in runs)
    for run, y, error in zip(runs, outputs, errors, strict=True):
        if run.theta is not None and run.lr is not None:
            size = np.sqrt(np.square(y[:steps]).mean(1))
            usual = np.median(size[size > 0.0]) if size.any() else 0.0
            seen = np.flatnonzero(np.sqrt(np.square(error[:steps]).mean(1)) < _LOST * usual)
            steps = min(steps, int(seen[-1]) + 1 if len(seen) else steps)
    return steps


def _layers(runs: Sequence[Run]) -> np.ndarray:
    """int [N]: the tensor of every coordinate; equal where problem and tensor are."""
    numbers: dict[tuple[str, str], int] = {}
    parts = []
    for run in runs:
        own = [numbers.setdefault((run.problem, name), len(numbers)) for name in run.params_names]
        parts.append(np.array(own, int)[run.param_index])
    return np.concatenate(parts)


def _block(table: Samples, names: Sequence[str], split: str) -> Sequences:
    count = len(table.y)
    if split not in BLOCKS or count < 10:
        raise L2OError(
            f"expected one of {', '.join(BLOCKS)} and at least 10 rows, got {split!r} of {count}; import more"
        )
    start, stop = (round(count * part) for part in BLOCKS[split])
    features = {name: table.x[None, start:stop, k].astype(np.float64) for k, name in enumerate(names)}
    return Sequences(features, table.y[None, start:stop].astype(np.float64))


def row_values(columns: Sequence[Node], features: Mapping[str, np.ndarray], rows: Rows) -> np.ndarray:
    """The columns at the chosen rows, [n, columns]; never more of whole sequences than ``_CHUNK`` bytes."""
    program = compile_program(columns)
    values = np.empty((len(rows.steps), len(columns)))
    steps = int(rows.steps.max(initial=0)) + 1
    needed, place = np.unique(rows.coordinates, return_inverse=True)
    width = max(1, _CHUNK // (8 * steps * max(1, len(columns))))
    for start in range(0, len(needed), width):
        chunk = needed[start : start + width]
        inside = np.flatnonzero((place >= start) & (place < start + width))
        results = evaluate(program, {name: x[:steps, chunk] for name, x in features.items()})
        for k, result in enumerate(results):
            values[inside, k] = result[rows.steps[inside], place[inside] - start]
    return values


def choose_rows(data: Sequences, count: int, seed: int) -> Rows:
    """At most ``count`` rows over all tensors, phases (early, middle, late) and tails (rare |y| or |x|).

    Half of the rows are dealt out by the size of a stratum and half equally, so that no weight is above
    twice the mean one; within a stratum the rows are spread evenly over the steps (systematic sampling).
    """
    steps, coordinates = data.target.shape
    total = steps * coordinates
    if count >= total:
        chosen = np.arange(total)
        return Rows(*np.unravel_index(chosen, data.target.shape), np.ones(total))
    generator = rng(seed, "rows")
    stratum = _strata(data, count)
    order = np.argsort(stratum, kind="stable")
    sizes = np.bincount(stratum)
    picks, weights = [], []
    for end, size, share in zip(np.cumsum(sizes), sizes, _shares(sizes, count), strict=True):
        spots = np.floor((generator.random() + np.arange(share)) * (size / share)).astype(int)
        picks.append(order[end - size + np.minimum(spots, size - 1)])
        weights.append(np.full(share, size / share))
    chosen, weight = np.concatenate(picks), np.concatenate(weights)
    back = np.argsort(chosen)
    return Rows(*np.unravel_index(chosen[back], data.target.shape), weight[back])


def _strata(data: Sequences, count: int) -> np.ndarray:
    """int [T N], numbered without gaps: tensor, phase and tail, or fewer of them where rows are few."""
    steps, coordinates = data.target.shape
    phase = np.searchsorted(np.array(PHASES) * steps, np.arange(steps), side="right")
    rare = np.zeros(data.target.shape, bool)
    for values in (data.target, *data.features.values()):
        size = np.abs(values)
        rare |= size > np.quantile(size, 1.0 - TAILS / (1 + len(data.features)))
    coarse = 2 * phase[:, None] + rare
    layers = np.zeros(coordinates, int) if data.layers is None else data.layers
    for stratum in (layers * 2 * (len(PHASES) + 1) + coarse, coarse, np.zeros_like(coarse)):
        found, number = np.unique(stratum, return_inverse=True)
        if len(found) * _PER_STRATUM <= count:
            break
    return number.reshape(-1)


def _shares(sizes: np.ndarray, count: int) -> np.ndarray:
    """How many rows of each stratum: ``count`` in all, at least 1, none above its size."""
    wanted = 0.5 * count * (sizes / sizes.sum() + 1.0 / len(sizes))
    full = np.zeros(len(sizes), bool)
    while (wanted[~full] > sizes[~full]).any():
        full |= wanted > sizes
        wanted[full] = sizes[full]
        wanted[~full] *= (count - sizes[full].sum()) / wanted[~full].sum()
    shares = np.maximum(1, np.floor(wanted).astype(int))
    short = max(0, count - int(shares.sum()))
    shares[np.argsort(shares - np.minimum(wanted, sizes), kind="stable")[:short]] += 1
    return np.minimum(shares, sizes)
