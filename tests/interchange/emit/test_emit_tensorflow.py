"""Rules exported to TensorFlow: the pure update's derivatives, and the Keras optimizer around it."""

import importlib.util
import math

import numpy as np
import pytest

from interchange.emit import TARGETS
from interchange.language.execute import evaluate_with_tangents
from interchange.rule.rule import Rule

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: extra [tf]")
keras = pytest.importorskip("keras")

RULE = Rule.from_text(
    "c0 * tanh(m_tilde / c1) + c2 * ema(g, c3) * cummax(powabs(g, c1)) - lag(c0, 1) * theta * 0.125",
    {"c0": -0.98, "c1": 0.61, "c2": -0.12, "c3": 0.87},
    {"m_tilde": "ema_hat(g, 0.95) / (sqrt(ema_hat(square(g), 0.999)) + 1e-12)"},
    scale=0.1,
)
STARTS = [np.array([1.0, -2.0, 3.0, 0.0]), np.array([[0.5, -0.25]])]


def load(rule: Rule, folder):
    """The generated file as a module, from its own folder."""
    path = folder / "generated.py"
    path.write_text(TARGETS["tensorflow"].emit(rule))
    spec = importlib.util.spec_from_file_location("generated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def module(tmp_path):
    return load(RULE, tmp_path)


def variables(dtype: str = "float64") -> list:
    return [keras.Variable(start, dtype=dtype) for start in STARTS]


def descend(optimizer, params: list, steps: int = 1, factor: float = 2.0) -> None:
    """Steps on the sum of squares."""
    for _ in range(steps):
        optimizer.apply([factor * tf.convert_to_tensor(theta) for theta in params], params)


def values(params: list) -> list[np.ndarray]:
    return [np.array(theta) for theta in params]


def assert_same(some: list, others: list) -> None:
    for one, other in zip(values(some), values(others), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function, lambda f: tf.function(f, jit_compile=True)])
def test_updates_are_differentiable_by_constants(module, wrap):
    rng = np.random.default_rng(0)
    g = rng.normal(size=(12, 5)) * np.array([1, 0, 1, 1, 0])
    theta = rng.normal(size=(12, 5))
    names = list(RULE.constants)
    constants = {key: tf.constant(value, tf.float64) for key, value in RULE.constants.items()}
    state, update = module.init(tf.constant(theta[0])), wrap(module.update)
    with tf.GradientTape() as tape:
        tape.watch(list(constants.values()))
        for row, value in zip(g, theta, strict=True):
            u, state = update(tf.constant(row), state, tf.constant(value), constants)
    got = tape.gradient(u, list(constants.values()))
    _, tangents = evaluate_with_tangents(RULE.program(), {**RULE.constants, "g": g, "theta": theta}, names)
    np.testing.assert_allclose(got, RULE.scale * tangents[:, -1].sum(axis=1), rtol=1e-10)


@pytest.mark.parametrize("decay", [None, 0.01])
def test_the_optimizer_equals_the_rule_with_decoupled_decay(module, decay):
    params = variables()
    optimizer = module.RuleOptimizer(2.0, weight_decay=decay)
    descend(optimizer, params, steps=12)
    for theta, expected in zip(params, STARTS, strict=True):
        thetas = []
        for _ in range(12):
            thetas.append(expected)
            past = np.stack(thetas)
            u = RULE.evaluate({"g": 2.0 * past, "theta": past})[-1]
            expected = expected * (1.0 - 2.0 * (decay or 0.0)) + 2.0 * u
        np.testing.assert_allclose(np.array(theta), expected, rtol=1e-12, atol=1e-15)
    assert len(optimizer.variables) == 2 + 2 * (2 + RULE.state_floats)


def model(seed: int = 0) -> tuple:
    keras.utils.set_random_seed(seed)
    net = keras.Sequential([keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(1)])
    rng = np.random.default_rng(1)
    return net, rng.normal(size=(64, 3)).astype("float32"), rng.normal(size=(64, 1)).astype("float32")


def fitted(optimizer, epochs: int = 2, **options):
    net, x, y = model()
    net.compile(optimizer=optimizer, loss="mse", **options)
    net.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0)
    return net


