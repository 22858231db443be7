"""Trajectories, format ``l2o-trajectories``: what a teacher, rule or baseline saw and did, run by run."""

import dataclasses
import math
import os
from typing import Any

import numpy as np

from common.errors import L2OError
from common.run.places import inside
from common.run.storage import canonical_json, check_name, loads_json
from interchange.files.hdf5 import BUDGET, read_hdf5, write_hdf5
from interchange.files.reader import Tree
from interchange.files.schema import BEFORE_TENSORS, TRAJECTORIES, validate
from interchange.files.whole import shapes_from, views_from, views_to
from interchange.language.view import View

FILE_NAME = "trajectories.h5"
SPLITS = ("train", "valid", "test")
_ATTRIBUTES = (
    "problem", "problem_json", "source_kind", "source_json", "source_sha256", "seed", "init_seed",
    "num_steps", "scale", "diverged", "outcome",
)  # fmt: skip
_OPTIONAL = ("theta", "weight", "lr")
_ARRAYS = {"param_index": "coord/param_index", "flat_index": "coord/flat_index"}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One optimization, seen at some coordinates; ``y`` at a step belongs to ``x`` and ``g`` of that step.

    Attributes:
        name: letters, digits, ``.``, ``_`` and ``-``; ``000000`` and so on by convention.
        problem, problem_json: name and row of the optimizee.
        source_kind: who optimized: ``teacher``, ``rule``, ``baseline`` or ``user``.
        source_json, source_sha256: its row, and the hash of its file ("" where there is none).
        seed, init_seed: seed of the task and of the initial values.
        num_steps: steps asked for; fewer are recorded where the run diverged.
        scale: y = u / scale, and theta += lr * u.
        outcome: one line, e.g. ``ok`` or why it ended early.
        x: f4 or f8 [step, coordinate, feature], features before the network.
        g: f4 or f8 [step, coordinate], raw gradient.
        y: f4 or f8 [step, coordinate], output before lr.
        loss: f8 [step].
        step: i8 [step], contiguous from 1.
        param_index, flat_index: i4 [coordinate], which tensor and which element in canonical layout.
        params_names, params_shapes: the optimizee's tensors.
        theta, weight, lr: f4 or f8 [step, coordinate], parameter value before the step, sampling weight and
            learning rate, where recorded.
        params_views: matrix views of the tensors, where those were recorded whole (interchange.files.whole).
    """

    name: str
    problem: str
    problem_json: str
    source_kind: str
    source_json: str
    source_sha256: str
    seed: int
    init_seed: int
    num_steps: int
    scale: float
    diverged: bool
    outcome: str
    x: np.ndarray
    g: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    step: np.ndarray
    param_index: np.ndarray
    flat_index: np.ndarray
    params_names: tuple[str, ...]
    params_shapes: tuple[tuple[int, ...], ...]
    theta: np.ndarray | None = None
    weight: np.ndarray | None = None
    lr: np.ndarray | None = None
    params_views: tuple[View, ...] | None = None

    def __repr__(self) -> str:
        steps, coordinates = self.y.shape
        return (
            f"Run({self.name}: {self.source_kind} on {self.problem}, seed {self.seed}, {steps} steps x "
            f"{coordinates} coordinates x {self.x.shape[-1]} features, {self.x.dtype}, {self.outcome})"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """A table instead of runs: independent rows, without steps.

    Attributes:
        x: f4 or f8 [row, column]; the columns are the features.
        y: f4 or f8 [row], output before lr.
        column_scale: f8 [column], what each column was multiplied by when it was stored, 1 for as measured.
        scale: y = u / scale, and theta += lr * u.
    """

    x: np.ndarray
    y: np.ndarray
    column_scale: np.ndarray
    scale: float = 1.0

    def __repr__(self) -> str:
        return f"Samples({self.x.shape[0]} rows x {self.x.shape[1]} columns, {self.x.dtype})"


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectories:
    """Runs that share one set of features, or a table of samples.

    Attributes:
        features: name -> expression over ``g``, "" for a column that has none; order of x's last axis.
        runs: name -> run.
        split: ``train``, ``valid``, ``test`` -> names of runs; no run in two of them.
        config: what they were recorded with, JSON-ready.
        samples: rows without steps, where there are no runs.
        sha256: hash of the file's content; set by ``load_trajectories``.
    """

    features: dict[str, str]
    runs: dict[str, Run]
    split: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    created_by: str = ""
    sha256: str = ""
    samples: Samples | None = None

    def __repr__(self) -> str:
        if self.samples is not None:
            return f"Trajectories({self.samples!r}, features {', '.join(self.features)})"
        rows = sum(run.y.size for run in self.runs.values())
        splits = ", ".join(f"{name} {len(runs)}" for name, runs in self.split.items()) or "no split"
        names = ", ".join(self.features)
        first = f"Trajectories({len(self.runs)} runs, {rows} rows, features {names}; {splits})"
        more = [f"and {len(self.runs) - 8} more"] if len(self.runs) > 8 else []
        return "\n  ".join([first, *map(repr, list(self.runs.values())[:8]), *more])


def save_trajectories(path: str | os.PathLike[str], trajectories: Trajectories) -> str:
    """Write trajectories and return the file's SHA-256; equal input gives equal bytes.

    Anything ``load_trajectories`` would refuse raises ``L2OError`` here already.
    """
    tree = Tree(attributes={"": {
        "created_by": trajectories.created_by,
        "seed": trajectories.seed,
        "config_json": canonical_json(trajectories.config),
        "complete": True,
    }})  # fmt: skip
    tree.arrays["features/names"] = _text(trajectories.features)
    tree.arrays["features/expressions"] = _text(trajectories.features.values())
    for name, run in trajectories.runs.items():
        if name != run.name:
            raise L2OError(f"{path}: run {run.name!r} is filed under {name!r}; use its own name")
        _put_run(tree, run)
    for name, runs in trajectories.split.items():
        tree.arrays[f"split/{name}"] = _text(runs)
    if trajectories.samples is not None:
        _put_samples(tree, trajectories)
    _from_tree(tree, path)
    whole = any(run.params_views is not None for run in trajectories.runs.values())
    return write_hdf5(path, tree, TRAJECTORIES.format, TRAJECTORIES.version if whole else BEFORE_TENSORS)


def load_trajectories(path: str | os.PathLike[str], *, budget: int = BUDGET) -> Trajectories:
    """Read and check a file of trajectories, or the one in a folder.

    Args:
        budget: bytes its arrays may take.

    Raises:
        L2OError: no such file, another format, damaged, hostile, incomplete, or values out of the contract
            (NaN in targets or features, steps with gaps, coordinates outside their tensors).
    """
    path = inside(path, "recorded trajectories", FILE_NAME)
    tree = read_hdf5(path, TRAJECTORIES.format, TRAJECTORIES.version, budget=budget)
    return trajectories_from_tree(tree, path)


def trajectories_from_tree(tree: Tree, path: str | os.PathLike[str]) -> Trajectories:
    """The trajectories in a tree that ``read_hdf5`` returned; ``path`` is for messages."""
    return _from_tree(tree, path)


def _text(items: Any) -> np.ndarray:
    return np.array(list(items), dtype=np.str_)


def _put_run(tree: Tree, run: Run) -> None:
    folder = f"runs/{check_name(run.name, 'run name')}"
    tree.attributes[folder] = {name: getattr(run, name) for name in _ATTRIBUTES}
    for name in ("x", "g", "y", *_OPTIONAL):
        if getattr(run, name) is not None:
            tree.arrays[f"{folder}/{name}"] = np.asarray(getattr(run, name))
    tree.arrays[f"{folder}/loss"] = np.asarray(run.loss, np.float64)
    tree.arrays[f"{folder}/step"] = np.asarray(run.step, np.int64)
    for name, place in _ARRAYS.items():
        tree.arrays[f"{folder}/{place}"] = np.asarray(getattr(run, name), np.int32)
    tree.arrays[f"{folder}/params/names"] = _text(run.params_names)
    tree.arrays[f"{folder}/params/shapes"] = _text(canonical_json(shape) for shape in run.params_shapes)
    if run.params_views is not None:
        tree.arrays[f"{folder}/params/matrix"] = _text(views_to(run.params_views))


def _put_samples(tree: Tree, trajectories: Trajectories) -> None:
    samples = trajectories.samples
    tree.attributes["samples"] = {"scale": float(samples.scale)}
    tree.arrays["samples/X"] = np.asarray(samples.x)
    tree.arrays["samples/y"] = np.asarray(samples.y)
    tree.arrays["samples/names"] = _text(trajectories.features)
    tree.arrays["samples/column_scale"] = np.asarray(samples.column_scale, np.float64)


def _from_tree(tree: Tree, path: Any) -> Trajectories:
    validate(tree, TRAJECTORIES, path)
    root = tree.attributes[""]
    if not root["complete"]:
        raise L2OError(f"{path}: the recording is incomplete; finish it or record it again")
    names = tree.arrays["features/names"].tolist()
    if len(set(names)) != len(names) or not names:
        raise L2OError(f"{path}: /features/names: expected distinct names, got {names}; rename them")
    runs = {name: _take_run(tree, name, path) for name in tree.children("runs")}
    split = {
        name: tuple(tree.arrays[f"split/{name}"].tolist())
        for name in SPLITS
        if f"split/{name}" in tree.arrays
    }
    members = [name for part in split.values() for name in part]
    strangers = sorted(set(members) - set(runs))
    if strangers or len(set(members)) != len(members):
        wrong = strangers or sorted(name for name in set(members) if members.count(name) > 1)
        raise L2OError(
            f"{path}: /split: expected every run at most once, got {wrong[:3]}; split by run again"
        )
    return Trajectories(
        features=dict(zip(names, tree.arrays["features/expressions"].tolist(), strict=True)),
        runs=runs,
        split=split,
        config=loads_json(root["config_json"], f"{path}: config_json"),
        seed=root["seed"],
        created_by=root["created_by"],
        sha256=tree.sha256,
        samples=_take_samples(tree, names, path) if tree.children("samples") else None,
    )


def _take_samples(tree: Tree, names: list[str], path: Any) -> Samples:
    parts = [tree.arrays.get(f"samples/{name}") for name in ("X", "y", "names", "column_scale")]
    if any(part is None for part in parts):
        raise L2OError(f"{path}: /samples: expected X, y, names and column_scale; import the table again")
    x, y, columns, column_scale = parts
    if tree.children("runs") or columns.tolist() != names:
        raise L2OError(
            f"{path}: /samples: expected no runs beside it, and names as in /features/names; "
            "import the table again"
        )
    if not len(y):
        raise L2OError(f"{path}: /samples: expected at least one row, got none; import the table again")
    scale = tree.attributes.get("samples", {}).get("scale")
    if not isinstance(scale, float) or not math.isfinite(scale) or scale == 0.0:
        raise L2OError(f"{path}: /samples: attribute scale: expected a number other than 0, got {scale!r}")
    return Samples(x, y, column_scale.astype(np.float64), scale)


def _take_run(tree: Tree, name: str, path: Any) -> Run:
    folder = f"runs/{check_name(name, f'{path}: run name')}"
    where = f"{path}: /{folder}"
    shapes = shapes_from(tree.arrays[f"{folder}/params/shapes"].tolist(), where)
    views = tree.arrays.get(f"{folder}/params/matrix")
    plain = ("x", "g", "y", "loss", "step", *_OPTIONAL)
    arrays = {key: tree.arrays.get(f"{folder}/{key}") for key in plain}
    arrays |= {key: tree.arrays[f"{folder}/{place}"].astype(np.int32) for key, place in _ARRAYS.items()}
    arrays["loss"] = arrays["loss"].astype(np.float64, copy=False)
    arrays["step"] = arrays["step"].astype(np.int64, copy=False)
    attributes = {key: tree.attributes[folder][key] for key in _ATTRIBUTES}
    steps = len(arrays["step"])
    if not np.array_equal(arrays["step"], np.arange(1, steps + 1)):
        raise L2OError(f"{where}/step: expected 1, 2, ... {steps} without gaps; record the run again")
    if steps > attributes["num_steps"]:
        limit = attributes["num_steps"]
        raise L2OError(f"{where}: expected at most {limit} steps, got {steps}; record it again")
    index, flat = arrays["param_index"], arrays["flat_index"]
    if index.size and (index.min() < 0 or index.max() >= len(shapes)):
        raise L2OError(f"{where}/coord/param_index: expected 0 to {len(shapes) - 1}; record the run again")
    sizes = np.array([math.prod(shape) for shape in shapes], np.int64)
    if index.size and (flat.min() < 0 or (flat >= sizes[index]).any()):
        raise L2OError(f"{where}/coord/flat_index: an element outside its tensor; record the run again")
    loads_json(attributes["problem_json"], f"{where}: problem_json")
    loads_json(attributes["source_json"], f"{where}: source_json")
    return Run(
        name=name,
        params_names=tuple(tree.arrays[f"{folder}/params/names"].tolist()),
        params_shapes=shapes,
        params_views=None if views is None else views_from(views.tolist(), shapes, where),
        **attributes | {"scale": float(attributes["scale"])},
        **arrays,
    )
