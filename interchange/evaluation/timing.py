"""How long a step of each optimizer takes, side by side."""

import math
import statistics
import time
from collections.abc import Callable, Mapping

_TIMED_STEPS, _TIMED_ROUNDS = 10, 7


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
