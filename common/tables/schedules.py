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
    """

    factor: Callable[[int, int], float]
    ends: bool = False
    note: str = ""


def _root(pace: float) -> Schedule:
    return Schedule(lambda step, steps: 1.0 / math.sqrt(1.0 + pace * step), note=f"1 / sqrt(1 + {pace:g} t)")


SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    {
        "constant": Schedule(lambda step, steps: 1.0, note="1"),
        "root-0.001": _root(0.001),
        "root-0.0035": _root(0.0035),
        "root-0.01": _root(0.01),
        "cosine": Schedule(
            lambda step, steps: 0.5 * (1.0 + math.cos(math.pi * step / steps)), True, "a cosine from 1 to 0"
        ),
        "linear": Schedule(lambda step, steps: 1.0 - step / steps, True, "a straight line from 1 to 0"),
    },
)
