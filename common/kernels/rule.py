"""Steps of rules as compiled code: what ``interchange.emit.c_kernels`` writes, once for every structure.

Arrays are handed over as addresses: the backends own them. Constants are float64 numbers, in the order of the
source's ``constants``.
"""

import ctypes
import functools
import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from common.kernels import build

_log = logging.getLogger(__name__)

# Which numbers parameters are kept in -> flags of the compiler.
VARIANTS = {
    "float32": (),
    "float64": ("-DL2O_DOUBLE",),
    "bfloat16": ("-DL2O_BFLOAT16",),
    "float16": ("-DL2O_FLOAT16",),
}
# A product and a sum stay two roundings, as in the frameworks and in NumPy.
_FLAGS = ("-ffp-contract=off",)
_SECONDS = 1e-10  # of one operation at one coordinate, about
_WORTH = 2e-4  # seconds of work that pay for one more thread


class Source(Protocol):
    """C text of a rule; see ``interchange.emit.c_kernels``."""

    text: str
    slots: int
    constants: tuple[str, ...]
    cost: int


class _Settings(ctypes.Structure):
    _fields_ = [
        ("scale", ctypes.c_double),
        ("rate", ctypes.c_double),
        ("keep", ctypes.c_double),
        ("maximize", ctypes.c_int32),
        ("guard", ctypes.c_int32),
    ]


class RuleCode:
    """A compiled text; which of the methods it has is the text's kind."""

    def __init__(self, library: ctypes.CDLL, source: Source) -> None:
        self._library, self._cost = library, source.cost
        self.slots, self.constants = source.slots, source.constants
        pointer, number, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_double
        for name, kinds in {
            "step": [number, *[pointer] * 7, ctypes.c_int],
            "roll": [number, number, number, *[pointer] * 5, real, pointer, ctypes.c_int],
            "tangents": [number, number, *[pointer] * 5, *[real] * 3, pointer, ctypes.c_int],
            "vjp": [number, number, *[pointer] * 4, real, pointer, pointer, ctypes.c_int],
        }.items():
            if hasattr(library, name):
                getattr(library, name).argtypes = kinds

    def step(
        self,
        sizes: Sequence[int],
        thetas: Sequence[int],
        grads: Sequence[int],
        kept: Sequence[int],
        constants: Sequence[float],
        scale: float,
        rate: float,
        keep: float,
        maximize: bool,
        guard: bool,
        threads: int,
    ) -> None:
        """One step of many tensors in place: theta <- keep * theta + rate * scale * u, guarded.

        Args:
            sizes: coordinates of every tensor.
            thetas, grads: addresses of every tensor's parameter and gradient.
            kept: a row of addresses for every tensor: steps taken (float32), coordinates left alone (int64),
                and ``slots`` arrays of state; may be an array of ``addresses``.
            constants: in the order of ``constants``.
        """
        if not sizes:
            return
        given = len(thetas), len(grads), len(kept), len(constants)
        due = len(sizes), len(sizes), len(sizes) * (2 + self.slots), len(self.constants)
        if given != due:  # C would read beyond what it was given
            raise ValueError(f"expected {due} parameters, gradients, arrays kept and constants, got {given}")
        settings = _Settings(scale, rate, keep, maximize, guard)
        self._good(
            self._library.step(
                len(sizes), (ctypes.c_long * len(sizes))(*sizes), addresses(thetas), addresses(grads),
                addresses(kept), _numbers(constants), ctypes.addressof(settings), build.share_out(),
                self._threads(sum(sizes), threads),
            )
        )  # fmt: skip

    def roll(
        self,
        n: int,
        x: int,
        before: Sequence[int],
        after: Sequence[int],
        out: int,
        constants: Sequence[float],
        t: int,
        threads: int,
        in_apart: int = 0,
        out_apart: int = 0,
    ) -> None:
        """One step of ``n`` coordinates from inputs x [F, n] to outputs out [O, n], addresses all.

        Args:
            before, after: the state's arrays [n]; may be the same.
            t: the number of this step, from 1.
            in_apart, out_apart: how many numbers the rows of x and out are apart, n if 0.
        """
        self._good(
            self._library.roll(
                n, in_apart or n, out_apart or n, x, addresses(before), addresses(after), out,
                _numbers(constants), t, build.share_out(), self._threads(n, threads),
            )
        )  # fmt: skip

    def tangents(
        self,
        n: int,
        x: int,
        state: Sequence[int],
        moved: Sequence[int],
        constants: Sequence[float],
        seeds: Sequence[float],
        t: int,
        keep: float,
        rate: float,
        threads: int,
    ) -> None:
        """Derivatives by constants one step on, in place; addresses of arrays [n].

        Args:
            x: inputs [F, n]; state: before the step.
            moved: as the text has them.
            seeds: of every constant of the derivatives, its own derivative by what is trained.
        """
        self._good(
            self._library.tangents(
                n, n, x, addresses(state), addresses(moved), _numbers(constants), _numbers(seeds),
                t, keep, rate, build.share_out(), self._threads(n, threads),
            )
        )  # fmt: skip

    def vjp(
        self,
        n: int,
        steps: int,
        x: int,
        c: int,
        start: Sequence[int],
        constants: Sequence[float],
        before: int,
        count: int,
        threads: int,
    ) -> np.ndarray:
        """sum_t <c_t, d out_t / d constant>, [count] float64, from inputs x [steps, F, n] and c [steps, n].

        Args:
            start: addresses of the state's arrays [n] before the first step.
            before: steps taken before the first.
        """
        found = np.zeros(count)
        self._good(
            self._library.vjp(
                n, steps, x, c, addresses(start), _numbers(constants), before, found.ctypes.data,
                build.share_out(), self._threads(n * steps * (1 + count), threads),
            )
        )  # fmt: skip
        return found

    def _threads(self, coordinates: int, threads: int) -> int:
        return max(1, min(threads, int(coordinates * self._cost * _SECONDS / _WORTH)))

    @staticmethod
    def _good(done: int) -> None:
        if not done:
            raise MemoryError("a step of a rule")


def rule_code(source: Source, dtype: str) -> RuleCode | None:
    """The code of a source for parameters of a dtype (``VARIANTS``); None where there is none."""
    if build.missing() or dtype not in VARIANTS:
        return None
    return _code(source, dtype)


@functools.lru_cache(maxsize=512)
def _code(source: Source, dtype: str) -> RuleCode | None:
    library, reason = build.load(f"rule-{dtype}", source.text, (*_FLAGS, *VARIANTS[dtype]))
    if library is None:
        _log.warning("a rule runs without compiled code: %s", reason)
        return None
    return RuleCode(library, source)


def addresses(values: Sequence[int]) -> ctypes.Array:
    """Addresses as C takes them, to be made once and used often; what is one already stays as it is."""
    return values if isinstance(values, ctypes.Array) else (ctypes.c_void_p * len(values))(*values)


def _numbers(values: Sequence[float]) -> ctypes.Array:
    return (ctypes.c_double * max(1, len(values)))(*values)
