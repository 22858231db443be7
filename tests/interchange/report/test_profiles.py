"""Ratios, time to target, performance profiles and standings, against numbers worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest

from common.metrics import LOSS_FLOOR, summarise
from interchange.evaluation import profiles
from interchange.evaluation.profiles import Ratio, ratio, score, steps_to
from interchange.files.results import EvaluationRow
from interchange.report.verdict import STANDINGS, standings_text

RULE = "rule:best.json"


def runs(levels: dict[str, list[float]], problem="a", horizon=100, trained_on=False, **validation: float):
    """One run per optimizer and seed: loss falls linearly from 10 to its level; below 0: diverged."""
    found = []
    for optimizer, values in levels.items():
        for seed, level in enumerate(values):
            lost = level < 0
            losses = np.linspace(10.0, abs(level), horizon)[: 7 if lost else None]
            fields = {"outcome": "diverged" if lost else "ok", "horizon": horizon, "trained_on": trained_on}
            settings = {"lr": 0.1, "validation": validation.get(optimizer)}
            row = EvaluationRow(
                optimizer, problem, seed, losses, ms_per_step=2.0, settings=settings, **fields
            )
            found.append(row)
    return found


def compared(*rows):
    rows = [row for part in rows for row in part]
    return profiles.compare(summarise(rows), rows)


def of(found, optimizer, problem="a"):
    (one,) = (c for c in found if (c.row.optimizer, c.row.problem) == (optimizer, problem))
    return one


def test_a_ratio_is_the_geometric_mean_over_pairs_of_seeds_with_the_t_interval_of_its_logarithm():
    got = ratio([1.0, 2.0, 8.0], [1.0, 1.0, 1.0])
    logs = np.log([1.0, 2.0, 8.0])
    half = 4.3026527 * logs.std(ddof=1) / math.sqrt(3)
    assert got.value == pytest.approx(16 ** (1 / 3))
    assert (got.low, got.high) == pytest.approx((np.exp(logs.mean() - half), np.exp(logs.mean() + half)))
    paired = ratio([0.9, 90.0, 9.0], [1.0, 100.0, 10.0])  # the seeds differ far more than the optimizers do
    assert paired.value == paired.low == paired.high == pytest.approx(0.9)


INF = math.inf
ODD = {
    "the first diverges": ([1.0, INF], [1.0, 1.0], INF),
    "the other diverges": ([1.0, 1.0], [1.0, INF], 0.0),
    "both do": ([INF, 2.0], [INF, 2.0], 1.0),
    "each once": ([INF, 1.0], [1.0, INF], INF),
    "a negative loss": ([-1.0, 1.0], [1.0, 1.0], math.nan),
    "a negative loss and a 0": ([-1.0, 1.0], [0.0, 1.0], math.nan),
    "other seeds": ([1.0, 1.0], [1.0], math.nan),
    "0 and a loss that diverges": ([0.0, 0.0], [INF, INF], 0.0),
    "no number": ([math.nan, 1.0], [0.0, 1.0], INF),
}


@pytest.mark.parametrize(("these", "those", "value"), ODD.values(), ids=ODD)
def test_a_ratio_where_there_is_none(these, those, value):
    assert ratio(these, those).value == pytest.approx(value, nan_ok=True)


def test_a_loss_of_zero_counts_as_the_floor_on_either_side_and_two_of_them_are_level():
    ours, theirs = ratio([0.0, 0.0], [1e-3, 1e-3]), ratio([1e-3, 1e-3], [0.0, 1e-20])
    assert (ours.value, theirs.value) == pytest.approx((LOSS_FLOOR / 1e-3, 1e-3 / LOSS_FLOOR))
    assert ratio([0.0, 0.0], [0.0, 1e-12]) == Ratio(1.0, 1.0, 1.0)
    some = ratio([0.0, 0.0, 0.5], [0.0, 0.1, 1.0])
    assert 0.0 < some.low < some.value < 1.0 < some.high


def test_a_mean_of_ratios_has_what_they_have():
    assert profiles.mean_ratio([0.5, 8.0]) == pytest.approx(2.0)
    assert profiles.mean_ratio([0.0, INF]) == INF and profiles.mean_ratio([0.0, 2.0]) == 0.0
    assert math.isnan(profiles.mean_ratio([]))


def test_an_optimizer_whose_loss_is_zero_is_ahead():
    found = compared(
        runs({"adam": [1e-3, 1e-4], "sgd": [1.0, 2.0], RULE: [1e-3, 0.1]}, "a"),
        runs({"adam": [1e-3, 1e-4], "sgd": [0.1, 0.1], RULE: [0.1, 0.2]}, "b"),
    )
    rows = [
        dataclasses.replace(c.row, figures=(0.0, 0.0)) if c.row.optimizer == RULE else c.row for c in found
    ]
    solved = profiles.coordinatewise(
        [dataclasses.replace(c, row=row) for c, row in zip(found, rows, strict=True)]
    )
    got = profiles.standing(solved, RULE)
    assert (got.ahead, got.close, got.surely, got.against) == (2, 2, 2, {"adam": 2, "sgd": 2})
    assert 0.0 < got.mean < 1e-4
    assert "diverged" not in standings_text({"all": [got]})


def test_steps_count_until_the_mean_of_twenty_losses_is_there():
    losses = np.r_[np.full(30, 4.0), np.full(30, 2.0)]
    assert steps_to(losses, 3.0) == 40  # ten of the twenty are 2
    assert steps_to(losses, 4.0) == 20 and steps_to(losses, 2.0) == 50 and steps_to(losses, 1.9) == INF
    assert steps_to(np.r_[0.5, np.full(30, 4.0)], 1.0) == INF  # one low loss is no mean
    assert steps_to(np.zeros(0), 1.0) == INF and steps_to(losses, math.nan) == INF


def test_the_target_is_what_the_baseline_chosen_on_validation_has_at_four_fifths():
    rows = runs({"adam": [1.0, 1.0], "sgd": [0.5, 0.5], RULE: [0.1, 0.1]}, adam=0.9, sgd=1.1)
    found = compared(rows)
    line = np.linspace(10.0, 1.0, 100)
    want = line[60:80].mean()
    assert [c.target for c in found] == pytest.approx([want] * 3)
    assert of(found, "adam").steps == 80
    steps = steps_to(np.linspace(10.0, 0.1, 100), want)
    assert of(found, RULE).steps == steps < 80
    assert of(found, RULE).seconds == pytest.approx(steps * 2e-3)
    lost = compared(runs({"sgd": [0.5, -1.0], "adam": [1.0, 1.2], RULE: [0.9, 1.0]}, sgd=0.1, adam=0.2))
    assert math.isfinite(of(lost, RULE).target) and math.isfinite(of(lost, RULE).steps)  # not sgd's
    untuned = compared(runs({"adam": [1.0, 1.0], "sgd": [0.5, 0.5]}))
    assert untuned[0].target == pytest.approx(np.linspace(10.0, 0.5, 100)[60:80].mean())


def test_steps_to_target_are_the_median_over_seeds_and_infinite_where_most_do_not_get_there():
    levels = {
        "adam": [1.0, 1.0, 1.0],
        "sgd": [1.0, 9.0, 9.0],
        "lion": [1.0, 1.0, 9.0],
        "rmsprop": [1.0, -1, -1],
    }
    found = compared(runs(levels))
    steps = {c.row.optimizer: c.steps for c in found}
    assert steps == {"adam": 80, "sgd": INF, "lion": 80, "rmsprop": INF}


def test_the_best_baseline_is_the_lowest_on_test_seeds_and_no_learned_one():
    found = compared(runs({"adam": [1.0, 3.0], "sgd": [2.5, 2.5], RULE: [0.1, 0.1]}, adam=9.0, sgd=1.0))
    assert {c.best for c in found} == {"adam"}
    assert of(found, "adam").ratio == Ratio(1.0, 1.0, 1.0)
    alone = compared(runs({RULE: [1.0], "teacher:run": [2.0]}))  # there is nothing to compare with
    assert {c.best for c in alone} == {""} and all(math.isnan(c.ratio.value) for c in alone)
    assert all(math.isnan(c.target) and c.steps == INF for c in alone)
    assert profiles.standing_groups(alone) == {}


TIMES = {
    "fast": {"p": 10.0, "q": 40.0, "r": INF, "s": INF},
    "slow": {"p": 20.0, "q": 20.0, "r": 5.0, "s": INF},
    "late": {"p": 50.0, "q": math.nan, "r": 20.0, "s": INF},
}


def test_profiles_and_scores():
    """Ratios: fast 1, 2, -, -; slow 2, 1, 1, -; late 5, -, 4, -."""
    got = profiles.profile(TIMES, [1.0, 1.9, 2.0, 4.0])
    np.testing.assert_array_equal(got["fast"], [0.25, 0.25, 0.5, 0.5])
    np.testing.assert_array_equal(got["slow"], [0.5, 0.5, 0.75, 0.75])
    np.testing.assert_array_equal(got["late"], [0.0, 0.0, 0.0, 0.25])
    areas = {"fast": (1 + 2 / 3) / 4, "slow": (2 / 3 + 1 + 1) / 4, "late": 0.0}
    assert score(TIMES) == pytest.approx(areas)
    taus = np.linspace(1.0, 4.0, 30_001)
    for name, share in profiles.profile(TIMES, taus).items():
        assert np.trapezoid(share, taus) / 3.0 == pytest.approx(score(TIMES)[name], abs=1e-4)


@pytest.fixture
def suite():
    """The rule: far ahead on a, 3 % behind on b, behind sgd but ahead of adam on c, diverged on d."""
    return compared(
        runs({"sgd": [1.0, 1.1], "adam": [1.0, 1.2], RULE: [0.5, 0.5]}, "a", trained_on=True),
        runs({"sgd": [1.0, 1.1], "adam": [1.0, 1.2], RULE: [1.1, 1.21]}, "b"),
        runs({"sgd": [1.0, 1.1], "adam": [8.0, 8.0], RULE: [5.0, 5.0]}, "c"),
        runs({"sgd": [1.0, 1.1], "adam": [-1.0, 1.2], RULE: [-1.0, 1.0]}, "d"),
    )


def test_a_standing_counts_problems(suite):
    got = profiles.standing(suite, RULE)
    assert (got.problems, got.ahead, got.close, got.surely) == (4, 1, 2, 1)
    assert got.against == {"sgd": 1, "adam": 3} and got.mean == INF
    three = profiles.standing(suite, RULE, {(p, 100) for p in "abc"})
    assert three.mean == pytest.approx(np.prod([of(suite, RULE, p).ratio.value for p in "abc"]) ** (1 / 3))


def test_groups_follow_what_may_be_trained_on(suite):
    groups = profiles.standing_groups(suite)
    counts = {name: rows[0].problems for name, rows in groups.items()}
    assert counts == {"all": 4, "unseen": 3, "trained on": 1}
    assert groups["unseen"][0].ahead == 0 and groups["trained on"][0].ahead == 1
    plain = [dataclasses.replace(c, row=dataclasses.replace(c.row, trained_on=False)) for c in suite]
    assert list(profiles.standing_groups(plain)) == ["all"]
    text = standings_text(groups).splitlines()
    assert len(text) == 3
    assert text[1].startswith(f"{RULE}: of 3 problems, unseen, at least as good as the best baseline on 0, ")
    assert text[2].startswith(f"{RULE}: of 1 problem, trained on, ")
    assert text[1].endswith("; as good as sgd on 0, adam on 2")
    assert all(words in text[1] for words in STANDINGS)  # the columns of the page


def test_baselines_that_mix_coordinates_are_left_out_of_a_group_of_its_own():
    found = compared(
        runs({"sgd": [1.0, 1.1], "muon": [0.4, 0.4], RULE: [0.5, 0.5]}, "a"),
        runs({"sgd": [1.0, 1.1], "muon": [0.4, 0.4], RULE: [1.5, 1.5]}, "b"),
    )
    groups = profiles.standing_groups(found)
    assert list(groups) == ["all", "all, coordinate-wise baselines"]
    assert (groups["all"][0].ahead, groups["all, coordinate-wise baselines"][0].ahead) == (0, 1)
    assert groups["all, coordinate-wise baselines"][0].against == {"sgd": 1}
    fast = compared(runs({"sgd": [1.0, 1.1], "muon": [0.1, 0.1], RULE: [0.9, 1.0]}, sgd=0.2, muon=0.1))
    scores = [rows[0].score for rows in profiles.standing_groups(fast).values()]  # its target is not muon's
    assert scores[0] < 1.0 == scores[1]
    last = standings_text(groups).splitlines()[1]
    assert last.startswith(f"{RULE}: of 2 problems, coordinate-wise baselines only, at least as good")


def test_an_optimizer_is_surely_ahead_only_where_its_whole_interval_is_below_1():
    other = {"sgd": [1.0] * 3}
    found = compared(runs({RULE: [0.4, 0.9, 1.2]} | other), runs({RULE: [0.8, 0.81, 0.82]} | other, "b"))
    wide = of(found, RULE).ratio
    assert wide.low < wide.value < 1.0 < wide.high
    got = profiles.standing(found, RULE)
    assert (got.ahead, got.surely) == (2, 1)
