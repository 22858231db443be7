"""``Recorder`` on ``fit`` and loops of one's own: its numbers, its runs, and what it refuses."""

import json

import numpy as np
import pytest

from common.data.coordinates import choose_coordinates
from common.errors import L2OError
from common.tables.teachers import TEACHERS, initial_weights
from interchange.files.trajectories import Run, Trajectories, load_trajectories
from interchange.files.weights import Teacher
from interchange.rule.rule import Rule
from tests.conftest import need_half_products

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from tf_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer  # noqa: E402
from tf_impl.optimizers.torch_formulas import SGD, Adam  # noqa: E402
from tf_impl.recording.recorder import Recorder  # noqa: E402

TEACHER = Teacher(TEACHERS["rp_s"], initial_weights(TEACHERS["rp_s"], 1), "0" * 64, "test")
RULE = Rule.from_text("-c0 * ema(g, 0.8)", {"c0": 0.3})
HALVING = keras.optimizers.schedules.PiecewiseConstantDecay([2, 5], [0.1, 0.05, 0.025])
OPTIMIZERS = {
    "keras sgd": lambda: keras.optimizers.SGD(HALVING, momentum=0.9, weight_decay=0.01),
    "keras adam": lambda: keras.optimizers.Adam(0.01),
    "adam": lambda: Adam(0.01, weight_decay=0.1),
    "rule": lambda: SymbolicOptimizer(RULE, 0.5, weight_decay=0.01),
    "teacher": lambda: LearnedOptimizer(TEACHER),
}
EVERYTHING = 10**6
SIZE = 51


class Model:
    """A small network of four float64 variables, its loss and its gradient by batch."""

    def __init__(self, seed: int = 0, dtype: str = "float64") -> None:
        generator = np.random.default_rng(seed)
        shapes = {"in/w": (4, 6), "in/b": (6,), "out/w": (6, 3), "out/b": (3,)}
        self.dtype = dtype
        self.params = [
            keras.Variable(generator.normal(size=shape), dtype=dtype, name=name.replace("/", "_"))
            for name, shape in shapes.items()
        ]

    def backward(self, step: int) -> tuple[tf.Tensor, list[tf.Tensor]]:
        x = tf.constant(np.random.default_rng(step).normal(size=(16, 4)), self.dtype)
        a, b, c, d = self.params
        with tf.GradientTape() as tape:
            out = tf.tanh(x @ a + b) @ c + d
            loss = tf.reduce_mean(tf.square(out - tf.sin(x[:, :3])))
        return loss, tape.gradient(loss, [p.value for p in self.params])


def flat(arrays) -> np.ndarray:
    return np.concatenate([np.ravel(tf.convert_to_tensor(a).numpy()) for a in arrays])


def trained(recorder: Recorder, model: Model, optimizer: keras.optimizers.Optimizer, steps: int) -> None:
    for step in range(steps):
        loss, gradient = model.backward(step)
        recorder.loss(loss)
        optimizer.apply(gradient, model.params)


def saved(recorder: Recorder, folder) -> Trajectories:
    return load_trajectories(recorder.save(folder / "t.h5"))


def whole(trajectories: Trajectories) -> Run:
    """The one run whose coordinates were dealt out, put together again in the order of its elements."""
    parts = list(trajectories.runs.values())
    order = np.lexsort(
        (np.concatenate([p.flat_index for p in parts]), np.concatenate([p.param_index for p in parts]))
    )
    fields = {
        name: np.concatenate([getattr(p, name) for p in parts], 1)[:, order] for name in ("x", "g", "y")
    }
    for name in ("param_index", "flat_index"):
        fields[name] = np.concatenate([getattr(p, name) for p in parts])[order]
    return Run(**(vars(parts[0]) | fields))


