"""From trajectories to the rows a search sees: splits, columns, spread."""

import dataclasses
import logging
import math

import numpy as np
import pytest

from common.errors import L2OError
from interchange import expression as ex
from interchange.distill import DistillConfig, distill
from interchange.samples import DECAYS, LAGS, choose_rows, column_values, dictionary, sequences
from interchange.trajectories import Run, Samples, Trajectories, save_trajectories

STEPS, COORDINATES = 9, 4


def make_run(number: int, *, diverged: bool = False, steps: int = STEPS, **changes: np.ndarray) -> Run:
    """A made-up run whose every value tells its number."""
    generator = np.random.default_rng(number)
    arrays = {
        "x": number + generator.uniform(0.0, 0.5, (steps, COORDINATES, 2)),
        "g": generator.normal(size=(steps, COORDINATES)),
        "y": -number - generator.uniform(0.0, 0.5, (steps, COORDINATES)),
    }
    return Run(
        name=f"{number:06d}",
        problem="quadratic",
        problem_json="{}",
        source_kind="user",
        source_json="{}",
        source_sha256="",
        seed=number,
        init_seed=number,
        num_steps=STEPS,
        scale=0.1,
        diverged=diverged,
        outcome="ok",
        loss=np.ones(steps),
        step=np.arange(1, steps + 1),
        param_index=np.zeros(COORDINATES, np.int32),
        flat_index=np.arange(COORDINATES, dtype=np.int32),
        params_names=("x",),
        params_shapes=((COORDINATES,),),
        **arrays | changes,
    )


def make(*runs: Run, **split: tuple[str, ...]) -> Trajectories:
    return Trajectories({"a": "g", "b": "square(g)"}, {run.name: run for run in runs}, split)


@pytest.fixture
def four() -> Trajectories:
    """Four runs, the third of them diverged."""
    return make(
        make_run(1),
        make_run(2),
        make_run(3, diverged=True, steps=5),
        make_run(4),
        train=("000001", "000002", "000003"),
        valid=("000004",),
        test=("000003",),
    )


def test_a_split_holds_all_coordinates_of_its_own_runs_and_no_others(four):
    train, valid = sequences(four, "train"), sequences(four, "valid")
    assert train.target.shape == (STEPS, 2 * COORDINATES) and train.target.dtype == np.float64
    for k, feature in enumerate(("a", "b")):
        for number, part in ((1, train.part(np.arange(4))), (2, train.part(np.arange(4, 8))), (4, valid)):
            run = four.runs[f"{number:06d}"]
            np.testing.assert_array_equal(part.features[feature], run.x[:, :, k])
            np.testing.assert_array_equal(part.target, run.y)


def test_diverged_runs_are_left_out_with_a_warning(four, caplog):
    with caplog.at_level(logging.WARNING):
        train = sequences(four, "train")
        assert [record.message for record in caplog.records] == [
            "1 of 3 runs of split 'train' diverged and are left out"
        ]
        caplog.clear()
        sequences(four, "valid")
        assert not caplog.records
    assert train.target.min() > -3.0  # the third run's targets lie below


@pytest.mark.parametrize("split", ["test", "nonsense"])
def test_a_split_without_a_whole_run_is_refused(split, four):
    with pytest.raises(L2OError, match=f"expected runs in split '{split}' that did not diverge, got none"):
        sequences(four, split)


def make_table(rows: int) -> Trajectories:
    x = np.stack([np.arange(rows), 100.0 + np.arange(rows)], axis=1).astype("f4")
    return Trajectories({"a": "", "b": ""}, {}, samples=Samples(x, -x[:, 0], np.ones(2)))


def test_a_table_is_cut_into_contiguous_blocks_of_one_step():
    parts = {split: sequences(make_table(40), split) for split in ("train", "valid", "test")}
    assert {split: part.target.shape for split, part in parts.items()} == {
        "train": (1, 28),
        "valid": (1, 6),
        "test": (1, 6),
    }
    rows = np.concatenate([part.features["a"][0] for part in parts.values()])
    np.testing.assert_array_equal(rows, np.arange(40.0))
    for part in parts.values():
        assert part.target.dtype == part.features["b"].dtype == np.float64
        np.testing.assert_array_equal(part.features["b"], part.features["a"] + 100.0)
        np.testing.assert_array_equal(part.target, -part.features["a"])


