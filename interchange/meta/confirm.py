"""Whether tuned constants are better than those at the start, on optimizees that decided nothing before."""

import math

import numpy as np

from common.metrics import LOSS_FLOOR
from interchange.backend import Arrays, Learner, Tasks
from interchange.meta.schedule import Schedule
from interchange.meta.tasks import TaskStream
from interchange.meta.workers import Workers

_ERRORS = 2.0  # standard errors by which the tuned ones must be ahead


def confirmed(
    learner: Learner, start: Arrays, best: Arrays, own: Tasks | None, workers: Workers
) -> tuple[bool, dict[str, float]]:
    """Whether ``best`` is ahead of ``start`` by the mean logarithm of the loss at the end, and by how much.

    Args:
        own: the caller's optimizees instead of the table's.
        workers: those that share the rollouts; each gets the same answer.

    Returns:
        The decision, and for the record ``tasks``, ``behind`` (mean difference of logarithms, negative where
        ``best`` is ahead) and its standard ``error``; where a rollout diverges, how many of ``best`` do
        instead, and the decision is whether none does.
    """
    config, schedule = learner.config, Schedule(learner.config)
    stream = TaskStream(learner, schedule, own)
    rolled = [
        (problem, steps, number)
        for problem in schedule.problems
        for steps in schedule.horizons
        for number in range(config.confirm)
    ]
    figures = np.zeros((2, len(rolled)))
    with workers.together():
        for row, weights in zip(figures, (start, best), strict=True):
            learner.put(weights)
            for place in workers.share(len(rolled)):
                problem, steps, number = rolled[place]
                task = stream.plain("confirmation", number, problem)
                row[place] = learner.mean_loss_at([task], steps)
    figures = workers.total(figures.ravel()).reshape(figures.shape)
    before, after = np.maximum(figures, LOSS_FLOOR)
    if not np.isfinite(figures).all():  # the one that always gets to the end
        record = {"tasks": after.size, "diverged": int((~np.isfinite(after)).sum())}
        return bool(np.isfinite(after).all()), record
    differences = np.log(after) - np.log(before)
    behind = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(differences.size) if differences.size > 1 else 0.0
    return behind < -_ERRORS * error, {"tasks": differences.size, "behind": behind, "error": error}
