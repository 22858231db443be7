"""Mapping complexity: how many nodes it takes to say what an optimizer does (MATH.md section 5)."""

import dataclasses
import time
from collections.abc import Callable

from interchange.analysis.measures.fit import fit
from interchange.analysis.measures.perception import perception
from interchange.analysis.recorded import Recorded
from interchange.analysis.subjects import Subject
from interchange.distill.config import DistillConfig
from interchange.distill.run import search_front
from interchange.files.trajectories import Trajectories
from interchange.rule.choice import exact, shortest_within
from interchange.rule.rule import Rule


@dataclasses.dataclass(frozen=True, eq=False)
class Searched:
    """What one search gave.

    Attributes:
        nodes: of the smallest rule about as good as the best: within 0.01 of its validation R2 and with at
            most three times its 1 - R2; or of the smallest that leaves only the recording's rounding.
        r2: of that rule on the test runs.
        front: all rules, shortest first.
    """

    seed: int
    nodes: int
    r2: float
    front: tuple[Rule, ...]


def complexity(
    trajectories: Trajectories,
    config: DistillConfig,
    seeds: int,
    tick: Callable[[str], None] = lambda what: None,
) -> list[Searched]:
    """One search per seed of what was recorded.

    Args:
        config: of one search; its seed counts from here.
        tick: called with what has just been done.

    Raises:
        L2OError: a search found nothing.
    """
    found = []
    for seed in range(config.seed, config.seed + seeds):
        front = search_front(trajectories, dataclasses.replace(config, seed=seed), time.monotonic())
        best = exact(front) or shortest_within(front)
        score = best.provenance["r2"].get("test")
        score = best.provenance["r2"]["valid"] if score is None else score
        found.append(Searched(seed, best.complexity, score, tuple(front)))
        tick(f"search {seed}")
    return found


@dataclasses.dataclass(frozen=True)
class Point:
    """A rule of a front: its size, its R2 on the recorded updates and its perception field in total."""

    nodes: int
    r2: float
    field: float


def points(front: tuple[Rule, ...], data: Recorded, seed: int = 0) -> list[Point]:
    """Fit and field against complexity; R2 is nan without recorded updates."""
    found = []
    for rule in front:
        subject = Subject(rule.name, rule)
        score = fit(subject, data).pooled if data.updates is not None else float("nan")
        found.append(Point(rule.complexity, score, perception(subject, data, seed).total))
    return found
