"""What Keras tests of its own optimizers, for ``SymbolicOptimizer``."""

import copy
import json
import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from common.errors import L2OError
from interchange.rule.rule import Rule

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402
from keras.src.testing import TestCase  # noqa: E402

from tests.helpers.samples import DRIFT  # noqa: E402
from tests.helpers.samples import RULE_OF_EVERYTHING as RULE  # noqa: E402
from tests.helpers.tf_side import tallies  # noqa: E402
from tf_impl.optimizers.optimizers import SymbolicOptimizer  # noqa: E402

SGD = Rule.from_text("-g")
ADAM = Rule.named("adam")
MATRIX = [[1.0, 2.0], [3.0, 4.0]]


def variable(value=MATRIX, dtype: str = "float64", **options) -> keras.Variable:
    return keras.Variable(np.array(value), dtype=dtype, **options)


def walked(optimizer, steps: int = 5, start=MATRIX, p: keras.Variable | None = None) -> np.ndarray:
    """The parameter after ``steps`` gradients that are always the same ones."""
    p = variable(start) if p is None else p
    generator = np.random.default_rng(0)
    for _ in range(steps):
        optimizer.apply([tf.constant(generator.normal(size=p.shape), p.dtype)], [p])
    return p.numpy()


def steps_of(optimizer) -> list[int]:
    return [tally[0] for tally in tallies(optimizer)]


def test_constants_replace_some_of_the_rules():
    got = SymbolicOptimizer(ADAM, constants=(constants := {"beta1": 0.5}))
    constants["beta1"] = 0.1  # the caller's own
    want = walked(SymbolicOptimizer(ADAM.with_constants({"beta1": 0.5})))
    np.testing.assert_array_equal(walked(got), want)
    assert not np.array_equal(want, walked(SymbolicOptimizer(ADAM)))
    assert got.get_config()["constants"] == {"beta1": 0.5}
    assert got.rule == ADAM.with_constants({"beta1": 0.5})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"constants": {"b3": 0.5}}, L2OError, "unknown constant 'b3'"),
        ({"constants": {"beta1": 1.5}}, L2OError, "beta1"),
        ({"speed": 1}, ValueError, "not recognized"),
        ({"clipnorm": 0.1, "clipvalue": 0.1}, ValueError, "Only one of"),
        ({"clipnorm": 0.1, "global_clipnorm": 0.1}, ValueError, "Only one of"),
    ],
)
def test_error_inputs(options, error, message):
    with pytest.raises(error, match=message):
        SymbolicOptimizer(ADAM, **options)


def test_center_takes_the_drift_away():
    zeros = [(tf.zeros([2, 2], tf.float64), p := variable())]
    with pytest.warns(
        RuntimeWarning, match=r"at zero gradient, by up to 1\S* \* learning_rate a step; center=True"
    ) as told:
        SymbolicOptimizer(DRIFT).apply_gradients(zeros)
    assert len(told) == 1 and told[0].filename == __file__ and (p.numpy() != MATRIX).all()
    p, centred = variable(), SymbolicOptimizer(DRIFT, center=True, constants={"c0": 3.0})
    for _ in range(30):
        centred.apply_gradients([(tf.zeros([2, 2], tf.float64), p)])
    np.testing.assert_allclose(p.numpy(), MATRIX, rtol=0, atol=1e-13)
    again = SymbolicOptimizer.from_config(json.loads(json.dumps(centred.get_config(), allow_nan=False)))
    assert again.center and again.constants == {"c0": 3.0} and again.rule == DRIFT.with_constants({"c0": 3.0})
    TestCase().run_class_serialization_test(again)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jax") is None, reason="Keras' numpy backend needs jax")
