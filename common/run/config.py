"""Configurations: frozen dataclasses, read strictly, resolved as defaults < file < command line.

A field's help text, choices and bounds stand in its metadata (``option``), from which
``common.run.cli`` makes the flags. An unknown key, a wrong type or a value out of bounds is an
``L2OError`` that names the key.
"""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from common.errors import L2OError
from common.run.kinds import JSON, SETTINGS, kind
from common.run.storage import read_file, read_json
from common.tables.problems import PROBLEMS
from common.training import PLAIN, Training

Config = TypeVar("Config")
_LIMIT = 1 << 16  # bytes of a configuration file
_DEPTH = 100


def option(
    default: Any,
    help: str,
    *,
    choices: Callable[[], Iterable[str]] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    empty: bool = False,
    several: bool = False,
) -> Any:
    """A dataclass field with what the command line needs to know about it.

    Args:
        default: the default; ``dataclasses.MISSING`` makes the field required.
        help: one line for ``--help``, with the unit where there is one.
        choices: gives the allowed values when asked.
        low, above, high: bounds, inclusive, exclusive and inclusive.
        empty: "" is allowed beside the choices.
        several: a comma list of choices is allowed, each once.
    """
    metadata = {"help": help, "choices": choices, "low": low, "above": above, "high": high, "empty": empty}
    metadata["several"] = several
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Fields every command has."""

    seed: int = option(0, "seed of everything random", low=0, high=2**63 - 1)
    device: str = option("cpu", "cpu, cuda, cuda:1 ...")
    dtype: str = option("float32", "arithmetic", choices=lambda: ("float32", "float64"))
    out: str = option("", "where to write; a sensible place is chosen and printed if not given")
    quiet: bool = option(False, "print nothing but errors")
    data_dir: str = option("", "folder with data sets; $L2O_DATA if not given")
    overwrite: bool = option(False, "replace what --out already holds")

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnProblem(Common):
    """Fields of commands that run on one problem.

    Class variables are settings that only one command has: what they are for the others.
    """

    split: ClassVar[str] = "evaluation"
    start_scale: ClassVar[float] = 0.0
    training: ClassVar[Training] = PLAIN

    # "" stands in the configuration of a run on tasks of the caller's own.
    problem: str = option("digits-mlp", "row of the problem table", choices=lambda: PROBLEMS, empty=True)
    batch_size: int = option(0, "mini-batch size; 0 takes the problem's own", low=0)
    dataset: str = option("", "data instead of the problem's: a data set, synthetic, or an .npz of your own")
    start: str = option("", "start from the parameters an optimize run ended with (transfer learning)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trains(OnProblem):
    """Fields of commands that train optimizees as networks are trained, the same for every optimizer."""

    test_every: int = option(
        0,
        "look at the test images every so many steps, not at the end alone; with --passes after each",
        low=0,
    )
    accumulate: int = option(1, "mini-batches of a step, which takes the mean of their gradients", low=1)
    average: float = option(
        0.0, "test and keep a moving average of the parameters, of this decay, as 0.999; 0 is none", low=0
    )
    bfloat16: bool = option(False, "matrix products and convolutions of the training in bfloat16")
    clip_norm: float = option(
        0.0, "scale gradients down to this norm, over all tensors, where theirs is larger; 0 is none", low=0
    )
    label_smoothing: float = option(
        0.0, "share of every label that is spread over all classes, in training", low=0, high=1
    )
    decay_vectors: bool = option(
        True, "weight decay of biases, scales and shifts of norms, and whatever has one axis, too"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average >= 1.0:
            raise L2OError(f"--average: expected a decay below 1, got {self.average:g}")
        if self.bfloat16 and self.dtype != "float32":
            raise L2OError(f"--bfloat16: expected --dtype float32 for all else, got {self.dtype}")

    @property
    def training(self) -> Training:
        """How steps are taken."""
        return Training(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Training)})


def check(config: Any) -> None:
    """Check choices, bounds and finiteness of every field; the first fault raises ``L2OError``."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values = value if isinstance(value, tuple) else (value,)
        for item in values:
            _check_value(field, item)


def _check_value(field: dataclasses.Field, value: Any) -> None:
    flag = "--" + field.name.replace("_", "-")
    choices = field.metadata.get("choices")
    if choices and field.metadata.get("several") and "," in value:
        parts = value.split(",")
        if twice := [part for part in parts if parts.count(part) > 1]:
            raise L2OError(f"{flag}: expected each once, got {twice[0]!r} twice")
        for part in parts:
            _check_choice(flag, choices(), part)
    elif choices and not (value == "" and field.metadata["empty"]):
        _check_choice(flag, choices(), value)
    if isinstance(value, float) and not math.isfinite(value):
        raise L2OError(f"{flag}: expected a finite number, got {value}")
    for key, wrong, words in (
        ("low", lambda v, b: v < b, "at least"),
        ("above", lambda v, b: v <= b, "a number above"),
        ("high", lambda v, b: v > b, "at most"),
    ):
        bound = field.metadata.get(key)
        if bound is not None and wrong(value, bound):
            raise L2OError(f"{flag}: expected {words} {bound:g}, got {value}")


def _check_choice(flag: str, table: Iterable[str], value: Any) -> None:
    if isinstance(table, Mapping):
        table[value]  # a registry's own message lists the known names
    elif value not in table:
        raise L2OError(f"{flag}: expected one of {', '.join(table)}, got {value!r}")


def from_dict(cls: type[Config], values: Mapping[str, Any], where: str = "configuration") -> Config:
    """Build ``cls`` from plain data; unknown keys and wrong types raise ``L2OError``."""
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            raise L2OError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(known))}")
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise L2OError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(typing.get_args(kind)[0], item, where) for item in value)
    if origin in (typing.Union, types.UnionType):
        raise TypeError(f"{where}: union types are not configuration types")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise L2OError(
                f"{where}: expected a number of float64, got one of {len(str(value))} digits"
            ) from None
    if type(value) is not kind:
        raise L2OError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def load_file(path: str) -> dict[str, Any]:
    """The keys of a TOML or JSON configuration file; ``-`` in keys counts as ``_``."""
    what = f"--config {path}"
    if (found := kind(path)) not in ("", JSON, SETTINGS):
        raise L2OError(f"{what}: expected settings, got {found}; give a file of flags and their values")
    if Path(path).suffix != ".toml":
        values = read_json(path, _LIMIT)
    else:
        try:
            text = read_file(path, _LIMIT).decode()
            if any(line.count(".") + line.count("[") > _DEPTH for line in text.splitlines()):
                raise ValueError(f"a line of more than {_DEPTH} dots or brackets")  # takes quadratic time
            values = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            if isinstance(error, L2OError):
                raise
            raise L2OError(f"{what}: expected TOML, got a broken file: {error}; correct it") from None
    if not isinstance(values, dict):
        raise L2OError(f"{what}: expected keys and values, got {type(values).__name__}")
    return {key.replace("-", "_"): value for key, value in values.items()}


def resolve(cls: type[Config], flags: Mapping[str, Any], file: str = "") -> Config:
    """Defaults < file < flags."""
    values = load_file(file) if file else {}
    checked = from_dict(cls, values, f"--config {file}")
    # Made once, of all that was given: a default may depend on another field.
    return cls(**{name: getattr(checked, name) for name in values} | dict(flags))