def test_fit_gives_the_same_eagerly_in_graphs_and_compiled(module):
    settings = [{"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}]
    eager, *others = (fitted(module.RuleOptimizer(0.5), **setting) for setting in settings)
    for other in others:
        for one, two in zip(eager.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    start, x, y = model()
    start(x)
    assert np.mean((eager(x) - y) ** 2) < np.mean((start(x) - y) ** 2)


def test_the_options_of_keras_work_and_schedules_too(module):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 4, 0.5)
    optimizer = module.RuleOptimizer(schedule, clipnorm=0.5, use_ema=True, gradient_accumulation_steps=2)
    assert all(np.isfinite(w).all() for w in fitted(optimizer).get_weights())
    assert int(optimizer._stores[0][0].numpy()) == 4  # eight batches, two to a step


def test_a_variable_without_gradient_keeps_its_value_and_its_t(module):
    params = variables()
    optimizer = module.RuleOptimizer()
    descend(optimizer, params)
    kept = np.array(params[1])
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([tf.ones(4, tf.float64), None], params)
    np.testing.assert_array_equal(params[1], kept)
    assert [int(store[0].numpy()) for store in optimizer._stores] == [2, 1]


MODES = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}
every_mode = pytest.mark.parametrize("mode", MODES)
GUARDED = {  # why a coordinate is left alone -> rule, dtype, learning rate, its gradient
    "gradient": ("-g", "float32", 1.0, math.nan),
    "update": ("-g / greater(1.5, g)", "float32", 1.0, 2.0),
    "state": ("-sign(ema(square(g), 0.5))", "float32", 1.0, 1e30),
    "moved parameter": ("-g", "float16", 10.0, 6e4),
}


@every_mode
@pytest.mark.parametrize("cause", GUARDED)
def test_a_coordinate_is_left_alone_and_one_warning_says_so(cause, mode, tmp_path):
    text, dtype, lr, g = GUARDED[cause]
    theta = keras.Variable(np.ones(3), dtype=dtype)
    optimizer = load(Rule.from_text(text), tmp_path).RuleOptimizer(lr, weight_decay=0.001)
    optimizer.build([theta])
    step = MODES[mode](lambda g: optimizer.apply([g], [theta]))
    with pytest.warns(RuntimeWarning) as told:
        for k in range(200):
            step(tf.cast([g, 0.5, 0.5], dtype))
            if mode != "eager" and k % 100 == 99:
                optimizer.look()
    why = cause if mode == "eager" else "step"
    assert [str(w.message) for w in told] == [
        f"1 of 3 coordinates of {theta.path} of shape (3,) were left alone, because the {why} was not "
        "finite; lower learning_rate or check the gradients"
    ]
    moved = tf.cast(theta, tf.float32).numpy()
    assert moved[0] == 1.0 and np.isfinite(moved).all() and (moved[1:] < 0.0).all()
    assert [int(kept.numpy()) for kept in optimizer._stores[0][:2]] == [200, 1]
    assert all(np.isfinite(slot.numpy()).all() for slot in optimizer._stores[0])


@every_mode
def test_all_of_a_variable_at_ten_looks_in_a_row_is_an_error(mode, tmp_path):
    params = [keras.Variable(np.ones(n)) for n in (2, 3)]
    optimizer = load(Rule.from_text("-g"), tmp_path).RuleOptimizer(1e-3)
    optimizer.build(params)
    step = MODES[mode](lambda *g: optimizer.apply(g, params))
    row = tf.constant([math.nan, math.nan]), tf.ones(3)
    with (
        pytest.warns(RuntimeWarning, match="2 of 2 coordinates"),
        pytest.raises(RuntimeError, match="at ten looks in a row 2 of 2"),
    ):
        for k in range(1000):
            step(*row)
            if mode != "eager" and k % 100 == 99:
                optimizer.look()
    assert k == 999 and (params[0].numpy() == 1.0).all() and (params[1].numpy() < 0.1).all()
    assert [int(store[0].numpy()) for store in optimizer._stores] == [0, 1000]


@every_mode
@pytest.mark.parametrize(("name", "spike"), [("lion", math.inf), ("adam", math.inf), ("adam", 3e38)])
def test_after_a_spike_a_coordinate_ends_where_its_neighbour_does(name, spike, mode, tmp_path):
    theta = keras.Variable(np.ones(2), dtype="float32")
    optimizer = load(Rule.named(name), tmp_path).RuleOptimizer(0.01)
    optimizer.build([theta])
    step = MODES[mode](lambda g: optimizer.apply([g], [theta]))
    for k in range(300):
        step(tf.constant(np.where([k == 5, False], spike, 2.0 * theta.numpy()), tf.float32))
    assert np.abs(theta.numpy()).max() < 0.05 and int(optimizer._stores[0][0].numpy()) == 300


@every_mode
def test_empty_and_0_dim_variables_step(mode, tmp_path):
    params = [keras.Variable(np.ones(shape)) for shape in ((0, 3), (), (2,))]
    optimizer = load(Rule.from_text("-g / abs(g)"), tmp_path).RuleOptimizer(0.5)
    optimizer.build(params)
    step = MODES[mode](lambda *g: optimizer.apply(g, params))
    step(tf.ones((0, 3)), tf.constant(2.0), tf.zeros(2))
    assert [p.numpy().tolist() for p in params] == [[], 0.5, [1.0, 1.0]]
    assert [int(store[0].numpy()) for store in optimizer._stores] == [1, 1, 0]


def test_a_saved_model_continues_exactly(module, tmp_path):
    _, x, y = model()
    whole = fitted(module.RuleOptimizer(0.5, weight_decay=0.01), epochs=4)
    half = fitted(module.RuleOptimizer(0.5, weight_decay=0.01), epochs=2)
    half.save(tmp_path / "half.keras")
    again = keras.saving.load_model(tmp_path / "half.keras")
    assert type(again.optimizer) is module.RuleOptimizer
    again.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    assert_same(whole.get_weights(), again.get_weights())


def test_its_configuration_makes_the_same_optimizer(module):
    changed = {**RULE.constants, "c0": -0.5}
    one = module.RuleOptimizer(0.25, weight_decay=0.5, constants=changed, clipvalue=3.0)
    other = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(one))
    assert other.get_config() == one.get_config()
    assert other.get_config()["constants"] == changed
    some, others = variables(), variables()
    descend(one, some, 3)
    descend(other, others, 3)
    assert_same(some, others)


