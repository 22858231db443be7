"""From trajectories to the rows a search sees: splits, columns, spread."""

import dataclasses
import logging
import math

import numpy as np
import pytest

from common.errors import L2OError
from interchange.distill.config import DistillConfig
from interchange.distill.run import distill
from interchange.files.trajectories import Run, Samples, Trajectories, save_trajectories
from interchange.language import expression as ex
from interchange.language.parse import parse
from interchange.search.samples import Sequences, choose_rows, row_values, sequences
from tests.helpers.recordings import make_run

STEPS, COORDINATES = 9, 4


def made_run(number: int, *, steps: int = STEPS, **changes) -> Run:
    """A run whose every value tells its number, of one tensor."""
    generator = np.random.default_rng(number)
    arrays = {
        "x": number + generator.uniform(0.0, 0.5, (steps, COORDINATES, 2)),
        "g": generator.normal(size=(steps, COORDINATES)),
        "y": -number - generator.uniform(0.0, 0.5, (steps, COORDINATES)),
        "flat_index": np.arange(COORDINATES, dtype=np.int32),
        "param_index": np.zeros(COORDINATES, np.int32),
    }
    tensor = {"params_names": ("x",), "params_shapes": ((COORDINATES,),)}
    arrays |= tensor | {"num_steps": STEPS, "problem": "quadratic", "scale": 0.1}
    return make_run(f"{number:06d}", steps, COORDINATES, random=number, **arrays | changes)


def make(*runs: Run, **split: tuple[str, ...]) -> Trajectories:
    return Trajectories({"a": "g", "b": "square(g)"}, {run.name: run for run in runs}, split)


@pytest.fixture
def four() -> Trajectories:
    runs = made_run(1), made_run(2), made_run(3, diverged=True, steps=5), made_run(4)
    return make(*runs, train=("000001", "000002", "000003"), valid=("000004",), test=("000003",))


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
    shapes = {split: part.target.shape for split, part in parts.items()}
    assert shapes == {"train": (1, 34), "valid": (1, 34), "test": (1, 6)}
    np.testing.assert_array_equal(parts["train"].features["a"], parts["valid"].features["a"])  # by folds
    rows = np.concatenate([parts[split].features["a"][0] for split in ("train", "test")])
    np.testing.assert_array_equal(rows, np.arange(40.0))
    for part in parts.values():
        assert part.target.dtype == part.features["b"].dtype == np.float64
        np.testing.assert_array_equal(part.features["b"], part.features["a"] + 100.0)
        np.testing.assert_array_equal(part.target, -part.features["a"])


@pytest.mark.parametrize(("rows", "split"), [(9, "train"), (40, "nonsense")])
def test_a_table_too_short_for_three_blocks_is_refused(rows, split):
    with pytest.raises(L2OError, match="expected one of train, valid, test and at least 10 rows"):
        sequences(make_table(rows), split)


def by_hand(node: ex.Node, features: dict[str, np.ndarray]) -> np.ndarray:
    """A feature, its lag or its moving average, [T, N]."""
    x = features[ex.names(node)[0]]
    want = np.zeros_like(x)
    for t in range(len(x)):
        if node.op == "name":
            want[t] = x[t]
        elif node.op == "lag":
            k = int(node.args[1].value)
            want[t] = x[t - k] if t >= k else 0.0
        else:
            b = node.args[1].value
            want[t] = b * (want[t - 1] if t else 0.0) + (1.0 - b) * x[t]
    return want


@pytest.mark.parametrize("chunk", [1, 1 << 30])
def test_row_values_equal_lags_and_averages_computed_by_hand(chunk, four, monkeypatch):
    monkeypatch.setattr("interchange.search.samples._CHUNK", chunk)  # a coordinate at a time; all at once
    data = sequences(four, "train")
    texts = [part.format(name) for name in "abg" for part in ("{}", "lag({}, 3)", "ema({}, 0.9)")]
    columns = [parse(text, ("a", "b", "g")) for text in texts]
    rows = choose_rows(data, 20, seed=0)
    values = row_values(columns, data.features, rows)
    assert values.shape == (20, len(columns))
    for node, got in zip(columns, values.T, strict=True):
        want = by_hand(node, data.features)[rows.steps, rows.coordinates]
        np.testing.assert_allclose(got, want, rtol=1e-13, err_msg=ex.to_text(node))


def test_the_raw_gradient_is_a_feature_unless_one_has_its_name_also_of_some_features_only(four):
    train = sequences(four, "train")
    np.testing.assert_array_equal(train.features["g"][:, COORDINATES:], four.runs["000002"].g)
    own = Trajectories({"g": "", "b": ""}, four.runs, four.split)
    np.testing.assert_array_equal(sequences(own, "valid").features["g"], four.runs["000004"].x[:, :, 0])
    table = sequences(make_table(40), "train")
    assert "g" not in table.features and list(table.only(["b", "c"]).features) == ["b"]
    some = train.only(["b"])  # the gradient stays
    assert list(some.features) == ["b", "g"] and some.layers is train.layers
    assert some.features["b"] is train.features["b"] and some.target is train.target


