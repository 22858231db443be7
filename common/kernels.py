"""The coordinate-wise LSTM as compiled code (``lstm.c``), for both backends, where there is a C compiler.

The code is compiled for the processor it runs on at first use, a second or two, and kept in the user's cache
folder. ``L2O_KERNELS=0`` turns it off. Arrays are handed over as addresses: the backends own them.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.parallel import cores
from common.teachers import TeacherRow

_SOURCE = Path(__file__).with_name("lstm.c")
_VARIANTS = {"float32": (), "float64": ("-DL2O_DOUBLE",), "bfloat16": ("-DL2O_BFLOAT16",)}
_FLAGS = ("-O3", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
# The best first; what a compiler or a processor does not know is left out.
_TRIED = (("-march=native",), ("-mcpu=native",), ())
_TIMEOUT = 120.0  # seconds of a compiler
_LAYERS = 8  # MOST_LAYERS in lstm.c
_SECONDS = 5e-11  # of one weight at one coordinate, about
_WORTH = 5e-5  # seconds of work that pay for one more thread


class _Shape(ctypes.Structure):
    _fields_ = [
        ("inputs", ctypes.c_int32),
        ("pre", ctypes.c_int32),
        ("layers", ctypes.c_int32),
        ("squash", ctypes.c_int32),
        ("size", ctypes.c_int32 * _LAYERS),
    ]


class Kernel:
    """One teacher's network as compiled code.

    Args:
        teacher: the row.
        dtype: ``float32`` or ``float64``; ``bfloat16`` computes in float32 and keeps h and c in bfloat16.
    """

    def __init__(self, teacher: TeacherRow, dtype: str) -> None:
        self._code = _code(dtype)
        sizes = (ctypes.c_int32 * _LAYERS)(*teacher.lstm)
        self._shape = _Shape(
            len(teacher.inputs), teacher.pre, len(teacher.lstm), teacher.output == "tanh", sizes
        )
        self.count = sum(int(np.prod(shape)) for shape in teacher.weight_shapes().values())

    def step(
        self,
        weights: int,
        n: int,
        x: int,
        before: Sequence[int],
        after: Sequence[int],
        out: int,
        threads: int,
        apart: int = 0,
    ) -> None:
        """One step of ``n`` coordinates; everything but ``n``, ``threads`` and ``apart`` is an address.

        Args:
            weights: all weights in canonical order, one after the other.
            x: inputs [F, n], rows ``apart`` numbers apart (n if 0).
            before, after: h and c of every layer, [H, n] each; may be the same arrays.
            out: output [n] before ``scale``.
        """
        good = self._code.step(
            ctypes.byref(self._shape), weights, n, apart or n, x, _addresses(before), _addresses(after), out,
            self._threads(n, threads),
        )  # fmt: skip
        if not good:
            raise MemoryError(f"a step of {n} coordinates")

    def gradient(
        self, weights: int, steps: int, n: int, x: int, c: int, start: Sequence[int], threads: int
    ) -> np.ndarray:
        """d sum_t <c_t, out_t> / d weights, [count] float64, in canonical order.

        Args:
            x: address of the inputs [steps, F, n]; c: of [steps, n].
            start: addresses of h and c of every layer before the first step.
        """
        found = np.zeros(self.count)
        good = self._code.gradient(
            ctypes.byref(self._shape), weights, steps, n, x, c, _addresses(start), found.ctypes.data,
            self._threads(n * steps, threads),
        )  # fmt: skip
        if not good:
            raise MemoryError(f"the gradient of {steps} steps of {n} coordinates")
        return found

    def _threads(self, work: int, threads: int) -> int:
        return max(1, min(threads, int(work * self.count * _SECONDS / _WORTH)))


def kernel(teacher: TeacherRow, dtype: str) -> Kernel | None:
    """The compiled network of a teacher, None where there is none (``missing`` says why)."""
    if missing(dtype) or len(teacher.lstm) > _LAYERS:
        return None
    return Kernel(teacher, dtype)


def missing(dtype: str = "float32") -> str:
    """Why there is no compiled code here, with the remedy; "" where there is. Compiles it if need be."""
    if os.environ.get("L2O_KERNELS", "1") == "0":
        return "turned off by L2O_KERNELS=0"
    return _built(dtype)[1]


def default_threads() -> int:
    """Threads of a framework that does not say: OMP_NUM_THREADS, or all cores this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(asked) if asked.isdigit() and int(asked) else cores()


def _addresses(values: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_void_p * len(values))(*values)


@functools.cache
def _code(dtype: str) -> ctypes.CDLL:
    code = ctypes.CDLL(_built(dtype)[0])
    pointer, number = ctypes.c_void_p, ctypes.c_long
    code.step.argtypes = [pointer, pointer, number, number, *[pointer] * 4, ctypes.c_int]
    code.gradient.argtypes = [pointer, pointer, number, number, *[pointer] * 4, ctypes.c_int]
    return code


@functools.cache
def _built(dtype: str) -> tuple[str, str]:
    """The library's path, and why there is none."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang"))), "")
    if not compiler:
        return "", "expected a C compiler, found none of cc, gcc, clang; install one, or name it in CC"
    key = hashlib.sha256(
        "\0".join(
            (_SOURCE.read_text(), *_FLAGS, dtype, compiler, platform.machine(), _processor(), sys.platform)
        ).encode()
    ).hexdigest()[:24]
    try:
        folder = _folder()
        path = folder / f"lstm-{dtype}-{key}.so"
        reason = "" if path.exists() else _compile(compiler, dtype, path)
        if not reason:
            ctypes.CDLL(str(path))
    except OSError as error:
        return "", f"the compiled code cannot be kept or loaded ({error}); set XDG_CACHE_HOME to a folder"
    return str(path), reason


def _compile(compiler: str, dtype: str, path: Path) -> str:
    """Compile to ``path``, whole or not at all; why not, "" if it is there."""
    said = ""
    for extra in _TRIED:
        handle, name = tempfile.mkstemp(suffix=".so", dir=path.parent)
        os.close(handle)
        command = [compiler, *_FLAGS, *extra, *_VARIANTS[dtype], "-o", name, str(_SOURCE), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
            if done.returncode == 0:
                os.replace(name, path)
                return ""
            said = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[0]
        except subprocess.TimeoutExpired:
            said = f"took more than {_TIMEOUT:.0f} s"
        finally:
            Path(name).unlink(missing_ok=True)
    return f"{compiler} cannot compile {_SOURCE.name}: {said}"


def _folder() -> Path:
    """Where compiled code is kept: a folder that nobody else can write to, since it is loaded as it is."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    for place in (Path(base) / "symbolic-l2o", Path(tempfile.gettempdir()) / f"symbolic-l2o-{os.getuid()}"):
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        seen = place.lstat()
        if seen.st_uid == os.getuid() and not seen.st_mode & 0o022 and os.access(place, os.W_OK):
            return place
    raise OSError(f"no folder of one's own below {base} or {tempfile.gettempdir()}")


def _processor() -> str:
    """What the processor can do: code for one with more would be an illegal instruction on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
