"""Configurations: frozen dataclasses, read strictly, resolved as defaults < file < command line.

A field's help text, choices and bounds stand in its metadata (``option``), from which
``common.run.cli`` makes the flags. An unknown key, a wrong type or a value out of bounds is an
``L2OError`` that names the key.
"""

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from common.data.datasets import Split
from common.errors import L2OError
from common.tables.problems import PROBLEMS
from common.tables.teachers import INITIAL_WEIGHTS, TEACHERS

Config = TypeVar("Config")


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
    """Fields of commands that run on one problem."""

    # "" stands in the configuration of a run on tasks of the caller's own.
    problem: str = option("digits-mlp", "row of the problem table", choices=lambda: PROBLEMS, empty=True)
    batch_size: int = option(0, "mini-batch size; 0 takes the problem's own", low=0)
    dataset: str = option("", "data instead of the problem's: a data set, synthetic, or an .npz of your own")
    start: str = option("", "start from the parameters an optimize run ended with (transfer learning)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaLoop(OnProblem):
    """Fields of meta-training, of teachers and of rules (MATH.md section 2)."""

    problem: str = option(
        "digits-mlp",
        "row of the problem table, or several, a,b,c: optimizees take them in turn",
        choices=lambda: PROBLEMS,
        empty=True,
        several=True,
    )
    epochs: int = option(200, "meta-epochs, each on a fresh optimizee", low=1)
    epoch_length: int = option(200, "inner steps of an epoch", low=1)
    horizon: str = option("", "instead of --epoch-length: steps, or a range 20..2000, drawn log-uniformly")
    unroll: int = option(20, "inner steps between two meta-updates", low=1)
    tasks: int = option(1, "optimizees trained on at once; their meta-gradients are averaged", low=1)
    lr: float = option(1e-3, "learning rate of the meta-optimizer Adam", above=0)
    lr_decay: float = option(
        1.0, "meta learning rate at the end as a fraction of --lr (cosine)", low=0, high=1
    )
    loss: str = option("sum", "losses of one unroll: their sum or the last", choices=lambda: ("sum", "last"))
    validate_every: int = option(
        10, "epochs between validations; what is best there is kept (0: the last is kept)", low=0
    )
    validation_tasks: int = option(4, "optimizees of one validation, on each problem", low=1)
    average: float = option(
        0.0, "share of the last epochs whose averaged weights are validated too (0: none)", low=0, high=1
    )
    pairs: int = option(6, "antithetic pairs of rollouts (es, pes)", low=1)
    sigma: float = option(0.05, "size of the perturbations, relative to each weight's (es, pes)", above=0)
    jobs: int = option(1, "processes the pairs are shared out among (es, pes)", low=1)
    memory: float = option(
        0.0, "GiB the backward pass may take beside what it reads, where it is not compiled (0: unset)", low=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(MetaLoop):
    """Meta-training of a teacher (MATH.md section 2)."""

    teacher: str = option(
        "",
        "row of the teacher table; rp_s, or that of --init, if not given",
        choices=lambda: TEACHERS,
        empty=True,
    )
    inputs: str = option("", "features instead of the row's own, such as mt+gt+mom5+mom99")
    scale: float = option(0.0, "output scale instead of the row's own (0: the row's)", low=0)
    weights: str = option(
        "uniform", "initial weights: as the ICLR code's or Lv et al.'s", choices=lambda: INITIAL_WEIGHTS
    )
    coordinates: float = option(
        1.0, "share of coordinates in the meta-gradient, drawn anew per unroll", above=0, high=1
    )
    state_dtype: str = option(
        "",
        "the LSTM's state between steps in bfloat16: half its memory",
        choices=lambda: ("bfloat16",),
        empty=True,
    )
    random_scaling: float = option(
        0.0, "r: coordinates rescaled by exp(U(-r, r)) each; Lv et al. use 3 (0: none)", low=0, high=20
    )
    convex: bool = option(False, "add a convex function of 20 coordinates to the loss (Lv et al. 2017)")
    estimator: str = option(
        "first",
        "meta-gradient: first or second order, or evolution strategies (pes: in unrolls)",
        choices=lambda: ("first", "second", "es", "pes"),
    )
    sigma: float = option(0.01, "size of the perturbations of the weights (es, pes)", above=0)
    curriculum: bool = option(
        False, "epochs of 100, 200, 500 ... steps, longer where validation stalls (Chen et al. 2020)"
    )
    imitation: float = option(
        0.0, "probability that an epoch imitates Adam, RMSprop or NAG instead (same)", low=0, high=1
    )
    init: str = option("", "start from the teacher of this run or file, or a shipped one (fine-tuning)")
    resume: str = option("", "go on with this interrupted run")
    checkpoint_seconds: float = option(30.0, "seconds between checkpoints", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneConfig(MetaLoop):
    """Meta-tuning of a rule's constants (MATH.md section 3)."""

    rule: str = option("", "rule file")
    estimator: str = option(
        "es",
        "meta-gradient: evolution strategies (pes: in unrolls), first or second order, or forward mode",
        choices=lambda: ("first", "second", "forward", "es", "pes"),
    )
    epochs: int = option(30, "meta-epochs, each on a fresh optimizee", low=1)
    # A handful of constants costs little, and short unrolls make them greedy: on mnist-mlp an unroll of 20
    # raised the loss that one of 100 lowers.
    unroll: int = option(100, "inner steps between two meta-updates", low=1)
    lr: float = option(2e-2, "meta learning rate, relative to each constant's size", above=0)
    lr_decay: float = option(
        0.1, "meta learning rate at the end as a fraction of --lr (cosine)", low=0, high=1
    )
    validate_every: int = option(5, "epochs between validations; the best constants are kept", low=1)
    schedule: float = option(
        0.0, "divide the rule by 1 + C t, C tuned from this value (0: as it is)", low=0, high=1
    )
    constants: tuple[str, ...] = option((), "start values instead of the rule's own: c0=-0.5 c1=0.9 ...")
    factors: bool = option(
        False, "tune a factor on the update for each problem too, as a comparison will (es)"
    )
    kinds: bool = option(
        False, "constants for matrices, convolution kernels and vectors apart (decays stay shared)"
    )
    weight_decay: float = option(
        0.0, "give the rule decoupled weight decay, tuned from this value (0: as it is)", low=0, high=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordConfig(OnProblem):
    """Recording of trajectories (FORMATS.md section 1)."""

    source: str = option("", "a training run, teacher:RUN, rule:FILE or a baseline such as adam:lr=0.01")
    problem: str = option("", "row of the problem table; the run's own if not given")
    steps: int = option(300, "inner steps of a trajectory", low=2)
    runs: int = option(8, "number of trajectories, each on a fresh optimizee", low=3)
    samples: int = option(50_000, "rows in all: runs x steps x coordinates", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizeConfig(OnProblem):
    """Plain training of optimizees."""

    optimizer: str = option("", "teacher:RUN, rule:FILE or a baseline such as adam:lr=0.01")
    steps: int = option(200, "steps of a run", low=1)
    runs: int = option(1, "runs, each on a fresh optimizee", low=1)
    split: str = option("meta_train", "part of the data", choices=lambda: get_args(Split))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig(OnProblem):
    """Choice from a Pareto front by rolling the candidates out."""

    front: str = option("", "folder with front.csv and its rules")
    steps: int = option(200, "inner steps of a rollout", low=1)
    tasks: int = option(4, "validation optimizees per candidate", low=1)
    more: int = option(12, "further ones for each candidate that may be the best", low=0)
    jobs: int = option(1, "processes", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(OnProblem):
    """Fair comparison of optimizers (MATH.md section 6)."""

    problem: str = option("digits-mlp", "row of the problem table, several, a,b,c, or suite:core")
    optimizers: tuple[str, ...] = option(
        ("all",), "name[:key=value,...], teacher:RUN, rule:FILE, front:FOLDER, or all for every baseline"
    )
    steps: tuple[int, ...] = option(
        (), "horizons, each is tuned for; 200 if not given, and a suite has its own", low=1
    )
    split: str = option("evaluation", "part of the data", choices=lambda: get_args(Split))
    start_scale: float = option(
        0.0, "r: initial values multiplied by exp(U(-r, r)), one draw per coordinate", low=0, high=20
    )
    seeds: int = option(5, "test seeds", low=1)
    validation_seeds: int = option(3, "validation seeds for the choice of the learning rate", low=1)
    trials: int = option(7, "learning rates tried per optimizer, factor 2 apart (0: no tuning)", low=0)
    jobs: int = option(1, "processes", low=1)
    cluster: str = option("", "dask, dask:tcp://HOST:PORT, ray or ray:HOST:PORT instead of the local pool")
    report: bool = option(True, "write report.html too")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig(OnProblem):
    """The main job on the embedded data."""

    teacher: str = option("rp_s", "row of the teacher table", choices=lambda: TEACHERS)
    epochs: int = option(100, "meta-epochs of the teacher", low=1)
    time: int = option(45, "seconds for the symbolic search", low=1)
    steps: int = option(100, "inner steps of training and comparison", low=20)
    seeds: int = option(5, "test seeds of the comparison", low=2)
    jobs: int = option(2, "processes of the comparison", low=1)


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
        return float(value)
    if type(value) is not kind:
        raise L2OError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def load_file(path: str) -> dict[str, Any]:
    """The keys of a TOML or JSON configuration file; ``-`` in keys counts as ``_``."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise L2OError(f"--config {path}: cannot be read ({error}); give a TOML or JSON file") from None
    try:
        values = tomllib.loads(text) if Path(path).suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise L2OError(
            f"--config {path}: expected TOML (.toml) or JSON, got a broken file: {error}"
        ) from None
    if not isinstance(values, dict):
        raise L2OError(f"--config {path}: expected keys and values, got {type(values).__name__}")
    return {key.replace("-", "_"): value for key, value in values.items()}


def resolve(cls: type[Config], flags: Mapping[str, Any], file: str = "") -> Config:
    """Defaults < file < flags."""
    config = from_dict(cls, load_file(file), f"--config {file}") if file else cls()
    return dataclasses.replace(config, **flags)
