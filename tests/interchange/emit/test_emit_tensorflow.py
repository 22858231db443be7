"""Rules exported to TensorFlow: the pure update's derivatives, and the Keras optimizer around it."""

import numpy as np
import pytest

from interchange.language.execute import evaluate_with_tangents
from interchange.rule.rule import Rule
from tests.parity.rule_conformance import EVERYTHING
from tests.parity.rule_runners import load

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: extra [tf]")
keras = pytest.importorskip("keras")

MODES = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}
every_mode = pytest.mark.parametrize("mode", MODES)
STARTS = [np.array([1.0, -2.0, 3.0, 0.0]), np.array([[0.5, -0.25]])]


@pytest.fixture
def module():
    return load(EVERYTHING, "tensorflow")


def variables(dtype: str = "float64") -> list:
    return [keras.Variable(start, dtype=dtype) for start in STARTS]


def descend(optimizer, params: list, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.apply([2.0 * tf.convert_to_tensor(theta) for theta in params], params)


def assert_same(some: list, others: list) -> None:
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(np.array(one), np.array(other))


@every_mode
def test_updates_are_differentiable_by_constants(module, mode):
    rng = np.random.default_rng(0)
    g = rng.normal(size=(12, 5)) * np.array([1, 0, 1, 1, 0])
    theta = rng.normal(size=(12, 5))
    names = list(EVERYTHING.constants)
    constants = {key: tf.constant(value, tf.float64) for key, value in EVERYTHING.constants.items()}
    state, update = module.init(tf.constant(theta[0])), MODES[mode](module.update)
    with tf.GradientTape() as tape:
        tape.watch(list(constants.values()))
        for row, value in zip(g, theta, strict=True):
            u, state = update(tf.constant(row), state, tf.constant(value), constants)
    got = tape.gradient(u, list(constants.values()))
    _, tangents = evaluate_with_tangents(
        EVERYTHING.program(), {**EVERYTHING.constants, "g": g, "theta": theta}, names
    )
    np.testing.assert_allclose(got, EVERYTHING.scale * tangents[:, -1].sum(axis=1), rtol=1e-10)


def model() -> tuple:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(32, n)).astype("float32") for n in (3, 1))
    return keras.Sequential([keras.layers.Dense(1)]), x, y


def fitted(optimizer, epochs: int = 1, **options):
    net, x, y = model()
    net.compile(optimizer=optimizer, loss="mse", **{"jit_compile": False} | options)
    net.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
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
    assert int(optimizer._stores[0][0].numpy()) == 2  # four batches, two to a step


def test_a_variable_without_gradient_keeps_its_value_and_its_t(module):
    params = variables()
    optimizer = module.RuleOptimizer()
    descend(optimizer, params)
    kept = np.array(params[1])
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([tf.ones(4, tf.float64), None], params)
    np.testing.assert_array_equal(params[1], kept)
    assert [int(store[0].numpy()) for store in optimizer._stores] == [2, 1]


@every_mode
def test_empty_and_0_dim_variables_step(mode):
    params = [keras.Variable(np.ones(shape)) for shape in ((0, 3), (), (2,))]
    optimizer = load(Rule.from_text("-g / abs(g)"), "tensorflow").RuleOptimizer(0.5)
    optimizer.build(params)
    step = MODES[mode](lambda *g: optimizer.apply(g, params))
    step(tf.ones((0, 3)), tf.constant(2.0), tf.zeros(2))
    assert [p.numpy().tolist() for p in params] == [[], 0.5, [1.0, 1.0]]
    assert [int(store[0].numpy()) for store in optimizer._stores] == [1, 1, 0]


def test_a_saved_model_continues_exactly(module, tmp_path):
    _, x, y = model()
    whole = fitted(module.RuleOptimizer(0.5, weight_decay=0.01), epochs=2)
    half = fitted(module.RuleOptimizer(0.5, weight_decay=0.01))
    half.save(tmp_path / "half.keras")
    again = keras.saving.load_model(tmp_path / "half.keras")
    assert type(again.optimizer) is module.RuleOptimizer
    again.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert_same(whole.get_weights(), again.get_weights())


def test_its_configuration_makes_the_same_optimizer(module):
    changed = {**EVERYTHING.constants, "c0": -0.5}
    one = module.RuleOptimizer(0.25, weight_decay=0.5, constants=changed, clipvalue=3.0)
    other = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(one))
    assert other.get_config() == one.get_config()
    assert other.get_config()["constants"] == changed
    some, others = variables(), variables()
    descend(one, some, 3)
    descend(other, others, 3)
    assert_same(some, others)


def test_two_rules_are_two_classes_to_keras_and_a_name_is_none():
    names = [
        keras.saving.get_registered_name(load(rule, "tensorflow").RuleOptimizer)
        for rule in (EVERYTHING, Rule.from_text("-g"), Rule.from_text("-g", name="another"))
    ]
    assert names[0] != names[1] == names[2]


def test_state_is_float32_at_least(module):
    params = variables("bfloat16")
    optimizer = module.RuleOptimizer()
    descend(optimizer, params, 3)
    assert params[0].dtype == "bfloat16"
    assert {slot.dtype for store in optimizer._stores for slot in store[2:]} == {"float32"}
    assert len(optimizer.variables) == 2 + 2 * (2 + EVERYTHING.state_floats)


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
