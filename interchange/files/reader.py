"""Walking an HDF5 file that may come from anywhere: everything is checked before anything is allocated.

HDF5 follows external links, external raw storage and virtual datasets to any path of the machine, and a
small file may declare or unpack to terabytes. Nothing of that is in a file the project writes, so all of
it is refused.
"""

import dataclasses
import math
from typing import Any

import h5py
import numpy as np

from common.errors import L2OError

DEPTH = 16
OBJECTS = 100_000
ATTRIBUTES = 256  # per object
BOMB_SIZE, BOMB_RATIO = 64 << 20, 200  # lzf, which the project writes, reaches 88; gzip 1032
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}


class DamagedFileError(L2OError):
    """The file is not what its writer wrote, or not HDF5 that the project reads."""


class VersionError(L2OError):
    """The file was written by another major version of the project."""


@dataclasses.dataclass
class Tree:
    """The whole content of one HDF5 file.

    Attributes:
        arrays: path without leading slash -> array; floats, integers, booleans of at most 8 bytes, or
            strings (NumPy ``U``).
        attributes: path of a group or array ("" is the root) -> name -> str, bool, int or float.
        sha256: hash of the content; "" where the file carries none.
    """

    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    sha256: str = ""

    @property
    def format(self) -> str:
        """The root attribute ``format``."""
        return str(self.attributes.get("", {}).get("format", ""))

    def children(self, folder: str) -> list[str]:
        """Sorted names directly below the group ``folder``."""
        start = folder + "/" if folder else ""
        paths = [*self.arrays, *self.attributes]
        return sorted({path[len(start) :].split("/")[0] for path in paths if path and path.startswith(start)})


