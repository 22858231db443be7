"""Searches the constants of an equation that takes the polar factor of a momentum of normalised gradients.

    python tests/benchmarks/find_rule.py --out runs/found [--evaluations 320] [--data-dir DATA]

The structure is fixed, its nine constants are searched by CMA-ES (package cmaes) on a mix of networks
that shares no row with the unseen part of ``suite:core`` nor with ``suite:held``. The size of the steps
is judged as a comparison judges it: at the best multiplier of each problem, found for the starting
constants before the search. Figures are mean logarithms of the loss at the end of a cosine schedule,
candidates of one generation on the same optimizees, the next generation on fresh ones. The length of a
search is a number of evaluations, so that it does not depend on the machine. The start and the search's
last mean meet on validation optimizees in the end; the start is kept unless the other is better by two
standard errors.

``log.csv`` has every evaluation, and the same command goes on from it; ``best.json`` is the rule with
what found it. Half A of the training data only.
"""

import argparse
import csv
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from interleaved import parser_of, tell

from common.data.datasets import load
from common.extras import require
from common.metrics import loss_at
from common.rng import derived_seed
from common.tables import networks as net
from common.tables.problems import PROBLEMS, Instance, Problem
from interchange.backend import Half
from interchange.meta.config import TuneConfig
from interchange.rule.forms import to_free
from interchange.rule.rule import Rule
from torch_impl.meta.learner import Learner
from torch_impl.networks.rule import RuleNetwork
from torch_impl.problems.tasks import ProblemTask

_V = "ema_hat(square(g), decay)"
_X, _Z = f"g / (pow({_V}, 0.5 * power) + eps)", f"g / (sqrt({_V}) + eps)"
BODY = (
    f"by_matrix(-rms * sqrt(max(rows, cols)) * polar(present * ({_X}) + ema({_X}, memory)), "
    f"-size * (present * ({_Z}) + ema({_Z}, memory_of_vectors)))"
)
_COSINE = "0.5 * (1 + cos({slope} * t))"


class Unit(NamedTuple):
    """What a step of 1 does to a constant: adds ``step`` to it, to its logarithm or to that of 1 - it."""

    start: float
    step: float
    form: str = "log"

    def at(self, x: float) -> float:
        """The constant ``x`` steps from its start."""
        if self.form == "plain":
            return self.start + self.step * x
        if self.form == "decay":
            return 1.0 - min(0.9, (1.0 - self.start) * math.exp(self.step * x))
        return self.start * math.exp(self.step * x)


CONSTANTS = {
    "rms": Unit(0.2, 0.3),
    "present": Unit(0.3, 0.5),
    "memory": Unit(0.96, 0.4, "decay"),
    "decay": Unit(0.95, 0.5, "decay"),
    "power": Unit(0.5, 0.2, "plain"),
    "eps": Unit(1e-8, 2.3),
    "size": Unit(0.2, 0.3),
    "memory_of_vectors": Unit(0.96, 0.4, "decay"),
    "slowing": Unit(1e-3, 1.0),
}


class Place(NamedTuple):
    """A problem of the mix, its horizon, and optimizees a generation."""

    problem: Problem
    steps: int
    tasks: int


def mix(data_dir: str, folder: Path) -> tuple[Place, ...]:
    """Networks of several kinds on MNIST, most of them on its images at half the size, which are cheap.

    So many images are not learned by heart within these horizons, as the digits would be. The small images go
    to ``folder``.
    """
    whole, path = load("mnist", data_dir), folder / "mnist-14.npz"
    small = [
        x.reshape(-1, 14, 2, 14, 2, 1).mean((2, 4)).round().astype(np.uint8)
        for x in (whole.x_train, whole.x_test)
    ]
    np.savez(path, x_train=small[0], y_train=whole.y_train, x_test=small[1], y_test=whole.y_test)

    def of(name: str, *layers: net.Layer) -> Problem:
        return Problem(name, "classifier", str(path), layers, note="of the search only")

    conv = (*net.conv(8, 3, 2), net.Layer("pool", size=2), *net.mlp(24))
    return (
        Place(PROBLEMS["mnist-mlp"], 100, 1),
        Place(of("mnist-14-tanh", *net.mlp(24, 16, activation=net.TANH)), 150, 1),
        Place(of("mnist-14-gelu", *net.mlp(48, 24, activation=net.GELU)), 100, 1),
        Place(of("mnist-14-sigmoid", *net.mlp(20, activation=net.SIGMOID)), 150, 1),
        Place(of("mnist-14-conv", *conv), 60, 1),
    )


MULTIPLIERS = tuple(2.0**k for k in range(-7, 1))