def test_another_backend_of_keras_is_refused_by_name():
    told = subprocess.run(
        [sys.executable, "-c", "import tf_impl.optimizers.optimizers"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"KERAS_BACKEND": "numpy"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    assert "L2OError: Keras runs on numpy; expected tensorflow: unset KERAS_BACKEND" in told.stderr


def test_names_and_keras_registry():
    one = SymbolicOptimizer(SGD, 0.3, constants={}, name="mine")
    kept = keras.optimizers.deserialize(keras.optimizers.serialize(one))
    assert type(kept) is SymbolicOptimizer and kept.get_config() == one.get_config()
    got = keras.optimizers.get({"class_name": "symbolic_l2o>SymbolicOptimizer", "config": one.get_config()})
    assert got.name == "mine" and got.rule == SGD
    first, second = SymbolicOptimizer(SGD), SymbolicOptimizer(SGD)
    assert first.name.startswith("symbolic_optimizer") and first.name != second.name


def test_weights_may_be_set_and_not_before_build():
    one, other = SymbolicOptimizer(RULE), SymbolicOptimizer(RULE)
    walked(one)
    with pytest.raises(ValueError, match="has not yet been built"):
        other.set_weights(one.variables)
    other.build([variable()])
    other.set_weights(one.variables)
    for a, b in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert steps_of(other) == [5]


def test_missing_gradients_and_those_of_other_variables():
    optimizer, p, q = SymbolicOptimizer(SGD, 1.0), variable(), variable()
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply_gradients([(None, p)])
    optimizer = SymbolicOptimizer(SGD, 1.0)
    ones = tf.ones([2, 2], tf.float64)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply_gradients([(None, p), (ones, q)])
    assert (p.numpy() == MATRIX).all() and (q.numpy() == np.array(MATRIX) - 1).all()
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([ones], [variable()])
    with pytest.raises(ValueError, match="not supported"):
        optimizer.stateless_apply(optimizer.variables, [ones], [p, q])
    mixed, plain = SymbolicOptimizer(ADAM, 1.0), tf.Variable(np.array(MATRIX))
    mixed.apply_gradients([(ones, p), (ones, plain)])
    np.testing.assert_array_equal(p.numpy(), plain.numpy())


@pytest.mark.parametrize(
    ("options", "used"),
    [
        ({"clipnorm": 1.0}, [0.6, 0.8]),
        ({"global_clipnorm": 2.5}, [1.5, 2.0]),
        ({"clipvalue": 3.5}, [3.0, 3.5]),
        ({"loss_scale_factor": 2.0}, [1.5, 2.0]),
    ],
)
def test_clipping_and_scaling_are_keras_own(options, used):
    p = variable([0.0, 0.0])
    SymbolicOptimizer(SGD, 0.1, **options).apply([tf.constant([3.0, 4.0], tf.float64)], [p])
    np.testing.assert_allclose(p.numpy(), -0.1 * np.array(used), rtol=1e-6)


@pytest.mark.parametrize(("often", "third"), [(None, -3.0), (3, -1.29)])
def test_averages_overwrite_the_parameters_at_the_end_and_as_often_as_asked(often, third):
    """They are -1, 0.9 * -1 + 0.1 * -2 and 0.9 * -1.1 + 0.1 * -3."""
    p, seen = variable([0.0]), []
    optimizer = SymbolicOptimizer(SGD, 1.0, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=often)
    for _ in range(3):
        optimizer.apply([tf.ones(1, tf.float64)], [p])
        seen.append(p.numpy()[0])
    optimizer.finalize_variable_values([p])
    np.testing.assert_allclose([*seen, p.numpy()[0]], [-1.0, -2.0, third, -1.29], rtol=1e-6)


@pytest.mark.parametrize(
    ("rate", "moved"),
    [
        (keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [1.0, 0.5, 0.25]), [1.0, 0.5, 0.25]),
        (lambda: 0.3, [0.3] * 3),
        (0.3, [0.3] * 3),
    ],
    ids=["schedule", "function", "number"],
)
def test_learning_rates_are_exact(rate, moved):
    p, optimizer, seen = variable([0.0]), SymbolicOptimizer(SGD, rate), []
    for _ in moved:
        before = p.numpy()[0]
        optimizer.apply_gradients([(tf.ones(1, tf.float64), p)])
        seen.append(before - p.numpy()[0])
    np.testing.assert_allclose(seen, moved, rtol=1e-14)


def test_learning_rates_can_be_set_later_to_numbers_and_to_schedules():
    optimizer, p = SymbolicOptimizer(SGD, 0.3), variable([0.0])
    optimizer.learning_rate = 0.7
    optimizer.apply_gradients([(tf.ones(1, tf.float64), p)])
    assert p.numpy()[0] == -0.7
    count = len(optimizer.variables)
    optimizer.learning_rate = keras.optimizers.schedules.PolynomialDecay(0.3, 4)
    assert len(optimizer.variables) == count - 1
    with pytest.raises(TypeError, match="not settable"):
        SymbolicOptimizer(SGD, keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.9)).learning_rate = 0.1


