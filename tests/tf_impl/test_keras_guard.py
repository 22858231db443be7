"""Coordinates whose step is not finite are left alone, in Keras: eagerly, in graphs, compiled by XLA."""

import warnings

import numpy as np
import pytest

from common.tables.teachers import TEACHERS, initial_weights
from interchange.files.weights import Teacher
from interchange.rule.rule import Rule

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from tf_impl.optimizers import base as coordinatewise  # noqa: E402
from tf_impl.optimizers.optimizers import LearnedOptimizer, NonFiniteError, SymbolicOptimizer  # noqa: E402

MODES = ["eager", "compiled eager", "graph", "compiled graph", "xla"]
SGD = Rule.named("sgd")
NAN = np.nan


@pytest.fixture(params=MODES)
def mode(request, monkeypatch):
    if "compiled" in request.param:
        monkeypatch.setattr(coordinatewise, "FUSED_FROM", 1)
    return request.param.split()[-1]


def teacher() -> Teacher:
    weights = {key: 2.0 * w for key, w in initial_weights(TEACHERS["rp_s"], 1).items()}
    return Teacher(TEACHERS["rp_s"], weights, "0" * 64, "test")


def stepper(optimizer, params, mode: str):
    """One step by the given gradients, in the dtypes of the parameters."""
    optimizer.build(params)
    apply = lambda *row: optimizer.apply(row, params)  # noqa: E731
    apply = apply if mode == "eager" else tf.function(apply, jit_compile=mode == "xla")
    return lambda *row: apply(
        *(tf.cast(tf.constant(g, tf.float64), p.dtype) for g, p in zip(row, params, strict=True))
    )


def tally(optimizer, k: int = 0) -> list[int]:
    return optimizer._tallies[k].numpy().astype(int).tolist()


SPIKES = {"lion": [np.inf], "adam": [np.inf, 3e38], "rnnprop_tuned": [np.inf, 3e38]}


@pytest.mark.parametrize("name", SPIKES)
def test_after_a_spike_a_coordinate_ends_where_its_neighbour_does(name, mode):
    for spike in SPIKES[name]:
        p, optimizer = keras.Variable(np.ones(2), dtype="float32"), SymbolicOptimizer(Rule.named(name), 0.01)
        step = stepper(optimizer, [p], mode)
        for k in range(300):
            g = 2.0 * p.numpy()
            step(np.where([k == 5, False], spike, g))
            assert k != 5 or tally(optimizer) == [6, 1, 0]
        assert tally(optimizer) == [300, 0, 0]
        assert abs(p.numpy()[0] - p.numpy()[1]) < 0.03 and p.numpy()[1] < 0.96


@pytest.mark.parametrize(
    ("dtype", "g"), [("float32", 3e38), ("float16", 6e4), ("bfloat16", 3e38), ("float64", 1.7e308)]
)
@pytest.mark.parametrize("decay", [None, 0.01])
def test_no_parameter_moves_to_infinity(dtype, g, decay, mode):
    p, optimizer = keras.Variable(np.ones(2), dtype=dtype), SymbolicOptimizer(SGD, 10.0, weight_decay=decay)
    step = stepper(optimizer, [p], mode)
    for _ in range(3):
        step([g, 0.1])
    moved = tf.cast(p, tf.float64).numpy()
    assert moved[0] == 1.0 and np.isfinite(moved[1]) and moved[1] < 0.0
    assert tally(optimizer) == [3, 1, 0]


def test_the_largest_number_of_a_narrow_dtype_is_finite(mode):
    for dtype, largest in (("float16", 65504.0), ("bfloat16", 3.3895313892515355e38)):
        p, optimizer = keras.Variable(np.zeros(1), dtype=dtype), SymbolicOptimizer(SGD, 1.0)
        stepper(optimizer, [p], mode)([-largest])
        assert float(tf.cast(p, tf.float64)[0]) == largest


