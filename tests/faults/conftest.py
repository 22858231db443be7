"""Budgets of the suite of faults, its seed, and its counts at the end.

``L2O_FAULTS`` says how much of it is run: 1 all of it, as ``make test-faults`` does; a tenth by default.
"""

import os
import random
from collections.abc import Callable, Iterator

import pytest

from tests.faults.starter import Starter

SCALE = float(os.environ.get("L2O_FAULTS", "0.1"))
SEED = int(os.environ.get("L2O_FAULTS_SEED", "0"))
_told: list[str] = []


@pytest.fixture(scope="session")
def times() -> Callable[[int], int]:
    """How many of so many cases are run."""
    return lambda count: max(1, round(SCALE * count))


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Draws that are a test's own."""
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Counts for the end of the report."""
    return lambda line: _told.append(f"{request.node.name}: {line}")


@pytest.fixture(scope="module", params=["torch", "tf"])
def starter(request: pytest.FixtureRequest) -> Iterator[Starter]:
    """What starts commands of a backend, whose package it has imported once."""
    pytest.importorskip({"torch": "torch", "tf": "tensorflow"}[request.param])
    with Starter(request.param) as made:
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _told:
        terminalreporter.section(f"faults, scale {SCALE:g}, seed {SEED}")
        for line in _told:
            terminalreporter.write_line(line)
