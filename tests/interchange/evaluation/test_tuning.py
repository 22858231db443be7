"""What a comparison chooses for every optimizer, over stand-ins for rollouts."""

import math

import numpy as np
import pytest

from common.errors import L2OError
from common.metrics import DIVERGED
from common.tables.baselines import BASELINES, parse_spec
from interchange.evaluation.cells import Cell
from interchange.evaluation.config import EvaluateConfig
from interchange.evaluation.tuning import Arm, Grid, Tuned, knob_values, tuning
from interchange.rollout import Rollout
from interchange.rule.rule import Rule
from interchange.rule.source import Source


def tuned(
    config, optima: dict[str, float], diverges_from: float = 6.0, knobs: dict[str, float] | None = None
) -> dict[str, Tuned]:
    """Grids over stand-ins for rollouts, whose loss grows with the factors of 2 from an optimum.

    With ``knobs`` also with the distance of 1 - b, in factors of 2, from that of the best value.
    """

    def rolled_out(cell: Cell) -> Rollout:
        loss = abs(math.log2(cell.lr / optima[cell.optimizer])) + 0.01 * 2**cell.number
        if knobs and sources[cell.optimizer].knob:
            value = sources[cell.optimizer].turned(cell.knob).knob_value
            loss += abs(math.log2((1.0 - value) / (1.0 - knobs[cell.optimizer])))
        assert cell.stream == "validation"
        assert cell.steps == max(config.steps) or (cell.knob and cell.steps in config.steps)
        ok = loss < diverges_from
        return Rollout(np.full(cell.steps if ok else 3, loss), "ok" if ok else DIVERGED, math.nan)

    sources = {text: Source(parse_spec(text), None) for text in optima}
    going, results = tuning(sources, config.problem, config.steps, config), None
    while True:
        try:
            cells = going.send(results)
        except StopIteration as end:
            return end.value
        results = {cell: rolled_out(cell) for cell in cells}


def only_grids(found: dict[str, Tuned]) -> dict[str, Grid]:
    return {text: next(iter(one.grids.values())) for text, one in found.items()}


@pytest.mark.parametrize("trials", [1, 2, 5, 7])
def test_every_optimizer_gets_as_many_trials_and_its_best_is_not_at_an_edge(trials):
    """Even where one optimum is far from the middle of its grid: then all grids grow."""
    config = EvaluateConfig(steps=(10, 20), trials=trials, quiet=True)
    optima = {"sgd": 0.32, "adam": 0.008 * 2**5, "lion": 0.001 / 4}
    grids = only_grids(tuned(config, optima))
    assert len({len(grid.figures) for grid in grids.values()}) == 1
    assert len(grids["sgd"].figures) >= max(trials, 7)
    for text, grid in grids.items():
        for horizon in config.steps:
            assert grid.best(horizon) == pytest.approx(optima[text])
            assert grid.lowest(horizon) == pytest.approx(0.02)  # of three seeds' 0.01, 0.02 and 0.04
            assert min(grid.figures) < grid.best_place(horizon) < max(grid.figures)
        assert sorted(grid.figures) == list(range(min(grid.figures), max(grid.figures) + 1))


def test_an_optimizer_that_always_diverges_does_not_widen_the_grid_for_ever():
    config = EvaluateConfig(steps=(10,), quiet=True)
    grids = only_grids(tuned(config, {"sgd": 1e30, "adam": 0.008}))
    assert len(grids["sgd"].figures) == len(grids["adam"].figures) == config.trials
    assert grids["sgd"].best(10) == BASELINES["sgd"].lr


def test_a_grid_whose_losses_fall_without_end_ends_and_so_do_the_others():
    config = EvaluateConfig(steps=(10,), trials=3, quiet=True)
    grids = only_grids(tuned(config, {"sgd": 1e30, "adam": 0.008}, diverges_from=math.inf))
    assert max(grids["sgd"].figures) == 14 and len(grids["sgd"].figures) == len(grids["adam"].figures)


KNOBS = {"adam": 0.95, "momentum": 0.8, "muon": 0.95}  # 1 - b halved, doubled, as it is