def stepper(optimizer: keras.optimizers.Optimizer, params, mode: str):
    def step(gradient) -> None:
        optimizer.apply(gradient, params)

    return step if mode == "eager" else tf.function(step, jit_compile=mode == "xla")


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_step_is_recorded_as_it_was_and_the_training_is_left_as_it_is(make, mode, tmp_path):
    model, alone = Model(), Model()
    optimizer, other = make(), make()
    own = optimizer.apply, optimizer.update_step, optimizer.scale_loss
    recorder = Recorder(optimizer, coordinates=EVERYTHING)
    steps = [stepper(optimizer, model.params, mode), stepper(other, alone.params, mode)]
    gs, ys, losses = [], [], []
    for step in range(8):
        lr, before = float(other.learning_rate), flat(alone.params)
        loss, gradient = alone.backward(step)
        gs.append(flat(gradient))
        losses.append(float(loss))
        steps[1](gradient)
        ys.append((flat(alone.params) - before) / lr)
        loss, gradient = model.backward(step)
        recorder.loss(loss)
        steps[0](gradient)
    np.testing.assert_array_equal(flat(model.params), flat(alone.params))
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_allclose(got.g, gs, rtol=1e-13)
    np.testing.assert_allclose(got.y, ys, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(got.loss, losses, rtol=1e-15)
    assert (got.source_kind, got.outcome, got.num_steps, got.scale) == ("user", "ok", 8, 1.0)
    assert got.params_shapes == ((4, 6), (6,), (6, 3), (3,)) and got.params_names[2] == "out_w"
    assert json.loads(got.source_json)["name"] == type(optimizer).__name__
    assert (optimizer.apply, optimizer.update_step, optimizer.scale_loss) == own
    steps[0](model.backward(9)[1])  # what was traced goes on without the recorder


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


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_what_never_has_a_gradient_is_left_out_and_what_loses_it_too(tmp_path, caplog):
    model = Model()
    optimizer = SGD(0.1)
    recorder = Recorder(optimizer, coordinates=EVERYTHING)
    want = []
    for step in range(6):
        _, (a, _, c, d) = model.backward(step)
        optimizer.apply([a, None, c if step < 4 else None, d], model.params)
        want.append(flat([a, d]))
    got = whole(saved(recorder, tmp_path))
    assert caplog.messages == ["out_w is left out: it lost its gradient"]
    assert set(got.param_index.tolist()) == {0, 3} and got.g.shape == (6, 24 + 3)
    np.testing.assert_array_equal(got.g, want)
    np.testing.assert_allclose(got.y, -got.g, rtol=1e-10, atol=1e-14)


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


def test_steps_at_lr_0_are_waited_for_at_the_start_and_end_the_run_later(tmp_path):
    model, rates = Model(), [0.0, 0.0, 0.1, 0.2, 0.0, 0.1]
    recorder = Recorder(optimizer := SGD(0.1))
    gradients = []
    for step, lr in enumerate(rates):
        optimizer.learning_rate = lr
        gradients.append(model.backward(step)[1])
        optimizer.apply(gradients[-1], model.params)
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_array_equal(got.g, [flat(row) for row in gradients[2:4]])
    np.testing.assert_allclose(got.y, -got.g, rtol=1e-10, atol=1e-14)


def test_coordinates_are_those_of_choose_coordinates_and_steps_the_first(tmp_path):
    recorder = None
    for seed in range(3):
        model, optimizer = Model(seed), SGD(0.1)
        if recorder is None:
            recorder = Recorder(optimizer, coordinates=20, steps=4, seed=3, features="mt+g", problem="mine")
        else:
            recorder.start_run(optimizer)
        trained(recorder, model, optimizer, 3 + seed)
    got = saved(recorder, tmp_path)
    assert got.split == {"train": ("000000",), "valid": ("000001",), "test": ("000002",)}
    assert list(got.features) == ["m_tilde", "g"] and got.config["problem"] == "mine"
    starts = np.cumsum([0, 24, 6, 18])
    for index, run in enumerate(got.runs.values()):
        assert len(run.step) == (3, 4, 4)[index]
        chosen = choose_coordinates([24, 6, 18, 3], 20, 3, index)
        np.testing.assert_array_equal(starts[run.param_index] + run.flat_index, chosen)
        np.testing.assert_array_equal(run.x[:, :, 1], run.g)
        want = Rule.from_text(got.features["m_tilde"]).evaluate({"g": run.g})
        np.testing.assert_allclose(run.x[:, :, 0], want, rtol=1e-12, atol=1e-12)  # it is of the order of 1


def test_low_precision_is_recorded_in_float32(tmp_path):
    need_half_products("bfloat16")
    model = Model(dtype="bfloat16")
    recorder = Recorder(optimizer := SGD(0.1), steps=3)
    trained(recorder, model, optimizer, 7)
    got = whole(saved(recorder, tmp_path))
    assert got.g.dtype == got.y.dtype == got.x.dtype == np.float32 and got.g.shape == (3, SIZE)


def test_a_missing_loss_is_the_last_or_zero(tmp_path):
    for name in ("sometimes", "never"):
        model, want = Model(), []
        recorder = Recorder(optimizer := SGD(0.1))
        for step in range(5):
            loss, gradient = model.backward(step)
            want.append(float(loss))
            if name == "sometimes" and step % 2:
                recorder.loss(loss)
            optimizer.apply(gradient, model.params)
        (tmp_path / name).mkdir()
        got = whole(saved(recorder, tmp_path / name))
        expected = [want[1], want[1], want[1], want[3], want[3]] if name == "sometimes" else [0.0] * 5
        assert got.loss.tolist() == expected
        assert ("no loss was given, 0 stands for it" in got.outcome) == (name == "never")


def test_a_run_ends_before_its_first_value_that_is_not_finite(tmp_path, caplog):
    recorder = None
    for seed, bad in enumerate([None, 3, 0, None]):
        model, optimizer = Model(seed), SGD(0.1)
        recorder = recorder or Recorder(optimizer)
        if seed:
            recorder.start_run(optimizer)
        for step in range(6):
            loss, (a, *others) = model.backward(step)
            recorder.loss(loss)
            optimizer.apply([a * (np.nan if step == bad else 1.0), *others], model.params)
    got = saved(recorder, tmp_path)
    assert caplog.messages == ["a run is left out: gradient, output or loss of its first step is not finite"]
    assert [run.diverged for run in got.runs.values()] == [False, True, False]
    cut = got.runs["000001"]
    assert (len(cut.step), cut.num_steps, cut.outcome) == (3, 6, "diverged at step 4")


def test_a_coordinate_left_alone_has_y_0_and_the_run_goes_on(tmp_path):
    """Its gradient is finite here, but not the square of it; of one that is nan the run ends."""
    adam, p = SymbolicOptimizer(Rule.named("adam"), 0.1), keras.Variable(np.ones(5), dtype="float32")
    recorder = Recorder(adam)
    for step in range(6):
        adam.apply([tf.constant([1e30 if step == 3 else 1.0, 1.0, 1.0, 1.0, 1.0])], [p])
    got = whole(saved(recorder, tmp_path))
    assert got.outcome.startswith("ok") and len(got.step) == 6
    assert got.g[3, 0] == np.float32(1e30) and (got.y[:, 0] == 0.0).tolist() == [k == 3 for k in range(6)]
    assert (got.y[:, 1:] < 0.0).all()


def test_saving_goes_on_and_equal_loops_give_equal_bytes(tmp_path):
    files = []
    for name in ("one.h5", "other.h5"):
        recorder = Recorder(optimizer := Adam(0.01, name="adam"), coordinates=10)
        trained(recorder, Model(), optimizer, 3)
        files.append(recorder.save(tmp_path / name).read_bytes())
    assert files[0] == files[1]
    with pytest.raises(L2OError, match=r"is there already.*overwrite=True"):
        recorder.save(tmp_path / name)
    recorder.loss(1.0)  # between runs nothing listens
    recorder.start_run(Adam())
    recorder.save(tmp_path / name, overwrite=True)  # a run without a step is none
    assert list(load_trajectories(tmp_path / name).split.values()) == [
        (f"000000-{part}",) for part in ("train", "valid", "test")
    ]


def integers() -> None:
    Recorder(optimizer := keras.optimizers.SGD())  # ours would refuse them first
    optimizer.apply([tf.ones(8, tf.int32)], [tf.Variable(np.ones(8, np.int32))])


def twice() -> None:
    Recorder(optimizer := SGD())
    Recorder(optimizer)


BAD = {
    "a model": (lambda: Recorder(Model()), "expected a Keras optimizer to record, got Model"),
    "no coordinates": (lambda: Recorder(SGD(), coordinates=0), "coordinates: expected at least 1, got 0"),
    "no steps": (lambda: Recorder(SGD(), steps=0), "steps: expected at least 1, got 0"),
    "unknown feature": (lambda: Recorder(SGD(), features="g+mum"), "unknown feature 'mum'"),
    "theta": (lambda: Recorder(SGD(), features={"a": "theta + g"}), "'a': expected only g and t in it"),
    "losses": (lambda: Recorder(SGD()).loss(tf.ones(2)), "loss: expected one number, got shape (2,)"),
    "no step": (lambda: Recorder(SGD()).save("unwritten.h5"), "expected steps to record, got none"),
    "integers": (integers, "expected real floating point, got int32"),
    "twice": (twice, "is being recorded already; save that recording first"),
}


@pytest.mark.parametrize(("use", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_recorded_is_one_clear_line(use, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(L2OError) as error:
        use()
    assert message in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
