"""Data sets once read: splits and halves, normalisation, synthetic images, and a user's own npz."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common.data import datasets
from common.data.datasets import Dataset, instead_of, source
from common.errors import L2OError

KEYS = ("x_train", "y_train", "x_test", "y_test")
SPLITS = ("meta_train", "evaluation", "train", "validation", "test", "test_a")


def own(folder: Path, **arrays: np.ndarray) -> Dataset:
    """Write and read an npz; a new name each time, because what was read is remembered."""
    path = folder / f"own{len(list(folder.iterdir()))}.npz"
    np.savez(path, **arrays)
    return source(str(path)).read("")


def numbered(rows: int = 203, classes: int = 10) -> Dataset:
    """Images that tell their row; a label's class is its row's rest."""
    x = np.arange(rows + 40, dtype=np.float32).reshape(-1, 1, 1, 1)
    y = np.arange(rows + 40) % classes
    return Dataset(x[:rows], y[:rows], x[rows:], y[rows:])


def rows_of(part: tuple[np.ndarray, np.ndarray]) -> list[int]:
    return part[0].ravel().astype(int).tolist()


@pytest.mark.parametrize("pair", [("meta_train", "evaluation"), ("train", "validation")])
def test_two_splits_share_out_the_training_images(pair):
    data = numbered()
    parts = [rows_of(data.split(name)) for name in pair]
    assert sorted(parts[0] + parts[1]) == list(range(203)) and parts[0] != sorted(parts[0])
    sizes = {"meta_train": (101, 102), "train": (183, 20)}[pair[0]]
    assert tuple(map(len, parts)) == sizes
    for name in pair:
        images, labels = data.split(name)
        assert np.array_equal(images.ravel() % 10, labels)
        assert data.split(name)[0] is images  # drawn once


def test_the_test_images_are_all_of_them_as_they_are():
    data = numbered()
    for name in ("test", "test_a"):
        assert rows_of(data.split(name)) == list(range(203, 243))
        assert np.array_equal(data.split(name)[1], np.arange(203, 243) % 10)


@pytest.mark.parametrize("classes", [10, 7])
def test_class_halves_have_no_class_in_common_and_labels_from_0(classes):
    """A is the first half, on which is meta-trained; the last of an odd number is in neither."""
    data, half = numbered(classes=classes), classes // 2
    for name in SPLITS:
        images, labels = data.split(name, class_halves=True)
        first = name in ("meta_train", "test_a")
        true = images.ravel() % classes
        assert set(labels) == set(range(half))
        assert np.array_equal(true, labels + (0 if first else half))
        inside = np.arange(203, 243) if name.startswith("test") else np.arange(203)
        assert set(rows_of((images, labels))) <= set(inside)
    every = [row for row in range(203) if row % classes < half]
    assert sorted(rows_of(data.split("meta_train", True))) == every
    parts = [rows_of(data.split(name, True)) for name in ("train", "validation")]
    assert sorted(parts[0] + parts[1]) == sorted(rows_of(data.split("evaluation", True)))
    assert rows_of(data.split("meta_train")) != rows_of(data.split("meta_train", True))


def test_a_split_without_images_is_refused():
    data = numbered(rows=9)
    assert len(data.split("train")[1]) == 9
    with pytest.raises(L2OError, match="split validation: expected images, got none; take more data"):
        data.split("validation")


def test_digits_are_shared_out_and_normalised():
    data = datasets.load("digits")
    assert data.x_train.shape == (1500, 8, 8, 1) and data.x_test.shape == (297, 8, 8, 1)
    assert (data.x_train.dtype, data.y_train.dtype) == (np.uint8, np.int64)
    assert (data.x_train.min(), data.x_train.max()) == (0, 16)
    seen = data.normalised(data.x_train)
    assert seen.dtype == np.float32 and np.array_equal(seen, data.x_train / np.float32(16) - np.float32(0.5))
    halves = [data.split(name) for name in ("meta_train", "evaluation")]
    assert [len(labels) for _, labels in halves] == [750, 750]
    assert all(set(labels) == set(range(10)) for _, labels in halves)


def test_images_are_scaled_by_divisor_offset_and_spread():
    """As MNIST and as CIFAR in MATH.md section 6."""
    values = np.array([0, 51, 255], np.uint8)
    for scaling, seen in (((255.0, 0.5), [-0.5, -0.3, 0.5]), ((255.0, 0.5, 0.5), [-1.0, -0.6, 1.0])):
        data = Dataset(*4 * (values,), *scaling)
        np.testing.assert_allclose(data.normalised(values), seen, atol=1e-7)


def test_synthetic_images_are_the_same_every_time_and_have_the_shape_asked_for():
    name = "synthetic:5x6x3:4"
    assert (source(name).image_shape, source(name).num_classes) == ((5, 6, 3), 4)
    data, again = source(name).read(""), source(name).read("")
    assert data.x_train.shape == (2000, 5, 6, 3) and data.x_test.shape == (500, 5, 6, 3)
    assert (data.x_train.dtype, data.y_train.dtype) == (np.float32, np.int64)
    assert np.array_equal(np.bincount(data.y_train), [500] * 4)
    for field in KEYS:
        assert np.array_equal(getattr(data, field), getattr(again, field))
    assert np.array_equal(data.normalised(data.x_test), data.x_test)


@pytest.mark.parametrize("name", [name for name in datasets.DATASETS if name != "cifar100"])
def test_synthetic_images_stand_in_for_a_data_set_and_can_be_learnt(name):
    """The nearest class mean of the training images names most test images; labels drawn anew would not."""
    replacement = instead_of(name, "synthetic")
    row = source(replacement)
    assert (row.image_shape, row.num_classes) == (source(name).image_shape, source(name).num_classes)
    data = datasets.load(replacement)
    train, test = (x.reshape(len(x), -1) for x in (data.x_train, data.x_test))
    means = np.stack([train[data.y_train == k].mean(0) for k in range(row.num_classes)])
    distances = (test**2).sum(1)[:, None] - 2 * test @ means.T + (means**2).sum(1)
    assert np.mean(distances.argmin(1) == data.y_test) > 0.9
    # The noise is drawn apart from the patterns and apart from the other images'.
    noise = [x.reshape(len(x), -1) - means[y] for x, y in ((train, data.y_train), (test, data.y_test))]
    assert noise[0].std() == pytest.approx(0.25, rel=0.02) == pytest.approx(means.std(), rel=0.1)
    for one in (noise[0][:500], noise[0][500:1000]):
        assert abs(np.corrcoef(one.ravel(), noise[1].ravel())[0, 1]) < 0.05
    first = slice(0, row.num_classes)
    assert abs(np.corrcoef(noise[0][first].ravel(), means.ravel())[0, 1]) < 0.2


@pytest.mark.parametrize(
    "name",
    ["synthetic:8x8x1", "synthetic:0x8x1:3", "synthetic:8x8x1:1", "synthetic:9999x9999x9:3", "mnst", ""],
)
def test_an_unknown_data_set_is_refused_with_one_line(name):
    with pytest.raises(L2OError, match=re.escape(repr(name))) as error:
        instead_of("mnist", name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(7, 5, 3), (7, 5), (11,)], ids=["colour", "grey", "features"])
@pytest.mark.parametrize("kind", ["bytes", "float64"])
def test_a_users_own_arrays_are_used_as_they_are_or_scaled_if_bytes(shape, kind, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (25, *shape)).astype(np.uint8)
    x = x if kind == "bytes" else x * 3.0 - 700.0
    y = np.arange(25, dtype=np.int16) % 3
    full = {3: shape, 2: (*shape, 1), 1: (1, 1, *shape)}[len(shape)]
    for data in (
        own(tmp_path, x=x, y=y),
        own(tmp_path, x_train=x[:20], y_train=y[:20, None], x_test=x[20:], y_test=y[20:]),
    ):
        assert data.x_train.shape == (20, *full) and data.x_test.shape == (5, *full)
        assert np.array_equal(data.y_train, y[:20]) and np.array_equal(data.y_test, y[20:])
        seen = x[:20].reshape(-1, *full) / (255 if kind == "bytes" else 1) - 0.5 * (kind == "bytes")
        np.testing.assert_allclose(data.normalised(data.x_train), seen, rtol=1e-6, atol=1e-6)
    path = str(next(tmp_path.glob("*.npz")))
    assert instead_of("mnist", path) == path
    assert (source(path).image_shape, source(path).num_classes) == (full, 3)


X, Y = np.linspace(-1.0, 1.0, 20 * 6).reshape(20, 2, 3), np.arange(20) % 4
BYTES = (X * 100 + 100).astype(np.uint8)
WRONG = {
    "no y": ({"x": X}, "with the arrays x_train, y_train, x_test, y_test or x, y, got .*no array 'x_train'"),
    "no x_test": ({"x_train": X, "y_train": Y, "y_test": Y}, "no array 'x_test'"),
    "labels from 1": ({"x": X, "y": Y - 1}, "expected labels 0 to 2, got -1 to 2"),
    "labels of the test": (
        dict(zip(KEYS, (X, Y, X, Y + 1), strict=True)),
        "expected labels 0 to 3, got 1 to 4",
    ),
    "huge labels": ({"x": X, "y": Y * 10**9}, "expected labels 0, 1, .* up to 3000000000 for 16 images"),
    "huge unsigned labels": (
        {"x": X, "y": Y.astype(np.uint64) + np.uint64(2**63)},
        "expected labels 0, 1, .*; renumber",
    ),
    "one class": ({"x": X, "y": 0 * Y}, "2 or more classes"),
    "float labels": ({"x": X, "y": Y / 2}, "as many integer labels, got .* in float64"),
    "boolean labels": ({"x": X, "y": Y > 1}, "as many integer labels, got .* in bool"),
    "one-hot labels": ({"x": X, "y": np.eye(4, dtype=int)[Y]}, r"as many integer labels, got \(16, 4\)"),
    "too few labels": ({"x": X, "y": Y[:18]}, "as many integer labels"),
    "too many labels": ({"x": X, "y": np.append(Y, 0)}, "as many integer labels"),
    "one label": ({"x": X, "y": np.array(3)}, "as many integer labels"),
    "one number": ({"x": np.array(1.0), "y": Y}, r"expected images \[n, h, w, c\]"),
    "vectors": ({"x": X[:, 0, 0], "y": Y}, r"got shape \(16,\)"),
    "no images": ({"x": X[:0], "y": Y[:0]}, r"got shape \(0, 2, 3\)"),
    "three images": ({"x": X[:3], "y": Y[:3]}, r"expected images \(0, 2, 3\) with as many"),
    "other shape": (dict(zip(KEYS, (X, Y, X[:, :1], Y), strict=True)), r"expected images \[n, 2, 3, 1\]"),
    "nan": ({"x": np.where(X > 0.9, np.nan, X), "y": Y}, "expected finite images"),
    "infinite in float32": ({"x": X * 1e300, "y": Y}, "expected finite images"),
    "integers": ({"x": BYTES.astype(int), "y": Y}, "of bytes or all of floats, got int64 and int64"),
    "text": ({"x": X.astype(str), "y": Y}, "convert them"),
    "mixed": (dict(zip(KEYS, (BYTES, Y, X, Y), strict=True)), "got uint8 and float64; convert them"),
    "objects": ({"x": np.array([{}] * 20, object), "y": Y}, "Object arrays cannot be loaded"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_users_own_arrays_that_are_wrong_are_refused_with_one_line(kind, tmp_path):
    arrays, message = WRONG[kind]
    with pytest.raises(L2OError, match=message) as error:
        own(tmp_path, **arrays)
    text = str(error.value)
    assert "\n" not in text and text.startswith(str(tmp_path)) and text.count(";") >= 1


@pytest.mark.parametrize("dtype", [">f4", ">f8", "f2", np.longdouble])
def test_floats_of_any_width_and_order_are_read(dtype, tmp_path):
    data = own(tmp_path, x=X.astype(dtype), y=Y.astype(">i4"))
    assert data.x_train.dtype == np.float32 and data.y_train.dtype == np.int64
    np.testing.assert_allclose(data.x_train[..., 0], X[:16], atol=1e-3)


def test_an_array_that_claims_to_be_larger_than_the_memory_is_refused(tmp_path):
    path = tmp_path / "claims.npz"
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**15},), }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
        archive.writestr("y.npy", b"")
    with pytest.raises(L2OError, match=r"claims\.npz: .*copy the file again"):
        source(str(path))


def broken_npz(kind: str, path: Path) -> None:
    """Damage a whole archive on the disk."""
    raw, middle = path.read_bytes(), path.stat().st_size // 2
    if kind in ("empty", "text", "cut"):
        path.write_bytes({"empty": b"", "text": b"<html>", "cut": raw[:middle]}[kind])
    elif kind == "bit":
        path.write_bytes(raw[:middle] + bytes([raw[middle] ^ 64]) + raw[middle + 1 :])
    elif kind == "method":
        place = raw.index(b"PK\x01\x02") + 10  # in the first entry of the central directory
        path.write_bytes(raw[:place] + b"\x63" + raw[place + 1 :])
    elif kind == "a single array":
        with path.open("wb") as file:
            np.save(file, X)
    elif kind == "header":
        path.write_bytes(raw.replace(b"'descr'", b"('desc(", 1))
    elif kind == "deflate":
        np.savez_compressed(path, **dict(zip(KEYS, (np.tile(BYTES, (50, 1, 1)), Y, BYTES, Y), strict=True)))
        raw = path.read_bytes()
        path.write_bytes(raw[:60] + bytes(16) + b"\xff" * 200 + raw[276:])


@pytest.mark.parametrize(
    "kind", ["text", "bit", "empty", "cut", "a single array", "deflate", "method", "header", "missing"]
)
def test_a_broken_npz_is_named(kind, tmp_path):
    path = tmp_path / "whole.npz"
    np.savez(path, x=np.tile(X, (50, 1, 1)), y=np.tile(Y, 50))
    assert len(source(str(path)).read("").y_train) == 800
    broken = tmp_path / "broken.npz"
    broken.write_bytes(path.read_bytes())
    broken_npz(kind, broken) if kind != "missing" else broken.unlink()
    with pytest.raises(L2OError, match=r"broken\.npz: expected an npz") as error:
        source(str(broken))
    assert "\n" not in str(error.value)
