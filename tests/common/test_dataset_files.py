"""The files data sets come in: where they are found, what is read from them, and broken ones."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.data import dataset_files as files
from common.data import datasets
from common.errors import L2OError

IDX_NAMES = files._IDX
KEYS = files.KEYS


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    """Neither data sets of another test nor a folder of the environment."""
    monkeypatch.delenv("L2O_DATA", raising=False)
    datasets.load.cache_clear()
    yield
    datasets.load.cache_clear()


def tiny_mnist(seed: int = 0) -> tuple[np.ndarray, ...]:
    """60 training and 20 test images and labels, bytes, all different."""
    images = np.random.default_rng(seed).integers(0, 256, size=(80, 28, 28), dtype=np.uint8)
    labels = np.arange(80, dtype=np.uint8) % 10
    return images[:60], labels[:60], images[60:], labels[60:]


def write(folder: Path, name: str, raw: bytes, zipped: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(raw) if zipped else raw)


def change(path: Path, damage: Callable[[bytes], bytes]) -> bytes:
    zipped, raw = path.suffix == ".gz", path.read_bytes()
    raw = damage(gzip.decompress(raw) if zipped else raw)
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    return raw


def write_idx(folder: Path, zipped: bool = False, seed: int = 0) -> tuple[np.ndarray, ...]:
    arrays = tiny_mnist(seed)
    for name, array in zip(IDX_NAMES, arrays, strict=True):
        head = struct.pack(f">{array.ndim + 1}I", 2048 + array.ndim, *array.shape)
        write(folder, name, head + array.tobytes(), zipped)
    return arrays


def write_npz(folder: Path, name: str = "mnist") -> tuple[np.ndarray, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = tiny_mnist()
    np.savez(folder / f"{name}.npz", **dict(zip(KEYS, arrays, strict=True)))
    return arrays


def record(pixels: dict[tuple[int, int], tuple[int, int, int]], *labels: int) -> bytes:
    """One record of the binary version as its description has it: label bytes, then the red, the green and
    the blue plane, each row by row."""
    planes = np.zeros((3, 1024), np.uint8)
    for (row, column), colour in pixels.items():
        planes[:, 32 * row + column] = colour
    return bytes(labels) + planes.tobytes()


def write_cifar(folder: Path, name: str, zipped: bool = False) -> None:
    """Two records a file; the first byte of two labels is the coarse one."""
    for number, file in enumerate(sum(files._RECORDS[name], ())):
        more = () if name == "cifar10" else (19,)
        raw = record({(3, 7): (255, 51, 102)}, *more, number) + record({(31, 0): (1, 2, 3)}, *more, 9)
        write(folder, file, raw, zipped)


@pytest.mark.parametrize(
    ("name", "place"),
    [(name, place) for name in ("mnist", "fashion-mnist") for place in (".", *files._SUBFOLDERS[name])],
)
@pytest.mark.parametrize("kind", ["npz", "idx", "idx.gz"])
def test_mnist_and_fashion_mnist_are_read_from_each_kind_of_file_in_each_place(kind, name, place, tmp_path):
    top = tmp_path / ("Fashion" if name == "fashion-mnist" and kind != "npz" else "data")
    folder = top / place
    arrays = write_npz(folder, name) if kind == "npz" else write_idx(folder, kind == "idx.gz")
    data = datasets.load(name, str(top))
    for got, raw in zip((data.x_train, data.x_test), arrays[::2], strict=True):
        assert got.dtype == np.uint8 and np.array_equal(got, raw[..., None])
        np.testing.assert_allclose(data.normalised(got)[..., 0], raw / 255 - 0.5, atol=1e-6)
    for got, raw in zip((data.y_train, data.y_test), arrays[1::2], strict=True):
        assert got.dtype == np.int64 and np.array_equal(got, raw)


def test_the_two_mnists_are_told_apart_though_their_files_have_the_same_names(tmp_path, monkeypatch):
    top, subfolder = tmp_path / "plain", tmp_path / "plain" / "fashion"
    digits, clothes = write_idx(top, seed=1), write_idx(subfolder, seed=2)
    assert np.array_equal(datasets.load("mnist", str(top)).y_train, digits[1])
    for name, arrays in (("mnist", digits), ("fashion-mnist", clothes)):
        assert np.array_equal(datasets.load(name, str(top)).x_test[..., 0], arrays[2])
    with pytest.raises(L2OError, match="'mnist' not found"):
        datasets.load("mnist", str(subfolder))
    monkeypatch.chdir(subfolder)  # the folder's name is not in the path then
    assert np.array_equal(datasets.load("fashion-mnist", ".").x_test[..., 0], clothes[2])
    with pytest.raises(L2OError, match="'mnist' not found"):
        datasets.load("mnist", ".")
    raw = tmp_path / "FashionMNIST" / "raw"
    write_idx(raw)
    assert len(datasets.load("fashion-mnist", str(raw)).y_train) == 60
    write_idx(tmp_path / "MNIST" / "raw")
    with pytest.raises(L2OError, match="'fashion-mnist' not found"):
        datasets.load("fashion-mnist", str(tmp_path / "MNIST" / "raw"))


SPELLINGS = {
    "dots": lambda name: name.replace("-idx", ".idx"),
    "a folder in a folder": lambda name: f"{name}/{name}",
    "dots in a folder": lambda name: "/".join([name.replace("-idx", ".idx")] * 2),
    "packed without the ending": lambda name: name,
    "packed, with dots": lambda name: f"{name.replace('-idx', '.idx')}.gz",
    "the folder itself": lambda name: f"raw/{name}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_mnist_is_read_as_people_have_it(spelling, tmp_path):
    arrays, given = write_idx(tmp_path / "as published"), tmp_path / "MNIST"
    for file in files._IDX:
        path = given / SPELLINGS[spelling](file)
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = (tmp_path / "as published" / file).read_bytes()
        path.write_bytes(gzip.compress(raw) if "packed" in spelling else raw)
    data = datasets.load("mnist", str(given))
    assert np.array_equal(data.x_train[..., 0], arrays[0]) and np.array_equal(data.y_test, arrays[3])


@pytest.mark.parametrize(
    ("name", "file"),
    [(name, file) for name, path in files._OF_PYTHON.items() for file in (path, path.rpartition("/")[2])],
)
def test_cifar_for_python_is_not_opened_and_the_file_to_take_is_named(name, file, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    archive = f"{name.replace('cifar', 'cifar-')}-binary.tar.gz"
    with pytest.raises(L2OError, match=f"is a pickle, which nothing here opens; take .*{archive}") as caught:
        datasets.load(name, str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "place"),
    [(name, place) for name in ("cifar10", "cifar100") for place in (".", *files._SUBFOLDERS[name])],
)
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
def test_the_binary_cifar_has_its_pixels_and_labels_where_they_belong(name, place, zipped, tmp_path):
    write_cifar(tmp_path / place, name, zipped)
    data, parts = datasets.load(name, str(tmp_path)), len(files._RECORDS[name][0])
    assert data.x_train.shape == (2 * parts, 32, 32, 3) and data.x_test.shape == (2, 32, 32, 3)
    assert data.y_train.tolist() == [label for number in range(parts) for label in (number, 9)]
    assert data.y_test.tolist() == [parts, 9] and data.y_test.dtype == np.int64
    for images in (data.x_train[::2], data.x_test[::2]):
        assert images[:, 3, 7].tolist() == [[255, 51, 102]] * len(images)
        assert images.sum() == len(images) * (255 + 51 + 102)
    assert data.x_train[1, 31, 0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(data.normalised(data.x_test)[0, 3, 7], [1.0, -0.6, -0.2], atol=1e-6)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_read_from_a_keras_npz_whose_labels_are_columns(name, classes, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(classes - 8, classes, dtype=np.uint8)[:, None]
    parts = dict(zip(KEYS, (images, labels, images[:3], labels[:3]), strict=True))
    np.savez(tmp_path / f"{name}.npz", **parts)
    data = datasets.load(name, str(tmp_path))
    assert np.array_equal(data.x_train, images) and data.y_test.tolist() == labels[:3, 0].tolist()
    np.testing.assert_allclose(data.normalised(images), (images / 255 - 0.5) / 0.5, atol=1e-6)
    shape = r"expected images \[n, 32, 32, 3\]"
    for key, wrong, message in (
        ("x_train", images[:, :31], shape),
        ("x_test", images[:3, ..., :1], shape),
        ("x_train", images / np.float32(255), "expected images of bytes, got floats"),
        ("y_train", labels + 1, f"expected labels 0 to {classes - 1}, got {classes - 7} to {classes}"),
        ("y_train", np.eye(8, classes), r"as many integer labels, got \(8, "),
    ):
        np.savez(tmp_path / f"{name}.npz", **(parts | {key: wrong}))
        datasets.load.cache_clear()
        with pytest.raises(L2OError, match=message):
            datasets.load(name, str(tmp_path))


def test_the_environment_names_the_folder_unless_one_is_given(tmp_path, monkeypatch):
    write_npz(tmp_path)
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    assert len(datasets.load("mnist").y_train) == 60
    with pytest.raises(L2OError, match="not found"):
        datasets.load("mnist", str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
@pytest.mark.parametrize("given", [True, False])
def test_missing_files_are_said_with_the_places_looked_in_and_the_remedy(name, given, tmp_path):
    with pytest.raises(L2OError) as error:
        datasets.load(name, str(tmp_path) if given else "")
    text = str(error.value)
    places = [str(tmp_path / place) for place in ("", *files._SUBFOLDERS[name])]
    assert all(place in text for place in places) if given else "no folder was given" in text
    first = IDX_NAMES[0] if "mnist" in name else files._RECORDS[name][0][0]
    assert all(part in text for part in (f"{name}.npz", first, "--data-dir", "L2O_DATA")) and "\n" not in text


def test_a_set_that_lacks_a_file_is_not_found(tmp_path):
    write_idx(tmp_path)
    write_cifar(tmp_path, "cifar10")
    for name in (IDX_NAMES[3], "data_batch_4.bin"):
        (tmp_path / name).unlink()
    for name in ("mnist", "cifar10"):
        with pytest.raises(L2OError, match="not found"):
            datasets.load(name, str(tmp_path))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut": lambda raw: raw[:-1],
    "longer": lambda raw: raw + b"\0",
    "text": lambda raw: b"<html>Not found</html>",
}
DAMAGED_HEADS: dict[str, Callable[[bytes], bytes]] = {
    "cut header": lambda raw: raw[:6],
    "magic": lambda raw: b"\0\0\x08\x07" + raw[4:],
    "shape": lambda raw: raw[:4] + b"\xff\xff\xff\xff" * 3 + raw[16:],
    "wrapping": lambda raw: raw[:4] + b"\x80\0\0\0" * 3,  # 2^93 bytes are 0 in 64 bits
}
plain_and_gz = pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])


@plain_and_gz
@pytest.mark.parametrize("kind", DAMAGE | DAMAGED_HEADS)
@pytest.mark.parametrize("file", IDX_NAMES[:2])
def test_a_broken_idx_file_is_named(file, kind, zipped, tmp_path):
    write_idx(tmp_path, zipped)
    change(tmp_path / (file + ".gz" * zipped), (DAMAGE | DAMAGED_HEADS)[kind])
    with pytest.raises(L2OError, match=f"{file}.*expected an IDX file.*copy the file again"):
        datasets.load("mnist", str(tmp_path))


@plain_and_gz
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize(("name", "size"), [("cifar10", 3073), ("cifar100", 3074)])
def test_broken_records_are_named(name, size, kind, zipped, tmp_path):
    write_cifar(tmp_path, name, zipped)
    file = files._RECORDS[name][1][0]
    raw = change(tmp_path / (file + ".gz" * zipped), DAMAGE[kind])
    message = f"{file}.*expected records of {size} bytes.*got {len(raw)} bytes; copy the file again"
    with pytest.raises(L2OError, match=message):
        datasets.load(name, str(tmp_path))


@pytest.mark.parametrize(("name", "at"), [("cifar10", 0), ("cifar100", 1)])
def test_a_label_that_is_no_class_is_refused(name, at, tmp_path):
    write_cifar(tmp_path, name)
    path = tmp_path / files._RECORDS[name][1][0]
    change(path, lambda raw: raw[:at] + bytes([200]) + raw[at + 1 :])
    with pytest.raises(L2OError, match=f"'{name}'.*expected labels 0 to .*got 9 to 200"):
        datasets.load(name, str(tmp_path))


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@plain_and_gz
def test_a_file_far_too_long_is_refused_before_it_fills_the_memory(name, zipped, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LARGEST", 5000)
    write_idx(tmp_path, zipped)
    write_cifar(tmp_path, "cifar10", zipped)
    with pytest.raises(L2OError, match="more than 5000 bytes"):
        datasets.load(name, str(tmp_path))


GZIPS: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda raw: raw[: len(raw) // 2],
    "not gzip": lambda raw: b"GIF89a" + raw,
    "bit": lambda raw: raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 64]) + raw[len(raw) // 2 + 1 :],
}


@pytest.mark.parametrize(("name", "file"), [("mnist", IDX_NAMES[0]), ("cifar10", "data_batch_1.bin")])
@pytest.mark.parametrize("kind", GZIPS)
def test_a_broken_gzip_file_is_named(kind, name, file, tmp_path):
    write_idx(tmp_path, zipped=True)
    write_cifar(tmp_path, "cifar10", zipped=True)
    path = tmp_path / f"{file}.gz"
    path.write_bytes(GZIPS[kind](path.read_bytes()))
    with pytest.raises(L2OError, match=f"{file}.*copy the file again"):
        datasets.load(name, str(tmp_path))


def test_a_set_that_cannot_be_opened_is_named(tmp_path):
    write_npz(tmp_path)
    (tmp_path / "mnist.npz").write_bytes(b"")
    with pytest.raises(L2OError, match=r"mnist.npz: expected an npz \(Keras\) with the arrays x_train, "):
        datasets.load("mnist", str(tmp_path))


def test_the_real_mnist_is_as_the_table_says(data_dir):
    data = datasets.load("mnist", str(data_dir))
    assert data.x_train.shape == (60000, 28, 28, 1) and data.x_test.shape == (10000, 28, 28, 1)
    assert (data.x_train.min(), data.x_train.max()) == (0, 255)
    assert np.bincount(data.y_train).min() > 5000 and len(data.split("meta_train")[1]) == 30000
