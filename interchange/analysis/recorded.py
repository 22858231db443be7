"""The sequences on which optimizers are analysed: held-out runs of a recording, or noise."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np

from common.errors import L2OError
from common.rng import rng
from interchange.files.trajectories import Run, Trajectories
from interchange.files.whole import views_of
from interchange.language.view import View, slices, trial
from interchange.search.samples import outputs_of, sequences

PHASES = {"early": (0.0, 0.1), "middle": (0.1, 0.5), "late": (0.5, 1.0)}  # shares of the steps
NOISE = (600, 48)  # steps and coordinates


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
    """Sequences from the first step on, coordinate by coordinate.

    Attributes:
        given: name -> [T, N]: ``g``, ``theta`` where it was recorded, and the recorded features.
        updates: u [T, N] before the learning rate and inside a structure; None for noise.
        tensors: [N], which of ``tensor_names`` a coordinate belongs to.
        views: of the tensors that the columns are, one after another, where they were recorded whole.
        source: who was recorded, "" for noise.
        scale: u over the recorded output.
    """

    given: dict[str, np.ndarray]
    updates: np.ndarray | None
    tensors: np.ndarray
    tensor_names: tuple[str, ...]
    views: tuple[View, ...] | None = None
    source: str = ""
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Steps and coordinates."""
        return next(iter(self.given.values())).shape

    def few(self, count: int, steps: int = 0) -> "Recorded":
        """About so many coordinates, spread over all, and the first ``steps`` (0: all); tensors stay whole.

        Of whole tensors these are the smallest with a matrix view and the smallest without, and further ones
        while they are no more than ``count`` together.
        """
        total = self.shape[1]
        if self.views is None:
            columns = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))
            return self.columns(columns, steps)
        pieces = list(slices(self.views))
        order = sorted(pieces, key=lambda piece: piece[1].sizes["numel"])
        chosen = [next((p for p in order if p[1].matrix is kind), None) for kind in (True, False)]
        chosen = [piece for piece in chosen if piece]
        for piece in order:
            size = sum(view.sizes["numel"] for _, view in chosen)
            if piece not in chosen and size + piece[1].sizes["numel"] <= count:
                chosen.append(piece)
        chosen.sort(key=lambda piece: piece[0].start)
        columns = np.concatenate([np.arange(place.start, place.stop) for place, _ in chosen])
        return dataclasses.replace(self.columns(columns, steps), views=tuple(view for _, view in chosen))

    def columns(self, columns: np.ndarray, steps: int = 0) -> "Recorded":
        """Some coordinates and the first ``steps`` (0: all); tensors are no longer whole."""
        last = steps or None
        return dataclasses.replace(
            self,
            given={name: x[:last, columns] for name, x in self.given.items()},
            updates=None if self.updates is None else self.updates[:last, columns],
            tensors=self.tensors[columns],
            views=None,
        )


def phases(steps: int) -> dict[str, slice]:
    """The parts of a run by name; short runs have fewer."""
    found = {name: slice(round(low * steps), round(high * steps)) for name, (low, high) in PHASES.items()}
    return {name: part for name, part in found.items() if part.stop > part.start}


def noise(seed: int = 0) -> Recorded:
    """Gradients without a problem: first-order noise of half correlation, sizes log-normal.

    The columns are small matrices and a vector, and stand still at parameters of usual size.
    """
    generator, (steps, coordinates) = rng(seed, "analysis"), NOISE
    g = generator.normal(size=(steps, coordinates))
    for t in range(1, steps):
        g[t] = 0.5 * g[t - 1] + np.sqrt(0.75) * g[t]
    g *= np.exp(generator.normal(size=coordinates))
    given = {"g": g, "theta": np.tile(generator.normal(size=coordinates), (steps, 1))}
    return Recorded(given, None, np.zeros(coordinates, int), ("noise",), trial(coordinates))


def recorded(trajectories: Trajectories, splits: Sequence[str] = ("test",)) -> Recorded:
    """Runs of a recording as one; all runs where it names none of these splits. Diverged runs are left out.

    Raises:
        L2OError: no run went to its end.
    """
    if trajectories.samples is not None:
        data = sequences(trajectories, splits[0])
        scale, count = trajectories.samples.scale, data.target.shape[1]
        nowhere = np.zeros(count, int)
        return Recorded(
            data.features, scale * data.target, nowhere, ("table",), source="a table", scale=scale
        )
    names = [name for split in splits for name in trajectories.split.get(split, ())] or list(
        trajectories.runs
    )
    runs = [trajectories.runs[name] for name in names if not trajectories.runs[name].diverged]
    if not runs:
        raise L2OError("expected recorded runs that did not diverge, got none; record more runs")
    steps = min(len(run.step) for run in runs)
    given = {"g": _joined([run.g for run in runs], steps)}
    given |= {
        name: _joined([run.x[:, :, k] for run in runs], steps)
        for k, name in enumerate(trajectories.features)
        if name != "g"
    }
    if all(run.theta is not None for run in runs):
        given["theta"] = _joined([run.theta for run in runs], steps)
    updates = _joined([run.scale * outputs_of(run, trajectories) for run in runs], steps)
    whole = all(run.params_views is not None for run in runs)
    known, tensors = _tensors(runs)
    return Recorded(
        given,
        updates,
        tensors,
        known,
        views=tuple(view for run in runs for view in views_of(run)) if whole else None,
        source=source_name(runs[0]),
        scale=runs[0].scale,
    )


def source_name(run: Run) -> str:
    """Who was recorded, for people."""
    row = json.loads(run.source_json or "{}")
    name = str(row.get("rule", row.get("name", ""))) if isinstance(row, Mapping) else ""
    return name or run.source_kind


def _joined(parts: Sequence[np.ndarray], steps: int) -> np.ndarray:
    return np.concatenate([part[:steps] for part in parts], axis=1).astype(np.float64)


def _tensors(runs: Sequence[Run]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of tensors, with the problem where there are several, and the tensor of every coordinate."""
    several = len({run.problem for run in runs}) > 1
    numbers: dict[str, int] = {}
    parts = []
    for run in runs:
        names = [f"{run.problem} {name}" if several else name for name in run.params_names]
        own = np.array([numbers.setdefault(name, len(numbers)) for name in names], int)
        parts.append(own[run.param_index])
    return tuple(numbers), np.concatenate(parts)
