"""The loop of meta-training, of ``train`` (teachers) and ``tune`` (rules): epochs, records, checkpoints."""

import abc
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from common.data.coordinates import Subset, choose_subset
from common.errors import L2OError
from common.metrics import figure
from common.rng import rng
from common.run.cli import Progress
from common.run.runs import Interrupt, RunFolder
from interchange.backend import Network, Tasks
from interchange.meta.schedule import EXPERTS
from interchange.meta.sharing import mean_of_all, shared_out, told
from interchange.meta.state import LATER_FIELDS
from interchange.meta.validation import SMALLEST, Judging
from interchange.meta.workers import Workers

__all__ = ["LATER_FIELDS", "MetaTraining"]

MOST_SKIPPED = 0.25  # share of optimizees that may diverge before the run is given up


class MetaTraining(Judging):
    """A meta-training but for its tensors, which a backend's ``MetaTrainer`` adds.

    An epoch runs ``config.tasks`` optimizees side by side for the same number of steps; after each of their
    unrolls comes one update by the mean of their meta-gradients. Several workers share the optimizees out,
    sum the meta-gradients and make the same update each; an epoch that they are stopped in starts again.

    Args:
        network, config, rates, tasks, folder, workers: as for ``MetaTrainer``.

    Attributes:
        start, evolution, persistent, here, processes, imitate: the backend's own, of ``unroll``,
            ``estimators`` and ``imitation``.
    """

    start: Callable[..., Any]
    evolution: Callable[..., tuple[dict[str, Any], np.ndarray]]
    persistent: Callable[..., Any]
    here: Callable[..., Any]
    processes: Callable[..., Any]
    imitate: Callable[..., Any]

    def __init__(
        self,
        network: Network,
        config: Any,
        rates: dict[str, float] | None,
        tasks: Tasks | None,
        folder: RunFolder | None,
        workers: Workers | None = None,
    ) -> None:
        super().__init__(network, config, tasks, folder, workers)
        self.rates = rates or {}

    @abc.abstractmethod
    def _unroll(
        self, task: Any, position: Any, steps: int, coordinates: Subset | None
    ) -> tuple[Any, list[float], dict[str, Any] | None]:
        """The position after ``steps``, the losses before each, and the meta-gradient.

        The gradient is None where a loss or a gradient on the way is not finite; with ``coordinates`` it is
        the estimate from those.
        """

    def _together(
        self,
        tasks: list[Any],
        positions: list[Any],
        steps: int,
        coordinates: list[Subset] | None,
        weigh: Callable[[list[float]], float],
    ) -> tuple[list[Any], list[list[float]], dict[str, Any]] | None:
        """An unroll of several optimizees as one; None where these cannot be, and each takes ``_unroll``.

        Args:
            weigh: factor on a meta-gradient by the losses of its optimizee.

        Returns:
            Their positions, None of one that diverged; the losses of those that did not; the sum of their
            weighted meta-gradients, empty where there are none.
        """
        return None

    @abc.abstractmethod
    def _descend(self, grads: dict[str, Any], rates: dict[str, float]) -> None:
        """One step of Adam at a learning rate per weight; none where a gradient is not finite."""

    def run(self, *, label: str, quiet: bool, interrupt: Interrupt | None = None) -> bool:
        """Train from where the trainer stands to the last epoch, or to the end of the curriculum.

        Returns:
            False if a signal stopped it first (its checkpoint is written then).

        Raises:
            L2OError: more than a quarter of the optimizees diverged.
        """
        config = self.config
        with Progress(label, config.epochs, quiet=quiet, done=self.epoch) as progress:
            if self.epoch == 0 and not self.positions and config.validate_every:
                self._validate_start()
            while self.epoch < config.epochs and not (self.stage and self.stage.ended):
                started = time.monotonic()
                if not self._epoch(interrupt):
                    self._settle()
                    return False
                row = self._finish_epoch()
                row |= {"diverged": self.skipped, "seconds": round(time.monotonic() - started, 3)}
                self._log(row)
                shown = {"loss": row["loss"]}
                progress.advance(**shown | ({"best": self.best_score} if config.validate_every else {}))
                if self.skipped > 4 and self.skipped > MOST_SKIPPED * self.epoch * config.tasks:
                    self._settle()
                    what = "epochs" if config.tasks == 1 else "optimizees"
                    raise L2OError(
                        f"meta-training diverged in {self.skipped} of {self.epoch * config.tasks} {what}; "
                        f"lower --lr (now {config.lr:g}) or train on another problem first (--init)"
                    )
                if self._due and self._restarts(self.epoch - 1):
                    self._save()
        self._settle()
        return True

    def _finish_epoch(self) -> dict[str, Any]:
        """Count the epoch, validate where it is time; its row of the metrics."""
        config, plan, losses = self.config, self.schedule, np.asarray(self.epoch_losses)
        row: dict[str, Any] = {"epoch": self.epoch}
        row |= {"loss": figure(losses, len(losses)) if len(losses) else math.inf}
        if expert := plan.expert(self.epoch):
            row |= {"imitates": expert}
        if self.stage or plan.low < plan.high:
            row |= {"steps": self._length}
        if plan.averages(self.epoch):
            self._count()
        self.epoch += 1
        self.step, self.positions, self.epoch_losses = 0, [], []
        last = self.epoch == config.epochs
        if config.validate_every and (last or self.epoch % config.validate_every == 0):
            row |= self._validate()
        return row

    def _settle(self) -> None:
        """Leave with a checkpoint; without validation the newest weights, or their average, are the best."""
        if not self.config.validate_every:
            self.best = self._averaged() if self.counted else self._weights()
        self._save()

    @property
    def _length(self) -> int:
        """Steps of the epoch under way."""
        return self.stage.length if self.stage else self.schedule.length(self.epoch)

    def _epoch(self, interrupt: Interrupt | None) -> bool:
        """One epoch, from its start or from a checkpoint within; False if interrupted.

        One that no checkpoint can hold the middle of is undone then, and starts again.
        """
        mark = self._mark() if self._restarts(self.epoch) else None
        if mark and self._told(interrupt):
            return False
        expert = self.schedule.expert(self.epoch)
        kind = "" if expert else self.schedule.estimator
        run = {"es": self._evolve, "pes": self._persist}.get(kind, self._unrolls)
        if run(interrupt):
            return True
        if mark is not None:
            self._return_to(mark)
        return False

    def _unrolls(self, interrupt: Interrupt | None) -> bool:
        """An epoch of unrolls of all optimizees side by side, one update after each; False if interrupted."""
        config, length = self.config, self._length
        tasks = [self.task("meta_train", self.epoch * config.tasks + lane) for lane in self.lanes]
        self.positions = self.positions or [self._begin(task) for task in tasks]
        while self.step < length:
            steps = min(config.unroll, length - self.step)
            live = [k for k, at in enumerate(self.positions) if at is not None]
            found, total = self._together_or_not(tasks, live, steps) if live else ([], {})
            grads = {name: g / len(found) if len(found) > 1 else g for name, g in total.items()}
            losses = np.mean(found or np.zeros((1, steps)), axis=0)
            skipped, stopped = len(live) - len(found), False
            if self.workers.size > 1:
                grads, losses, skipped, stopped = mean_of_all(
                    self.workers, self.network.weights, grads, losses, len(found), skipped, interrupt
                )
            self.skipped += skipped
            if not grads:
                break
            self._update(grads)
            self.epoch_losses += losses.tolist()
            self.step += steps
            if stopped or (self.workers.size == 1 and self._told(interrupt)):
                return False
            if self._due and not self._restarts(self.epoch):
                self._save()
        return True

    def _restarts(self, epoch: int) -> bool:
        """Whether an interrupted epoch starts again: several workers keep no positions in checkpoints."""
        return self.workers.size > 1 or self.schedule.restarts(epoch)

    def _told(self, interrupt: Interrupt | None) -> bool:
        """Whether this worker, or any of several, was told to stop."""
        return told(self.workers, interrupt)

    def _begin(self, task: Any) -> Any:
        """The position of an optimizee at the start of the epoch."""
        expert = self.schedule.expert(self.epoch)
        if expert:
            return self.imitate(task, self.network, expert, EXPERTS[expert])
        return self.start(task, self.network)

    def _together_or_not(
        self, tasks: list[Any], live: list[int], steps: int
    ) -> tuple[list[list[float]], dict[str, Any]]:
        """An unroll of these optimizees: losses of those that did not diverge, and the sum of gradients."""
        here, chosen = [self.positions[k] for k in live], [tasks[k] for k in live]
        drawn = [
            self._coordinates(task, len(at.theta), at.step, self.lanes[k])
            for k, task, at in zip(live, chosen, here, strict=True)
        ]
        together = None
        if len(live) > 1 and not self.schedule.expert(self.epoch) and self.schedule.estimator == "first":
            subset = None if drawn[0] is None else drawn
            together = self._together(chosen, here, steps, subset, self._weight)
        if together is not None:
            ends, found, total = together
        else:
            ends, found, total = [], [], {}
            for part in zip(chosen, here, [steps] * len(live), drawn, strict=True):
                self.network.settle(part[0])
                end, losses, grads = self._unroll(*part)
                ends.append(None if grads is None else end)
                if grads is not None:
                    found.append(losses)
                    weight = self._weight(losses)
                    for name, g in grads.items():
                        g = g if weight == 1.0 else g * weight
                        total[name] = total[name] + g if name in total else g
        for k, end in zip(live, ends, strict=True):
            self.positions[k] = end
        return found, total

    def _weight(self, losses: list[float]) -> float:
        """The factor on an optimizee's meta-gradient.

        Among several problems each is divided by its mean loss, which makes it that of the loss's logarithm,
        as validation sees it: without, the problem with the largest loss would be all that counts.
        """
        if not self.schedule.several or self.schedule.expert(self.epoch):
            return 1.0
        return 1.0 / max(float(np.mean(np.abs(losses))), SMALLEST)

    def _evolve(self, interrupt: Interrupt | None) -> bool:
        """One epoch of evolution strategies: a few perturbations, one update; False if interrupted."""
        config = self.config
        grads, losses = self.evolution(
            self._of_pair,
            self.network,
            self._length,
            self.rates,
            rng(config.seed, "evolution", self.epoch),
            config.pairs,
            config.sigma,
            **self._evolving("log", self._of_pair),
        )
        if self._told(interrupt):
            return False
        self._update(grads)
        self.epoch_losses = losses.tolist()
        return True

    def _persist(self, interrupt: Interrupt | None) -> bool:
        """One epoch of persistent evolution strategies, an update after each unroll; False if interrupted."""
        config, length, step = self.config, self._length, 0
        generator = rng(config.seed, "evolution", self.epoch)
        pairs = self.persistent(
            self._of_pair,
            self.network,
            self.rates,
            config.sigma,
            config.pairs,
            generator,
            horizon=length,
            **self._evolving("relative", functools.cache(self._of_pair)),
        )
        while step < length:
            steps = min(config.unroll, length - step)
            grads, losses = pairs.advance(steps)
            if self._told(interrupt):
                return False
            self._update(grads)
            self.epoch_losses += losses.tolist()
            step += steps
        return True

    def _of_pair(self, pair: int) -> Any:
        return self.task("meta_train", self.epoch * self.config.pairs + pair)

    def _evolving(self, mixing: str, task: Callable[[int], Any]) -> dict[str, Any]:
        """Further arguments of the evolving estimators; ``mixing`` names the one that lets problems mix."""
        more: dict[str, Any] = {mixing: True} if self.schedule.several else {}
        segments = None
        if self.config.jobs > 1:
            first = self.epoch * self.config.pairs
            segments = self.processes(self.network, self.config, first, task)
        if self.workers.size > 1:
            segments = shared_out(segments or self.here(task, self.network), self.workers)
        return more if segments is None else more | {"segments": segments}

    def _coordinates(self, task: Any, total: int, step: int, lane: int) -> Subset | None:
        share = getattr(self.config, "coordinates", 1.0)
        if share >= 1.0:
            return None
        key = (self.epoch, step, lane) if lane else (self.epoch, step)  # as before there were lanes
        sizes = [math.prod(shape) for shape in getattr(task, "shapes", [(total,)])]
        return choose_subset(sizes, share, rng(self.config.seed, "coordinates", *key))

    def _update(self, grads: dict[str, Any]) -> None:
        """One step at the learning rate of the schedule."""
        factor = self.schedule.factor(self.updates, self.epoch)
        rates = {n: self.config.lr * self.rates.get(n, 1.0) * factor for n in self.network.weights}
        self._descend(grads, rates)
        self.updates += 1

    def _log(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        if self.folder is not None:
            self.folder.log(row)