@pytest.mark.parametrize(("rows", "split"), [(9, "train"), (40, "nonsense")])
def test_a_table_too_short_for_three_blocks_is_refused(rows, split):
    with pytest.raises(L2OError, match="expected one of train, valid, test and at least 10 rows"):
        sequences(make_table(rows), split)


def test_columns_are_every_feature_its_lags_and_its_moving_averages():
    texts = [ex.to_text(node) for node in dictionary(["a", "b"], lags=(1, 3), decays=(0.5, 0.9))]
    lags = [f"lag({name}, {k})" for k in (1, 3) for name in "ab"]
    averages = [f"ema({name}, {b})" for b in (0.5, 0.9) for name in "ab"]
    assert texts == ["a", "b", *lags, *averages]
    assert len(dictionary(["a"])) == 1 + len(LAGS) + len(DECAYS)


def test_column_values_equal_lags_and_averages_computed_by_hand(four):
    features = sequences(four, "train").features
    columns = dictionary(list(features))
    values = column_values(columns, features)
    assert values.shape == (len(columns), STEPS, 2 * COORDINATES)
    for node, got in zip(columns, values, strict=True):
        x = features[ex.names(node)[0]]
        want = np.zeros_like(x)
        for t in range(STEPS):
            if node.op == "name":
                want[t] = x[t]
            elif node.op == "lag":
                k = int(node.args[1].value)
                want[t] = x[t - k] if t >= k else 0.0
            else:
                b = node.args[1].value
                want[t] = b * (want[t - 1] if t else 0.0) + (1.0 - b) * x[t]
        np.testing.assert_allclose(got, want, rtol=1e-13, err_msg=ex.to_text(node))


@pytest.mark.parametrize(
    ("count", "per_step"), [(STEPS * 3, 3), (STEPS * 3 + 5, 3), (10**6, COORDINATES), (STEPS, 1)]
)
def test_rows_are_spread_evenly_over_steps_and_pair_columns_with_their_target(count, per_step):
    step, coordinate = np.mgrid[:STEPS, :COORDINATES]
    values = np.stack([step, coordinate]).astype(float)
    rows, target = choose_rows(values, 100.0 * step + coordinate, count, seed=3)
    assert rows.shape == (STEPS * per_step, 2) and len(rows) <= count
    np.testing.assert_array_equal(target, 100.0 * rows[:, 0] + rows[:, 1])
    assert np.bincount(rows[:, 0].astype(int)).tolist() == [per_step] * STEPS
    assert len({tuple(row) for row in rows}) == len(rows)


def test_never_more_rows_than_asked_for_even_from_long_runs():
    values = np.arange(50.0)[None, :, None].repeat(3, axis=2)
    rows, _ = choose_rows(values, values[0], 10, seed=0)
    assert len(rows) == 10 and rows[0, 0] < 10 and rows[-1, 0] >= 40


def test_rows_depend_on_the_seed_alone():
    values = np.random.default_rng(0).normal(size=(2, STEPS, COORDINATES))
    one, same, other = (choose_rows(values, values[0], 18, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("value", [0.0, 0.1, math.pi])
def test_a_recording_with_a_constant_target_is_refused_in_one_line(value, tmp_path):
    """Not by its standard deviation, which rounding makes positive for most constants."""
    constant = np.full((STEPS, COORDINATES), value)
    runs = [dataclasses.replace(make_run(k), y=constant) for k in range(1, 6)]
    names = tuple(run.name for run in runs)
    file = tmp_path / "trajectories.h5"
    save_trajectories(file, make(*runs, train=names[:3], valid=names[3:4], test=names[4:]))
    with pytest.raises(L2OError, match="the targets are all equal") as caught:
        distill(DistillConfig(trajectories=str(file), time=1.0, quiet=True))
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    assert list(tmp_path.iterdir()) == [file]
