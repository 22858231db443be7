"""Problems with everything random about them fixed: initial values, batches, constants."""

import dataclasses

import numpy as np
import pytest

from common.data import datasets
from common.errors import L2OError
from common.tables.problems import PROBLEMS, Instance, Problem, parameter_specs, problem_row

LARGE = 10**6  # parameters from which on drawing them takes long
FUNCTIONS = [name for name, row in PROBLEMS.items() if row.kind == "function"]


def size(row: Problem) -> int:
    return sum(int(np.prod(spec.shape)) for spec in parameter_specs(row))


SMALL = [name for name, row in PROBLEMS.items() if size(row) < LARGE]


@pytest.mark.parametrize("name", SMALL)
def test_initial_values_are_drawn_as_the_specs_say(name):
    row = PROBLEMS[name]
    values, specs = Instance(row, 3).initial_parameters(), parameter_specs(row)
    assert [(key, array.shape) for key, array in values.items()] == [(s.name, s.shape) for s in specs]
    for spec in specs:
        array = values[spec.name]
        assert array.dtype == np.float64
        if spec.std:
            assert array.std(ddof=1) == pytest.approx(spec.std, rel=5 / np.sqrt(2 * array.size))
            assert abs(array.mean() - spec.mean) < 5 * spec.std / np.sqrt(array.size)
            assert len(np.unique(array)) == array.size
        else:
            assert np.all(array == spec.mean)


def test_initial_values_are_he_or_the_iclr_codes():
    """The scale of a dense layer, from MATH.md section 6."""
    he, other = (Instance(PROBLEMS[name], 0).initial_parameters() for name in ("mnist-mlp", "mnist-mlp-iclr"))
    assert he["layer_0/w"].std() == pytest.approx((2 / 784) ** 0.5, rel=0.05) and not he["layer_0/b"].any()
    assert other["layer_0/w"].std() == pytest.approx(0.01, rel=0.05) and other["layer_0/b"].any()
    assert Instance(PROBLEMS["quadratic"], 0).initial_parameters()["x"].std() == pytest.approx(0.01, rel=0.1)
    assert Instance(PROBLEMS["rastrigin"], 0).initial_parameters()["x"].std() == pytest.approx(1.0, rel=0.1)


def test_the_same_seed_gives_the_same_problem_and_another_seed_another():
    for name in ("quadratic", "digits-conv", "nas"):
        first, same, other = (Instance(PROBLEMS[name], seed).initial_parameters() for seed in (1, 1, 2))
        for spec in parameter_specs(PROBLEMS[name]):
            assert np.array_equal(first[spec.name], same[spec.name])
            assert np.array_equal(first[spec.name], other[spec.name]) == (spec.std == 0.0)
    drawn = [array.ravel()[:8].tolist() for key, array in first.items() if key.endswith("/w")]
    assert len({tuple(start) for start in drawn}) == len(drawn)  # no tensor repeats another


DRAWN = [n for n in FUNCTIONS if not (PROBLEMS[n].condition or PROBLEMS[n].identity or PROBLEMS[n].parts)]


@pytest.mark.parametrize("name", DRAWN)
def test_the_constants_of_a_function_are_normal_and_fixed_by_the_seed(name):
    row = PROBLEMS[name]
    a, b, c = Instance(row, 1).constants()
    n = 2 if name.endswith("-2d") else 10
    assert (a.shape, b.shape, c.shape) == ((128, n, n), (128, n), (128, n))
    for part, same, other in zip(
        (a, b, c), Instance(row, 1).constants(), Instance(row, 2).constants(), strict=True
    ):
        assert np.array_equal(part, same) and np.array_equal(part, other) == row.fixed
        assert abs(part.mean()) < 5 / np.sqrt(part.size)
        assert part.std() == pytest.approx(1.0, rel=5 / np.sqrt(2 * part.size))
    assert not np.array_equal(b, c)
    assert Instance(row, 1).batch_indices(0) is None
    x = [Instance(row, seed).initial_parameters()["x"] for seed in (1, 2)]
    assert not np.array_equal(*x)  # of one with fixed constants too


def test_a_sum_has_constants_and_a_start_for_each_part():
    row = PROBLEMS["ensemble"]
    found, again = (Instance(row, seed) for seed in (1, 2))
    assert [array.shape for array in found.constants()] == [(128, 10, 10), (128, 10), (128, 10)] * 3
    assert list(found.initial_parameters()) == [f"problem_{k}/x" for k in range(3)]
    drawn = [array[0, 0].item() if array.ndim == 2 else 0.0 for array in found.constants()]
    assert len(set(drawn)) == 1 + 6  # no part repeats another
    assert not np.array_equal(found.constants()[3], again.constants()[3])
    small = row.batched(4)
    assert [array.shape[0] for array in Instance(small, 1).constants()] == [4] * 9
    assert {spec.shape for spec in parameter_specs(small)} == {(4, 10)}


