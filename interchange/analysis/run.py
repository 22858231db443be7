"""Analyse optimizers: ``python -m interchange.analysis SOURCE... [--trajectories FILE] [--out FOLDER]``."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import L2OError
from common.extras import require
from common.metrics import number
from common.run.cli import Progress
from common.run.cli import run as run_command
from common.run.places import vacant
from interchange.analysis.config import AnalysisConfig
from interchange.sanity.teachers import aligned

if TYPE_CHECKING:
    from interchange.analysis.measures.courses import Courses
    from interchange.analysis.subjects import Subject
    from interchange.files.trajectories import Trajectories

FORMAT, FORMAT_VERSION = "l2o-analysis", 1


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """What a command names, read."""

    sources: "Sequence[Subject]"
    trajectories: "Trajectories | None"
    beside: "Sequence[Trajectories]" = ()

    @classmethod
    def load(cls, config: AnalysisConfig) -> "Given":
        """Read all files.

        Raises:
            L2OError: an unknown source, a broken file.
        """
        from interchange.analysis.subjects import load_all
        from interchange.files.trajectories import load_trajectories

        trajectories = load_trajectories(config.trajectories) if config.trajectories else None
        return cls(load_all(config.sources), trajectories, tuple(map(load_trajectories, config.beside)))


def analyse(config: AnalysisConfig, given: Given, progress: Progress | None = None) -> dict[str, Any]:
    """Everything that is known of the sources, JSON-ready but for infinite numbers and nan (FORMATS.md).

    Without ``out`` only size, fit and perception field are measured.

    Raises:
        L2OError: an input that was not recorded.
    """
    from interchange.analysis import measured

    trajectories = given.trajectories
    data = measured.Data.of(trajectories, config.seed)
    if config.out and data.judged.shape[0] == 1:
        raise L2OError(
            f"{config.trajectories}: a table has no steps to analyse; leave out --out for R2 alone"
        )

    def tick(what: str) -> None:
        if progress is not None:
            progress.advance(done=what)

    found: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "seed": config.seed}
    found["trajectories"], found["optimizers"] = None, []
    if trajectories is not None:
        steps, coordinates = data.judged.shape
        about = {"sha256": trajectories.sha256, "source": data.judged.source, "steps": steps}
        found["trajectories"] = about | {
            "coordinates": coordinates,
            "tensors": list(data.judged.tensor_names),
        }
    for source in given.sources:
        row = measured.quick(source, data, config.seed)
        if config.out:
            row |= measured.thorough(source, data, config)
        found["optimizers"].append(row)
        tick(source.name)
    found["recording"], found["complexity"] = [], []
    if config.out:
        found["recording"] = measured.of_recording(data)
    if trajectories is not None and config.seeds:
        found["complexity"] = measured.searches(trajectories, data, config, tick)
    return found


def side_by_side(config: AnalysisConfig, given: Given) -> "Courses | None":
    """The recording beside the others of ``config.beside``, from the same start; None without any."""
    from interchange.analysis.measures.courses import courses, names_of

    if given.trajectories is None or not given.beside:
        return None
    recordings = [given.trajectories, *given.beside]
    names = names_of((config.trajectories, *config.beside), recordings)
    return courses(dict(zip(names, recordings, strict=True)))


def written(config: AnalysisConfig) -> tuple[dict[str, Any], Path | None]:
    """``analyse`` with its files in ``config.out``: what was found, and the page; None without a folder.

    Raises:
        L2OError: as ``Given.load`` and ``analyse``; the folder holds an analysis already.
    """
    from interchange.analysis.output import write

    given = Given.load(config)
    if config.out:
        vacant(Path(config.out) / "analysis.json", config.overwrite)
        require("analysis --out", "matplotlib")
    beside = side_by_side(config, given)  # what does not fit is found before anything is measured
    with Progress("analysis", len(config.sources) + config.seeds, quiet=config.quiet) as progress:
        found = analyse(config, given, progress)
    return found, write(Path(config.out), found, given.sources, beside) if config.out else None


def table_text(found: Mapping[str, Any]) -> str:
    """The optimizers as an aligned table, and what else was found in a sentence each."""
    head = ("optimizer", "nodes", "floats", "R2", "early", "middle", "late", "at best lr", "TPF", "by input")
    lines = [aligned(head, [_cells(row) for row in found["optimizers"]])]
    lines += [row["told"] for row in (*found["recording"], *found["optimizers"]) if "told" in row]
    if runs := found["complexity"]:
        nodes, scores = zip(*((run["nodes"], run["r2"]) for run in runs), strict=True)
        lines.append(
            f"mapping complexity {sum(nodes) / len(runs):.1f} nodes at R2 {sum(scores) / len(runs):.4f}, "
            f"the mean of {len(runs)} searches"
        )
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    scores, seen = row["r2"], row["perception"] or {"total": None, "fields": {}}
    fits = [None] * 5
    if scores:
        parts = [scores["phases"].get(name) for name in ("early", "middle", "late")]
        fits = [scores["pooled"], *parts, scores["at_rate"]]
    return (
        row["name"],
        number(row["nodes"], "d"),
        number(row["state_floats"], "d"),
        *(number(value, ".4f") for value in fits),
        number(seen["total"], ".2f"),
        ", ".join(f"{name} {number(value, '.2f')}" for name, value in seen["fields"].items()),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""

    def body(config: AnalysisConfig) -> None:
        found, page = written(config)
        if not config.quiet:
            print(table_text(found))
            if page is not None:
                print(f"analysis: {page}")

    return run_command(
        AnalysisConfig,
        body,
        argv,
        prog="python -m interchange.analysis",
        description="Measure what optimizers do: their fit to recorded updates and how far back they look; "
        "with --out also mapping curves, what rules are made of, the nearest hand-made optimizers, figures.",
        positional=("sources",),
        required=("sources",),
    )
