"""The wide dictionary and what screening takes from it."""

import numpy as np
import pytest

from interchange.language import expression as ex
from interchange.language.execute import compile_program, evaluate
from interchange.language.parse import parse
from interchange.search.dictionary import screen, wide_dictionary
from interchange.search.samples import Sequences, choose_rows, row_values

NAMES = ("a", "g")


def inputs(steps: int = 120, coordinates: int = 40) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    scale = np.exp(generator.normal(size=coordinates))
    return {name: scale * generator.normal(size=(steps, coordinates)) for name in NAMES}


def test_every_column_is_there_once_and_reads_back():
    columns = wide_dictionary(NAMES)
    texts = [ex.to_text(node) for node in columns]
    assert len(set(texts)) == len(texts)
    assert [parse(text, NAMES) for text in texts] == columns
    assert texts[:2] == ["a", "g"]
    for text in (
        "lag(g, 2)",
        "ema(g, 0.9)",
        "ema_hat(a, 0.99)",
        "sqrt(ema_hat(square(g), 0.999))",
        "sign(ema(a, 0.9))",
    ):
        assert text in texts
    values = evaluate(compile_program(columns), inputs())
    assert all(np.isfinite(column).all() for column in values)


@pytest.mark.parametrize(
    "text",
    [
        "-1.5 * ema(g, 0.9) + 0.2 * lag(a, 2)",
        "3.0 * (ema_hat(g, 0.9) / (sqrt(ema_hat(square(g), 0.99)) + 1e-12)) + 0.5 * sign(a)",
        "0.3 * g + 2.0 * sqrt(ema(square(a), 0.95))",
    ],
)
def test_screening_finds_the_columns_a_target_is_made_of(text):
    features = inputs()
    target = evaluate(compile_program([parse(text, NAMES)]), features)[0]
    target = target + 0.01 * np.random.default_rng(1).normal(size=target.shape)
    data = Sequences(features, target)
    rows = choose_rows(data, 2000, seed=0)
    columns = wide_dictionary(NAMES)
    values = row_values(columns, features, rows)
    picked = screen(columns, values, rows.of(target), rows.weights, 8)
    assert picked == sorted(set(picked)) and len(picked) == 8 and picked[:2] == [0, 1]
    x, y = values[:, picked], rows.of(target)
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    assert residual.std() < 0.02 < 0.1 < y.std()


def test_columns_that_are_not_finite_and_targets_of_zero_are_survived():
    columns = wide_dictionary(["a"])
    values = np.random.default_rng(0).normal(size=(50, len(columns)))
    y = values[:, 2].copy()
    values[:, 1] = np.nan
    assert screen(columns, values, y, np.ones(50), 3)[:2] == [0, 2]
    assert screen(columns, values, np.zeros(50), np.ones(50), 3) == [0]


def test_screening_sees_rare_huge_targets_and_the_many_small_ones():
    generator = np.random.default_rng(0)
    columns = wide_dictionary(["a"])
    values = generator.normal(size=(5000, len(columns)))
    huge, small = 2, 4
    values[50:, huge] = 0.0
    y = 100.0 * values[:, huge] * (1.0 + 0.3 * generator.normal(size=5000)) + 0.01 * values[:, small]
    assert screen(columns, values, y, np.ones(5000), 3) == [0, huge, small]


@pytest.mark.parametrize("heavy", [3, 5])
def test_screening_goes_by_weight(heavy):
    """Half of the rows are one column, half another; the weights tell which half is the data."""
    columns = wide_dictionary(["a"])
    values = np.random.default_rng(0).normal(size=(1000, len(columns)))
    first = np.arange(1000) < 500
    y = np.where(first, values[:, 3], values[:, 5])
    weights = np.where(first == (heavy == 3), 100.0, 0.01)
    assert screen(columns, values, y, weights, 2) == [0, heavy]
