"""Other programs' files -> this project's, and back: ``python -m interchange.convert SOURCE --out X``.

What SOURCE is, its first bytes tell: equations (PySR, Operon; hall_of_fame.py) become a front of rules, a
table of samples (.npy) becomes a file of trajectories (.h5), and trajectories become a table.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import L2OError
from common.run.cli import run as run_command
from common.run.config import check, option
from common.run.lock import RunLock
from common.run.places import inside, vacant
from common.run.storage import ReadError, open_regular
from interchange.convert.tables import export_npy, import_npy
from interchange.dialects.table import DIALECTS
from interchange.rule.front import write_front

# What a folder stands for, the first that is there: recordings, or the equations of a run of PySR.
_INSIDE = ("trajectories.h5", "hall_of_fame.csv")
_NPY, _HDF5 = b"\x93NUMPY", b"\x89HDF"
# Kind of source -> the options it takes beside --out, --overwrite and --quiet.
_OPTIONS = {
    "equations": ("dialect", "scale", "feature", "operator", "strict"),
    ".npy": ("names", "scale", "feature", "columns", "target", "drop_nan"),
    ".h5": ("lags",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What ``python -m interchange.convert`` takes."""

    source: str = option("", "hall of fame (PySR, Operon), table of samples (.npy) or trajectories (.h5)")
    dialect: str = option("", "who wrote the equations, if not clear", choices=lambda: DIALECTS, empty=True)
    names: tuple[str, ...] = option((), "names of a table's columns but the target; x0, x1 ... if not given")
    columns: tuple[int, ...] = option((), "numbers of the table's columns to keep, from 0; all if not given")
    target: int = option(-1, "number of the table's column that is the target, from 0; -1 is the last")
    drop_nan: bool = option(False, "leave out rows of the table that are not finite")
    operator: tuple[str, ...] = option((), "NAME=EXPRESSION over x, y, z: an operator of the equations' own")
    strict: bool = option(False, "refuse equations of which one line cannot be read")
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


def convert(config: ConvertConfig) -> str:
    """Convert as ``config`` says; one line about what was written.

    Raises:
        L2OError: a broken source, an option it does not take, or something at ``--out`` already.
    """
    file = inside(config.source, "trajectories or a hall of fame", *_INSIDE)
    config = dataclasses.replace(config, source=str(file))
    kind = _kind(config.source)
    for field in dataclasses.fields(config):
        known = {"source", "out", "quiet", "overwrite", *_OPTIONS[kind]}
        if field.name not in known and getattr(config, field.name) != field.default:
            taken = ", ".join("--" + name.replace("_", "-") for name in _OPTIONS[kind])
            raise L2OError(f"--{field.name} says nothing about {config.source}, {kind}; it takes {taken}")
    out, features = Path(config.out), _features(config.feature)
    if kind == "equations":
        return _convert_equations(config, features, out)
    from interchange.files.trajectories import load_trajectories, save_trajectories

    if kind == ".h5":
        trajectories = load_trajectories(config.source)
        vacant(out, config.overwrite)
        rows, columns = export_npy(trajectories, out, lags=config.lags)
        return f"{out}: {rows} rows of {columns} columns, the last the target"
    chosen = {key: getattr(config, key) for key in ("names", "scale", "columns", "target", "drop_nan")}
    found = import_npy(config.source, features=features, **chosen)
    vacant(out, config.overwrite)
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

    chosen = {key: getattr(config, key) for key in ("dialect", "scale", "strict")}
    rules = import_hall_of_fame(config.source, features=features, operators=config.operator, **chosen)
    vacant(out / "front.csv", config.overwrite)
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
