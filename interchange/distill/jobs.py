"""Searches and fits side by side, what they show meanwhile, and what is kept after Ctrl-C."""

import concurrent.futures
import dataclasses
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from common.errors import L2OError
from common.metrics import r2
from common.run.cli import Progress
from common.run.parallel import parallel, threads_of_a_job
from interchange.distill.rollouts import threads
from interchange.language.execute import compile_program, evaluate
from interchange.language.expression import Node, complexity
from interchange.language.parse import parse
from interchange.search import Task
from interchange.search.child import run_engine

if TYPE_CHECKING:
    from interchange.distill.config import DistillConfig

_COORDINATES, _ROWS = 64, 5_000  # that R2 is taken of, at least
_SHOWN = 6  # rules

_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)


class LiveLine:
    """The front so far beside a progress bar: nodes and R2, of a few whole sequences."""

    def __init__(self, task: Task, progress: Progress) -> None:
        steps, coordinates = task.target.shape
        count = max(_COORDINATES, _ROWS // steps)
        chosen = np.unique(np.linspace(0, coordinates - 1, count).astype(int))
        self._features = {name: x[:, chosen] for name, x in task.features.items()}
        self._target = task.target[:, chosen]
        self._names = (*task.names, "t")
        self._scores: dict[str, tuple[int, float]] = {}
        self._progress, self._lock = progress, threading.Lock()
        self.text = "nothing yet"

    def tick(self) -> None:
        """A second more; those beyond the limit do not count."""
        if self._progress.done < self._progress.total:
            self._progress.advance(**{"nodes:R2": self.text})

    def update(self, texts: list[str]) -> None:
        """Score the texts not seen before; no front is shown where none is finite."""
        best, parts = 0.0, []
        with self._lock:  # several engines report at once
            for text in texts:
                if text not in self._scores:
                    self._scores[text] = self._score(text)
            for nodes, value in sorted(self._scores.values()):
                if value > best + 0.01:
                    best = value
                    parts.append(f"{nodes}:{value:.3f}")
        self.text = " ".join(parts[-_SHOWN:]) or "nothing yet"

    def _score(self, text: str) -> tuple[int, float]:
        try:
            node = parse(text, self._names)
            (out,) = evaluate(compile_program([node]), self._features)
        except L2OError:  # what is wrong is said at the end of the search
            return 0, -math.inf
        return complexity(node), r2(self._target, np.broadcast_to(out, self._target.shape))


def search_all(tasks: list[Task], config: "DistillConfig") -> list[list[Node]]:
    """What the engine finds for each task, in their order.

    Here they share threads, time and evaluations, and all together take those of one; on a cluster each has
    its own time and evaluations. After Ctrl-C it is what was found until then.
    """
    workers = min(len(tasks), threads(config))
    share, each, parts = workers / len(tasks), threads(config) // workers, len(tasks)
    if ":" in config.cluster:
        share, each, parts = 1.0, threads_of_a_job(config.threads, workers, config.cluster), 1
    tasks = [
        dataclasses.replace(
            task,
            time=max(1.0, share * task.time),
            evaluations=-(-task.evaluations // parts),
            threads=each,
        )
        for task in tasks
    ]
    if config.cluster:
        jobs = [(config.engine, task) for task in tasks]
        return run_jobs("search", run_engine, jobs, config, workers, config.cluster, ordered=True)
    return _search_here(tasks, config, workers)


def _search_here(tasks: list[Task], config: "DistillConfig", workers: int) -> list[list[Node]]:
    """The engines' children, each watched by a thread of this process, which hears of Ctrl-C for all."""
    stop = threading.Event()
    seconds = min(int(tasks[0].time * -(-len(tasks) // workers)), int(config.time) + 1)
    with (
        Progress("search", seconds, quiet=config.quiet) as progress,
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        line = LiveLine(tasks[0], progress)
        jobs = [pool.submit(run_engine, config.engine, task, _idle, line.update, stop) for task in tasks]
        try:
            while concurrent.futures.wait(jobs, 1.0).not_done:
                line.tick()
        except KeyboardInterrupt:
            stop.set()
    errors = [error for error in (job.exception() for job in jobs) if error]
    found = [[] if job.exception() else job.result() for job in jobs]
    if len(errors) == len(jobs) or (stop.is_set() and not any(found)):
        raise errors[0] if errors else KeyboardInterrupt
    for error in errors:
        if not isinstance(error, KeyboardInterrupt):
            _log.warning("goes on with the other searches: %s", error)
    return found


def _idle() -> None:
    """The seconds of many engines are counted once."""


def run_jobs(
    label: str,
    function: Callable[..., _Result],
    jobs: list[tuple],
    config: "DistillConfig",
    workers: int = 0,
    cluster: str = "",
    *,
    ordered: bool = False,
) -> list[_Result]:
    """Results of all jobs, fewer after Ctrl-C."""
    results: list[_Result] = []
    with (
        Progress(label, len(jobs), quiet=config.quiet) as progress,
        parallel(workers or threads(config), cluster, ordered=ordered) as run,
    ):
        for result in _until_interrupted(run(function, jobs), results):
            results.append(result)
            progress.advance()
    return results


def _until_interrupted(results: Iterable[_Result], kept: object) -> Iterator[_Result]:
    """The results; Ctrl-C ends them early, unless nothing is kept yet."""
    try:
        yield from results
    except KeyboardInterrupt:
        if not kept:
            raise
        _log.warning("interrupted; goes on with what was found until now")
