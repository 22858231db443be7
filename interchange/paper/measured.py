"""What the finished cells say, as plain data: the tables, and what the figures and verdicts are made of."""

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from common.metrics import interval, loss_interval, summarise
from common.run.storage import read_json
from interchange.evaluation.profiles import ratio
from interchange.files.results import load_evaluation
from interchange.paper import plan, published
from interchange.paper.config import PaperConfig
from interchange.rule.rule import Rule
from interchange.rule.words import readable, update_r2

_LIMIT = 256 << 20  # bytes of an analysis


def measure(config: PaperConfig) -> dict[str, Any]:
    """Everything that the items of a configuration show, JSON-ready but for infinite numbers and nan."""
    items = config.items
    wanted = {name for item in items for name in plan.NEEDED.get(item, ())}
    cells = plan.plan(config)
    found: dict[str, Any] = {"models": {}, "sanity": None, "large": None, "long": None}
    for name in published.MODELS:
        if name in wanted:
            found["models"][name] = _model(config, name, cells)
    if "sanity" in items:
        found["sanity"] = _sanity(config)
    if "figure2" in items:
        found["large"] = _large(config)
    if "long" in items:
        found["long"] = _long(config)
    return found


def _model(config: PaperConfig, name: str, cells: dict[str, Any]) -> dict[str, Any]:
    """One model, as far as its cells are there."""
    model = published.MODELS[name]
    row: dict[str, Any] = {"title": model.title, "teacher": model.teacher, "note": model.note}
    row["trained"] = plan.training_of(config, name)
    row["published"] = {key: getattr(model, key) for key in ("tpf", "mc", "lstm", "rule", "r2")}
    row |= dict.fromkeys(("complexity", "rule", "loss", "lstm", "fit"))
    if f"{name}/select" in cells:
        row["complexity"] = complexity(config, name)
        rule = Rule.load(plan.place(config, name, "rule", plan.BEST))
        row["rule"] = {
            "text": readable(rule),
            "nodes": rule.complexity,
            "r2": rule.provenance["r2"].get("test"),
            "r2_update": update_r2(rule, "test"),
        }
    if f"{name}/analysis" in cells:
        row |= _analysis(config, name)
    if f"{name}/evaluate" in cells:
        row["loss"] = _loss(config, name)
    return row


def complexity(config: PaperConfig, name: str) -> dict[str, Any]:
    """Mapping complexity (MATH.md section 5): the rules that each search settled on."""
    searches = range(config.amounts.searches)
    rules = [Rule.load(plan.place(config, name, f"rules-{k}", plan.BEST)) for k in searches]
    nodes = [rule.complexity for rule in rules]
    scores = [rule.provenance["r2"]["test"] for rule in rules]
    mean = statistics.fmean(nodes)
    _, low, high = loss_interval(nodes)  # sizes are positive, and so are the bounds
    each = {"nodes": nodes, "r2": scores}
    return {"mean": mean, "low": low, "high": high, "r2": statistics.fmean(scores), "each": each}


def _analysis(config: PaperConfig, name: str) -> dict[str, Any]:
    """Of the teacher and its rule: perception, mapping curves, squashing, the front's points."""
    analysed = read_json(Path(plan.place(config, name, "analysis"), "analysis.json"), _LIMIT)
    teacher, rule = analysed["optimizers"]
    kept = ("perception", "mapping", "squashing", "front")
    return {
        "lstm": {key: teacher[key] for key in kept},
        "fit": {key: rule[key] for key in kept} | {"r2": rule["r2"], "nearest": rule["told"]},
    }


def _loss(config: PaperConfig, name: str) -> dict[str, Any]:
    """Of LSTM and equation at the horizon, and their ratio by seed."""
    summary = summarise(load_evaluation(plan.place(config, name, "evaluation")).rows)
    rows = {row.optimizer.partition(":")[0]: row for row in summary}
    quotient = ratio(rows["rule"].figures, rows["teacher"].figures)
    return {
        "horizon": rows["rule"].horizon,
        "seeds": rows["rule"].seeds,
        "diverged": {key: rows[key].diverged for key in ("teacher", "rule")},
        "lstm": [rows["teacher"].mean, rows["teacher"].low, rows["teacher"].high],
        "rule": [rows["rule"].mean, rows["rule"].low, rows["rule"].high],
        "lstm_each": list(rows["teacher"].figures),
        "rule_each": list(rows["rule"].figures),
        "ratio": [quotient.value, quotient.low, quotient.high],
    }


def _sanity(config: PaperConfig) -> dict[str, Any]:
    """Known rules found again, and momentum and Adam as recorded in training."""
    found = read_json(plan.place(config, "sanity", "sanity.json"), _LIMIT)
    return {"rows": found["rows"], "recorded": found["teachers"]}


def _large(config: PaperConfig) -> dict[str, Any]:
    """Figure 2: test accuracy in percent of every optimizer, mean and interval over seeds, and its curve."""
    rows = load_evaluation(plan.place(config, "figure2", "evaluation")).rows
    found: dict[str, Any] = {}
    for row in rows:
        name = "equation" if row.optimizer.startswith("rule:") else row.optimizer
        one = found.setdefault(name, {"accuracies": [], "schedule": row.settings["schedule"], "losses": []})
        one["accuracies"].append(100.0 * row.accuracy)
        one["losses"].append(np.asarray(row.losses))
    for one in found.values():
        one["accuracy"] = list(interval(one["accuracies"]))
        one["losses"] = _even(one["losses"])
    return {"problem": config.amounts.conv, "steps": rows[0].horizon, "optimizers": found}


def _long(config: PaperConfig) -> dict[str, Any]:
    """Losses of long runs of LSTMs, and where they end."""
    rows = load_evaluation(plan.place(config, "long")).rows
    names = {f"teacher:{plan.place(config, name)}": name for name in plan.LONG}
    ends = {names[row.optimizer]: row for row in summarise(rows)}
    losses = {name: [np.asarray(r.losses) for r in rows if names[r.optimizer] == name] for name in ends}
    return {
        "steps": rows[0].horizon,
        "models": {
            name: {
                "title": published.MODELS[name].title,
                "end": [row.mean, row.low, row.high],
                "figures": list(row.figures),
                "losses": _even(losses[name]),
            }
            for name, row in ends.items()
        },
    }


def _even(losses: list[np.ndarray]) -> list[list[float]]:
    """[seed, step] of one length, nan after a run's end."""
    steps = max(map(len, losses))
    return [[*map(float, row), *[math.nan] * (steps - len(row))] for row in losses]
