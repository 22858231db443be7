"""Tables of samples: every row is judged by a search that has not seen it."""

import time

import numpy as np
import pytest

from common.errors import L2OError
from common.metrics import r2
from interchange.distill import tables as module
from interchange.distill.config import DistillConfig
from interchange.distill.refit import predict
from interchange.distill.run import search_front
from interchange.distill.tables import FOLDS, folds, table_front, worth_of_sizes
from interchange.files.trajectories import Samples, Trajectories
from interchange.language.parse import parse
from interchange.rule.rule import Rule
from interchange.search.samples import sequences

ROWS = 400


@pytest.fixture
def table() -> Trajectories:
    """y = 2 a + noise."""
    x = np.random.default_rng(0).normal(size=(ROWS, 2))
    y = 2.0 * x[:, 0] + np.random.default_rng(1).normal(size=ROWS)
    return Trajectories({"a": "", "b": ""}, {}, samples=Samples(x, y, np.ones(3), 1.0))


def scored(text: str, train: float) -> Rule:
    features = {name: None for name in ("a", "b") if name in text}
    return Rule.from_text(text, {}, features, provenance={"r2": {"train": train}})


def test_each_row_is_left_out_once_in_a_block_of_neighbours(table, monkeypatch):
    data = sequences(table, "train")
    rows = data.target.shape[1]
    parts = folds(data)
    assert len(parts) == FOLDS
    np.testing.assert_array_equal(np.concatenate([p["valid"].target[0] for p in parts]), data.target[0])
    for k, part in enumerate(parts):
        assert part["train"].target.shape == (1, rows - part["valid"].target.shape[1])
        assert not np.isin(part["valid"].target, part["train"].target).any()
        start = round(rows * k / FOLDS)
        expected = data.features["b"][0, start : start + 5]
        np.testing.assert_array_equal(part["valid"].features["b"][0, :5], expected)
    monkeypatch.setattr(module, "_ROWS", 30)  # of more rows every so many is taken
    for part in folds(data):
        assert all(25 <= part[split].target.shape[1] <= 30 for split in ("train", "valid"))


def test_the_worth_of_a_size_is_the_r2_of_all_left_out_rows_by_the_best_fits_up_to_it(table):
    data = sequences(table, "train")
    splits = folds(data)[:2]
    found = [
        [scored("2.1 * a", 0.7), scored("2.0 * a - 0.3 * b", 0.9), scored("a + b + b", 0.1)],
        [scored("1.8 * a", 0.6), scored("2.0 * a + b - b + b * b - b", 0.95)],
    ]
    worth = worth_of_sizes(found, splits)
    assert list(worth) == [3, 7, 13]
    y = np.concatenate([split["valid"].target[0] for split in splits])
    for size, rules in ((3, (0, 0)), (7, (1, 0)), (13, (1, 1))):
        outs = [predict(found[k][rules[k]], splits[k]["valid"])[0] for k in range(2)]
        assert worth[size] == pytest.approx(r2(y, np.concatenate(outs)))
    assert worth_of_sizes([found[0], []], splits).keys() == {3, 7}  # a search that found nothing


def test_restarts_are_further_searches_of_every_fold_and_no_rule_is_no_front(table, monkeypatch):
    def search_all(tasks, config):
        assert len(tasks) == 2 * FOLDS and len({task.seed for task in tasks}) == 2 * FOLDS
        for first, second in zip(tasks[:FOLDS], tasks[FOLDS:], strict=True):
            np.testing.assert_array_equal(first.y, second.y)
        texts = ["2.0 * a"] * FOLDS + ["2.0 * a - 0.1"] * FOLDS
        return [[parse(text, ("a", "b"))] for text in texts]

    monkeypatch.setattr(module, "search_all", search_all)
    config = DistillConfig(trajectories="table", threads=1, restarts=2, quiet=True)
    front = search_front(table, config, time.monotonic())
    assert [rule.complexity for rule in front] == [3, 5]
    monkeypatch.setattr(module, "search_all", lambda tasks, config: [[] for _ in tasks])
    with pytest.raises(L2OError, match="no rule of at most 40 nodes was found"):
        search_front(table, config, time.monotonic())
    assert worth_of_sizes([[], []], folds(sequences(table, "train"))[:2]) == {}


def test_a_structure_that_a_search_fitted_to_its_rows_is_worth_less_than_the_true_form(table, monkeypatch):
    """An engine that finds, for its own rows, a term that follows their noise."""
    config = DistillConfig(trajectories="table", threads=1, max_size=30, quiet=True, time=30.0)
    seen = []

    def search_all(tasks, config):
        results = []
        for task in tasks:
            seen.append(task)
            noise = task.y - 2.0 * task.rows[:, 0]
            largest = [float(task.rows[k, 1]) for k in np.argsort(-np.abs(noise))[:4]]
            spikes = [f"0.5 * exp(-10000.0 * square(b - {place!r}))" for place in largest]
            texts = ("1.5 * a", "2.0 * a + " + " + ".join(spikes))
            results.append([parse(text, ("a", "b")) for text in texts])
        return results

    monkeypatch.setattr(module, "search_all", search_all)
    data = {split: sequences(table, split) for split in ("train", "valid", "test")}
    front = table_front(table, data, config, time.monotonic())
    assert len(seen) == FOLDS and len({task.seed for task in seen}) == FOLDS
    assert 0.7 * config.time < seen[0].time < 0.8 * config.time  # what went before is taken off
    valid = {rule.complexity: rule.provenance["r2"]["valid"] for rule in front}
    train = {rule.complexity: rule.provenance["r2"]["train"] for rule in front}
    longest = max(train)
    # Half of what the longest gains where it is fitted, and more, is noise.
    assert valid[longest] - valid[3] < 0.5 * (train[longest] - train[3])
    assert "fold" not in front[0].provenance and front[0].provenance["r2"]["test"] > 0.7
