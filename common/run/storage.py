"""What everything that writes a file uses: atomic files, canonical JSON, content hashes, names.

The protocol is temporary name in the same folder, fsync, rename, fsync of the folder: after a crash at
any point a reader finds the old file or the new one, never a mixture. POSIX only (flock; run locks: lock.py).
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import L2OError
from common.files import ReadError, StorageError, open_regular

TEMPORARY_PREFIX = ".l2o-tmp-"
JSON_LIMIT = 1 << 20  # bytes; every JSON text of the project fits with room to spare
JSON_DEPTH = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def atomic_write(path: str | os.PathLike[str], data: bytes | bytearray | memoryview | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path`` so that a crash leaves the old file or the new one.

    Missing folders are made. A failure raises ``StorageError`` naming the path and the bytes wanted; the
    file that was there before is untouched and nothing is left behind.
    """
    target = Path(path)
    content = memoryview(data.encode() if isinstance(data, str) else data).cast("B")
    temporary = target.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
    made = False
    try:
        make_folders(target.parent)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        made = True
        try:
            with contextlib.suppress(OSError):  # marks the file as in use; see remove_stale of lock.py
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            _write_all(descriptor, content)
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(descriptor, stat.S_IMODE(os.stat(target).st_mode))
            os.fsync(descriptor)
            os.replace(temporary, target)
        finally:
            os.close(descriptor)
        made = False
        _sync_folder(target.parent)
    except OSError as error:
        raise StorageError(_write_message(target, len(content), error)) from error
    finally:
        if made:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def make_folders(folder: Path) -> None:
    """Make what is missing of a folder's path, so that it is still there after a loss of power."""
    if not folder.is_dir():
        make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _write_all(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no folder fsync
            raise
    finally:
        os.close(descriptor)


def _write_message(target: Path, size: int, error: OSError) -> str:
    remedy = {
        errno.ENOSPC: "free some space or write elsewhere",
        errno.EDQUOT: "your quota is used up: remove files or write elsewhere",
        errno.EFBIG: "the file size limit (ulimit -f) is too low",
        errno.EACCES: "check the permissions of the folder or write elsewhere",
        errno.EROFS: "the file system is read-only: write elsewhere",
        errno.EISDIR: "this is a folder: give a file name",
    }.get(error.errno or 0, "check the path and the disk")
    reason = error.strerror or error
    return f"cannot write {target} ({size} bytes): {reason}; {remedy}; what was there is unchanged"


def canonical_json(obj: Any) -> str:
    """The one JSON text of ``obj``: sorted keys, no spaces, shortest exact floats, ASCII.

    NumPy scalars and arrays become numbers and lists. NaN, infinities, keys that are not strings and
    anything else JSON cannot hold raise ``L2OError``.
    """
    try:
        text = json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain_value)
        _check_keys(obj)
    except (TypeError, ValueError, RecursionError) as error:
        raise L2OError(
            f"cannot write as JSON: {error}; use strings, finite numbers, booleans, lists and dicts"
        ) from None
    return text


def _check_keys(obj: Any) -> None:
    if isinstance(obj, dict):
        for key in obj:
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is not a string")
        obj = list(obj.values())
    if isinstance(obj, (list, tuple)):
        for child in obj:
            _check_keys(child)


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is not JSON")


def content_hash(content: Any) -> str:
    """SHA-256 in hex of bytes, or of the canonical JSON of anything else."""
    if not isinstance(content, (bytes, bytearray, memoryview)):
        content = canonical_json(content).encode()
    return hashlib.sha256(content).hexdigest()


def loads_json(text: str, what: str, limit: int = JSON_LIMIT) -> Any:
    """Parse JSON from outside strictly; ``what`` names it in messages.

    Refused with ``L2OError``: more than ``limit`` characters, nesting beyond 64, NaN, infinities, numbers
    that overflow, a key given twice, anything that is not JSON.
    """
    if len(text) > limit:
        raise L2OError(
            f"{what}: expected at most {limit} characters of JSON, got {len(text)}; is it the right file?"
        )
    depth = 0
    for bracket in re.finditer(r"[][{}]", _JSON_STRING.sub("", text)):
        depth += 1 if bracket.group() in "[{" else -1
        if depth > JSON_DEPTH:
            raise L2OError(f"{what}: JSON nested deeper than {JSON_DEPTH}; is it the right file?")
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_short_int,
            object_pairs_hook=_unique_pairs,
        )
    except (ValueError, RecursionError, MemoryError) as error:
        raise L2OError(f"{what}: not valid JSON: {error}; correct it or restore a copy") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number JSON knows")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _short_int(text: str) -> int:
    if len(text) > 300:  # longer ones overflow a float, or take quadratic time
        raise ValueError(f"a number of {len(text)} digits is too large")
    return int(text)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return result


def read_json(path: str | os.PathLike[str], limit: int = JSON_LIMIT) -> Any:
    """Read a JSON file of at most ``limit`` bytes as strictly as ``loads_json``; ``L2OError`` names it."""
    try:
        text = read_file(path, limit).decode()
    except UnicodeDecodeError as error:
        raise L2OError(f"{path}: not valid UTF-8: {error.reason}; is it the right file?") from None
    return loads_json(text, str(path), limit)


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """All bytes of a regular file of at most ``limit`` bytes; otherwise ``ReadError``."""
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ReadError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    if len(data) > limit:
        raise ReadError(f"{path}: expected at most {limit} bytes, got more; is it the right file?")
    return data


def check_name(name: str, what: str = "name") -> str:
    """``name`` if it is safe as a file name, else ``L2OError``.

    Safe are 1 to 64 letters, digits, ``.``, ``_`` and ``-``, starting with a letter or digit, no ``..``.
    """
    fine = isinstance(name, str) and _NAME.fullmatch(name) and ".." not in name and name[-1] != "."
    if not fine or _RESERVED.fullmatch(name):
        raise L2OError(
            f"{what} {repr(name)[:80]}: expected 1 to 64 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit, without '..'; choose another"
        )
    return name
