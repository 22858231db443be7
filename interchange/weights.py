"""Teacher weights, format ``l2o-teacher``: any backend loads what the other trained.

Arrays by canonical name (``TeacherRow.weight_shapes``), LSTM gates in the order i, f, g, o with one bias;
each backend converts to its own order and layout.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from common.errors import L2OError
from common.storage import canonical_json, loads_json
from common.teachers import TeacherRow
from interchange.schema import TEACHER, validate
from interchange.storage import read_hdf5, write_hdf5
from interchange.walk import Tree

GATE_ORDER = "ifgo"
FILE_NAME = "teacher.h5"


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher with its weights.

    Attributes:
        weights: name -> array of shape ``row.weight_shapes()[name]``, float32 or float64.
        sha256: hash of the file's content.
        created_by: program and framework that wrote it.
    """

    row: TeacherRow
    weights: dict[str, np.ndarray]
    sha256: str
    created_by: str

    def __repr__(self) -> str:
        count = sum(array.size for array in self.weights.values())
        kinds = sorted({str(array.dtype) for array in self.weights.values()})
        return f"Teacher({self.row.name}, {count} weights, {'/'.join(kinds)}, {self.sha256[:12]})"


def save_weights(
    path: str | os.PathLike[str], teacher: TeacherRow, weights: dict[str, np.ndarray], created_by: str
) -> str:
    """Write a teacher's weights (float32 or float64, kept as given) and return the file's SHA-256.

    Missing, unknown, misshapen or non-finite weights raise ``L2OError``. A folder gets ``teacher.h5``.
    """
    path = _file(path)
    arrays = {name: np.asarray(array) for name, array in weights.items()}
    tree = Tree(
        arrays,
        {
            "": {
                "created_by": created_by,
                "gate_order": GATE_ORDER,
                "teacher_json": canonical_json(teacher.to_dict()),
            }
        },
    )
    _check(path, teacher, arrays)
    validate(tree, TEACHER, path)
    return write_hdf5(path, tree, TEACHER.format, TEACHER.version)


def load_weights(path: str | os.PathLike[str]) -> Teacher:
    """Read what ``save_weights`` wrote; a run folder stands for its ``teacher.h5``.

    Raises:
        L2OError: no such file, another format, damaged, or not the weights its teacher needs.
    """
    path = _file(path)
    tree = read_hdf5(path, TEACHER.format, TEACHER.version)
    return weights_from_tree(tree, path)


def weights_from_tree(tree: Tree, path: str | os.PathLike[str]) -> Teacher:
    """The weights in a tree that ``read_hdf5`` returned; ``path`` is for messages."""
    validate(tree, TEACHER, path)
    root = tree.attributes[""]
    row = loads_json(root["teacher_json"], f"{path}: teacher_json")
    teacher = _teacher(path, row)
    _check(path, teacher, tree.arrays)
    weights = {name: tree.arrays[name] for name in teacher.weight_shapes()}
    return Teacher(teacher, weights, tree.sha256, root["created_by"])


def _file(path: str | os.PathLike[str]) -> Path:
    return Path(path, FILE_NAME) if os.path.isdir(path) else Path(path)


def _teacher(path: object, row: object) -> TeacherRow:
    try:
        if not isinstance(row, dict) or not all(isinstance(row.get(key), list) for key in ("inputs", "lstm")):
            raise L2OError("inputs and lstm must be lists")
        teacher = TeacherRow.from_dict(row)
        numbers = (teacher.scale, teacher.beta1, teacher.beta2, teacher.eps, teacher.p)
        if not all(isinstance(number, (int, float)) for number in numbers) or type(teacher.pre) is not int:
            raise L2OError("scale, betas, eps, p and pre must be numbers")
        if not teacher.lstm or min(teacher.lstm) < 1 or not isinstance(teacher.name, str):
            raise L2OError("layer sizes must be positive")
        if teacher.output not in ("tanh", "linear"):
            raise L2OError(f"unknown output {teacher.output!r}; known: tanh, linear")
        teacher.expressions()  # an unknown input raises here, not at the first step
    except (L2OError, TypeError, ValueError, AttributeError) as error:
        raise L2OError(f"{path}: not a teacher's row: {error}; export the weights again") from None
    return teacher


def _check(path: object, teacher: TeacherRow, arrays: dict[str, np.ndarray]) -> None:
    shapes = teacher.weight_shapes()
    if set(arrays) != set(shapes):
        missing = sorted(set(shapes) - set(arrays)) or "none"
        unknown = sorted(set(arrays) - set(shapes)) or "none"
        raise L2OError(
            f"{path}: expected the weights of teacher {teacher.name}, got missing {missing}, "
            f"unknown {unknown}; give weights and teacher of one run"
        )
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape or array.dtype.kind != "f":
            raise L2OError(
                f"{path}: {name}: expected shape {shape} in float32 or float64, "
                f"got {array.shape} in {array.dtype}; give weights and teacher of one run"
            )
