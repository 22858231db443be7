"""The paper's tables: ``python -m interchange.sanity [--trajectories FILE ...] [--json FILE]``.

Known rules found again from gradients and updates, and recorded optimizers distilled (Zheng et al. 2022,
sanity checks and R2), with times: held-out R2, nodes, whether an equation is the true one; medians of seeds.
"""

import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence

from common.run.cli import Progress
from common.run.cli import run as run_command
from common.run.parallel import Run, parallel
from common.run.runs import finite_or_none
from common.run.storage import atomic_write
from interchange.sanity import search as sanity_search
from interchange.sanity import teachers as sanity_teachers
from interchange.sanity.rules import KNOWN, Known
from interchange.sanity.search import Found, SanityConfig, choose, find

__all__ = ["Found", "SanityConfig", "choose", "find", "main", "measure", "table_text"]
FORMAT, FORMAT_VERSION = "l2o-sanity", 1


def measure(config: SanityConfig, run: Run, tick: Callable[[str], None] = lambda what: None) -> list[dict]:
    """One row per rule: medians over seeds beside the paper's figures, JSON-ready.

    Args:
        run: takes the jobs, from ``common.run.parallel``.
        tick: called with what has just been done.
    """
    config = config.for_jobs()
    names = config.rules or tuple(KNOWN)
    found: dict[tuple[str, int], Found] = {}
    jobs = [(name, config, seed) for name in names for seed in range(config.seeds)]
    for name, seed, result in run(sanity_search.job, jobs):
        found[name, seed] = result
        tick(f"{name}, seed {seed}")
    return [_row(name, KNOWN[name], [found[name, k] for k in range(config.seeds)]) for name in names]


def _row(name: str, known: Known, runs: Sequence[Found]) -> dict:
    medians = {
        key: statistics.median(getattr(run, key) for run in runs)
        for key in ("r2", "r2_each", "nodes", "seconds")
    }
    paper_r2, paper_seconds = known.paper or (None, None)
    return {
        "rule": name,
        **medians,
        "true": sum(run.true for run in runs),
        "bar": known.bar,
        "passed": medians["r2"] >= known.bar,
        "paper_r2": paper_r2,
        "paper_seconds": paper_seconds,
        "runs": [dataclasses.asdict(run) for run in runs],
    }


def table_text(rows: Sequence[dict]) -> str:
    """The rows as an aligned table; a dash where the paper has no figure."""
    head = ("rule", "R2", "R2 each", "nodes", "s", "true form", "bar", "paper R2", "paper s")
    cells = [
        (
            row["rule"],
            _floor(row["r2"]),
            _floor(row["r2_each"]),
            f"{row['nodes']:g}",
            f"{row['seconds']:.1f}",
            f"{row['true']} of {len(row['runs'])}",
            f"{row['bar']:g}" + (" met" if row["passed"] else " MISSED"),
            "-" if row["paper_r2"] is None else f"{row['paper_r2']:.2f}",
            "-" if row["paper_seconds"] is None else f"{row['paper_seconds']:.0f}",
        )
        for row in rows
    ]
    return sanity_teachers.aligned(head, cells)


def _floor(value: float) -> str:
    """Six decimals, cut and not rounded: 1 is shown for what is 1 to 1e-9 only."""
    if not math.isfinite(value) or value >= 1.0 - 1e-9:
        return f"{value:.6f}"
    return f"{math.floor(value * 1e6) / 1e6:.6f}"


def tables(config: SanityConfig) -> tuple[list[dict], list[dict]]:
    """Rows of known rules and of recordings; only of these where some are given and no rules."""
    recordings = sanity_teachers.load(config.trajectories)  # a bad file is found before anything is searched
    rules = config.rules or (() if recordings else tuple(KNOWN))
    total = (len(rules) + len(recordings)) * (1 if config.quick else config.seeds)
    rows, teachers = [], []
    with (
        Progress("sanity", total, quiet=config.quiet) as progress,
        parallel(config.jobs, config.cluster) as run,
    ):
        if rules:
            rows = measure(config, run, lambda what: progress.advance(done=what))
        if recordings:
            teachers = sanity_teachers.measure(
                recordings, config, run, lambda what, r2: progress.advance(done=what, r2=r2)
            )
    return rows, teachers


def sanity(config: SanityConfig) -> tuple[list[dict], list[dict]]:
    """``tables``, written to ``config.json`` where that is given."""
    rows, teachers = tables(config)
    if config.json:
        settings = {key: value for key, value in dataclasses.asdict(config).items() if key != "json"}
        payload = {"format": FORMAT, "format_version": FORMAT_VERSION, "settings": settings}
        payload |= {"rows": rows, "teachers": teachers}
        atomic_write(config.json, json.dumps(finite_or_none(payload), indent=1, allow_nan=False) + "\n")
    return rows, teachers


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code, 0 whether the bars are met or not."""

    def body(config: SanityConfig) -> None:
        rows, teachers = sanity(config)
        if not config.quiet:
            shown = [table_text(rows)] * bool(rows) + [sanity_teachers.table_text(teachers)] * bool(teachers)
            print("\n\n".join(shown))

    return run_command(
        SanityConfig,
        body,
        argv,
        prog="python -m interchange.sanity",
        description="Find known optimizers again, and distill recorded ones; the paper's tables with times.",
    )


if __name__ == "__main__":
    sys.exit(main())
