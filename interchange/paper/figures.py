"""Figures 2 to 6, and the long runs: drawn by the analysis and by the report, one SVG for the page each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.metrics import loss_at
from common.run.storage import atomic_write
from interchange.analysis import figures
from interchange.analysis.measures.courses import Courses
from interchange.analysis.measures.mapping import Curve
from interchange.analysis.run import Given, side_by_side
from interchange.paper import plan
from interchange.paper.config import PaperConfig
from interchange.report import plots

Drawn = dict[str, list[tuple[str, str]]]  # item -> (caption, SVG)


def draw(config: PaperConfig, found: dict[str, Any]) -> Drawn:
    """The figures of the items asked for; files for papers go to ``figures/``.

    The losses at which courses end are added to ``found``, as they stand in recordings alone.
    """
    drawn: Drawn = {item: [] for item in config.items}
    models = {name: row for name, row in found["models"].items() if row["lstm"]}
    shown = {item: [name for name in plan.NEEDED.get(item, ()) if name in models] for item in drawn}
    for name in shown.get("figure3", []):
        row = models[name]
        both = {part: _curves(row[part]["mapping"]) for part in ("lstm", "fit")}
        _keep(drawn, "figure3", row["title"], figures.mapping(_named(both)), config, name)
    for name in shown.get("figure4", []):
        row = models[name]
        analysed = plan.analysis_config(config, name)
        beside = side_by_side(analysed, Given.load(analysed))
        row["course"] = [loss_at(losses, len(losses)) for losses in beside.losses.values()]
        _keep(drawn, "figure4", row["title"], figures.courses(_roles(beside)), config, name)
    fronts = {models[n]["title"]: models[n]["fit"]["front"] for n in shown.get("figure5", [])}
    if fronts:
        _keep(drawn, "figure5", "Fronts of the searches", figures.complexity(fronts), config)
    gammas = {
        models[n]["title"]: _gamma(models[n]["lstm"]["squashing"])
        for n in shown.get("figure6", [])
        if models[n]["lstm"]["squashing"]
    }
    if gammas:
        _keep(drawn, "figure6", "LSTMs", figures.family(gammas), config)
    if found["large"]:
        curves = {name: np.array(one["losses"]) for name, one in found["large"]["optimizers"].items()}
        drawn["figure2"].append((found["large"]["problem"], plots.loss_curves(curves, ["equation"])))
    if found["long"]:
        curves = {one["title"]: np.array(one["losses"]) for one in found["long"]["models"].values()}
        drawn["long"].append((config.amounts.problem, plots.loss_curves(curves, list(curves))))
    return drawn


def _keep(
    drawn: Drawn, item: str, caption: str, figure: figures.Drawn, config: PaperConfig, name: str = ""
) -> None:
    drawn[item].append((caption, figure.inline))
    stem = f"{item}-{name.replace('+', '-')}" if name else item
    folder = Path(plan.place(config, "figures"))
    atomic_write(folder / f"{stem}.svg", figure.svg)
    atomic_write(folder / f"{stem}.pdf", figure.pdf)


def _curves(mapping: Mapping[str, Any]) -> dict[str, Curve]:
    return {
        name: Curve(
            **{key: None if value is None else np.array(value, float) for key, value in curve.items()}
        )
        for name, curve in mapping.items()
    }


def _named(both: Mapping[str, Any]) -> dict[str, Any]:
    return {"LSTM": both["lstm"], "equation": both["fit"]}


def _roles(beside: Courses) -> Courses:
    """The same with what each is in the place of its name: the teacher was recorded first."""
    names = dict(zip(beside.losses, ("LSTM", "equation"), strict=True))
    moved = {
        title: {names[name]: values for name, values in each.items()} for title, each in beside.moved.items()
    }
    return Courses(beside.problem, {names[name]: values for name, values in beside.losses.items()}, moved)


def _gamma(squashing: Mapping[str, Any]) -> float:
    """Infinite where nothing is squashed, which JSON cannot say."""
    return np.inf if squashing["gamma"] is None else squashing["gamma"]