class Bench:
    """Rollouts of many sets of constants at once.

    Args:
        places: the mix.
        data_dir: where MNIST is.
        seed: of all optimizees.

    Attributes:
        multipliers: of each place, on the update.
    """

    def __init__(self, places: Sequence[Place], data_dir: str, seed: int) -> None:
        self.places, self._data_dir, self._seed = tuple(places), data_dir, seed
        self._learners = [self._learner(place) for place in places]
        self.multipliers = [1.0] * len(places)

    @staticmethod
    def _learner(place: Place) -> Learner:
        cosine = _COSINE.format(slope=math.pi / place.steps)
        text = f"{cosine} * multiplier * ({BODY}) / sqrt(1 + slowing * t)"
        starts = {name: unit.start for name, unit in CONSTANTS.items()} | {"multiplier": 1.0}
        return Learner(RuleNetwork(Rule.from_text(text, starts)), TuneConfig(problem=""))

    def losses(
        self, number: int, candidates: Sequence[Mapping[str, float]], stream: str, first: int, count: int = 0
    ) -> np.ndarray:
        """Logarithms of the loss at the end [candidate, optimizee] on a place of the mix.

        Args:
            candidates: constants, ``multiplier`` among them.
            first: the number of the stream's first optimizee; ``count`` of them, 0 for the mix's own number.
        """
        place, learner = self.places[number], self._learners[number]
        forms = learner.network.forms
        weights = [{n: np.asarray(to_free(v, forms[n])) for n, v in c.items()} for c in candidates]
        rows = []
        for task_number in range(first, first + (count or place.tasks)):
            seed = derived_seed(self._seed, stream, number, task_number)
            task = ProblemTask(Instance(place.problem, seed, "meta_train", data_dir=self._data_dir))
            halves = [Half(0, w) for w in weights]
            alone = learner.kind(task) is None
            groups = [[half] for half in halves] if alone else [halves]
            found = [
                losses
                for group in groups
                for _, losses in learner.run_halves([task] * len(group), group, place.steps, False)
            ]
            rows.append([_logarithm(losses[:-1], place.steps) for losses in found])
        return np.array(rows).T

    def figures(
        self, candidates: Sequence[Mapping[str, float]], stream: str, first: int, count: int = 0
    ) -> np.ndarray:
        """``losses`` at the multipliers, mean over optimizees: [candidate, place], or all with ``count``."""
        parts = []
        for number, multiplier in enumerate(self.multipliers):
            own = [dict(c) | {"multiplier": multiplier} for c in candidates]
            found = self.losses(number, own, stream, first * self.places[number].tasks, count)
            parts.append(found if count else found.mean(1, keepdims=True))
        return np.concatenate(parts, axis=1)

    def best_multipliers(self, constants: Mapping[str, float], count: int) -> list[float]:
        """For each place the multiplier with the lowest mean over ``count`` optimizees."""
        tried, best = [dict(constants) | {"multiplier": m} for m in MULTIPLIERS], []
        for number, place in enumerate(self.places):
            means = self.losses(number, tried, "multiplier", 0, count).mean(1)
            best.append(MULTIPLIERS[int(np.argmin(means))])
            tell(f"{place.problem.name} @{place.steps}: multiplier {best[-1]:g}")
        return best


def _logarithm(losses: np.ndarray, steps: int) -> float:
    """Of the loss at the end; what diverged or grew counts as ten times the first loss."""
    end, worst = float(loss_at(losses, steps)), 10.0 * float(losses[0])
    return math.log(min(max(end, 1e-12), worst) if math.isfinite(end) else worst)


def constants(x: Sequence[float]) -> dict[str, float]:
    """The constants at a point of the search, 0 the start."""
    return {name: unit.at(float(v)) for (name, unit), v in zip(CONSTANTS.items(), x, strict=True)}


class Log:
    """``log.csv``: a row with the multipliers, then one an evaluation; a search goes on from it."""

    def __init__(self, path: Path, places: Sequence[Place]) -> None:
        self._path = path
        self._names = [f"{place.problem.name}@{place.steps}" for place in places]
        rows = []
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        self.multipliers = [float(rows[0][name]) for name in self._names] if rows else []
        self.behind = [float(row["behind_start"]) for row in rows[1:]]
        if not rows:
            head = ["generation", "evaluation", "seconds", "behind_start", *self._names, *CONSTANTS]
            path.write_text(",".join(head) + "\n", encoding="utf-8")

    def add(self, *cells: object) -> None:
        """One row more; numbers are rounded."""
        with self._path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow([f"{c:.6g}" if isinstance(c, float) else c for c in cells])


