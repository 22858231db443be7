"""Cells: the single rollouts of a comparison, kept on disk one by one so that none is run twice.

A cell's file is named by the hash of everything that determines its result: optimizer and content of its
file, problem, data, learning rate, schedule, knob, seeds, steps, arithmetic, and the versions and code that
computed it. A file that is damaged, or of another configuration, counts as not there.
"""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data import datasets
from common.errors import L2OError
from common.metrics import FAILED
from common.run.runs import finite_or_none
from common.run.storage import atomic_write, canonical_json, content_hash, read_json
from common.tables.baselines import BASELINES
from common.tables.problems import Problem, problem_row
from interchange.evaluation.config import EvaluateConfig
from interchange.rollout import Rollout

if TYPE_CHECKING:
    from interchange.rule.source import Source

FORMAT, VERSION = "l2o-cell", "1.0.0"
_LIMIT = 256 << 20  # bytes of one file, some ten million steps
_DETERMINE = ("seed", "dtype", "device", "batch_size", "dataset", "split", "start_scale")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One rollout.

    Attributes:
        optimizer: text of its SPEC.
        stream: ``validation`` or ``test``; ``number`` is the seed's place in it.
        schedule: row of ``common.tables.schedules`` that the learning rate follows.
        knob: value of the optimizer's knob; None leaves it as it is.
        weight_decay: of the optimizer; None leaves it as it is.
    """

    optimizer: str
    problem: str
    lr: float
    stream: str
    number: int
    steps: int
    schedule: str = "constant"
    knob: float | None = None
    weight_decay: float | None = None


class Store:
    """The finished cells below one folder.

    Args:
        sources: SPEC -> what was loaded for it.
        created_by: the backend's name and versions: another one computes anew.
    """

    def __init__(
        self, folder: Path, config: EvaluateConfig, sources: "Mapping[str, Source]", created_by: str
    ) -> None:
        self.folder = folder
        given = {name: getattr(config, name) for name in _DETERMINE} | config.training.special
        if config.passes and not config.test_every:  # then looked at after each
            given["passes"] = config.passes
        files = {"data": _hash_of(config.dataset), "start": _hash_of(config.start, "checkpoint")}
        self._shared = given | files | {"created_by": created_by}
        self._optimizers = {text: _identity(source) for text, source in sources.items()}
        self._dataset, self._data_dir = config.dataset, config.data_dir
        self._problems: dict[str, str] = {}

    def clear(self) -> None:
        """Forget every cell."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def key(self, cell: Cell) -> dict[str, Any]:
        """Everything that determines the cell's result, JSON-ready."""
        if cell.problem not in self._problems:  # a row whose definition changed is another problem
            row = problem_row(cell.problem, self._dataset)
            self._problems[cell.problem] = content_hash([dataclasses.asdict(row), self._data_of(row)])
        own = dataclasses.asdict(cell) | {"optimizer": self._optimizers[cell.optimizer]}
        if cell.weight_decay is None:
            del own["weight_decay"]
        return self._shared | own | {"row": self._problems[cell.problem]}

    def _data_of(self, row: Problem) -> str:
        """Hash of the labels and of every hundredth image: other data of the same name are other cells."""
        if not row.dataset:
            return ""
        digest = hashlib.sha256()
        whole = datasets.load(row.dataset, self._data_dir)
        for images, labels in ((whole.x_train, whole.y_train), (whole.x_test, whole.y_test)):
            digest.update(labels.tobytes() + images[::100].tobytes())
        return digest.hexdigest()

    def path(self, cell: Cell) -> Path:
        """Where the cell's result is, or will be."""
        return self.folder / cell.problem / f"{content_hash(self.key(cell))}.json"

    def load(self, cell: Cell) -> Rollout | None:
        """What was kept of the cell; None where nothing was, or what is there is damaged."""
        path = self.path(cell)
        try:
            values = read_json(path, _LIMIT)
            if content_hash({k: v for k, v in values.items() if k != "sha256"}) != values["sha256"]:
                return None
            if (values["format"], values["key"]) != (FORMAT, _plain(self.key(cell))):
                return None
            accuracy, test_loss = (_number(values[name]) for name in ("accuracy", "test_loss"))
            losses = np.array(values["losses"], dtype=np.float64)
            rest = {"test_loss": test_loss, "seconds": _number(values["seconds"])}
            rest["curve"] = np.array(values.get("curve", []), dtype=np.float64).reshape(-1, 3)
            return Rollout(losses, values["outcome"], accuracy, **rest)
        except (L2OError, AttributeError, KeyError, TypeError, ValueError):
            return None

    def save(self, cell: Cell, rollout: Rollout) -> None:
        """Keep a finished cell; one that failed is not kept, so that it is tried again."""
        if rollout.outcome.startswith(FAILED):
            return
        values = {"format": FORMAT, "format_version": VERSION, "key": self.key(cell)}
        values |= {"outcome": rollout.outcome, "losses": rollout.losses}
        values |= {name: float(getattr(rollout, name)) for name in ("accuracy", "test_loss", "seconds")}
        if len(rollout.curve):
            values["curve"] = rollout.curve.tolist()
        values = _plain(finite_or_none(values))
        atomic_write(self.path(cell), canonical_json(values | {"sha256": content_hash(values)}))


class Memory(Store):
    """Finished cells of tasks that no hash stands for: nothing is kept beyond the evaluation."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._known: dict[Cell, Rollout] = {}

    def load(self, cell: Cell) -> Rollout | None:
        """What was run of the cell."""
        return self._known.get(cell)

    def save(self, cell: Cell, rollout: Rollout) -> None:
        """Keep a cell."""
        self._known[cell] = rollout


def code_of(*folders: Path) -> str:
    """Hash of the source files below folders: what other code computed is computed again."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".c", ".h")):
            digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def _identity(source: "Source") -> dict[str, Any]:
    """An optimizer by its content: a file that was moved is the same, one that was edited is not."""
    spec = source.spec
    package = BASELINES[spec.target].package if spec.kind == "baseline" else ""
    target, version = source.sha256 or spec.target, metadata.version(package) if package else ""
    return {"kind": spec.kind, "target": target, "options": spec.options, "package": version}


def _hash_of(path: str, suffix: str = "") -> str:
    """SHA-256 of the files a setting names; "" where it names none."""
    place = Path(path, suffix)
    if not path or not place.exists():
        return ""
    digest = hashlib.sha256()
    for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: lists for tuples and arrays."""
    return json.loads(canonical_json(values))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
