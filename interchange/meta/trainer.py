"""The loop of meta-training, of ``train`` (teachers) and ``tune`` (rules): epochs, records, checkpoints."""

import math
import time
from typing import Any

import numpy as np

from common.errors import L2OError
from common.metrics import loss_at
from common.run.cli import Progress
from common.run.runs import Interrupt, RunFolder
from interchange.backend import Learner, Tasks
from interchange.meta.gradient import MetaGradient
from interchange.meta.schedule import Schedule
from interchange.meta.sharing import told
from interchange.meta.state import TrainerState
from interchange.meta.tasks import TaskStream
from interchange.meta.validation import Validation
from interchange.meta.workers import Workers

MOST_SKIPPED = 0.25  # share of optimizees that may diverge before the run is given up


def make_trainer(
    learner: Learner,
    *,
    rates: dict[str, float] | None = None,
    tasks: Tasks | None = None,
    folder: RunFolder | None = None,
    workers: Workers | None = None,
) -> "Trainer":
    """A trainer of a backend's learner, as the learner's configuration says.

    Args:
        rates: weight name -> factor on the meta learning rate (1 if absent).
        tasks: ``tasks(stream, number)`` gives optimizee ``number`` of the stream ``meta_train`` or
            ``validation``, the same whenever asked; the configured problem's if None.
        folder: run folder for metrics and checkpoints; None keeps nothing.
        workers: that train together; this process alone if None.

    Raises:
        L2OError: settings that do not go together.
    """
    schedule = Schedule(learner.config, own_tasks=tasks is not None)
    stream = TaskStream(learner, schedule, tasks)
    state = TrainerState(learner, folder, workers)
    gradient = MetaGradient(learner, stream, schedule, state.workers, rates or {})
    return Trainer(state, Validation(learner, stream, schedule, state), schedule, gradient, stream, rates)


class Trainer:
    """A meta-training.

    An epoch runs ``config.tasks`` optimizees side by side for the same number of steps; after each of their
    unrolls comes one update by the mean of their meta-gradients. Several workers share the optimizees out,
    sum the meta-gradients and make the same update each; an epoch that they are stopped in starts again.

    Args:
        tasks: the optimizees that gradient and validation use.
        rates: weight name -> factor on the meta learning rate (1 if absent).
    """

    def __init__(
        self,
        state: TrainerState,
        validation: Validation,
        schedule: Schedule,
        gradient: MetaGradient,
        tasks: TaskStream,
        rates: dict[str, float] | None = None,
    ) -> None:
        self.state, self.validation, self.schedule, self.gradient = state, validation, schedule, gradient
        self.tasks, self.rates = tasks, rates or {}
        self.learner, self.config = state.learner, state.config

    def run(self, *, label: str, quiet: bool, interrupt: Interrupt | None = None) -> bool:
        """Train from where the state stands to the last epoch, or to the end of the curriculum.

        Returns:
            False if a signal stopped it first (its checkpoint is written then).

        Raises:
            L2OError: more than a quarter of the optimizees diverged (by evolution strategies none does).
        """
        config, state = self.config, self.state
        with Progress(label, config.epochs, quiet=quiet, done=state.epoch) as progress:
            if state.epoch == 0 and not state.positions and config.validate_every:
                self.validation.begin()
            while state.epoch < config.epochs and not (state.stage and state.stage.ended):
                started = time.monotonic()
                if not self._epoch(interrupt):
                    self._leave()
                    return False
                row = self._finish_epoch()
                row |= {"diverged": state.skipped, "seconds": round(time.monotonic() - started, 3)}
                state.log(row)
                shown = {"loss": row["loss"]}
                progress.advance(**shown | ({"best": state.best_score} if config.validate_every else {}))
                if state.skipped > 4 and state.skipped > MOST_SKIPPED * state.epoch * config.tasks:
                    self._leave()
                    what = "epochs" if config.tasks == 1 else "optimizees"
                    raise L2OError(
                        f"meta-training diverged in {state.skipped} of {state.epoch * config.tasks} {what}; "
                        f"lower --lr (now {config.lr:g}) or train on another problem first (--init)"
                    )
                if state.due and self._restarts(state.epoch - 1):
                    state.save()
        self._leave()
        return True

    def _epoch(self, interrupt: Interrupt | None) -> bool:
        """One epoch, from its start or from a checkpoint within; False if interrupted.

        One that no checkpoint can hold the middle of is undone then, and starts again.
        """
        state = self.state
        restarts = self._restarts(state.epoch)
        mark = state.mark() if restarts else None
        if mark and told(state.workers, interrupt):
            return False
        for update in self.gradient.updates(state, self._length, interrupt):
            if update is None:
                if mark is not None:
                    state.return_to(mark)
                return False
            state.skipped += update.diverged
            if not update.grads:
                break
            self._update(update.grads)
            state.epoch_losses += update.losses
            state.step += len(update.losses)
            if state.due and not restarts:
                state.save()
        return True

    def _finish_epoch(self) -> dict[str, Any]:
        """Count the epoch, validate where it is time; its row of the metrics."""
        config, schedule, state = self.config, self.schedule, self.state
        losses = np.asarray(state.epoch_losses)
        row: dict[str, Any] = {"epoch": state.epoch}
        row |= {"loss": loss_at(losses, len(losses)) if len(losses) else math.inf}
        if expert := schedule.expert(state.epoch, state.stage_index):
            row |= {"imitates": expert}
        if state.stage or schedule.low < schedule.high:
            row |= {"steps": self._length}
        if schedule.averages(state.epoch):
            state.count()
        state.epoch += 1
        state.step, state.positions, state.epoch_losses = 0, [], []
        last = state.epoch == config.epochs
        if config.validate_every and (last or state.epoch % config.validate_every == 0):
            row |= self.validation.run()
        return row

    def _leave(self) -> None:
        """Leave with a checkpoint; without validation the newest weights, or their average, are the best."""
        state = self.state
        if not self.config.validate_every:
            state.best = state.averaged() if state.counted else self.learner.weights()
        state.save()

    @property
    def _length(self) -> int:
        """Steps of the epoch under way."""
        stage = self.state.stage
        return stage.length if stage else self.schedule.length(self.state.epoch)

    def _restarts(self, epoch: int) -> bool:
        """Whether an interrupted epoch starts again: several workers keep no positions in checkpoints."""
        return self.state.workers.size > 1 or self.schedule.restarts(epoch, self.state.stage_index)

    def _update(self, grads: dict[str, Any]) -> None:
        """One step at the learning rate of the schedule."""
        factor = self.schedule.factor(self.state.updates, self.state.epoch)
        weights = self.learner.network.weights
        rates = {name: self.config.lr * self.rates.get(name, 1.0) * factor for name in weights}
        self.learner.descend(grads, rates)
        self.state.updates += 1
