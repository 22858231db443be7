"""One process per run folder: its lock, and what died writers left in it. POSIX only (flock)."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from common.errors import L2OError
from common.files import StorageError
from common.run.storage import TEMPORARY_PREFIX, make_folders


def remove_stale(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove temporary files that died writers left anywhere under ``folder``; those removed.

    A live writer holds a lock on its temporary file, so its file stays.
    """
    removed = []
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith(TEMPORARY_PREFIX):
                path = Path(parent, name)
                with contextlib.suppress(OSError):
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        os.unlink(path)
                        removed.append(path)
                    finally:
                        os.close(descriptor)
    return removed


class RunLock:
    """One process per run folder: ``with RunLock(folder): ...``, taken before anything in it is opened.

    The kernel frees the lock when the holder ends in any way, so a lock file left behind means nothing.
    A second process gets ``L2OError`` naming the holder. Stale temporary files are removed once held. A
    folder that was made for a holder that failed, and is still empty, goes again.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._descriptor: int | None = None
        self._made = False

    def __enter__(self) -> "RunLock":
        path = self.folder / "lock"
        if self._descriptor is not None:
            raise L2OError(f"run folder {self.folder}: this lock is held already; take it once")
        try:
            self._made = not self.folder.exists()
            make_folders(self.folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            raise StorageError(
                f"cannot open the lock of run folder {self.folder}: {error.strerror}; "
                "check the path and its permissions or choose another folder"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(descriptor).st_nlink:  # a holder that failed has taken the folder with it
                raise BlockingIOError
            holder = f"{os.getpid()} {socket.gethostname()}\n".encode()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder, 0)
        except BlockingIOError:
            holder_pid, _, host = os.pread(descriptor, 256, 0).decode(errors="replace").partition(" ")
            os.close(descriptor)
            raise L2OError(
                f"run folder {self.folder} is in use by pid {holder_pid.strip() or '?'} on host "
                f"{host.strip() or '?'}; wait for it, stop it, or choose another folder"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise StorageError(
                f"cannot lock run folder {self.folder}: {error.strerror}; "
                "free space, or use a file system with locks (some network mounts have none)"
            ) from error
        self._descriptor = descriptor
        remove_stale(self.folder)
        return self

    def __exit__(self, failed: type[BaseException] | None = None, *_: object) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                if failed and self._made and os.listdir(self.folder) == ["lock"]:
                    (self.folder / "lock").unlink()
                    self.folder.rmdir()
            os.close(self._descriptor)  # else the file stays: removing it would let two processes in
            self._descriptor = None
