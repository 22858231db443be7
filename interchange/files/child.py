"""A first reading of HDF5 files in a child process: HDF5 itself crashes, hangs or fills the memory on some.

A file that this process wrote or has had read so before, and what the package ships, needs none.
"""

import collections
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

from common.errors import L2OError
from common.run.storage import ReadError
from interchange.files.reader import BOMB_RATIO, DamagedFileError, VersionError

SECONDS, RATE = 3.0, 10e6  # of processor time, and bytes of a file for each more
MEMORY = 512 << 20  # bytes beside what a file may unpack to
MOST = 1000  # files that are known at a time, the last ones: who writes for weeks must not fill the memory
_WAIT = 20  # how many times the processor time the clock may show
_SHIPPED = Path(__file__).resolve().parents[1] / "shipped"
_CODE = "import sys; from interchange.files.hdf5 import answer; answer(*sys.argv[1:])"
_ERRORS = {error.__name__: error for error in (ReadError, DamagedFileError, VersionError)}

_known: collections.deque[tuple[int, ...]] = collections.deque(maxlen=MOST)


def remember(path: str | os.PathLike[str]) -> None:
    """A file that is as this process wrote it; a changed one is another."""
    _known.append(_identity(os.stat(path)))


def check(path: str | os.PathLike[str], format: str | None, version: str, budget: int) -> None:
    """Raise what reading the file raises, without reading it here.

    Args:
        format, version, budget: as of ``read_hdf5``.

    Raises:
        DamagedFileError: also where HDF5 crashed, or passed its limits of time and memory.
    """
    try:
        status = os.stat(path)
    except OSError:
        return  # whoever reads it says why
    known = _identity(status) in _known or Path(path).resolve().parent == _SHIPPED
    if known or not stat.S_ISREG(status.st_mode) or not sys.executable:
        return
    seconds = math.ceil(SECONDS + status.st_size / RATE)
    memory = MEMORY + min(BOMB_RATIO * status.st_size, 2 * budget)
    given = [os.fspath(path), format or "", version, str(budget), str(memory), str(seconds)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # This package wherever it was found: "" of the path, the folder one is in, is not the child's.
    here = str(Path(__file__).resolve().parents[2])
    places = {"PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)])}
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-c", _CODE, *given],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | threads | places,
            timeout=_WAIT * seconds,
        )
        kind, text = json.loads(child.stdout)
    except (ValueError, subprocess.TimeoutExpired):
        raise DamagedFileError(
            f"{path}: expected a whole HDF5 file, got one on which HDF5 crashes, or takes more than "
            f"{seconds} s or {memory >> 20} MiB; do not trust it, record it again or restore a copy"
        ) from None
    if kind:
        raise _ERRORS.get(kind, L2OError)(text)
    _known.append(_identity(status))


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
