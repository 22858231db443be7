"""The R2 table: recorded optimizers distilled, their R2 on the test runs beside the paper's.

Zheng et al. 2022 (ICLR) give one R2 on each of two problems, P1 and P2, for equations of 67 to 220 nodes.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import L2OError
from common.run.parallel import Run
from common.run.storage import loads_json
from interchange.distill.config import DistillConfig
from interchange.distill.run import search_front
from interchange.files.trajectories import SPLITS, Trajectories, load_trajectories
from interchange.rule.rule import Rule
from interchange.sanity.search import SanityConfig, text
from interchange.search.samples import sequences

SMALL, LARGE = 25, 50  # nodes: the sizes of the table
ENOUGH = 0.95  # R2 of the smallest rule that is looked for
_SECONDS = 60.0  # unless given
_SCORES = (f"r2_{SMALL}", f"r2_{LARGE}")


@dataclasses.dataclass(frozen=True)
class Target:
    """What to beat.

    Attributes:
        paper: R2 of Zheng et al. 2022 on P1 and P2; None where it has none.
        bars: R2 wanted with at most 25 and at most 50 nodes; None for no bar.
    """

    paper: tuple[float, float] | None = None
    bars: tuple[float, float] | None = None


TARGETS = {
    "dm": Target((0.46, 0.54), (0.70, 0.88)),
    "dm_p5": Target((0.46, 0.54)),
    "dm_raw": Target((0.46, 0.54), (0.70, 0.88)),
    "rnnprop": Target((0.93, 0.94), (0.88, 0.95)),
    "rnnprop_lv": Target((0.93, 0.94)),
    "rp_s": Target(None, (0.92, 0.97)),
    "rp_si": Target((0.94, 0.94), (0.92, 0.97)),
    "rp_si_n": Target((0.94, 0.94)),
    "rp_extra": Target(None, (0.92, 0.97)),
    "momentum(0.5)": Target((0.83, 0.85)),
    "adam(0.9, 0.9)": Target((0.25, 0.31)),
}


@dataclasses.dataclass(frozen=True)
class Distilled:
    """What one seed gave.

    Attributes:
        r2_25, r2_50: on the test runs, of the rule best on the validation runs with so many nodes at most;
            None where there is none.
        nodes: of the smallest rule with 0.95 on the test runs, or None.
        front: nodes, R2 on validation and on test runs, and text of every rule, shortest first.
    """

    r2_25: float | None
    r2_50: float | None
    nodes: int | None
    seconds: float
    front: list[dict[str, Any]]


def load(files: Sequence[str]) -> dict[str, Trajectories]:
    """The recordings by what they are called in the table.

    Raises:
        L2OError: a file is broken, or without a split.
    """
    recordings: dict[str, Trajectories] = {}
    for file in files:
        trajectories = load_trajectories(file)
        try:
            for split in SPLITS:
                sequences(trajectories, split)
        except L2OError as error:
            raise L2OError(f"{file}: {error}") from error
        name = kind(trajectories) or Path(file).stem
        places = (name, f"{name} {Path(file).parent.name}", f"{name} {file}")
        recordings[next((place for place in places if place not in recordings), file)] = trajectories
    return recordings


def kind(trajectories: Trajectories) -> str:
    """The teacher's row, or an optimizer with the constants the paper has; "" for a table of samples."""
    if not trajectories.runs:
        return ""
    source = loads_json(next(iter(trajectories.runs.values())).source_json or "{}", "the recording's source")
    if not isinstance(source, dict):
        return ""
    name = str(source.get("rule", source.get("name", "")))
    constants = source.get("constants", source)
    if name in ("momentum", "sgd") and 0.5 in (constants.get("beta"), constants.get("momentum")):
        return "momentum(0.5)"
    if name == "adam" and (constants.get("beta1"), constants.get("beta2")) == (0.9, 0.9):
        return "adam(0.9, 0.9)"
    return name


def job(name: str, trajectories: Trajectories, config: DistillConfig) -> tuple[str, int, Distilled]:
    """What a worker is sent, data and all: distill one recording with one seed."""
    started = time.monotonic()
    try:
        front = search_front(trajectories, config, started)
    except L2OError as error:
        raise L2OError(f"{name}, seed {config.seed}: {error}") from error
    return name, config.seed, summary(front, time.monotonic() - started)


