"""Every executable target on random rules that see tensors, against the oracle; gradients by autodiff too.

Errors are over max|u| of a step. Compared is where the oracle itself moves by less than an eighth of the bar
when every node errs by 2 ulp; what is left out is counted apart.
"""

import dataclasses
import gc
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest

from interchange.language import expression as ex
from interchange.language.view import canonical
from tests.parity.needs import need
from tests.parity.tensors import tensor_gradients as gradients
from tests.parity.tensors.tensor_rules import KINDS, SEEING, SHAPES, Case, case, inputs, rule_of
from tests.parity.tensors.tensor_runners import ROWS, Row

FEW, MANY = 24, 500
BARS = {np.float64: 1e-11, np.float32: 1e-3}
SURE = 8.0
MOST_APART = {np.float64: 15.0, np.float32: 25.0}  # per cent; of what a guard leaves alone too


@dataclass
class Outcome:
    """Errors of one target in one dtype.

    Attributes:
        rules: run.
        worst, where: the largest error, and of which rule and shape.
        cases: rules times shapes.
        apart: the sum over cases of the share that is not compared.
    """

    target: str
    dtype: str
    rules: int = 0
    worst: float = 0.0
    where: str = ""
    cases: int = 0
    apart: float = 0.0

    @property
    def share(self) -> float:
        """What is apart, per cent, whatever the size of the tensor."""
        return 100.0 * self.apart / max(1, self.cases)

    def add(self, row: Row, given: Case, bar: float) -> None:
        with np.errstate(all="ignore"):
            got = row.run(given)
        assert got.dtype == given.g.dtype and got.shape == given.g.shape
        error, sure = error_of(got[: given.calm] if row.add_theta else got, given, bar)
        self.cases, self.apart = self.cases + 1, self.apart + (1.0 - float(sure.sum()) / got.size)
        if error.size and error.max() > self.worst:
            self.worst, self.where = float(error.max()), f"on {given.view.shape}: {given.rule!r}"

    def __str__(self) -> str:
        counts = f"{self.rules:4} rules {self.cases:5} cases {self.share:5.1f} % apart"
        return f"{self.target:20} {self.dtype:8} {self.worst:8.1e} {counts}   {self.where[:90]}"


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


def conformance(
    targets: Iterable[tuple[str, type]], indices: Iterable[int], shapes: int = len(SHAPES)
) -> list[Outcome]:
    """The targets on the rules, each on so many of the shapes."""
    outcomes = {key: Outcome(key[0], np.dtype(key[1]).name) for key in targets}
    for index in indices:
        for (target, dtype), outcome in outcomes.items():
            row = ROWS[target]
            if index % row.every == (dtype is np.float32) % row.every:
                outcome.rules += 1
                for k in range(shapes):
                    shape = SHAPES[(index + 3 * k) % len(SHAPES)]
                    outcome.add(row, case(index, shape, dtype, row.add_theta), BARS[dtype])
        if index % 50 == 49:
            gc.collect()
            if "jax" in sys.modules:
                sys.modules["jax"].clear_caches()
    return list(outcomes.values())


def present(name: str, needs: str) -> bool:
    """Whether a row can run here."""
    try:
        need(needs)
    except pytest.skip.Exception as reason:
        print(f"{name}: {reason}")
        return False
    return True


def check(outcome: Outcome, dtype: type) -> None:
    assert outcome.worst <= BARS[dtype], outcome.where
    assert outcome.share <= MOST_APART[dtype], outcome


CASES = [(target, dtype) for target, row in ROWS.items() for dtype in row.dtypes]


@pytest.mark.parametrize(("target", "dtype"), CASES)
@pytest.mark.slow_with(target=("optax file",))
def test_targets_equal_the_oracle(target, dtype):
    """Every rule on two shapes, every shape with some rules."""
    need(ROWS[target].needs)
    (outcome,) = conformance([(target, dtype)], range(FEW), 2)
    check(outcome, dtype)


