"""Checkpoints, format ``l2o-checkpoint``: one file holds everything a run needs to go on.

Arrays are named by group: ``phi/..``, ``meta_m/..``, ``meta_v/..`` by teacher weight name, ``theta/..`` in
canonical layout, ``state/..``. Counters and the config hash are in ``meta``. There is no generator state:
randomness is counter-based.
"""

import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import L2OError
from common.run.storage import ReadError, canonical_json, loads_json
from common.tables.problems import Problem, parameter_specs
from interchange.files.hdf5 import kind_of, read_hdf5, write_hdf5
from interchange.files.reader import DamagedFileError, Tree, VersionError
from interchange.files.schema import CHECKPOINT, validate

FOLDER = "checkpoint"
_FILE = re.compile(r"checkpoint-(\d{8,12})\.h5")


def save_checkpoint(
    folder: str | os.PathLike[str], arrays: dict[str, np.ndarray], meta: dict[str, Any], keep: int = 2
) -> Path:
    """Write the next checkpoint of a run folder, remove all but the newest ``keep``; its path.

    Args:
        arrays: name -> array; floats, integers, booleans. NaN is kept as it is.
        meta: JSON-ready counters and texts: epoch, step, data position, config hash.

    Raises:
        StorageError: it cannot be written; the earlier checkpoints are unchanged.
    """
    found = _files(folder)
    number = found[-1][0] + 1 if found else 1
    path = Path(folder, FOLDER, f"checkpoint-{number:08d}.h5")
    tree = Tree(dict(arrays), {"": {"meta_json": canonical_json(meta)}})
    write_hdf5(path, tree, CHECKPOINT.format, CHECKPOINT.version, compress=False)
    for _, old in _files(folder)[: -max(keep, 1)]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(folder: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The newest undamaged checkpoint of a run folder as (arrays, meta).

    A damaged one is warned about, set aside as ``*.damaged`` so that it is never counted as one of those
    to keep, and the one before is taken.

    Raises:
        L2OError: there is none, all are damaged, or the newest is of another version.
    """
    files = _files(folder)
    if not files:
        raise L2OError(f"{Path(folder, FOLDER)}: expected a checkpoint, got none; start the run afresh")
    damaged: list[Path] = []
    for _, path in reversed(files):
        try:
            tree = read_hdf5(path, CHECKPOINT.format, CHECKPOINT.version)
            return checkpoint_from_tree(tree, path)
        except (ReadError, VersionError):
            if path.exists():
                raise
            return load_checkpoint(folder)  # the run under way has written newer ones and removed it
        except L2OError as error:
            damaged.append(path)
            warnings.warn(f"{error}; trying the checkpoint before it", stacklevel=2)
            _set_aside(path)
    shown = f"{len(damaged)} damaged ones"
    raise L2OError(f"{Path(folder, FOLDER)}: expected a checkpoint, got {shown}; start the run afresh")


def checkpoint_from_tree(
    tree: Tree, path: str | os.PathLike[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, meta) of a tree that ``read_hdf5`` returned; ``path`` is for messages."""
    validate(tree, CHECKPOINT, path)
    meta = loads_json(tree.attributes[""]["meta_json"], f"{path}: meta_json")
    if not isinstance(meta, dict):
        shown = type(meta).__name__
        raise DamagedFileError(f"{path}: meta_json: expected an object, got {shown}; restore a copy")
    return tree.arrays, meta


def has_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether a run folder holds a checkpoint, damaged or not."""
    return bool(_files(folder))


def _files(folder: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """(number, path) of the checkpoints, oldest first."""
    try:
        names = os.listdir(Path(folder, FOLDER))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ReadError(f"cannot list {Path(folder, FOLDER)}: {error.strerror}; check the path") from error
    matches = [match for name in names if (match := _FILE.fullmatch(name))]
    return sorted((int(match[1]), Path(folder, FOLDER, match[0])) for match in matches)


def _set_aside(path: Path) -> None:
    try:
        os.replace(path, path.with_name(path.name + ".damaged"))
    except OSError as error:
        warnings.warn(f"cannot rename {path}: {error.strerror}", stacklevel=3)


def load_start(folder: str, row: Problem) -> dict[str, np.ndarray]:
    """Parameters and buffers by name that ``optimize`` left in a run folder, checked against the problem.

    Raises:
        L2OError: no such run, or one on another problem.
    """
    if Path(folder).is_file():
        found = kind_of(folder) or "a file"
        raise L2OError(f"--start {folder}: expected a run folder of optimize, got {found}; name the folder")
    try:
        arrays, _ = load_checkpoint(folder)
    except L2OError as error:
        raise L2OError(f"--start: {error}") from None
    values = {name.removeprefix("theta/"): array for name, array in arrays.items()}
    shapes = {spec.name: spec.shape for spec in parameter_specs(row)}
    for name in [name for name in shapes if name.endswith("/gamma")]:
        shapes |= {f"buffers/{name.replace('gamma', part)}": shapes[name] for part in ("mean", "var")}
    for name, shape in shapes.items():
        if getattr(values.get(name), "shape", None) != shape:
            got = values[name].shape if name in values else "none"
            raise L2OError(
                f"--start {folder}: expected {name} of shape {shape} for {row.name}, got {got}; "
                "give a run of optimize on the same problem"
            )
    return values
