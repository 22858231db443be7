"""Run folders: configuration, environment record, metrics, and stopping on a signal.

A run folder holds ``config.json`` (resolved), ``env.json``, ``metrics.jsonl`` (append-only, one write per
line), ``checkpoint/``, what the run produced, and ``lock``.
"""

import contextlib
import json
import math
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from common import kernels
from common.errors import L2OError
from common.run.lock import RunLock
from common.run.storage import StorageError, atomic_write, canonical_json, loads_json, read_file, read_json

METRICS_LIMIT = 1 << 30  # bytes
_LIBRARIES = ("numpy", "torch", "tensorflow", "keras", "h5py", "sympy", "onnx", "pyoperon", "pysr")


class RunFolder:
    """One run's folder.

    ``RunFolder(path)`` reads an existing run. ``with RunFolder(path, create=True) as run:`` starts one and
    ``with RunFolder(path, resume=True) as run:`` goes on with one; both hold the folder's lock, and only
    they write.

    Args:
        create: start a fresh run; a folder that already holds a run is refused.
        resume: go on with the run in the folder; a torn last line of metrics is cut off.
        overwrite: with ``create``, remove the run that is there; other files stay.
        again: what the refusal of a folder that holds a run says first, where one can go on with it.

    Raises:
        L2OError: no run there, a run there already, or the folder is in use.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = False,
        resume: bool = False,
        overwrite: bool = False,
        again: str = "",
    ) -> None:
        self.path, self._again = Path(path), again
        self._fresh, self.resumes, self._overwrite = create and not resume, resume, overwrite
        self._lock = RunLock(self.path)
        self._metrics: int | None = None
        self._held = False
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []  # each gets every logged row
        if not create:
            self._check_there()

    def __enter__(self) -> "RunFolder":
        if not (self._fresh or self.resumes):
            return self
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._lock)
            if self._fresh:
                self._clear()
            else:
                self._check_there()
                self._cut_torn_line()
            self._held = True
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._close_metrics()
        self._held = False
        self._lock.__exit__()

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def file(self, name: str) -> Path:
        """The path of a file of the run, e.g. ``run.file("teacher.h5")``."""
        return self.path / name

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration and the environment record; the run exists from here on."""
        self._check_held()
        atomic_write(self.file("env.json"), json.dumps(environment(), indent=1, sort_keys=True) + "\n")
        canonical_json(dict(config))  # refuses what JSON cannot hold
        atomic_write(self.file("config.json"), json.dumps(dict(config), indent=1, sort_keys=True) + "\n")

    def config(self) -> dict[str, Any]:
        """The configuration the run was started with."""
        return _mapping(self.file("config.json"))

    def environment(self) -> dict[str, Any]:
        """The environment the run was started in."""
        return _mapping(self.file("env.json"))

    def code_changed(self) -> str:
        """What a resumed run should know: that it goes on with other code than it began with; "" if not."""
        began, now = self.environment().get("kernels", ""), kernels.which()
        if began in ("", now):
            return ""
        return f"{self.path}: begun with {began}; goes on with {now}, so the last bits may differ"

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl`` in a single write; NaN and infinities become null."""
        self._check_held()
        line = (canonical_json(finite_or_none(dict(row))) + "\n").encode()
        path = self.file("metrics.jsonl")
        try:
            if self._metrics is None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._metrics = os.open(path, flags, 0o666)
            size = os.fstat(self._metrics).st_size
            written = os.write(self._metrics, line)
            if written < len(line):  # the disk filled up within the line
                os.ftruncate(self._metrics, size)
                raise OSError(0, "only a part could be written")
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(
                f"cannot write {path} ({len(line)} bytes): {reason}; free some space or write elsewhere"
            ) from error
        for listener in self.listeners:
            listener(row)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged rows in order; a torn last line is left out. No metrics yet: an empty list."""
        return [row for _, row in self._lines()]

    def truncate_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Keep only the rows for which ``keep`` is true, atomically; for going on from a checkpoint."""
        self._check_held()
        lines = [line for line, row in self._lines() if keep(row)]
        self._close_metrics()
        atomic_write(self.file("metrics.jsonl"), b"".join(lines))

    def _lines(self) -> list[tuple[bytes, dict[str, Any]]]:
        path = self.file("metrics.jsonl")
        if not path.exists():
            return []
        lines = read_file(path, METRICS_LIMIT).split(b"\n")[:-1]  # what follows the last newline is torn
        rows = []
        for number, line in enumerate(lines, 1):
            row = loads_json(line.decode(errors="replace"), f"{path}, line {number}")
            if not isinstance(row, dict):
                raise L2OError(
                    f"{path}, line {number}: expected an object, got {str(row)[:40]}; remove the line"
                )
            rows.append((line + b"\n", row))
        return rows

    def _check_there(self) -> None:
        if not self.file("config.json").is_file():
            raise L2OError(f"{self.path}: expected a run folder, got no config.json in it; check the path")

    def _check_held(self) -> None:
        if not self._held:
            raise L2OError(
                f"run folder {self.path} is open for reading only; use `with RunFolder(..., create=True)`"
            )

    def _clear(self) -> None:
        config = self.file("config.json")
        if config.exists() and not self._overwrite:
            raise L2OError(
                f"run folder {self.path} already holds a run; {self._again}replace it with --overwrite, or "
                "choose another folder"
            )
        old = [
            *self.path.glob("checkpoint/checkpoint-*.h5*"),
            *map(self.file, ("metrics.jsonl", "env.json", "teacher.h5", "init.h5")),
        ]
        for path in (*old, config):  # the configuration last: until then the old run can be recognised
            with _storage_errors(path):
                path.unlink(missing_ok=True)

    def _cut_torn_line(self) -> None:
        path = self.file("metrics.jsonl")
        if path.exists():
            data = read_file(path, METRICS_LIMIT)
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                with _storage_errors(path):
                    os.truncate(path, whole)

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            os.close(self._metrics)
            self._metrics = None


@contextlib.contextmanager
def _storage_errors(path: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot change {path}: {error.strerror}; check its permissions") from error


def _mapping(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise L2OError(f"{path}: expected an object, got {str(value)[:40]}; restore a copy")
    return value


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of metrics, but for the epoch they are of."""
    return {
        name: float(value)
        for name, value in row.items()
        if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def finite_or_none(value: Any) -> Any:
    """The same as plain JSON data, None for what is not finite, however deep."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(child) for child in value]
    value = value.item() if getattr(value, "ndim", None) == 0 else value  # NumPy's scalars
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment() -> dict[str, Any]:
    """What a result may depend on: libraries' versions, platform, threads, compiled code, command line."""
    versions = {
        name: str(getattr(sys.modules[name], "__version__", "unknown"))
        for name in _LIBRARIES
        if sys.modules.get(name) is not None
    }
    threads = {
        name: os.environ[name]
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        if name in os.environ
    }
    torch = sys.modules.get("torch")
    if hasattr(torch, "get_num_threads"):
        threads["torch"] = str(torch.get_num_threads())
    return {
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "kernels": kernels.which(),
        "command": sys.argv,
    }


class Interrupt:
    """Turns SIGTERM and SIGINT into a flag, so that a loop can write its checkpoint and leave.

    ``with Interrupt() as stop: while not stop.requested: ...`` and then ``return stop.exit_code``. A
    second signal ends the process at once. Outside the main thread, where Python allows no handlers, it
    does nothing.

    Attributes:
        requested: a signal has come.
        exit_code: 143 after SIGTERM, 130 after SIGINT, otherwise 0.
    """

    def __init__(self) -> None:
        self.requested = False
        self.exit_code = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested, self.exit_code = True, 128 + number
