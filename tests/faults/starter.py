"""Commands started fast and ended hard: a process that has imported a backend, and forks for each.

``python -m tests.faults.starter torch`` reads jobs, one JSON list a line, starts those of a list at once, and
answers with what became of each.
"""

import atexit
import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

_MARK = "L2O_FAULT"  # in the environment of everything that a job starts
_KEPT = 1 << 20  # bytes of its stderr
_DAC = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: what lets root write into any folder
_CAP_VERSION = 0x20080522


class Starter:
    """The driver of one such process."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        words = [sys.executable, "-m", "tests.faults.starter", backend]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def run(self, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
        """What became of jobs started together.

        A job has ``words`` and may have: ``signal`` and ``after``, seconds from the start; ``limit``, bytes
        of any file; ``stdout``, a file; ``environment``; ``ordinary``, without the rights of root. Of each
        come ``code``, negative for a signal, ``sent`` whether the signal found it, ``seconds`` it lived on
        after it or in all, ``error``, the end of stderr, ``orphans``, seconds until nothing of it lived any
        more, and ``left``, processes of it that live after half a minute.
        """
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def main(backend: str) -> None:
    """Serve until stdin ends."""
    from tests.faults.table import COMMANDS
    from tests.helpers.commands import main_of

    importlib.import_module(f"{backend}_impl.backend")
    for command in COMMANDS.values():
        main_of(command.line.split()[0].format(b=backend))
    from interchange.meta.config import TrainConfig, TuneConfig

    TrainConfig.checkpoint_seconds = TuneConfig.checkpoint_seconds = 0.1
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        jobs = json.loads(line)
        running = [_started(job, main_of) for job in jobs]
        print(json.dumps([_ended(*one) for one in running]), file=answers, flush=True)


def _started(job: dict[str, Any], main_of: Any) -> tuple[dict[str, Any], int, float]:
    job["mark"] = uuid.uuid4().hex
    job["log"], log = os.pipe2(os.O_NONBLOCK)  # a file would be under the limits of the job
    fcntl.fcntl(log, fcntl.F_SETPIPE_SZ, _KEPT)
    child = os.fork()
    if child:
        os.close(log)
        return job, child, time.monotonic()
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = os.open(job.get("stdout", os.devnull), os.O_WRONLY)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(log, 2)
    os.environ |= {_MARK: job["mark"], **job.get("environment", {})}
    encoding = os.environ.get("PYTHONIOENCODING")
    sys.stdout = open(1, "w", closefd=False, encoding=encoding)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, encoding=encoding)  # noqa: SIM115
    if "limit" in job:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"],) * 2)
    if job.get("ordinary"):
        _give_up_rights()
    command, *words = job["words"]
    code = main_of(command)(words)
    # What Python does at its end, but for freeing all memory, which takes a forked process seconds.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def _give_up_rights() -> None:
    """Have the permissions of files count for root too."""
    if os.geteuid():
        return
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.capget(header, data)
    for place in (0, 1, 2):
        data[place] &= ~_DAC
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def _ended(job: dict[str, Any], child: int, begun: float) -> dict[str, Any]:
    sent, since, error = False, begun, ""
    if job.get("signal"):
        code = _waited(child, begun + job["after"])
        if sent := code is None:
            since = time.monotonic()
            os.kill(child, job["signal"])
    code = code if job.get("signal") and not sent else _waited(child, since + 120.0)
    if code is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        code = -1000  # it hung
    seconds = time.monotonic() - since
    if sent and code == 0:
        sent = False  # it had ended just then
    ended = time.monotonic()
    while (left := _marked(job["mark"])) and time.monotonic() < ended + 30.0:
        time.sleep(0.1)
    orphans = time.monotonic() - ended
    with contextlib.suppress(BlockingIOError):  # nothing in it, and somebody holds it open
        error = os.read(job["log"], _KEPT)[-4000:].decode(errors="replace")
    os.close(job["log"])
    told = {"code": code, "sent": sent, "seconds": seconds, "error": error}
    return told | {"orphans": orphans, "left": left}


def _waited(child: int, until: float) -> int | None:
    """The exit code of a child, None where it lives on at that time."""
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def _marked(mark: str) -> list[str]:
    """Command lines of the living processes that a job has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line[:200] for line in found if line]


if __name__ == "__main__":
    main(sys.argv[1])
