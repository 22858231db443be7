"""Our front against the published one of rnnprop_a (Zheng et al. 2022): the same rows, inputs and sizes.

    python tests/benchmarks/published.py FOLDER [--seconds 60] [--seeds 3] [--threads 0] [--max-size 100]
        [--engine operon] [--json FILE] [--plot FILE.png]

FOLDER holds ``rnnprop_a.npy`` and ``rnnprop_a_published_front.csv``. The published equations were fitted on
the first 85 % of the rows, and so are ours, by the product's own distillation; the best of ours is chosen by
five folds of these. The last 15 % are seen by neither and only reported. Sizes are those of our language.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import parser_of, save, tell

from interchange.convert.hall_of_fame import import_hall_of_fame
from interchange.convert.tables import import_npy
from interchange.distill.config import DistillConfig
from interchange.distill.refit import predict
from interchange.distill.run import search_front
from interchange.files.trajectories import Trajectories
from interchange.rule.choice import shortest_within, valid_r2
from interchange.rule.rule import Rule
from interchange.search.samples import Sequences, sequences

TABLE, FRONT = "rnnprop_a.npy", "rnnprop_a_published_front.csv"
INPUTS = {**{f"g{k}": k for k in range(5)}, "mean_g": 21, "mean_g2": 22, "t_column": 23}
TARGET = 28
STEPS = 1e4  # what the published equations divide their column t by
LARGEST, SHORT = 100, 60  # nodes: where fronts are compared, and where the held-out bar is
HELD_OUT = 8.4e-6  # the bar
KEYS = ("train", "held")


def load(folder: Path) -> Trajectories:
    """The published inputs and target as a table of samples."""
    table = np.load(folder / TABLE, allow_pickle=False)
    columns = [table[:, k] / (STEPS if name == "t_column" else 1.0) for name, k in INPUTS.items()]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "table.npy")
        np.save(file, np.stack([*columns, table[:, TARGET]], axis=1))
        return import_npy(file, names=tuple(INPUTS))


def errors(rule: Rule, data: Sequence[Sequences]) -> list[float]:
    """Mean squared error on each part."""
    with np.errstate(all="ignore"):
        return [float(np.mean(np.square(part.target - predict(rule, part)))) for part in data]


def run(trajectories: Trajectories, config: DistillConfig, data: Sequence[Sequences]) -> dict[str, Any]:
    """One search: its front with errors, and the sizes of the best rule and of the best short one."""
    started = time.monotonic()
    rules = search_front(trajectories, config, started)
    passed = time.monotonic() - started
    front = []
    for rule in rules:
        train, held = errors(rule, data)
        point = {"size": rule.complexity, "train": train, "held": held, "folds": valid_r2(rule)}
        front.append(point | {"equation": str(rule.expression), "constants": dict(rule.constants)})
    short = max((rule for rule in rules if rule.complexity <= SHORT), key=valid_r2)
    offered = {"best": shortest_within(rules).complexity, "short": short.complexity}
    return {"seconds": passed, **offered, "front": front}


def lowest(front: Sequence[dict[str, Any]], size: float, key: str = "train") -> float:
    """The lowest error of a front's rules of at most ``size`` nodes; infinite if it has none."""
    return min((point[key] for point in front if point["size"] <= size), default=np.inf)


def verdict(result: dict[str, Any], published: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the bars are about, of one search."""
    front = result["front"]
    held = {point["size"]: point["held"] for point in front}
    compared = [point for point in published if point["size"] <= LARGEST]
    return {
        "worst train ratio": max(lowest(front, point["size"]) / point["train"] for point in compared),
        "best: nodes": result["best"],
        "best: held-out": held[result["best"]],
        f"lowest by folds of <= {SHORT}: nodes": result["short"],
        f"lowest by folds of <= {SHORT}: held-out": held[result["short"]],
        f"lowest held-out of <= {SHORT}": lowest(front, SHORT, "held"),
        "held-out optimum: nodes": min(held, key=held.__getitem__),
        "held-out optimum": min(held.values()),
        "seconds": result["seconds"],
    }


def table(results: Sequence[dict[str, Any]], published: Sequence[dict[str, Any]]) -> str:
    """Published and our errors at the published sizes (median over the searches), then the verdicts."""
    lines = ["nodes  published train  held-out    ours train  lowest held-out up to there  (x 1e6)"]
    for point in published:
        ours = [
            statistics.median(lowest(run["front"], point["size"], key) for run in results) for key in KEYS
        ]
        cells = [1e6 * value for value in (point["train"], point["held"], *ours)]
        if point["size"] <= LARGEST:
            lines.append("{:5d}  {:15.3f}  {:8.3f}  {:12.3f}  {:8.3f}".format(point["size"], *cells))
    verdicts = [verdict(result, published) for result in results]
    for name in verdicts[0]:
        values = [each[name] for each in verdicts]
        shown = "  ".join(f"{value:.4g}" for value in values)
        lines.append(f"{name:38s} {shown}  median {statistics.median(values):.4g}")
    return "\n".join(lines)


def plot(results: Sequence[dict[str, Any]], published: Sequence[dict[str, Any]], path: Path) -> None:
    """Both fronts, error over size: the rows of the fit on the left, the held-out ones on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    titles = ("first 85 % of the rows", "held-out 15 %")
    for axis, key, title in zip(figure.subplots(1, 2), KEYS, titles, strict=True):
        sizes = [point["size"] for point in published]
        axis.plot(sizes, [1e6 * point[key] for point in published], "k.-", label="published", markersize=3)
        for number, result in enumerate(results):
            found = result["front"]
            xs, ys = [p["size"] for p in found], [1e6 * p[key] for p in found]
            axis.plot(xs, ys, f"C{number}.-", alpha=0.6, markersize=3, label=f"ours, seed {number}")
            best = next(p for p in found if p["size"] == result["best"])
            label = "offered as best" if number == len(results) - 1 else None
            axis.plot(best["size"], 1e6 * best[key], f"C{number}o", markersize=7, label=label)
        if key == "held":
            axis.axhline(1e6 * HELD_OUT, color="0.6", linestyle=":", linewidth=1, label="bar")
            axis.set_ylim(7.5, 11.5)
        axis.set(title=title, xlabel="nodes", ylabel="mean squared error x 1e6", xlim=(0, 150))
        axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = parser_of(__doc__, seconds=60.0, seeds=3, threads=0, max_size=LARGEST, engine="operon")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    trajectories = load(options.folder)
    data = [sequences(trajectories, split) for split in ("train", "test")]
    published = []
    for rule in import_hall_of_fame(options.folder / FRONT):
        train, held = errors(rule, data)
        published.append({"size": rule.complexity, "train": train, "held": held})
    settings = {key: getattr(options, key) for key in ("engine", "seconds", "threads", "max_size")}
    fields = {"time" if key == "seconds" else key: value for key, value in settings.items()}
    config = DistillConfig(trajectories=TABLE, quiet=True, **fields)
    results = []
    for seed in range(options.seeds):
        results.append(run(trajectories, dataclasses.replace(config, seed=seed), data))
        tell(f"seed {seed}: {verdict(results[-1], published)}")
        if options.json:
            verdicts = [verdict(result, published) for result in results]
            content = {"settings": settings, "verdicts": verdicts, "runs": results, "published": published}
            save(options.json, content)
    print(table(results, published))
    if options.plot:
        plot(results, published, options.plot)


if __name__ == "__main__":
    main()
