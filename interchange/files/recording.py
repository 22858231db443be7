"""What the recorders of both backends share: from a seen run to a file of trajectories."""

import abc
import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.data.coordinates import split_by_run
from common.errors import L2OError
from common.run.storage import canonical_json
from common.tables.features import names as feature_names
from common.tables.teachers import TeacherRow
from interchange.files.trajectories import SPLITS, Run, Trajectories, save_trajectories
from interchange.language import expression as ex
from interchange.language.parse import parse

_log = logging.getLogger(__name__)


class Recording(abc.ABC):
    """Runs of a user's own loop, as far as they are recorded; a backend's ``Recorder`` adds its optimizer.

    Args:
        features, coordinates, steps, problem, seed, include_lr, whole_tensors: as of ``Recorder``.
        created_by: the backend's, for the file.
    """

    _WHEN = "the Recorder before the first step"

    def __init__(
        self,
        features: str | Mapping[str, str],
        coordinates: int,
        steps: int,
        problem: str,
        seed: int,
        include_lr: bool,
        whole_tensors: bool,
        created_by: str,
    ) -> None:
        for name, value in {"coordinates": coordinates, "steps": steps}.items():
            if value < 1:
                raise L2OError(f"{name}: expected at least 1, got {value}")
        self._features = _expressions(features)
        self._coordinates, self._steps, self._problem, self._seed = coordinates, steps, problem, seed
        self._include_lr, self._whole, self._created_by = include_lr, whole_tensors, created_by
        self._runs: list[Run] = []

    @abc.abstractmethod
    def _end_run(self) -> None:
        """End the run under way, and ``_keep`` it."""

    @abc.abstractmethod
    def _inputs(self, g: Any) -> np.ndarray:
        """The features [step, coordinate, feature] of gradients [step, coordinate]."""

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """End the run and write all runs so far; the file's path.

        Three runs or more are split by run. The coordinates of one or two runs, or their whole tensors, are
        dealt into three runs of the file each, for training, validation and test: held out are then
        coordinates or tensors, not runs.

        Raises:
            L2OError: nothing was recorded, every run diverged, or the file is there already.
        """
        if Path(path).exists() and not overwrite:
            raise L2OError(f"{path} is there already; replace it with overwrite=True or choose another name")
        self._end_run()
        if not self._runs:
            raise L2OError(
                "expected steps to record, got none; train between Recorder(optimizer) and save, and make "
                f"{self._WHEN}"
            )
        if all(run.diverged for run in self._runs):
            raise L2OError(f"every run {self._runs[0].outcome}; lower the lr or record fewer steps")
        by_run = len(self._runs) >= 3
        split = split_by_run([run.name for run in self._runs])
        runs = self._runs
        if not by_run:
            dealt = [_dealt(run) for run in self._runs]
            runs = [part for parts in dealt for part in parts]
            split = {name: tuple(parts[k].name for parts in dealt) for k, name in enumerate(SPLITS)}
        config = {
            "problem": self._problem,
            "steps": self._steps,
            "coordinates": self._coordinates,
            "seed": self._seed,
            "held_out": "runs" if by_run else "tensors" if self._whole else "coordinates",
            "include_lr": self._include_lr,
        } | ({"whole_tensors": True} if self._whole else {})
        named = {run.name: run for run in runs}
        save_trajectories(
            path, Trajectories(self._features, named, split, config, self._seed, self._created_by)
        )
        return Path(path)

    def _keep(
        self,
        arrays: dict[str, np.ndarray],
        losses: np.ndarray,
        given: bool,
        source: dict[str, Any],
        places: dict[str, Any],
    ) -> None:
        """A run up to its first value that is not finite; none where that is in the first step.

        Args:
            arrays: g, y, theta and lr [step, coordinate].
            losses: [step]; ``given`` tells whether any was.
            source: the optimizer, JSON-ready.
            places: where the coordinates are, by the names of a run's fields.
        """
        arrays |= {"x": self._inputs(arrays["g"]), "loss": losses}
        finite = np.all([np.isfinite(a.reshape(len(a), -1)).all(1) for a in arrays.values()], axis=0)
        diverged = not finite.all()
        steps = int(finite.argmin()) if diverged else len(finite)
        if not steps:
            _log.warning("a run is left out: gradient, output or loss of its first step is not finite")
            return
        outcome = f"diverged at step {steps + 1}" if diverged else "ok"
        run = Run(
            name=f"{len(self._runs):06d}",
            problem=self._problem,
            problem_json="{}",
            source_kind="user",
            source_json=canonical_json(source),
            source_sha256="",
            seed=self._seed,
            init_seed=self._seed,
            num_steps=len(finite),
            scale=1.0,
            diverged=bool(diverged),
            outcome=outcome if given else f"{outcome}; no loss was given, 0 stands for it",
            step=np.arange(1, steps + 1, dtype=np.int64),
            **{name: array[:steps] for name, array in arrays.items()},
            **places,
        )
        self._runs.append(run)


def _expressions(features: str | Mapping[str, str]) -> dict[str, str]:
    """Feature name -> expression over ``g`` and ``t``; any other name in one is refused."""
    if isinstance(features, str):
        features = TeacherRow("user", feature_names(features), ()).expressions()
    if not features:
        raise L2OError("features: expected at least one, got none; 'g' is the gradient itself")
    for name, text in features.items():
        if ex.sees_tensors(parse(text)):
            raise L2OError(
                f"feature {name!r}: expected one of a single coordinate, got one that sees the tensor, of "
                "which a recording has some coordinates; leave it out"
            )
        strangers = sorted(set(ex.names(parse(text))) - {"g", "t"})
        if strangers:
            raise L2OError(f"feature {name!r}: expected only g and t in it, got {strangers[0]!r}")
    return dict(features)


def _dealt(run: Run) -> tuple[Run, Run, Run]:
    """One run as three of disjoint coordinates, three fifths and a fifth each, alike in every tensor.

    Tensors that were recorded whole are dealt out as wholes.
    """
    whole = run.params_views is not None
    ranks = np.unique(run.param_index, return_inverse=True)[1] if whole else np.arange(len(run.param_index))
    count = int(ranks.max()) + 1
    if count < 5:
        what = "tensors" if whole else "coordinates"
        raise L2OError(f"expected at least 5 {what} to deal out, got {count}; record 3 runs")
    fifth = ranks % 5
    return tuple(
        dataclasses.replace(
            run,
            name=f"{run.name}-{name}",
            x=run.x[:, columns],
            g=run.g[:, columns],
            y=run.y[:, columns],
            theta=run.theta[:, columns],
            lr=run.lr[:, columns],
            param_index=run.param_index[columns],
            flat_index=run.flat_index[columns],
        )
        for name, columns in zip(SPLITS, (fifth < 3, fifth == 3, fifth == 4), strict=True)
    )
