"""The whole paper: ``python -m torch_impl.paper [--scale smoke|small|full] [--only ...] --out FOLDER``.

Runs what is not there yet of the cells that the tables and figures need, and writes ``paper.html`` and
``paper.json``: every number beside the published one, and a verdict on every claim.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import L2OError
from common.extras import require
from common.run.cli import run as run_command
from common.run.lock import RunLock
from common.run.runs import environment, finite_or_none
from common.run.storage import atomic_write, read_json
from interchange.commands.stages import Stages
from interchange.paper import plan
from interchange.paper.cells import Cells
from interchange.paper.config import PaperConfig
from interchange.paper.cost import probe, table

if TYPE_CHECKING:
    from interchange.backend import Backend

FORMAT, FORMAT_VERSION = "l2o-paper", 1
_IDENTITY = ("scale", "seed", "dtype", "problem", "dataset")  # what all cells of a folder have in common


def paper(config: PaperConfig, backend: "Backend") -> Path:
    """Make what ``config`` asks for in its folder; the path of the page, or with ``plan`` of the folder.

    Raises:
        L2OError: the folder is of other settings, data are missing, a cell fails.
    """
    from interchange.analysis import run as analysis
    from interchange.sanity import __main__ as sanity

    engines = () if config.amounts.engine == "linear" else ("pyoperon",)
    require("paper", "matplotlib", *engines)  # needed minutes later
    folder = plan.home(config)
    cells = plan.plan(config)
    trained = [cell.config for cell in cells.values() if cell.command in ("train", "tune")]
    for where in {(its.problem, its.dataset): its for its in trained}.values():
        backend.table_task(where, "validation", 0)  # missing data are found before anything is written
    if config.plan or config.scale == "full":
        print(table(cells, probe(cells, backend)), flush=True)
    if config.plan:
        for cell in cells.values():
            print(Stages(True, backend).line(cell.command, cell.config))
        return folder
    more = {"analysis": analysis.written, "sanity": sanity.sanity}
    stages = Stages(config.quiet, backend, more)
    with RunLock(folder):
        _settle(config, backend.NAME, folder)
        run = Cells(folder, cells, stages, anew=config.overwrite)
        run.run()
        if not config.quiet:
            print(f"\n{len(run.found)} of {len(cells)} cells were there")
        return _write(config, backend, run, folder)


def _settle(config: PaperConfig, backend: str, folder: Path) -> None:
    """Say what the folder is for, or refuse it where it is for something else."""
    file = folder / "settings.json"
    mine = {name: getattr(config, name) for name in _IDENTITY} | {"backend": backend}
    if file.exists() and not config.overwrite:
        there = read_json(file)
        if there != mine:
            differing = ", ".join(name for name in mine if there.get(name) != mine[name])
            raise L2OError(
                f"--out {folder} was begun with another {differing}; replace it with --overwrite or choose "
                "another folder"
            )
    atomic_write(file, json.dumps(mine, indent=1) + "\n")


def _write(config: PaperConfig, backend: "Backend", cells: Cells, folder: Path) -> Path:
    """``paper.json``, ``paper.html`` and ``figures/``; the page."""
    from interchange.paper.figures import draw
    from interchange.paper.measured import measure
    from interchange.paper.page import paper_page
    from interchange.paper.verdicts import UNKNOWN, verdicts

    found = measure(config)
    drawn = draw(config, found)
    judged = verdicts(found)
    made = environment()
    about = {
        "scale": ", ".join(filter(None, (config.scale, config.amounts.problem, config.dataset))),
        "note": config.amounts.told or "as much of everything as is meant",
        "backend": f"{backend.CREATED_BY}, {config.dtype}, seed {config.seed}",
        "Python": made["python"],
    }
    payload = {"format": FORMAT, "format_version": FORMAT_VERSION, "about": about, **found}
    payload |= {"verdicts": [dataclasses.asdict(verdict) for verdict in judged], "cells": cells.records}
    page = folder / "paper.html"
    atomic_write(page, paper_page(about, found, judged, drawn, cells.records))
    atomic_write(folder / "paper.json", json.dumps(finite_or_none(payload), indent=1, allow_nan=False) + "\n")
    if not config.quiet:
        for verdict in (verdict for verdict in judged if verdict.outcome != UNKNOWN):
            print(f"{verdict.outcome:>14}: {verdict.claim}: {verdict.ours} (published: {verdict.published})")
        print(f"paper: {page}")
    return page


def main(command: Callable[[PaperConfig], Any], name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of ``command``, the function of the backend called ``name``; the exit code."""

    def body(config: PaperConfig) -> None:
        command(config)

    return run_command(
        PaperConfig,
        body,
        argv,
        prog=f"python -m {name}_impl.paper",
        description="The tables and figures of the ICLR 2022 paper, and a verdict on each of its claims.",
        again="the same command goes on",
    )
