"""What the benchmark programs share: flags, reports, and timing of alternatives side by side."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def compare(
    cases: Mapping[str, Callable[[], Any]],
    rounds: int = 15,
    warm_up: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of a call of each case; a round calls each case once, so that noise hits all alike.

    Args:
        clock: ``time.process_time`` for what this process computes itself, on a machine that has others.
    """
    for case in cases.values():
        for _ in range(warm_up):
            case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        order = list(cases)[number % len(cases) :] + list(cases)[: number % len(cases)]
        for name in order:
            start = clock()
            cases[name]()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(rows: Mapping[str, Mapping[str, float]], against: str) -> str:
    """One line per row: milliseconds of each case, in brackets the ratio to the case ``against``."""
    lines = []
    for label, medians in rows.items():
        base = medians[against]
        cells = [f"{name} {value * 1e3:.3f} ms ({value / base:.2f})" for name, value in medians.items()]
        lines.append(f"{label:>12}  " + "  ".join(cells))
    return "\n".join(lines)


def save(path: str | Path, rows: Mapping[str, Any]) -> None:
    """The measurements as JSON."""
    Path(path).write_text(json.dumps(rows, indent=1) + "\n")


def parser_of(doc: str, **defaults: int | float | str) -> argparse.ArgumentParser:
    """A parser whose help is ``doc``, with ``--json FILE`` and a flag of each default's type."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    parser.add_argument("--json", type=Path, help="file for the measurements")
    return parser


def tell(line: str) -> None:
    """How far it is, beside what is printed in the end."""
    print(line, file=sys.stderr, flush=True)
