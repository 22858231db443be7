"""Rules, teachers and baselines where Keras alone is asked: configurations, models, graphs and policies."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import L2OError
from interchange.files.weights import Teacher
from interchange.rule.rule import Rule
from tests.conftest import need_half_products

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402
from keras.src.testing import TestCase  # noqa: E402

from tests.helpers.samples import RULE, enlarged  # noqa: E402
from tests.helpers.tf_side import feed, parameters, tallies  # noqa: E402
from tf_impl.optimizers import baselines, torch_formulas  # noqa: E402
from tf_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer  # noqa: E402

ROOT = Path(__file__).parents[2]
OPTIMIZERS = {
    "rule": lambda **k: SymbolicOptimizer(RULE, **k),
    "teacher": lambda **k: LearnedOptimizer(enlarged(), **k),
}
SEEING = {
    name: lambda name=name, **k: LearnedOptimizer(enlarged(name), **k) for name in ("rp_s_m", "rnnprop_f")
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
SLOW = (OPTIMIZERS["teacher"], *SEEING.values())  # what a teacher compiles takes its time


@pytest.fixture(autouse=True)
def float32():
    """As a user finds Keras, whatever a test sets."""
    yield
    keras.config.set_dtype_policy("float32")


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    return x, np.sin(x[:, :2])


def network(optimizer: keras.optimizers.Optimizer, **compiled) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(6, "tanh"), keras.layers.Dense(2)])
    model.build((None, 4))
    model.compile(optimizer=optimizer, loss="mse", **({"jit_compile": False} | compiled))
    return model


def fitted(optimizer: keras.optimizers.Optimizer, epochs: int = 3, **compiled) -> keras.Model:
    model = network(optimizer, **compiled)
    model.fit(*data(), batch_size=16, epochs=epochs, shuffle=False, verbose=0)
    return model


def flat(arrays) -> np.ndarray:
    return np.concatenate([np.ravel(a.numpy()) for a in arrays]).astype("float64")


def counts(optimizer: keras.optimizers.Optimizer) -> list[int]:
    """Steps taken of every tensor."""
    return [tally[0] for tally in tallies(optimizer)]


def test_a_model_is_fitted_with_validation():
    model = network(SymbolicOptimizer(Rule.named("sgd"), 0.1))
    told = model.fit(*data(), epochs=10, validation_data=data(), verbose=0, batch_size=16).history
    assert len(told["val_loss"]) == 10 and told["loss"][-1] < 0.5 * told["loss"][0]
    assert told["val_loss"][-1] < 0.5 * told["val_loss"][0] and int(model.optimizer.iterations) == 40


CONFIGURED = {
    "rule": lambda: SymbolicOptimizer(RULE, 0.1, weight_decay=0.2, nonfinite="raise", clipnorm=1.5),
    "teacher": lambda: LearnedOptimizer(enlarged("dm"), 0.3, use_ema=True, name="mine"),
    "schedule": lambda: SymbolicOptimizer(RULE, keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)),
    "lion": lambda: baselines.Lion(0.01, 0.8, weight_decay=0.1),
    "sgd": lambda: torch_formulas.SGD(0.01, 0.9, nesterov=True),
    "rmsprop": lambda: torch_formulas.RMSprop(0.01, 0.9),
    "adam": lambda: torch_formulas.Adam(0.01, beta1=0.8, eps=1e-3),
    "adagrad": lambda: torch_formulas.Adagrad(0.01, eps=1e-3),
    "nadamw": lambda: torch_formulas.NAdam(0.01, 0.8, weight_decay=0.1, momentum_decay=0.01),
    "schedule-free": lambda: baselines.ScheduleFree(0.01, 0.8, eps=1e-3, weight_decay=0.1),
}
SETTINGS = (
    "momentum",
    "beta1",
    "eps",
    "alpha",
    "nonfinite",
    "clipnorm",
    "weight_decay",
    "momentum_decay",
    "name",
)


@pytest.mark.parametrize("make", CONFIGURED.values(), ids=CONFIGURED)
def test_keras_own_serialization_test(make):
    optimizer = make()
    again = TestCase().run_class_serialization_test(optimizer)
    text = json.dumps(optimizer.get_config(), allow_nan=False)
    assert type(optimizer).from_config(json.loads(text)).get_config() == optimizer.get_config()
    for name in SETTINGS:
        assert getattr(again, name, None) == getattr(optimizer, name, None)


def test_a_configuration_has_the_rule_and_the_weights_to_the_bit():
    optimizer = SymbolicOptimizer(RULE, 0.1)
    assert SymbolicOptimizer.from_config(optimizer.get_config()).rule == RULE
    assert optimizer.get_config()["learning_rate"] == 0.1  # not float32's 0.1
    given = enlarged()
    mixed = {k: w.astype("float32" if "bias" in k else "float64") for k, w in given.weights.items()}
    whole = LearnedOptimizer(Teacher(given.row, mixed, given.sha256, given.created_by))
    again = LearnedOptimizer.from_config(json.loads(json.dumps(whole.get_config())))._given
    assert (again.row, again.sha256, again.created_by) == (given.row, given.sha256, given.created_by)
    for name, array in mixed.items():
        assert again.weights[name].dtype == array.dtype
        np.testing.assert_array_equal(again.weights[name], array)


def spoilt(**changes) -> dict:
    config = LearnedOptimizer(enlarged()).get_config()
    return config | {"teacher": config["teacher"] | changes}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (spoilt(weights={}), "expected the weights of teacher rp_s, got missing"),
        (spoilt(weights={"out/w": {"dtype": "O", "shape": [1], "data": ""}}), "not a teacher"),
        (spoilt(weights={"out/w": {"dtype": "<f4", "shape": [2], "data": "AAAA"}}), "not a teacher"),
        (spoilt(weights=3), "not a teacher"),
        (spoilt(row={"name": "x"}), "not a teacher's row"),
        ({"teacher": None}, "not a teacher"),
    ],
    ids=["none", "objects", "size", "number", "row", "nothing"],
)
def test_a_configuration_without_a_teacher_is_refused(config, message):
    with pytest.raises(L2OError, match=message) as error:
        LearnedOptimizer.from_config(config)
    assert "\n" not in str(error.value)


@pytest.mark.slow_with(make=SLOW)
@pytest.mark.parametrize("make", (OPTIMIZERS | SEEING).values(), ids=OPTIMIZERS | SEEING)
def test_a_saved_model_goes_on_to_the_same_numbers(make, tmp_path):
    model = fitted(make(learning_rate=0.5, weight_decay=0.01, use_ema=True))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.optimizer) is type(model.optimizer)
    for one, other in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert max(counts(again.optimizer)) == 12
    for m in (model, again):
        m.fit(*data(), batch_size=16, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_array_equal(flat(model.weights), flat(again.weights))
    assert not np.array_equal(flat(model.weights), flat(fitted(make(learning_rate=0.5), 5).weights))


def test_state_of_another_rule_is_refused(tmp_path):
    optimizers = [SymbolicOptimizer(RULE), SymbolicOptimizer(Rule.named("sgd"))]
    for optimizer in optimizers:
        optimizer.build([keras.Variable(np.zeros(3))])
    store: dict[str, np.ndarray] = {}
    optimizers[0].save_own_variables(store)
    with pytest.raises(L2OError, match=r"expected state of the rule .sgd., u = -g, got that of the rule"):
        optimizers[1].load_own_variables(store)


@every_optimizer
@pytest.mark.parametrize("dtype", ["complex64", "int32"])
def test_variables_that_are_not_real_are_refused(make, dtype):
    """Their imaginary parts, and fractions, would be lost without a word."""
    with pytest.raises(L2OError, match=f"expected variables of real floating point, got .* of {dtype}"):
        make().build([tf.Variable([1, 2], dtype=dtype)])


@every_optimizer
@pytest.mark.slow_with(make=SLOW)
def test_eager_graph_and_xla_agree(make):
    options = {"learning_rate": 0.5, "weight_decay": 0.01, "clipnorm": 0.5}
    eager = flat(fitted(make(**options), 1, run_eagerly=True).weights)
    for jit in (True, False):
        got = flat(fitted(make(**options), 1, jit_compile=jit).weights)
        np.testing.assert_allclose(got, eager, rtol=1e-4, atol=1e-6)
    assert np.abs(eager - flat(network(make()).weights)).max() > 1e-3


@every_optimizer
def test_a_loop_of_ones_own_may_build_it_inside_a_graph(make):
    params, others = parameters([np.ones(3)] * 2), parameters([np.ones(3)] * 2)
    optimizer, other = make(), make()
    apply = tf.function(lambda: optimizer.apply([tf.ones(3, tf.float64), 2 * tf.ones(3, tf.float64)], params))
    for _ in range(4):
        apply()
        feed(other, others, [np.ones(3), 2 * np.ones(3)])
    np.testing.assert_allclose(flat(params), flat(others), rtol=1e-12)
    assert counts(optimizer) == [4, 4]


@every_optimizer
@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_policies_work(make, policy):
    need_half_products(policy.removeprefix("mixed_"))
    keras.config.set_dtype_policy(policy)
    model = fitted(make(learning_rate=0.5))
    assert all(w.dtype == "float32" for w in model.trainable_weights)
    keras.config.set_dtype_policy("float32")
    plain = flat(fitted(make(learning_rate=0.5)).weights)
    np.testing.assert_allclose(flat(model.weights), plain, rtol=0, atol=0.03)
    assert counts(getattr(model.optimizer, "inner_optimizer", model.optimizer)) == [12] * 4


@every_optimizer
def test_accumulated_gradients_are_one_step_of_their_mean_also_with_weight_decay(make):
    params, others = parameters([np.ones(4)]), parameters([np.ones(4)])
    whole = make(learning_rate=0.5, weight_decay=0.05)
    parts = make(learning_rate=0.5, weight_decay=0.05, gradient_accumulation_steps=3)
    generator = np.random.default_rng(0)
    for epoch in range(4):
        rows = generator.normal(size=(3, 4))
        feed(whole, params, [rows.mean(0)])
        for k, row in enumerate(rows):
            before = flat(others)
            feed(parts, others, [row])
            assert (k == 2) != np.array_equal(before, flat(others))
            assert counts(parts) == [epoch + (k == 2)] and int(parts.iterations) == epoch + (k == 2)
    np.testing.assert_allclose(flat(params), flat(others), rtol=1e-12)


@every_optimizer
def test_tensors_can_be_left_out_of_weight_decay(make):
    start, g = np.arange(3.0), [np.ones(3), np.ones(3)]
    params, others = ([keras.Variable(start, dtype="float64", name=n) for n in "ab"] for _ in range(2))
    optimizer = make(learning_rate=0.5, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["b"])
    feed(optimizer, params, g)
    feed(make(learning_rate=0.5), others, g)
    np.testing.assert_allclose(params[0].numpy(), others[0].numpy() - 0.05 * start, rtol=1e-13)
    np.testing.assert_array_equal(params[1].numpy(), others[1].numpy())


@every_optimizer
def test_sparse_gradients_count_as_dense_ones(make):
    rows = np.array([[1.0, 2.0], [3.0, 4.0], [0.5, 0.5]])
    sparse = tf.IndexedSlices(tf.constant(rows), tf.constant([3, 1, 3]), tf.constant([5, 2]))
    dense = np.zeros((5, 2))
    np.add.at(dense, [3, 1, 3], rows)
    params, others = parameters([np.ones((5, 2))]), parameters([np.ones((5, 2))])
    optimizer, other = make(), make()
    for _ in range(3):
        optimizer.apply([sparse], params)
        feed(other, others, [dense])
    np.testing.assert_allclose(flat(params), flat(others), rtol=1e-13)


@every_optimizer
def test_embeddings_are_fitted(make):
    model = keras.Sequential([keras.layers.Embedding(8, 3), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile(make(learning_rate=0.5), "mse")
    tokens = np.arange(40).reshape(10, 4) % 7
    model.fit(tokens, np.ones((10, 1)), verbose=0)
    assert all(np.isfinite(w.numpy()).all() for w in model.weights)


MIRRORED = """
import sys
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from interchange.rule.rule import Rule
from interchange.files.weights import Teacher
from tf_impl.optimizers import base as coordinatewise
from tf_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer

