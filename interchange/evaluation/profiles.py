"""How optimizers stand against each other over many problems: ratios, time to target, performance profiles.

Everything starts from the rows of ``common.metrics.summarise`` and the runs' losses. NumPy only.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from common.metrics import SummaryRow, counted, geometric, loss_at, loss_interval, smooth
from common.tables.baselines import BASELINES

REACHED_AT = 0.8  # share of the horizon at which the best baseline's loss is the target
TAU = 4.0  # the profile's right end, as AlgoPerf's (Dahl et al. 2023)
CLOSE = 1.05  # losses up to this ratio count as close
_WINDOW = 20  # losses averaged, as in every figure

Place = tuple[str, int]  # problem and horizon


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Loss over another optimizer's loss from the same seeds: geometric mean and 95 % interval.

    Attributes:
        value: inf where the first diverges, 0 where only the other does, nan where a loss is negative.
        low, high: nan where a seed diverges or there is only one.
    """

    value: float
    low: float
    high: float


_NO_RATIO = Ratio(math.nan, math.nan, math.nan)


@dataclasses.dataclass(frozen=True)
class Compared:
    """One optimizer on one problem at one horizon, beside the others.

    Attributes:
        best: the baseline with the lowest mean loss on the test seeds: no other reference is harder.
        ratio: to ``best``.
        target: loss to be reached (``targets``); nan where there is no baseline.
        steps: median over seeds of the steps to reach it; inf where most never do.
        seconds: ``steps`` times the optimizer's time of a step, gradients not counted.
        losses: of every seed, in order, [step] up to the horizon.
    """

    row: SummaryRow
    best: str
    ratio: Ratio
    target: float
    steps: float
    seconds: float
    losses: tuple[np.ndarray, ...] = dataclasses.field(default=(), repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Standing:
    """An optimizer's record over problems, each at each of its horizons.

    Attributes:
        problems: number of them; ``ahead`` with a ratio to the best baseline of at most 1, ``close`` of at
            most 1.05, ``surely`` where the whole interval is below 1.
        against: baseline -> problems where the ratio to it is at most 1.
        score: area under the performance profile in steps, 0 to 1.
        mean: geometric mean of the ratios to the best baseline; inf where one is.
    """

    optimizer: str
    problems: int
    ahead: int
    close: int
    surely: int
    against: Mapping[str, int]
    score: float
    mean: float


def is_baseline(optimizer: str) -> bool:
    """Whether a SPEC names a hand-made optimizer."""
    return optimizer.partition(":")[0] in BASELINES


def ratio(these: Sequence[float], those: Sequence[float]) -> Ratio:
    """Ratio of losses paired by seed, each as ``counted``: two of 0 are level, and two that diverge."""
    pairs = list(zip(map(counted, these), map(counted, those), strict=False))
    if len(these) != len(those) or any(min(pair) < 0.0 and pair[0] != pair[1] for pair in pairs):
        return _NO_RATIO
    logs = [0.0 if a == b else -math.inf if math.isinf(b) else math.log2(a / b) for a, b in pairs]
    if -math.inf in logs and max(logs) < math.inf:
        return Ratio(0.0, math.nan, math.nan)
    return Ratio(*geometric(logs))


def mean_ratio(values: Iterable[float]) -> float:
    """Geometric mean of ratios: inf where one is, else 0 where one is, nan of none."""
    logs = [math.log2(value) if value > 0.0 else -math.inf for value in values]
    return math.inf if math.inf in logs else 0.0 if -math.inf in logs else geometric(logs)[0]


def best_baseline(rows: Iterable[SummaryRow]) -> SummaryRow | None:
    """The hand-made optimizer with the lowest mean loss among rows of one problem and horizon."""
    return min((row for row in rows if is_baseline(row.optimizer)), key=lambda r: r.mean, default=None)


def target(rows: Sequence[SummaryRow], losses: Mapping[str, Sequence[np.ndarray]]) -> float:
    """The loss to be reached on one problem within one horizon.

    That is what the baseline chosen on validation seeds (on test seeds, where none was tuned) has at 80 % of
    the horizon: the mean over seeds of the 20 losses up to there; nan without a baseline that gets there.

    Args:
        rows: of one problem and horizon.
        losses: optimizer -> losses [step] of its seeds.
    """
    step = max(1, round(REACHED_AT * rows[0].horizon))
    there = [
        row
        for row in rows
        if is_baseline(row.optimizer) and all(len(run) >= step for run in losses[row.optimizer])
    ]
    if not there:
        return math.nan
    chosen = min(there, key=lambda r: (math.inf if math.isnan(r.validation) else r.validation, r.mean))
    goal = loss_interval(loss_at(run, step, _WINDOW) for run in losses[chosen.optimizer])[0]
    return goal if math.isfinite(goal) else math.nan


def steps_to(losses: np.ndarray, goal: float) -> float:
    """Steps until the mean of the last 20 losses is at most ``goal``; inf if that never happens.

    Args:
        losses: [step]; where there are fewer than 20, all of them are one mean.
    """
    if not len(losses) or math.isnan(goal):
        return math.inf
    first = min(_WINDOW, len(losses)) - 1
    reached = np.flatnonzero(smooth(losses, _WINDOW)[first:] <= goal)
    return float(first + reached[0] + 1) if len(reached) else math.inf


def compare(summary: Sequence[SummaryRow], runs: Iterable[Any]) -> list[Compared]:
    """Every row of the summary beside the others of its problem and horizon, in the summary's order.

    Args:
        runs: what the summary was made of: objects with ``optimizer, problem, horizon, seed, losses``; a
            ``horizon`` of 0 counts at every one.
    """
    ordered = sorted(runs, key=lambda run: run.seed)
    found = []
    for problem, horizon in dict.fromkeys((row.problem, row.horizon) for row in summary):
        rows = [row for row in summary if (row.problem, row.horizon) == (problem, horizon)]
        losses: dict[str, list[np.ndarray]] = {}
        for run in ordered:
            if run.problem == problem and run.horizon in (0, horizon):
                losses.setdefault(run.optimizer, []).append(np.asarray(run.losses)[:horizon])
        found += _side_by_side(rows, losses)
    order = {id(row): k for k, row in enumerate(summary)}
    return sorted(found, key=lambda one: order[id(one.row)])


def _side_by_side(rows: Sequence[SummaryRow], losses: Mapping[str, Sequence[np.ndarray]]) -> list[Compared]:
    """The rows of one problem and horizon, and the losses of each optimizer's seeds, as they compare."""
    found, best, goal = [], best_baseline(rows), target(rows, losses)
    for row in rows:
        runs = losses[row.optimizer]
        steps = float(np.median([steps_to(run, goal) for run in runs]))
        own = ratio(row.figures, best.figures) if best else _NO_RATIO
        seconds, name = steps * row.ms_per_step / 1e3, best.optimizer if best else ""
        found.append(Compared(row, name, own, goal, steps, seconds, tuple(runs)))
    return found


def profile(times: Mapping[str, Mapping[Any, float]], taus: Sequence[float]) -> dict[str, np.ndarray]:
    """Optimizer -> share of problems it solves within tau times the fastest one's time, [tau].

    Source: Dolan and More 2002; Dahl et al. 2023. A problem that nobody solves counts for nobody.

    Args:
        times: optimizer -> problem -> time to target; inf where it is not reached.
    """
    grid = np.asarray(taus, dtype=np.float64)
    return {name: (values[:, None] <= grid).mean(0) for name, values in time_ratios(times).items()}


def score(times: Mapping[str, Mapping[Any, float]], end: float = TAU) -> dict[str, float]:
    """Area under each performance profile from 1 to ``end``, as a share of the best possible."""
    return {
        name: float(np.clip((end - values) / (end - 1.0), 0.0, 1.0).mean())
        for name, values in time_ratios(times).items()
    }


def time_ratios(times: Mapping[str, Mapping[Any, float]]) -> dict[str, np.ndarray]:
    """Optimizer -> its time over the shortest, [problem]; inf where it did not reach the target."""
    problems = list(dict.fromkeys(problem for own in times.values() for problem in own))
    table = np.array([[own.get(problem, math.inf) for problem in problems] for own in times.values()])
    if not table.size:
        return {name: np.full(1, math.inf) for name in times}
    table = np.where(np.isnan(table), math.inf, table)
    with np.errstate(invalid="ignore"):
        ratios = table / table.min(0)
    return dict(zip(times, np.where(np.isfinite(table), ratios, math.inf), strict=True))


def times_to_target(compared: Iterable[Compared], unit: str = "steps") -> dict[str, dict[Place, float]]:
    """Optimizer -> (problem, horizon) -> time to target in ``steps`` or ``seconds``."""
    times: dict[str, dict[Place, float]] = {}
    for one in compared:
        times.setdefault(one.row.optimizer, {})[one.row.problem, one.row.horizon] = getattr(one, unit)
    return times


def standing(
    compared: Sequence[Compared], optimizer: str, places: Collection[Place] | None = None
) -> Standing:
    """The record of ``optimizer`` over ``places``, or over everything it ran on."""
    rows = [c for c in compared if places is None or (c.row.problem, c.row.horizon) in places]
    own = [c for c in rows if c.row.optimizer == optimizer]
    against = {c.row.optimizer: 0 for c in rows if is_baseline(c.row.optimizer)}
    against.pop(optimizer, None)
    for a, b in itertools.product((c.row for c in own), (c.row for c in rows)):
        if b.optimizer in against and (a.problem, a.horizon) == (b.problem, b.horizon):
            against[b.optimizer] += ratio(a.figures, b.figures).value <= 1.0
    values = [c.ratio.value for c in own]
    return Standing(
        optimizer=optimizer,
        problems=len(own),
        ahead=sum(value <= 1.0 for value in values),
        close=sum(value <= CLOSE for value in values),
        surely=sum(c.ratio.high < 1.0 for c in own),
        against=against,
        score=score(times_to_target(rows)).get(optimizer, math.nan),
        mean=mean_ratio(value for value in values if not math.isnan(value)),
    )


def standing_groups(compared: Sequence[Compared]) -> dict[str, list[Standing]]:
    """Group of problems -> the record of every teacher and rule, best first.

    The groups are ``all`` and, where a suite says which problems meta-training may use, ``unseen`` and
    ``trained on``; each again beside coordinate-wise baselines only, where others are among them: what works
    on a coordinate's own gradients alone cannot do what Muon does with a whole matrix. Nothing without a
    baseline to compare with.
    """
    names = dict.fromkeys(c.row.optimizer for c in compared)
    learned = [name for name in names if not is_baseline(name)]
    if not learned or len(learned) == len(names):
        return {}
    groups = {"all": (False, True)}
    if any(c.row.trained_on for c in compared):
        groups |= {"unseen": (False,), "trained on": (True,)}
    alike, found = coordinatewise(compared), {}
    for rows, suffix in ((compared, ""), (alike, ", coordinate-wise baselines")):
        if suffix and len(alike) == len(compared):
            break
        for name, wanted in groups.items():
            if places := {(c.row.problem, c.row.horizon) for c in rows if c.row.trained_on in wanted}:
                standings = (standing(rows, optimizer, places) for optimizer in learned)
                found[name + suffix] = sorted(standings, key=lambda s: (-s.ahead, s.mean))
    return found


def coordinatewise(compared: Sequence[Compared]) -> list[Compared]:
    """The rows without baselines that mix coordinates, compared anew."""
    places: dict[Place, list[Compared]] = {}
    for c in compared:
        baseline = BASELINES.get(c.row.optimizer.partition(":")[0])
        if baseline is None or baseline.coordinatewise:
            places.setdefault((c.row.problem, c.row.horizon), []).append(c)
    return [
        one
        for rows in places.values()
        for one in _side_by_side([c.row for c in rows], {c.row.optimizer: c.losses for c in rows})
    ]