@pytest.mark.slow
def test_targets_equal_the_oracle_on_many_rules_and_all_shapes():
    cases = [key for key in CASES if present(key[0], ROWS[key[0]].needs)]
    outcomes = conformance(cases, range(MANY))
    print("", *outcomes, sep="\n")
    for outcome in outcomes:
        check(outcome, np.dtype(outcome.dtype).type)


def check_gradients(target: str, count: int, shapes: int) -> None:
    row, worst, where, apart, total = gradients.ROWS[target], 0.0, "", 0, 0
    for index in range(0, count, row.every):
        for k in range(shapes):
            given = gradients.case(index, GRADIENT_SHAPES[(index + k) % len(GRADIENT_SHAPES)])
            error = 0.0 if given is None else gradients.errors(row.run(given), given)
            total, apart = total + 1, apart + (given is None)
            if error > worst:
                worst, where = error, f"on {given.view.shape}: {given.of!r}"
    print(f"d {target:18} float64  {worst:8.1e} {total:4} cases {apart} apart   {where[:90]}")
    assert worst <= gradients.BAR, where
    assert apart <= 0.3 * total


GRADIENT_SHAPES = [shape for shape in SHAPES if np.prod(shape) < 100]


@pytest.mark.parametrize("target", gradients.ROWS)
@pytest.mark.slow_with(target=("optax file",))
def test_gradients_equal_the_oracle(target):
    need(gradients.ROWS[target].needs)
    check_gradients(target, FEW, 1)


@pytest.mark.slow
@pytest.mark.parametrize("target", gradients.ROWS)
def test_gradients_equal_the_oracle_on_many_rules(target):
    need(gradients.ROWS[target].needs)
    check_gradients(target, MANY, len(GRADIENT_SHAPES))


def test_the_rules_hold_every_operator_and_the_inputs_every_kind_of_gradient():
    rules = [rule_of(index) for index in range(100)]
    nodes = [node for rule in rules for node in ex.walk(rule.inlined())]
    assert {node.op for node in nodes} >= set(SEEING)
    assert {node.name for node in nodes if node.op == "name"} >= {"rows", "numel", "t"}
    assert any(node.op == "ema" and node.args[1].op == "sub" for node in nodes)
    g = inputs((64, 32), 3, np.float64)[0].reshape(-1, 64, 32)
    sizes = np.abs(g).max(axis=(1, 2))
    assert len(g) == len(KINDS) + 1 and (sizes == 0).any() and ((sizes > 0) & (sizes < 1e-23)).any()
    assert 1 in {np.linalg.matrix_rank(m) for m in g} and sizes.max() > 1e4


def _transposed(run):
    """A target that takes the first axis for the rows."""

    def faulty(given):
        if len(given.view.shape) != 2:
            return run(given)
        m, n = given.view.shape
        turned = [a.reshape(-1, m, n).transpose(0, 2, 1).reshape(a.shape) for a in (given.g, given.theta)]
        other = dataclasses.replace(given, view=canonical((n, m)), g=turned[0], theta=turned[1])
        return run(other).reshape(-1, n, m).transpose(0, 2, 1).reshape(given.g.shape)

    return faulty


def _scaled(run):
    """A target that errs by 1e-8 at gradients above 0."""
    return lambda given: run(dataclasses.replace(given, g=given.g * (1.0 + 1e-8 * (given.g > 0))))


@pytest.mark.parametrize("fault", [_transposed, _scaled])
def test_a_planted_fault_is_seen(fault, monkeypatch):
    row = dataclasses.replace(ROWS["whole sequences"], run=fault(ROWS["whole sequences"].run))
    monkeypatch.setitem(ROWS, "faulty", row)
    (outcome,) = conformance([("faulty", np.float64)], range(FEW), 2)
    assert outcome.worst > 100 * BARS[np.float64]
