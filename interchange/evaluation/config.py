"""What ``evaluate`` takes."""

import dataclasses
from typing import get_args

from common.data.datasets import Split
from common.errors import L2OError
from common.run.config import Trains, option
from common.tables.schedules import SCHEDULES


def _schedules() -> tuple[str, ...]:
    return (*SCHEDULES, "all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Trains):
    """Fair comparison of optimizers (MATH.md section 6)."""

    problem: str = option("digits-mlp", "row of the problem table, several, a,b,c, suite:core or suite:held")
    optimizers: tuple[str, ...] = option(
        ("all",), "name[:key=value,...], teacher:RUN, rule:FILE, front:FOLDER, or all for every baseline"
    )
    steps: tuple[int, ...] = option(
        (), "horizons, each is tuned for; 200 if not given, and a suite has its own", low=1
    )
    passes: tuple[int, ...] = option((), "horizons in passes over the training data, instead of steps", low=1)
    split: str = option("evaluation", "part of the data", choices=lambda: get_args(Split))
    start_scale: float = option(
        0.0, "r: initial values multiplied by exp(U(-r, r)), one draw per coordinate", low=0, high=20
    )
    seeds: int = option(5, "test seeds", low=1)
    validation_seeds: int = option(3, "validation seeds for the choice of the learning rate", low=1)
    trials: int = option(7, "learning rates tried per optimizer, factor 2 apart (0: no tuning)", low=0)
    schedules: tuple[str, ...] = option(
        ("constant",), "schedules that every optimizer chooses from; all for every one", choices=_schedules
    )
    weight_decays: tuple[float, ...] = option(
        (), "decoupled weight decays that every optimizer chooses from, but one whose SPEC has its own", low=0
    )
    knob: bool = option(
        False,
        "then try two other values of each momentum, beta1 or alpha, and of a rule's first decay, three "
        "learning rates each",
    )
    fair: bool = option(False, "the whole protocol: --schedules all --knob; some 28 settings instead of 7")
    jobs: int = option(1, "processes", low=1)
    dry_run: bool = option(False, "only say what it would take: parameters, memory, time, by a few steps")
    cluster: str = option("", "dask, dask:tcp://HOST:PORT, ray or ray:HOST:PORT instead of the local pool")
    report: bool = option(True, "write report.html too")

    def resolved(self) -> "EvaluateConfig":
        """The same with ``fair`` written out."""
        if not self.fair:
            return self
        if self.schedules not in (type(self).schedules, ("all",)):
            raise L2OError("--fair tries every schedule; leave --schedules out")
        return dataclasses.replace(self, fair=False, schedules=("all",), knob=True)
