"""The file operations of this process below one folder: written down, made to fail, or replayed in part."""

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Operation = tuple[str, Any, Any]  # name, path or number of the open file, what is written or the new path


class Log:
    """The operations in order; of each write its data, of each opening the number of its file.

    Args:
        fail: called before every operation with its number; an ``OSError`` it raises is the operation's.
    """

    def __init__(self, folder: Path, fail: Callable[[int], None] = lambda number: None) -> None:
        self.folder, self.operations, self._fail = folder, [], fail
        self._files: dict[int, int] = {}  # descriptor -> number of the opening
        self._opened = 0

    def _note(self, name: str, what: Any, more: Any = None) -> None:
        self._fail(len(self.operations))
        self.operations.append((name, what, more))

    def _inside(self, path: Any) -> str | None:
        text = os.path.abspath(os.fsdecode(path)) if not isinstance(path, int) else ""
        return os.path.relpath(text, self.folder) if text.startswith(str(self.folder)) else None

    @contextlib.contextmanager
    def watching(self) -> Iterator["Log"]:
        """With the functions of ``os`` in place of which those of this log stand."""
        names = ("open", "write", "pwrite", "fsync", "close", "replace", "rename", "unlink", "mkdir", "rmdir")
        real = {name: getattr(os, name) for name in (*names, "ftruncate", "truncate")}

        def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
            inside = self._inside(path)
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or os.path.isdir(path)
            if inside is None or not writes:
                return real["open"](path, flags, *more, **named)
            self._note("open", inside, (self._opened, bool(flags & os.O_CREAT)))
            descriptor = real["open"](path, flags, *more, **named)
            self._files[descriptor] = self._opened
            self._opened += 1
            return descriptor

        def of_file(name: str) -> Callable[..., Any]:
            def call(descriptor: int, *given: Any) -> Any:
                if descriptor in self._files:
                    data = [bytes(x) if isinstance(x, bytes | memoryview) else x for x in given]
                    self._note(name, self._files[descriptor], data)
                return real[name](descriptor, *given)

            return call

        def closed(descriptor: int) -> None:  # which never fails here, and does nothing to a file
            self._files.pop(descriptor, None)
            real["close"](descriptor)

        def of_path(name: str) -> Callable[..., Any]:
            def call(path: Any, *given: Any, **named: Any) -> Any:
                inside = self._inside(path)
                if inside is not None and "dir_fd" not in named:
                    more = self._inside(given[0]) if name in ("replace", "rename") else given
                    self._note(name, inside, more)
                return real[name](path, *given, **named)

            return call

        made = {name: of_file(name) for name in ("write", "pwrite", "fsync", "ftruncate")}
        made |= {
            name: of_path(name) for name in ("replace", "rename", "unlink", "mkdir", "rmdir", "truncate")
        }
        made |= {"open": opened, "close": closed}
        for name, function in made.items():
            setattr(os, name, function)
        try:
            yield self
        finally:
            for name, function in real.items():
                setattr(os, name, function)


def replay(
    operations: list[Operation], folder: Path, kept: Callable[[int], bool] = lambda number: True
) -> None:
    """Do in ``folder`` what a log says, but for what is not kept and what cannot be done without it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files: dict[int, Path] = {}  # a file that was renamed while it was open is found under its new name
    for number, (name, what, more) in enumerate(operations):
        path = folder / what if isinstance(what, str) else files.get(what)
        if name == "open":
            files[more[0]] = path
        with contextlib.suppress(OSError):
            if not kept(number):
                continue
            if name == "open" and more[1]:
                path.touch()
            elif name in ("replace", "rename"):
                os.replace(path, folder / more)
            elif name in ("unlink", "rmdir", "mkdir"):
                getattr(path, name)()
            elif name == "write":
                with path.open("r+b") as file:
                    file.seek(0, os.SEEK_END)
                    file.write(more[0])
            elif name == "pwrite":
                with path.open("r+b") as file:
                    file.seek(more[1])
                    file.write(more[0])
            elif name in ("ftruncate", "truncate"):
                os.truncate(path, more[0])


def halved(operation: Operation) -> Operation | None:
    """A write of the first half of its data; None of what is no write."""
    name, what, more = operation
    if name not in ("write", "pwrite") or len(more[0]) < 2:
        return None
    return name, what, [more[0][: len(more[0]) // 2], *more[1:]]


def unsynced(operations: list[Operation]) -> set[int]:
    """Numbers of what a loss of power may undo: no fsync of the file, or of the folder, came after it."""
    lost: set[int] = set()
    names: dict[int, str] = {}
    for number, (name, what, more) in enumerate(operations):
        if name == "open":
            names[more[0]] = what
            if more[1]:
                lost.add(number)
        elif name == "fsync":
            file = names[what]
            lost = {k for k in lost if not _settled(operations[k], file, what, names)}
        else:
            lost.add(number)
    return lost


def _settled(operation: Operation, synced: str, number: int, names: dict[int, str]) -> bool:
    """Whether an operation is on the disk once the file or folder ``synced``, opened as ``number``, is."""
    name, what, more = operation
    if isinstance(what, int):
        return what == number  # data of the file itself
    place = more if name in ("replace", "rename") else what
    return os.path.dirname(place) == synced.removeprefix(".") or (name == "open" and more[0] == number)


def drawn(lost: set[int], dice: random.Random) -> Callable[[int], bool]:
    """What of it a loss of power leaves."""
    gone = {number for number in lost if dice.random() < 0.5}
    return lambda number: number not in gone
