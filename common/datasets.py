"""Data sets read from local files; nothing is ever downloaded.

``digits`` (1,797 images of 8x8, from scikit-learn's own package) is embedded and the default.
``mnist`` is read from ``--data-dir`` or ``$L2O_DATA``, as Keras' ``mnist.npz`` or as the four IDX
files, plain or gzipped. Half A / half B of the training images are fixed by a seed of their own.
"""

import dataclasses
import functools
import gzip
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.errors import L2OError
from common.registry import Registry
from common.rng import rng

_IDX_IMAGES, _IDX_LABELS = 2051, 2049
_MNIST_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images [n, h, w, c] float32, labels [n] int64, for training and test."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """``meta_train`` (half A of the training images), ``evaluation`` (half B) or ``test``."""
        if name == "test":
            return self.x_test, self.y_test
        return self._halves[name]

    @functools.cached_property
    def _halves(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        order = rng(0, "halves").permutation(len(self.y_train))
        middle = len(order) // 2
        return {
            "meta_train": (self.x_train[order[:middle]], self.y_train[order[:middle]]),
            "evaluation": (self.x_train[order[middle:]], self.y_train[order[middle:]]),
        }


@dataclasses.dataclass(frozen=True)
class Source:
    """How one data set is read: its image shape, number of classes and reader."""

    image_shape: tuple[int, int, int]
    num_classes: int
    read: Callable[[str], Dataset]


def _digits(data_dir: str) -> Dataset:
    from sklearn.datasets import load_digits

    del data_dir  # embedded
    images, labels = load_digits(return_X_y=True)
    order = rng(0, "digits").permutation(len(labels))
    x = (images[order] / 16.0 - 0.5).astype(np.float32).reshape(-1, 8, 8, 1)
    y = labels[order].astype(np.int64)
    return Dataset(x[:1500], y[:1500], x[1500:], y[1500:])


def _find(names: tuple[str, ...], data_dir: str) -> Path | None:
    """The first folder that holds all ``names``, each plain or with ``.gz``."""
    for folder in _folders(data_dir):
        if all((folder / n).is_file() or (folder / f"{n}.gz").is_file() for n in names):
            return folder
    return None


def _folders(data_dir: str) -> list[Path]:
    given = [data_dir] if data_dir else [os.environ["L2O_DATA"]] if os.environ.get("L2O_DATA") else []
    return [Path(folder) / sub for folder in given for sub in (".", "mnist", "MNIST/raw")]


def _read_idx(path: Path, magic: int) -> np.ndarray:
    path = path if path.is_file() else path.with_name(path.name + ".gz")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rank = magic & 0xFF
        header = struct.unpack_from(f">{rank + 1}I", raw)
        shape = header[1:]
        if header[0] != magic or len(raw) != 4 * (rank + 1) + int(np.prod(shape)):
            raise ValueError(f"magic {header[0]}, shape {shape}, {len(raw)} bytes")
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise L2OError(
            f"{path}: expected an IDX file with magic number {magic}, got a broken one ({error}); "
            "copy the file again"
        ) from None
    return np.frombuffer(raw, np.uint8, offset=4 * (rank + 1)).reshape(shape)


def _read_npz(path: Path) -> tuple[np.ndarray, ...]:
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            missing = [key for key in keys if key not in archive]
            if missing:
                raise ValueError(f"no array {missing[0]!r}")
            return tuple(archive[key] for key in keys)
    # All that NumPy and zipfile raise on a damaged archive.
    except (
        OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
        tokenize.TokenError,
    ) as error:  # fmt: skip
        raise L2OError(
            f"{path}: expected a Keras npz with the arrays {', '.join(keys)}, got a broken or other file "
            f"({type(error).__name__}: {error}); copy the file again"
        ) from None


def _mnist(data_dir: str) -> Dataset:
    if folder := _find(("mnist.npz",), data_dir):
        arrays = _read_npz(folder / "mnist.npz")
    elif folder := _find(_MNIST_IDX, data_dir):
        magics = (_IDX_IMAGES, _IDX_LABELS) * 2
        arrays = tuple(
            _read_idx(folder / name, magic) for name, magic in zip(_MNIST_IDX, magics, strict=True)
        )
    else:
        looked = ", ".join(map(str, _folders(data_dir))) or "nowhere: no folder was given"
        raise L2OError(
            f"data set 'mnist' not found (looked in {looked}); put mnist.npz (Keras) or the four "
            f"files {_MNIST_IDX[0]}[.gz] ... into a folder and name it with --data-dir or $L2O_DATA"
        )
    x_train, y_train, x_test, y_test = arrays
    for x, y in ((x_train, y_train), (x_test, y_test)):
        if x.shape[1:] != (28, 28) or y.shape != x.shape[:1]:
            raise L2OError(
                f"data set 'mnist' in {folder}: expected images [n, 28, 28] and labels [n], got "
                f"{x.shape} and {y.shape}; use the original files"
            )
        if y.size and not 0 <= y.min() <= y.max() <= 9:
            raise L2OError(
                f"data set 'mnist' in {folder}: expected labels 0 to 9, got {y.min()} to {y.max()}; "
                "use the original files"
            )
    return Dataset(
        *(
            array
            for x, y in ((x_train, y_train), (x_test, y_test))
            for array in (
                (x.astype(np.float32) / 255.0 - 0.5)[..., None],
                y.astype(np.int64),
            )
        )
    )


DATASETS: Registry[Source] = Registry(
    "data set",
    {
        "digits": Source((8, 8, 1), 10, _digits),
        "mnist": Source((28, 28, 1), 10, _mnist),
    },
)


@functools.lru_cache(maxsize=4)
def load(name: str, data_dir: str = "") -> Dataset:
    """The data set called ``name``; missing or broken files raise ``L2OError`` with the remedy."""
    return DATASETS[name].read(data_dir)
