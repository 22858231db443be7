"""C compiled at first use for the processor it runs on, kept in the user's cache folder, and loaded.

A library is loaded only if its name holds the hash of its content: one that is damaged or cut short is
compiled again, and none is there half-written. ``L2O_KERNELS=0`` turns compiled code off.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
_FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread")
# The best first; what a compiler or a processor does not know is left out.
_TRIED = (("-march=native",), ("-mcpu=native",), ())
_TIMEOUT = 120.0  # seconds of a compiler
_MOST = 1000  # libraries that are kept, the last ones used
_ABANDONED = 3600.0  # seconds after which a temporary file is nobody's


def missing() -> str:
    """Why there is no compiled code here, with the remedy; "" where there is. May compile a little."""
    return turned_off() or _pool()[1]


def turned_off() -> str:
    """Why compiled code is not asked for; "" where it is."""
    return "turned off by L2O_KERNELS=0" if os.environ.get("L2O_KERNELS", "1") == "0" else ""


def which() -> str:
    """What runs here, for the record of a run: compiled by whom with which flags, or plain and why."""
    if reason := missing():
        return f"plain: {reason}"
    library = _pool()[0]
    flags = ctypes.c_char_p.in_dll(library, "compiled_with").value if library else None
    return f"compiled: {_version(_compiler()[0])}, {(flags or b'').decode()}"


def share_out() -> int:
    """The address of the thread pool's function, which all other libraries are given."""
    library = _pool()[0]
    assert library is not None, _pool()[1]
    return ctypes.cast(library.share_out, ctypes.c_void_p).value or 0


def load(name: str, text: str, flags: Sequence[str] = ()) -> tuple[ctypes.CDLL | None, str]:
    """The library of a C text, compiled if it is not kept; None and the reason where that cannot be.

    Args:
        name: how the file's name begins.
        text: C; may include the headers beside this file.
        flags: of the compiler, beside the usual ones.
    """
    compiler, own = _compiler()
    if not compiler:
        return None, "expected a C compiler, found none of cc, gcc, clang; install one, or name it in CC"
    flags = (*flags, *own)
    parts = (text, _headers(), *_FLAGS, *flags, compiler, platform.machine(), _processor(), sys.platform)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    reason = ""
    try:
        folder = _folder()
        for _ in range(2):  # another process may throw away what is found here
            path = _kept(folder, f"{name}-{key}")
            if path is None:
                path, reason = _compile(compiler, folder, f"{name}-{key}", text, flags)
            if path is None:
                return None, reason
            try:
                library = ctypes.CDLL(str(path))
                os.utime(path)
                return library, ""
            except OSError as error:
                reason = str(error)
                path.unlink(missing_ok=True)
    except OSError as error:
        reason = str(error)
    return None, f"the compiled code cannot be kept or loaded ({reason}); set XDG_CACHE_HOME to a folder"


def _compiler() -> tuple[str, tuple[str, ...]]:
    """The C compiler with the flags that ``CC`` has after its name; "" where there is none."""
    first, *own = shlex.split(os.environ.get("CC", "")) or [""]
    if found := shutil.which(first):
        return found, tuple(own)
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), ""), ()


@functools.cache
def _version(compiler: str) -> str:
    try:
        said = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return compiler
    return (said.stdout.splitlines() or [compiler])[0]


@functools.cache
def _headers() -> str:
    return "\0".join(path.read_text() for path in sorted(HERE.glob("*.h")))


@functools.cache
def _pool() -> tuple[ctypes.CDLL | None, str]:
    return load("pool", (HERE / "pool.c").read_text())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _kept(folder: Path, stem: str) -> Path | None:
    """The library of this name whose content has the hash in its name; others of the name are deleted."""
    for path in folder.glob(f"{stem}.*.so"):
        try:
            if (
                re.fullmatch(r"[0-9a-f]{32}", path.suffixes[-2][1:])
                and _digest(path) == path.suffixes[-2][1:]
            ):
                return path
        except FileNotFoundError:
            continue
        path.unlink(missing_ok=True)
    return None


def _compile(
    compiler: str, folder: Path, stem: str, text: str, flags: Sequence[str]
) -> tuple[Path | None, str]:
    """Compile into ``folder``, whole or not at all; the library, or why there is none."""
    _tidy(folder)
    said = ""
    for extra in _TRIED:
        handle, name = tempfile.mkstemp(prefix="new-", suffix=".tmp", dir=folder)
        os.close(handle)
        said_in_code = f'-DL2O_COMPILED_WITH="{" ".join((*_FLAGS, *extra, *flags))}"'
        command = [compiler, *_FLAGS, *extra, *flags, said_in_code, f"-I{HERE}", "-x", "c", "-o", name, "-"]
        command.append("-lm")
        try:
            done = subprocess.run(
                command, input=text, capture_output=True, text=True, timeout=_TIMEOUT, check=False
            )
            if done.returncode == 0:
                path = folder / f"{stem}.{_digest(Path(name))}.so"
                _flush(name)
                os.replace(name, path)
                _flush(folder)
                return path, ""
            lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
            said = next((line for line in lines if "error" in line), lines[0])
        except subprocess.TimeoutExpired:
            said = f"took more than {_TIMEOUT:.0f} s"
        finally:
            Path(name).unlink(missing_ok=True)
    return None, f"{compiler} cannot compile {stem.rsplit('-', 1)[0]}: {said}"


def _flush(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _tidy(folder: Path) -> None:
    """Delete what killed compilers left, and the libraries that were not used for longest."""
    now = time.time()
    for path in folder.glob("new-*.tmp"):
        if _age(path, now) > _ABANDONED:
            path.unlink(missing_ok=True)
    libraries = list(folder.glob("*.so"))
    if len(libraries) > _MOST:
        for path in sorted(libraries, key=lambda path: _age(path, now))[_MOST:]:
            path.unlink(missing_ok=True)


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _folder() -> Path:
    """Where compiled code is kept: a folder that nobody else can write to, since it is loaded as it is."""
    places = [Path(tempfile.gettempdir()) / f"symbolic-l2o-{os.getuid()}"]
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        places.insert(0, Path(base) / "symbolic-l2o")
    except RuntimeError:  # nobody knows this user's home folder
        pass
    for place in places:
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            seen = place.lstat()
        except OSError:
            continue
        if seen.st_uid == os.getuid() and not seen.st_mode & 0o022 and os.access(place, os.W_OK):
            return place
    raise OSError(f"no folder of one's own below {' or '.join(str(place.parent) for place in places)}")


def _processor() -> str:
    """What the processor can do: code for one with more would be an illegal instruction on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
