"""All randomness of the project: counter-based NumPy streams.

Initial weights, batches and noise are drawn here and handed to either backend, so the same seed
gives the same numbers in both. A stream is addressed, never advanced: ``rng(seed, "batches", epoch,
pass_)`` is the same generator whenever it is asked for, so a resumed run has no generator state to
restore.
"""

import hashlib

import numpy as np

_MAX_COUNTERS = 3


def rng(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """The generator at one address.

    Args:
        seed: the run's seed, any non-negative integer.
        stream: what is drawn, e.g. ``"theta"``; streams are independent of each other.
        counters: up to three non-negative integers, e.g. epoch and step.

    Returns:
        A Philox generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011),
        keyed by (seed, stream) with the counters in the high words of its 256-bit counter, so that
        streams of fewer than 2**64 draws never overlap.
    """
    if len(counters) > _MAX_COUNTERS:
        raise ValueError(f"at most {_MAX_COUNTERS} counters, got {len(counters)}")
    key = hashlib.sha256(f"{int(seed)}/{stream}".encode()).digest()[:16]
    words = np.zeros(4, dtype=np.uint64)
    for place, value in enumerate(counters):
        words[3 - place] = value
    return np.random.Generator(np.random.Philox(counter=words, key=np.frombuffer(key, dtype=np.uint64)))


def derived_seed(seed: int, stream: str, *counters: int) -> int:
    """A 63-bit seed drawn from one address, for handing a whole sub-task its own seed."""
    return int(rng(seed, stream, *counters).integers(2**63 - 1))
