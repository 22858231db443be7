"""Validation of a meta-training: the optimizees, the score, the best weights, the curriculum's decisions."""

import math
from collections.abc import Callable
from typing import Any

from common.run.runs import RunFolder
from interchange.backend import Arrays, Network, Tasks
from interchange.meta.schedule import Schedule
from interchange.meta.state import Standing
from interchange.meta.workers import Workers

SMALLEST = 1e-30  # what a loss of 0 counts as where logarithms are taken


class Judging(Standing):
    """A meta-training's optimizees, and what it makes of the losses on those to validate on.

    Attributes:
        mean_figure, random_scaling, convex_term, table_task: the backend's own, of ``unroll``, ``augment``
            and ``problems``.
        schedule: what each epoch does.
    """

    mean_figure: Callable[..., float]
    random_scaling: Callable[..., Any]
    convex_term: Callable[..., Any]
    table_task: Callable[..., Any]

    def __init__(
        self,
        network: Network,
        config: Any,
        tasks: Tasks | None,
        folder: RunFolder | None,
        workers: Workers | None = None,
    ) -> None:
        self.schedule = Schedule(config, own_tasks=tasks is not None)
        self.own_tasks = tasks
        super().__init__(network, config, folder, workers)

    def plain_task(self, stream: str, number: int, problem: str = "") -> Any:
        """Optimizee ``number`` of a stream, as the table or the caller has it."""
        if self.own_tasks is not None:
            return self.own_tasks(stream, number)
        return self.table_task(self.config, stream, number, problem=problem or self.schedule.problem(number))

    def task(self, stream: str, number: int, problem: str = "") -> Any:
        """Optimizee ``number`` of a stream; those to train on are varied as the configuration says."""
        one, config = self.plain_task(stream, number, problem), self.config
        if stream == "meta_train" and getattr(config, "random_scaling", 0.0):
            one = self.random_scaling(one, config.random_scaling, config.seed, number)
        if stream == "meta_train" and getattr(config, "convex", False):
            one = self.convex_term(one, config.seed, number)
        return one

    def _validate_start(self) -> None:
        """Validation before training, which the first one after it must beat."""
        self.first_score = score = self._score()
        if self.stage:
            self.stage, self.best_score = self.stage.begun(score), score
        self._keep(score, self._weights())

    def _validate(self) -> dict[str, float]:
        """The score of the weights, and of their average; the best are kept, by the curriculum's rules."""
        score = self._score()
        row = {"validation": score}
        if self.stage:
            self._judge(score)
            return row
        self._keep(score, self._weights())
        if self.counted:
            newest, mean = self._weights(), self._averaged()
            self._load(mean)
            row["averaged"] = self._score()
            self._load(newest)
            self._keep(row["averaged"], mean)
        return row

    def _keep(self, score: float, weights: Arrays) -> None:
        if score < self.best_score:
            self.best_score, self.best = score, weights

    def _judge(self, score: float) -> None:
        """Go on, to the next stage, or end the curriculum."""
        self.stage, decision = self.stage.judged(score)
        if decision == "keep":
            self.best = self._weights()
        elif decision != "go on":
            self._load(self.best)
        if decision == "advance":
            self.stage = self.stage.begun(self._score())
        self.best_score = self.stage.best

    def _score(self) -> float:
        """The loss at the end of an epoch, mean over the validation tasks.

        With several problems or a range of horizons it is the geometric mean over problems and ``horizons``,
        so that a tenth less counts the same on each; inf where one diverges.
        """
        count, plan = self.config.validation_tasks, self.schedule
        mine = self.workers.share(count)
        horizons = (self.stage.judged_at,) if self.stage else plan.horizons
        figures = []
        for problem in plan.problems:
            for steps in horizons:
                tasks = (self.task("validation", k, problem) for k in mine)
                figure = self.mean_figure(tasks, self.network, steps) if mine else 0.0
                figures.append(len(mine) / count * figure)
        figures = self.workers.total(figures).tolist()
        if not all(map(math.isfinite, figures)):
            return math.inf
        if len(figures) == 1:
            return figures[0]
        return math.exp(sum(math.log(max(value, SMALLEST)) for value in figures) / len(figures))