def test_two_rules_are_two_classes_to_keras_and_a_name_is_none(tmp_path):
    names = [
        keras.saving.get_registered_name(load(rule, tmp_path).RuleOptimizer)
        for rule in (RULE, Rule.from_text("-g"), Rule.from_text("-g", name="another"))
    ]
    assert names[0] != names[1] == names[2]


def test_state_is_float32_at_least(module):
    params = variables("bfloat16")
    optimizer = module.RuleOptimizer()
    descend(optimizer, params, 3)
    assert params[0].dtype == "bfloat16"
    assert {slot.dtype for store in optimizer._stores for slot in store[2:]} == {"float32"}


def test_sparse_gradients_are_dense_ones_with_zeros(module):
    dense, sparse = variables("float32")[:1], variables("float32")[:1]
    slices = tf.IndexedSlices(tf.constant([0.5, 2.0]), tf.constant([2, 0]), tf.constant([4]))
    one, other = module.RuleOptimizer(), module.RuleOptimizer()
    for _ in range(3):
        one.apply([tf.constant([2.0, 0.0, 0.5, 0.0])], dense)
        other.apply([slices], sparse)
    assert_same(dense, sparse)


def test_weight_decay_can_leave_variables_out(module):
    params, plain = variables(), variables()
    optimizer = module.RuleOptimizer(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_list=[params[0]])
    descend(optimizer, params)
    descend(module.RuleOptimizer(), plain)
    np.testing.assert_array_equal(params[0], plain[0])
    assert (np.array(params[1]) != np.array(plain[1])).all()


@pytest.mark.parametrize("settings", [{"learning_rate": -1.0}, {"weight_decay": -0.1}])
def test_negative_settings_are_refused(module, settings):
    with pytest.raises(ValueError, match="learning_rate >= 0"):
        module.RuleOptimizer(**settings)
