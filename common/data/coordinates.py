"""Which coordinates are recorded or enter a meta-gradient, and which runs are held out."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from common.rng import rng

_SHUFFLED = 2**22  # elements; a shuffle of a larger tensor's would take its memory twice


def choose_coordinates(sizes: Sequence[int], count: int, seed: int, index: int) -> np.ndarray:
    """Numbers [n <= count] of coordinates of the flat vector, drawn without repeats, equal shares per tensor.

    Args:
        sizes: elements of every tensor, in the order they lie in the flat vector.
        count: how many; small tensors give what they have, the rest is shared by the others.
        seed, index: of the recording and the run.
    """
    return _drawn(sizes, count, rng(seed, "record_coordinates", index)).numbers


def choose_tensors(sizes: Sequence[int], count: int, seed: int, index: int) -> np.ndarray:
    """Numbers of all coordinates of some tensors, drawn one after the other as far as ``count`` reaches.

    Where it reaches for none, it is the smallest one. Arguments as of ``choose_coordinates``.
    """
    left, chosen = count, []
    for k in rng(seed, "record_tensors", index).permutation(len(sizes)):
        if 0 < sizes[k] <= left:
            chosen.append(k)
            left -= sizes[k]
    starts = np.cumsum([0, *sizes])
    smallest = min((k for k, size in enumerate(sizes) if size), key=sizes.__getitem__)
    return np.concatenate([np.arange(starts[k], starts[k] + sizes[k]) for k in sorted(chosen) or [smallest]])


def largest_within(sizes: Sequence[int], count: int) -> list[int]:
    """Numbers of the largest tensors that have ``count`` elements together; the smallest if none fits.

    Tensors of size 0 are left out.
    """
    left, chosen = count, []
    order = sorted((k for k, size in enumerate(sizes) if size), key=lambda k: -sizes[k])
    for k in order:
        if sizes[k] <= left:
            chosen.append(k)
            left -= sizes[k]
    return sorted(chosen or order[-1:])


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some of the coordinates of a flat vector, to stand for all in a sum.

    Attributes:
        numbers: [n], rising.
        weights: [n], what each counts, so that the weighted sum over them is unbiased for that over all.
    """

    numbers: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)


def choose_subset(sizes: Sequence[int], share: float, generator: np.random.Generator) -> Subset:
    """A share of the coordinates, equal numbers per tensor: small ones, with the largest gradients, whole.

    On mnist-mlp a tenth then gives the meta-gradient with a quarter of the error of a uniform draw.

    Args:
        sizes: elements of every tensor, in the order they lie in the flat vector.
    """
    return _drawn(sizes, max(len(sizes), round(share * sum(sizes))), generator)


def _drawn(sizes: Sequence[int], count: int, generator: np.random.Generator) -> Subset:
    # Large tensors come first where the shares do not come out even.
    order = np.argsort(-np.asarray(sizes), kind="stable")
    taken = _shares(np.asarray(sizes)[order], min(count, sum(sizes)))
    starts = np.cumsum([0, *sizes])
    numbers = [_draw(generator, sizes[k], n) + starts[k] for k, n in zip(order, taken, strict=True)]
    weights = np.repeat([sizes[k] / max(n, 1) for k, n in zip(order, taken, strict=True)], taken)
    numbers = np.concatenate(numbers)
    rising = np.argsort(numbers)
    return Subset(numbers[rising], weights[rising])


def _shares(sizes: np.ndarray, count: int) -> np.ndarray:
    """Equal shares of ``count``, none above its size; what does not come out even goes to the first."""
    taken = np.zeros_like(sizes)
    while count:
        room = np.flatnonzero(taken < sizes)
        each = min(count // len(room), int((sizes - taken)[room].min()))
        taken[room[: count if each == 0 else len(room)]] += max(each, 1)
        count -= each * len(room) or count
    return taken


def _draw(generator: np.random.Generator, size: int, count: int) -> np.ndarray:
    if size > _SHUFFLED:
        return generator.choice(size, count, replace=False, shuffle=False)
    return generator.permutation(size)[:count]


def split_by_run(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """By run: a fifth (at least one) each for validation and test, the rest for training."""
    held = max(1, round(0.2 * len(names)))
    return {
        "train": tuple(names[: -2 * held]),
        "valid": tuple(names[-2 * held : -held]),
        "test": tuple(names[-held:]),
    }