def test_dead_columns_leave_the_others_training(mode):
    rule, start = Rule.from_text("-0.1 * g / abs(g)"), np.ones((3, 4))
    p, optimizer = keras.Variable(start, dtype="float32"), SymbolicOptimizer(rule, weight_decay=0.1)
    step = stepper(optimizer, [p], mode)
    g = np.where(np.arange(4) == 2, 0.0, np.ones((3, 4)))
    for _ in range(3):
        step(g)
    np.testing.assert_array_equal(p.numpy()[:, 2], 1.0)
    assert (p.numpy()[:, [0, 1, 3]] < 0.8).all() and tally(optimizer) == [3, 3, 0]


@pytest.mark.parametrize("shape", [(5,), (2, 3), (), (1, 20), (20,), (20, 1)])
def test_a_teacher_keeps_all_state_of_a_coordinate(shape, mode):
    """Of shapes that could be mistaken for [hidden, n], too."""
    p, q = (keras.Variable(np.ones(shape), dtype="float32") for _ in range(2))
    optimizer, other = LearnedOptimizer(teacher(), 0.5), LearnedOptimizer(teacher(), 0.5)
    step, calm = stepper(optimizer, [p], mode), stepper(other, [q], mode)
    size = max(int(np.prod(shape)), 1)
    g, first = np.linspace(0.5, 1.0, size).reshape(shape), np.arange(size).reshape(shape) == 0

    def kept() -> list[np.ndarray]:
        return [a.numpy().reshape(-1, size) for a in (p, *optimizer._states[0])]

    for spike in (None, NAN, None, np.inf):
        before = kept()
        step(g if spike is None else np.where(first, spike, g))
        calm(g)
        for old, new in zip(before, kept(), strict=True):
            assert np.isfinite(new).all()
            assert spike is None or np.array_equal(old[:, 0], new[:, 0])
    assert tally(optimizer) == ([4, 1, 0] if size > 1 else [2, 1, 0])
    np.testing.assert_allclose(p.numpy()[~first], q.numpy()[~first], rtol=1e-6)
    assert size == 1 or np.abs(p.numpy()[~first] - 1.0).min() > 1e-5


def test_t_stays_where_all_were_left_alone_and_a_missing_gradient_is_no_step(mode):
    params = [keras.Variable(np.ones(n), dtype="float32") for n in ((2,), (), (0, 3))]
    optimizer = SymbolicOptimizer(Rule.named("adam"), 0.1)
    step = stepper(optimizer, params, mode)
    for bad in ([NAN, NAN], [NAN, 1.0]):
        step(bad, NAN, np.zeros((0, 3)))
    assert [tally(optimizer, k) for k in range(3)] == [[1, 1, 0], [0, 1, 0], [2, 0, 0]]
    assert params[0].numpy()[0] == 1.0 == float(params[1])
    step([1.0, 1.0], 1.0, np.zeros((0, 3)))
    np.testing.assert_allclose(float(params[1]), 0.9, rtol=1e-6)  # a first step, by its t
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, tf.constant(1.0), tf.zeros((0, 3))], params)
    assert [tally(optimizer, k)[0] for k in range(3)] == [2, 2, 4]


