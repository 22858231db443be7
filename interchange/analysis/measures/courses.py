"""Courses of optimizers from the same start: losses and single coordinates, recording beside recording."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from common.errors import L2OError
from common.run.storage import loads_json
from interchange.analysis.recorded import source_name
from interchange.files.trajectories import Run, Trajectories

_COORDINATES = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Courses:
    """One optimizee under several optimizers.

    Attributes:
        losses: optimizer -> [steps], before each update.
        moved: coordinate, as ``layer_0/w[17]`` -> optimizer -> [steps], how far it is from its start; an
            optimizer whose recording does not tell is left out.
    """

    problem: str
    losses: dict[str, np.ndarray]
    moved: dict[str, dict[str, np.ndarray]]


def courses(recordings: Mapping[str, Trajectories]) -> Courses:
    """The first run of the first recording beside those of the others from the same start.

    Raises:
        L2OError: no run of one has the start of a run of all others.
    """
    keys = [{_start(run): run for run in data.runs.values()} for data in recordings.values()]
    shared = [key for key in keys[0] if all(key in other for other in keys[1:])]
    if not shared:
        raise L2OError(
            f"expected recordings of one problem from the same seeds, got none shared by "
            f"{', '.join(recordings)}; record them with the same --problem, --runs and --seed"
        )
    runs = {name: key[shared[0]] for name, key in zip(recordings, keys, strict=True)}
    first = next(iter(runs.values()))
    moved: dict[str, dict[str, np.ndarray]] = {}
    for tensor, place in _shared_coordinates(list(runs.values())):
        title = f"{first.params_names[tensor]}[{place}]"
        for name, run in runs.items():
            column = np.flatnonzero((run.param_index == tensor) & (run.flat_index == place))
            course = _moved(run, int(column[0]))
            if course is not None:
                moved.setdefault(title, {})[name] = course
    return Courses(first.problem, {name: run.loss for name, run in runs.items()}, moved)


def _start(run: Run) -> tuple[str, int, int]:
    return run.problem, run.seed, run.init_seed


def _shared_coordinates(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """A few that all recordings hold, of different tensors first, those that move most."""
    pairs = [set(zip(run.param_index.tolist(), run.flat_index.tolist(), strict=True)) for run in runs]
    first, common = runs[0], set.intersection(*pairs)
    order = np.argsort(-np.abs(first.y.sum(axis=0, dtype=np.float64)), kind="stable")
    by_tensor: dict[int, list[tuple[int, int]]] = {}
    for column in order:
        pair = int(first.param_index[column]), int(first.flat_index[column])
        if pair in common:
            by_tensor.setdefault(pair[0], []).append(pair)
    rounds = max(map(len, by_tensor.values()), default=0)
    found = [own[k] for k in range(rounds) for own in by_tensor.values() if k < len(own)]
    return sorted(found[:_COORDINATES])


def _moved(run: Run, column: int) -> np.ndarray | None:
    """A coordinate less its start: as recorded, or the sum of the updates; None inside a structure."""
    if run.theta is not None:
        return run.theta[:, column].astype(np.float64) - float(run.theta[0, column])
    row = loads_json(run.source_json or "{}", "the recording's source")
    if not isinstance(row, dict) or row.get("structure"):
        return None
    rate = run.lr[:, column].astype(np.float64) if run.lr is not None else float(row.get("lr") or 1.0)
    sums = np.cumsum(rate * run.scale * run.y[:, column].astype(np.float64))
    return np.concatenate([[0.0], sums[:-1]])


def names_of(files: Sequence[str], recordings: Sequence[Trajectories]) -> list[str]:
    """What recordings are called beside each other: their sources, with the file where two are alike."""
    own = [source_name(next(iter(data.runs.values()))) if data.runs else "table" for data in recordings]
    return [name if own.count(name) == 1 else f"{name} {file}" for name, file in zip(own, files, strict=True)]
