"""Evolution strategies without a framework: noise, antithetic pairs and their sums (MATH.md section 3).

Segments of rollouts run with weights of their own: whole rollouts make plain evolution strategies, segments
that go on from each other persistent ones.
"""

import contextlib
import functools
import itertools
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from common.run.parallel import parallel
from interchange.backend import Arrays, Half, Learner, Task
from interchange.meta.config import MetaLoop
from interchange.meta.halves import Positions
from interchange.meta.schedule import Schedule
from interchange.meta.tasks import TaskStream

LAST_SHARE = 0.3  # of a rollout's steps: the mean loss over them is the objective
# Of halves that run at once: more gain little, cost memory and leave processes without work.
_MOST_COORDINATES, _MOST_PAIRS = 2**18, 4
_WORST = 10.0  # times the first loss: the most that a loss counts, so that a diverged rollout has a value


# segments(halves, steps, keep): for every half in order its position after ``steps`` steps, None unless
# ``keep``, and its losses [steps + 1].
Segments = Callable[[Sequence[Half], int, bool], Iterable[tuple[Any, np.ndarray]]]


def evolution(
    segments: Segments,
    weights: Arrays,
    steps: int,
    scales: Mapping[str, float],
    generator: np.random.Generator,
    pairs: int,
    sigma: float,
    log: bool = False,
) -> tuple[Arrays, np.ndarray]:
    """Antithetic evolution strategies over the whole horizon.

    Unbiased for the objective smoothed over normal perturbations of the weights, and free of the bias of
    first-order and of truncated gradients (Salimans et al. 2017; Metz et al. 2019).

    Args:
        scales: weight name -> size of a perturbation of 1 (1 if absent).
        sigma: standard deviation of the perturbations, in units of ``scales``.
        log: the objective's logarithm, so that problems of different size mix; a pair whose objectives are
            not both positive counts as it is.

    Returns:
        Weight name -> gradient, and the losses [steps] of the last rollout.
    """
    noise = [_draw(weights, generator) for _ in range(pairs)]
    halves = _halves(weights, noise, scales, sigma)
    losses = [found[:-1] for _, found in segments(halves, steps, False)]
    values = np.reshape([objective(found) for found in losses], (pairs, 2))
    if log:
        values = np.array([np.log(pair) if pair.min() > 0.0 else pair for pair in values])
    return _gradient(noise, values, scales, sigma), losses[-1]


class Persistent:
    """Persistent evolution strategies: an epoch in pieces, without truncation bias (Vicol et al. 2021).

    Every piece draws new noise for every pair and adds it to the pair's sum xi; both halves go on from where
    they stand. The gradient is the mean over pairs of xi (L+ - L-) / (2 sigma^2), L the piece's share of the
    mean loss over the horizon. Made anew for every epoch.

    Args:
        scales, sigma: as for ``evolution``.
        horizon: steps of the epoch.
        relative: losses are divided by the size of the first one, so that problems of different size mix.
    """

    def __init__(
        self,
        segments: Segments,
        scales: Mapping[str, float],
        sigma: float,
        pairs: int,
        generator: np.random.Generator,
        horizon: int = 1,
        relative: bool = False,
    ) -> None:
        self._segments, self._scales, self._sigma = segments, scales, sigma
        self._generator, self._horizon, self._relative = generator, horizon, relative
        self._sums: list[Arrays] = [{} for _ in range(pairs)]
        self._positions: list[Any] = [None] * (2 * pairs)
        self._firsts = [math.nan] * (2 * pairs)

    def gradient(self, weights: Arrays, steps: int) -> tuple[Arrays, np.ndarray]:
        """The next piece of ``steps`` steps, around ``weights``.

        Returns:
            Weight name -> gradient, and the losses [steps] before each step of the last half.
        """
        noise = [_draw(weights, self._generator) for _ in self._sums]
        self._sums = [
            {name: e + old.get(name, 0.0) for name, e in new.items()}
            for old, new in zip(self._sums, noise, strict=True)
        ]
        halves = _halves(weights, noise, self._scales, self._sigma, self._positions)
        values = []
        for k, (position, losses) in enumerate(self._segments(halves, steps, True)):
            if self._positions[k] is None:
                self._firsts[k] = float(losses[0])
            self._positions[k] = position
            size = abs(self._firsts[k]) if self._relative else 1.0
            values.append(_bounded(losses[1:], self._firsts[k]).sum() / (self._horizon * (size or 1.0)))
        found = np.reshape(values, (len(self._sums), 2))
        return _gradient(self._sums, found, self._scales, self._sigma), losses[:-1]


def objective(losses: np.ndarray) -> float:
    """Mean over the last 30 % of the losses [steps] of a rollout; one that diverged is bounded."""
    last = max(1, round(LAST_SHARE * len(losses)))
    return float(_bounded(losses, losses[0])[-last:].mean())