def test_a_knob_is_tuned_with_equal_trials_by_all_that_have_one_after_rate_and_schedule():
    config = EvaluateConfig(steps=(10, 20), trials=3, knob=True, quiet=True)
    names = (*KNOBS, "sgd", "adam:beta1=0.9", "adam:lr=0.012")
    optima = {name: 1.5 * parse_spec(name.partition(":")[0]).middle for name in names}
    found = tuned(config, optima, knobs=KNOBS | {"adam:beta1=0.9": 0.9})
    for horizon in config.steps:
        best = {name: found[name].best(horizon) for name in optima}
        assert {name: arm.knob for name, (_, arm) in best.items()} == {
            "adam": 0.95, "momentum": 0.8, "muon": None, "sgd": None, "adam:beta1=0.9": None,
            "adam:lr=0.012": None,
        }  # fmt: skip
        trials = {name: found[name].trials(horizon) for name in optima}
        assert len({trials[name] for name in KNOBS}) == 1 and trials["adam:lr=0.012"] == 0
        assert trials["sgd"] == trials["adam:beta1=0.9"] == trials["adam"] - 6 and trials["sgd"] >= 3
    rates = {arm: grid.middle * 2.0**k for arm, grid in found["adam"].grids.items() for k in grid.figures}
    assert {arm.horizons for arm in rates if arm.knob} == {(10,), (20,)}


def test_positive_losses_of_validation_seeds_are_averaged_by_their_logarithms():
    sources = {"adam": Source(parse_spec("adam:schedule=constant"), None)}
    going, results = tuning(sources, "quadratic", (5,), EvaluateConfig(trials=1, quiet=True)), None
    with pytest.raises(StopIteration) as end:
        while True:
            cells = going.send(results)
            levels = {c: 4.0**c.number * (1.0 if c.lr == 0.008 else 9.0) for c in cells}
            results = {c: Rollout(np.full(5, level), "ok", math.nan) for c, level in levels.items()}
    assert end.value.value["adam"].lowest(5) == pytest.approx(4.0)  # of 1, 4 and 16


def test_without_the_flag_or_without_trials_no_knob_is_tried():
    for settings in ({"trials": 3}, {"trials": 0, "knob": True}):
        found = tuned(EvaluateConfig(steps=(10,), quiet=True, **settings), {"adam": 0.008})
        assert list(found["adam"].grids) == [Arm("constant", None, (10,))]


@pytest.mark.parametrize(
    ("default", "values"),
    [(0.9, [0.95, 0.8]), (0.99, [0.995, 0.98]), (0.5, [0.75, 0.25]), (0.3, [0.65, 0.15])],
)
def test_values_of_a_knob_are_decays(default, values):
    assert knob_values(default) == values


def test_a_source_turns_its_knob_and_nothing_else():
    adam = Source(parse_spec("adam:eps=0.1"), None)
    assert (adam.knob, adam.knob_value, adam.turned(None)) == ("beta1", 0.9, adam)
    assert adam.turned(0.8).spec.options == {"beta1": 0.8, "beta2": 0.999, "eps": 0.1}
    assert adam.spec.options["beta1"] == 0.9
    rule = Rule.from_text("c0 * ema(g, c2) + ema(g, c1)", {"c0": -1.0, "c1": 0.9, "c2": 0.5})
    source = Source(parse_spec("rule:r.json"), rule)
    assert (source.knob, source.knob_value) == ("c1", 0.9)  # the first in the order of its constants
    assert source.turned(0.8).loaded.constants == {"c0": -1.0, "c1": 0.8, "c2": 0.5}
    assert source.loaded.constants["c1"] == 0.9
    for none in (
        Source(parse_spec("sgd"), None),
        Source(parse_spec("rule:r"), Rule.from_text("-ema(g, 0.9)")),
    ):
        assert none.knob == ""


@pytest.mark.parametrize("name", BASELINES)
def test_a_baselines_knob_is_one_of_its_options_and_a_decay(name):
    row = BASELINES[name]
    assert bool(row.knob) == (name not in ("sgd", "adagrad"))
    assert not row.knob or 0.0 < row.options[row.knob] < 1.0
    assert parse_spec(name).knob == row.knob
    assert not row.knob or parse_spec(f"{name}:{row.knob}=0.7").knob == ""


def test_fair_is_every_schedule_and_a_knob():
    fair = EvaluateConfig(fair=True).resolved()
    assert fair == EvaluateConfig(schedules=("all",), knob=True).resolved()
    assert EvaluateConfig().resolved() == EvaluateConfig()
    with pytest.raises(L2OError, match=r"^--fair tries every schedule; leave --schedules out$"):
        EvaluateConfig(fair=True, schedules=("cosine",)).resolved()
