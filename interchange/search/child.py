"""The search's child process: a task in, texts out, nothing shared with the parent but files.

Engines can crash, hang or eat memory, and some must not live beside a deep-learning framework; the parent
kills the child when its time is up and keeps what was reported until then.
"""

import dataclasses
import importlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import L2OError
from common.machine import limit_memory
from common.run.storage import atomic_write, loads_json
from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.search import Engine, Task, find_engine, needs

_GRACE = 20.0  # seconds beyond the search's own limit, for imports and the last generation
_POLL = 0.25  # seconds
_PREFIX = "l2o-search-"  # of the folders with a task's files
_ARRAYS = ("rows", "y", "weights")
_SETTINGS = tuple(
    field.name for field in dataclasses.fields(Task) if field.name not in (*_ARRAYS, "features", "target")
)
_REFUSED = "refused: "  # before the one line of an ``L2OError`` in the child
_NO_MEMORY = (
    "MemoryError",
    "bad_alloc",
    "Cannot allocate memory",
    "Unable to allocate",
    "failed to map segment",
    "can't start new thread",
)

_log = logging.getLogger(__name__)


def run_engine(
    engine: str,
    task: Task,
    tick: Callable[[], None] = lambda: None,
    live: Callable[[list[str]], None] = lambda texts: None,
    stop: threading.Event | None = None,
) -> list[Node]:
    """Run ``engine`` in a child process; the expressions it found, over ``task.names``.

    Past its time, out of memory, crashed, or interrupted (Ctrl-C), it is ended and what it reported until
    then is returned. Texts that are no expressions over the names are dropped and logged.

    Args:
        tick: called about once a second while the search runs, at most ``int(task.time)`` times.
        live: called with the reported texts when they changed.
        stop: once set, the same as Ctrl-C, which only the main thread hears.

    Raises:
        L2OError: unknown engine, its package is missing, bad data, or it failed before it reported anything.
        KeyboardInterrupt: interrupted before it reported anything.
    """
    row = find_engine(engine)
    if told := needs(row):
        raise L2OError(f"engine {engine!r} {told}")
    _check(task, row)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        _write(engine, row, task, Path(folder))
        with Path(folder, "messages.txt").open("wb") as messages:
            child = subprocess.Popen(
                [sys.executable, "-m", "interchange.search.child", folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=messages,
                env=_environment(task),
                start_new_session=True,  # Ctrl-C is for the parent, which then ends the child
            )
        interrupted = False
        try:
            in_time = _wait(child, Path(folder), task.time, tick, live, stop)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            _end(child)
        texts = _read(Path(folder, "result.json"), engine) if child.returncode == 0 else None
        if texts is not None:
            return _parsed(texts, task, engine)
        texts = _read(Path(folder, "partial.json"), engine) or []
        if interrupted:
            if not texts:
                raise KeyboardInterrupt
            _log.warning("engine %r was interrupted; goes on with the %d equations found", engine, len(texts))
            return _parsed(texts, task, engine)
        reason = _reason(engine, task, child.returncode, in_time, Path(folder, "messages.txt"))
        if not texts:
            raise L2OError(reason)
        _log.warning("%s; goes on with the %d equations found until then", reason, len(texts))
        return _parsed(texts, task, engine)


def _check(task: Task, row: Engine) -> None:
    """Arrays of one length, finite, weights that are weights."""
    rows, columns = task.rows.shape
    if (len(task.columns), task.y.shape, task.weights.shape) != (columns, (rows,), (rows,)) or not rows:
        raise L2OError(
            f"expected rows [n, {len(task.columns)}], y [n] and weights [n] with n > 0, "
            f"got {task.rows.shape}, {task.y.shape} and {task.weights.shape}; choose rows again"
        )
    arrays = [task.rows, task.y, task.weights]
    arrays += [task.target, *task.features.values()] if row.sequences else []
    if not all(np.isfinite(array).all() for array in arrays):
        raise L2OError(
            "expected finite features and targets, got nan or inf; record again without divergence"
        )
    if (task.weights < 0.0).any() or not task.weights.any():
        raise L2OError("expected weights of 0 or more, some of them above 0; got others")


def _environment(task: Task) -> dict[str, str]:
    """The child's: the parent's modules, and no more threads than the task has."""
    # A budget of evaluations is for equal results, and sums of several threads differ in the last digits.
    sums = 1 if task.evaluations else task.threads
    threads = {"OMP_NUM_THREADS": task.threads, "OPENBLAS_NUM_THREADS": sums, "MKL_NUM_THREADS": sums}
    path = os.pathsep.join(p for p in sys.path if p)
    return os.environ | {n: str(k) for n, k in threads.items()} | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"}


def _write(engine: str, row: Engine, task: Task, folder: Path) -> None:
    arrays = {name: getattr(task, name) for name in _ARRAYS}
    if row.sequences and len(task.target) > 1:  # rows without a past are all in ``rows``
        arrays["target"] = task.target
        arrays |= {f"feature_{k}": task.features[name] for k, name in enumerate(task.names)}
    np.savez(folder / "data.npz", **arrays)
    settings = {name: getattr(task, name) for name in _SETTINGS}
    settings |= {"engine": engine, "module": row.module, "address_space": row.address_space}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")


def _wait(
    child: subprocess.Popen[bytes],
    folder: Path,
    seconds: float,
    tick: Callable[[], None],
    live: Callable[[list[str]], None],
    stop: threading.Event | None,
) -> bool:
    """Wait for the child, ticking; False if it still runs after ``seconds`` and the grace."""
    started, ticks, seen = time.monotonic(), 0, 0
    while (passed := time.monotonic() - started) < seconds + _GRACE:
        try:
            child.wait(_POLL)
            return True
        except subprocess.TimeoutExpired:
            pass
        if stop and stop.is_set():
            raise KeyboardInterrupt
        for _ in range(ticks, min(int(passed), int(seconds))):
            tick()
            ticks += 1
        partial = folder / "partial.json"
        if partial.exists() and (changed := partial.stat().st_mtime_ns) != seen:
            seen = changed
            live(_read(partial, "search") or [])
    return False


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and what it started; also where the wait was interrupted."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    child.stdin.close()


def _read(file: Path, engine: str) -> list[str] | None:
    if not file.exists():
        return None
    texts = loads_json(file.read_text(encoding="utf-8"), f"output of engine {engine!r}")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise L2OError(f"engine {engine!r}: expected a list of texts, got {str(texts)[:80]!r}; correct it")
    return texts


def _reason(engine: str, task: Task, code: int, in_time: bool, messages: Path) -> str:
    if not in_time:
        return f"engine {engine!r} ran {_GRACE:.0f} s over its limit and was killed"
    text = messages.read_text(encoding="utf-8", errors="replace")
    if code and any(sign in text for sign in _NO_MEMORY):
        return (
            f"engine {engine!r} needed more than its {task.memory / 2**30:.3g} GiB of memory; "
            "give it more, or fewer rows"
        )
    last = (text.strip().splitlines() or ["no message"])[-1]
    if last.startswith(_REFUSED):
        return f"engine {engine!r}: {last.removeprefix(_REFUSED)}"
    return f"engine {engine!r} failed with exit code {code}: {last}"


def _parsed(texts: list[str], task: Task, engine: str) -> list[Node]:
    """Those that are expressions over the names, each once."""
    nodes: dict[Node, None] = {}
    for text in texts:
        try:
            nodes[parse(text, (*task.names, "t"))] = None  # the step is known wherever a rule runs
        except L2OError as error:
            _log.warning("engine %r: an equation is dropped: %s", engine, error)
    return list(nodes)


def main(folder: str) -> None:
    """Read the task from the files of ``folder``, search, write ``result.json``."""
    tempfile.tempdir = folder  # the parent removes it, also where an engine was killed
    settings = json.loads(Path(folder, "settings.json").read_text(encoding="utf-8"))
    engine, module, limited = (settings.pop(name) for name in ("engine", "module", "address_space"))
    threading.Thread(target=_end_with_parent, args=(Path(folder),), daemon=True).start()
    if limited:
        limit_memory(settings["memory"])
    task = Task(**dict(_arrays(Path(folder, "data.npz"), settings["names"])), **_tuples(settings))
    partial = Path(folder, "partial.json")
    options = task.options if engine.count(":") < 2 else task.options | {"class": engine.split(":", 1)[1]}
    texts = importlib.import_module(module).search(
        dataclasses.replace(task, options=options),
        lambda texts: atomic_write(partial, json.dumps(texts)),
    )
    atomic_write(Path(folder, "result.json"), json.dumps(texts))


def _end_with_parent(folder: Path) -> None:
    """End when the parent is gone, with the files it can no longer remove: its end of stdin then closes."""
    os.read(sys.stdin.fileno(), 1)
    for _ in range(3 if folder.name.startswith(_PREFIX) else 0):  # the search may still be writing
        shutil.rmtree(folder, ignore_errors=True)
    os.killpg(os.getpid(), signal.SIGKILL)


def _arrays(file: Path, names: list[str]) -> Iterator[tuple[str, Any]]:
    with np.load(file, allow_pickle=False) as data:
        yield from ((name, data[name]) for name in _ARRAYS)
        yield "target", data["target"] if "target" in data else np.zeros((0, 0))
        kept = {name: f"feature_{k}" for k, name in enumerate(names) if f"feature_{k}" in data}
        yield "features", {name: data[key] for name, key in kept.items()}


def _tuples(settings: dict[str, Any]) -> dict[str, Any]:
    return {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except L2OError as error:
        sys.exit(f"{_REFUSED}{error}")
