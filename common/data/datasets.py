"""Data sets read from local files; nothing is ever downloaded.

``digits`` (1,797 images of 8x8, from scikit-learn's own package) is embedded and the default, and a few more
are made of it or drawn (``generated``). The others are looked for in ``--data-dir`` or ``$L2O_DATA``: MNIST
and Fashion-MNIST as Keras npz or the four IDX files (plain or gzipped), CIFAR as Keras npz or the files of
the binary version. ``synthetic`` needs no file, and any ``.npz`` of the user's own may stand for a name.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from common.data import dataset_files as files
from common.data import generated
from common.errors import L2OError
from common.registry import Registry
from common.rng import rng

Split = Literal["meta_train", "evaluation", "train", "validation", "test", "test_a"]
_PIXELS = 1 << 20  # at once
_LARGEST = 100_000  # numbers of a synthetic image; there are 2,500
_SYNTHETIC = re.compile(r"synthetic:(\d{1,4})x(\d{1,4})x(\d{1,3}):(\d{1,4})")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images [n, h, w, c] as stored (bytes, mostly), labels [n] int64, for training and test.

    Attributes:
        divisor, offset, spread: images are used as (x / divisor - offset) / spread (MATH.md section 6); the
            last two a number each, or one for every channel.
        copies: so many training images in a row are variants of one, and fall to the same split.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    divisor: float = 1.0
    offset: float | np.ndarray = 0.0
    spread: float | np.ndarray = 1.0
    copies: int = 1

    def normalised(self, images: np.ndarray) -> np.ndarray:
        """Stored images as the float32 a network sees."""
        one = np.float32
        offset, spread = (np.asarray(part, one) for part in (self.offset, self.spread))
        return (images.astype(one) / one(self.divisor) - offset) / spread

    @functools.cached_property
    def by_channels(self) -> "Dataset":
        """The same with mean 0 and deviation 1 in every channel of the training images."""
        levels = self.x_train.reshape(-1, self.x_train.shape[-1])
        sums = np.zeros((2, levels.shape[1]))
        for low in range(0, len(levels), _PIXELS):  # floats of all of them would take eight times the bytes
            part = levels[low : low + _PIXELS].astype(np.float64) / self.divisor
            sums += part.sum(0), np.square(part).sum(0)
        mean, square = sums / len(levels)
        spread = np.sqrt(np.maximum(square - mean**2, 0.0))
        return dataclasses.replace(self, offset=mean, spread=np.where(spread > 0.0, spread, 1.0))

    def split(self, name: Split, class_halves: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Images as stored, and labels, of one part of the data.

        ``meta_train`` and ``evaluation`` are half A and half B of the training images, drawn once for all;
        ``validation`` is another tenth of them and ``train`` the rest; ``test`` the test images. With
        ``class_halves`` the two halves are the first and the second half of the classes instead, labels from
        0 in both; then ``train``, ``validation`` and ``test`` hold the second half of the classes, ``test_a``
        the first.
        """
        key = (name, class_halves)
        if key not in self._parts:
            self._parts[key] = self._part(name, class_halves)
        return self._parts[key]

    @functools.cached_property
    def _parts(self) -> dict[tuple[str, bool], tuple[np.ndarray, np.ndarray]]:
        return {}

    def _part(self, name: Split, class_halves: bool) -> tuple[np.ndarray, np.ndarray]:
        test = name in ("test", "test_a")
        x, y = (self.x_test, self.y_test) if test else (self.x_train, self.y_train)
        count = len(y) if test else len(y) // self.copies
        if name in ("train", "validation"):
            order = rng(0, "validation").permutation(count)
            held = count // 10
            rows = order[:held] if name == "validation" else order[held:]
        elif test or class_halves:
            rows = np.arange(count)
        else:
            order = rng(0, "halves").permutation(count)
            rows = order[: count // 2] if name == "meta_train" else order[count // 2 :]
        if not test and self.copies > 1:
            rows = (rows[:, None] * self.copies + np.arange(self.copies)).ravel()
        low = 0
        if class_halves:
            classes = (int(self.y_train.max()) + 1) // 2
            low = 0 if name in ("meta_train", "test_a") else classes
            rows = rows[(y[rows] >= low) & (y[rows] < low + classes)]
        if not len(rows):
            raise L2OError(f"split {name}: expected images, got none; take more data or another split")
        return (x, y) if len(rows) == len(y) and test else (x[rows], y[rows] - low)


@dataclasses.dataclass(frozen=True)
class Source:
    """How one data set is read: its image shape, number of classes and reader."""

    image_shape: tuple[int, int, int]
    num_classes: int
    read: Callable[[str], Dataset]


def _generated(
    make: Callable[[], generated.Arrays],
    shape: tuple[int, int, int],
    classes: int,
    *scaling: float,
    copies: int = 1,
) -> Source:
    def read(data_dir: str) -> Dataset:
        del data_dir  # there is no file
        return Dataset(*make(), *scaling, copies=copies)

    return Source(shape, classes, read)


def _stored(name: str, shape: tuple[int, int, int], classes: int, spread: float) -> Source:
    def read(data_dir: str) -> Dataset:
        folder, arrays = files.read(name, data_dir)
        where = f"data set {name!r} in {folder}"
        if any(images.dtype.kind == "f" for images in arrays[::2]):
            raise L2OError(f"{where}: expected images of bytes, got floats; check the file")
        checked = (files.checked(*pair, shape, classes, where) for pair in (arrays[:2], arrays[2:]))
        return Dataset(*(array for pair in checked for array in pair), 255.0, 0.5, spread)

    return Source(shape, classes, read)


DATASETS: Registry[Source] = Registry(
    "data set",
    {
        "digits": _generated(generated.digits, (8, 8, 1), 10, 16.0, 0.5),
        "digits-shifted": _generated(
            generated.shifted_digits, (8, 8, 1), 10, 16.0, 0.5, copies=generated.SHIFTS
        ),
        "digits-odd": _generated(generated.odd_digits, (8, 8, 1), 2, 16.0, 0.5),
        "recall": _generated(
            generated.recall, (generated.RECALL_LENGTH, 1, generated.RECALL_SYMBOLS), generated.RECALL_SYMBOLS
        ),
        "text": _generated(
            generated.text, (generated.TEXT_CONTEXT, 1, generated.TEXT_SYMBOLS), generated.TEXT_SYMBOLS
        ),
        "mnist": _stored("mnist", (28, 28, 1), 10, 1.0),
        "fashion-mnist": _stored("fashion-mnist", (28, 28, 1), 10, 1.0),
        "cifar10": _stored("cifar10", (32, 32, 3), 10, 0.5),
        "cifar100": _stored("cifar100", (32, 32, 3), 100, 0.5),
    },
)


def source(name: str) -> Source:
    """The data set called ``name``: a row, ``synthetic:HxWxC:CLASSES``, or the path of an ``.npz``."""
    if name.endswith(".npz"):
        whole = _own(name)
        return Source(whole.x_train.shape[1:], int(whole.y_train.max()) + 1, lambda data_dir: whole)
    if found := _SYNTHETIC.fullmatch(name):
        height, width, channels, classes = map(int, found.groups())
        shape = (height, width, channels)
        if not 0 < height * width * channels <= _LARGEST or classes < 2:
            raise L2OError(
                f"data set {name!r}: expected 2 or more classes and up to {_LARGEST} numbers an image, got "
                f"{classes} and {height * width * channels}"
            )
        return Source(shape, classes, lambda data_dir: _synthetic(shape, classes))
    try:
        return DATASETS[name]
    except L2OError as error:
        raise L2OError(f"{error}, synthetic, or an .npz file") from None


def instead_of(name: str, replacement: str) -> str:
    """The name of the data set ``replacement`` in the place of ``name``: ``synthetic`` takes its shape."""
    if replacement != "synthetic":
        source(replacement)  # an unknown one is refused here
        return replacement
    row = source(name)
    return "synthetic:{}x{}x{}:{}".format(*row.image_shape, row.num_classes)


def _synthetic(shape: tuple[int, int, int], classes: int) -> Dataset:
    """2,000 and 500 images: one normal pattern per class, and as much normal noise."""
    patterns = rng(0, "synthetic").normal(0.0, 0.25, (classes, *shape))
    parts = []
    for stream, rows in enumerate((2000, 500)):
        labels = np.arange(rows) % classes
        noise = rng(0, "synthetic_noise", stream).normal(0.0, 0.25, (rows, *shape))
        parts += [(patterns[labels] + noise).astype(np.float32), labels.astype(np.int64)]
    return Dataset(*parts)


@functools.lru_cache(maxsize=2)
def _own(path: str) -> Dataset:
    """A user's own npz: bytes are used as x / 255 - 0.5, floats as they are.

    Arrays ``x_train, y_train, x_test, y_test``, or ``x, y``, whose last fifth then is the test; images
    [n, h, w, c], [n, h, w] or [n, features]; labels integers from 0.
    """
    arrays = files.read_npz(Path(path), files.KEYS, ("x", "y"))
    if len(arrays) == 2:
        x, y = arrays
        at = len(x) - len(x) // 5
        arrays = (x[:at], y[:at], x[at:], y[at:])
    kinds = [x.dtype.name for x in arrays[::2]]
    if set(kinds) != {"uint8"} and any(x.dtype.kind != "f" for x in arrays[::2]):
        shown = " and ".join(kinds)
        raise L2OError(f"{path}: expected images all of bytes or all of floats, got {shown}; convert them")
    shape = files.image_shape(arrays[0], path)
    classes = int(arrays[1].max()) + 1 if arrays[1].size and arrays[1].dtype.kind in "iu" else 1
    if arrays[1].dtype.kind in "iu" and not 1 < classes <= max(len(arrays[0]), 2):
        raise L2OError(
            f"{path}: expected labels 0, 1, ... of 2 or more classes and no more than images, got them up to "
            f"{classes - 1} for {len(arrays[0])} images; renumber them"
        )
    pairs = [files.checked(*pair, shape, classes, path) for pair in (arrays[:2], arrays[2:])]
    scaling = (255.0, 0.5) if arrays[0].dtype == np.uint8 else ()
    return Dataset(*pairs[0], *pairs[1], *scaling)


@functools.lru_cache(maxsize=4)
def load(name: str, data_dir: str = "") -> Dataset:
    """The data set called ``name``; missing or broken files raise ``L2OError`` with the remedy."""
    return source(name).read(data_dir)