def groups(halves: Sequence[Half], kind: Callable[[int], tuple[Any, int]]) -> Iterator[list[Half]]:
    """The halves in order, in groups that run at once; the same ones however many processes share them.

    Args:
        kind: of a pair's number what it has in common with those it may run at once with, None where both
            halves run alone, and its coordinates.
    """
    run: list[Half] = []
    shared, most = None, 1
    for half in halves:
        common, size = kind(half.pair)
        if run and common != shared:
            yield from _even(run, most)
            run = []
        shared, most = common, min(_MOST_COORDINATES // (2 * size), _MOST_PAIRS)
        if common is None or not most:
            yield [half]
        else:
            run.append(half)
    if run:
        yield from _even(run, most)


def _even(halves: list[Half], most: int) -> Iterator[list[Half]]:
    """Groups of nearly the same size, of at most that many pairs."""
    pairs = len(halves) // 2
    parts = -(-pairs // most)
    bounds = [2 * (pairs * k // parts) for k in range(parts + 1)]
    return (halves[low:high] for low, high in itertools.pairwise(bounds))


def segments_here(learner: Learner, task: Callable[[int], Task]) -> Segments:
    """Segments in this process; the network's weights are put back at the end.

    Halves on optimizees that can be computed at once are, in a batch; others run one after the other, and
    where they are large their positions lie in a file between segments.

    Args:
        task: ``task(k)`` gives the optimizee of pair ``k``; both halves of a pair run on the same.
    """

    positions = Positions(learner)

    def run(halves: Sequence[Half], steps: int, keep: bool) -> Iterator[tuple[Any, np.ndarray]]:
        before, cached = learner.weights(), functools.lru_cache(maxsize=1)(task)  # a pair's halves share it
        kind = functools.partial(_kind, learner, cached)
        try:
            for group in groups(halves, kind):
                tasks = [cached(half.pair) for half in group]
                found = learner.run_halves(tasks, list(map(positions.fetched, group)), steps, keep)
                large = keep and kind(group[0].pair)[1] > _MOST_COORDINATES
                for half, (end, losses) in zip(group, found, strict=True):
                    yield positions.lay(end, half.position) if large else end, losses
                del found, end  # before the next ones take as much
        finally:
            learner.put(before)

    return run


def segments_in_processes(learner: Learner, first: int, task: Callable[[int], Task]) -> Segments:
    """Segments in ``config.jobs`` worker processes, pair ``k`` on optimizee ``first + k`` of ``meta_train``.

    The workers build network and optimizees themselves, and keep them.

    Args:
        task: as for ``segments_here``; it says which halves run at once, the same as there.
    """
    kind, config, alone = type(learner), learner.config, segments_here(learner, task)

    def run(halves: Sequence[Half], steps: int, keep: bool) -> Iterator[tuple[Any, np.ndarray]]:
        cached = functools.lru_cache(maxsize=1)(task)
        found = list(groups(halves, functools.partial(_kind, learner, cached)))
        if len(found) < 2:  # nothing to share out
            yield from alone(halves, steps, keep)
            return
        # No more than there is work for: one that never had any dies of Ctrl-C.
        with parallel(min(config.jobs, len(found)), ordered=True) as jobs:
            arguments = ((kind, learner.source, config, first, group, steps, keep) for group in found)
            for group in jobs(_job, arguments):
                yield from group

    return run


def _kind(learner: Learner, task: Callable[[int], Task], pair: int) -> tuple[Any, int]:
    one = task(pair)
    return learner.kind(one), sum(math.prod(shape) for shape in one.shapes)


def _job(
    kind: type[Learner],
    source: Any,
    config: MetaLoop,
    first: int,
    halves: Sequence[Half],
    steps: int,
    keep: bool,
) -> list[tuple[Any, np.ndarray]]:
    """A group of halves in a worker process."""
    if config.jobs > 1:
        with contextlib.suppress(ValueError):  # not the main thread
            # Ctrl-C, which the terminal sends it too, is for the process that waits for it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    kind.use_one_thread()
    learner, task = _worker(kind, source, config)
    return learner.run_halves([task(first + half.pair) for half in halves], halves, steps, keep)


@functools.lru_cache(maxsize=1)
def _worker(kind: type[Learner], source: Any, config: MetaLoop) -> tuple[Learner, Callable[[int], Task]]:
    """The learner of a teacher's row or a rule's text, and its optimizees by number."""
    learner = kind.from_source(source, config)
    tasks = TaskStream(learner, Schedule(config))
    return learner, functools.lru_cache(maxsize=2 * config.pairs)(functools.partial(tasks, "meta_train"))


def _bounded(losses: np.ndarray, first: float) -> np.ndarray:
    worst = _WORST * abs(float(first)) if math.isfinite(first) else 0.0
    return np.minimum(np.nan_to_num(losses, nan=worst, posinf=worst, neginf=worst), worst)


def _draw(weights: Arrays, generator: np.random.Generator) -> Arrays:
    return {name: np.asarray(generator.normal(size=w.shape), dtype=w.dtype) for name, w in weights.items()}


def _halves(
    weights: Arrays,
    noise: Sequence[Arrays],
    scales: Mapping[str, float],
    sigma: float,
    positions: Sequence[Any] | None = None,
) -> list[Half]:
    """Both halves of every pair, side by side."""
    found = []
    for pair, drawn in enumerate(noise):
        for sign in (1.0, -1.0):
            moved = {n: w + sign * sigma * scales.get(n, 1.0) * drawn[n] for n, w in weights.items()}
            found.append(Half(pair, moved, None if positions is None else positions[len(found)]))
    return found


def _gradient(
    noise: Sequence[Arrays], values: np.ndarray, scales: Mapping[str, float], sigma: float
) -> Arrays:
    """Mean over pairs of noise (v+ - v-) / (2 sigma scale); values [pair, 2]."""
    slopes = (values[:, 0] - values[:, 1]) / (2.0 * sigma * len(noise))
    return {
        name: np.asarray(sum(slope * drawn[name] for slope, drawn in zip(slopes, noise, strict=True)))
        / scales.get(name, 1.0)
        for name in noise[0]
    }
