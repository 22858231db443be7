"""The choices of a comparison on one problem: learning rate, schedule and knob of every optimizer.

All that have a choice get as many trials for it. ``tuning`` is a generator: it yields the cells it needs
next, is sent their rollouts, and returns what it tried.
"""

import dataclasses
import math
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from common.metrics import loss_at, loss_interval
from common.tables.schedules import SCHEDULES
from interchange.evaluation.cells import Cell
from interchange.evaluation.config import EvaluateConfig
from interchange.rollout import Rollout

if TYPE_CHECKING:
    from interchange.rule.source import Source

_OTHERS = 3  # learning rates tried with every schedule but the first, and with every value of a knob
_KNOBS = (0.5, 2.0)  # 1 - b over the default's
_GROWTH, _USUAL = 2, 6  # trials by which the first grids usually grow, and what short ones grow to
_FARTHEST = 14  # factors of 2 from the middle at which widening a grid ends

Results = Mapping[Cell, Rollout]


@dataclasses.dataclass
class Grid:
    """Learning rates ``middle * 2**k`` tried for one optimizer.

    Attributes:
        figures: k -> figure at each horizon, the mean over validation seeds as ``loss_interval`` takes it;
            inf where one diverged.
    """

    middle: float
    figures: dict[int, list[float]]
    horizons: tuple[int, ...]

    def best_place(self, horizon: int) -> int:
        """The k with the smallest figure at ``horizon``."""
        column = self.horizons.index(horizon)
        return min(self.figures, key=lambda k: (self.figures[k][column], abs(k)))

    def best(self, horizon: int) -> float:
        """The learning rate with the smallest figure at ``horizon``."""
        return self.middle * 2.0 ** self.best_place(horizon) if self.figures else self.middle

    def lowest(self, horizon: int) -> float:
        """The smallest figure at ``horizon``; nan where nothing was tried."""
        if not self.figures:
            return math.nan
        return self.figures[self.best_place(horizon)][self.horizons.index(horizon)]

    def missing(self, trials: int) -> list[int]:
        """Places to try next: beyond an edge that is best, then until there are ``trials``."""
        if not self.figures:
            return list(range(-(trials // 2), trials - trials // 2))
        low, high = min(self.figures), max(self.figures)
        best = {self.best_place(h) for h in self.horizons}
        beyond = [low - 1] * (low in best) + [high + 1] * (high in best)
        beyond = [k for k in beyond if abs(k) <= _FARTHEST]
        if beyond or len(self.figures) >= trials:
            return beyond
        return [high + 1 if high < -low else low - 1]


@dataclasses.dataclass(frozen=True)
class Arm:
    """What one grid of learning rates is tried with.

    Attributes:
        schedule: row of ``common.tables.schedules``.
        knob: value of the optimizer's knob; None leaves it as it is.
        horizons: steps for which it is a choice.
        weight_decay: of the optimizer; None leaves it as it is.
    """

    schedule: str
    knob: float | None
    horizons: tuple[int, ...]
    weight_decay: float | None = None


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What was tried of one optimizer on one problem: a grid per arm, the first without any other choice."""

    grids: dict[Arm, Grid]

    def best(self, horizon: int) -> tuple[float, Arm]:
        """Learning rate and arm with the smallest figure at ``horizon``; the first without any."""
        tried = {arm: grid.lowest(horizon) for arm, grid in self._at(horizon).items() if grid.figures}
        arm = min(tried, key=tried.__getitem__, default=next(iter(self.grids)))
        return self.grids[arm].best(horizon), arm

    def lowest(self, horizon: int) -> float:
        """The smallest figure at ``horizon``; nan where nothing was tried."""
        return self.grids[self.best(horizon)[1]].lowest(horizon)

    def trials(self, horizon: int) -> int:
        """Settings that were tried for ``horizon``."""
        return sum(len(grid.figures) for grid in self._at(horizon).values())

    def _at(self, horizon: int) -> dict[Arm, Grid]:
        return {arm: grid for arm, grid in self.grids.items() if horizon in arm.horizons}


Grids = dict[tuple[str, Arm], Grid]  # by SPEC and arm


def tuning(
    sources: "Mapping[str, Source]", problem: str, horizons: tuple[int, ...], config: EvaluateConfig
) -> Generator[list[Cell], Results, dict[str, Tuned]]:
    """Learning rate, schedule and knob of every optimizer, all with as many trials.

    First a grid of learning rates with the first schedule, then a shorter one with each other schedule, about
    twice the best of the first, as a rate that falls may begin higher; all with the first weight decay. Then
    follow, for each horizon, shorter grids about what is best so far with each other weight decay, and with
    ``config.knob`` two with other values of the knob. A SPEC that fixes its schedule or weight decay has that
    alone, one that fixes lr the first; nothing is tuned then.
    """
    of = {text: _schedules(source, config) for text, source in sources.items()}
    decay = {text: _decays(source, config)[0] for text, source in sources.items()}
    start = {text: Arm(of[text][0], None, horizons, decay[text]) for text in sources}
    grids = {
        (text, start[text]): Grid(source.spec.lr or source.spec.middle, {}, horizons)
        for text, source in sources.items()
    }
    yield from _filled(grids, sources, problem, config, config.trials)
    if config.trials:
        few_trials = min(_OTHERS, config.trials)
        others = {
            (text, Arm(name, None, horizons, decay[text])): Grid(
                2.0 * grids[text, start[text]].best(max(horizons)), {}, horizons
            )
            for text in sources
            for name in of[text][1:]
        }
        yield from _filled(others, sources, problem, config, few_trials)
        grids |= others
        if any(len(_decays(source, config)) > 1 for source in sources.values()):
            more = _other_decays(_by_optimizer(grids), sources, horizons, config)
            yield from _filled(more, sources, problem, config, few_trials)
            grids |= more
        if config.knob:
            turned = _knobs(_by_optimizer(grids), sources, horizons)
            yield from _filled(turned, sources, problem, config, few_trials)
            grids |= turned
    return _by_optimizer(grids)


def _schedules(source: "Source", config: EvaluateConfig) -> tuple[str, ...]:
    """What an optimizer chooses its schedule from."""
    if source.spec.schedule:
        return (source.spec.schedule,)
    names = config.schedules
    if "all" in names:
        usual = [name for name, row in SCHEDULES.items() if not row.extra]
        names = tuple(dict.fromkeys([*usual, *(name for name in names if name != "all")]))
    return names[:1] if source.spec.lr else names


def _decays(source: "Source", config: EvaluateConfig) -> tuple[float | None, ...]:
    """What an optimizer chooses its weight decay from; None is its own."""
    return config.weight_decays if config.weight_decays and source.spec.open_decay else (None,)


def planned(
    source: "Source", horizons: tuple[int, ...], config: EvaluateConfig
) -> Iterator[tuple[str, int, int]]:
    """Stream, steps and number of the runs of an optimizer on a problem, about: grids may grow."""
    few = min(_OTHERS, config.trials)
    if source.spec.lr is None and config.trials:
        for place, name in enumerate(_schedules(source, config)):
            for steps in horizons if SCHEDULES[name].ends else (max(horizons),):
                trials = few if place else max(config.trials + _GROWTH, _USUAL)
                yield "validation", steps, trials * config.validation_seeds
        for steps in horizons:
            yield "validation", steps, (len(_decays(source, config)) - 1) * few * config.validation_seeds
        for steps in horizons if config.knob and source.knob else ():
            yield "validation", steps, len(_KNOBS) * few * config.validation_seeds
    for steps in horizons:
        yield "test", steps, config.seeds


def _by_optimizer(grids: Grids) -> dict[str, Tuned]:
    return {
        text: Tuned({arm: grid for (name, arm), grid in grids.items() if name == text})
        for text in dict.fromkeys(name for name, _ in grids)
    }


def _knobs(tuned: Mapping[str, Tuned], sources: "Mapping[str, Source]", horizons: tuple[int, ...]) -> Grids:
    """Empty grids with other values of every open knob, about what is best at each horizon."""
    found = {}
    for text, source in sources.items():
        if source.knob:
            for horizon in horizons:
                lr, arm = tuned[text].best(horizon)
                for value in knob_values(source.knob_value):
                    turned = Arm(arm.schedule, value, (horizon,), arm.weight_decay)
                    found[text, turned] = Grid(lr, {}, (horizon,))
    return found


def _other_decays(
    tuned: Mapping[str, Tuned],
    sources: "Mapping[str, Source]",
    horizons: tuple[int, ...],
    config: EvaluateConfig,
) -> Grids:
    """Empty grids with all weight decays but the first, about what is best at each horizon."""
    found = {}
    for text, source in sources.items():
        for horizon in horizons:
            lr, arm = tuned[text].best(horizon)
            for value in _decays(source, config)[1:]:
                found[text, Arm(arm.schedule, None, (horizon,), value)] = Grid(lr, {}, (horizon,))
    return found


def knob_values(default: float) -> list[float]:
    """What is tried beside a decay's default b: 1 - b halved and doubled, or b halved where that is more."""
    return [round(max(1.0 - factor * (1.0 - default), default / 2.0), 12) for factor in _KNOBS]


def _filled(
    grids: Grids, sources: "Mapping[str, Source]", problem: str, config: EvaluateConfig, trials: int
) -> Generator[list[Cell], Results, None]:
    """Fill grids, all of one size, none of which has its best at an edge."""
    free = [place for place in grids if sources[place[0]].spec.lr is None and trials]
    while True:
        places = [(place, k) for place in free for k in grids[place].missing(trials)]
        if not places:
            widest = max((len(grids[place].figures) for place in free), default=0)
            if widest <= trials:
                return
            trials = widest
            continue

        def cells(place: tuple[str, Arm], k: int, horizon: int) -> list[Cell]:
            (text, arm), grid = place, grids[place]
            # A run to the longest horizon passes through the others, unless its schedule ends at its own.
            steps = horizon if SCHEDULES[arm.schedule].ends else max(grid.horizons)
            lr, numbers = grid.middle * 2.0**k, range(config.validation_seeds)
            rest = steps, arm.schedule, arm.knob, arm.weight_decay
            return [Cell(text, problem, lr, "validation", n, *rest) for n in numbers]

        wanted = (c for place, k in places for h in grids[place].horizons for c in cells(place, k, h))
        results = yield list(dict.fromkeys(wanted))
        for place, k in places:
            grids[place].figures[k] = [
                loss_interval(loss_at_or_inf(results[c], h) for c in cells(place, k, h))[0]
                for h in grids[place].horizons
            ]


def loss_at_or_inf(rollout: Any, horizon: int) -> float:
    """Loss at ``horizon`` (mean of the 20 losses before it); inf if the run did not get there."""
    return float(loss_at(rollout.losses, horizon)) if len(rollout.losses) >= horizon else math.inf
