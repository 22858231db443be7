"""HDF5 files as plain trees: written whole, atomically and reproducibly; read only after checking.

A file is built in memory (on a full disk HDF5 crashes the process) and lands through ``atomic_write``. A
file being read may come from anywhere: links out of the file, virtual and compressed bombs, exotic types
and wrong hashes are refused before an array is allocated, first in a child process (``child``), as HDF5 may
crash on it. ``read_hdf5`` is the only place that opens one.
"""

import contextlib
import hashlib
import json
import os
import resource
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from common.errors import L2OError
from common.machine import limit_memory
from common.run.kinds import HDF5, kind
from common.run.storage import ReadError, atomic_write, canonical_json, open_regular
from interchange.files import child
from interchange.files.reader import DamagedFileError, Reader, Tree, VersionError
from interchange.files.schema import SCHEMAS, without_strangers

BUDGET = 2 << 30  # bytes of arrays and strings one file may declare
CHUNK = 512 << 10
_DAMAGED = "the file was changed or damaged; record it again or restore a copy"
# What h5py raises for damaged files; found by fuzzing, there is no common base class.
_H5PY_ERRORS = (
    OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
)  # fmt: skip


def content_sha256(tree: Tree) -> str:
    """SHA-256 over sorted (path, dtype, shape, bytes, attributes), the root's ``sha256`` left out."""
    digest = hashlib.sha256()
    for path in sorted({*tree.arrays, *(name for name, values in tree.attributes.items() if values)}):
        attributes = [
            [name, type(value).__name__, value.hex() if isinstance(value, float) else value]
            for name, value in sorted(tree.attributes.get(path, {}).items())
            if path or name != "sha256"
        ]
        array = tree.arrays.get(path)
        if array is None:
            digest.update(canonical_json([path, attributes]).encode() + b"\n")
        elif array.dtype.kind == "U":
            entry = [path, attributes, "utf-8", array.shape, array.ravel().tolist()]
            digest.update(canonical_json(entry).encode() + b"\n")
        else:
            digest.update(canonical_json([path, attributes, array.dtype.str, array.shape]).encode() + b"\n")
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def write_hdf5(
    path: str | os.PathLike[str], tree: Tree, format: str, version: str, *, compress: bool = True
) -> str:
    """Write ``tree`` to ``path`` atomically and return its SHA-256.

    Equal trees give equal bytes. Arrays of 64 KiB and more are stored in chunks of about 0.5 MiB along the
    leading axes, with shuffle + lzf (unless ``compress`` is false) and fletcher32.

    Raises:
        L2OError: something in the tree that the format does not hold.
        StorageError: the file cannot be written; what was there is unchanged.
    """
    tree = Tree(
        {name: _plain_array(f"{path}: {name}", array) for name, array in tree.arrays.items()},
        {name: _plain_attributes(f"{path}: /{name}", values) for name, values in tree.attributes.items()},
    )
    root = tree.attributes.setdefault("", {})
    root.pop("sha256", None)
    root |= {"format": format, "format_version": version}
    root["sha256"] = tree.sha256 = content_sha256(tree)
    # The core driver without backing store never touches the disk; the name is for messages only.
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        for name in sorted({*tree.arrays, *tree.attributes}):
            if name in tree.arrays:
                node = _write_array(file, name, tree.arrays[name], compress)
            else:
                node = file.require_group(name) if name else file
            for key, value in sorted(tree.attributes.get(name, {}).items()):
                node.attrs[key] = value
        file.flush()
        image = file.id.get_file_image()
    atomic_write(path, image)
    child.remember(path)
    return tree.sha256


