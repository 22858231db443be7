"""Files that were damaged at random: none runs code, none ends in a traceback, none is taken for another."""

import collections
import json
import os
import subprocess
import sys

import pytest

from tests.faults.conftest import SEED
from tests.faults.mutants import FORMATS, HASHED

NEEDS = {"onnx": "onnx", "pth": "torch"}


def outcomes(format: str, folder: str, count: int, how: str) -> tuple[collections.Counter, float, float]:
    """What became of so many mutants, the longest time in seconds and the most memory in MiB."""
    found, slowest, most, first = collections.Counter(), 0.0, 0.0, 0
    while first < count:
        words = [format, folder, str(SEED), str(first), str(count), how]
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.mutants", *words],
            capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        lines = done.stdout.splitlines()
        for number, line in zip(lines[::2], lines[1::2], strict=False):
            outcome, seconds, grown, events = json.loads(line)
            assert not events, f"mutant {number}: {events}"
            found[outcome] += 1
            slowest, most = max(slowest, seconds), max(most, grown)
            first = int(number) + 1
        if first < count:  # it died: of HDF5, where the guard makes one line of it
            assert len(lines) % 2, done.stderr[-2000:]
            found[f"died {done.returncode}"] += 1
            first += 1
    return found, slowest, most


@pytest.mark.slow_with(format=FORMATS.keys() - {"checkpoint", "npz", "toml"})
@pytest.mark.parametrize("format", FORMATS)
def test_a_hostile_file_is_one_clear_error(format, times, tell, tmp_path):
    pytest.importorskip(NEEDS.get(format, "numpy"))
    found, slowest, most = outcomes(format, str(tmp_path), times(1000), "any")
    tell(f"{dict(found)}, the slowest {slowest:.2f} s, {most:.0f} MiB more")
    known = {"read", "other", "refused"} | {
        key for key in found if key.startswith("died") and "h5" in FORMATS[format][0]
    }
    assert found.keys() <= known, found
    assert slowest < 5.0 and most < (1024.0 if FORMATS[format][0].endswith(".h5") else 300.0)
    assert format not in HASHED or not found["other"], "changed, and nobody was told"


@pytest.mark.slow_with(format=set(HASHED) - {"checkpoint", "onnx"})
@pytest.mark.parametrize("format", HASHED)
def test_a_flipped_bit_is_noticed_or_harmless(format, times, tell, tmp_path):
    pytest.importorskip(NEEDS.get(format, "numpy"))
    found, *_ = outcomes(format, str(tmp_path), times(500), "flip")
    tell(f"{dict(found)}: 0 silent")
    assert not found["other"] and found["refused"]
