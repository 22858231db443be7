"""An analysis as files: JSON, CSV, figures and a page."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.run.runs import finite_or_none
from common.run.storage import atomic_write
from interchange.analysis import figures
from interchange.analysis.measures.courses import Courses
from interchange.analysis.measures.mapping import Curve
from interchange.analysis.page import analysis_page
from interchange.analysis.subjects import Subject
from interchange.rule.rule import Rule

_SUMMARY = (
    "optimizer",
    "kind",
    "nodes",
    "state_floats",
    "r2",
    "r2_at_rate",
    "rate",
    "tpf",
    "nearest",
    "nearest_r2",
)
_CURVES = ("figure", "optimizer", "series", "x", "y")


def write(folder: Path, found: Mapping[str, Any], sources: Sequence[Subject], beside: Courses | None) -> Path:
    """Write ``analysis.json``, ``summary.csv``, ``curves.csv``, ``analysis.html`` and ``figures/``.

    Returns:
        The page.
    """
    text = json.dumps(finite_or_none(found), indent=1, allow_nan=False) + "\n"
    drawn = draw(found, beside)
    rules = {s.name: s.loaded for s in sources if isinstance(s.loaded, Rule)}
    atomic_write(folder / "summary.csv", _table(_SUMMARY, map(_summary, found["optimizers"])))
    atomic_write(folder / "curves.csv", _table(_CURVES, _curves(found, beside)))
    for name, figure in drawn.items():
        atomic_write(folder / "figures" / f"{name}.svg", figure.svg)
        atomic_write(folder / "figures" / f"{name}.pdf", figure.pdf)
    page = folder / "analysis.html"
    atomic_write(page, analysis_page(found, drawn, rules))
    atomic_write(folder / "analysis.json", text)
    return page


def draw(found: Mapping[str, Any], beside: Courses | None) -> dict[str, figures.Drawn]:
    """All figures that there is something for, by name."""
    rows = found["optimizers"]
    seen = {row["name"]: row["perception"]["sensitivity"] for row in rows if row["perception"]}
    drawn = {"perception": figures.perception(seen)} if seen else {}
    mapped = {
        row["name"]: {
            name: Curve(**{key: None if value is None else np.array(value) for key, value in curve.items()})
            for name, curve in row["mapping"].items()
        }
        for row in rows
        if row["mapping"]
    }
    if mapped:
        drawn["mapping"] = figures.mapping(mapped)
    if gammas := {row["name"]: row["squashing"]["gamma"] for row in rows if row["squashing"]}:
        drawn["family"] = figures.family(gammas)
    fronts = {row["name"]: row["front"] for row in rows if row["front"]}
    fronts |= {f"search {run['seed']}": run["front"] for run in found["complexity"]}
    if fronts:
        drawn["complexity"] = figures.complexity(fronts)
    if beside is not None:
        drawn["courses"] = figures.courses(beside)
    return drawn


def _table(head: Sequence[str], rows: Iterator[Sequence[Any]]) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(head)
    lines.writerows(rows)
    return text.getvalue()


def _summary(row: Mapping[str, Any]) -> tuple[Any, ...]:
    fit, nearest = row["r2"] or {}, (row["nearest"] or [{}])[0]
    seen = row["perception"] or {}
    return (
        row["name"],
        row["kind"],
        row["nodes"],
        row["state_floats"],
        fit.get("pooled"),
        fit.get("at_rate"),
        fit.get("rate"),
        seen.get("total"),
        nearest.get("name"),
        nearest.get("r2"),
    )


def _curves(found: Mapping[str, Any], beside: Courses | None) -> Iterator[tuple[Any, ...]]:
    """Every point of every figure."""
    for row in found["optimizers"]:
        for name, values in (row["perception"] or {"sensitivity": {}})["sensitivity"].items():
            yield from (("perception", row["name"], name, lag, value) for lag, value in enumerate(values))
        for name, curve in row["mapping"].items():
            for part in ("middle", "low", "high", "fixed"):
                pairs = zip(curve["x"], curve[part] or (), strict=curve[part] is not None)
                yield from (("mapping", row["name"], f"{name} {part}", x, y) for x, y in pairs)
    fronts = [(row["name"], row["front"]) for row in found["optimizers"]]
    fronts += [(f"search {run['seed']}", run["front"]) for run in found["complexity"]]
    for name, front in fronts:
        for point in front:
            yield "complexity", name, "r2", point["nodes"], point["r2"]
            yield "complexity", name, "field", point["nodes"], point["field"]
    if beside is not None:
        for title, each in {"loss": beside.losses, **beside.moved}.items():
            for name, values in each.items():
                yield from (("courses", name, title, step, y) for step, y in enumerate(values, 1))
