"""The loop of meta-training, of ``train`` (teachers) and ``tune`` (rules): epochs, records, checkpoints."""

import abc
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from common.cli import Progress
from common.errors import L2OError
from common.metrics import figure
from common.rng import rng
from common.runs import Interrupt, RunFolder
from common.storage import content_hash
from interchange.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from interchange.commands.backend import Arrays, Network, Tasks

# Settings younger than some run folders: hashed only where they are used, so that old runs resume.
LATER_FIELDS = frozenset({"inputs", "scale", "weights", "random_scaling", "convex", "start", "dataset"})
MOST_SKIPPED = 0.25  # share of epochs that may diverge before the run is given up
_ELSEWHERE = ("resume", "out", "quiet", "overwrite", "device", "data_dir", "checkpoint_seconds")


class MetaTraining(abc.ABC):
    """A meta-training but for its tensors, which a backend's ``MetaTrainer`` adds.

    Args:
        network, config, rates, tasks, folder: as for ``MetaTrainer``, which fills in ``tasks``.

    Attributes:
        start, mean_figure, evolution, random_scaling, convex_term: the backend's own, of ``unroll``,
            ``estimators`` and ``augment``.
        position: of the epoch under way after its last unroll, the backend's own; it has ``step, theta``.
        best: weights with the lowest validation, by name; history: one row per epoch.
    """

    start: Callable[..., Any]
    mean_figure: Callable[..., float]
    evolution: Callable[..., tuple[dict[str, Any], np.ndarray]]
    random_scaling: Callable[..., Any]
    convex_term: Callable[..., Any]

    def __init__(
        self,
        network: Network,
        config: Any,
        rates: dict[str, float] | None,
        tasks: Tasks,
        folder: RunFolder | None,
    ) -> None:
        self.network, self.config, self.folder = network, config, folder
        self.plain_task, self.rates = tasks, rates or {}
        self.epoch, self.updates, self.skipped = 0, 0, 0
        self.position: Any = None
        self.epoch_losses: list[float] = []
        self.first_score = self.best_score = math.inf  # validation before training, and the best since
        self.best = self._weights()
        self.history: list[dict[str, Any]] = []
        self._saved_at = time.monotonic()
        fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in _ELSEWHERE}
        for field in dataclasses.fields(config):
            if field.name in LATER_FIELDS and fields[field.name] == field.default:
                del fields[field.name]
        self.config_hash = content_hash(fields)

    @abc.abstractmethod
    def _weights(self) -> Arrays:
        """A copy of the network's weights."""

    @abc.abstractmethod
    def _unroll(
        self, task: Any, position: Any, steps: int, coordinates: np.ndarray | None
    ) -> tuple[Any, list[float], dict[str, Any] | None]:
        """The position after ``steps``, the losses before each, and the meta-gradient.

        The gradient is None where a loss or a gradient on the way is not finite; ``coordinates`` as for
        ``unroll.meta_gradient``.
        """

    @abc.abstractmethod
    def _descend(self, grads: dict[str, Any], rates: dict[str, float]) -> None:
        """One step of Adam at a learning rate per weight; none where a gradient is not finite."""

    @abc.abstractmethod
    def _moments(self) -> tuple[Arrays, Arrays, int]:
        """Adam's first and second moments by weight, and its number of steps; empty before the first."""

    @abc.abstractmethod
    def _set(self, weights: Arrays, first: Arrays, second: Arrays, count: int) -> None:
        """Put the network and Adam where ``_weights`` and ``_moments`` found them."""

    @abc.abstractmethod
    def _position_arrays(self) -> tuple[int, Arrays]:
        """The position's t, and its arrays: theta, gradient, loss, and ``state/<name>``."""

    @abc.abstractmethod
    def _position_from(self, step: int, t: int, arrays: Arrays) -> Any:
        """The inverse of ``_position_arrays``; there may be other arrays among them."""

    def task(self, stream: str, number: int) -> Any:
        """Optimizee ``number`` of a stream; those to train on are varied as the configuration says."""
        one, config = self.plain_task(stream, number), self.config
        if stream == "meta_train" and getattr(config, "random_scaling", 0.0):
            one = self.random_scaling(one, config.random_scaling, config.seed, number)
        if stream == "meta_train" and getattr(config, "convex", False):
            one = self.convex_term(one, config.seed, number)
        return one

    def run(self, *, label: str, quiet: bool, interrupt: Interrupt | None = None) -> bool:
        """Train from where the trainer stands to the last epoch.

        Returns:
            False if a signal stopped it first (its checkpoint is written then).

        Raises:
            L2OError: more than a quarter of the epochs diverged.
        """
        config = self.config
        with Progress(label, config.epochs, quiet=quiet, done=self.epoch) as progress:
            if self.epoch == 0 and self.position is None and config.validate_every:
                self.first_score = self._validate()
            while self.epoch < config.epochs:
                started = time.monotonic()
                if not self._epoch(interrupt):
                    self._settle()
                    return False
                losses = np.asarray(self.epoch_losses)
                loss = figure(losses, len(losses)) if len(losses) else math.inf
                row: dict[str, Any] = {"epoch": self.epoch, "loss": loss}
                self.epoch += 1
                self.position, self.epoch_losses = None, []
                last = self.epoch == config.epochs
                if config.validate_every and (last or self.epoch % config.validate_every == 0):
                    row["validation"] = self._validate()
                row |= {"diverged": self.skipped, "seconds": round(time.monotonic() - started, 3)}
                self._log(row)
                shown = {"loss": loss} | ({"best": self.best_score} if config.validate_every else {})
                progress.advance(**shown)
                if self.skipped > 4 and self.skipped > MOST_SKIPPED * self.epoch:
                    self._settle()
                    raise L2OError(
                        f"meta-training diverged in {self.skipped} of {self.epoch} epochs; lower --lr (now "
                        f"{config.lr:g}) or train on another problem first (--init)"
                    )
        self._settle()
        return True

    def _settle(self) -> None:
        """Leave with a checkpoint; without validation the newest weights count as the best."""
        if not self.config.validate_every:
            self.best = self._weights()
        self._save()

    def _epoch(self, interrupt: Interrupt | None) -> bool:
        """One epoch, from its start or from a checkpoint within; False if interrupted."""
        config = self.config
        if self._by_evolution:
            return self._evolve(interrupt)
        task = self.task("meta_train", self.epoch)
        position = self.position or self.start(task, self.network)
        while position.step < config.epoch_length:
            steps = min(config.unroll, config.epoch_length - position.step)
            coordinates = self._coordinates(len(position.theta), position.step)
            end, losses, grads = self._unroll(task, position, steps, coordinates)
            if grads is None:
                self.skipped += 1
                break
            self._update(grads)
            self.epoch_losses += losses
            position = self.position = end
            due = time.monotonic() - self._saved_at > getattr(config, "checkpoint_seconds", math.inf)
            if interrupt is not None and interrupt.requested:
                return False
            if due:
                self._save()
        return True

    def _evolve(self, interrupt: Interrupt | None) -> bool:
        """One epoch of evolution strategies: a few perturbations, one update; False if interrupted."""
        config = self.config
        grads, losses = self.evolution(
            lambda pair: self.task("meta_train", self.epoch * config.pairs + pair),
            self.network,
            config.epoch_length,
            self.rates,
            rng(config.seed, "evolution", self.epoch),
            config.pairs,
            config.sigma,
        )
        self._update(grads)
        self.epoch_losses = losses.tolist()
        return interrupt is None or not interrupt.requested

    @property
    def _by_evolution(self) -> bool:
        return getattr(self.config, "estimator", "first") == "es"

    def _coordinates(self, total: int, step: int) -> np.ndarray | None:
        share = getattr(self.config, "coordinates", 1.0)
        if share >= 1.0:
            return None
        generator = rng(self.config.seed, "coordinates", self.epoch, step)
        return generator.choice(total, max(1, round(share * total)), replace=False)

    def _update(self, grads: dict[str, Any]) -> None:
        """One step at the learning rate of the schedule."""
        config = self.config
        per_epoch = 1 if self._by_evolution else -(-config.epoch_length // config.unroll)
        part = self.updates / max(1, config.epochs * per_epoch)
        factor = config.lr_decay + (1.0 - config.lr_decay) * 0.5 * (1.0 + math.cos(math.pi * min(part, 1.0)))
        rates = {name: config.lr * self.rates.get(name, 1.0) * factor for name in self.network.weights}
        self._descend(grads, rates)
        self.updates += 1

    def _validate(self) -> float:
        """Mean figure at the end of an epoch over the validation tasks; the best weights are kept."""
        tasks = (self.task("validation", k) for k in range(self.config.validation_tasks))
        score = self.mean_figure(tasks, self.network, self.config.epoch_length)
        if score < self.best_score:
            self.best_score, self.best = score, self._weights()
        return score if math.isfinite(score) else math.inf

    def _log(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        if self.folder is not None:
            self.folder.log(row)

    def _save(self) -> None:
        """One checkpoint that holds everything a resumed run needs (FORMATS.md section 6)."""
        self._saved_at = time.monotonic()
        if self.folder is None:
            return
        first, second, count = self._moments()
        groups = {"phi": self._weights(), "best": self.best, "meta_m": first, "meta_v": second}
        arrays = {f"{group}/{name}": w for group, named in groups.items() for name, w in named.items()}
        meta: dict[str, Any] = {
            "config_hash": self.config_hash,
            "epoch": self.epoch,
            "updates": self.updates,
            "meta_count": count,
            "skipped": self.skipped,
            "best_score": self.best_score if math.isfinite(self.best_score) else None,
            "step": 0,
        }
        if self.position is not None:
            t, at = self._position_arrays()
            meta |= {"step": self.position.step, "t": t}
            arrays |= at | {"epoch_losses": np.asarray(self.epoch_losses)}
        save_checkpoint(self.folder.path, arrays, meta)

    def restore(self) -> None:
        """Stand where the last checkpoint of the run folder stands; other settings are refused.

        A run stopped before its first checkpoint starts again.
        """
        if not has_checkpoint(self.folder.path):
            self.folder.truncate_metrics(lambda row: False)
            return
        arrays, meta = load_checkpoint(self.folder.path)
        if meta["config_hash"] != self.config_hash:
            raise L2OError(
                f"{self.folder.path}: the checkpoint was written with other settings; resume with the run's "
                "own config.json and no other flags, or start anew with --init"
            )

        def group(prefix: str) -> Arrays:
            return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}

        self._set(group("phi/"), group("meta_m/"), group("meta_v/"), meta["meta_count"])
        self.best = group("best/")
        self.best_score = math.inf if meta["best_score"] is None else meta["best_score"]
        self.epoch, self.updates, self.skipped = meta["epoch"], meta["updates"], meta["skipped"]
        if meta["step"]:
            self.position = self._position_from(meta["step"], meta["t"], arrays)
            self.epoch_losses = arrays["epoch_losses"].tolist()
        self.folder.truncate_metrics(lambda row: row["epoch"] < self.epoch)
        self.history = self.folder.read_metrics()
