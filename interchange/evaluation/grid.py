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
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.dataset_files import MissingDataError
from common.metrics import FAILED
from common.run.cli import Progress
from common.run.parallel import Run
from common.tables.suites import Entry
from interchange.evaluation.cells import Cell, Store
from interchange.evaluation.config import EvaluateConfig
from interchange.evaluation.tuning import Results, Tuned, tuning
from interchange.rollout import Rollout

if TYPE_CHECKING:
    from interchange.backend import Backend, Task, Tasks
    from interchange.rule.source import Source

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tested:
    """One problem's part of a comparison: what was tuned, and the test rollouts by (SPEC, horizon, seed)."""

    tuned: dict[str, Tuned]
    rollouts: dict[tuple[str, int, int], Rollout]


def first_tasks(
    wanted: Sequence[Entry], config: EvaluateConfig, backend: "Backend", own: "Tasks | None" = None
) -> "tuple[dict[str, EvaluateConfig], dict[str, Task], dict[str, str]]":
    """Configuration and first optimizee of every problem, and why those are left out that are.

    Raises:
        L2OError: data are missing that no suite does without, or of every problem.
    """
    optional = {entry.problem for entry in wanted if entry.optional}
    configs, tasks, left_out = {}, {}, {}
    for problem in dict.fromkeys(entry.problem for entry in wanted):
        mine = dataclasses.replace(config, problem=problem)
        try:
            if own is None:
                tasks[problem] = backend.table_task(mine, "evaluate_test", 0, config.split)
            else:
                tasks[problem] = own("evaluate_test", 0)
            configs[problem] = mine
        except MissingDataError as error:
            if problem not in optional or len(optional) == len(wanted):
                raise
            left_out[problem] = str(error)
            _LOG.warning("%s is left out: %s", problem, error)
    return configs, tasks, left_out


def in_steps(
    wanted: Sequence[Entry], configs: Mapping[str, EvaluateConfig], tasks: "Mapping[str, Task]"
) -> tuple[tuple[Entry, ...], dict[str, EvaluateConfig]]:
    """Horizons in passes as steps; the test images are looked at after every pass if not told otherwise."""

    def steps(problem: str, passes: int) -> int:
        return tasks[problem].instance.steps(passes, configs[problem].accumulate)

    every = {p: own.test_every or steps(p, 1) for p, own in configs.items()}
    changed = {p: dataclasses.replace(own, test_every=every[p]) for p, own in configs.items()}
    return tuple(dataclasses.replace(e, steps=steps(e.problem, e.steps)) for e in wanted), changed


Course = Generator[list[Cell], Results, Tested]


def course(
    sources: "Mapping[str, Source]", problem: str, horizons: tuple[int, ...], config: EvaluateConfig
) -> Course:
    """Tune every optimizer on one problem, then test each at every horizon."""
    tuned = yield from tuning(sources, problem, horizons, config)
    cells = {}
    for text, horizon, number in itertools.product(sources, horizons, range(config.seeds)):
        lr, arm = tuned[text].best(horizon)
        place = text, horizon, number
        cells[place] = Cell(
            text, problem, lr, "test", number, horizon, arm.schedule, arm.knob, arm.weight_decay
        )
    results = yield list(cells.values())
    return Tested(tuned, {place: results[cell] for place, cell in cells.items()})


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
        tuning_on = set(courses)  # those whose last cells, the tests, are not known yet

        def go_on(name: str, results: Results | None) -> None:
            while True:
                try:
                    cells = next(courses[name]) if results is None else courses[name].send(results)
                except StopIteration as end:
                    done[name] = end.value
                    return
                wanted[name] = self._ask(cells)
                if tuning_on and any(cell.stream == "test" for cell in cells):
                    tuning_on.discard(name)
                    if not tuning_on:
                        self.progress.settle()
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
        self.progress.expect(len(missing))
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
    own: "Tasks | None" = None,
) -> dict[str, Tested]:
    """All courses on the workers that the configuration asks for; problem -> what its course returned.

    Args:
        configs: problem -> the configuration with that problem alone.
        own: tasks of the caller, instead of the problem's.

    Raises:
        L2OError: a worker process was killed; the cells that were finished are kept.
    """
    from common.run.parallel import parallel

    def of_own(
        config: Any, source: "Source", lr: float, stream: str, number: int, steps: int, schedule: str
    ) -> Rollout:
        task, tested = own(f"evaluate_{stream}", number), stream == "test"
        return backend.roll_out(source, lr, task, steps, schedule, tested, config.training)

    run_one = backend.rollout_job if own is None else of_own

    def job(cell: Cell) -> tuple[Any, ...]:
        source = sources[cell.optimizer].turned(cell.knob).decayed(cell.weight_decay)
        return run_one, configs[cell.problem], source, cell

    any_of_them = next(iter(configs.values()))
    with parallel(any_of_them.jobs, any_of_them.cluster) as run:
        return pool.run(courses, run, job)
