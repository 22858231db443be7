"""Other programs' files -> this project's, and back: ``python -m interchange.convert SOURCE --out X``.

What SOURCE is, its first bytes tell: equations (PySR, Operon; hall_of_fame.py) become a front of rules, a
table of samples (.npy) becomes a file of trajectories (.h5), and trajectories become a table.
"""

import dataclasses
import io
import math
import os
import re
import sys
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import __version__
from common.errors import L2OError
from common.run.cli import run as run_command
from common.run.config import check, option
from common.run.storage import ReadError, RunLock, atomic_write, content_hash, open_regular
from interchange.dialects.table import DIALECTS
from interchange.language import expression as ex
from interchange.language.parse import parse
from interchange.rule.front import write_front
from interchange.rule.rule import RAW, Rule

if TYPE_CHECKING:
    from interchange.files.trajectories import Trajectories

_NPY, _HDF5 = b"\x93NUMPY", b"\x89HDF"
_BUDGET = 2 << 30  # bytes of one table
_HEADER_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    LookupError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)
# Kind of source -> the options it takes beside --out, --overwrite and --quiet.
_OPTIONS = {
    "equations": ("dialect", "scale", "feature"),
    ".npy": ("names", "scale", "feature"),
    ".h5": ("lags",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What ``python -m interchange.convert`` takes."""

    source: str = option("", "hall of fame (PySR, Operon), table of samples (.npy) or trajectories (.h5)")
    dialect: str = option("", "who wrote the equations, if not clear", choices=lambda: DIALECTS, empty=True)
    names: tuple[str, ...] = option((), "names of a table's columns but the last; x0, x1 ... if not given")
    feature: tuple[str, ...] = option((), "NAME=EXPRESSION: what a column or variable is, over g, t, theta")
    scale: float = option(1.0, "u = scale * the equation or the table's last column")
    lags: int = option(1, "steps in a row of the table written from trajectories, newest first", low=1)
    out: str = option("", "folder for rules; file for a table or for trajectories")
    quiet: bool = option(False, "print nothing but errors")
    overwrite: bool = option(False, "replace what --out already holds")

    def __post_init__(self) -> None:
        check(self)
        if self.scale == 0.0:
            raise L2OError("--scale: expected a number other than 0, got 0")


def import_npy(
    path: str | os.PathLike[str],
    *,
    names: Sequence[str] = (),
    features: Mapping[str, str] | None = None,
    scale: float = 1.0,
) -> "Trajectories":
    """A table of samples, float32 or float64 [rows, columns + 1], the last column the target u/scale.

    Args:
        names: of the columns; ``x0``, ``x1``, ... by default.
        features: name -> its expression over ``g``, where a column has one.

    Raises:
        L2OError: not such a table, damaged, or a value that is not finite.
    """
    from interchange.files.trajectories import Samples, Trajectories

    table = _read_npy(path)
    columns = table.shape[1] - 1
    names = list(names) or [f"x{k}" for k in range(columns)]
    if len(names) != columns or len(set(names)) != columns:
        shown = ", ".join(names)[:200]
        raise L2OError(f"{path}: expected {columns} distinct names, one per column but the last, got {shown}")
    texts = {name: ex.to_text(parse(text, RAW)) for name, text in (features or {}).items()}
    _check_columns(names, texts)
    return Trajectories(
        features={name: texts.get(name, "") for name in names},
        runs={},
        config={"file": Path(path).name, "table_sha256": content_hash(np.ascontiguousarray(table).data)},
        created_by=f"symbolic-l2o {__version__}",
        samples=Samples(
            np.ascontiguousarray(table[:, :-1]), table[:, -1].copy(), np.ones(columns), float(scale)
        ),
    )


def _check_columns(names: list[str], features: Mapping[str, str]) -> None:
    """Names that rules over these columns can have."""
    unknown = [name for name in features if name not in names]
    if unknown:
        raise L2OError(f"feature {unknown[0]!r}: no column has that name; they are {', '.join(names)[:200]}")
    kept = [name for name in names if re.fullmatch(r"c\d+", name)]
    if kept:
        raise L2OError(f"name {kept[0]!r} is kept for the constants of rules; choose another")
    trees = {name: parse(features[name], RAW) if name in features else None for name in names}
    Rule("columns", ex.number(0.0), {}, trees)


def _read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """A finite table of floats; its size is known to fit before anything is allocated."""
    try:
        with open_regular(path) as file:
            shape, dtype = _npy_header(path, file)
            if len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
                raise L2OError(f"{path}: expected [rows, columns + 1], at least [1, 2], got shape {shape}")
            if dtype.kind != "f" or dtype.itemsize not in (4, 8):
                raise L2OError(f"{path}: expected float32 or float64, got {str(dtype)[:60]}; cast it first")
            size = math.prod(shape) * dtype.itemsize
            found = os.fstat(file.fileno()).st_size - file.tell()
            if size > _BUDGET or size != found:
                raise L2OError(
                    f"{path}: expected {size} bytes of numbers, at most {_BUDGET}, got {found}; "
                    "save it again, or fewer rows of it"
                )
            file.seek(0)
            table = np.load(file, allow_pickle=False)
    except OSError as error:
        raise ReadError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    finite = np.isfinite(table)
    if not finite.all():
        row, column = map(int, np.unravel_index(np.argmin(finite), table.shape))
        raise L2OError(
            f"{path}: expected finite numbers, got {table[row, column]} at row {row}, column {column} "
            "(from 0); leave that row out"
        )
    return table.astype(dtype.newbyteorder("="), copy=False)


def _npy_header(path: Any, file: Any) -> tuple[tuple[int, ...], np.dtype]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
    except _HEADER_ERRORS as error:
        reason = " ".join(str(error).split())[:100]
        raise L2OError(f"{path}: expected a whole .npy file of numbers, got {reason!r}") from None
    return shape, dtype


def export_npy(
    trajectories: "Trajectories", path: str | os.PathLike[str], *, lags: int = 1
) -> tuple[int, int]:
    """Write [rows, lags * features + 1]: for each lag from 0 the features, then the target u/scale.

    A row is one coordinate at one step; runs, then steps, then coordinates follow each other. Steps before
    ``lags - 1`` have no whole past and are left out, as are runs that diverged.

    Returns:
        The shape written.
    """
    samples = trajectories.samples
    if samples is not None and lags != 1:
        raise L2OError(f"--lags: expected 1 for a table of samples, which has no steps, got {lags}")
    runs = [run for run in trajectories.runs.values() if not run.diverged and len(run.step) >= lags]
    if samples is None and not runs:
        raise L2OError(
            f"expected a run of at least {lags} steps that did not diverge, got none; lower --lags"
        )
    arrays = [samples.x, samples.y] if samples is not None else [a for run in runs for a in (run.x, run.y)]
    dtype = np.result_type(*arrays)
    rows = sum(run.y[lags - 1 :].size for run in runs) if samples is None else len(samples.y)
    shape = (rows, lags * len(trajectories.features) + 1)
    if math.prod(shape) * dtype.itemsize > _BUDGET:
        raise L2OError(f"expected a table of at most {_BUDGET} bytes, got shape {shape}; lower --lags")
    table = np.empty(shape, dtype)
    if samples is not None:
        table[:, :-1], table[:, -1] = samples.x, samples.y
    start = 0
    for run in runs:
        y = run.y[lags - 1 :].reshape(-1)
        part = table[start : start + len(y)]
        part[:, :-1], part[:, -1] = _windows(run.x, lags), y
        start += len(y)
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    atomic_write(path, buffer.getbuffer())
    return shape


def _windows(x: np.ndarray, lags: int) -> np.ndarray:
    """[step, coordinate, feature] -> [rows, lag * feature], the newest step first."""
    steps = len(x) - lags + 1
    rows = np.stack([x[lags - 1 - k : lags - 1 - k + steps] for k in range(lags)], axis=2)
    return rows.reshape(-1, lags * x.shape[2])


def convert(config: ConvertConfig) -> str:
    """Convert as ``config`` says; one line about what was written.

    Raises:
        L2OError: a broken source, an option it does not take, or something at ``--out`` already.
    """
    kind = _kind(config.source)
    for field in dataclasses.fields(config):
        known = {"source", "out", "quiet", "overwrite", *_OPTIONS[kind]}
        if field.name not in known and getattr(config, field.name) != field.default:
            taken = ", ".join("--" + name for name in _OPTIONS[kind])
            raise L2OError(f"--{field.name} says nothing about {config.source}, {kind}; it takes {taken}")
    out = Path(config.out)
    target = out / "front.csv" if kind == "equations" else out
    if target.exists() and not config.overwrite:
        raise L2OError(f"--out: {target} is there already; replace it with --overwrite or choose another")
    features = _features(config.feature)
    if kind == "equations":
        return _convert_equations(config, features, out)
    from interchange.files.trajectories import load_trajectories, save_trajectories

    if kind == ".h5":
        rows, columns = export_npy(load_trajectories(config.source), out, lags=config.lags)
        return f"{out}: {rows} rows of {columns} columns, the last the target"
    found = import_npy(config.source, names=config.names, features=features, scale=config.scale)
    save_trajectories(out, found)
    return f"{out}: {found.samples!r}"


def _kind(path: str) -> str:
    try:
        with open_regular(path) as file:
            start = file.read(8)
    except OSError as error:
        raise ReadError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    return ".npy" if start.startswith(_NPY) else ".h5" if start.startswith(_HDF5) else "equations"


def _features(items: Sequence[str]) -> dict[str, str]:
    features: dict[str, str] = {}
    for item in items:
        name, sign, text = item.partition("=")
        if not sign or name.strip() in features:
            raise L2OError(f"--feature: expected NAME=EXPRESSION, each name once, got {item[:60]!r}")
        features[name.strip()] = text.strip()
    return features


def _convert_equations(config: ConvertConfig, features: dict[str, str], out: Path) -> str:
    from interchange.convert.hall_of_fame import import_hall_of_fame

    rules = import_hall_of_fame(config.source, dialect=config.dialect, features=features, scale=config.scale)
    rules.sort(key=lambda rule: rule.complexity)
    known = [rule for rule in rules if "loss" in rule.provenance]
    with RunLock(out):
        write_front(out, rules)
        (out / "best.json").unlink(missing_ok=True)  # of a front before
        if not known:
            return f"{out}: {len(rules)} rules; no best.json, because {config.source} has no losses"
        best = min(known, key=lambda rule: rule.provenance["loss"])
        best.save(out / "best.json")
    loss = best.provenance["loss"]
    return f"{out}: {len(rules)} rules; best.json has the lowest loss, {loss:.4g}, in {best.name}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""

    def body(config: ConvertConfig) -> None:
        line = convert(config)
        if not config.quiet:
            print(line)

    return run_command(
        ConvertConfig,
        body,
        argv,
        prog="python -m interchange.convert",
        description="Read equations of PySR and Operon and tables of samples; write tables of samples.",
        positional=("source",),
        required=("source", "out"),
    )


if __name__ == "__main__":
    sys.exit(main())