def test_the_simple_problem_is_the_square_of_one_number_from_1():
    given = Instance(PROBLEMS["simple"], 7)
    a, b, _ = given.constants()
    assert (a.tolist(), b.tolist(), given.initial_parameters()["x"].tolist()) == ([[[1.0]]], [[0.0]], [[1.0]])


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if PROBLEMS[name].condition])
def test_the_matrices_of_a_conditioned_quadratic_have_their_condition_in_random_directions(name):
    row = PROBLEMS[name]
    assert name == f"quadratic-k{row.condition:g}"
    a, b, c = Instance(row, 1).constants()
    assert (a.shape, b.shape, c.shape) == ((128, 10, 10), (128, 10), (128, 10))
    u, s, v = np.linalg.svd(a)
    np.testing.assert_allclose((s[:, 0] / s[:, -1]) ** 2, row.condition, rtol=1e-9)
    np.testing.assert_allclose(s[:, 1:] / s[:, :-1], row.condition ** (-0.5 / 9), rtol=1e-9)
    np.testing.assert_allclose((s**2).sum(1), 10.0, rtol=1e-12)
    for directions in (u[:, :, 0], v[:, 0], u[:, :, 5], v[:, 5]):  # uniform on the sphere
        assert np.abs((directions**2).mean(0) - 0.1).max() < 0.05
    drawn = np.concatenate([Instance(row, seed).constants()[0] for seed in range(8)])
    assert np.abs(drawn.mean(0)).max() < 5 / np.sqrt(10 * len(drawn))
    assert not np.array_equal(a, Instance(row, 2).constants()[0])
    assert np.array_equal(a, Instance(row, 1).constants()[0])
    # b and c are those of the plain quadratic.
    plain = Instance(PROBLEMS["quadratic"], 1).constants()
    assert np.array_equal(b, plain[1]) and np.array_equal(c, plain[2])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_noise_is_drawn_anew_at_every_step_and_fixed_by_seed_and_step(name):
    row = PROBLEMS[name]
    if not row.noise:
        assert Instance(row, 1).noise(3) is None
        return
    drawn = [Instance(row, seed).noise(step) for seed, step in ((1, 3), (1, 3), (1, 4), (2, 3))]
    assert np.array_equal(drawn[0], drawn[1]) and row.noise == 0.1
    assert not any(np.array_equal(drawn[0], other) for other in drawn[2:])
    for noise in drawn:
        assert noise.shape == (128, 10) and abs(noise.mean()) < 5 * 0.1 / np.sqrt(1280)
        assert noise.std() == pytest.approx(0.1, rel=5 / np.sqrt(2 * 1280))
    assert Instance(dataclasses.replace(row, batch_size=5), 1).noise(0).shape == (5, 10)


@pytest.mark.parametrize("r", [0.5, 3.0])
@pytest.mark.parametrize("name", ["rastrigin", "mnist-mlp-iclr"])
def test_start_scale_multiplies_every_initial_value_by_a_factor_of_its_own(name, r):
    def logs(seed: int) -> dict[str, np.ndarray]:
        plain = Instance(PROBLEMS[name], seed).initial_parameters()
        scaled = Instance(PROBLEMS[name], seed, start_scale=r).initial_parameters()
        return {key: np.log(scaled[key] / array) for key, array in plain.items()}

    found, again, other = logs(4), logs(4), logs(5)
    for key, array in found.items():
        assert np.array_equal(array, again[key]) and not np.array_equal(array, other[key])
        assert np.abs(array).max() <= r * (1 + 1e-12) and len(np.unique(array)) > 0.9 * array.size
        if array.size > 1000:  # uniform
            assert array.min() < -0.98 * r and array.max() > 0.98 * r
            assert array.std() == pytest.approx(r / np.sqrt(3), rel=0.05)
    assert len({array.ravel()[0] for array in found.values()}) == len(found)  # no tensor repeats another's
    plain, zero = (Instance(PROBLEMS[name], 4, **s).initial_parameters() for s in ({}, {"start_scale": 0.0}))
    assert all(np.array_equal(zero[key], plain[key]) for key in plain)


def test_the_data_of_an_instance_are_its_split_normalised():
    for split in ("meta_train", "evaluation", "train", "validation", "test"):
        images, labels = Instance(PROBLEMS["digits-mlp"], 0, split).data()
        stored, expected = datasets.load("digits").split(split)
        assert images.dtype == np.float32 and np.array_equal(labels, expected)
        np.testing.assert_array_equal(images, stored / np.float32(16) - np.float32(0.5))


