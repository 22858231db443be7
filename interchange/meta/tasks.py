"""Optimizees of a meta-training, by stream and number."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from common.data.datasets import Split
from common.errors import L2OError
from common.rng import derived_seed
from common.run.config import OnProblem
from common.tables.problems import Instance, Problem, parameter_specs, problem_row
from common.training import Training
from interchange.backend import Learner, Task, Tasks
from interchange.files.checkpoint import load_start
from interchange.language.view import View, canonical, chosen, vector
from interchange.language.view import matrix as matrices
from interchange.meta.config import MetaLoop
from interchange.meta.schedule import Schedule

_NOTHING = object()


class TaskStream:
    """Optimizee ``number`` of a stream, ``meta_train`` or ``validation``: the same one whenever asked.

    Args:
        learner: the backend's; it makes optimizees of the problem table, and varies them.
        own: the caller's optimizees, instead of those of the configured problem.
    """

    def __init__(self, learner: Learner, schedule: Schedule, own: Tasks | None = None) -> None:
        self._learner, self._config, self._schedule = learner, learner.config, schedule
        self._own = own and checked(own)

    def __call__(self, stream: str, number: int, problem: str = "") -> Task:
        """The optimizee; one to train on is varied as the configuration says."""
        task, config = self.plain(stream, number, problem), self._config
        if stream == "meta_train" and config.random_scaling:
            task = self._learner.random_scaling(task, config.random_scaling, config.seed, number)
        if stream == "meta_train" and config.convex:
            task = self._learner.convex_term(task, config.seed, number)
        return task

    def plain(self, stream: str, number: int, problem: str = "") -> Task:
        """The optimizee as the table or the caller has it."""
        if self._own is not None:
            return self._own(stream, number)
        problem = problem or self._schedule.problem(number)
        return self._learner.table_task(self._config, stream, number, problem=problem)


def checked(tasks: Tasks) -> Tasks:
    """The same tasks of a caller's own, which are refused where they are none."""

    def one(stream: str, number: int) -> Task:
        task = tasks(stream, number)
        lacks = [name for name in ("names", "shapes", "initial", "loss") if not hasattr(task, name)]
        if lacks:
            raise L2OError(
                f"tasks({stream!r}, {number}): expected an optimizee such as ModuleTask, got "
                f"{type(task).__name__} without {', '.join(lacks)}; "
                "wrap model, loss and batches in ModuleTask"
            )
        return task

    return one


def own(config: OnProblem, tasks: Tasks) -> Tasks:
    """``checked``, for a command with that configuration.

    Raises:
        L2OError: settings that are about data or layers of the problem table.
    """
    asked = {"passes": getattr(config, "passes", 0), **dataclasses.asdict(config.training)}
    for name in ("passes", "label_smoothing", "bfloat16"):
        if asked[name]:
            raise L2OError(f"{name}: tasks of your own have their own data and loss; leave it out")
    return checked(tasks)


def table_instance(
    config: OnProblem, stream: str, number: int, split: Split = "meta_train", problem: str = ""
) -> tuple[Instance, Mapping[str, np.ndarray] | None]:
    """What optimizee ``number`` of a stream of seeds is, and initial values if not its own.

    Args:
        config: with ``seed, problem, dataset, batch_size, data_dir, start``.
        problem: instead of ``config.problem``.
    """
    seed = derived_seed(config.seed, stream, number)
    row = problem_row(problem or config.problem, config.dataset)
    row = _trained(row, config.training)
    if row.kind == "function" and config.batch_size:
        row = row.batched(config.batch_size)
    instance = Instance(row, seed, split, config.batch_size, config.data_dir, config.start_scale)
    return instance, load_start(config.start, row) if config.start else None


def _trained(row: Problem, training: Training) -> Problem:
    """The row with what a training changes of its loss."""
    if training.label_smoothing and (row.kind == "function" or row.target != "labels"):
        raise L2OError(f"--label-smoothing: {row.name} has no labels; leave it out")
    if training.bfloat16 and row.kind == "function":
        raise L2OError(f"--bfloat16: {row.name} has no layers; leave it out")
    return dataclasses.replace(row, smoothing=training.label_smoothing, bfloat16=training.bfloat16)


def views_of(problem: Problem) -> tuple[View, ...]:
    """How rules see the tensors of a problem, in canonical order.

    Raises:
        L2OError: the row says it of a tensor that it does not have.
    """
    specs = parameter_specs(problem)
    given = problem.matrix
    unknown = set(given or ()) - {spec.name for spec in specs}
    if unknown:
        names = ", ".join(spec.name for spec in specs)
        raise L2OError(f"problem {problem.name!r}: matrix: expected names of {names}, got {min(unknown)}")
    if given is not None:
        return tuple(canonical(spec.shape, spec.name in given) for spec in specs)
    return tuple(
        matrices(spec.shape, (-1,), parts=spec.matrices) if spec.matrices else vector(spec.shape)
        for spec in specs
    )


def chosen_views(names: Sequence[str], defaults: Sequence[View], matrix: object) -> tuple[View, ...]:
    """The views of a model's tensors as an option ``matrix`` says.

    Args:
        matrix: what is said of every tensor, or of some by their names (``view.chosen``).

    Raises:
        L2OError: it is about a tensor that is not there, or does not fit.
    """
    given = matrix if isinstance(matrix, Mapping) else dict.fromkeys(names, matrix)
    if unknown := [name for name in given if name not in names]:
        raise L2OError(f"matrix: expected names of {', '.join(names)}, got {unknown[0]}")
    return tuple(
        chosen(default.shape, given.get(name), default) for name, default in zip(names, defaults, strict=True)
    )


class Batches:
    """The mini-batches of a caller, by step.

    Args:
        given: each ``(input, target)``. Those of a sequence or an iterator are the same at every pass; what
            can be iterated anew, as a loader or pipeline, is, so that it may shuffle and vary.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, given: Iterable[Any]) -> None:
        once = hasattr(given, "__next__")
        self._given: Iterable[Any] = list(given) if once else given
        self._step, self._batch, self._pass = -1, None, iter(self._given)
        self._batch = self.at(0)

    def at(self, step: int) -> Any:
        """The batch of ``step`` (from 0), counted round; asked again at once it is the same one.

        Of a loader an earlier step begins a new pass.
        """
        if isinstance(self._given, Sequence) and self._given:
            return self._given[step % len(self._given)]
        if step == self._step:
            return self._batch
        if step < self._step:
            self._pass = iter(self._given)
        for _ in range(2):
            if (batch := next(self._pass, _NOTHING)) is not _NOTHING:
                self._step, self._batch = step, batch
                return batch
            self._pass = iter(self._given)
        raise ValueError("batches: expected at least one (input, target), got none")


def factors(config: MetaLoop) -> tuple[str, ...]:
    """The problems that have a factor of their own on the update: none, or all of ``--problem``.

    Raises:
        L2OError: asked for with another estimator than evolution strategies.
    """
    if not config.factors:
        return ()
    if config.estimator != "es":
        raise L2OError(f"--factors needs --estimator es, got {config.estimator}; leave it out")
    return tuple(config.problem.split(","))
