"""Validation of a meta-training: the score, the best weights, the curriculum's decisions."""

import math
from collections.abc import Iterator

import numpy as np

from common.metrics import LOSS_FLOOR
from interchange.backend import Arrays, Learner, Task
from interchange.meta.schedule import Schedule
from interchange.meta.state import TrainerState
from interchange.meta.tasks import TaskStream


class Validation:
    """The losses on optimizees nobody trains on, and what follows from them for the training's state."""

    def __init__(self, learner: Learner, tasks: TaskStream, schedule: Schedule, state: TrainerState) -> None:
        self._learner, self._tasks, self._schedule, self.state = learner, tasks, schedule, state

    def begin(self) -> None:
        """Validation before training, which the first one after it must beat."""
        state = self.state
        state.first_score = score = self.score()
        if state.stage:
            state.stage, state.best_score = state.stage.begun(score), score
        self._keep(score, self._learner.weights())

    def run(self) -> dict[str, float]:
        """The score of the weights, and of their average; the best are kept, by the curriculum's rules."""
        state, score = self.state, self.score()
        row = {"validation": score}
        if state.stage:
            self._judge(score)
            return row
        self._keep(score, self._learner.weights())
        if state.counted:
            newest, mean = self._learner.weights(), state.averaged()
            self._learner.put(mean)
            row["averaged"] = self.score()
            self._learner.put(newest)
            self._keep(row["averaged"], mean)
        return row

    def _keep(self, score: float, weights: Arrays) -> None:
        if score < self.state.best_score:
            self.state.best_score, self.state.best = score, weights

    def _judge(self, score: float) -> None:
        """Go on, to the next stage, or end the curriculum."""
        state = self.state
        state.stage, decision = state.stage.judged(score)
        if decision == "keep":
            state.best = self._learner.weights()
        elif decision != "go on":
            self._learner.put(state.best)
        if decision == "advance":
            state.stage = state.stage.begun(self.score())
        state.best_score = state.stage.best

    def score(self) -> float:
        """The loss at the end of an epoch, mean over the validation tasks.

        With several problems or a range of horizons it is the geometric mean over problems and ``horizons``,
        so that a tenth less counts the same on each, and with ``--loss log`` over tasks too; inf where one
        diverges.
        """
        state, schedule = self.state, self._schedule
        count = state.config.validation_tasks
        mine = state.workers.share(count)
        horizons = (state.stage.judged_at,) if state.stage else schedule.horizons
        figures = []
        for problem in schedule.problems:
            for steps in horizons:
                tasks = (self._tasks("validation", k, problem) for k in mine)
                figures.append(len(mine) / count * self._figure(tasks, steps) if mine else 0.0)
        figures = state.workers.total(figures).tolist()
        if not all(map(math.isfinite, figures)):
            return math.inf
        if state.config.loss != "log":
            if len(figures) == 1:
                return figures[0]
            figures = list(map(_log, figures))
        return math.exp(sum(figures) / len(figures))

    def _figure(self, tasks: Iterator[Task], steps: int) -> float:
        """Mean over these tasks of the loss, or of its logarithm."""
        if self.state.config.loss != "log":
            return self._learner.mean_loss_at(tasks, steps)
        return float(np.mean([_log(self._learner.mean_loss_at([task], steps)) for task in tasks]))


def _log(loss: float) -> float:
    return math.log(max(loss, LOSS_FLOOR))
