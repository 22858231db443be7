"""How long a step of each optimizer takes, side by side."""

import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interchange.backend import Backend, Task
    from interchange.evaluation.tuning import Tuned
    from interchange.rule.source import Source

_LOG = logging.getLogger(__name__)

_TIMED_STEPS, _TIMED_ROUNDS = 10, 7
TIMED = _TIMED_ROUNDS * (1 + _TIMED_STEPS)  # steps of every optimizer that are timed


def time_optimizers(
    steppers: Mapping[str, tuple[Callable[[int], None], Callable[[], float]]],
) -> dict[str, tuple[float, float]]:
    """Milliseconds of one step (median, taking turns), and floats of state per parameter.

    Args:
        steppers: as ``Backend.stepper`` makes them.
    """
    samples: dict[str, list[float]] = {text: [] for text in steppers}
    for _ in range(_TIMED_ROUNDS):
        for text, (advance, _) in steppers.items():
            started = math.nan
            try:
                advance(1)  # state is made in the first step; caches are warm in the others
                started = time.perf_counter()
                advance(_TIMED_STEPS)
            except RuntimeError:  # updates stayed non-finite: skipped steps are no measure
                started = math.nan
            samples[text].append((time.perf_counter() - started) / _TIMED_STEPS)
    return {
        text: (1e3 * statistics.median(samples[text]), floats()) for text, (_, floats) in steppers.items()
    }


def gradient_seconds(loaded: "Mapping[str, Source]", task: "Task", backend: "Backend") -> float:
    """Seconds of a gradient, roughly; the first one includes reading data and compiling."""
    source = next(iter(loaded.values()))
    for _ in range(2):
        started = time.perf_counter()
        backend.stepper(source, source.spec.middle, task)
    return time.perf_counter() - started


def step_times(
    tuned: "Mapping[str, Tuned]", loaded: "Mapping[str, Source]", task: "Task", backend: "Backend"
) -> dict[str, tuple[float, float]]:
    """Milliseconds of a step and floats of state per parameter; nan where an optimizer cannot be built."""
    steppers = {}
    for text, source in loaded.items():
        own = tuned[text]
        longest = max(next(iter(own.grids)).horizons)
        try:
            steppers[text] = backend.stepper(source, own.best(longest)[0], task)
        except Exception as error:  # its cells have failed and say so; the others' times are wanted
            _LOG.warning("%s is not timed: %s", text, error)
    return dict.fromkeys(loaded, (math.nan, math.nan)) | time_optimizers(steppers)
