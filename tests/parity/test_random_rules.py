"""Every executable target equals the oracle on random rules and nasty inputs; gradients too.

Within k = 8 units; a unit is how far the oracle itself moves where every node errs by 2 ulp. Elements where
that turns a branch, or makes the update finite or not, are counted apart, at most 3 %.
"""

from collections import Counter

import numpy as np
import pytest

from interchange.language import expression as ex
from interchange.rule.rule import Rule
from tests.parity import rule_conformance as conformance
from tests.parity.needs import need
from tests.parity.random_rules import COLUMNS, COORDINATEWISE, DEPTH, STEPS, nasty_inputs
from tests.parity.rule_gradients import ROWS as GRADIENT_ROWS
from tests.parity.rule_oracle import K, oracle
from tests.parity.rule_runners import ROWS

# Beside those made by hand; the first few hold every operator once.
FEW, MANY, SHARE = len(COORDINATEWISE), 2000, 3.0
pytestmark = pytest.mark.slow_with(target=("optax file",))
CASES = [(target, dtype) for target, row in ROWS.items() for dtype in row.dtypes]


def check_values(target: str, dtype: type, count: int, every: int) -> None:
    """Where that is every second rule, float32 has the other ones."""
    row = ROWS[target]
    need(target, row.compiled)
    first = (dtype is np.float32 and every == 2) - len(conformance.HAND_MADE)
    outcome = conformance.values(target, dtype, range(first, count, every))
    print(outcome)
    assert outcome.worst <= row.k.get(dtype, K), outcome.where
    assert outcome.share <= SHARE


def check_gradients(target: str, count: int) -> None:
    row = GRADIENT_ROWS[target]
    need(target, row.compiled)
    outcome = conformance.gradients(target, range(0, count, row.every))
    print(outcome)
    assert outcome.worst <= K, outcome.where
    assert outcome.share <= 25.0  # columns with a kink or something not finite at any of their steps


@pytest.mark.parametrize(("target", "dtype"), CASES)
def test_targets_equal_the_oracle(target, dtype):
    check_values(target, dtype, FEW, max(ROWS[target].every, len(ROWS[target].dtypes)))


@pytest.mark.slow
@pytest.mark.parametrize(("target", "dtype"), CASES)
def test_targets_equal_the_oracle_on_many_rules(target, dtype):
    check_values(target, dtype, MANY, ROWS[target].every)


@pytest.mark.parametrize("target", GRADIENT_ROWS)
def test_gradients_equal_the_oracle(target):
    check_gradients(target, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("target", GRADIENT_ROWS)
def test_gradients_equal_the_oracle_on_many_rules(target):
    check_gradients(target, MANY)


def test_the_rules_hold_every_operator_and_leaf():
    rules = [conformance.rule_of(index) for index in range(100)]
    used = Counter(node.op for rule in rules for node in ex.walk(rule.expression))
    assert min(used[op] for op in COORDINATEWISE) >= 4, used
    names = Counter(name for rule in rules for name in ex.names(rule.expression))
    assert min(names[name] for name in ("g", "theta", "t", "c0", "b0", "m_tilde", "drift")) >= 3, names
    assert max(ex.depth(rule.expression) for rule in rules) == DEPTH
    assert sum(rule.state_floats > 0 for rule in rules) >= 25


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_inputs_hold_every_nasty_value(dtype):
    g, theta = nasty_inputs(dtype)
    assert g.shape == theta.shape == (STEPS, COLUMNS) and g.dtype == theta.dtype == dtype
    tiny = np.finfo(dtype).tiny
    for value in (0.0, 1e-12, -1e-12, 1e6, -1e6, 1e20):
        assert (g == dtype(value)).any(), value
    assert ((g != 0) & (np.abs(g) < tiny)).any() and (np.signbit(g) & (g == 0)).any()
    assert np.isfinite(g).all() and np.isfinite(theta).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_lane_without_errors_is_the_oracle(dtype):
    g, theta = nasty_inputs(dtype)
    for index in range(20):
        rule, expected = conformance.rule_of(index), conformance.expected_of(index, dtype, False)
        exact = oracle(rule, g, theta)
        with np.errstate(all="ignore"):
            near = np.abs(exact - expected.u) <= 0.5 * expected.unit  # powers of numbers and of arrays differ
        assert (near | (exact == expected.u) | ~np.isfinite(exact)).all()
        np.testing.assert_array_equal(np.isnan(exact), np.isnan(expected.u))


def _changed(node: ex.Node, change) -> ex.Node:
    args = tuple(_changed(arg, change) for arg in node.args)
    return change(ex.Node(node.op, args, node.name, node.value))


def decay(node: ex.Node) -> ex.Node:
    if node.op in ("ema", "ema_hat") and node.args[1].op == "number":
        return ex.call(node.op, node.args[0], ex.number(node.args[1].value * (1.0 - 1e-6)))
    return node


def lag(node: ex.Node) -> ex.Node:
    return ex.call("lag", node.args[0], ex.number(node.args[1].value + 1)) if node.op == "lag" else node


def ties(node: ex.Node) -> ex.Node:
    return (
        ex.call("sub", ex.number(1.0), ex.call("greater", *node.args[::-1])) if node.op == "greater" else node
    )


def bias(node: ex.Node) -> ex.Node:
    return ex.call("ema", *node.args) if node.op == "ema_hat" else node


def _with_other_expression(change):
    def run(rule, g, theta):
        other = Rule(rule.name, _changed(rule.expression, change), rule.constants, rule.features, rule.scale)
        return other.evaluate({"g": g, "theta": theta}, g.dtype)

    return run


def _without_nan(rule, g, theta):
    u = rule.evaluate({"g": g, "theta": theta}, g.dtype)
    return np.nan_to_num(u, nan=0.0, posinf=np.inf, neginf=-np.inf)


FAULTS = {change.__name__: (_with_other_expression(change), 100.0) for change in (decay, lag, ties, bias)}


@pytest.mark.parametrize(
    ("run", "error"), [*FAULTS.values(), (_without_nan, 1e300)], ids=[*FAULTS, "nan hidden"]
)
def test_a_planted_fault_is_seen(run, error, monkeypatch):
    monkeypatch.setitem(ROWS, "faulty", type(ROWS["numpy file"])(run))
    assert conformance.values("faulty", np.float64, range(-len(conformance.HAND_MADE), FEW)).worst > error


def test_a_wrong_derivative_is_seen(monkeypatch):
    torch = pytest.importorskip("torch")
    from torch_impl.networks.operators import OPERATORS as TORCH
    from torch_impl.networks.operators import as_tensor

    # The value is right everywhere, the derivative at 0 is 1.
    monkeypatch.setitem(TORCH, "abs", lambda a: torch.where((a := as_tensor(a)) >= 0, a, -a))
    assert conformance.gradients("torch lowered", range(FEW)).worst > 100.0
