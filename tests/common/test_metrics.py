"""Metrics against numbers worked out by hand."""

import math
import types

import numpy as np
import pytest

from common.errors import L2OError
from common.metrics import (
    LOSS_FLOOR,
    counted,
    interval,
    log_slopes,
    loss_at,
    loss_interval,
    loss_number,
    number,
    r2,
    smooth,
    summarise,
    summary_text,
    t_quantile,
)


def run(optimizer="adam", seed=0, losses=(1.0, 2.0, 3.0, 4.0), **fields):
    row = {"optimizer": optimizer, "problem": "quadratic", "seed": seed, "losses": np.asarray(losses, float)}
    row |= {"outcome": "ok", "ms_per_step": 1.0, "floats_per_parameter": 2.0, "settings": {"lr": 0.5}}
    return row | {"trials": 7} | fields


def test_r2_by_hand():
    target = np.array([[1.0, 2.0], [3.0, 4.0]])  # SST = 5
    assert r2(target, target) == 1.0
    assert r2(target, np.full((2, 2), 2.5)) == pytest.approx(0.0)
    assert r2(target, np.array([[2.0, 2.0], [3.0, 4.0]])) == pytest.approx(0.8)
    assert r2(target, -target) < 0


def test_r2_is_computed_in_float64():
    target = (1e4 + np.linspace(0, 1e-2, 11)).astype(np.float32)
    exact = target.astype(np.float64)
    means = np.full(11, exact.mean())
    assert r2(target, means) == pytest.approx(r2(exact, means), abs=1e-12)


def test_r2_of_what_has_none():
    assert math.isnan(r2(np.ones(3), np.ones(3)))
    assert math.isnan(r2(np.ones(0), np.ones(0)))
    assert r2(np.arange(3.0), np.array([0.0, math.nan, 2.0])) == -math.inf
    assert r2(np.arange(3.0), np.array([0.0, 1e300, 2.0])) == -math.inf
    with pytest.raises(L2OError, match="one shape"):
        r2(np.arange(3.0), np.zeros((3, 1)))


def test_figure_is_the_mean_of_the_last_losses_before_the_horizon():
    losses = np.arange(100.0)
    assert loss_at(losses, 100) == 89.5  # 80..99
    assert loss_at(losses, 50, window=4) == 47.5  # 46..49
    assert loss_at(losses, 5) == 2.0  # shorter than the window
    losses[60] = math.nan
    assert loss_at(losses, 60) == 49.5
    assert loss_at(losses, 61) == math.inf
    assert loss_at(losses, 100) == math.inf  # outside the window, but it blew up


@pytest.mark.parametrize(("horizon", "window"), [(0, 20), (101, 20), (10, 0)])
def test_figure_refuses(horizon, window):
    with pytest.raises(L2OError, match="expected at least"):
        loss_at(np.arange(100.0), horizon, window)


def test_interval_by_hand():
    # mean 3, standard deviation sqrt(2.5), t(4) = 2.7764: half-width 2.7764 * sqrt(2.5 / 5)
    mean, low, high = interval([1, 2, 3, 4, 5])
    assert mean == 3.0
    assert high - 3.0 == pytest.approx(3.0 - low) == pytest.approx(1.9632432, abs=1e-6)
    mean, low, high = interval([4.0])
    assert mean == 4.0 and math.isnan(low) and math.isnan(high)
    for broken in (math.inf, math.nan):
        mean, low, high = interval([1.0, broken])
        assert mean == math.inf and math.isnan(low) and math.isnan(high)
    assert math.isnan(interval([])[0])


@pytest.mark.parametrize(
    "losses", [[0.0, 1.0], [0.0, 0.0, 1e-5], [1e-3, 2.0, 1e-40], [0.0, 0.0, 0.0, 0.0, 7.45e-10]]
)
def test_no_bound_of_losses_that_are_not_negative_is_negative(losses):
    mean, low, high = loss_interval(losses)
    assert 0.0 < low <= mean <= high
    assert loss_interval([LOSS_FLOOR if loss < LOSS_FLOOR else loss for loss in losses]) == (mean, low, high)
    assert loss_interval([0.0, 0.0]) == loss_interval([1e-12, 0.0]) == (LOSS_FLOOR,) * 3


def test_losses_that_are_no_number_diverged_and_negative_ones_are_averaged_as_they_are():
    for broken in (math.inf, math.nan):
        mean, low, high = loss_interval([0.0, broken])
        assert mean == math.inf and math.isnan(low) and math.isnan(high)
        assert number(mean) == loss_number(mean) == "diverged"
    assert loss_interval([-1.0, 0.0, 4.0]) == interval([-1.0, 0.0, 4.0]) and counted(-1e-12) == -1e-12
    assert loss_interval([1e-9, 1e300])[2] == math.inf  # no float is so large


def test_the_summary_says_of_a_loss_of_zero_that_it_is_no_more_than_what_it_counts_as():
    rows = [run(seed=k, losses=losses, test_loss=0.0) for k, losses in enumerate(([1, 0, 0], [1, 0, 1e-11]))]
    rows += [run("sgd", seed=k, losses=[1, 1, 1e-8]) for k in range(2)]
    table = summarise(rows, window=1)
    assert [row.optimizer for row in table] == ["adam", "sgd"] and table[0].diverged == 0
    head, _, first, second = summary_text(table).splitlines()
    assert first.count("≤ 9.31e−10") == 2 and "≤" not in second
    assert "diverged" in head and "diverged" not in first + second


