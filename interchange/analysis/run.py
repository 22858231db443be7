"""Analyse optimizers: ``python -m interchange.analysis SOURCE... [--trajectories FILE] [--out FOLDER]``."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import L2OError
from common.metrics import number
from common.run.cli import Progress
from common.run.cli import run as run_command
from common.run.runs import finite_or_none
from common.run.storage import atomic_write
from interchange.analysis.config import AnalysisConfig
from interchange.sanity.teachers import aligned

if TYPE_CHECKING:
    from interchange.analysis.recorded import Recorded
    from interchange.analysis.subjects import Subject

FORMAT, FORMAT_VERSION = "l2o-analysis", 1


def analyse(config: AnalysisConfig) -> dict[str, Any]:
    """Everything that is known of the sources, JSON-ready but for infinite numbers and nan (FORMATS.md).

    Raises:
        L2OError: an unknown source, a broken file, an input that was not recorded.
    """
    from interchange.analysis import subjects
    from interchange.analysis.recorded import noise, recorded
    from interchange.files.trajectories import load_trajectories

    sources = subjects.load_all(config.sources)
    trajectories = load_trajectories(config.trajectories) if config.trajectories else None
    data = noise(config.seed) if trajectories is None else recorded(trajectories)
    with Progress("analysis", len(sources), quiet=config.quiet) as progress:
        rows = []
        for source in sources:
            rows.append(_measured(source, data, config))
            progress.advance(done=source.name)
    about = None
    if trajectories is not None:
        steps, coordinates = data.shape
        about = {"sha256": trajectories.sha256, "source": data.source, "steps": steps}
        about |= {"coordinates": coordinates, "tensors": list(data.tensor_names)}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "seed": config.seed,
        "trajectories": about,
        "optimizers": rows,
    }


def _measured(source: "Subject", data: "Recorded", config: AnalysisConfig) -> dict[str, Any]:
    """One optimizer."""
    from interchange.analysis.fit import fit
    from interchange.analysis.perception import perception
    from interchange.rule.rule import Rule

    rule = source.loaded if isinstance(source.loaded, Rule) else None
    row: dict[str, Any] = {"name": source.name, "kind": source.kind, "sha256": source.loaded.sha256}
    row["nodes"] = rule.complexity if rule else None
    row["state_floats"] = rule.state_floats if rule and not rule.undefined else None
    if rule is None:
        row["state_floats"] = source.loaded.row.state_floats()
    row["r2"] = dataclasses.asdict(fit(source, data)) if data.updates is not None else None
    seen = perception(source, data, config.seed)
    row["perception"] = {
        "fields": seen.fields,
        "total": seen.total,
        "beyond": seen.beyond,
        "sensitivity": {name: values.tolist() for name, values in seen.sensitivity.items()},
    }
    return row


def table_text(found: Mapping[str, Any]) -> str:
    """The optimizers as an aligned table."""
    head = ("optimizer", "nodes", "floats", "R2", "early", "middle", "late", "at best lr", "TPF", "by input")
    return aligned(head, [_cells(row) for row in found["optimizers"]])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    scores, seen = row["r2"], row["perception"]
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


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """The analysis as files in a folder."""
    text = json.dumps(finite_or_none(found), indent=1, allow_nan=False) + "\n"
    atomic_write(folder / "analysis.json", text)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""

    def body(config: AnalysisConfig) -> None:
        folder = Path(config.out)
        if config.out and (folder / "analysis.json").exists() and not config.overwrite:
            raise L2OError(
                f"--out {folder} holds an analysis; replace it with --overwrite or choose another folder"
            )
        found = analyse(config)
        if config.out:
            write(folder, found)
        if not config.quiet:
            print(table_text(found))
            if config.out:
                print(f"analysis: {folder / 'analysis.json'}")

    return run_command(
        AnalysisConfig,
        body,
        argv,
        prog="python -m interchange.analysis",
        description="Measure what optimizers do: their fit to recorded updates, how far back they look.",
        positional=("sources",),
        required=("sources",),
    )
