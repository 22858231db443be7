"""Settings every test shares, and the optional data folder."""

import os
from pathlib import Path

# Before NumPy, torch or TensorFlow are imported anywhere: OpenMP reads it once, and its threads spin while
# they wait by default, which makes tests beside other work many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("L2O_DATA") or ROOT.parent / "shared" / "data")

np.set_printoptions(precision=17)


def pytest_sessionstart() -> None:
    try:
        import torch  # before TensorFlow, wherever a test has both: one fixed order of import
    except ImportError:
        return
    torch.set_num_threads(1)
    torch.set_printoptions(precision=17)


@pytest.fixture
def data_dir() -> Path:
    """The folder with the optional data sets; without it the test is skipped, and says so."""
    if not (DATA / "mnist.npz").is_file():
        pytest.skip(f"no mnist.npz in {DATA}; put it there or set L2O_DATA")
    return DATA