x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")

def fitted(make, strategy):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Dense(6, "tanh"), keras.layers.Dense(2)])
        model.compile(make(), "mse", jit_compile=False)
    model.fit(x, np.sin(x[:, :2]), batch_size=16, epochs=4, shuffle=False, verbose=0)
    assert [int(s.numpy()[0]) for s in model.optimizer._tallies] == [16] * 4
    return np.concatenate([w.numpy().ravel() for w in model.weights])

two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert two.num_replicas_in_sync == 2
rule = sys.argv[1]
for fused_from, make in (
    (9999, lambda: SymbolicOptimizer(rule, 0.5, weight_decay=0.01)),
    (1, lambda: SymbolicOptimizer(rule, 0.5, weight_decay=0.01)),
    (1, lambda: SymbolicOptimizer(rule, 0.5, use_ema=True)),
    (9999, lambda: LearnedOptimizer("rp_s", weight_decay=0.01)),
):
    coordinatewise.FUSED_FROM = fused_from
    one, other = fitted(make, tf.distribute.get_strategy()), fitted(make, two)
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)

with two.scope():  # as Keras tests it: gradients of replicas add up, three of them are a step
    p = keras.Variable([[1.0, 2.0], [3.0, 4.0]])
    optimizer = SymbolicOptimizer(Rule.from_text("-g"), 1.0, gradient_accumulation_steps=3)
    for _ in range(4):
        two.run(lambda: optimizer.apply_gradients([(tf.constant([[1.0, 1.0], [2.0, 2.0]]), p)]))
np.testing.assert_allclose(p.numpy(), [[-1.0, 0.0], [-1.0, 0.0]])
np.testing.assert_allclose(optimizer._accumulated_gradients[0].numpy(), [[1.0, 1.0], [2.0, 2.0]])
assert int(optimizer._tallies[0].numpy()[0]) == int(optimizer.iterations) == 1
print("the same")
"""


@pytest.mark.slow
def test_two_mirrored_replicas_are_one_of_twice_the_batch(tmp_path):
    """In a process of its own: devices are fixed at TensorFlow's first use."""
    RULE.save(tmp_path / "rule.json")
    result = subprocess.run(
        [sys.executable, "-c", MIRRORED, str(tmp_path / "rule.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 and result.stdout == "the same\n", result.stderr[-3000:]
