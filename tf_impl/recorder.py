"""Record a training loop of one's own, which stays as it is: ``recorder = Recorder(optimizer)`` before the
loop, ``recorder.save("trajectories.h5")`` after it.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common.coordinates import split_by_run
from common.errors import L2OError
from common.features import names as feature_names
from common.storage import canonical_json
from common.teachers import TeacherRow
from interchange import expression as ex
from interchange.parse import parse
from interchange.trajectories import SPLITS, Run, Trajectories, save_trajectories
from tf_impl.features import FeatureStream
from tf_impl.tensors import CREATED_BY, to_numpy
from tf_impl.watch import Watch, one_number

_log = logging.getLogger(__name__)


class _Callback(keras.callbacks.Callback):
    """A callback that does nothing but make ``fit`` trace its step anew."""

    def on_train_begin(self, logs: Any = None) -> None:
        """A step traced before the recorder was there would go on without it."""
        self.model.make_train_function(force=True)


class Recorder(_Callback):
    """Records what any Keras optimizer sees and does, in ``fit`` or a loop of one's own, as a file.

    Args:
        optimizer: a fresh one: features are recorded as starting from zero.
        features: names of the table, such as ``g+m_tilde+g_tilde`` (with a teacher's usual decays), or
            name -> expression over ``g`` and ``t``.
        coordinates: how many of a run, in equal shares from every parameter tensor that has a gradient at
            the first step.
        steps: of a run that are recorded, its first ones.
        problem: a name for what is optimized.
        seed: of the choice of coordinates.

    It is made before the optimizer's first step; given to ``fit`` as a callback it may be made later. The
    gradient is the one of ``update_step``, so clipped, unscaled and accumulated as it may be. y is (theta
    after - theta before) / lr: weight decay and constraints are in it, and theta's rounding. A tensor that
    loses its gradient is left out of the run. Places count in Keras' own layout, which for the kernels of
    dense layers and convolutions is the canonical one.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        *,
        features: str | Mapping[str, str] = "g",
        coordinates: int = 100,
        steps: int = 300,
        problem: str = "user",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {"coordinates": coordinates, "steps": steps}.items():
            if value < 1:
                raise L2OError(f"{name}: expected at least 1, got {value}")
        self._features = _expressions(features)
        self._coordinates, self._steps, self._problem, self._seed = coordinates, steps, problem, seed
        self._runs: list[Run] = []
        self._watch: Watch | None = None
        self.start_run(optimizer)

    def start_run(self, optimizer: keras.optimizers.Optimizer) -> None:
        """End the run so far and begin another, with the fresh optimizer of a fresh model."""
        self._end_run()
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise L2OError(f"expected a Keras optimizer to record, got {type(optimizer).__name__}")
        if int(optimizer.iterations):
            _log.warning("the optimizer has taken steps already; features are recorded as starting from zero")
        self._watch = Watch(optimizer, self._coordinates, self._steps, self._seed, len(self._runs))

    def loss(self, value: float | tf.Tensor) -> None:
        """The loss of the optimizer's next step; one that ``fit`` computes need not be given.

        A step without one takes the last given, the first steps the first. Where none is ever given, zeros
        are written and the run's ``outcome`` says so.
        """
        if self._watch is not None:
            self._watch.loss.assign([one_number(value), 1.0])

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """End the run and write all runs so far; the file's path.

        Three runs or more are split by run. The coordinates of one or two runs are dealt into three runs of
        the file each, for training, validation and test: held out are then coordinates, not runs.

        Raises:
            L2OError: nothing was recorded, every run diverged, or the file is there already.
        """
        if Path(path).exists() and not overwrite:
            raise L2OError(f"{path} is there already; replace it with overwrite=True or choose another name")
        self._end_run()
        if not self._runs:
            raise L2OError(
                "expected steps to record, got none; train between Recorder(optimizer) and save, and make "
                "the Recorder before the first step, or fit with it as a callback"
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
            "held_out": "runs" if by_run else "coordinates",
        }
        named = {run.name: run for run in runs}
        save_trajectories(path, Trajectories(self._features, named, split, config, self._seed, CREATED_BY))
        return Path(path)

    def _end_run(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.end()
            run = self._run(watch) if watch.recorded else None
            self._runs += [run] if run is not None else []

    def _run(self, watch: Watch) -> Run | None:
        """What was seen up to its first value that is not finite; None where that is in the first step."""
        g, y, losses, given = watch.arrays()
        stream = FeatureStream(self._features)
        x, state = [], stream.initial_state(tf.constant(g[0]))
        for t, row in enumerate(g, 1):
            values, state = stream.step(tf.constant(row), state, t)
            x.append(to_numpy(values).T)
        arrays = {"x": np.stack(x), "g": g, "y": y, "loss": losses}
        finite = np.all([np.isfinite(a.reshape(len(a), -1)).all(1) for a in arrays.values()], axis=0)
        diverged = not finite.all()
        steps = int(finite.argmin()) if diverged else len(finite)
        if not steps:
            _log.warning("a run is left out: gradient, output or loss of its first step is not finite")
            return None
        outcome = f"diverged at step {steps + 1}" if diverged else "ok"
        return Run(
            name=f"{len(self._runs):06d}",
            problem=self._problem,
            problem_json="{}",
            source_kind="user",
            source_json=canonical_json(watch.source),
            source_sha256="",
            seed=self._seed,
            init_seed=self._seed,
            num_steps=len(finite),
            scale=1.0,
            diverged=bool(diverged),
            outcome=outcome if given else f"{outcome}; no loss was given, 0 stands for it",
            step=np.arange(1, steps + 1, dtype=np.int64),
            **{name: array[:steps] for name, array in arrays.items()},
            **watch.places(),
        )


def _expressions(features: str | Mapping[str, str]) -> dict[str, str]:
    """Feature name -> expression over ``g`` and ``t``; any other name in one is refused."""
    if isinstance(features, str):
        return TeacherRow("user", feature_names(features), ()).expressions()
    if not features:
        raise L2OError("features: expected at least one, got none; 'g' is the gradient itself")
    for name, text in features.items():
        strangers = sorted(set(ex.names(parse(text))) - {"g", "t"})
        if strangers:
            raise L2OError(f"feature {name!r}: expected only g and t in it, got {strangers[0]!r}")
    return dict(features)


def _dealt(run: Run) -> tuple[Run, Run, Run]:
    """One run as three of disjoint coordinates, three fifths and a fifth each, alike in every tensor."""
    count = len(run.param_index)
    if count < 5:
        raise L2OError(f"expected at least 5 coordinates to deal out, got {count}; record 3 runs")
    fifth = np.arange(count) % 5
    return tuple(
        dataclasses.replace(
            run,
            name=f"{run.name}-{name}",
            x=run.x[:, columns],
            g=run.g[:, columns],
            y=run.y[:, columns],
            param_index=run.param_index[columns],
            flat_index=run.flat_index[columns],
        )
        for name, columns in zip(SPLITS, (fifth < 3, fifth == 3, fifth == 4), strict=True)
    )
