"""The guard of Keras' optimizers where Keras alone is asked: XLA, accumulated steps and counts.

What both frameworks do is in ``tests/backends/test_guard.py``.
"""

import warnings

import numpy as np
import pytest

from interchange.rule.rule import Rule

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from tests.helpers.tf_side import stepper, tallies  # noqa: E402
from tf_impl.optimizers.optimizers import NonFiniteError, SymbolicOptimizer  # noqa: E402

SGD = Rule.named("sgd")
NAN = np.nan


def test_compiled_by_xla_check_finite_tells():
    p, optimizer = keras.Variable(np.ones(2)), SymbolicOptimizer(SGD, 1e-3)
    step = stepper(optimizer, [p], "xla")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(1000):
            step([NAN, NAN])
    with pytest.raises(NonFiniteError, match=r"2 of 2 coordinates of .* at 10 looks in a row"):
        optimizer.check_finite()
    for _ in range(100):
        step([NAN, 1.0])
    with pytest.warns(RuntimeWarning, match=r"1 of 2 coordinates of .* because the step was not finite"):
        optimizer.check_finite()


def test_accumulated_steps_are_looked_at_by_their_own_number():
    p = keras.Variable(np.ones(2))
    optimizer = SymbolicOptimizer(SGD, 1e-3, gradient_accumulation_steps=2)
    step = stepper(optimizer, [p], "graph")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(199):
            step([NAN, 1.0])
    with pytest.warns(RuntimeWarning, match="1 of 2"):
        step([NAN, 1.0])


def test_state_with_the_tally_of_before_is_taken():
    p, optimizer = keras.Variable(np.ones(2)), SymbolicOptimizer(Rule.named("adam"), 0.1)
    stepper(optimizer, [p], "eager")([1.0, 1.0])
    optimizer.save_own_variables(store := {})
    del store["about"]  # which came later
    number = next(k for k, v in enumerate(optimizer.variables) if v is optimizer._tallies[0])
    store[str(number)] = np.array([7.0, 3.0])  # t, skipped in a row
    other = SymbolicOptimizer(Rule.named("adam"), 0.1)
    other.build([keras.Variable(np.ones(2))])
    other.load_own_variables(store)
    assert tallies(other) == [[7, 0, 0]]


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_steps_are_counted_beyond_what_float32_can_count(mode):
    """Of 2^24 + 1 float32 makes 2^24: t would stand still."""
    p, optimizer = keras.Variable(np.zeros(2, "float32")), SymbolicOptimizer(SGD, 1.0)
    optimizer.build([p])
    step = stepper(optimizer, [p], mode)
    optimizer._tallies[0].assign([2.0**24, 0.0, 0.0])
    step([1.0, 0.5])
    step([1.0, 0.5])
    assert p.numpy().tolist() == [-2.0, -1.0] and tallies(optimizer)[0][0] == 2**24 + 2
