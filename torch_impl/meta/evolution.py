"""Rollouts with weights of their own, for evolution strategies (``interchange.meta.evolution``)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from interchange.backend import Arrays, Half
from torch_impl.meta import unroll
from torch_impl.problems.batched import BatchedTasks, divided, joined
from torch_impl.problems.tasks import Task
from torch_impl.tensors import to_numpy, to_tensor
from torch_impl.threads import fitting


def run_halves(
    network: unroll.Network, tasks: Sequence[Task], halves: Sequence[Half], steps: int, keep: bool
) -> list[tuple[Any, np.ndarray]]:
    """Rollouts with weights of their own: halves at once, a single one alone."""
    if len(halves) == 1:
        return [_run_half(network, tasks[0], halves[0], steps, keep)]
    network.bind(tasks[0])
    starts = [
        unroll.start(task, network) if half.position is None else half.position
        for task, half in zip(tasks, halves, strict=True)
    ]
    lanes, several = BatchedTasks(tasks), network.batched([half.weights for half in halves])
    with fitting(tasks[0]):  # as many threads as alone, so that processes with one make the same bits
        end, losses = unroll.segment(lanes, several, joined(starts, apart=True), steps)
    ends = divided(end, lanes.sizes, apart=True) if keep else [None] * len(halves)
    return list(zip(ends, losses.T, strict=True))


def _run_half(
    network: unroll.Network, task: Task, half: Half, steps: int, keep: bool
) -> tuple[Any, np.ndarray]:
    put(network, half.weights)
    network.bind(task)
    start = unroll.start(task, network) if half.position is None else half.position
    position, losses = unroll.segment(task, network, start, steps)
    return position if keep else None, losses


def arrays(network: unroll.Network) -> Arrays:
    """A copy of the weights."""
    return {name: to_numpy(w) for name, w in network.weights.items()}


def tensors(arrays: Arrays, network: unroll.Network) -> dict[str, torch.Tensor]:
    """Arrays by weight name as tensors of the weights\' dtypes."""
    return {name: to_tensor(arrays[name], w.dtype, w.device) for name, w in network.weights.items()}


def put(network: unroll.Network, arrays: Arrays) -> None:
    """Put arrays into the weights."""
    for name, values in tensors(arrays, network).items():
        network.weights[name].copy_(values)
