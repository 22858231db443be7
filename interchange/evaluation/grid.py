"""The grid of a comparison: what has to be run on each problem, and running it all in one pool.

The course of one problem is a generator: it yields the cells it needs next, is sent their rollouts, and
returns when it is done. Problems go on independently, so that one may tune while another is tested.
"""

import dataclasses
import heapq
import itertools
import logging
import math
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common.metrics import FAILED, loss_at
from common.run.cli import Progress
from common.run.parallel import Run
from common.tables.baselines import Spec
from common.tables.schedules import SCHEDULES
from interchange.backend import Rollout
from interchange.evaluation.cells import Cell, Store
from interchange.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from interchange.backend import Backend
    from interchange.rule.source import Source

_LOG = logging.getLogger(__name__)
_OTHERS = 3  # learning rates tried with every schedule but the first
_FARTHEST = 14  # factors of 2 from the middle at which widening a grid ends

Results = Mapping[Cell, Rollout]


@dataclasses.dataclass
class Grid:
    """Learning rates ``middle * 2**k`` tried for one optimizer.

    Attributes:
        figures: k -> figure at each horizon, averaged over the validation seeds; inf where one diverged.
    """

    middle: float
    figures: dict[int, list[float]]
    horizons: tuple[int, ...]

    def best_place(self, horizon: int) -> int:
        """The k with the smallest figure at ``horizon``."""
        column = self.horizons.index(horizon)
        return min(self.figures, key=lambda k: (self.figures[k][column], abs(k)))

    def best(self, horizon: int) -> float:
        """The learning rate with the smallest figure at ``horizon``."""
        return self.middle * 2.0 ** self.best_place(horizon) if self.figures else self.middle

    def lowest(self, horizon: int) -> float:
        """The smallest figure at ``horizon``; nan where nothing was tried."""
        if not self.figures:
            return math.nan
        return self.figures[self.best_place(horizon)][self.horizons.index(horizon)]

    def missing(self, trials: int) -> list[int]:
        """Places to try next: beyond an edge that is best, then until there are ``trials``."""
        if not self.figures:
            return list(range(-(trials // 2), trials - trials // 2))
        low, high = min(self.figures), max(self.figures)
        best = {self.best_place(h) for h in self.horizons}
        beyond = [low - 1] * (low in best) + [high + 1] * (high in best)
        beyond = [k for k in beyond if abs(k) <= _FARTHEST]
        if beyond or len(self.figures) >= trials:
            return beyond
        return [high + 1 if high < -low else low - 1]


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What was tried of one optimizer on one problem: a grid per schedule."""

    grids: dict[str, Grid]

    def best(self, horizon: int) -> tuple[float, str]:
        """Learning rate and schedule with the smallest figure at ``horizon``; the first without any."""
        tried = {name: grid.lowest(horizon) for name, grid in self.grids.items() if grid.figures}
        name = min(tried, key=tried.__getitem__, default=next(iter(self.grids)))
        return self.grids[name].best(horizon), name

    def lowest(self, horizon: int) -> float:
        """The smallest figure at ``horizon``; nan where nothing was tried."""
        return self.grids[self.best(horizon)[1]].lowest(horizon)

    @property
    def trials(self) -> int:
        """Settings that were tried."""
        return sum(len(grid.figures) for grid in self.grids.values())


@dataclasses.dataclass(frozen=True)
class Tested:
    """One problem's part of a comparison: what was tuned, and the test rollouts by (SPEC, horizon, seed)."""

    tuned: dict[str, Tuned]
    rollouts: dict[tuple[str, int, int], Rollout]


Course = Generator[list[Cell], Results, Tested]
Arm = tuple[str, str]  # SPEC and schedule


def course(
    specs: Mapping[str, Spec], problem: str, horizons: tuple[int, ...], config: EvaluateConfig
) -> Course:
    """Tune every optimizer on one problem, then test each at every horizon."""
    tuned = yield from tuning(specs, problem, horizons, config)
    cells = {}
    for text, horizon, number in itertools.product(specs, horizons, range(config.seeds)):
        lr, schedule = tuned[text].best(horizon)
        cells[text, horizon, number] = Cell(text, problem, lr, "test", number, horizon, schedule)
    results = yield list(cells.values())
    return Tested(tuned, {place: results[cell] for place, cell in cells.items()})


def tuning(
    specs: Mapping[str, Spec], problem: str, horizons: tuple[int, ...], config: EvaluateConfig
) -> Generator[list[Cell], Results, dict[str, Tuned]]:
    """Learning rate and schedule of every optimizer, all with as many trials.

    First a grid of learning rates with the first schedule, then a shorter one with each other schedule, about
    twice the best of the first, as a rate that falls may begin higher. A SPEC that fixes its schedule has
    that alone, one that fixes lr the first.
    """
    names = tuple(SCHEDULES) if "all" in config.schedules else config.schedules
    few = {text: names[:1] if spec.lr else names for text, spec in specs.items()}
    of = {text: (spec.schedule,) if spec.schedule else few[text] for text, spec in specs.items()}
    first = {(text, of[text][0]): Grid(s.lr or s.middle, {}, horizons) for text, s in specs.items()}
    yield from _tuned(first, specs, problem, config, config.trials)
    longest = max(horizons)
    others = {
        (text, name): Grid(2.0 * first[text, of[text][0]].best(longest), {}, horizons)
        for text in specs
        for name in of[text][1:]
    }
    if config.trials:
        yield from _tuned(others, specs, problem, config, min(_OTHERS, config.trials))
    return {text: Tuned({name: (first | others)[text, name] for name in of[text]}) for text in specs}


def _tuned(
    grids: dict[Arm, Grid], specs: Mapping[str, Spec], problem: str, config: EvaluateConfig, trials: int
) -> Generator[list[Cell], Results, None]:
    """Fill grids, all of one size, none of which has its best at an edge."""
    free = [arm for arm in grids if specs[arm[0]].lr is None and trials]
    while True:
        places = [(arm, k) for arm in free for k in grids[arm].missing(trials)]
        if not places:
            widest = max((len(grids[arm].figures) for arm in free), default=0)
            if widest <= trials:
                return
            trials = widest
            continue

        def cells(arm: Arm, k: int, horizon: int) -> list[Cell]:
            text, schedule = arm
            # A run to the longest horizon passes through the others, unless its schedule ends at its own.
            steps = horizon if SCHEDULES[schedule].ends else max(grids[arm].horizons)
            lr = grids[arm].middle * 2.0**k
            numbers = range(config.validation_seeds)
            return [Cell(text, problem, lr, "validation", n, steps, schedule) for n in numbers]

        wanted = (c for arm, k in places for h in grids[arm].horizons for c in cells(arm, k, h))
        results = yield list(dict.fromkeys(wanted))
        for arm, k in places:
            grids[arm].figures[k] = [
                float(np.mean([loss_at_or_inf(results[c], h) for c in cells(arm, k, h)]))
                for h in grids[arm].horizons
            ]


def loss_at_or_inf(rollout: Any, horizon: int) -> float:
    """Loss at ``horizon`` (mean of the 20 losses before it); inf if the run did not get there."""
    return float(loss_at(rollout.losses, horizon)) if len(rollout.losses) >= horizon else math.inf


class Pool:
    """Runs the cells of all courses, the most expensive first, keeping each as soon as it is there.

    Args:
        cost: of a cell, in any unit.

    Attributes:
        found, total: cells that were there already, and all cells that were needed.
    """

    def __init__(self, store: Store, cost: Callable[[Cell], float], progress: Progress) -> None:
        self.store, self.cost, self.progress = store, cost, progress
        self.found = self.total = 0
        self._queue: list[tuple[float, int, Cell]] = []
        self._count = itertools.count()
        self._told: set[str] = set()
        self._lock = threading.Lock()  # joblib's threads take cells while new ones are put in here

    def run(
        self, courses: Mapping[str, Course], run: Run, job: Callable[[Cell], tuple[Any, ...]]
    ) -> dict[str, Tested]:
        """Follow every course to its end; what each returned.

        Args:
            run: as ``common.run.parallel.parallel`` gives it.
            job: the arguments of ``run_cell`` for a cell.
        """
        done: dict[str, Tested] = {}
        wanted: dict[str, dict[Cell, Rollout | None]] = {}

        def go_on(name: str, results: Results | None) -> None:
            while True:
                try:
                    cells = next(courses[name]) if results is None else courses[name].send(results)
                except StopIteration as end:
                    done[name] = end.value
                    return
                wanted[name] = self._ask(cells)
                if None in wanted[name].values():
                    return
                results = dict(wanted[name])

        for name in courses:
            go_on(name, None)
        while self._queue:  # what is put in after the last cell was taken needs another round
            for cell, rollout in run(run_cell, self._taken(job)):
                self.store.save(cell, rollout)
                self._tell(cell, rollout)
                self.progress.advance()
                wanted[cell.problem][cell] = rollout
                if None not in wanted[cell.problem].values():
                    go_on(cell.problem, dict(wanted[cell.problem]))
        return done

    def _ask(self, cells: Iterable[Cell]) -> dict[Cell, Rollout | None]:
        known = {cell: self.store.load(cell) for cell in cells}
        missing = [cell for cell, rollout in known.items() if rollout is None]
        self.total += len(known)
        self.found += len(known) - len(missing)
        self.progress.total += len(missing)
        with self._lock:
            for cell in missing:
                heapq.heappush(self._queue, (-self.cost(cell), next(self._count), cell))
        return known

    def _tell(self, cell: Cell, rollout: Rollout) -> None:
        """A warning of a failure, once for each optimizer and message."""
        told = f"{cell.optimizer}: {rollout.outcome}"
        if rollout.outcome.startswith(FAILED) and told not in self._told:
            self._told.add(told)
            _LOG.warning("%s on %s at lr %.3g %s", cell.optimizer, cell.problem, cell.lr, rollout.outcome)

    def _taken(self, job: Callable[[Cell], tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        while True:
            with self._lock:
                if not self._queue:
                    return
                cell = heapq.heappop(self._queue)[-1]
            yield job(cell)


def run_cell(
    backend_job: Callable[..., Rollout], config: Any, source: "Source", cell: Cell
) -> tuple[Cell, Rollout]:
    """One cell; what the worker processes run. An error is an outcome: other cells must not be lost by it."""
    try:
        return cell, backend_job(config, source, cell.lr, cell.stream, cell.number, cell.steps, cell.schedule)
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return cell, Rollout(np.zeros(0), FAILED + told, math.nan)


def run_grid(
    courses: Mapping[str, Course],
    pool: Pool,
    configs: Mapping[str, EvaluateConfig],
    sources: "Mapping[str, Source]",
    backend: "Backend",
) -> dict[str, Tested]:
    """All courses on the workers that the configuration asks for; problem -> what its course returned.

    Args:
        configs: problem -> the configuration with that problem alone.

    Raises:
        L2OError: a worker process was killed; the cells that were finished are kept.
    """
    from common.run.parallel import parallel

    def job(cell: Cell) -> tuple[Any, ...]:
        return backend.rollout_job, configs[cell.problem], sources[cell.optimizer], cell

    any_of_them = next(iter(configs.values()))
    with parallel(any_of_them.jobs, any_of_them.cluster) as run:
        return pool.run(courses, run, job)
