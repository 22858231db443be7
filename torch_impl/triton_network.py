"""The LSTM optimizers' steps and their gradient as fused kernels on a GPU, where Triton is there.

What ``common.kernels`` is on a CPU. The gradient is computed window by window of steps, as in
``common/lstm.c``: states at the windows' starts are kept, a window's activations computed anew, its
derivatives written out; the weights' gradients are matrix products of those two. The kernels are tried on a
small case before they are used.
"""

import contextlib
import functools
import os
import warnings
from typing import Any

import numpy as np
import torch

from common.rng import rng
from common.teachers import TeacherRow
from torch_impl.tensors import Weights

_BLOCK, _WARPS = 64, 8  # coordinates of a program; with fewer warps its registers do not suffice
_DOT = "tf32x3"  # float32 products of three passes of tensor cores, from compute capability 8.0 on
_WINDOW = 10  # steps whose activations are kept at once
_SCRATCH = 1 << 28  # bytes of a chunk of coordinates
_WIDEST = 32  # units a program's registers have room for
_TOLERANCE = 1e-4  # of the largest number, float32 against float64


class FusedNetwork:
    """One teacher's network as kernels, float32.

    Args:
        teacher: a row that ``suits``.
        window, scratch: steps kept at once, and bytes of what is kept of them.
    """

    def __init__(self, teacher: TeacherRow, window: int = _WINDOW, scratch: int = _SCRATCH) -> None:
        from torch_impl import triton_lstm

        self._kernels, self._teacher = triton_lstm, teacher
        self._window, self._scratch = window, scratch
        self._sizes = launched(teacher)
        self._places = torch.from_numpy(_places(teacher))

    def step(
        self, weights: Weights, x: torch.Tensor, before: list[torch.Tensor], after: list[torch.Tensor]
    ) -> torch.Tensor:
        """Output [N] before ``scale`` for inputs x [F, N].

        Args:
            before, after: h and c of every layer, [H, N]; may be the same tensors.
        """
        n = x.shape[1]
        out = x.new_empty(n)
        self._roll(self._packed(weights), x, before, after, out, 0, 0, 1, n, (n, n, n, 0))
        return out

    def gradient(
        self, weights: Weights, inputs: torch.Tensor, c: torch.Tensor, start: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """d sum_t <c_t, out_t> / d weights, each in its shape, float64 sums of float32 products.

        Args:
            inputs: [T, F, N]; c: [T, N].
            start: h and c of every layer before the first step, [H, N].
        """
        steps, n = c.shape
        shapes = self._teacher.weight_shapes().values()
        found = [torch.zeros(shape, dtype=torch.float64, device=c.device) for shape in shapes]
        if not n:
            return found
        window = min(self._window, steps)
        most = max(self._scratch // (4 * self._rows(steps, window)) // _BLOCK, 1) * _BLOCK
        chunks = -(-n // most)
        size = -(-n // (chunks * _BLOCK)) * _BLOCK  # whole blocks; those beyond n are zeros
        scratch = _Scratch(self._teacher, c, window, -(-steps // window), size)
        packed = self._packed(weights)
        for low in range(0, n, size):
            self._chunk(packed, inputs, c, [a[:, low : low + size] for a in start], low, scratch, found)
        return found

    def _chunk(
        self,
        weights: torch.Tensor,
        inputs: torch.Tensor,
        c: torch.Tensor,
        start: list[torch.Tensor],
        low: int,
        scratch: "_Scratch",
        found: list[torch.Tensor],
    ) -> None:
        """Adds to ``found`` what the coordinates of ``start`` give."""
        steps, n = c.shape
        window, size, marks, kept = scratch.window, scratch.size, scratch.marks, scratch.kept
        lows = range(0, steps, window)
        for to, a in zip(marks[0], start, strict=True):
            to.zero_()[:, : a.shape[1]] = a
        for k in range(len(lows) - 1):
            layout = (size, size, size, 0)
            self._roll(weights, inputs, marks[k], marks[k + 1], scratch.out, lows[k], low, window, n, layout)
        for a in scratch.behind:
            a.zero_()
        for k in reversed(range(len(lows))):
            many, apart = min(window, steps - lows[k]), (window + 1) * size
            for to, a in zip(kept, marks[k], strict=True):
                to[:, 0] = a
            later = [a[:, 1:] for a in kept]
            layout = (size, size, apart, size)
            self._roll(weights, inputs, marks[k], later, scratch.out, lows[k], low, many, n, layout)
            with _on(c):
                self._kernels.pull[(size // _BLOCK,)](
                    weights, inputs, c, *_four(kept), *_four(scratch.behind), *scratch.given(), lows[k], low,
                    many, n, window * size, apart, size, **self._sizes,
                )  # fmt: skip
            for to, part in zip(found, scratch.products(many), strict=True):
                to += part.view(to.shape)

    def _roll(
        self,
        weights: torch.Tensor,
        x: torch.Tensor,
        before: list[torch.Tensor],
        after: list[torch.Tensor],
        out: torch.Tensor,
        first: int,
        low: int,
        steps: int,
        n: int,
        layout: tuple[int, int, int, int],
    ) -> None:
        columns = layout[0]
        if columns:
            with _on(x):
                self._kernels.roll[(-(-columns // _BLOCK),)](
                    weights, x, *_four(before), *_four(after), out, first, low, steps, n, *layout,
                    **self._sizes,
                )  # fmt: skip

    def _packed(self, weights: Weights) -> torch.Tensor:
        """All weights, padded, as the kernels read them."""
        values = [w.detach().reshape(-1) for w in weights.values()]
        self._places = self._places.to(values[0].device)
        return torch.cat([values[0].new_zeros(1), *values])[self._places]

    def _rows(self, steps: int, window: int) -> int:
        """Numbers kept of one coordinate."""
        state, width = 2 * sum(self._teacher.lstm), len(self._teacher.inputs) + 2 * self._teacher.pre
        marks = -(-steps // window)
        return state * (marks + 1 + window + 1) + window * (width + 4 * sum(self._teacher.lstm) + 1)


class _Scratch:
    """What a chunk of coordinates needs, used by one after the other."""

    def __init__(self, teacher: TeacherRow, like: torch.Tensor, window: int, windows: int, size: int) -> None:
        self.window, self.size, self._pre = window, size, teacher.pre
        units = [u for u in teacher.lstm for _ in ("h", "c")]
        self.marks = [[like.new_empty(u, size) for u in units] for _ in range(windows)]
        self.kept = [like.new_empty(u, window + 1, size) for u in units]
        self.behind = [like.new_empty(u, size) for u in units]
        rows = (len(teacher.inputs), teacher.pre, teacher.pre, *(4 * u for u in teacher.lstm), 1)
        self._inputs, self._elu, self._under, *self._gates, self.out = (
            like.new_empty(r, window, size) for r in rows
        )

    def given(self) -> list[torch.Tensor]:
        """What a window's derivatives are written to, in the kernel's order."""
        return [self._inputs, self._elu, self._under, self._gates[0], self._gates[-1], self.out]

    def products(self, many: int) -> list[torch.Tensor]:
        """The gradient of every weight in canonical order, from ``many`` steps."""
        found, x = [], _flat(self._inputs, 0, many)
        if self._pre:
            under = _flat(self._under, 0, many)
            found, x = [under @ x.T, under.sum(1)], _flat(self._elu, 0, many)
        for layer, gates in enumerate(self._gates):
            d, h = _flat(gates, 0, many), self.kept[2 * layer]
            found += [d @ x.T, d @ _flat(h, 0, many).T, d.sum(1)]
            x = _flat(h, 1, many)
        d = _flat(self.out, 0, many)
        return [*found, d @ x.T, d.sum(1)]


def fused_network(network: Any) -> FusedNetwork | None:
    """The kernels of a ``TeacherNetwork``, None where its own ``step`` and autograd are to be used.

    They are asked for by ``L2O_TRITON=1``: nobody has timed them on a GPU yet.
    """
    w = network.weights["out/w"]
    if os.environ.get("L2O_TRITON", "0") != "1" or not suits(network.teacher):
        return None
    if w.dtype != torch.float32 or network.state_dtype != torch.float32:
        return None
    return checked(network.teacher, str(w.device)) if capable(w.device) else None


def capable(device: torch.device) -> bool:
    """A GPU of NVIDIA's with the tensor cores the kernels ask for, or another maker's."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def launched(teacher: TeacherRow) -> dict[str, Any]:
    """What the kernels are compiled for (the names of ``triton_lstm``), and how they are launched."""
    inputs, pre, (h0, h1) = len(teacher.inputs), teacher.pre, (*teacher.lstm, 0)[:2]
    fp, pp, hp0, hp1 = map(_padded, (inputs, pre, h0, h1))
    dp = pp if pre else fp
    at0 = pp * (fp + 1) if pre else 0
    at1 = at0 + 4 * hp0 * (dp + hp0 + 1)
    return {
        "F": inputs, "P": pre, "H0": h0, "H1": h1, "FP": fp, "PP": pp, "DP": dp, "HP0": hp0, "HP1": hp1,
        "AT0": at0, "AT1": at1, "ATO": at1 + (4 * hp1 * (hp0 + hp1 + 1) if h1 else 0),
        "SQUASH": int(teacher.output == "tanh"), "B": _BLOCK, "DOT": _DOT,
        "num_warps": _WARPS, "num_stages": 1,
    }  # fmt: skip


def suits(teacher: TeacherRow) -> bool:
    """One or two cells, none of its layers too wide."""
    widths = (len(teacher.inputs), teacher.pre, *teacher.lstm)
    return len(teacher.lstm) in (1, 2) and max(widths) <= _WIDEST


@functools.cache
def checked(teacher: TeacherRow, device: str) -> FusedNetwork | None:
    """The kernels if they are there and right on a small case, else None; a RuntimeWarning says why not."""
    try:
        wrong = difference(teacher, device)
    except ImportError:
        return None
    except Exception as error:  # whatever a compiler or driver raises
        wrong = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    if not wrong:
        return FusedNetwork(teacher)
    warnings.warn(
        f"fused kernels of {teacher.name} on {device} are not used, plain torch is: {wrong}",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def difference(teacher: TeacherRow, device: str) -> str:
    """What the kernels get wrong on a small case against float64 on the CPU; "" if nothing."""
    from torch_impl.teachers import TeacherNetwork

    steps, n, generator = 3, 2 * _BLOCK + 3, rng(0, "fused")
    weights = {name: 0.5 * generator.normal(size=s) for name, s in teacher.weight_shapes().items()}
    network = TeacherNetwork(teacher, weights, torch.float64)
    x = torch.from_numpy(generator.normal(size=(steps, len(teacher.inputs), n)))
    c = torch.from_numpy(generator.normal(size=(steps, n)))
    start = [torch.from_numpy(0.5 * generator.normal(size=(u, n))) for u in teacher.lstm for _ in ("h", "c")]
    leaves: Weights = {name: w.clone().requires_grad_() for name, w in network.weights.items()}
    with torch.enable_grad():
        outs, state = [], tuple(start)
        for t in range(steps):
            out, state = network.step(leaves, x[t], state, t + 1)
            outs.append(out)
        expected = torch.autograd.grad(torch.stack(outs), list(leaves.values()), c)
    fused = FusedNetwork(teacher, window=2, scratch=1)
    with torch.no_grad():
        given = {name: w.to(device, torch.float32) for name, w in network.weights.items()}
        x, c, *start = (a.to(device, torch.float32) for a in (x, c, *start))
        gradient = fused.gradient(given, x, c, start)
        got = [fused.step(given, x[t], start, start) for t in range(steps)]  # in place
    pairs = {"the output": (torch.stack(got), torch.stack(outs).detach())}
    pairs |= {f"state {i}": (a, b.detach()) for i, (a, b) in enumerate(zip(start, state, strict=True))}
    pairs |= {
        f"the gradient of {name}": pair
        for name, pair in zip(leaves, zip(gradient, expected, strict=True), strict=True)
    }
    least = 0.1 * max(float(b.abs().max()) for _, b in pairs.values())  # sums may cancel
    for what, (a, b) in pairs.items():
        error = float((a.cpu().double() - b).abs().max()) / max(float(b.abs().max()), least)
        if not error <= _TOLERANCE:
            return f"{what} is {error:.1e} off, at most {_TOLERANCE:.0e} expected"
    return ""


def _padded(size: int) -> int:
    """The power of two from 16 on that has room for ``size`` rows: what ``tl.dot`` takes."""
    return max(16, 1 << (size - 1).bit_length()) if size else 16


def _places(teacher: TeacherRow) -> np.ndarray:
    """Where each padded weight stands in the vector of 0 and all weights in canonical order."""
    found, at = [], 1
    for name, shape in teacher.weight_shapes().items():
        count, lead = int(np.prod(shape)), {"p": 1, "l": 4, "o": 1}[name[0]]  # gates or nothing
        rows = () if name[0] == "o" else (shape[0] // lead,)
        shape = (lead, *rows, *shape[1:])
        place = np.zeros((lead, *map(_padded, shape[1:])), np.int64)
        place[tuple(map(slice, shape))] = np.arange(at, at + count).reshape(shape)
        found.append(place.ravel())
        at += count
    return np.concatenate(found)


def _four(arrays: list[torch.Tensor]) -> list[torch.Tensor]:
    """h and c of two layers; of one layer twice, the second not looked at."""
    return [*arrays[:2], *arrays[-2:]]


def _flat(a: torch.Tensor, first: int, many: int) -> torch.Tensor:
    """Steps ``first`` and on of [row, step, coordinate] as [row, step x coordinate], a view."""
    return a[:, first : first + many].flatten(1)


def _on(a: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(a.device) if a.is_cuda else contextlib.nullcontext()