class Reader:
    """One pass over one open file, with its budgets."""

    def __init__(self, path: Any, file_size: int, budget: int) -> None:
        self.path, self.file_size, self.left, self.budget = path, file_size, budget, budget

    def refuse(self, name: str, reason: str) -> DamagedFileError:
        """The error for an object the project never writes."""
        return DamagedFileError(
            f"{self.path}: /{name}: expected what this project writes, got {reason}; "
            "do not trust the file, record it again or restore a copy"
        )

    def charge(self, name: str, size: int) -> None:
        """Take ``size`` bytes from the budget."""
        self.left -= size
        if self.left < 0:
            raise self.refuse(name, f"more than the {self.budget} bytes that one file may hold")

    def walk(self, file: h5py.File) -> Tree:
        """The whole content; iterative, hard links only, every object once."""
        tree = Tree()
        pending: list[tuple[str, Any]] = [("", file["/"])]
        seen = {_identity(file["/"])}
        datasets = []
        while pending:
            name, node = pending.pop()
            tree.attributes[name] = self.attributes(node, name)
            if isinstance(node, h5py.Dataset):
                self.check_dataset(name, node)
                datasets.append((name, node))
                continue
            if len(seen) + len(node) > OBJECTS:
                raise self.refuse(name, f"more than {OBJECTS} objects")
            if len(node) and name.count("/") + 1 >= DEPTH:
                raise self.refuse(name, f"nested deeper than {DEPTH}")
            for key in node:
                child = f"{name}/{key}" if name else key
                if not _is_name(key):
                    raise self.refuse(name, f"a name that is not printable: {key[:40]!r}")
                if not isinstance(node.get(key, getlink=True), h5py.HardLink):
                    raise self.refuse(child, "a soft or external link")
                found = node[key]
                if not isinstance(found, (h5py.Group, h5py.Dataset)):
                    raise self.refuse(child, "a named type")
                identity = _identity(found)
                if identity in seen:
                    raise self.refuse(child, "an object linked twice")
                seen.add(identity)
                pending.append((child, found))
        declared, packed = self.budget - self.left, f"out of a file of {self.file_size}"
        if declared > BOMB_SIZE and declared > BOMB_RATIO * self.file_size:
            raise self.refuse("", f"{declared} bytes {packed}")
        for name, dataset in datasets:  # nothing is allocated before everything is checked
            tree.arrays[name] = self.read(name, dataset)
        return tree

    def attributes(self, node: Any, name: str) -> dict[str, Any]:
        """The attributes of one object as plain Python values."""
        if len(node.attrs) > ATTRIBUTES:
            raise self.refuse(name, f"more than {ATTRIBUTES} attributes")
        values = {}
        for key in node.attrs:
            if not _is_name(key):
                raise self.refuse(name, f"the name of an attribute that is not printable: {key[:40]!r}")
            identifier = node.attrs.get_id(key)
            text = h5py.check_string_dtype(identifier.dtype) is not None
            if identifier.shape != () or not (text or _is_number(identifier.dtype)):
                raise self.refuse(name, f"an attribute {key[:60]!r} of no known type")
            value = node.attrs[key]
            value = value.item() if isinstance(value, np.generic) else value
            value = value.decode() if isinstance(value, bytes) else value
            self.charge(name, len(value) if isinstance(value, str) else 8)
            values[key] = value
        return values

    def check_dataset(self, name: str, dataset: h5py.Dataset) -> None:
        """Refuse foreign storage, unknown types and filters, and bombs, from the header alone."""
        plist = dataset.id.get_create_plist()
        if plist.get_external_count():
            raise self.refuse(name, "data in another file")
        if plist.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED, h5py.h5d.COMPACT):
            raise self.refuse(name, "a virtual dataset")
        filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
        if not set(filters) <= set(_FILTERS):
            raise self.refuse(name, f"filters {filters}; known: {', '.join(_FILTERS.values())}")
        dtype, shape = dataset.dtype, dataset.shape
        text = h5py.check_string_dtype(dtype)
        if shape is None or not (text or _is_number(dtype)):
            raise self.refuse(name, f"type {str(dtype)[:60]}; known: numbers of at most 8 bytes and text")
        count = math.prod(shape)
        # NumPy's strings take 4 bytes a character.
        declared = count * (4 * (text.length or 16) if text else dtype.itemsize)
        self.charge(name, declared)
        if text and text.length is None and count > OBJECTS:
            raise self.refuse(name, f"more than {OBJECTS} strings of any length")
        if dataset.chunks and math.prod(dataset.chunks) * dtype.itemsize > BOMB_SIZE:
            raise self.refuse(name, f"chunks of more than {BOMB_SIZE} bytes")
        stored = min(dataset.id.get_storage_size(), self.file_size)
        if declared > BOMB_SIZE and declared > BOMB_RATIO * stored:
            raise self.refuse(name, f"{declared} bytes out of {stored} stored ones")

    def read(self, name: str, dataset: h5py.Dataset) -> np.ndarray:
        """The array of a checked dataset, little-endian; text as NumPy ``U``."""
        text = h5py.check_string_dtype(dataset.dtype)
        if text is None:
            return np.asarray(dataset[()], dataset.dtype.newbyteorder("<"))
        if text.length is not None:
            raw = dataset[()]
            return np.array([item.decode() for item in raw.ravel().tolist()], np.str_).reshape(raw.shape)
        items, longest = [], 0
        for index in np.ndindex(dataset.shape):  # many strings may share one large heap object
            items.append(dataset[index].decode())
            if len(items[-1]) > longest:  # NumPy makes all as long as the longest
                self.charge(name, 4 * (len(items[-1]) - longest) * dataset.size)
                longest = len(items[-1])
        return np.array(items, np.str_).reshape(dataset.shape)


def _is_name(key: Any) -> bool:
    """Text: of a name in another encoding h5py gives the bytes."""
    return isinstance(key, str) and key.isprintable() and len(key) <= 255


def _identity(node: Any) -> tuple[int, int]:
    info = h5py.h5o.get_info(node.id)
    return info.fileno, info.addr


def _is_number(dtype: np.dtype) -> bool:
    plain = dtype.metadata is None or not (h5py.check_enum_dtype(dtype) or h5py.check_ref_dtype(dtype))
    return dtype.kind in "fiub" and dtype.itemsize <= 8 and plain
