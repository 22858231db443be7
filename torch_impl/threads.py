"""How many threads a rollout runs on: torch's own help large optimizees only, compiled code takes all."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

# Multiplications of a batch (coordinates times batch size) from which torch's threads pay. Below, they save
# little on an idle machine, and on a busy one, where OpenMP's threads wait for one that does not run, cost a
# hundredfold.
_LARGE = 1 << 25

_given = 0  # threads torch had before ``fitting`` took them


def threads() -> int:
    """Threads for compiled code: as many as the user gave torch."""
    return _given or torch.get_num_threads()


@contextlib.contextmanager
def fitting(task: Any = None) -> Iterator[None]:
    """Within, torch runs on one thread where a task is small, or where there is none.

    Decided by its size alone, since bits depend on threads.
    """
    global _given
    small = task is None or getattr(task, "work", _LARGE) < _LARGE
    if _given or not small or torch.get_num_threads() == 1:
        yield
        return
    _given = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_given)
        _given = 0
