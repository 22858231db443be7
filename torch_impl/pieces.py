"""Parameters as vectors over their memory, and the buffers that a planned rule works in."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from torch_impl.eager import Kernel
from torch_impl.scalars import Values

Tensor = torch.Tensor
Vectors = list  # tensors by place

_KEPT = 64  # sets of views; a training loop has a few


class Item(NamedTuple):
    """One parameter: its tensors have one shape; the state has the dtype of the computation."""

    p: Tensor
    g: Tensor
    state: Sequence[Tensor]


class Settings(NamedTuple):
    """What a step does with the update: p <- p * shrink + rate * u; ``guard`` refuses a bad u."""

    shrink: float
    rate: float
    maximize: bool
    guard: bool


class Plan:
    """A kernel with the numbers of the step and buffers, for vectors of one dtype."""

    def __init__(self, kernel: Kernel, values: Values, dtype: torch.dtype) -> None:
        self.kernel, self.dtype, self._values = kernel, dtype, values
        self._size = 1 + max([1, *kernel.slots, *kernel.buffers, *values.tensors])
        # Backwards: a lag takes over the old value of the slot before it.
        moves = enumerate(zip(kernel.slots, kernel.new, strict=True))
        self._moves = [(k, new) for k, (slot, new) in moves if new != slot][::-1]
        self._buffers: dict[int, Tensor] = {}
        self._views: dict[int, Vectors] = {}
        self._shaped: dict[tuple[torch.Size, ...], tuple[Vectors, dict[int, list[Tensor]]]] = {}

    @property
    def factor(self) -> float:
        """What the vector at ``kernel.out`` has to be multiplied with."""
        return self.kernel.factor(self._values)

    def run(self, r: Vectors) -> None:
        """The calls: from places 0, 1 and the slots to ``kernel.out`` and ``kernel.new``."""
        floats = self._values.floats
        for call in self.kernel.calls:
            call(r, floats)

    def views(self, n: int) -> Vectors:
        """The buffers cut to [n], and the numbers, by place; shared: to be copied before it is changed."""
        if n not in self._views:
            if len(self._views) >= _KEPT:
                self._views.clear()
            r: Vectors = [None] * self._size
            for place in (0, 1, *self.kernel.slots, *self.kernel.buffers):
                r[place] = room(self._buffers, place, n, self.dtype)[:n]
            for place, number in self._values.tensors.items():
                r[place] = number
            self._views[n] = r
        return self._views[n]

    def side_by_side(self, shapes: tuple[torch.Size, ...]) -> tuple[Vectors, dict[int, list[Tensor]]]:
        """``views`` with room for tensors of these shapes, and by place the parts in their shapes."""
        if shapes not in self._shaped:
            if len(self._shaped) >= _KEPT:
                self._shaped.clear()
            sizes = [shape.numel() for shape in shapes]
            r, kernel = self.views(sum(sizes)), self.kernel
            self._shaped[shapes] = (
                r,
                {
                    place: [
                        part.view(shape) for part, shape in zip(r[place].split(sizes), shapes, strict=True)
                    ]
                    for place in {0, 1, *kernel.slots, *kernel.new, kernel.out}
                },
            )
        return self._shaped[shapes]

    def vectors(self, item: Item, settings: Settings) -> Vectors:
        """Places set for a flat item: its own memory where dtype and sign allow, else copies."""
        r = self.views(item.p.numel()).copy()
        if settings.maximize or item.g.dtype != self.dtype:
            r[0].copy_(item.g)
            if settings.maximize:
                r[0].neg_()
        else:
            r[0] = item.g
        if item.p.dtype != self.dtype:
            r[1].copy_(item.p)
        else:
            r[1] = item.p
        for place, array in zip(self.kernel.slots, item.state, strict=True):
            r[place] = array
        return r

    def commit(self, r: Vectors, item: Item, settings: Settings) -> None:
        """The new state and parameter."""
        for k, place in self._moves:
            item.state[k].copy_(r[place])
        theta = r[1]  # the parameter itself, or a copy of higher precision
        if settings.shrink != 1.0:
            theta.mul_(settings.shrink)
        self.kernel.apply(r, theta, settings.rate * self.factor)
        if item.p.dtype != self.dtype:
            item.p.copy_(theta)


def room(buffers: dict[int, Tensor], place: int, n: int, dtype: torch.dtype) -> Tensor:
    """The buffer of a place, with room for [n] at least."""
    if place not in buffers or buffers[place].numel() < n:
        buffers[place] = torch.empty(n, dtype=dtype)
    return buffers[place]


def flat(item: Item) -> Item | None:
    """The item's tensors as vectors over the same memory; None where their layouts differ or have holes."""
    tensors = [item.p, item.g, *item.state]
    if all(map(Tensor.is_contiguous, tensors)):
        if item.p.dim() == 1:
            return item
        p, g, *state = [x.view(-1) for x in tensors]
        return Item(p, g, state)
    strides = item.p.stride()
    if not _dense(item.p) or any(x.stride() != strides for x in tensors):
        return None
    p, g, *state = [x.as_strided((x.numel(),), (1,)) for x in tensors]
    return Item(p, g, state)


def cut(item: Item, piece: int) -> list[Item]:
    """A flat item in pieces of at most ``piece`` elements."""
    if item.p.numel() <= piece:
        return [item]
    p, g, *state = [x.split(piece) for x in (item.p, item.g, *item.state)]
    return [Item(p[k], g[k], [s[k] for s in state]) for k in range(len(p))]


def _dense(x: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
