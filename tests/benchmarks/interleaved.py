"""Timing of alternatives side by side: one process, one round after another, medians and their ratios."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def compare(cases: Mapping[str, Callable[[], Any]], rounds: int = 15, warm_up: int = 3) -> dict[str, float]:
    """Median seconds of a call of each case; a round calls each case once, so that noise hits all alike."""
    for case in cases.values():
        for _ in range(warm_up):
            case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        order = list(cases)[number % len(cases) :] + list(cases)[: number % len(cases)]
        for name in order:
            start = time.perf_counter()
            cases[name]()
            seconds[name].append(time.perf_counter() - start)
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