@pytest.mark.parametrize(
    ("name", "dataset"), [("digits-mlp", ""), ("mnist-mlp", "synthetic"), ("cifar-small-conv", "synthetic")]
)
def test_each_pass_over_the_data_is_a_new_permutation(name, dataset):
    given = Instance(problem_row(name, dataset), 3, batch_size=10)
    rows = len(given.data()[1])
    per_pass = rows // 10
    passes = np.stack([given.batch_indices(step) for step in range(3 * per_pass)]).reshape(3, -1)
    for order in passes:
        assert len(order) == len(set(order)) == per_pass * 10
        assert order.min() >= 0 and order.max() < rows
    assert not any(np.array_equal(passes[a], passes[b]) for a, b in ((0, 1), (1, 2), (0, 2)))


def test_batches_are_fixed_by_seed_and_step_alone():
    def batch(seed: int, step: int, split: str = "meta_train") -> list[int]:
        given = Instance(PROBLEMS["digits-mlp"], seed, split, 16)
        return given.batch_indices(step).tolist()

    later = [batch(1, step) for step in (500, 3, 46)]
    assert later == [batch(1, step) for step in (500, 3, 46)]
    assert batch(1, 0) != batch(2, 0) and batch(1, 0) != batch(1, 1)
    assert len(Instance(PROBLEMS["digits-mlp"], 1).batch_indices(0)) == 128
    assert len(Instance(PROBLEMS["digits-mlp"], 1, batch_size=10**6).batch_indices(9)) == 750
    for seed in range(12):  # more than the permutations kept at a time
        batch(seed, 0)
    assert later == [batch(1, step) for step in (500, 3, 46)]


def test_a_row_on_other_data_takes_their_shape_and_classes(tmp_path):
    x, y = np.zeros((30, 9, 7), np.uint8), np.arange(30) % 4
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    row = problem_row("digits-mlp", str(tmp_path / "mine.npz"))
    assert row == dataclasses.replace(PROBLEMS["digits-mlp"], dataset=str(tmp_path / "mine.npz"))
    shapes = [spec.shape for spec in parameter_specs(row)]
    assert (shapes[0], shapes[-1]) == ((63, 30), (4,))
    assert Instance(row, 0).data()[0].shape == (12, 9, 7, 1)  # half of four fifths
    assert problem_row("mnist-conv", "cifar10").dataset == "cifar10"
    assert problem_row("mnist-conv", "synthetic").dataset == "synthetic:28x28x1:10"
    assert problem_row("mnist-conv") is PROBLEMS["mnist-conv"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_no_data_to_replace(name):
    with pytest.raises(L2OError, match=f"--dataset digits: {name} is a function .*; leave --dataset out"):
        problem_row(name, "digits")


def test_varied_images_are_cut_out_and_mirrored_by_seed_and_step_alone():
    """Every one of them is a window of its image with a black rim, as it is or mirrored; both occur."""
    row = dataclasses.replace(PROBLEMS["digits-mlp"], crop=2, flip=True, batch_size=40)
    given = Instance(row, 5)
    images, labels = given.varied(3)
    rows = given.batch_indices(3)
    whole, classes = given.stored()
    assert images.dtype == whole.dtype and np.array_equal(labels, classes[rows])
    ways = []
    for got, image in zip(images, whole[rows], strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        ways.append(
            {
                (top, left, mirrored)
                for top in range(5)
                for left in range(5)
                for mirrored in (False, True)
                if np.array_equal(got, padded[top : top + 8, left : left + 8][:, :: -1 if mirrored else 1])
            }
        )
    assert all(ways)
    sure = [next(iter(each)) for each in ways if len(each) == 1]
    assert all(len(set(part)) > 1 for part in zip(*sure, strict=True))
    assert np.array_equal(Instance(row, 5).varied(3)[0], images)
    assert not np.array_equal(given.varied(4)[0], images) and not np.array_equal(
        Instance(row, 6).varied(3)[0], images
    )
    plain = dataclasses.replace(row, crop=0, flip=False)
    assert row.varied and not plain.varied
    assert np.array_equal(Instance(plain, 5).varied(3)[0], whole[rows])


def test_images_by_channels_have_mean_0_and_deviation_1_over_the_training_images():
    row = dataclasses.replace(PROBLEMS["digits-mlp"], dataset="synthetic:6x5x3:4", channels=True)
    whole = Instance(row, 0).whole()
    seen = whole.normalised(whole.x_train)
    np.testing.assert_allclose(seen.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(seen.std((0, 1, 2)), 1.0, rtol=1e-5)
    assert not np.allclose(
        Instance(dataclasses.replace(row, channels=False), 0).data()[0].std((0, 1, 2)), 1.0
    )
    dark = dataclasses.replace(whole, x_train=np.zeros_like(whole.x_train)).by_channels
    assert not dark.normalised(dark.x_train).any()
