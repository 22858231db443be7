"""How many cores this process may use, how many threads it was told to, and how much memory it may take."""

import os
import resource
from pathlib import Path


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def default_threads() -> int:
    """Threads of a framework that does not say: OMP_NUM_THREADS, or all cores this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(asked) if asked.isdigit() and int(asked) else cores()


def memory() -> int:
    """Bytes of memory of the machine, or of the control group where that has less."""
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup/memory.max")
    said = group.read_text().strip() if group.exists() else ""
    return min(least, int(said)) if said.isdigit() else least


def limit_memory(size: int) -> None:
    """Let this process take no more than ``size`` bytes of addresses beyond those taken by now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limit = pages * resource.getpagesize() + size
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
