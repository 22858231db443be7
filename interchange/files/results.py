"""Results of an evaluation, format ``l2o-evaluation``, with the summary as CSV next to it."""

import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import L2OError
from common.metrics import SummaryRow, summarise
from common.run.places import inside
from common.run.storage import atomic_write, canonical_json, loads_json
from common.training import NO_CURVE
from interchange.evaluation.profiles import Compared, Standing, compare
from interchange.files.hdf5 import read_hdf5, write_hdf5
from interchange.files.reader import Tree
from interchange.files.schema import EVALUATION, validate

_COLUMNS = (
    "optimizer", "problem", "horizon", "mean", "low", "high", "seeds", "diverged", "lr", "schedule",
    "knob", "ms_per_step", "floats_per_parameter", "trials", "test_loss", "accuracy", "trained_on",
)  # fmt: skip
_BESIDE = (
    "best_baseline", "ratio", "ratio_low", "ratio_high", "target", "steps_to_target", "seconds_to_target",
)  # fmt: skip
_ATTRIBUTES = (
    "optimizer", "problem", "seed", "split", "accuracy", "test_loss", "ms_per_step", "floats_per_parameter",
    "seconds", "outcome", "trials", "horizon", "trained_on",
)  # fmt: skip
_FLOATS = ("accuracy", "test_loss", "ms_per_step", "floats_per_parameter", "seconds")


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationRow:
    """One optimizer on one problem from one seed.

    Attributes:
        optimizer: its spec, e.g. ``adam:lr=0.01``, ``teacher:runs/rp``, ``rule:best.json``.
        split: data the losses were taken on: ``meta_train``, ``evaluation`` or ``test``.
        losses: f8 [step], mini-batch loss before each step's update.
        accuracy, test_loss: on held-out data at the end; nan where the problem has none, or it diverged.
        ms_per_step: milliseconds.
        floats_per_parameter: floats of optimizer state per optimized parameter.
        seconds: of wall clock, of the whole run.
        outcome: ``ok``, ``diverged``, or one line saying what happened.
        settings: tuned settings, JSON-ready; ``lr`` among them is shown in the summary.
        trials: settings tried when tuning.
        horizon: the number of steps the settings were tuned for; 0: any.
        trained_on: a suite's problem that meta-training may have used.
        curve: f8 [look, 3], step, test loss and accuracy along the way; nan where the problem has none.
    """

    optimizer: str
    problem: str
    seed: int
    losses: np.ndarray
    split: str = "evaluation"
    accuracy: float = float("nan")
    ms_per_step: float = float("nan")
    floats_per_parameter: float = float("nan")
    outcome: str = "ok"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    trials: int = 0
    horizon: int = 0
    test_loss: float = float("nan")
    seconds: float = float("nan")
    trained_on: bool = False
    curve: np.ndarray = dataclasses.field(default_factory=NO_CURVE.copy)

    def __repr__(self) -> str:
        last = f"{self.losses[-1]:.4g}" if len(self.losses) else "none"
        return (
            f"EvaluationRow({self.optimizer} on {self.problem}, seed {self.seed}, {len(self.losses)} steps, "
            f"last loss {last}, {self.outcome})"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """All rows of an evaluation, in the order given, and what it was run with."""

    rows: tuple[EvaluationRow, ...]
    config: dict[str, Any]
    created_by: str = ""
    sha256: str = ""


def save_evaluation(
    path: str | os.PathLike[str],
    rows: Sequence[EvaluationRow],
    config: dict[str, Any],
    created_by: str = "",
    horizons: Sequence[int] = (),
) -> str:
    """Write the rows, and ``summary.csv`` beside them; the HDF5 file's SHA-256.

    Args:
        horizons: steps at which the summary reads the losses; each problem's longest run if empty.
    """
    root = {"created_by": created_by, "config_json": canonical_json(config)}
    tree = Tree(attributes={"": root})
    for index, row in enumerate(rows):
        folder = f"rows/{index:06d}"
        tree.attributes[folder] = {name: getattr(row, name) for name in _ATTRIBUTES}
        tree.attributes[folder]["settings_json"] = canonical_json(row.settings)
        tree.arrays[f"{folder}/losses"] = np.asarray(row.losses, np.float64)
        if len(row.curve):
            tree.arrays[f"{folder}/curve"] = np.asarray(row.curve, np.float64)
    _take(tree, path)
    digest = write_hdf5(path, tree, EVALUATION.format, EVALUATION.version)
    table = compare(_summary(rows, horizons), rows)
    atomic_write(Path(path).with_name("summary.csv"), summary_csv(table))
    return digest


def load_evaluation(path: str | os.PathLike[str]) -> Evaluation:
    """Read what ``save_evaluation`` wrote, also in a folder; ``L2OError`` if damaged or something else."""
    path = inside(path, "an evaluation", "evaluation.h5")
    return evaluation_from_tree(read_hdf5(path, EVALUATION.format, EVALUATION.version), path)


def evaluation_from_tree(tree: Tree, path: str | os.PathLike[str]) -> Evaluation:
    """The evaluation in a tree that ``read_hdf5`` returned; ``path`` is for messages."""
    return _take(tree, path)


def _summary(rows: Sequence[EvaluationRow], horizons: Sequence[int]) -> list[SummaryRow]:
    table = []
    for problem in sorted({row.problem for row in rows}):
        own = [row for row in rows if row.problem == problem]
        # A diverged run is shorter than the others and still counts at their horizon.
        table += summarise(own, horizons or (max(len(row.losses) for row in own),))
    return table


def summary_csv(table: Sequence[Compared]) -> str:
    """The summary as CSV: one line per optimizer, problem and horizon; empty where there is no value."""
    head = ["loss_mean" if name == "mean" else name for name in _COLUMNS]
    return _csv(
        [*head, *_BESIDE],
        (
            [
                *(getattr(one.row, name) for name in _COLUMNS),
                *(one.best, one.ratio.value, one.ratio.low, one.ratio.high),
                *(one.target, one.steps, one.seconds),
            ]
            for one in table
        ),
    )


def standings_csv(groups: Mapping[str, Sequence[Standing]]) -> str:
    """Standings as CSV: one line per group of problems and optimizer."""
    names = list(dict.fromkeys(name for rows in groups.values() for row in rows for name in row.against))
    columns = ("optimizer", "problems", "ahead", "close", "surely", "mean", "score")
    return _csv(
        ["group", *columns, *(f"ahead_of_{name}" for name in names)],
        (
            [group, *(getattr(row, name) for name in columns), *(row.against.get(n) for n in names)]
            for group, rows in groups.items()
            for row in rows
        ),
    )


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return repr(value) if isinstance(value, float) else value


def _take(tree: Tree, path: Any) -> Evaluation:
    validate(tree, EVALUATION, path)
    rows = []
    for name in tree.children("rows"):
        attributes = tree.attributes[f"rows/{name}"]
        settings = loads_json(attributes["settings_json"], f"{path}: /rows/{name}: settings_json")
        if not isinstance(settings, dict):
            raise L2OError(f"{path}: /rows/{name}: settings_json: expected an object; evaluate again")
        losses = tree.arrays[f"rows/{name}/losses"].astype(np.float64, copy=False)
        values = {key: attributes[key] for key in _ATTRIBUTES if key in attributes}
        values |= {key: float(values[key]) for key in _FLOATS if key in values}
        curve = tree.arrays.get(f"rows/{name}/curve", NO_CURVE).astype(np.float64)
        if curve.shape[1] != 3:
            raise L2OError(
                f"{path}: /rows/{name}/curve: expected step, test loss and accuracy, got {curve.shape[1]} "
                "values a look; evaluate again"
            )
        rows.append(EvaluationRow(losses=losses, settings=settings, curve=curve, **values))
    root = tree.attributes[""]
    config = loads_json(root["config_json"], f"{path}: config_json")
    return Evaluation(tuple(rows), config, root["created_by"], tree.sha256)
