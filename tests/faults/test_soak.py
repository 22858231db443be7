"""Training, recording and distilling again and again in one process: memory and files stay as they are."""

import os
import time

import numpy as np
import pytest

from tests.faults.table import COMMANDS, prepared
from tests.helpers.commands import call

pytest.importorskip("torch")
pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("L2O_FAULTS_SOAK", "40"))
SETTLED = 600.0  # seconds after which memory may not grow, or a quarter of a shorter soak
SLOPE = 2.0  # MiB an hour


def resident() -> float:
    """MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_memory_and_files_stay_as_they_are(tmp_path, tell):
    inputs = prepared(tmp_path, lambda words: call(" ".join(words)), "torch")
    started, seen = time.monotonic(), []
    while (now := time.monotonic() - started) < SECONDS:
        for name in ("train", "record", "distill"):
            words = COMMANDS[name].words("torch", inputs, tmp_path / "out")
            assert call(" ".join([*words, "--overwrite"])) == 0
        seen.append((now, resident(), len(os.listdir("/proc/self/fd"))))
    later = np.array([row for row in seen if row[0] > min(SETTLED, SECONDS / 4)])
    assert len(later) >= 2 and np.ptp(later[:, 2]) == 0
    slope = np.polyfit(later[:, 0] / 3600.0, later[:, 1], 1)[0]
    tell(
        f"{len(seen)} rounds in {SECONDS:.0f} s: {slope:+.2f} MiB an hour after {later[0, 0]:.0f} s, "
        f"{later[-1, 2]:.0f} files open"
    )
    assert slope < SLOPE or SECONDS < 2 * SETTLED, "memory grows"
