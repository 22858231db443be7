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
from interchange.backend import Rollout
from interchange.evaluation.cells import Cell, Store
from interchange.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from interchange.backend import Backend
    from interchange.rule.source import Source

_LOG = logging.getLogger(__name__)
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
class Tested:
    """One problem's part of a comparison: the grids, and the test rollouts by (SPEC, horizon, seed)."""

    grids: dict[str, Grid]
    rollouts: dict[tuple[str, int, int], Rollout]


Course = Generator[list[Cell], Results, Tested]


def course(
    specs: Mapping[str, Spec], problem: str, horizons: tuple[int, ...], config: EvaluateConfig
) -> Course:
    """Tune every optimizer on one problem, then test each at every horizon."""
    grids = yield from tuning(specs, problem, horizons, config)
    cells = {
        (text, horizon, number): Cell(text, problem, grids[text].best(horizon), "test", number, horizon)
        for text in specs
        for horizon in horizons
        for number in range(config.seeds)
    }
    results = yield list(cells.values())
    return Tested(grids, {place: results[cell] for place, cell in cells.items()})


def tuning(
    specs: Mapping[str, Spec], problem: str, horizons: tuple[int, ...], config: EvaluateConfig
) -> Generator[list[Cell], Results, dict[str, Grid]]:
    """A grid per optimizer, all of one size; an optimizer whose SPEC fixes lr has none."""
    grids = {text: Grid(s.lr or s.middle, {}, horizons) for text, s in specs.items()}
    free = [text for text, s in specs.items() if s.lr is None and config.trials]
    trials = config.trials
    while True:
        places = [(text, k) for text in free for k in grids[text].missing(trials)]
        if not places:
            widest = max((len(grids[text].figures) for text in free), default=0)
            if widest <= trials:
                return grids
            trials = widest
            continue

        def cells(text: str, k: int, horizon: int) -> list[Cell]:
            # A run to the longest horizon passes through the others, unless its schedule ends at its own.
            steps = horizon if specs[text].cosine else max(horizons)
            lr = grids[text].middle * 2.0**k
            return [Cell(text, problem, lr, "validation", n, steps) for n in range(config.validation_seeds)]

        results = yield list(
            dict.fromkeys(c for text, k in places for h in horizons for c in cells(text, k, h))
        )
        for text, k in places:
            grids[text].figures[k] = [
                float(np.mean([loss_at_or_inf(results[c], h) for c in cells(text, k, h)])) for h in horizons
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
        return cell, backend_job(config, source, cell.lr, cell.stream, cell.number, cell.steps)
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
