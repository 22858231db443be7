"""Training, recording and distilling again and again in one process: memory and files stay as they are."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from tests.faults.table import COMMANDS, prepared
from tests.helpers.commands import call
from tests.helpers.processes import started

pytest.importorskip("torch")
pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("L2O_FAULTS_SOAK", "40"))
SETTLED = 600.0  # seconds after which memory may not grow, or a quarter of a shorter soak
SLOPE = 2.0  # MiB an hour


def resident() -> float:
    """MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(folder: str, seconds: float) -> None:
    """The rounds' times, MiB and open files into ``seen.json``."""
    path = Path(folder)
    inputs = prepared(path, lambda words: call(" ".join(words)), "torch")
    begun, seen = time.monotonic(), []
    while (now := time.monotonic() - begun) < seconds:
        for name in ("train", "record", "distill"):
            words = COMMANDS[name].words("torch", inputs, path / "out")
            assert call(" ".join([*words, "--overwrite"])) == 0
        seen.append((now, resident(), len(os.listdir("/proc/self/fd"))))
    (path / "seen.json").write_text(json.dumps(seen))


def test_memory_and_files_stay_as_they_are(tmp_path, tell):
    # In a process of its own: pytest's grows too, by what it keeps of a long test.
    code = f"from {__name__} import soak; import sys; soak(sys.argv[1], float(sys.argv[2]))"
    process = started(code, tmp_path, SECONDS)
    _, error = process.communicate()
    assert process.returncode == 0, error
    seen = json.loads((tmp_path / "seen.json").read_text())
    later = np.array([row for row in seen if row[0] > min(SETTLED, SECONDS / 4)])
    assert len(later) >= 2 and np.ptp(later[:, 2]) == 0
    slope = np.polyfit(later[:, 0] / 3600.0, later[:, 1], 1)[0]
    tell(
        f"{len(seen)} rounds in {SECONDS:.0f} s: {slope:+.2f} MiB an hour after {later[0, 0]:.0f} s, "
        f"{later[-1, 2]:.0f} files open"
    )
    assert slope < SLOPE or SECONDS < 2 * SETTLED, "memory grows"
