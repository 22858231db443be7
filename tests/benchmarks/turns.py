"""Contestants of ``meta_training.py`` in child processes of their own, taken in turn."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OURS, REFERENCES = ("torch", "tf"), ("jax", "naive", "iclr")
SLOW = ("naive", "iclr")
_BY_CHILD = ("steps", "coordinates")
_PAUSE = 0.2  # seconds until the threads of the one before have gone to sleep
_HERE = Path(__file__).parent
DEFAULTS = {
    "problem": "mnist-mlp",
    "data_dir": "",
    "unroll": 20,
    "steps": 200,
    "coordinates": 1.0,
    "threads": 0,
    "device": "cpu",
    "seed": 0,
}


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that are flags of the program, but for steps and coordinates, which differ by child."""
    return {name: getattr(options, name) for name in DEFAULTS if name in options and name not in _BY_CHILD}


class Child:
    """A contestant in its process; it sleeps between its turns.

    Args:
        settings: ``contestant`` and ``teacher``, and what differs from the defaults.

    Attributes:
        ready: resident bytes before any unroll, and processors it may use.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = DEFAULTS | settings
        share = self.settings["coordinates"]
        self.label = self.settings["contestant"] + (f" {100 * share:g}%" if share < 1.0 else "")
        command = [sys.executable, str(_HERE / "contestants.py"), json.dumps(self.settings)]
        path = os.pathsep.join(filter(None, [str(_HERE.parents[1]), os.environ.get("PYTHONPATH", "")]))
        self.errors, name = tempfile.mkstemp()
        os.unlink(name)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        self.ready: dict[str, Any] = {}

    def wait(self) -> "Child":
        """Until it is built."""
        self.ready = self._answer()
        return self

    def ask(self, *command: Any) -> dict[str, Any]:
        """The answer to a command of ``contestants.Served``."""
        print(json.dumps(command), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            said = os.pread(self.errors, os.fstat(self.errors).st_size, 0).decode(errors="replace")
            said = "".join(said.splitlines(keepends=True)[-20:])
            who = f"{self.label} ({self.settings['teacher']})"
            raise SystemExit(f"{said}{who} ended with exit code {code}")
        return json.loads(line)

    def cpu_seconds(self) -> float:
        """Processor time it has used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it and wait for its end."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        os.close(self.errors)


def rounds_of(children: list[Child], rounds: int) -> dict[str, dict[str, Any]]:
    """Label -> steps per second of every turn and their median, processor ms per step, peak bytes, mean loss.

    A round lets each child run one epoch; ``idle_cpu`` is the largest number of processors that the others
    kept busy together during one of its turns.
    """
    rows: dict[str, dict[str, Any]] = {
        child.label: {"steps_per_second": [], "cpu_ms": [], "peak": 0, "losses": [], "idle_cpu": 0.0}
        for child in children
    }
    for number in range(rounds):
        k = number % len(children)
        for child in children[k:] + children[:k]:
            time.sleep(_PAUSE)
            others = [other for other in children if other is not child]
            before, start = sum(other.cpu_seconds() for other in others), time.perf_counter()
            used = child.cpu_seconds()
            turn, row = child.ask("turn"), rows[child.label]
            row["cpu_ms"].append(1e3 * (child.cpu_seconds() - used) / turn["steps"])
            busy = (sum(other.cpu_seconds() for other in others) - before) / (time.perf_counter() - start)
            row["steps_per_second"].append(turn["steps"] / turn["seconds"])
            row["losses"].append(turn["loss"])
            row["peak"] = max(row["peak"], turn["peak"])
            row["reset"] = turn["reset"]
            row["idle_cpu"] = max(row["idle_cpu"], busy)
    for child in children:
        row = rows[child.label]
        row["median"] = statistics.median(row["steps_per_second"])
        row |= {"settings": child.settings, "ready": child.ready}
    return rows
