"""Tables of samples (.npy) -> trajectories, and back."""

import io
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import __version__
from common.data.dataset_files import HEADER_ERRORS, npy_header
from common.errors import L2OError
from common.run.storage import ReadError, atomic_write, content_hash, open_regular
from interchange.language import expression as ex
from interchange.language.parse import parse
from interchange.rule.rule import RAW, Rule

if TYPE_CHECKING:
    from interchange.files.trajectories import Trajectories

_log = logging.getLogger(__name__)
_BUDGET = 2 << 30  # bytes of one table


def import_npy(
    path: str | os.PathLike[str],
    *,
    names: Sequence[str] = (),
    features: Mapping[str, str] | None = None,
    scale: float = 1.0,
    columns: Sequence[int] = (),
    target: int = -1,
    drop_nan: bool = False,
) -> "Trajectories":
    """A table of samples, float32 or float64 [rows, columns + 1], one column of them the target u/scale.

    Args:
        names: of the columns; ``x0``, ``x1``, ... by their numbers in the table by default.
        columns: numbers of those to keep, from 0; all but the target by default.
        target: number of the target's column; the last by default.
        drop_nan: leave out rows with a value that is not finite, and say how many.
        features: name -> its expression over ``g``, where a column has one.

    Raises:
        L2OError: not such a table, damaged, or a value that is not finite.
    """
    from interchange.files.trajectories import Samples, Trajectories

    table = _read_npy(path)
    kept, target = _chosen(path, table.shape[1], columns, target)
    table = _finite(path, table, [*kept, target], drop_nan)
    names = list(names) or [f"x{k}" for k in kept]
    if len(names) != len(kept) or len(set(names)) != len(kept):
        shown = ", ".join(names)[:200]
        raise L2OError(
            f"{path}: expected {len(kept)} distinct names, one per column but the target, got {shown}"
        )
    texts = {name: ex.to_text(parse(text, RAW)) for name, text in (features or {}).items()}
    _check_columns(names, texts)
    return Trajectories(
        features={name: texts.get(name, "") for name in names},
        runs={},
        config={"file": Path(path).name, "table_sha256": content_hash(np.ascontiguousarray(table).data)},
        created_by=f"symbolic-l2o {__version__}",
        samples=Samples(
            np.ascontiguousarray(table[:, :-1]), table[:, -1].copy(), np.ones(len(kept)), float(scale)
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
    """A table of floats; its size is known to fit before anything is allocated."""
    try:
        with open_regular(path) as file:
            try:
                shape, dtype = npy_header(file)
            except HEADER_ERRORS as error:
                reason = " ".join(str(error).split())[:100]
                raise L2OError(f"{path}: expected a whole .npy file of numbers, got {reason!r}") from None
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
    return table.astype(dtype.newbyteorder("="), copy=False)


def _chosen(path: Any, width: int, columns: Sequence[int], target: int) -> tuple[list[int], int]:
    """The numbers of the columns that are kept, and of the target."""
    for number in (*columns, target):
        if not -width <= number < width:
            raise L2OError(f"{path}: expected columns from 0 to {width - 1}, got {number}")
    target %= width
    kept = [number % width for number in columns] or [k for k in range(width) if k != target]
    if target in kept or len(set(kept)) != len(kept):
        raise L2OError(
            f"{path}: expected each column once and the target {target} not among them, got {kept}"
        )
    return kept, target


def _finite(path: Any, table: np.ndarray, kept: list[int], drop: bool) -> np.ndarray:
    """The columns kept, without rows that are not finite, or a refusal."""
    table = table[:, kept]
    finite = np.isfinite(table)
    whole = finite.all(1)
    if whole.all():
        return table
    row, column = map(int, np.unravel_index(np.argmin(finite), table.shape))
    found = f"got {table[row, column]} at row {row}, column {kept[column]} (from 0)"
    if not drop or not whole.any():
        raise L2OError(f"{path}: expected finite numbers, {found}; leave such rows out with --drop-nan")
    _log.warning("%s: %d of %d rows are left out, not finite", path, (~whole).sum(), len(whole))
    return table[whole]


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
