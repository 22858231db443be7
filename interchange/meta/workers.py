"""Processes that meta-train together: what the commands ask of them, and one process alone.

Each takes its share of the optimizees of an update; sums of their meta-gradients and a few numbers are all
that goes between them. A backend's ``meta/workers.py`` adds how, ``sharing.py`` what the loop makes of it.
"""

import abc
import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import L2OError
from interchange.backend import Arrays

TIMEOUT = "L2O_WORKERS_TIMEOUT"  # environment variable: seconds to wait for the other workers
_SECONDS = 600.0


class ElsewhereError(L2OError):
    """Another worker failed, and says why."""

    told = True


@dataclasses.dataclass(frozen=True)
class Place:
    """Of a process among those that train together, as its environment tells.

    Attributes:
        local: its number on its machine.
        restarts: how often all of them were started anew.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    restarts: int = 0


def place(name: str) -> Place:
    """This process's, from ``torchrun``'s variables (``torch``) or ``TF_CONFIG`` (``tf``)."""
    if name == "tf":
        return _cluster(os.environ.get("TF_CONFIG", ""))
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Place()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
    try:
        found = Place(*(int(os.environ.get(name) or 0) for name in names))
    except ValueError:
        shown = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
        raise L2OError(f"expected torchrun's variables, got {shown}; start it by torchrun") from None
    if not 0 <= found.rank < found.size:
        raise L2OError(f"expected RANK below WORLD_SIZE, got {found.rank} of {found.size}; use torchrun")
    return found


def _cluster(text: str) -> Place:
    """The place ``TF_CONFIG`` gives; without one, or one that names no other worker, alone."""
    if not text:
        return Place()
    try:
        found = json.loads(text)
        cluster, task = found.get("cluster", {}), found.get("task", {})
        tasks = [(kind, k) for kind in ("chief", "worker") for k in range(len(cluster.get(kind, ())))]
        if len(tasks) < 2:
            return Place()
        return Place(tasks.index((task.get("type"), int(task.get("index")))), len(tasks))
    except (AttributeError, TypeError, ValueError):
        shown = text if len(text) <= 80 else text[:80] + "..."
        raise L2OError(
            'TF_CONFIG: expected {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", '
            f'"index": N}}}}, got {shown}; correct or unset it'
        ) from None


def patience() -> float:
    """Seconds to wait for other workers before they count as lost."""
    text = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(text or _SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < 1e9:
        raise L2OError(f"{TIMEOUT}: expected seconds above 0, got {text}; {_SECONDS:g} if it is unset")
    return seconds


class Workers(abc.ABC):
    """The processes that train together, as one of them sees them; all must ask the same in the same order.

    Args:
        place: of this one. Rank 0 is the one that reads and writes files.
    """

    def __init__(self, place: Place) -> None:
        self.rank, self.size, self.restarts = place.rank, place.size, place.restarts

    @abc.abstractmethod
    def sum(self, tensors: Mapping[str, Any], numbers: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        """Sums over all workers, the same bits everywhere, in one message of float64.

        Args:
            tensors: the backend's own by name; the sums have their dtypes.
            numbers: [n], on the host.
        """

    @abc.abstractmethod
    def spread(self, data: np.ndarray) -> np.ndarray:
        """Rank 0's bytes [n], uint8; the others give as many of any value."""

    @abc.abstractmethod
    def device(self, name: str) -> str:
        """Which of the devices ``name`` stands for is this worker's."""

    @abc.abstractmethod
    def close(self) -> None:
        """Leave after an error, so that the others do not wait; nothing can be asked afterwards."""

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.close()

    @property
    def leads(self) -> bool:
        """Whether this is the one that reads and writes files, and prints."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` things are this worker's: every ``size``-th."""
        return range(self.rank, count, self.size)

    def total(self, numbers: Sequence[float] | np.ndarray) -> np.ndarray:
        """Sums [n] of numbers over all workers."""
        return self.sum({}, np.asarray(numbers, dtype=np.float64))[1]

    def broadcast(self, meta: Any, arrays: Arrays | None = None) -> tuple[Any, Arrays]:
        """Rank 0's JSON-ready value and arrays of numbers; what the others give does not matter."""
        if self.size == 1:
            return meta, arrays or {}
        data = _packed(meta, arrays or {}) if self.leads else np.zeros(0, dtype=np.uint8)
        (length,) = self.total([data.size]).astype(np.int64)
        return _unpacked(self.spread(data if self.leads else np.zeros(length, dtype=np.uint8)))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A part that each does by itself and none leaves alone: if it fails on one, all stop.

        Raises:
            L2OError: its own; or ``ElsewhereError``, where rank 0 or else the one that failed says why.
        """
        error = None
        try:
            yield
        except L2OError as found:
            error = found
        failed, first = self.total([error is not None, error is not None and self.leads])
        if error is not None and (self.leads or not first):
            raise error
        if failed:
            raise ElsewhereError(f"{int(failed)} of {self.size} workers failed; the first of them says why")


class Alone(Workers):
    """One process, which asks nobody."""

    def __init__(self, place: Place | None = None) -> None:
        super().__init__(place or Place())

    def sum(self, tensors: Mapping[str, Any], numbers: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        return dict(tensors), numbers

    def spread(self, data: np.ndarray) -> np.ndarray:
        return data

    def device(self, name: str) -> str:
        return name

    def close(self) -> None:
        pass


def lost(reason: object) -> L2OError:
    """What a worker says where it waited in vain."""
    line = " ".join(re.sub(r"^\[[^]]*\]", "", str(reason)).split())  # without the place in gloo's source
    line = (line or type(reason).__name__)[:120]
    return L2OError(
        f"lost another worker, or waited longer for it than {patience():g} s ({TIMEOUT}): {line}; "
        "go on from the last checkpoint: start all workers again, with --resume"
    )


def _packed(meta: Any, arrays: Arrays) -> np.ndarray:
    """One vector of bytes: length of the header, header (JSON), the arrays one after the other."""
    rows = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    header = json.dumps({"meta": meta, "arrays": rows}).encode()
    parts = [len(header).to_bytes(8, "little"), header, *(a.tobytes() for a in arrays.values())]
    return np.frombuffer(b"".join(parts), dtype=np.uint8)


def _unpacked(data: np.ndarray) -> tuple[Any, Arrays]:
    """The inverse of ``_packed``."""
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    arrays = {}
    for name, dtype, shape in header["arrays"]:
        stop = start + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(data[start:stop].tobytes(), dtype=dtype).reshape(shape).copy()
        start = stop
    return header["meta"], arrays
