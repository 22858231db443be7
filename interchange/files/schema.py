"""The HDF5 layouts as data, and one ``validate`` for all of them (formats: trajectories, teacher,
checkpoint, evaluation)."""

import dataclasses
import fnmatch
import re
from typing import Any

import numpy as np

from common.errors import L2OError
from interchange.files.reader import Tree


@dataclasses.dataclass(frozen=True)
class Array:
    """One kind of dataset.

    Attributes:
        path: pattern; ``*`` is one path component, ``**`` any number of them.
        kinds: NumPy dtype kinds allowed: f, i, u, b, U; e where float16 is too.
        dims: names of the axes; None allows any. A name means one size per group matched by the wildcards
            of ``path`` (per run); with a leading ``/`` one size per file.
        finite: NaN and infinities are refused.
    """

    path: str
    kinds: str
    dims: tuple[str, ...] | None = None
    required: bool = True
    finite: bool = False
    note: str = ""
    remedy: str = "end the run before it diverges, or leave those steps out"


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One attribute of every group matching ``path`` ("" is the root)."""

    path: str
    name: str
    kind: type
    required: bool = True
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Schema:
    """A format: its name, the version this code writes, what such a file is, its arrays and attributes."""

    format: str
    version: str
    words: str
    arrays: tuple[Array, ...]
    attributes: tuple[Attribute, ...]


def _attributes(path: str, **kinds: type) -> tuple[Attribute, ...]:
    return tuple(Attribute(path, name, kind) for name, kind in kinds.items())


_KINDS = {"f": "floats", "i": "integers", "u": "unsigned integers", "b": "booleans", "U": "text"}
SOURCES = ("teacher", "rule", "baseline", "user")

BEFORE_TENSORS = "1.0.0"  # of trajectories without views, so that an older reader takes them
TRAJECTORIES = Schema(
    "l2o-trajectories",
    "1.1.0",
    "recorded trajectories",
    (
        Array("features/names", "U", ("/feature",)),
        Array("features/expressions", "U", ("/feature",)),
        Array("runs/*/x", "f", ("step", "coordinate", "/feature"), finite=True, note="features"),
        Array("runs/*/g", "f", ("step", "coordinate"), note="raw gradients"),
        Array("runs/*/y", "f", ("step", "coordinate"), finite=True, note="targets"),
        Array("runs/*/theta", "f", ("step", "coordinate"), required=False),
        Array("runs/*/weight", "f", ("step", "coordinate"), required=False, finite=True),
        Array("runs/*/lr", "f", ("step", "coordinate"), required=False, finite=True),
        Array("runs/*/loss", "f", ("step",)),
        Array("runs/*/step", "iu", ("step",)),
        Array("runs/*/coord/param_index", "iu", ("coordinate",)),
        Array("runs/*/coord/flat_index", "iu", ("coordinate",)),
        Array("runs/*/params/names", "U", ("parameter",)),
        Array("runs/*/params/shapes", "U", ("parameter",), note="JSON lists"),
        Array("runs/*/params/matrix", "U", ("parameter",), required=False, note="JSON lists"),
        Array("split/*", "U", ("run",), required=False),
        Array("samples/X", "f", ("row", "column"), required=False, finite=True, note="features"),
        Array("samples/y", "f", ("row",), required=False, finite=True, note="targets"),
        Array("samples/names", "U", ("column",), required=False),
        Array("samples/column_scale", "f", ("column",), required=False, finite=True),
    ),
    (
        *_attributes("", created_by=str, seed=int, config_json=str, complete=bool),
        *_attributes("runs/*", problem=str, problem_json=str, source_json=str, source_sha256=str),
        Attribute("runs/*", "source_kind", str, choices=SOURCES),
        *_attributes("runs/*", seed=int, init_seed=int, num_steps=int, scale=float, diverged=bool),
        *_attributes("runs/*", outcome=str),
    ),
)

_RETRAIN = "take an earlier checkpoint of the teacher, or train it again with a smaller step"
TEACHER = Schema(
    "l2o-teacher",
    "1.1.0",
    "a teacher",
    (
        Array("lstm_*/w_input", "f", None, finite=True, note="weights", remedy=_RETRAIN),
        Array("lstm_*/w_hidden", "f", None, finite=True, note="weights", remedy=_RETRAIN),
        Array("lstm_*/bias", "f", ("gates",), finite=True, note="weights", remedy=_RETRAIN),
        Array("pre/*", "f", None, required=False, finite=True, note="weights", remedy=_RETRAIN),
        Array("out/*", "f", None, required=False, finite=True, note="weights", remedy=_RETRAIN),
    ),
    (
        *_attributes("", created_by=str, teacher_json=str),
        Attribute("", "gate_order", str, choices=("ifgo",)),
        *(Attribute("", name, str, required=False) for name in ("step_sizes_json", "tuned_json")),
    ),
)

CHECKPOINT = Schema(
    "l2o-checkpoint",
    "1.0.0",
    "a checkpoint",
    (Array("**", "fiubUe", None, required=False),),
    _attributes("", meta_json=str),
)

EVALUATION = Schema(
    "l2o-evaluation",
    "1.1.0",
    "an evaluation",
    (
        Array("rows/*/losses", "f", ("step",)),
        Array("rows/*/curve", "f", ("look", "value"), required=False),
    ),
    (
        *_attributes("", created_by=str, config_json=str),
        *_attributes("rows/*", optimizer=str, problem=str, seed=int, split=str, outcome=str),
        *_attributes("rows/*", accuracy=float, ms_per_step=float, floats_per_parameter=float),
        *_attributes("rows/*", settings_json=str, trials=int, horizon=int),
        *(Attribute("rows/*", name, float, required=False) for name in ("test_loss", "seconds")),
        Attribute("rows/*", "trained_on", bool, required=False),
    ),
)

SCHEMAS: dict[str, Schema] = {
    schema.format: schema for schema in (TRAJECTORIES, TEACHER, CHECKPOINT, EVALUATION)
}


def without_strangers(tree: Tree, schema: Schema) -> tuple[Tree, list[str]]:
    """The tree with the attributes of its format alone, and the names of the others, which somebody added."""
    kept, strangers = {}, []
    for path, values in tree.attributes.items():
        known = {row.name for row in schema.attributes if fnmatch.fnmatchcase(path, row.path)}
        known |= set() if path else {"format", "format_version", "sha256"}
        kept[path] = {name: value for name, value in values.items() if name in known}
        strangers += [f"/{path}: {name}" for name in values if name not in known]
    return dataclasses.replace(tree, attributes=kept), strangers


def validate(tree: Tree, schema: Schema, path: Any) -> None:
    """Check presence, types, ranks, sizes and finite values; ``L2OError`` names ``path`` and the array.

    Arrays and attributes the schema does not know are left alone: a newer minor version may add some.
    """
    sizes: dict[tuple[str, str], tuple[int, str]] = {}
    for row in schema.arrays:
        for name in _expected(tree, row.path, row.required):
            array = tree.arrays.get(name)
            if array is None:
                raise L2OError(f"{path}: expected the array /{name}, got none; record it again")
            _check_array(f"{path}: /{name}", array, row)
            scope = "/".join(name.split("/")[: _depth_of_wildcards(row.path)])
            for axis, size in zip(row.dims or (), array.shape, strict=False):
                key = ("" if axis.startswith("/") else scope, axis)
                known, first = sizes.setdefault(key, (size, name))
                if known != size:
                    raise L2OError(
                        f"{path}: /{name}: expected {known} along {axis.lstrip('/')} as in /{first}, "
                        f"got {size}; record it again"
                    )
    for row in schema.attributes:
        for name in _expected(tree, row.path, True):
            _check_attribute(f"{path}: /{name}", tree.attributes.get(name, {}), row)


def _check_array(where: str, array: np.ndarray, row: Array) -> None:
    if array.dtype.kind not in row.kinds:
        kinds = " or ".join(_KINDS[kind] for kind in row.kinds if kind in _KINDS)
        raise L2OError(f"{where}: expected {kinds}, got {array.dtype}; record it again")
    if array.dtype == np.float16 and "e" not in row.kinds:
        raise L2OError(f"{where}: expected float32 or float64, got float16; cast it to float32")
    if row.dims is not None and array.ndim != len(row.dims):
        axes = ", ".join(axis.lstrip("/") for axis in row.dims)
        raise L2OError(f"{where}: expected axes [{axes}], got shape {array.shape}; record it again")
    if row.finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        place = tuple(map(int, np.unravel_index(np.argmin(np.isfinite(array)), array.shape)))
        axes = [axis.lstrip("/") for axis in row.dims or ()] or ["axis"] * array.ndim
        shown = ", ".join(f"{axis} {index}" for axis, index in zip(axes, place, strict=True))
        raise L2OError(
            f"{where}: expected finite {row.note or 'values'}, got {array[place]} at {shown} (from 0); "
            f"{row.remedy}"
        )


def _check_attribute(where: str, values: dict[str, Any], row: Attribute) -> None:
    value = values.get(row.name)
    if value is None:
        if row.required:
            raise L2OError(f"{where}: expected the attribute {row.name}, got none; record it again")
        return
    fits = isinstance(value, row.kind) or (row.kind is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and row.kind is not bool):
        shown = repr(str(value)[:40])
        raise L2OError(
            f"{where}: attribute {row.name}: expected {row.kind.__name__}, got {shown}; record it again"
        )
    if row.choices and value not in row.choices:
        known = ", ".join(row.choices)
        raise L2OError(f"{where}: attribute {row.name}: expected {known}; got {value[:40]!r}; convert it")


def _depth_of_wildcards(pattern: str) -> int:
    parts = pattern.split("/")
    return max((index + 1 for index, part in enumerate(parts) if "*" in part), default=0)


def _expected(tree: Tree, pattern: str, required: bool) -> list[str]:
    """The paths a pattern stands for; where required, one for every group its wildcards match."""
    if "**" in pattern:
        return list(tree.arrays)
    depth = _depth_of_wildcards(pattern)
    parts = pattern.split("/") if pattern else []
    names = [""]
    for place, part in enumerate(parts):
        folder_names = []
        for name in names:
            children = [part] if place >= depth else _matching(tree, name, part)
            folder_names += [f"{name}/{child}" if name else child for child in children]
        names = folder_names
    return names if required else [name for name in names if name in tree.arrays]


def _matching(tree: Tree, folder: str, part: str) -> list[str]:
    if "*" not in part:
        return [part]
    expression = re.compile(".*".join(map(re.escape, part.split("*"))), re.DOTALL)
    return [child for child in tree.children(folder) if expression.fullmatch(child)]
