"""Settings every test shares, and the optional data folder."""

import gc
import importlib
import logging
import math
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType

# Before NumPy, torch or TensorFlow are imported anywhere: OpenMP reads it once, and its threads spin while
# they wait by default, which makes tests beside other work many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

from common.run import cli

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("L2O_DATA") or ROOT.parent / "shared" / "data")

np.set_printoptions(precision=17)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``slow_with(name=values, ...)``: slow is a test whose parameters ``name`` all are among the values."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        for mark in item.iter_markers("slow_with"):
            if all(params.get(name) in values for name, values in mark.kwargs.items()):
                item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: no search for garbage has to go through a million objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_sessionstart() -> None:
    try:
        import torch  # before TensorFlow, wherever a test has both: one fixed order of import
    except ImportError:
        return
    torch.set_num_threads(1)
    torch.set_printoptions(precision=17)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """The commands hand warnings to logging for the rest of their process, which here is the tests'."""
    yield
    logging.captureWarnings(False)


@pytest.fixture(autouse=True)
def no_heartbeat(monkeypatch) -> None:
    """Here a slow machine would make two lines of one."""
    monkeypatch.setattr(cli, "SILENCE", math.inf)
    monkeypatch.setattr(cli, "BEGINNING", math.inf)


@pytest.fixture
def data_dir() -> Path:
    """The folder with the optional data sets; without it the test is skipped, and says so."""
    if not (DATA / "mnist.npz").is_file():
        pytest.skip(f"no mnist.npz in {DATA}; put it there or set L2O_DATA")
    return DATA


def side(name: str) -> ModuleType:
    """What tests ask of "torch" or "tf"; where that is missing the test is skipped, and says so."""
    pytest.importorskip({"torch": "torch", "tf": "tensorflow"}[name])
    return importlib.import_module(f"tests.helpers.{name}_side")


@pytest.fixture(scope="module", params=["torch", "tf"])
def impl(request: pytest.FixtureRequest) -> ModuleType:
    """Each framework in turn: ``tests/helpers/torch_side.py`` or ``tf_side.py``."""
    return side(request.param)


def need_half_products(dtype: str) -> None:
    """Skip, and say why, where TensorFlow cannot multiply ``float16`` or ``bfloat16``."""
    from tf_impl.problems.products import fault

    if reason := fault(dtype):
        pytest.skip(reason)


@pytest.fixture(params=["compiled", "plain"])
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With compiled code and without: where both frameworks have it, they would be the same C."""
    from common import kernels

    monkeypatch.setenv("L2O_KERNELS", "1" if request.param == "compiled" else "0")
    if request.param == "compiled" and (reason := kernels.missing()):
        pytest.skip(reason)
    return request.param