def test_layers_tell_tensors_apart_and_join_those_of_one_problem():
    tensors = {"params_names": ("w", "b"), "params_shapes": ((COORDINATES,), (COORDINATES,))}
    index = np.array([1, 0, 0, 1], np.int32)
    same = [dataclasses.replace(made_run(k), param_index=index, **tensors) for k in (1, 2)]
    other = dataclasses.replace(made_run(3), problem="digits-mlp", param_index=index, **tensors)
    data = sequences(make(*same, other, train=("000001", "000002", "000003")), "train")
    assert data.layers.tolist() == [1, 0, 0, 1, 1, 0, 0, 1, 3, 2, 2, 3]
    assert data.part(np.array([0, 8])).layers.tolist() == [1, 3]


def test_joined_sequences_stand_side_by_side_and_are_cut_to_the_shorter(four):
    train, valid = sequences(four, "train"), sequences(four, "valid")
    short = Sequences({n: x[:5] for n, x in valid.features.items()}, valid.target[:5], valid.layers)
    both = train.joined(short)
    assert both.target.shape == (5, 3 * COORDINATES)
    for name in ("a", "b", "g"):
        np.testing.assert_array_equal(both.features[name][:, 8:], valid.features[name][:5])
        np.testing.assert_array_equal(both.features[name][:, :8], train.features[name][:5])
    np.testing.assert_array_equal(both.target[:, 8:], valid.target[:5])
    assert both.layers.tolist() == [0] * 8 + [1] * 4
    with pytest.raises(L2OError, match="got none of 'g'; compute it first"):
        train.joined(Sequences({"a": valid.features["a"], "b": valid.features["b"]}, valid.target))


def heavy(steps: int = 100, coordinates: int = 60) -> Sequences:
    """Two tensors, the second of 3 coordinates; a few huge values; magnitudes that fall with the step."""
    generator = np.random.default_rng(0)
    scale = np.exp(-np.arange(steps) / 30.0)[:, None]
    target = scale * generator.standard_t(2.0, (steps, coordinates))
    layers = (np.arange(coordinates) >= coordinates - 3).astype(int)
    return Sequences({"a": generator.normal(size=(steps, coordinates))}, target + layers, layers)


@pytest.mark.parametrize("count", [1, 7, 50, 600, 5000, 6000, 10**6])
def test_as_many_rows_as_asked_for_and_none_twice(count):
    data = heavy()
    rows = choose_rows(data, count, seed=0)
    assert len(rows.steps) == min(count, data.target.size) == len(rows.weights)
    assert len({*zip(rows.steps.tolist(), rows.coordinates.tolist(), strict=True)}) == len(rows.steps)
    assert rows.weights.sum() == pytest.approx(data.target.size)
    assert rows.weights.max() <= 2.0 * data.target.size / len(rows.weights) * (1.0 + 1.0 / count) + 1.0
    np.testing.assert_array_equal(rows.of(data.target), data.target[rows.steps, rows.coordinates])


def test_weighted_sums_estimate_those_over_all_rows():
    """Means over 200 draws, within 4 standard errors; without weights they are far off."""
    data = heavy()
    step = np.broadcast_to(np.arange(100.0)[:, None], data.target.shape)
    for values in (data.target, data.target**2, step, data.features["a"] ** 2):
        draws = [(choose_rows(data, 400, seed), values) for seed in range(200)]
        sums = np.array([rows.weights @ rows.of(v) for rows, v in draws])
        error = 4.0 * sums.std() / math.sqrt(len(sums)) + 1e-9 * np.abs(values).sum()
        assert abs(sums.mean() - values.sum()) < error
    squares = np.array([np.mean(rows.of(data.target) ** 2) for rows, _ in draws])
    assert squares.mean() > 1.5 * np.mean(data.target**2)


def test_small_tensors_early_steps_and_tails_get_more_than_their_share():
    data = heavy()
    rows = choose_rows(data, 600, seed=0)
    assert len(rows.steps) == 600
    small = (data.layers[rows.coordinates] == 1).mean()
    assert small > 3 * 3 / 60
    assert (rows.steps < 10).mean() > 1.5 * 10 / 100
    size = np.abs(data.target)
    largest = size >= np.quantile(size, 0.995)
    assert rows.of(largest).sum() > 0.8 * largest.sum()
    plain = Sequences(
        {"a": np.zeros((100, 50))}, np.ones((100, 50))
    )  # within a stratum evenly over the steps
    found = np.bincount(choose_rows(plain, 500, seed=2).steps, minlength=100)
    assert found[50:].max() - found[50:].min() <= 1 and found.min() >= 1


def test_rows_depend_on_the_seed_alone():
    one, same, other = (choose_rows(heavy(), 100, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.steps, same.steps)
    np.testing.assert_array_equal(one.coordinates, same.coordinates)
    assert not np.array_equal(one.coordinates, other.coordinates)


@pytest.mark.parametrize("value", [0.0, 0.1, math.pi])
def test_a_recording_with_a_constant_target_is_refused_in_one_line(value, tmp_path):
    """Not by its standard deviation, which rounding makes positive for most constants."""
    constant = np.full((STEPS, COORDINATES), value)
    runs = [dataclasses.replace(made_run(k), y=constant) for k in range(1, 6)]
    names = tuple(run.name for run in runs)
    file = tmp_path / "trajectories.h5"
    save_trajectories(file, make(*runs, train=names[:3], valid=names[3:4], test=names[4:]))
    with pytest.raises(L2OError, match="the targets for train are all equal") as caught:
        distill(DistillConfig(trajectories=str(file), time=1.0, quiet=True))
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    assert list(tmp_path.iterdir()) == [file]