def _write_array(file: h5py.File, name: str, array: np.ndarray, compress: bool) -> h5py.Dataset:
    if array.dtype.kind == "U":
        encoded = [text.encode() for text in array.ravel().tolist()]
        kind = h5py.string_dtype("utf-8", max(map(len, encoded), default=0) or 1)
        array = np.array(encoded, dtype=kind).reshape(array.shape)
    # The low-level calls: a checkpoint has many small arrays, and create_dataset takes three times as long.
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_obj_track_times(False)
    if array.nbytes >= 64 << 10:
        options.set_chunk(chunk_shape(array.shape, array.itemsize))
        if compress:
            options.set_shuffle()
            options.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL)
        options.set_fletcher32()
    folders = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    folders.set_create_intermediate_group(True)
    folders.set_char_encoding(h5py.h5t.CSET_UTF8)
    identifier = h5py.h5d.create(
        file.id,
        name.encode(),
        h5py.h5t.py_create(array.dtype, logical=True),
        h5py.h5s.create_simple(array.shape),
        options,
        folders,
    )
    identifier.write(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return h5py.Dataset(identifier)


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """A chunk of at most 0.5 MiB: whole trailing axes, as many of the leading ones as fit."""
    chunk, room = [], max(CHUNK // itemsize, 1)
    for size in reversed(shape):
        chunk.append(max(min(size, room), 1))
        room //= chunk[-1]
    return tuple(reversed(chunk))


def _plain_array(where: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind == "O" or (array.size == 0 and array.dtype.kind == "U"):
        if not all(isinstance(item, str) for item in array.ravel().tolist()):
            raise L2OError(f"{where}: expected numbers or strings, got Python objects; convert them first")
        array = array.astype(np.str_)
    if array.dtype.kind == "U":
        if any("\0" in item for item in array.ravel().tolist()):
            raise L2OError(f"{where}: expected text without NUL characters; remove them")
        return array
    if array.dtype.kind not in "fiub" or array.itemsize > 8:
        raise L2OError(
            f"{where}: expected floats, integers or booleans of at most 8 bytes, or strings, "
            f"got {array.dtype}; cast it first, e.g. to float32"
        )
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)


def _plain_attributes(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    for name, value in plain.items():
        fits = not isinstance(value, int) or -(2**63) <= value < 2**63
        if not isinstance(value, (str, bool, int, float)) or not fits or "\0" in str(value):
            raise L2OError(
                f"{where}: attribute {name}: expected text, a boolean, a number of 64 bits, "
                f"got {str(value)[:60]!r}; write anything else as JSON text"
            )
    return plain


def read_hdf5(
    path: str | os.PathLike[str], format: str | None = None, version: str = "1.0.0", *, budget: int = BUDGET
) -> Tree:
    """Read a whole file after checking it; ``format`` None takes any.

    Args:
        version: what this code writes; another major is refused, a newer minor warned about. Where any format
            is taken, the schema's own.
        budget: bytes that arrays and strings may take in all.

    Raises:
        ReadError: no such file, no permission.
        DamagedFileError: not HDF5, truncated, changed, or holding what the project never writes.
        L2OError: another format or major version.
    """
    if (found := kind(path)) not in ("", HDF5):
        raise L2OError(
            f"{path}: expected {_words(format or 'l2o-teacher')}, got {found}; is it the right file?"
        )
    child.check(path, format, version, budget)
    return _read(path, format, version, budget)


def answer(path: str, format: str, version: str, budget: str, memory: str, seconds: str) -> None:
    """What the child process does: print as JSON the class and the text of the error in a file, or two ""."""
    limit_memory(int(memory))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    told = ("", "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _read(path, format or None, version, int(budget))
        except L2OError as error:
            told = (type(error).__name__, str(error))
    print(json.dumps(told))


def _read(path: str | os.PathLike[str], format: str | None, version: str, budget: int) -> Tree:
    try:
        with open_regular(path) as stream, _clear_errors(path), h5py.File(stream, "r") as file:
            reader = Reader(path, os.fstat(stream.fileno()).st_size, budget)
            _check_format(path, reader.attributes(file, ""), format, version)
            tree = reader.walk(file)
    except OSError as error:
        raise ReadError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    tree.sha256 = str(tree.attributes[""].get("sha256", ""))
    if not tree.sha256:
        warnings.warn(f"{path} carries no sha256: changes to it cannot be noticed", stacklevel=3)
    elif content_sha256(tree) != tree.sha256:
        return _as_written(path, tree)
    return tree


def _as_written(path: Any, tree: Tree) -> Tree:
    """A tree without the attributes somebody added to the file, if the rest is what its hash says."""
    own, strangers = without_strangers(tree, SCHEMAS[tree.format]) if tree.format in SCHEMAS else (tree, [])
    if not strangers or content_sha256(own) != tree.sha256:
        raise DamagedFileError(f"{path}: its content has not the SHA-256 {tree.sha256[:64]}; {_DAMAGED}")
    named = ", ".join(strangers)[:200]
    warnings.warn(f"{path}: attributes that were added to it are left out: {named}", stacklevel=4)
    return own


def kind_of(path: str | os.PathLike[str]) -> str:
    """What a file is, in words; "" where nobody knows, or it is damaged."""
    if (found := kind(path)) != HDF5:
        return found
    try:
        return _words(read_hdf5(path).format)
    except L2OError:
        return ""


@contextlib.contextmanager
def _clear_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except L2OError:
        raise
    except MemoryError as error:
        raise ReadError(f"{path}: not enough memory to read it; close other programs") from error
    except _H5PY_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedFileError(
            f"{path}: expected a whole HDF5 file, got {reason or type(error).__name__}; {_DAMAGED}"
        ) from error


def _words(format: str) -> str:
    """What a file of a format is."""
    return SCHEMAS[format].words if format in SCHEMAS else f"format {format[:60]}"


def _check_format(path: Any, root: dict[str, Any], format: str | None, version: str) -> None:
    found, found_version = root.get("format"), root.get("format_version")
    if not isinstance(found, str) or not found.startswith("l2o-"):
        raise L2OError(
            f"{path}: expected a format attribute such as {format or 'l2o-teacher'}, got none; "
            "is it the right file?"
        )
    if format is None and found in SCHEMAS:
        version = SCHEMAS[found].version
    if format is not None and found != format:
        raise L2OError(f"{path}: expected {_words(format)}, got {_words(found)}; give a file of that kind")
    parts = str(found_version).split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts):
        shown = repr(found_version)[:60]
        raise DamagedFileError(f"{path}: expected format_version such as {version}, got {shown}; {_DAMAGED}")
    ours = [int(part) for part in version.split(".")]
    theirs = [int(part) for part in parts]
    if theirs[0] != ours[0]:
        remedy = "update this project" if theirs[0] > ours[0] else "record it again"
        raise VersionError(f"{path}: expected {found} version {ours[0]}.x, got {found_version}; {remedy}")
    if theirs[1] > ours[1]:
        message = f"{path}: {found} {found_version} is newer than {version}; new parts are ignored"
        warnings.warn(message, stacklevel=5)
