"""Where a meta-training stands between two updates, and its checkpoints (FORMATS.md section 6)."""

import dataclasses
import math
import time
from typing import Any

import numpy as np

from common.errors import L2OError
from common.run.runs import RunFolder
from common.run.storage import content_hash
from common.tables.curriculum import Stage
from interchange.backend import Arrays, Learner
from interchange.files.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from interchange.meta.config import MetaLoop
from interchange.meta.schedule import EVOLVING
from interchange.meta.workers import Alone, Workers

# Settings younger than some run folders: hashed only where they are used, so that old runs resume.
LATER_FIELDS = frozenset(
    {
        "inputs",
        "scale",
        "weights",
        "random_scaling",
        "convex",
        "start",
        "dataset",
        "horizon",
        "tasks",
        "average",
        "structure",
    }
    | {"curriculum", "imitation", "schedule", "weight_decay", "factors", "constants", "kinds"}
    | {"state_dtype", "memory", "confirm", "lengths", "stage_imitation", "per_tensor", "step_size"}
    | {"pre_tanh_scale"}
)
_ELSEWHERE = (
    "resume",
    "out",
    "quiet",
    "overwrite",
    "device",
    "data_dir",
    "checkpoint_seconds",
    "jobs",
    "tensorboard",
    "recipe",
    "dry_run",
)


