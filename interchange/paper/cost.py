"""What cells cost: their inner steps and the time of searches by configuration, seconds by a short probe."""

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from common.run.cli import span
from common.tables.curriculum import LENGTHS
from interchange.meta.config import TrainConfig
from interchange.paper.cells import Cell

if TYPE_CHECKING:
    from interchange.backend import Backend

_PROBE = 2  # epochs, of which the first compiles
_PROBE_STEPS = 40
_COUNTED = 30.0  # seconds of a search that has a number of candidates
_SELECTED = 20  # rules of a front, about


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one cell.

    Attributes:
        steps: inner steps with a meta-gradient; rolled: without; searched: seconds of searches.
        about: part of what cannot be known before, as where a curriculum ends: then it is the most.
    """

    steps: int = 0
    rolled: int = 0
    searched: float = 0.0
    about: bool = False


def cost(cell: Cell) -> Cost:
    """What a cell does, by its configuration."""
    config, command = cell.config, cell.command
    if command in ("train", "tune"):
        lengths = (config.lengths or LENGTHS) if config.curriculum else (config.epoch_length,)
        validated = config.epochs // max(config.validate_every, 1) * config.validation_tasks * lengths[-1]
        rollouts = 2 * config.pairs if config.estimator == "es" else 0
        steps = config.epochs * lengths[-1]
        return Cost(steps * (not rollouts), validated + steps * rollouts, about=config.curriculum)
    if command == "record":
        return Cost(rolled=config.steps * config.runs)
    if command == "distill":
        return Cost(searched=_COUNTED if config.evaluations else config.time)
    if command == "select":
        return Cost(rolled=config.steps * (_SELECTED * config.tasks + 8 * config.more), about=True)
    if command == "sanity":
        jobs = (len(config.rules) + len(config.trajectories)) * config.seeds
        return Cost(searched=jobs * (config.time or _COUNTED))
    if command == "evaluate":
        trials = config.trials * config.validation_seeds * len(config.schedules)
        runs = len(config.optimizers) * (trials + config.seeds)
        return Cost(rolled=runs * sum(config.steps), about=bool(config.trials))
    return Cost()


def probe(cells: Mapping[str, Cell], backend: "Backend") -> dict[tuple[str, str], float]:
    """Seconds of an inner step of training, measured here: (teacher, problem) -> seconds."""
    from interchange.commands.train import train

    found: dict[tuple[str, str], float] = {}
    for cell in cells.values():
        config = cell.config
        if not isinstance(config, TrainConfig) or (config.teacher, config.problem) in found:
            continue
        with tempfile.TemporaryDirectory() as folder:
            short = TrainConfig(
                teacher=config.teacher,
                problem=config.problem,
                epochs=_PROBE,
                epoch_length=_PROBE_STEPS,
                validate_every=0,
                quiet=True,
                out=str(Path(folder, "probe")),
                **{name: getattr(config, name) for name in ("device", "dtype", "dataset", "data_dir")},
            )
            seconds = train(short, backend).history[-1]["seconds"]
        found[config.teacher, config.problem] = seconds / _PROBE_STEPS
    return found


def table(cells: Mapping[str, Cell], seconds: Mapping[tuple[str, str], float]) -> str:
    """The cells with their commands' work, and the time of all as far as the probe knows it."""
    rate = max(seconds.values(), default=math.nan)
    lines, known, unknown = [], 0.0, 0
    for name, cell in cells.items():
        one = cost(cell)
        of = "about " if one.about else ""
        words = [
            f"{count:,} {what}"
            for count, what in (
                (one.steps, "steps of meta-training"),
                (one.rolled, "steps of rollouts"),
                (round(one.searched), "seconds of searches"),
            )
            if count
        ]
        lines.append(f"  {name:<24} {of}{', '.join(words) or 'measurements'}")
        own = seconds.get((getattr(cell.config, "teacher", ""), getattr(cell.config, "problem", "")), rate)
        if name.startswith("figure2"):  # a net of another size
            unknown += one.steps + one.rolled
        else:
            known += own * (one.steps + one.rolled / 2.0) + one.searched
    text = f"about {span(known)} on this machine at the speed of a short probe, curricula at their longest"
    more = f"; besides {unknown:,} steps on the net of figure 2" if unknown else ""
    return "\n".join([*lines, text + more])
