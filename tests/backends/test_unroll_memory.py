"""Peak memory of meta-training: flat in the unroll's length, small beside a full graph's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import kernels
from common.tables.teachers import TEACHERS

ROOT = Path(__file__).parents[2]
# Arrays of this size go back to the system when they are freed, as those of large optimizees do anyway: the
# holes that glibc's heap keeps between smaller ones are not what is measured here.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
}
RESNET_50 = 25_600_000  # coordinates


def peak(backend: str, teacher: str, n: int, steps: int, share: float = 1.0, state: str = "full") -> int:
    """Bytes that one unroll takes in a fresh process beyond what that had before."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the peak cannot be read here: no /proc/self/clear_refs")
    pytest.importorskip({"torch": "torch", "tf": "tensorflow"}[backend])
    script = Path(__file__).with_name("unroll_memory.py")
    run = subprocess.run(
        [sys.executable, script, backend, teacher, *map(str, (n, steps, share, state))],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def stored(teacher: str, n: int, steps: int, share: float = 1.0) -> float:
    """Bytes of features and gradients of all steps: what an unroll keeps (MATH.md section 3).

    Of a teacher with structure outputs too, and these and the gradients of all coordinates.
    """
    row = TEACHERS[teacher]
    whole = 2 * steps + 1 if row.structure else (steps + 1) * share
    return 4 * n * (steps * len(row.inputs) * share + whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "teacher", "share"),
    [
        ("torch", "rnnprop", 1.0),
        ("torch", "rp_s", 1.0),
        ("torch", "rp_s_m", 1.0),
        ("torch", "rp_s_m", 0.1),
        ("tf", "rnnprop", 1.0),
        ("tf", "rp_s_m", 1.0),
        ("tf", "rp_s_m", 0.1),
    ],
)
def test_the_peak_is_flat_in_the_unrolls_length(backend, teacher, share):
    """What is not stored grows by less than half of one more number of every coordinate and step."""
    n = 100_000
    short, long = (
        peak(backend, teacher, n, steps, share) - stored(teacher, n, steps, share) for steps in (20, 200)
    )
    assert 0 < long < short + 0.5 * 4 * n * (200 - 20)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "tf"])
def test_the_peak_is_a_fifth_of_a_full_graphs(backend):
    """Without compiled code TensorFlow's own backward pass keeps more: half of it then."""
    n, share = 100_000, 5 if backend == "torch" or not kernels.missing() else 2
    assert peak(backend, "rnnprop", n, 20) <= peak("torch", "rnnprop", n, 20, state="naive") / share


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "state", "gib"), [(1.0, "full", 30), (0.1, "full", 16), (0.1, "bfloat16", 8)]
)
@pytest.mark.parametrize("backend", ["torch", "tf"])
def test_rnnprop_on_a_resnet_50_fits(backend, share, state, gib):
    """By two smaller sizes: memory is linear in the number of coordinates."""
    small, large = (peak(backend, "rnnprop", n, 20, share, state) for n in (400_000, 1_200_000))
    assert large + (large - small) / 800_000 * (RESNET_50 - 1_200_000) < gib * 2**30
