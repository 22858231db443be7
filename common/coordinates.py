"""Which coordinates of a run are recorded, and which runs are held out: alike in both backends."""

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
    generator = rng(seed, "record_coordinates", index)
    # Large tensors come first where the shares do not come out even.
    order = np.argsort(-np.asarray(sizes), kind="stable")
    taken = [0] * len(order)
    for _ in range(min(count, sum(sizes))):
        open_ = [k for k, tensor in enumerate(order) if taken[k] < sizes[tensor]]
        taken[min(open_, key=taken.__getitem__)] += 1
    starts = np.cumsum([0, *sizes])
    drawn = [_draw(generator, sizes[k], n) + starts[k] for k, n in zip(order, taken, strict=True)]
    return np.sort(np.concatenate(drawn))


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
