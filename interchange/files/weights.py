"""Teacher weights, format ``l2o-teacher``: any backend loads what the other trained.

Arrays by canonical name (``TeacherRow.weight_shapes``), LSTM gates in the order i, f, g, o with one bias;
each backend converts to its own order and layout. A few trained teachers come with the package.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import L2OError
from common.registry import Registry
from common.run.storage import ReadError, canonical_json, loads_json
from common.tables.teachers import TeacherRow
from interchange.files.hdf5 import read_hdf5, write_hdf5
from interchange.files.reader import Tree
from interchange.files.schema import TEACHER, validate
from interchange.language.checks import step_sizes

GATE_ORDER = "ifgo"
BEFORE_STEP_SIZES = "1.0.0"  # of teachers without, so that an older reader takes them
FILE_NAME = "teacher.h5"
# Name -> the command that made it. In shipped/, one file each.
SHIPPED: Registry[str] = Registry(
    "shipped teacher",
    {
        "rp_s": "python -m torch_impl.train --problem mnist-mlp --teacher rp_s --epochs 80 --unroll 100 "
        "--lr 4e-3 --lr-decay 0.1 --validate-every 5 --seed 0",
        "rnnprop": "python -m torch_impl.train --problem mnist-mlp --teacher rnnprop --epochs 100 "
        "--epoch-length 100 --lr 3e-3 --lr-decay 0.1 --validate-every 5 --seed 0",
        "dm": "python -m torch_impl.train --problem mnist-mlp --teacher dm --epochs 100 "
        "--epoch-length 100 --lr 1e-3 --lr-decay 0.1 --validate-every 5 --seed 0",
    },
)
_SHIPPED_FOLDER = Path(__file__).resolve().parents[1] / "shipped"


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher with its weights.

    Attributes:
        weights: name -> array of shape ``row.weight_shapes()[name]``, float32 or float64.
        sha256: hash of the file's content.
        created_by: program and framework that wrote it.
        step_sizes: parameter name -> factor on lr there, for optimizers; empty for one lr everywhere.
        tuned: record of how they were found.
    """

    row: TeacherRow
    weights: dict[str, np.ndarray]
    sha256: str
    created_by: str
    step_sizes: dict[str, float] = dataclasses.field(default_factory=dict)
    tuned: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def sees_tensors(self) -> bool:
        """Whether coordinates of a tensor are not independent: by its structure or by a feature."""
        return self.row.sees_tensors

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the file, as ``save_weights`` does, with step sizes and their record; its SHA-256."""
        path = _file(path)
        root = {"created_by": self.created_by, "gate_order": GATE_ORDER}
        root["teacher_json"] = canonical_json(self.row.to_dict())
        if self.step_sizes:
            root["step_sizes_json"] = canonical_json(step_sizes(self.step_sizes, f"{path}: step_sizes"))
            root["tuned_json"] = canonical_json(self.tuned)
        tree = Tree(self.weights, {"": root})
        _check(path, self.row, self.weights)
        validate(tree, TEACHER, path)
        version = TEACHER.version if self.step_sizes else BEFORE_STEP_SIZES
        return write_hdf5(path, tree, TEACHER.format, version)

    @classmethod
    def named(cls, name: str) -> "Teacher":
        """A teacher of the table ``SHIPPED``, trained by its command; an unknown name lists the known."""
        SHIPPED[name]
        return load_weights(_SHIPPED_FOLDER / f"{name}.h5")

    def source(self) -> tuple[str, str]:
        """What makes an optimizer's state this teacher's: to compare, and in words."""
        return self.sha256, f"the teacher {self.row.name!r} ({self.sha256[:12]})"

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
    arrays = {name: np.asarray(array) for name, array in weights.items()}
    return Teacher(teacher, arrays, "", created_by).save(path)


def load_weights(path: str | os.PathLike[str]) -> Teacher:
    """Read what ``save_weights`` wrote; a run folder stands for its ``teacher.h5``.

    The name of a shipped teacher (``SHIPPED``) is one where no file or folder has it.

    Raises:
        L2OError: no such file, another format, damaged, or not the weights its teacher needs.
    """
    path = _file(shipped_file(path) or path)
    try:
        tree = read_hdf5(path, TEACHER.format, TEACHER.version)
    except ReadError as error:
        raise ReadError(f"{error}, or name a shipped teacher: {', '.join(SHIPPED)}") from None
    return weights_from_tree(tree, path)


def shipped_file(name: str | os.PathLike[str]) -> Path | None:
    """The file of a shipped teacher, None where ``name`` is no such name or a path that exists."""
    known = os.fspath(name) in SHIPPED and not os.path.exists(name)
    return _SHIPPED_FOLDER / f"{name}.h5" if known else None


def shipped_command(path: str | os.PathLike[str]) -> str:
    """The command that made the shipped file at ``path``, "" for any other file."""
    path = Path(path).resolve()
    return SHIPPED.get(path.stem, "") if path.parent == _SHIPPED_FOLDER else ""


def weights_from_tree(tree: Tree, path: str | os.PathLike[str]) -> Teacher:
    """The weights in a tree that ``read_hdf5`` returned; ``path`` is for messages."""
    validate(tree, TEACHER, path)
    root = tree.attributes[""]
    row = loads_json(root["teacher_json"], f"{path}: teacher_json")
    teacher = teacher_from_arrays(row, tree.arrays, tree.sha256, root["created_by"], path)
    sizes, tuned = (
        loads_json(root.get(name, "{}"), f"{path}: {name}") for name in ("step_sizes_json", "tuned_json")
    )
    if not isinstance(tuned, dict):
        raise L2OError(f"{path}: tuned_json: expected an object, got {type(tuned).__name__}; tune it again")
    return dataclasses.replace(teacher, step_sizes=step_sizes(sizes, f"{path}: step_sizes"), tuned=tuned)


def teacher_from_arrays(
    row: object, arrays: dict[str, np.ndarray], sha256: str, created_by: str, path: object
) -> Teacher:
    """A teacher from its row as JSON data and its arrays, both checked; ``path`` is for messages."""
    teacher = _teacher(path, row)
    _check(path, teacher, arrays)
    weights = {name: arrays[name] for name in teacher.weight_shapes()}
    return Teacher(teacher, weights, sha256, created_by)


def _file(path: str | os.PathLike[str]) -> Path:
    return Path(path, FILE_NAME) if os.path.isdir(path) else Path(path)


def _teacher(path: object, row: object) -> TeacherRow:
    try:
        if not isinstance(row, dict) or not all(isinstance(row.get(key), list) for key in ("inputs", "lstm")):
            raise L2OError("inputs and lstm must be lists")
        teacher = TeacherRow.from_dict(row)
        numbers = (
            teacher.scale,
            teacher.beta1,
            teacher.beta2,
            teacher.eps,
            teacher.p,
            teacher.pre_tanh_scale,
        )
        if not all(isinstance(number, (int, float)) for number in numbers) or type(teacher.pre) is not int:
            raise L2OError("scale, betas, eps, p and pre must be numbers")
        if not all(isinstance(name, str) for name in teacher.inputs):
            raise L2OError("inputs must be names of features")
        if not teacher.inputs or len(set(teacher.inputs)) < len(teacher.inputs):
            raise L2OError(f"inputs: expected each feature once, got {', '.join(teacher.inputs) or 'none'}")
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
