"""What a comparison would take, in time and memory: ``evaluate --dry-run``.

In a child process every optimizer takes a few steps on every problem; what these took is carried over to all
runs that are planned.
"""

import dataclasses
import importlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from common.machine import cores, memory
from common.run.cli import span
from common.run.config import from_dict
from interchange.commands.asked import Asked, asked
from interchange.commands.estimate import coordinates, most_memory, respond, tried
from interchange.evaluation.config import EvaluateConfig
from interchange.evaluation.timing import TIMED
from interchange.evaluation.tuning import planned

_STEPS = 3  # of a run that is tried
_WORTH = 0.5  # seconds that tell one number from another
_GIB, _MIB = float(2**30), float(2**20)


@dataclasses.dataclass(frozen=True)
class Part:
    """One optimizer on one problem.

    Attributes:
        parameters: coordinates of the optimizee; floats: of state for each.
        step, run: seconds of a step, and of what a run takes beside.
        first: seconds that the first run takes more, as it compiles, and the comparison of times at the end.
        look: of a look at the test images.
        runs, steps, looks: planned.
    """

    problem: str
    optimizer: str
    parameters: int
    floats: float
    step: float
    run: float
    first: float
    look: float
    runs: int
    steps: int
    looks: int

    @property
    def seconds(self) -> float:
        """Of all its runs, one after the other."""
        return self.runs * self.run + self.steps * self.step + self.looks * self.look


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a comparison is about to take.

    Attributes:
        start: seconds until the first run.
        before, peak: bytes of a process with data and program alone, and at the most.
        jobs: processes; width: bytes of a number.
    """

    parts: list[Part]
    start: float
    before: float
    peak: float
    jobs: int
    width: int

    @property
    def seconds(self) -> float:
        """Of all; every process compiles what it runs."""
        at_once = max(1, min(self.jobs, cores()))
        return self.start + sum(part.seconds / at_once + part.first for part in self.parts)

    @property
    def bytes(self) -> float:
        """Of all processes at the most; beside several workers there is the one that leads."""
        return self.peak * self.jobs + (self.before if self.jobs > 1 else 0.0)

    def __str__(self) -> str:
        lines = []
        for problem in dict.fromkeys(part.problem for part in self.parts):
            own = [part for part in self.parts if part.problem == problem]
            size, state = own[0].parameters * self.width, max(part.floats for part in own)
            shown = ", ".join(f"{part.optimizer} {1e3 * part.step:.3g}" for part in own)
            lines += [
                f"{problem} {own[0].parameters:,} parameters: {size / _MIB:.3g} MiB, as much for gradients, "
                f"up to {state * size / _MIB:.3g} MiB for an optimizer's state",
                f"a step of {problem}, ms: {shown}; a look at its test data {1e3 * own[0].look:.3g}",
            ]
        runs, steps = (sum(getattr(part, name) for part in self.parts) for name in ("runs", "steps"))
        each = f"{self.before / _GIB:.2f} GiB of program and data, {self.peak / _GIB:.2f} with its runs"
        lines += [
            f"about {runs:,} runs, {steps:,} steps: about {span(self.seconds)} with --jobs {self.jobs}",
            f"memory: {each}: {self.bytes / _GIB:.2f} of {memory() / _GIB:.1f} GiB",
        ]
        if self.bytes > memory():
            lines.append("more than this machine has: lower --batch-size or --jobs")
        return "\n".join(lines)


def forecast(config: EvaluateConfig, backend: str) -> Forecast:
    """What ``evaluate`` of a backend (``torch`` or ``tf``) would take.

    Raises:
        L2OError: what the command itself raises before its first run, or in its first steps.
    """
    found = tried({"package": f"{backend}_impl", "config": dataclasses.asdict(config)}, __name__)
    parts = [Part(**part) for part in found.pop("parts")]
    return Forecast(parts, jobs=config.jobs, width=8 if config.dtype == "float64" else 4, **found)


def answer() -> None:
    """What the child process does (``estimate.tried``)."""
    respond(_measured)


def _measured(given: Mapping[str, Any], folder: str) -> dict[str, Any]:
    del folder  # nothing is written
    started = time.perf_counter()
    backend = importlib.import_module(f"{given['package']}.backend")
    all_of_it = asked(from_dict(EvaluateConfig, given["config"]), backend)
    ready, before = time.perf_counter() - started, most_memory()
    parts = [
        dataclasses.asdict(_part(all_of_it, problem, text, backend))
        for problem in all_of_it.configs
        for text in all_of_it.loaded
    ]
    return {"parts": parts, "start": ready, "before": before, "peak": most_memory()}


def _part(all_of_it: Asked, problem: str, text: str, backend: Any) -> Part:
    """What an optimizer takes on a problem, by runs of a few steps."""
    config, source, task = all_of_it.configs[problem], all_of_it.loaded[text], all_of_it.first[problem]
    lr = source.spec.lr or source.spec.middle
    training = dataclasses.replace(config.training, test_every=0)

    def took(steps: int) -> tuple[float, int]:
        """Seconds, and steps that were taken, as it may diverge."""
        started = time.perf_counter()
        found = backend.roll_out(source, lr, task, steps, source.spec.schedule or "constant", False, training)
        return time.perf_counter() - started, max(1, len(found.losses))

    (first, _), (short, few) = took(_STEPS), took(_STEPS)
    long, many = took(_STEPS + max(_STEPS, min(1000, math.ceil(_WORTH * _STEPS / short))))
    step = max(0.0, long - short) / (many - few) if many > few else short / few
    advance, floats = backend.stepper(source, lr, task)
    alone = min(_seconds(lambda: advance(1)) for _ in range(2))  # a step without its gradient
    look = min(_seconds(lambda: task.test_scores(task.initial())) for _ in range(2))
    every = config.training.test_every
    plan = list(planned(source, all_of_it.horizons(problem), config))
    tests = [(steps, runs) for stream, steps, runs in plan if stream == "test"]
    return Part(
        problem=problem,
        optimizer=text,
        parameters=coordinates(problem, config.dataset),
        floats=floats(),
        step=step,
        run=max(0.0, short - few * step),
        first=max(0.0, first - short) + TIMED * alone,
        look=look,
        runs=sum(runs for _, _, runs in plan),
        steps=sum(steps * runs for _, steps, runs in plan),
        looks=sum(runs * (1 + (steps - 1) // every if every else 1) for steps, runs in tests),
    )


def _seconds(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started
