"""``Recorder`` where Keras alone is asked: graphs, ``fit``, mixed precision, gradients summed or sparse.

What both frameworks do is in ``tests/backends/test_recorder.py``.
"""

import numpy as np
import pytest

from common.errors import L2OError
from interchange.rule.rule import Rule
from tests.conftest import need_half_products
from tests.helpers.recordings import saved, whole

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from tf_impl.optimizers.optimizers import SymbolicOptimizer  # noqa: E402
from tf_impl.optimizers.torch_formulas import SGD  # noqa: E402
from tf_impl.recording.recorder import Recorder  # noqa: E402

HALVING = keras.optimizers.schedules.PiecewiseConstantDecay([2, 5], [0.1, 0.05, 0.025])
OPTIMIZERS = {
    "keras sgd": lambda: keras.optimizers.SGD(HALVING, momentum=0.9, weight_decay=0.01),
    "rule": lambda: SymbolicOptimizer(Rule.from_text("-c0 * ema(g, 0.8)", {"c0": 0.3}), 0.5),
}
EVERYTHING = 10**6


def flat(arrays) -> np.ndarray:
    return np.concatenate([np.ravel(tf.convert_to_tensor(a).numpy()) for a in arrays])


def stepper(optimizer: keras.optimizers.Optimizer, params, mode: str):
    def step(*gradients) -> None:
        optimizer.apply(gradients, params)

    return step if mode == "eager" else tf.function(step, jit_compile=mode == "xla")


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_step_is_recorded_as_it_was_and_the_training_is_left_as_it_is(make, mode, tmp_path):
    shapes, generator = ((4, 6), (6,)), np.random.default_rng(0)
    params, others = (
        [
            keras.Variable(np.ones(shape), dtype="float64", name=name)
            for name, shape in zip("wb", shapes, strict=True)
        ]
        for _ in range(2)
    )
    optimizer, other = make(), make()
    own = optimizer.apply, optimizer.update_step, optimizer.scale_loss
    recorder = Recorder(optimizer, coordinates=EVERYTHING)
    recorded, alone = stepper(optimizer, params, mode), stepper(other, others, mode)
    gs, ys = [], []
    for _ in range(8):
        row = [tf.constant(generator.normal(size=shape)) for shape in shapes]
        lr, before = float(other.learning_rate), flat(others)
        alone(*row)
        recorded(*row)
        gs.append(flat(row))
        ys.append((flat(others) - before) / lr)
    np.testing.assert_array_equal(flat(params), flat(others))
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_array_equal(got.g, gs)
    np.testing.assert_allclose(got.y, ys, rtol=1e-10, atol=1e-14)
    assert got.params_shapes == shapes and got.params_names == ("w", "b")
    assert (optimizer.apply, optimizer.update_step, optimizer.scale_loss) == own
    recorded(*row)  # what was traced goes on without the recorder


def network(optimizer: keras.optimizers.Optimizer, **compiled) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(6, "tanh"), keras.layers.Dense(2)])
    model.build((None, 4))
    model.compile(optimizer=optimizer, loss="mse", **compiled)
    return model


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    return x, np.sin(x[:, :2])


