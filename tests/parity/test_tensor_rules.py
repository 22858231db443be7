"""Every executable target on random rules that see tensors, against the oracle; gradients by autodiff too."""

import gc
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest

from interchange.language.expression import to_text
from tests.parity.needs import need
from tests.parity.tensor_rules import SHAPES, Case, case
from tests.parity.tensor_runners import ROWS, Row

BARS = {np.float64: 1e-11, np.float32: 1e-3}
SURE = 8.0  # where the oracle moves by no more than this part of the bar is compared


@dataclass
class Outcome:
    """Errors of one target in one dtype, over max|u| of the step.

    Attributes:
        worst, where: the largest, and of which rule and shape.
        elements, apart: all, and those that are not compared.
    """

    target: str
    dtype: str
    worst: float = 0.0
    where: str = ""
    elements: int = 0
    apart: int = 0

    def add(self, row: Row, given: Case, bar: float) -> None:
        with np.errstate(all="ignore"):
            got = row.run(given)
        assert got.dtype == given.g.dtype and got.shape == given.g.shape
        stop = given.calm if row.add_theta else len(got)
        error, sure = error_of(got[:stop], given, bar)
        self.elements, self.apart = self.elements + got.size, self.apart + got.size - int(sure.sum())
        if error.size and error.max() > self.worst:
            self.worst = float(error.max())
            constants = " ".join(f"{key}={value!r}" for key, value in given.rule.constants.items())
            self.where = f"{given.rule.name} on {given.view.shape}: {given.rule.scale} * ({to_text(given.rule.expression)}) {constants}"

    def __str__(self) -> str:
        share = 100 * self.apart / max(1, self.elements)
        return f"{self.target:20} {self.dtype:8} {self.worst:9.1e} {share:7.1f} %   {self.where[:120]}"


def error_of(got: np.ndarray, given: Case, bar: float) -> tuple[np.ndarray, np.ndarray]:
    """|got - u| over the step's largest, inf where only one is finite; and what the oracle is sure of."""
    stop = len(got)
    want, size = given.u[:stop], given.size[:stop]
    with np.errstate(all="ignore"):
        error = np.abs(got.astype(np.float64) - want) / size
        sure = ~given.apart[:stop] & (SURE * given.unit[:stop] <= bar * size)
    error = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, error)
    error = np.where(np.isnan(error), np.inf, error)
    sure &= ~(given.spilled[:stop] & (error > bar))
    return np.where(sure, error, 0.0), sure


def conformance(targets: Iterable[tuple[str, type]], indices: Iterable[int]) -> list[Outcome]:
    outcomes = {key: Outcome(key[0], np.dtype(key[1]).name) for key in targets}
    for index in indices:
        for shape in SHAPES:
            for (target, dtype), outcome in outcomes.items():
                row = ROWS[target]
                outcome.add(row, case(index, shape, dtype, row.add_theta), BARS[dtype])
        case.cache_clear()
        if index % 50 == 49:
            gc.collect()
    return list(outcomes.values())


CASES = [(target, dtype) for target, row in ROWS.items() for dtype in row.dtypes]
