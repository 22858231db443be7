"""Meta-gradients of one epoch after another, by the estimator the schedule names (MATH.md section 3)."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from common.data.coordinates import Subset, choose_subset
from common.errors import L2OError
from common.rng import rng
from common.run.runs import Interrupt
from interchange.backend import Learner, Position, Task
from interchange.meta.carried import pieces
from interchange.meta.evolution import (
    Persistent,
    Segments,
    evolution,
    segments_here,
    segments_in_processes,
)
from interchange.meta.schedule import EXPERTS, Schedule
from interchange.meta.sharing import mean_of_all, shared_out, told
from interchange.meta.state import TrainerState
from interchange.meta.tasks import TaskStream
from interchange.meta.workers import Workers

_SMALLEST = 1e-30  # what a problem's mean loss is at least where gradients are divided by it
# Estimators that unroll one optimizee after the other -> the learner's method.
_UNROLLS = {"first": "first_order", "second": "second_order", "forward": "forward"}


@dataclasses.dataclass(frozen=True)
class Update:
    """What one update of the weights is made of.

    Attributes:
        grads: weight name -> mean meta-gradient over the optimizees; empty where all of them diverged.
        losses: [steps], means over the optimizees; by evolution strategies those of the last rollout.
        diverged: number of optimizees that did just now.
    """

    grads: dict[str, Any]
    losses: list[float]
    diverged: int = 0


class MetaGradient:
    """The updates of every epoch.

    Args:
        rates: weight name -> size of a perturbation of 1, for evolution strategies (1 if absent).

    Raises:
        L2OError: a share of the coordinates is asked for of a network that sees tensors.
    """

    def __init__(
        self,
        learner: Learner,
        tasks: TaskStream,
        schedule: Schedule,
        workers: Workers,
        rates: dict[str, float],
    ) -> None:
        self._learner, self._config, self._tasks = learner, learner.config, tasks
        self._schedule, self._workers, self._rates = schedule, workers, rates
        if self._config.coordinates < 1.0 and learner.network.sees_tensors:
            raise L2OError(
                f"--coordinates: expected 1 for what sees tensors, got {self._config.coordinates:g}; leave "
                "it out, as an update depends on all coordinates of its tensor"
            )
        if schedule.estimator == "forward" and self._config.memory:
            self._check_memory()

    def _check_memory(self) -> None:
        """Refuse at once what the first unroll would refuse after a validation."""
        config, network = self._config, self._learner.network
        for number in range(len(self._schedule.problems)):
            task = self._tasks("meta_train", number)
            network.bind(task)
            itemsize = np.dtype(config.dtype).itemsize
            pieces(network, task.shapes, itemsize, config.memory, config.coordinates, config.tasks)

    def updates(
        self, state: TrainerState, length: int, interrupt: Interrupt | None
    ) -> Iterator[Update | None]:
        """Updates of the epoch under way, each to be made before the next is asked for.

        Ends with None where a signal stops the epoch before its end.

        Args:
            length: steps of the epoch.
        """
        expert = self._schedule.expert(state.epoch, state.stage_index)
        kind = "" if expert else self._schedule.estimator
        if kind == "es":
            return self._evolution(state, length, interrupt)
        if kind == "pes":
            return self._persistent(state, length, interrupt)
        return self._unrolls(state, length, interrupt)

    def _unrolls(
        self, state: TrainerState, length: int, interrupt: Interrupt | None
    ) -> Iterator[Update | None]:
        """Unrolls of all optimizees side by side, one update after each."""
        workers = self._workers
        count = self._config.tasks
        tasks = [self._tasks("meta_train", state.epoch * count + k) for k in state.numbers]
        state.positions = state.positions or [self._begin(task, state) for task in tasks]
        while state.step < length:
            steps = min(self._config.unroll, length - state.step)
            live = [k for k, position in enumerate(state.positions) if position is not None]
            found, total = self._advance(state, tasks, live, steps) if live else ([], {})
            grads = {name: g / len(found) if len(found) > 1 else g for name, g in total.items()}
            losses = np.mean(found or np.zeros((1, steps)), axis=0)
            diverged, stopped = len(live) - len(found), False
            if workers.size > 1:
                weights = self._learner.network.weights
                grads, losses, diverged, stopped = mean_of_all(
                    workers, weights, grads, losses, len(found), diverged, interrupt
                )
            yield Update(grads, losses.tolist(), diverged)
            if not grads:
                return
            if stopped or (workers.size == 1 and told(workers, interrupt)):
                yield None
                return

    def _begin(self, task: Task, state: TrainerState) -> Position:
        """The position of an optimizee at the start of the epoch."""
        expert = self._schedule.expert(state.epoch, state.stage_index)
        if expert:
            return self._learner.start_imitation(task, expert, EXPERTS[expert])
        return self._learner.start(task)

    def _advance(
        self, state: TrainerState, tasks: list[Task], live: list[int], steps: int
    ) -> tuple[list[list[float]], dict[str, Any]]:
        """An unroll of these optimizees: losses of those that did not diverge, and the sum of gradients."""
        expert = self._schedule.expert(state.epoch, state.stage_index)
        positions, chosen = [state.positions[k] for k in live], [tasks[k] for k in live]
        drawn = [
            self._coordinates(task, state.epoch, position.step, state.numbers[k])
            for k, task, position in zip(live, chosen, positions, strict=True)
        ]
        weigh = functools.partial(self._weight, bool(expert))
        batch = None
        if len(live) > 1 and not expert and self._schedule.estimator == "first":
            subset = None if drawn[0] is None else drawn
            batch = self._learner.first_order_batch(chosen, positions, steps, subset, weigh)
        if batch is not None:
            ends, found, total = batch
        else:
            ends, found, total = [], [], {}
            unroll = getattr(self._learner, "imitation" if expert else _UNROLLS[self._schedule.estimator])
            for task, *rest in zip(chosen, positions, [steps] * len(live), drawn, strict=True):
                self._learner.network.bind(task)
                end, losses, grads = unroll(task, *rest)
                ends.append(None if grads is None else end)
                if grads is not None:
                    found.append(losses)
                    weight = weigh(losses)
                    for name, g in grads.items():
                        g = g if weight == 1.0 else g * weight
                        total[name] = total[name] + g if name in total else g
        for k, end in zip(live, ends, strict=True):
            state.positions[k] = end
        return found, total

    def _weight(self, imitates: bool, losses: list[float]) -> float:
        """The factor on an optimizee's meta-gradient.

        Among several problems each is divided by its mean loss, which makes it that of the loss's logarithm,
        as validation sees it: without, the problem with the largest loss would be all that counts. Gradients
        of logarithms are that already.
        """
        if not self._schedule.several or imitates or self._config.loss == "log":
            return 1.0
        return 1.0 / max(float(np.mean(np.abs(losses))), _SMALLEST)

    def _coordinates(self, task: Task, epoch: int, step: int, lane: int) -> Subset | None:
        share = self._config.coordinates
        if share >= 1.0:
            return None
        step = 0 if self._schedule.estimator == "forward" else step  # whose tangents are of the same ones
        key = (epoch, step, lane) if lane else (epoch, step)
        sizes = [math.prod(shape) for shape in task.shapes]
        return choose_subset(sizes, share, rng(self._config.seed, "coordinates", *key))

    def _evolution(
        self, state: TrainerState, length: int, interrupt: Interrupt | None
    ) -> Iterator[Update | None]:
        """Evolution strategies: a few perturbations over the whole epoch, one update."""
        config, task = self._config, self._task_of_pair(state.epoch)
        grads, losses = evolution(
            self._segments(state.epoch, task),
            self._learner.weights(),
            length,
            self._rates,
            rng(config.seed, "evolution", state.epoch),
            config.pairs,
            config.sigma,
            log=self._schedule.several,
        )
        if told(self._workers, interrupt):
            yield None
            return
        yield Update(self._learner.tensors(grads), losses.tolist())

    def _persistent(
        self, state: TrainerState, length: int, interrupt: Interrupt | None
    ) -> Iterator[Update | None]:
        """Persistent evolution strategies: an update after each unroll."""
        config, task = self._config, functools.cache(self._task_of_pair(state.epoch))
        pairs = Persistent(
            self._segments(state.epoch, task),
            self._rates,
            config.sigma,
            config.pairs,
            rng(config.seed, "evolution", state.epoch),
            length,
            relative=self._schedule.several,
        )
        while state.step < length:
            steps = min(config.unroll, length - state.step)
            grads, losses = pairs.gradient(self._learner.weights(), steps)
            if told(self._workers, interrupt):
                yield None
                return
            yield Update(self._learner.tensors(grads), losses.tolist())

    def _task_of_pair(self, epoch: int) -> Callable[[int], Task]:
        """The optimizee of a pair of the epoch, by the pair's number."""
        first = epoch * self._config.pairs
        return lambda pair: self._tasks("meta_train", first + pair)

    def _segments(self, epoch: int, task: Callable[[int], Task]) -> Segments:
        """Where the halves of the epoch's pairs run."""
        segments = segments_here(self._learner, task)
        if self._config.jobs > 1:
            segments = segments_in_processes(self._learner, epoch * self._config.pairs, task)
        return shared_out(segments, self._workers) if self._workers.size > 1 else segments
