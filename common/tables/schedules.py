"""The table of learning-rate schedules that a comparison tries, the same for every optimizer."""

import dataclasses
import math
from collections.abc import Callable

from common.registry import Registry


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One row.

    Attributes:
        factor: of the learning rate before ``step`` (from 0) of a run of ``steps``.
        ends: it ends with the run, so that every horizon needs runs of its own.
        extra: tried where it is named, not among ``all``.
    """

    factor: Callable[[int, int], float]
    ends: bool = False
    note: str = ""
    extra: bool = False


def _root(pace: float) -> Schedule:
    return Schedule(lambda step, steps: 1.0 / math.sqrt(1.0 + pace * step), note=f"1 / sqrt(1 + {pace:g} t)")


def _cosine(step: int, steps: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _linear(step: int, steps: int) -> float:
    return 1.0 - step / steps


def _warm(after: Callable[[int, int], float], note: str) -> Schedule:
    """A straight line up over the first twentieth of a run, and another schedule over the rest."""

    def factor(step: int, steps: int) -> float:
        warm = max(1, round(steps / 20))
        return (step + 1) / warm if step < warm else after(step - warm, steps - warm)

    return Schedule(factor, True, f"up over the first twentieth, then {note}", extra=True)


SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    {
        "constant": Schedule(lambda step, steps: 1.0, note="1"),
        "root-0.001": _root(0.001),
        "root-0.0035": _root(0.0035),
        "root-0.01": _root(0.01),
        "cosine": Schedule(_cosine, True, "a cosine from 1 to 0"),
        "linear": Schedule(_linear, True, "a straight line from 1 to 0"),
        "step": Schedule(
            lambda step, steps: 0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps)),
            True,
            "a tenth after half of the run, a hundredth after three quarters (He et al. 2016)",
            extra=True,
        ),
        "warmup": _warm(lambda step, steps: 1.0, "1"),
        "warmup-cosine": _warm(_cosine, "a cosine from 1 to 0"),
        "warmup-linear": _warm(_linear, "a straight line from 1 to 0"),
    },
)
