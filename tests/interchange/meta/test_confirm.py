"""Tuned constants replace the start's only where they are ahead on optimizees that decided nothing before."""

import math

import numpy as np
import pytest

from interchange.meta.config import TuneConfig
from interchange.meta.confirm import confirmed
from interchange.meta.workers import Alone, Place

TASKS = 16
NOISE = np.random.default_rng(0).normal(size=TASKS)


class Losses:
    """A learner whose loss on optimizee k is given by the weights: a level, and how far noise moves it."""

    def __init__(self, confirm: int = TASKS) -> None:
        self.config = TuneConfig(rule="r.json", problem="quadratic", confirm=confirm)
        self.asked: list[tuple[str, int]] = []

    def put(self, weights: dict[str, np.ndarray]) -> None:
        self._weights = weights

    def table_task(self, config: TuneConfig, stream: str, number: int, *, problem: str) -> int:
        assert problem == "quadratic"
        self.asked.append((stream, number))
        return number

    def mean_loss_at(self, tasks: list[int], steps: int) -> float:
        (number,) = tasks
        assert steps == self.config.epoch_length
        level, noise, ends = (float(self._weights[name]) for name in ("level", "noise", "ends"))
        return math.exp(level + noise * (NOISE[number] - NOISE.mean())) if number < ends else math.inf


def weights(level: float, noise: float = 0.0, ends: int = TASKS) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in (("level", level), ("noise", noise), ("ends", ends))}


@pytest.mark.parametrize(
    ("level", "noise", "better"),
    [(-0.5, 0.3, True), (-0.01, 1.0, False), (0.0, 0.5, False), (0.2, 0.0, False)],
)
def test_the_mean_logarithm_must_be_lower_by_more_than_its_error(level, noise, better):
    found, record = confirmed(Losses(), weights(0.0), weights(level, noise), None, Alone())
    assert found == better and record["tasks"] == TASKS
    assert record["behind"] == pytest.approx(level)
    assert record["error"] == pytest.approx(noise * NOISE.std(ddof=1) / math.sqrt(TASKS))


def test_losses_that_are_as_good_as_zero_are_level():
    found, record = confirmed(Losses(), weights(-30.0), weights(-math.inf), None, Alone())
    assert not found and record["behind"] == record["error"] == 0.0


def test_both_run_on_the_same_optimizees_of_a_stream_of_their_own():
    learner = Losses(3)
    confirmed(learner, weights(0.0), weights(-1.0), None, Alone())
    assert learner.asked == 2 * [("confirmation", number) for number in range(3)]


def test_workers_share_the_rollouts():
    asked = []
    for rank in range(2):
        learner = Losses(5)
        confirmed(learner, weights(0.0), weights(-1.0), None, Alone(Place(rank, 2)))
        asked.append([number for _, number in learner.asked])
    assert asked == [2 * [0, 2, 4], 2 * [1, 3]]


def test_one_that_diverges_somewhere_is_never_taken_and_always_left():
    found, record = confirmed(Losses(), weights(0.0), weights(-9.0, ends=TASKS - 2), None, Alone())
    assert not found and record == {"tasks": TASKS, "diverged": 2}
    found, record = confirmed(Losses(), weights(0.0, ends=3), weights(5.0), None, Alone())
    assert found and record == {"tasks": TASKS, "diverged": 0}
