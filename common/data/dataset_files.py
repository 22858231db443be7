"""Readers of the files data sets come in: Keras npz, IDX (MNIST), records (CIFAR's binary version).

They may come from anywhere: regular files only, and none that unpacks to far more than it is.
"""

import gzip
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import L2OError
from common.files import open_regular

KEYS = ("x_train", "y_train", "x_test", "y_test")
_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_IDX_MAGICS = (2051, 2049) * 2
_RECORDS = {
    "cifar10": (tuple(f"data_batch_{k}.bin" for k in range(1, 6)), ("test_batch.bin",)),
    "cifar100": (("train.bin",), ("test.bin",)),
}
_LARGEST = 8 << 30  # bytes that one file may hold; the largest published one holds 184 MB
_FREE, _RATIO = 64 << 20, 100  # bytes that any file may unpack to, and beyond them how many times its size
_LABELS = {"cifar10": 1, "cifar100": 2}  # label bytes of a record; the last one counts (fine labels)
# Where the archives the data sets are published in put their files.
_SUBFOLDERS = {
    "mnist": ("raw", "mnist", "MNIST", "MNIST/raw"),
    "fashion-mnist": ("raw", "fashion-mnist", "fashion", "FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("cifar10", "cifar-10-batches-bin"),
    "cifar100": ("cifar100", "cifar-100-binary"),
}

Arrays = tuple[np.ndarray, ...]
HEADER_ERRORS = (
    ValueError, TypeError, LookupError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError
)  # fmt: skip


class MissingDataError(L2OError):
    """No file of a data set is there; the message says where to put which."""


def read(name: str, data_dir: str) -> tuple[Path, Arrays]:
    """The folder a data set was found in, and its arrays in the order of ``KEYS``."""
    given = data_dir or os.environ.get("L2O_DATA", "")
    folders = [Path(given) / sub for sub in ("", *_SUBFOLDERS[name])] if given else []
    for folder in folders:
        if (folder / f"{name}.npz").is_file():
            return folder, read_npz(folder / f"{name}.npz", KEYS)
        # All IDX sets use the same four names: at the top the folder's own name tells which one they are.
        top = folder in (folders[0], folders[0] / "raw")
        ours = not top or _says_fashion(folder) == (name == "fashion-mnist")
        if "mnist" in name and ours and _has(folder, _IDX):
            parts = zip(_IDX, _IDX_MAGICS, strict=True)
            return folder, tuple(_read_idx(_found(folder, file), magic) for file, magic in parts)
        if name in _RECORDS and _has(folder, sum(_RECORDS[name], ())):
            labels = _LABELS[name]
            train, test = (
                [_read_records(_found(folder, f), labels) for f in part] for part in _RECORDS[name]
            )
            return folder, tuple(
                np.concatenate([pair[k] for pair in part]) for part in (train, test) for k in (0, 1)
            )
    if name in _RECORDS and (python := _of_python(name, given)):
        raise L2OError(
            f"{python}: CIFAR's version for Python is a pickle, which nothing here opens; take its binary "
            f"version ({name.replace('cifar', 'cifar-')}-binary.tar.gz) or {name}.npz (Keras)"
        )
    looked = ", ".join(map(str, folders)) or "nowhere: no folder was given"
    first = f"{_IDX[0]}[.gz]" if "mnist" in name else _RECORDS[name][0][0]
    raise MissingDataError(
        f"data set {name!r} not found (looked in {looked}); put {name}.npz (Keras) or {first} and the files "
        "that belong to it into a folder and name it with --data-dir or $L2O_DATA"
    )


def _has(folder: Path, names: Sequence[str]) -> bool:
    return all(_found(folder, name) for name in names)


def _found(folder: Path, name: str) -> Path | None:
    """A file under a name people know it by: packed, with a dot for a dash, in a folder of its own name."""
    for spelled in (name, name.replace("-idx", ".idx")):
        for path in (folder / spelled, folder / f"{spelled}.gz", folder / spelled / spelled):
            if path.is_file():
                return path
    return None


_OF_PYTHON = {"cifar10": "cifar-10-batches-py/data_batch_1", "cifar100": "cifar-100-python/train"}


def _of_python(name: str, given: str) -> Path | None:
    """The file of CIFAR's version for Python that is there in place of the binary one."""
    file = Path(given) / _OF_PYTHON[name]
    return next((path for path in (file, Path(given) / file.name) if given and path.is_file()), None)


def _says_fashion(folder: Path) -> bool:
    place = folder.resolve()
    return "fashion" in (place.parent if place.name == "raw" else place).name.lower()


def _bytes(path: Path) -> bytes:
    with open_regular(path) as file:
        packed = file.read(2) == b"\x1f\x8b"  # whatever the name says: browsers unpack, or drop the ending
        file.seek(0)
        limit = _unpacked(file)
        raw = (gzip.GzipFile(fileobj=file) if packed or path.suffix == ".gz" else file).read(limit + 1)
    if len(raw) > limit:
        raise ValueError(f"more than {limit} bytes")
    return raw


def _unpacked(file: Any) -> int:
    """Bytes that an open file may unpack to."""
    return min(_LARGEST, max(_FREE, _RATIO * os.fstat(file.fileno()).st_size))


def _read_idx(path: Path, magic: int) -> np.ndarray:
    try:
        raw = _bytes(path)
        rank = magic & 0xFF
        header = struct.unpack_from(f">{rank + 1}I", raw)
        shape = header[1:]
        if header[0] != magic or len(raw) != 4 * (rank + 1) + math.prod(shape):
            raise ValueError(f"magic {header[0]}, shape {shape}, {len(raw)} bytes")
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise L2OError(
            f"{path}: expected an IDX file with magic number {magic}, got a broken one ({error}); "
            "copy the file again"
        ) from None
    return np.frombuffer(raw, np.uint8, offset=4 * (rank + 1)).reshape(shape)


def _read_records(path: Path, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 32, 32, 3] and labels [n] from records of label bytes and a 3 x 32 x 32 image."""
    size = labels + 3072
    try:
        raw = _bytes(path)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise L2OError(f"{path}: expected CIFAR's binary version, got {error}; copy the file again") from None
    if not raw or len(raw) % size:
        raise L2OError(
            f"{path}: expected records of {size} bytes (CIFAR's binary version), got {len(raw)} bytes; "
            "copy the file again"
        )
    rows = np.frombuffer(raw, np.uint8).reshape(-1, size)
    images = rows[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, labels - 1]


def read_npz(path: Path, *choices: Sequence[str]) -> Arrays:
    """The arrays of the first of ``choices`` (tuples of names) that are all in the archive."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            for keys in choices:
                if all(key in members for key in keys):
                    wanted, limit = [members[key] for key in keys], _unpacked(file)
                    if sum(info.file_size for info in wanted) > limit:
                        raise ValueError(f"more than {limit} bytes")
                    return tuple(np.atleast_1d(_member(archive, info)) for info in wanted)
            missing = [key for key in choices[0] if key not in members]
            raise ValueError(f"no array {missing[0]!r}")
    # All that NumPy and zipfile raise on a damaged archive.
    except (
        OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error, OverflowError,
        *HEADER_ERRORS,
    ) as error:  # fmt: skip
        if isinstance(error, L2OError):
            raise
        wanted = " or ".join(", ".join(keys) for keys in choices)
        raise L2OError(
            f"{path}: expected an npz (Keras) with the arrays {wanted}, got a broken or other file "
            f"({type(error).__name__}: {error}); copy the file again"
        ) from None


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array; what its header declares is known to be there before it is allocated."""
    with archive.open(info) as stream:
        shape, dtype = npy_header(stream)
        declared = math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and declared != info.file_size - stream.tell():
            raise ValueError(f"{info.filename}: {shape} of {dtype} in {info.file_size} bytes")
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the ``.npy`` file at its beginning; of a broken one, one of ``HEADER_ERRORS``."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
    return shape, dtype


def image_shape(images: np.ndarray, where: str) -> tuple[int, int, int]:
    """[h, w, c] of images [n, h, w, c], [n, h, w] or [n, features]."""
    if images.ndim not in (2, 3, 4) or 0 in images.shape:
        raise L2OError(
            f"{where}: expected images [n, h, w, c], [n, h, w] or [n, features], got shape {images.shape}; "
            "reshape them"
        )
    size = images.shape[1:]
    return {1: (1, 1, *size), 2: (*size, 1), 3: size}[len(size)]


def checked(x: np.ndarray, y: np.ndarray, shape: tuple[int, ...], classes: int, where: str) -> Arrays:
    """Images [n, *shape] (floats as float32) and labels [n] int64; a single channel's axis may be absent."""
    y = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if x.shape[1:] != shape and x.shape[1:] != (shape[:2] if shape[2] == 1 else shape):
        flat = x.ndim == 2 and shape == (1, 1, x.shape[1])
        if not flat:
            raise L2OError(
                f"{where}: expected images [n, {', '.join(map(str, shape))}] and labels [n], got {x.shape} "
                f"and {y.shape}; check the file"
            )
    if y.shape != x.shape[:1] or not y.size or y.dtype.kind not in "iu":
        raise L2OError(
            f"{where}: expected images {x.shape} with as many integer labels, got {y.shape} in {y.dtype}; "
            "check the file"
        )
    if not 0 <= y.min() <= y.max() < classes:
        raise L2OError(
            f"{where}: expected labels 0 to {classes - 1}, got {y.min()} to {y.max()}; check the file"
        )
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise L2OError(f"{where}: expected finite images, got nan or infinity; clean them first")
    return x.reshape(-1, *shape), y.astype(np.int64)
