"""Meta-gradient estimators beside the first-order one of ``unroll`` (MATH.md section 3).

What is not TensorFlow's of evolution strategies stands in ``interchange.meta.evolution``.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.run.parallel import parallel
from common.tables.teachers import TeacherRow
from interchange.backend import Arrays
from interchange.commands.tune import factors
from interchange.meta import evolution as shared
from interchange.meta.evolution import Half, Segments
from interchange.rule.rule import Rule
from tf_impl.meta import unroll
from tf_impl.networks.rule import RuleNetwork
from tf_impl.networks.teacher import TeacherNetwork
from tf_impl.problems.batched import Lanes, divided, joined, kind
from tf_impl.problems.tasks import Task
from tf_impl.tensors import DTYPES, device_of, to_numpy, to_tensor


def evolution(
    task: Callable[[int], Task],
    network: unroll.Network,
    steps: int,
    scales: Mapping[str, float],
    generator: np.random.Generator,
    pairs: int,
    sigma: float,
    log: bool = False,
    segments: Segments | None = None,
) -> tuple[dict[str, tf.Tensor], np.ndarray]:
    """Antithetic evolution strategies over the whole horizon.

    Args:
        task: ``task(k)`` gives the optimizee of pair ``k``; both halves of a pair run on the same.
        scales, sigma, log: as for ``interchange.meta.evolution.evolution``.
        segments: where the halves run (``processes``); here if None.

    Returns:
        Weight name -> gradient, and the losses [steps] of the last rollout.
    """
    segments = segments or here(task, network)
    grads, losses = shared.evolution(segments, _arrays(network), steps, scales, generator, pairs, sigma, log)
    return _tensors(grads, network), losses


class Persistent:
    """Persistent evolution strategies for one epoch (``interchange.meta.evolution.Persistent``).

    Args:
        tasks: ``tasks(k)`` gives the optimizee of pair ``k``, which stays its own.
        scales, sigma, horizon, relative: as there.
        segments: where the halves run (``processes``); here if None.
    """

    def __init__(
        self,
        tasks: Callable[[int], Task],
        network: unroll.Network,
        scales: Mapping[str, float],
        sigma: float,
        pairs: int,
        generator: np.random.Generator,
        horizon: int = 1,
        relative: bool = False,
        segments: Segments | None = None,
    ) -> None:
        self._network = network
        segments = segments or here(functools.cache(tasks), network)
        self._pieces = shared.Persistent(segments, scales, sigma, pairs, generator, horizon, relative)

    def advance(self, steps: int) -> tuple[dict[str, tf.Tensor], np.ndarray]:
        """The next ``steps`` steps of every half, around the network's weights as they are now.

        Returns:
            Weight name -> gradient, and the losses [steps] before each step of the last half.
        """
        grads, losses = self._pieces.gradient(_arrays(self._network), steps)
        return _tensors(grads, self._network), losses


def here(task: Callable[[int], Task], network: unroll.Network) -> Segments:
    """Segments in this process; the network's weights are put back at the end.

    Halves on optimizees that can be computed at once are, in lanes; others run one after the other.
    """

    def run(halves: Sequence[Half], steps: int, keep: bool) -> Iterator[tuple[Any, np.ndarray]]:
        before, cached = _arrays(network), functools.lru_cache(maxsize=1)(task)  # a pair's halves share it
        try:
            for group in shared.groups(halves, functools.partial(_kind, network, cached)):
                yield from _segments(network, [cached(half.pair) for half in group], group, steps, keep)
        finally:
            _put(network, before)

    return run


def processes(network: unroll.Network, config: Any, first: int, task: Callable[[int], Task]) -> Segments:
    """Segments in ``config.jobs`` worker processes, pair ``k`` on optimizee ``first + k`` of ``meta_train``.

    The workers build network and optimizees themselves, as ``MetaTrainer.task`` does, and keep them.

    Args:
        task: as for ``here``; it says which halves run in lanes, the same as there.
    """
    rule = getattr(network, "rule", None)
    source = network.teacher if rule is None else rule.to_json()

    def run(halves: Sequence[Half], steps: int, keep: bool) -> Iterator[tuple[Any, np.ndarray]]:
        cached = functools.lru_cache(maxsize=1)(task)
        found = list(shared.groups(halves, functools.partial(_kind, network, cached)))
        if len(found) < 2:  # nothing to share out
            yield from here(task, network)(halves, steps, keep)
            return
        # No more than there is work for: one that never had any dies of Ctrl-C.
        with parallel(min(config.jobs, len(found)), ordered=True) as jobs:
            for group in jobs(_job, ((source, config, first, group, steps, keep) for group in found)):
                yield from group

    return run


def _kind(network: unroll.Network, task: Callable[[int], Task], pair: int) -> tuple[Any, int]:
    one = task(pair)
    size = sum(math.prod(shape) for shape in one.shapes)
    return (kind(one) if network.lanewise else None), size


def _job(
    source: str | TeacherRow, config: Any, first: int, halves: Sequence[Half], steps: int, keep: bool
) -> list[tuple[Any, np.ndarray]]:
    """A group of halves in a worker process."""
    if config.jobs > 1:
        shared.leave_interrupts()
    with contextlib.suppress(RuntimeError):  # a worker that has begun keeps its threads
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    network, task = _worker(source, config)
    return _segments(network, [task(first + half.pair) for half in halves], halves, steps, keep)


@functools.lru_cache(maxsize=1)
def _worker(source: str | TeacherRow, config: Any) -> tuple[unroll.Network, Callable[[int], Task]]:
    """The network of a teacher's row or a rule's text, and its optimizees by number."""
    from tf_impl.meta.trainer import MetaTrainer

    device = device_of(config.device)
    if isinstance(source, str):
        network: unroll.Network = RuleNetwork(Rule.from_json(source), device, factors(config), config.kinds)
    else:
        zeros = {name: np.zeros(shape) for name, shape in source.weight_shapes().items()}
        kept = tf.bfloat16 if config.state_dtype else None
        network = TeacherNetwork(source, zeros, DTYPES[config.dtype], device, kept)
    trainer = MetaTrainer(network, config)
    return network, functools.lru_cache(maxsize=2 * config.pairs)(
        functools.partial(trainer.task, "meta_train")
    )


def _segments(
    network: unroll.Network, tasks: Sequence[Task], halves: Sequence[Half], steps: int, keep: bool
) -> list[tuple[Any, np.ndarray]]:
    """Halves in lanes; a single one alone."""
    if len(halves) == 1:
        return [_segment(network, tasks[0], halves[0], steps, keep)]
    network.settle(tasks[0])
    starts = [
        unroll.start(task, network) if half.position is None else half.position
        for task, half in zip(tasks, halves, strict=True)
    ]
    lanes, several = Lanes(tasks), network.abreast([half.weights for half in halves])
    end, losses = unroll.segment(lanes, several, joined(starts, apart=True), steps)
    ends = divided(end, lanes.sizes, apart=True) if keep else [None] * len(halves)
    return list(zip(ends, losses.T, strict=True))


def _segment(
    network: unroll.Network, task: Task, half: Half, steps: int, keep: bool
) -> tuple[Any, np.ndarray]:
    _put(network, half.weights)
    network.settle(task)
    start = unroll.start(task, network) if half.position is None else half.position
    position, losses = unroll.segment(task, network, start, steps)
    return position if keep else None, losses


def _arrays(network: unroll.Network) -> Arrays:
    return {name: to_numpy(w) for name, w in network.weights.items()}


def _tensors(arrays: Arrays, network: unroll.Network) -> dict[str, tf.Tensor]:
    return {name: to_tensor(arrays[name], w.dtype, w.device) for name, w in network.weights.items()}


def _put(network: unroll.Network, arrays: Arrays) -> None:
    for name, values in _tensors(arrays, network).items():
        network.weights[name].assign(values)
