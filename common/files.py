"""Opening files that may come from anywhere, and what goes wrong with files."""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any

from common.errors import L2OError


class StorageError(L2OError):
    """A file could not be written: no space, no permission, no such folder."""

    exit_code = 74  # EX_IOERR of sysexits.h


class ReadError(StorageError):
    """A file could not be read: it is not there, no permission, not a regular file, too large."""

    exit_code = 2  # a wrong path is bad input


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a regular file for reading bytes; pipes, devices and folders raise ``ReadError``.

    Errors of the operating system come through as ``OSError``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not block here
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ReadError(f"{path}: expected a regular file, got a folder, pipe or device; check it")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)