def by_hand(model: keras.Model, lr: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradients and losses of plain SGD over batches of 16; the model is trained."""
    x, y = data()
    gs, losses = [], []
    for step in range(steps):
        rows = slice(16 * (step % 4), 16 * (step % 4) + 16)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x[rows]) - y[rows]))
        gradient = tape.gradient(loss, model.trainable_variables)
        for v, g in zip(model.trainable_variables, gradient, strict=True):
            v.assign_sub(lr * g)
        gs.append(flat(gradient))
        losses.append(float(loss))
    return np.array(gs), np.array(losses)


@pytest.mark.parametrize(
    "options",
    [{}, {"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 3}],
    ids=["graph", "xla", "eager", "several steps per execution"],
)
def test_fit_is_recorded_with_the_losses_of_its_batches(options, tmp_path):
    model = network(SGD(0.1), **({"jit_compile": False} | options))
    recorder = Recorder(model.optimizer, coordinates=EVERYTHING)
    model.fit(*data(), batch_size=16, epochs=3, shuffle=False, verbose=0, validation_data=data())
    got = whole(saved(recorder, tmp_path))
    gs, losses = by_hand(network(SGD(0.1)), 0.1, 12)
    assert got.g.shape == (12, 44) and got.g.dtype == np.float32 and got.outcome == "ok"
    np.testing.assert_allclose(got.g, gs, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(got.loss, losses, rtol=1e-4)
    np.testing.assert_allclose(got.y, -got.g, rtol=1e-3, atol=1e-5)
    assert got.params_names[0].endswith("/kernel")


def test_as_a_callback_it_may_come_after_a_fit(tmp_path, caplog):
    model = network(SGD(0.1), jit_compile=False)
    model.fit(*data(), batch_size=16, verbose=0)
    recorder = Recorder(model.optimizer)
    assert "has taken steps already" in caplog.messages[0]
    model.fit(*data(), batch_size=16, verbose=0)
    with pytest.raises(L2OError, match="or fit with it as a callback"):
        recorder.save(tmp_path / "t.h5")
    recorder = Recorder(model.optimizer)
    model.fit(*data(), batch_size=16, epochs=2, verbose=0, callbacks=[recorder])
    assert whole(saved(recorder, tmp_path)).g.shape == (8, 44)


def test_mixed_precision_is_unscaled_and_its_skipped_steps_left_out(tmp_path):
    need_half_products("float16")
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network(SGD(0.1), jit_compile=False)
    finally:
        keras.config.set_dtype_policy("float32")
    outer = model.optimizer
    assert outer.inner_optimizer is not None
    recorder = Recorder(outer, coordinates=EVERYTHING)
    outer.build(model.trainable_variables)
    want = []
    for step in range(5):
        gradient = [np.random.default_rng(step).normal(size=v.shape) for v in model.trainable_variables]
        want += [np.concatenate([g.ravel() for g in gradient])] if step != 2 else []
        scale = float(outer.dynamic_scale) * (np.inf if step == 2 else 1.0)
        outer.apply([tf.constant(scale * g, tf.float32) for g in gradient], model.trainable_variables)
    model.fit(*data(), batch_size=16, verbose=0)
    got = whole(saved(recorder, tmp_path))
    assert got.g.shape == (8, 44)
    np.testing.assert_allclose(got.g[:4], want, rtol=1e-5)
    np.testing.assert_allclose(got.y, -got.g, rtol=1e-3, atol=1e-5)
    assert 0.01 < got.loss[-1] < 100  # not times the scale of 2**15


def test_accumulated_and_clipped_gradients_are_those_of_the_update(tmp_path):
    p = keras.Variable(np.zeros(5), dtype="float64")
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2, clipnorm=1.0)
    recorder = Recorder(optimizer)
    rows = np.random.default_rng(0).normal(size=(6, 5))
    for row in rows:
        optimizer.apply([tf.constant(row)], [p])
    got = whole(saved(recorder, tmp_path))
    mean = (rows[0::2] + rows[1::2]) / 2
    np.testing.assert_allclose(got.g, mean / np.maximum(1, np.linalg.norm(mean, axis=1))[:, None], rtol=1e-6)
    np.testing.assert_allclose(got.y, -got.g, rtol=1e-6)


def test_sparse_gradients_are_recorded_dense(tmp_path):
    p = keras.Variable(np.zeros((5, 2)), dtype="float64")
    optimizer = keras.optimizers.SGD(0.5)
    recorder = Recorder(optimizer)
    optimizer.apply(
        [tf.IndexedSlices(tf.ones((3, 2), tf.float64), tf.constant([3, 1, 3]), tf.constant([5, 2]))], [p]
    )
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_array_equal(got.g[0], [0, 0, 1, 1, 0, 0, 2, 2, 0, 0])
    np.testing.assert_allclose(got.y, -got.g)


def test_integers_are_refused():
    Recorder(optimizer := keras.optimizers.SGD())  # ours would refuse them first
    with pytest.raises(L2OError, match="expected real floating point, got int32"):
        optimizer.apply([tf.ones(8, tf.int32)], [tf.Variable(np.ones(8, np.int32))])


def test_an_optimizer_is_recorded_once_at_a_time():
    Recorder(optimizer := SGD())
    with pytest.raises(L2OError, match="is being recorded already; save that recording first"):
        Recorder(optimizer)
