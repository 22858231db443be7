"""What a meta-training would take, in time and memory: ``train --dry-run`` and ``tune --dry-run``.

The command itself runs for a few steps in a child process; what these took is carried over to all of them.
"""

import dataclasses
import importlib
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.errors import L2OError
from common.machine import memory
from common.run.cli import span
from common.run.config import from_dict
from common.tables.problems import parameter_specs, problem_row
from interchange.meta.config import MetaLoop, TrainConfig, TuneConfig
from interchange.meta.schedule import EVOLVING, Schedule

_STEPS, _LENGTH = 3, 6  # of an unroll, and of an epoch
_WORTH = 1.0  # seconds that tell one number from another
_NEVER = 10**9
_GIB = float(2**30)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a meta-training is about to take.

    Attributes:
        parameters: problem -> coordinates of an optimizee.
        step, epoch, validation: seconds of an inner step, of a mean epoch, of a validation.
        epochs, validations: how many there will be.
        start: seconds until the first epoch.
        peak: bytes at the most, with unrolls of a few steps.
        growth: bytes more for every further step of an unroll; further: how many of these there are.
    """

    parameters: dict[str, int]
    step: float
    epoch: float
    validation: float
    epochs: int
    validations: int
    start: float
    peak: float
    growth: float
    further: int

    @property
    def seconds(self) -> float:
        """Of all."""
        return self.start + self.epochs * self.epoch + self.validations * self.validation

    @property
    def bytes(self) -> float:
        """At the most."""
        return self.peak + self.further * self.growth

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {count:,} parameters" for name, count in self.parameters.items())
        each = f", and {self.growth / 2**20:.1f} MiB for each of {self.further} further steps of an unroll"
        parts = f"{self.peak / _GIB:.2f} GiB with unrolls of a few steps{each if self.further else ''}"
        text = (
            f"{sizes}\n"
            f"a step {1e3 * self.step:.3g} ms, an epoch {span(self.epoch)}, "
            f"a validation {span(self.validation)}\n"
            f"{self.epochs} epochs and {self.validations} validations: about {span(self.seconds)}\n"
            f"memory: {parts}: {self.bytes / _GIB:.2f} of {memory() / _GIB:.1f} GiB"
        )
        if self.bytes > memory():
            text += "\nmore than this machine has: lower --unroll, --batch-size, --coordinates or --memory"
        return text


def estimate(config: MetaLoop, command: str, backend: str) -> Estimate:
    """What ``command`` (``train`` or ``tune``) of a backend (``torch`` or ``tf``) would take.

    Raises:
        L2OError: what the command itself raises in its first steps, or a curriculum, which ends where it may.
    """
    plan = Schedule(config)
    if plan.curriculum:
        raise L2OError(
            "--dry-run: expected epochs of known lengths; leave out --curriculum, which finds them"
        )
    found = _tried(dataclasses.asdict(config), command, backend)
    lengths = [plan.length(number) for number in range(config.epochs)]
    validated = config.validation_tasks * len(plan.problems) * sum(plan.horizons)
    every = config.validate_every
    return Estimate(
        parameters={name: coordinates(name, config.dataset) for name in plan.problems},
        step=found["step"],
        epoch=found["beside"] + float(np.mean(lengths)) * found["step"],
        validation=found["validated"] * validated,
        epochs=config.epochs,
        validations=1 + -(-config.epochs // every) if every else 0,
        start=found["start"],
        peak=found["peak"],
        growth=found["growth"],
        further=max(0, config.unroll - 2 * _STEPS) if found["growth"] else 0,
    )


def coordinates(problem: str, dataset: str) -> int:
    """Of an optimizee."""
    row = problem_row(problem, "" if problem_row(problem).kind == "function" else dataset)
    return sum(math.prod(spec.shape) for spec in parameter_specs(row))


def _tried(config: dict[str, Any], command: str, backend: str) -> dict[str, float]:
    """What the child process measured."""
    return tried({"command": command, "package": f"{backend}_impl", "config": config}, __name__)


def tried(given: dict[str, Any], module: str) -> Any:
    """What ``answer`` of a module printed in a child process that was given this.

    Raises:
        L2OError: what it raised, or that it failed.
    """
    child = subprocess.run(
        [sys.executable, "-c", f"from {module} import answer; answer()"],
        input=json.dumps(given), capture_output=True, text=True,
    )  # fmt: skip
    lines = child.stdout.splitlines()
    if child.returncode or not lines:
        said = child.stderr.strip().splitlines()
        raise L2OError(f"--dry-run: the first steps failed: {said[-1][:400] if said else 'without a word'}")
    found = json.loads(lines[-1])
    if "error" in found:
        raise L2OError(found["error"])
    return found


def answer() -> None:
    """What the child process does: read what to try, try it, print what it took as JSON."""
    respond(_measured)


def respond(measure: Callable[[Mapping[str, Any], str], dict[str, Any]]) -> None:
    """Print what ``measure`` finds of what is read, with an empty folder."""
    given = json.load(sys.stdin)
    try:
        with tempfile.TemporaryDirectory(prefix="l2o-dry-run-") as folder:
            found = measure(given, folder)
    except L2OError as error:
        found = {"error": str(error)}
    print(json.dumps(found))


def _measured(given: Mapping[str, Any], folder: str) -> dict[str, float]:
    """Seconds of an inner ``step``, of what an epoch does ``beside`` them, of the ``start``, and of a step of
    a validation; the ``peak`` of memory in bytes, and its ``growth`` for a step more in an unroll.
    """
    command = given["command"]
    run = getattr(importlib.import_module(f"{given['package']}.{command}"), command)
    kind = TrainConfig if command == "train" else TuneConfig
    unrolled = given["config"]["estimator"] not in (*EVOLVING, "forward")
    unroll = min(given["config"]["unroll"], _STEPS if unrolled else _LENGTH)
    shared = {"dry_run": False, "quiet": True, "overwrite": True, "out": f"{folder}/run", "horizon": ""}
    shared |= {"validate_every": _NEVER, "validation_tasks": 1, "epochs": 1, "epoch_length": _LENGTH}

    def took(unroll: int = unroll, **changes: Any) -> float:
        started = time.perf_counter()
        run(from_dict(kind, given["config"] | shared | {"unroll": unroll} | changes))
        return time.perf_counter() - started

    first, once = took(), took()  # what is compiled and read is so now
    rough = max(1e-3, (took(epochs=3) - once) / 2)
    more = max(1, min(200, math.ceil(_WORTH / rough)))
    epoch = (took(epochs=1 + more) - once) / more
    longer = (took(epochs=1 + more, epoch_length=2 * _LENGTH) - took(epoch_length=2 * _LENGTH)) / more
    step = max(0.0, longer - epoch) / _LENGTH
    # There is a validation before the first epoch and one after the last.
    tasks = max(1, min(100, math.ceil(_WORTH / rough)))
    validated = max(0.0, took(validation_tasks=1 + tasks) - once) / (2 * tasks * _LENGTH)
    peak, growth = most_memory(), 0.0
    if unrolled and given["config"]["unroll"] > unroll:
        took(unroll=2 * unroll, epoch_length=2 * _LENGTH)
        growth = (most_memory() - peak) / unroll
    found = {"step": step, "beside": max(0.0, epoch - _LENGTH * step), "start": max(0.0, first - epoch)}
    return found | {"validated": validated, "peak": most_memory(), "growth": growth}


def most_memory() -> int:
    """The most bytes this process had in memory."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