class TrainerState:
    """Weights, moments, counters and positions.

    Args:
        learner: the backend's; it holds weights and moments.
        folder: for metrics and checkpoints; None keeps nothing.
        workers: that train together; this process alone if None.

    Attributes:
        workers: that train together; each has its share of the optimizees and all else alike.
        numbers: of this worker's optimizees among the epoch's.
        step: steps of the epoch under way that are done.
        positions: of the optimizees of ``numbers`` after the last unroll, the backend's own, each with
            ``step, theta``; None for one that diverged. Empty between epochs.
        best: weights with the lowest validation, by name; history: one row per epoch.
        stage: of the curriculum, None without one.
        summed: sums of the weights over ``counted`` epochs, float64, for their average.
    """

    def __init__(
        self, learner: Learner, folder: RunFolder | None = None, workers: Workers | None = None
    ) -> None:
        self.learner, self.config, self.folder = learner, learner.config, folder
        self.workers = workers or Alone()
        config = self.config
        self.numbers = self.workers.share(config.tasks)
        self.epoch, self.updates, self.skipped, self.step = 0, 0, 0, 0
        self.positions: list[Any] = []
        self.epoch_losses: list[float] = []
        self.first_score = self.best_score = math.inf  # validation before training, and the best since
        self.best = self.learner.weights()
        self.history: list[dict[str, Any]] = []
        self.stage = Stage(lengths=config.lengths) if config.curriculum else None
        self.summed: Arrays = {}
        self.counted = 0
        self._saved_at = time.monotonic()
        self.config_hash = settings_hash(config)

    def count(self) -> None:
        """Take the weights into the average."""
        weights = self.learner.weights().items()
        self.summed = {name: w.astype(np.float64) + self.summed.get(name, 0.0) for name, w in weights}
        self.counted += 1

    def averaged(self) -> Arrays:
        """Mean of the weights that were counted, in their own dtype."""
        return {name: (self.summed[name] / self.counted).astype(w.dtype) for name, w in self.best.items()}

    def mark(self) -> tuple[Any, ...]:
        """What an epoch that restarts goes back to."""
        begun = (self.step, [*self.positions], [*self.epoch_losses])  # from a checkpoint, where there is one
        return self.learner.weights(), self.learner.moments(), self.updates, self.skipped, begun

    def return_to(self, mark: tuple[Any, ...]) -> None:
        """Undo the epoch under way."""
        weights, moments, self.updates, self.skipped, begun = mark
        self.learner.put(weights)
        self.learner.set_moments(*moments)
        self.step, self.positions, self.epoch_losses = begun

    @property
    def stage_index(self) -> int:
        """Of the curriculum's stage; 0 without one."""
        return self.stage.index if self.stage else 0

    @property
    def _logarithms(self) -> list[str]:
        """Constants of a rule that are trained as logarithms; checkpoints used to hold them as they are."""
        return [name for name, form in getattr(self.learner.network, "forms", {}).items() if form == "log"]

    @property
    def due(self) -> bool:
        """It is time for a checkpoint."""
        return time.monotonic() - self._saved_at > self.config.checkpoint_seconds

    def log(self, row: dict[str, Any]) -> None:
        """A row of the metrics."""
        self.history.append(row)
        if self.folder is not None:
            self.folder.log(row)

    def save(self) -> None:
        """One checkpoint that holds everything a resumed run needs."""
        self._saved_at = time.monotonic()
        if self.folder is None or (self.positions and self.workers.size > 1):
            return  # within an epoch several workers stand at the checkpoint they came from, or at none
        first, second, count = self.learner.moments()
        groups = {"phi": self.learner.weights(), "best": self.best, "meta_m": first, "meta_v": second}
        groups |= {"average": self.summed}
        arrays = {f"{group}/{name}": w for group, named in groups.items() for name, w in named.items()}
        meta: dict[str, Any] = {
            "config_hash": self.config_hash,
            "epoch": self.epoch,
            "updates": self.updates,
            "meta_count": count,
            "skipped": self.skipped,
            "best_score": self.best_score if math.isfinite(self.best_score) else None,
            "first_score": self.first_score if math.isfinite(self.first_score) else None,
            "counted": self.counted,
            "step": 0,
        }
        if self._logarithms:
            meta |= {"logarithms": self._logarithms}
        if self.stage is not None:
            meta |= {"stage": self.stage.to_dict()}
        live = [k for k, position in enumerate(self.positions) if position is not None]
        for k in live:
            t, at = self.learner.position_arrays(self.positions[k])
            meta |= {"step": self.positions[k].step, "t": t, "live": live}
            arrays |= {_lane(k) + name: array for name, array in at.items()}
        if live:
            arrays |= {"epoch_losses": np.asarray(self.epoch_losses)}
        save_checkpoint(self.folder.path, arrays, meta)

    def restore(self) -> None:
        """Stand where the last checkpoint of the run folder stands; other settings are refused.

        A run stopped before its first checkpoint starts again.
        """
        meta, arrays = None, {}
        with self.workers.together():
            if self.folder is not None and has_checkpoint(self.folder.path):
                arrays, meta = load_checkpoint(self.folder.path)
                # A finished run may be given more epochs.
                ended = dataclasses.replace(self.config, epochs=max(meta["epoch"], 1))
                if meta["config_hash"] not in (self.config_hash, settings_hash(ended)):
                    raise L2OError(
                        f"{self.folder.path}: the checkpoint was written with other settings; resume with "
                        "the run's own config.json and no other flags (more --epochs only once it has "
                        "finished), or start anew with --init"
                    )
                if meta.get("logarithms", []) != self._logarithms:
                    raise L2OError(
                        f"{self.folder.path}: expected a checkpoint with the logarithms of "
                        f"{', '.join(self._logarithms) or 'nothing'}, got an older one; tune the rule anew"
                    )
        meta, arrays = self.workers.broadcast(meta, arrays)
        if meta is not None:
            self._stand(meta, arrays)
        if self.folder is not None:
            self.folder.truncate_metrics(lambda row: row["epoch"] < self.epoch)
            self.history = self.folder.read_metrics()

    def _stand(self, meta: dict[str, Any], arrays: Arrays) -> None:
        """Stand where a checkpoint of these numbers and arrays stands."""

        def group(prefix: str) -> Arrays:
            return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}

        self.learner.put(group("phi/"))
        self.learner.set_moments(group("meta_m/"), group("meta_v/"), meta["meta_count"])
        self.best = group("best/")
        self.best_score = math.inf if meta["best_score"] is None else meta["best_score"]
        first = meta.get("first_score")  # younger than some checkpoints
        self.first_score = math.inf if first is None else first
        self.epoch, self.updates, self.skipped = meta["epoch"], meta["updates"], meta["skipped"]
        self.summed, self.counted = group("average/"), meta.get("counted", 0)
        if self.stage is not None:
            self.stage = Stage.from_dict(meta["stage"], self.config.lengths)
        if meta["step"]:
            live, self.step = meta.get("live", [0]), meta["step"]
            self.positions = [
                self.learner.position_from(meta["step"], meta["t"], group(_lane(k))) if k in live else None
                for k in self.numbers
            ]
            self.epoch_losses = arrays["epoch_losses"].tolist()


def _lane(k: int) -> str:
    """Where the arrays of the epoch's optimizee ``k`` are; those of the first as in old checkpoints."""
    return f"task_{k:03d}/" if k else ""


def settings_hash(config: MetaLoop) -> str:
    """Hash of what two runs must have in common to go on with each other."""
    return content_hash(_hashed(config))


def _hashed(config: MetaLoop) -> dict[str, Any]:
    """The settings that count."""
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in _ELSEWHERE}
    for field in dataclasses.fields(config):
        if field.name in LATER_FIELDS and fields[field.name] == field.default:
            del fields[field.name]
    if "rule" in fields and fields["coordinates"] == 1.0:  # younger than some tunings, not than trainings
        del fields["coordinates"]
    if fields.get("estimator") not in EVOLVING:
        fields = {k: v for k, v in fields.items() if k not in ("pairs", "sigma")}
    if fields.get("estimator") == "first":
        del fields["estimator"]
    return fields
