"""The coordinate-wise LSTM as compiled code (``lstm.c``), for both backends, where there is a C compiler.

Arrays are handed over as addresses: the backends own them.
"""

import ctypes
import functools
from collections.abc import Sequence

import numpy as np

from common.kernels import build
from common.tables.teachers import GAIN, TeacherRow

_VARIANTS = {"float32": (), "float64": ("-DL2O_DOUBLE",), "bfloat16": ("-DL2O_BFLOAT16",)}
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
        shapes = teacher.weight_shapes().items()
        self.count = sum(int(np.prod(shape)) for name, shape in shapes if name != GAIN)

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
            weights: all weights in canonical order, one after the other; a gain ``folded``.
            x: inputs [F, n], rows ``apart`` numbers apart (n if 0).
            before, after: h and c of every layer, [H, n] each; may be the same arrays.
            out: output [n] before ``scale``.
        """
        good = self._code.step(
            ctypes.byref(self._shape), weights, n, apart or n, x, _addresses(before), _addresses(after), out,
            build.share_out(), self._threads(n, threads),
        )  # fmt: skip
        if not good:
            raise MemoryError(f"a step of {n} coordinates")

    def gradient(
        self, weights: int, steps: int, n: int, x: int, c: int, start: Sequence[int], threads: int
    ) -> np.ndarray:
        """d sum_t <c_t, out_t> / d weights, [count] float64, in canonical order, by the ``folded`` ones.

        Args:
            x: address of the inputs [steps, F, n]; c: of [steps, n].
            start: addresses of h and c of every layer before the first step.
        """
        found = np.zeros(self.count)
        good = self._code.gradient(
            ctypes.byref(self._shape), weights, steps, n, x, c, _addresses(start), found.ctypes.data,
            build.share_out(), self._threads(n * steps, threads),
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
    """Why a teacher's network has no compiled code here, with the remedy; "" where it has."""
    return build.turned_off() or _built(dtype)[1]


def _addresses(values: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_void_p * len(values))(*values)


@functools.cache
def _code(dtype: str) -> ctypes.CDLL:
    code = _built(dtype)[0]
    pointer, number = ctypes.c_void_p, ctypes.c_long
    code.step.argtypes = [pointer, pointer, number, number, *[pointer] * 5, ctypes.c_int]
    code.gradient.argtypes = [pointer, pointer, number, number, *[pointer] * 5, ctypes.c_int]
    return code


@functools.cache
def _built(dtype: str) -> tuple[ctypes.CDLL | None, str]:
    """The library, and why there is none."""
    if reason := build.missing():
        return None, reason
    text = (build.HERE / "lstm.c").read_text()
    return build.load(f"lstm-{dtype}", text, ("-ffp-contract=fast", *_VARIANTS[dtype]))