def summary(front: Sequence[Rule], seconds: float) -> Distilled:
    """What the table needs of a front."""
    points = [
        {
            "nodes": rule.complexity,
            **{split: rule.provenance["r2"][split] for split in ("valid", "test")},
            "rule": text(rule),
        }
        for rule in front
    ]
    enough = [point["nodes"] for point in points if point["test"] >= ENOUGH]
    return Distilled(
        *(_best(points, size) for size in (SMALL, LARGE)), min(enough, default=None), seconds, points
    )


def _best(points: Sequence[Mapping[str, Any]], size: int) -> float | None:
    """Test R2 of the rule with the highest validation R2 of at most ``size`` nodes."""
    fitting = [point for point in points if point["nodes"] <= size]
    return max(fitting, key=lambda point: point["valid"])["test"] if fitting else None


def measure(
    recordings: Mapping[str, Trajectories],
    config: SanityConfig,
    run: Run,
    tick: Callable[[str, float], None] = lambda what, r2: None,
) -> list[dict]:
    """One row per recording: medians over seeds beside the paper's figures and the bars, JSON-ready.

    Args:
        run: takes the jobs, from ``common.run.parallel``.
        tick: called with what has just been done, and its R2 with at most 50 nodes.
    """
    config = config.for_jobs()
    jobs = [
        (name, trajectories, config.distillation(_SECONDS, LARGE, seed, name))
        for name, trajectories in recordings.items()
        for seed in range(config.seeds)
    ]
    found: dict[tuple[str, int], Distilled] = {}
    for name, seed, result in run(job, jobs):
        found[name, seed] = result
        tick(f"{name}, seed {seed}", math.nan if result.r2_50 is None else result.r2_50)
    return [
        _row(name, trajectories, [found[name, k] for k in range(config.seeds)])
        for name, trajectories in recordings.items()
    ]


def _row(name: str, trajectories: Trajectories, runs: Sequence[Distilled]) -> dict:
    target = TARGETS.get(kind(trajectories), Target())
    medians = {key: _median([getattr(run, key) for run in runs], -math.inf) for key in _SCORES}
    medians["nodes"] = _median([run.nodes for run in runs], math.inf)
    pairs = zip((medians[key] for key in _SCORES), target.bars or (), strict=False)
    passed = [r2 is not None and r2 >= bar for r2, bar in pairs]
    first = next(iter(trajectories.runs.values()), None)
    return {
        "teacher": name,
        "problem": first.problem if first else "",
        "sha256": trajectories.sha256,
        **medians,
        "seconds": statistics.median(run.seconds for run in runs),
        "bars": list(target.bars) if target.bars else None,
        "passed": passed or None,
        "paper_r2": list(target.paper) if target.paper else None,
        "runs": [dataclasses.asdict(run) for run in runs],
    }


def _median(values: Sequence[float | None], worst: float) -> float | None:
    """The median with ``worst`` for what is missing; None where it is missing itself."""
    value = statistics.median(worst if value is None else value for value in values)
    return value if math.isfinite(value) else None


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as an aligned table; a dash where there is no such rule, bar or figure."""
    head = (
        "recording",
        f"R2 <= {SMALL}",
        f"R2 <= {LARGE}",
        f"nodes for {ENOUGH}",
        "s",
        "bars",
        "paper P1 / P2",
    )
    cells = [
        (
            row["teacher"],
            *(_shown(row[key], ".4f") for key in _SCORES),
            _shown(row["nodes"], "g"),
            f"{row['seconds']:.1f}",
            _bars(row["bars"], row["passed"]),
            "-" if row["paper_r2"] is None else " / ".join(f"{value:.2f}" for value in row["paper_r2"]),
        )
        for row in rows
    ]
    return aligned(head, cells)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _bars(bars: Sequence[float] | None, passed: Sequence[bool] | None) -> str:
    if not bars or not passed:
        return "-"
    pairs = zip(bars, passed, strict=True)
    return " / ".join(f"{bar:.2f} {'met' if met else 'MISSED'}" for bar, met in pairs)


def aligned(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Lines with columns of equal width, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in (head, *cells)
    )