CAUSES = {  # what is not finite -> rule, gradient, learning rate
    "gradient": ("-g", NAN, 1.0),
    "update": ("-g / greater(1.5, g)", 2.0, 1.0),
    "state": ("-sign(ema(square(g), 0.5))", 1e30, 1.0),
    "moved parameter": ("-g", 3e38, 10.0),
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_at_the_100th_step_one_warning_says_what_and_why(cause, mode):
    text, g, lr = CAUSES[cause]
    params = [keras.Variable(np.ones(n), dtype="float32") for n in (3, 2)]
    optimizer = SymbolicOptimizer(Rule.from_text(text), lr)
    step, row = stepper(optimizer, params, mode), ([g, 0.5, 0.25], [1.0, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(99):
            step(*row)
    with pytest.warns(RuntimeWarning) as told:
        step(*row)
    assert [str(w.message) for w in told] == [
        f"SymbolicOptimizer: 1 of 3 coordinates of {params[0].path} of shape (3,) were left alone, because "
        f"the {cause} was not finite; lower the learning rate, or look for nan or inf in the gradients"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(100):  # never again for this tensor
            step(*row)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_all_of_a_tensor_at_ten_looks_in_a_row_is_an_error(mode):
    """Nine and a coordinate that moves are none; those of other tensors move on."""
    params = [keras.Variable(np.ones(3), name="bad"), keras.Variable(np.ones(2))]
    optimizer = SymbolicOptimizer(SGD, 1e-3)
    step = stepper(optimizer, params, mode)
    bad, half = ([NAN] * 3, [1.0, 1.0]), ([NAN, 1.0, NAN], [1.0, 1.0])
    with pytest.warns(RuntimeWarning, match="3 of 3 coordinates of bad"):
        for k in range(1, 1900):
            step(*(half if k == 900 else bad))
    assert tally(optimizer) == [1, 3, 9] and tally(optimizer, 1) == [1899, 0, 0]
    optimizer.check_finite()
    error = NonFiniteError if mode == "eager" else tf.errors.InvalidArgumentError
    told = r"3 of 3 coordinates of bad of shape \(3,\) were left alone, because the gradient .*, at 10 looks"
    with pytest.raises(error, match=told):
        step(*bad)
    assert tally(optimizer, 1) == [1900, 0, 0]
    with pytest.raises(NonFiniteError, match="because the step was not finite, at 10 looks in a row"):
        optimizer.check_finite()


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_mode_raise_raises_after_the_step(mode):
    params = [keras.Variable(np.ones(3)), keras.Variable(np.ones(2))]
    optimizer = SymbolicOptimizer(SGD, 0.5, nonfinite="raise")
    step = stepper(optimizer, params, mode)
    step(np.ones(3), np.ones(2))
    error = NonFiniteError if mode == "eager" else tf.errors.InvalidArgumentError
    with pytest.raises(error, match=r"1 of 3 coordinates of .* because the gradient was not finite; lower"):
        step([1.0, NAN, 1.0], np.ones(2))
    np.testing.assert_array_equal(params[0].numpy(), [0.0, 0.5, 0.0])
    np.testing.assert_array_equal(params[1].numpy(), 0.0)
    assert tally(optimizer) == [2, 1, 0]
    with pytest.raises(NonFiniteError, match="1 of 3"):
        optimizer.check_finite()


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


def test_mode_off_lets_all_through(mode):
    p, optimizer = keras.Variable(np.ones(3), dtype="float32"), SymbolicOptimizer(SGD, nonfinite="off")
    step = stepper(optimizer, [p], mode)
    for _ in range(101):
        step([0.0, NAN, np.inf])
    assert p.numpy()[0] == 1.0 and np.isnan(p.numpy()[1]) and p.numpy()[2] == -np.inf
    optimizer.check_finite()
    assert tally(optimizer) == [101, 0, 0]


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
    number = next(k for k, v in enumerate(optimizer.variables) if v is optimizer._tallies[0])
    store[str(number)] = np.array([7.0, 3.0])  # t, skipped in a row
    other = SymbolicOptimizer(Rule.named("adam"), 0.1)
    other.build([keras.Variable(np.ones(2))])
    other.load_own_variables(store)
    assert tally(other) == [7, 0, 0]


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_steps_are_counted_beyond_what_float32_can_count(mode):
    """Of 2^24 + 1 float32 makes 2^24: t would stand still."""
    p = keras.Variable(np.zeros(2, "float32"))
    optimizer = SymbolicOptimizer(SGD, 1.0)
    step = stepper(optimizer, [p], mode)
    optimizer._tallies[0].assign([2.0**24, 0.0, 0.0])
    step([1.0, 0.5])
    step([1.0, 0.5])
    assert p.numpy().tolist() == [-2.0, -1.0] and tally(optimizer)[0] == 2**24 + 2
