"""What cells cost: their inner steps and the time of searches by configuration, seconds by a short probe."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from common.run.cli import span
from common.tables.curriculum import FEWEST_EVALUATIONS, LENGTHS
from interchange.commands.estimate import estimate
from interchange.meta.config import TrainConfig
from interchange.paper.cells import Cell

if TYPE_CHECKING:
    from interchange.backend import Backend

# A training without what makes its length unknown; one validation of one optimizee after the only epoch.
_PLAIN = {"recipe": "", "curriculum": False, "lengths": (), "imitation": 0.0, "stage_imitation": ()}
_PLAIN |= {"epochs": 1, "epoch_length": 100, "validate_every": 1, "validation_tasks": 1}
_COUNTED = 30.0  # seconds of a search that has a number of candidates
_SELECTED = 20  # rules of a front, about


# (teacher, problem) -> seconds of an inner step of training and of a rollout
Rates = Mapping[tuple[str, str], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one cell.

    Attributes:
        steps: inner steps with a meta-gradient; rolled: without; searched: seconds of searches.
        fewest: steps where every stage of a curriculum ends as soon as it may; ``steps`` are the most then.
        about: it cannot be known before.
    """

    steps: int = 0
    rolled: int = 0
    searched: float = 0.0
    fewest: int = 0
    about: bool = False


def cost(cell: Cell) -> Cost:
    """What a cell does, by its configuration."""
    config, command = cell.config, cell.command
    if command in ("train", "tune"):
        lengths = (config.lengths or LENGTHS) if config.curriculum else (config.epoch_length,)
        validated = config.epochs // max(config.validate_every, 1) * config.validation_tasks * lengths[-1]
        rollouts = 2 * config.pairs if config.estimator == "es" else 0
        steps = config.epochs * lengths[-1]
        fewest = steps
        if config.curriculum:
            fewest = min(steps, FEWEST_EVALUATIONS * config.validate_every * sum(lengths))
        own = {"fewest": fewest * (not rollouts), "about": config.curriculum}
        return Cost(steps * (not rollouts), validated * fewest // steps + steps * rollouts, **own)
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


def probe(cells: Mapping[str, Cell], backend: "Backend") -> Rates:
    """What inner steps take here, by the first steps of each training."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for cell in cells.values():
        config = cell.config
        if isinstance(config, TrainConfig) and (config.teacher, config.problem) not in found:
            plain = dataclasses.replace(config, **_PLAIN)
            taken = estimate(plain, "train", backend.NAME)
            found[config.teacher, config.problem] = taken.step, taken.validation / plain.epoch_length
    return found


def table(cells: Mapping[str, Cell], rates: Rates) -> str:
    """The cells with their commands' work, and the time of all as far as the probe knows it."""
    slowest = max(rates.values(), default=(math.nan, math.nan))
    lines, most, least, unknown = [], 0.0, 0.0, 0
    for name, cell in cells.items():
        one = cost(cell)
        of = f"{one.fewest:,} to " if one.fewest < one.steps else "about " if one.about else ""
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
        key = (getattr(cell.config, "teacher", ""), getattr(cell.config, "problem", ""))
        step, rolled = rates.get(key, slowest)
        if name.startswith("figure2"):  # a net of another size
            unknown += one.steps + one.rolled
        else:
            beside = rolled * one.rolled + one.searched
            least, most = least + step * one.fewest + beside, most + step * one.steps + beside
    text = f"about {span(least)} on this machine at the speed of a few steps"
    if least < most:
        text += f" if stages of curricula end as soon as they may, {span(most)} at the most"
    more = f"; besides {unknown:,} steps on the net of figure 2" if unknown else ""
    return "\n".join([*lines, text + more])