def search(bench: Bench, evaluations: int, population: int, seed: int, log: Log) -> list[np.ndarray]:
    """CMA-ES; its mean after every generation. It goes by ranks, so that what the log has is told again."""
    from cmaes import CMA

    optimizer = CMA(np.zeros(len(CONSTANTS)), 0.6, seed=seed, population_size=population)
    means: list[np.ndarray] = []
    started = time.perf_counter()
    for generation in range(evaluations // population):
        points = [optimizer.ask() for _ in range(population)]
        known = log.behind[generation * population : (generation + 1) * population]
        if len(known) == population:
            values = np.array(known)
        else:
            tried = [constants(np.zeros(len(CONSTANTS))), *map(constants, points)]
            found = bench.figures(tried, "search", generation)
            values, seconds = (found - found[0]).mean(1)[1:], time.perf_counter() - started
            for k, value in enumerate(values):
                place = generation, generation * population + k, float(seconds)
                log.add(*place, float(value), *map(float, found[k + 1]), *tried[k + 1].values())
            tell(f"generation {generation}, {seconds:.0f} s: {values.mean():+.4f}, best {values.min():+.4f}")
        optimizer.tell(list(zip(points, values.tolist(), strict=True)))
        means.append(np.array(optimizer.mean))
    return means


def judged(bench: Bench, named: Mapping[str, dict[str, float]], count: int) -> dict[str, tuple[float, float]]:
    """How far each is behind the first on validation optimizees: mean over problems, and standard error."""
    found = bench.figures(list(named.values()), "validation", 0, count)
    behind = (found - found[0]).reshape(len(named), len(bench.places), count)
    errors = np.sqrt(behind.var(axis=2, ddof=1).mean(1) / behind[0].size)
    return {n: (float(b.mean()), float(e)) for n, b, e in zip(named, behind, errors, strict=True)}


def rule_of(values: Mapping[str, float], provenance: Mapping[str, object]) -> Rule:
    """The rule without a comparison's schedule and multiplier, three digits of every constant."""
    number = {name: _rounded(name, value) for name, value in values.items()}
    average = f"ema_hat(square(g), {number['decay']})"
    features = {
        "x": f"g / (pow({average}, {0.5 * number['power']:.4g}) + {number['eps']})",
        "z": f"g / (sqrt({average}) + {number['eps']})",
    }
    return Rule.from_text(
        "by_matrix(-rms * sqrt(max(rows, cols)) * polar(present * x + ema(x, memory)), "
        "-size * (present * z + ema(z, memory_of_vectors))) / sqrt(1 + slowing * t)",
        {name: number[name] for name in number if name not in ("decay", "power", "eps")},
        features,
        name="polar_normalised",
        provenance={"found": dict(provenance)},
    )


def _rounded(name: str, value: float) -> float:
    """Three digits, of a decay of what is missing to 1."""
    decay = CONSTANTS[name].form == "decay"
    return round(1.0 - float(f"{1.0 - value:.2e}"), 12) if decay else float(f"{value:.2e}")


def main() -> None:
    """Search, judge, write."""
    parser = parser_of(
        __doc__, out="runs/found", evaluations=320, population=10, tasks=12, seed=0, data_dir=""
    )
    parser.set_defaults(json=None)
    options: argparse.Namespace = parser.parse_args()
    require("find_rule", "cmaes")
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    places = mix(options.data_dir, folder)
    bench, start = Bench(places, options.data_dir, options.seed), constants(np.zeros(len(CONSTANTS)))
    log = Log(folder / "log.csv", places)
    bench.multipliers = log.multipliers or bench.best_multipliers(start, 3)
    if not log.multipliers:
        log.add("multipliers", "", "", "", *bench.multipliers, *start.values())
    means = search(bench, options.evaluations, options.population, options.seed, log)
    named = {"start": start, "found": constants(means[-1])}
    results = judged(bench, named, options.tasks)
    for name, (behind, error) in results.items():
        tell(f"{name}: {behind:+.4f} +- {error:.4f}  {named[name]}")
    chosen = "found" if results["found"][0] < -2.0 * results["found"][1] else "start"
    provenance = {
        "command": f"python tests/benchmarks/find_rule.py --evaluations {options.evaluations} "
        f"--population {options.population} --tasks {options.tasks} --seed {options.seed}",
        "chosen": chosen,
        "behind_start": results[chosen][0],
        "error": results[chosen][1],
        "problem": ",".join(dict.fromkeys(place.problem.name for place in places)),
        "multipliers": bench.multipliers,
    }
    rule_of(named[chosen], provenance).save(folder / "best.json")
    print(f"{chosen}: {folder / 'best.json'}")


if __name__ == "__main__":
    main()
