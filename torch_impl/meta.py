"""The meta-training loop shared by ``train`` (teachers) and ``tune`` (rules)."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from common.cli import Progress
from common.errors import L2OError
from common.metrics import figure
from common.rng import rng
from common.runs import Interrupt, RunFolder
from common.storage import content_hash
from interchange.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from torch_impl import unroll
from torch_impl.augment import ConvexTerm, RandomScaling
from torch_impl.estimators import evolution
from torch_impl.problems import Task, table_task
from torch_impl.tensors import DTYPES, State, to_numpy, to_tensor

Tasks = Callable[[str, int], Task]
# Settings younger than some run folders: hashed only where they are used, so that old runs resume.
LATER_FIELDS = frozenset({"inputs", "scale", "weights", "random_scaling", "convex", "start", "dataset"})
MOST_SKIPPED = 0.25  # share of epochs that may diverge before the run is given up


class MetaTrainer:
    """Adam on a network's weights, by the meta-gradient of one unroll after another.

    Args:
        network: what is trained; ``network.weights`` are changed in place.
        config: ``TrainConfig`` or ``TuneConfig``.
        rates: weight name -> factor on the meta learning rate (1 if absent).
        tasks: ``tasks(stream, number)`` gives optimizee ``number`` of the stream ``meta_train`` or
            ``validation``, the same whenever asked; the configured problem's if None.
        folder: run folder for metrics and checkpoints; None keeps nothing.
    """

    def __init__(
        self,
        network: unroll.Network,
        config: Any,
        *,
        rates: dict[str, float] | None = None,
        tasks: Tasks | None = None,
        folder: RunFolder | None = None,
    ) -> None:
        self.plain_task = tasks or functools.partial(table_task, config)
        self.network, self.config, self.folder = network, config, folder
        self.dtype, self.device = DTYPES[config.dtype], torch.device(config.device)
        self.rates = rates or {}
        groups = [
            {"params": [w], "lr": config.lr * self.rates.get(name, 1.0)}
            for name, w in network.weights.items()
        ]
        self.base_rates = [group["lr"] for group in groups]
        self.adam = torch.optim.Adam(groups)
        self.epoch, self.updates, self.skipped = 0, 0, 0
        self.position: unroll.Position | None = None
        self.epoch_losses: list[float] = []
        self.first_score = self.best_score = math.inf  # validation before training, and the best since
        self.best = self._copy()
        self.history: list[dict[str, Any]] = []
        self._saved_at = time.monotonic()
        fields = dataclasses.asdict(config)
        for name in ("resume", "out", "quiet", "overwrite", "device", "data_dir", "checkpoint_seconds"):
            fields.pop(name, None)
        for field in dataclasses.fields(config):
            if field.name in LATER_FIELDS and fields[field.name] == field.default:
                del fields[field.name]
        self.config_hash = content_hash(fields)

    def task(self, stream: str, number: int) -> Task:
        """Optimizee ``number`` of a stream; those to train on are varied as the configuration says."""
        one, config = self.plain_task(stream, number), self.config
        if stream == "meta_train" and getattr(config, "random_scaling", 0.0):
            one = RandomScaling(one, config.random_scaling, config.seed, number)
        if stream == "meta_train" and getattr(config, "convex", False):
            one = ConvexTerm(one, config.seed, number)
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
            self.best = self._copy()
        self._save()

    def _epoch(self, interrupt: Interrupt | None) -> bool:
        """One epoch, from its start or from a checkpoint within; False if interrupted."""
        config = self.config
        if getattr(config, "estimator", "first") == "es":
            return self._evolve(interrupt)
        task = self.task("meta_train", self.epoch)
        position = self.position or unroll.start(task, self.network)
        while position.step < config.epoch_length:
            steps = min(config.unroll, config.epoch_length - position.step)
            end, losses, gradients, inputs = unroll.advance(task, self.network, position, steps)
            if not bool(torch.isfinite(losses).all() and torch.isfinite(gradients).all()):
                self.skipped += 1
                break
            grads = unroll.meta_gradient(
                self.network,
                position.state,
                inputs,
                unroll.cotangents(gradients, config.loss),
                self._coordinates(len(position.theta), position.step),
            )
            self._update(grads)
            self.epoch_losses += losses[:-1].tolist()
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
        grads, losses = evolution(
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

    def _coordinates(self, total: int, step: int) -> np.ndarray | None:
        share = getattr(self.config, "coordinates", 1.0)
        if share >= 1.0:
            return None
        generator = rng(self.config.seed, "coordinates", self.epoch, step)
        return generator.choice(total, max(1, round(share * total)), replace=False)

    def _update(self, grads: dict[str, torch.Tensor]) -> None:
        config = self.config
        one = getattr(config, "estimator", "first") == "es"
        per_epoch = 1 if one else -(-config.epoch_length // config.unroll)
        part = self.updates / max(1, config.epochs * per_epoch)
        factor = config.lr_decay + (1.0 - config.lr_decay) * 0.5 * (1.0 + math.cos(math.pi * min(part, 1.0)))
        for group, rate in zip(self.adam.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        if all(bool(torch.isfinite(g).all()) for g in grads.values()):
            for name, w in self.network.weights.items():
                w.grad = grads[name]
            self.adam.step()
            self.adam.zero_grad()
        self.updates += 1

    def _validate(self) -> float:
        """Mean figure at the end of an epoch over the validation tasks; the best weights are kept."""
        tasks = (self.task("validation", k) for k in range(self.config.validation_tasks))
        score = unroll.mean_figure(tasks, self.network, self.config.epoch_length)
        if score < self.best_score:
            self.best_score, self.best = score, self._copy()
        return score if math.isfinite(score) else math.inf

    def _copy(self) -> dict[str, np.ndarray]:
        return {name: to_numpy(w) for name, w in self.network.weights.items()}

    def _log(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        if self.folder is not None:
            self.folder.log(row)

    def _save(self) -> None:
        """One checkpoint that holds everything a resumed run needs (FORMATS.md section 6)."""
        self._saved_at = time.monotonic()
        if self.folder is None:
            return
        arrays = {f"phi/{n}": w for n, w in self._copy().items()}
        arrays |= {f"best/{n}": w for n, w in self.best.items()}
        count = 0
        for name, w in self.network.weights.items():
            if state := self.adam.state.get(w):
                arrays[f"meta_m/{name}"] = to_numpy(state["exp_avg"])
                arrays[f"meta_v/{name}"] = to_numpy(state["exp_avg_sq"])
                count = int(state["step"])
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
            at = self.position
            meta |= {"step": at.step, "t": at.state.t}
            arrays["theta"] = to_numpy(at.theta)
            arrays["gradient"] = to_numpy(at.gradient)
            arrays["loss"] = to_numpy(at.loss)
            arrays["epoch_losses"] = np.asarray(self.epoch_losses)
            arrays |= {f"state/{n}": to_numpy(a) for n, a in at.state.named().items()}
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

        def group(prefix: str) -> dict[str, np.ndarray]:
            return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}

        moments_m, moments_v = group("meta_m/"), group("meta_v/")
        for name, w in self.network.weights.items():
            w.copy_(to_tensor(arrays[f"phi/{name}"], w.dtype, w.device))
            if name in moments_m:
                self.adam.state[w] = {
                    "step": torch.tensor(float(meta["meta_count"])),
                    "exp_avg": to_tensor(moments_m[name], w.dtype, w.device),
                    "exp_avg_sq": to_tensor(moments_v[name], w.dtype, w.device),
                }
        self.best = group("best/")
        self.best_score = math.inf if meta["best_score"] is None else meta["best_score"]
        self.epoch, self.updates, self.skipped = meta["epoch"], meta["updates"], meta["skipped"]
        if meta["step"]:
            state = {k: to_tensor(v, self.dtype, self.device) for k, v in group("state/").items()}
            self.position = unroll.Position(
                meta["step"],
                to_tensor(arrays["theta"], self.dtype, self.device),
                State.from_named(meta["t"], state),
                to_tensor(arrays["loss"], self.dtype, self.device),
                to_tensor(arrays["gradient"], self.dtype, self.device),
            )
            self.epoch_losses = arrays["epoch_losses"].tolist()
        self.folder.truncate_metrics(lambda row: row["epoch"] < self.epoch)
        self.history = self.folder.read_metrics()