def test_t_quantiles_equal_scipys():
    stats = pytest.importorskip("scipy.special")
    for degrees in (*range(1, 41), 100, 1000):
        assert t_quantile(degrees) == pytest.approx(stats.stdtrit(degrees, 0.975), abs=3e-6)
    assert math.isnan(t_quantile(0))


def test_slopes_of_logarithms_are_those_of_what_a_loss_counts_as():
    losses = np.array([[2.0, LOSS_FLOOR], [0.5 * LOSS_FLOOR, np.inf]])
    np.testing.assert_array_equal(log_slopes(losses), [[0.5, 1.0 / LOSS_FLOOR], [0.0, 0.0]])
    assert np.isfinite(log_slopes(np.array([0.0, np.nan, -np.inf]))).all()
    with pytest.raises(L2OError, match="losses of at least 0, got -3; use --loss sum"):
        log_slopes(np.array([1.0, -3.0, -1.0]))


def test_smooth_by_hand():
    assert smooth(np.array([4.0, 2.0, 0.0, 6.0]), 2).tolist() == [4.0, 3.0, 1.0, 3.0]
    rows = smooth(np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]]), 10)
    assert rows.tolist() == [[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]]
    assert smooth(np.array([1.0, math.inf, 1.0, 1.0]), 2).tolist() == [1.0, math.inf, math.inf, 1.0]
    with pytest.raises(L2OError, match="window"):
        smooth(np.ones(3), 0)


def test_summarise_groups_and_sorts():
    rows = [run(seed=s, losses=[9, 9, s, s, 1, 1], ms_per_step=m) for s, m in ((2, 5.0), (1, 1.0), (4, 9.0))]
    rows.append(types.SimpleNamespace(**run("sgd", losses=[9, 9, 0.5, 0.5, 3, 3], settings={})))
    table = summarise(rows, horizons=(4, 6), window=2)
    assert [f"{row.horizon} {row.optimizer}" for row in table] == ["4 sgd", "4 adam", "6 adam", "6 sgd"]
    adam = table[1]
    assert adam.mean == pytest.approx(2.0) and adam.figures == (1.0, 2.0, 4.0)
    assert adam.high == pytest.approx(2.0 * 2.0 ** (4.3026527 / math.sqrt(3)))
    assert (adam.seeds, adam.diverged, adam.lr, adam.trials) == (3, 0, 0.5, 7)
    assert (adam.ms_per_step, adam.floats_per_parameter) == (5.0, 2.0)
    assert table[0].lr is None and math.isnan(table[0].low)
    assert [row.horizon for row in summarise(rows)] == [6, 6]


def test_summarise_counts_divergence():
    rows = [
        run(seed=0),
        run(seed=1, losses=[1.0, math.nan, 1.0, 1.0]),
        run(seed=2, losses=[1.0, 2.0], outcome="diverged"),
        run(seed=3, losses=[1.0, 2.0, 3.0, 1e9], outcome="diverged"),
    ]
    early, late = summarise(rows, horizons=(1, 4))
    assert (early.seeds, early.diverged, early.mean) == (4, 0, 1.0)
    assert (late.seeds, late.diverged, late.mean) == (4, 3, math.inf)
    assert math.isnan(late.low) and late.figures[0] == 2.5


def test_summarise_keeps_settings_of_each_horizon_apart():
    rows = [run(horizon=2, settings={"lr": 0.1}), run(horizon=4, settings={"lr": 0.2})]
    assert [(row.horizon, row.lr) for row in summarise(rows, horizons=(2, 4))] == [(2, 0.1), (4, 0.2)]


def test_summarise_averages_test_losses_by_their_logarithms_and_accuracies_as_they_are():
    scores = ((1.0, 0.5), (4.0, 1.0), (math.nan, math.nan))
    rows = [run(seed=k, test_loss=loss, accuracy=share) for k, (loss, share) in enumerate(scores)]
    (row,) = summarise(rows)
    assert (row.test_loss, row.accuracy) == pytest.approx((2.0, 0.75))
    (row,) = summarise([run()])
    assert math.isnan(row.test_loss) and math.isnan(row.accuracy)


def test_a_knob_is_text_and_a_column_of_the_table_where_one_was_tuned():
    settings = {"lr": 0.5, "knob": {"beta1": 0.95000000001}}
    rows = summarise([run(settings=settings), run("sgd")])
    assert [row.knob for row in rows] == ["beta1=0.95", ""]
    assert "beta1=0.95  " in summary_text(rows) and "knob" in summary_text(rows)
    assert "knob" not in summary_text(rows[1:])


def test_summarise_refuses():
    with pytest.raises(L2OError, match="one run per seed"):
        summarise([run(), run()])
    with pytest.raises(L2OError, match="no 'losses'"):
        summarise([{"optimizer": "adam"}])
    with pytest.raises(L2OError, match="at least 9 losses"):
        summarise([run()], horizons=(9,))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (math.inf, "diverged"), (-0.5, "−0.5"), (1 / 3, "0.3333")],
)
def test_number(value, text):
    assert number(value) == text and number(0.5, "#.4g") == "0.5000"
