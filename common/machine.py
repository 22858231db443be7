"""How many cores this process may use, and how many threads it was told to."""

import os


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def default_threads() -> int:
    """Threads of a framework that does not say: OMP_NUM_THREADS, or all cores this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(asked) if asked.isdigit() and int(asked) else cores()