def test_constraints_and_overwritten_variables():
    p = variable(-np.ones((2, 2)))
    p.constraint = keras.constraints.NonNeg()
    SymbolicOptimizer(SGD, 1e-4).apply_gradients([(tf.zeros([2, 2], tf.float64), p)])
    assert (p.numpy() == 0).all()
    p, q = variable(), variable()
    p.overwrite_with_gradient = True
    ones = tf.ones([2, 2], tf.float64)
    SymbolicOptimizer(SGD, 1.0).apply_gradients([(ones, p), (ones, q)])
    assert (p.numpy() == 1).all() and (q.numpy() == np.array(MATRIX) - 1).all()


def test_every_write_goes_through_assign():
    optimizer, p = SymbolicOptimizer(RULE), variable(np.ones((5, 3)))
    g = tf.IndexedSlices(tf.ones([2, 3], tf.float64), tf.constant([0, 4]), tf.constant([5, 3]))
    optimizer.build([p])
    with mock.patch.object(SymbolicOptimizer, "assign", autospec=True) as assign:
        optimizer.apply([g], [p])
    assert assign.call_count == 2 + RULE.state_floats and (p.numpy() == 1).all()
    assert not any(slot.numpy().any() for slot in (*optimizer._tallies, *optimizer._states[0]))


def test_checkpoints_of_tensorflow_go_on_to_the_same_bits(tmp_path):
    p, optimizer = variable(name="p"), SymbolicOptimizer(RULE, 0.5, weight_decay=0.1)
    walked(optimizer, 4, p=p)
    path = tf.train.Checkpoint(p=p.value, optimizer=optimizer).save(tmp_path / "ckpt")
    want = walked(optimizer, 3, p=p).copy()
    q, other = variable(np.zeros((2, 2)), name="p"), SymbolicOptimizer(RULE, 0.5, weight_decay=0.1)
    other.build([q])
    tf.train.Checkpoint(p=q.value, optimizer=other).restore(path).assert_consumed()
    np.testing.assert_array_equal(walked(other, 3, p=q), want)
    assert steps_of(other) == [7]


@pytest.mark.parametrize(
    "again", [lambda o: pickle.loads(pickle.dumps(o)), copy.deepcopy], ids=["pickle", "copy"]
)
def test_pickles_keep_the_state_until_there_are_variables(again):
    p, optimizer = variable(name="a_bias"), SymbolicOptimizer(RULE, 0.5, weight_decay=0.1)
    fresh = again(optimizer)
    assert fresh.get_config() == optimizer.get_config() and not fresh.built
    optimizer.exclude_from_weight_decay(var_names=["bias", "scale"])
    walked(optimizer, 4, p=p)
    q, other = variable(p.numpy(), name="a_bias"), again(again(optimizer))
    assert other.get_config() == optimizer.get_config()
    np.testing.assert_array_equal(walked(other, 3, p=q), walked(optimizer, 3, p=p))
    assert steps_of(other) == [7] and int(other.iterations) == 7
    with pytest.raises(L2OError, match=r"expected state of shape \(3,\), got \(2, 2\)"):
        again(optimizer).build([variable(np.ones(3), name="a_bias")])
    with pytest.warns(UserWarning, match="the variables are not those of the file: no state for"):
        again(optimizer).build([variable(), variable()])
    optimizer = SymbolicOptimizer(RULE, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_list=[p])
    with pytest.raises(L2OError, match="use var_names"):
        again(optimizer)


def test_a_loss_scale_that_overflows_touches_nothing():
    inner = SymbolicOptimizer(RULE, clipnorm=1.0)
    optimizer, p = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0), variable(MATRIX, "float32")
    optimizer.apply([tf.ones([2, 2])], [p])
    before = [v.numpy() for v in (p, *inner.variables)]
    optimizer.apply([tf.constant([[1.0, np.inf], [1.0, 1.0]])], [p])
    for a, b in zip(before, (p, *inner.variables), strict=True):
        np.testing.assert_array_equal(a, b.numpy())
    assert float(optimizer.dynamic_scale) == 4.0 and steps_of(inner) == [1]
