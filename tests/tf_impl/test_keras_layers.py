"""What an optimizer knows of Keras' layers: views of their variables, and which of them decay."""

import dataclasses
import json

import numpy as np
import pytest

from common.errors import L2OError
from interchange.files.weights import Teacher
from interchange.language import view as views
from interchange.rule.rule import Rule

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402
from keras import layers as kl  # noqa: E402

from tests.helpers.tf_side import tallies  # noqa: E402
from tf_impl.networks import matrix  # noqa: E402
from tf_impl.optimizers import layers  # noqa: E402
from tf_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer  # noqa: E402

RULE = Rule.from_text(
    "by_matrix(-polar(g + ema(g, b)) - 0.1 * row_mean(g), -g / (sqrt(ema(mean(square(g)), b)) + 0.1))",
    {"b": 0.9},
)
STEP_SIZES = {"dense/kernel": 0.5, "dense/bias": 2.0}
# Layers with a kernel, the shape that they are given, and how many matrices the kernel is.
KERNELS = {
    "dense": (lambda: kl.Dense(4, use_bias=False), (3,), 1),
    "convolution": (lambda: kl.Conv2D(4, 3, padding="same", use_bias=False), (5, 5, 3), 1),
    "line": (lambda: kl.Conv1D(4, 3, padding="same", use_bias=False), (5, 3), 1),
    "groups": (lambda: kl.Conv2D(6, 3, groups=2, padding="same", use_bias=False), (5, 5, 4), 2),
    "transposed": (lambda: kl.Conv2DTranspose(4, 3, padding="same", use_bias=False), (5, 5, 3), 1),
    "to heads": (lambda: kl.EinsumDense("abc,cde->abde", (None, 2, 3)), (5, 4), 1),
    "from heads": (lambda: kl.EinsumDense("abcd,cde->abe", (None, 4)), (5, 2, 3), 1),
    "other order": (lambda: kl.EinsumDense("...x,yx->...y", (3,)), (5, 4), 1),
    "one for each": (lambda: kl.EinsumDense("bij,ijk->bik", (2, 3)), (2, 4), 2),
}
NO_MATRICES = {
    "embedding": (lambda: kl.Embedding(7, 3), ()),
    "depthwise": (lambda: kl.DepthwiseConv2D(3, depth_multiplier=2), (5, 5, 3)),
    "as many groups": (lambda: kl.Conv2D(6, 3, groups=3), (5, 5, 3)),
    "norm": (lambda: kl.LayerNormalization(axis=(-2, -1)), (5, 3)),
    "activation": (lambda: kl.PReLU(), (5, 3)),
    "one output": (lambda: kl.Dense(1), (3,)),
    "one input": (lambda: kl.Dense(3), (1,)),
}


def built(layer: keras.Layer, shape: tuple[int, ...]) -> keras.Layer:
    layer.build((2, *shape))
    return layer


def everything() -> keras.Model:
    """A model with variables of many kinds."""
    words = keras.Input((4,), dtype="int32")
    x = kl.Embedding(7, 6, name="words")(words)
    x = kl.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = kl.Reshape((2, 2, 6))(x)
    x = kl.Conv2D(4, 2, groups=2, padding="same", name="groups")(x)
    x = kl.LayerNormalization(name="norm")(x)
    x = kl.SeparableConv2D(4, 2, padding="same", name="separable")(x)
    x = kl.Conv2DTranspose(6, 2, name="wider")(x)
    x = kl.Reshape((-1, 6))(x)
    x = kl.GRU(3, name="gru")(x)
    return keras.Model(words, kl.Dense(2, name="last")(x))


@pytest.mark.parametrize("name", KERNELS)
def test_a_row_of_the_view_makes_one_output_and_no_other(name):
    make, shape, matrices = KERNELS[name]
    layer = built(make(), shape)
    (view,), (kernel,) = layers.views(layer).values(), layer.trainable_variables
    rows, columns, parts = view.axes
    assert view.matrix and columns
    assert kernel.numpy().size == matrices * view.sizes["rows"] * view.sizes["cols"]
    order = [*parts, *rows, *columns]
    moved = np.transpose(np.arange(kernel.numpy().size).reshape(view.split), order)
    of_rows = moved.reshape(-1, view.sizes["cols"])  # a row of each matrix -> places of its numbers
    for output, places in enumerate(of_rows):
        alone = np.zeros(kernel.numpy().size)
        alone[places] = 1.0
        kernel.assign(alone.reshape(kernel.shape))
        found = np.asarray(layer(np.ones((2, *shape), "float32")))
        moved_by = np.abs(found.reshape(-1, len(of_rows))).sum(0)
        assert np.flatnonzero(moved_by).tolist() == [output]


@pytest.mark.parametrize("name", NO_MATRICES)
def test_what_has_no_outputs_by_inputs_has_no_view(name):
    make, shape = NO_MATRICES[name]
    found = layers.views(built(make(), shape))
    assert found and not any(view.matrix for view in found.values())


def test_of_a_model_every_variable_is_seen_as_its_layer_says():
    model = everything()
    found = layers.views(model)
    assert set(found) == {v.path for v in model.trainable_variables}
    assert {path for path, view in found.items() if view.matrix} == {
        *(f"attention/{name}/kernel" for name in ("query", "key", "value", "attention_output")),
        "groups/kernel",
        "separable/pointwise_kernel",
        "wider/kernel",
        "gru/gru_cell/kernel",
        "gru/gru_cell/recurrent_kernel",
        "last/kernel",
    }


@pytest.mark.parametrize("given", ["model", "views", "axes"])
def test_steps_are_the_oracles_by_the_views_of_the_layers(given):
    model = everything()
    seen, params = layers.views(model), model.trainable_variables
    options = {"model": model, "views": seen, "axes": {"wider/kernel": ((-2,), (0, 1, 3))}}[given]
    optimizer, start = SymbolicOptimizer(RULE, views=options), [p.numpy().copy() for p in params]
    rng = np.random.default_rng(0)
    rows = [[rng.normal(size=p.shape).astype("float32") for p in params] for _ in range(3)]
    for row in rows:
        optimizer.apply([tf.constant(g) for g in row], params)
    for p, before, *gs in zip(params, start, *rows, strict=True):
        if given == "axes" and p.path != "wider/kernel":
            continue
        g = np.stack(gs).reshape(3, -1)
        u = RULE.evaluate({"g": g}, np.float32, shapes=[seen[p.path]]).sum(0)
        np.testing.assert_allclose((p.numpy() - before).ravel(), u, atol=1e-3 * abs(u).max(), err_msg=p.path)


def test_polar_sees_kernels_and_nothing_else(monkeypatch):
    reached, polar = [], matrix.TENSOR["polar"]
    monkeypatch.setitem(matrix.TENSOR, "polar", lambda x, axes: reached.append(x.shape) or polar(x, axes))
    model = everything()
    optimizer = SymbolicOptimizer(RULE, views=model)
    params = model.trainable_variables
    optimizer.apply([tf.ones(p.shape) for p in params], params)
    found = [view for view in layers.views(model).values() if view.matrix]
    assert sorted(map(tuple, reached)) == sorted(view.split for view in found)


def test_without_views_rows_are_the_last_axis_but_of_what_keras_names():
    names = {"a/kernel": True, "a/bias": False, "a/embeddings": False, "depthwise_conv2d_3/kernel": False}
    params = [keras.Variable(np.ones((3, 4)), name=name.replace("/", ".")) for name in names]
    for p, name in zip(params, names, strict=True):
        p._path = name
    found = layers.of_variables({}, [*params, keras.Variable(np.ones(3)), tf.Variable(np.ones((2, 3)))])
    assert [view.matrix for view in found] == [*names.values(), False, True]
    assert found[0] == views.canonical((3, 4))


def test_biases_norms_and_vectors_do_not_decay_and_all_else_does():
    model = everything()
    params = model.trainable_variables
    for p in params:
        p.assign(tf.ones(p.shape))
    options = layers.per_layer(model, weight_decay=0.5)
    optimizer = SymbolicOptimizer(RULE, 1.0, **options)
    optimizer.exclude_from_weight_decay(var_names=["pointwise"])
    optimizer.apply([tf.zeros(p.shape) for p in params], params)
    for p in params:
        decays = p.name.endswith(("kernel", "embeddings")) and p.name != "pointwise_kernel"
        np.testing.assert_allclose(p.numpy(), 0.5 if decays else 1.0, atol=1e-7, err_msg=p.path)


def lazily(name: str) -> keras.Model:
    """Built when it is used, so that its variables' paths begin with its name, and no longer when loaded."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([kl.Dense(4, "tanh", name="one"), kl.Dense(2, name="two")], name=name)


@pytest.mark.parametrize("way", ["keras", "checkpoint", "config"])
def test_what_is_known_of_layers_is_saved_and_training_goes_on_to_the_same_bits(way, tmp_path):
    x = np.random.default_rng(1).normal(size=(16, 3)).astype("float32")
    model = lazily("net")
    model.build((None, 3))
    options = layers.per_layer(model, weight_decay=0.1)
    options["views"]["net/two/kernel"] = ((0,), (1,))
    model.compile(SymbolicOptimizer(RULE, 0.1, **options), "mse", jit_compile=False)
    fit = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(x, x[:, :2], **fit)
    assert [tuple(a.shape) for a in model.optimizer._states[0]] == [(3, 4)]
    if way == "keras":
        model.save(tmp_path / "model.keras")
        other = keras.models.load_model(tmp_path / "model.keras")
        assert other.trainable_variables[0].path != model.trainable_variables[0].path
    else:
        other = lazily("net")
        other.build((None, 3))
        config = json.loads(json.dumps(model.optimizer.get_config(), allow_nan=False))
        again = SymbolicOptimizer.from_config(config)
        again.build(other.trainable_variables)
        if way == "config":
            other.set_weights(model.get_weights())
            again.set_weights([v.numpy() for v in model.optimizer.variables])
        else:
            path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "ckpt")
            tf.train.Checkpoint(model=other, optimizer=again).restore(path).assert_consumed()
        other.compile(again, "mse", jit_compile=False)
    assert other.optimizer._places == model.optimizer._places
    for one in (model, other):
        one.fit(x, x[:, :2], **fit)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert tallies(other.optimizer) == tallies(model.optimizer)


def test_fit_takes_the_same_steps_eagerly_in_graphs_and_compiled():
    x = np.random.default_rng(1).normal(size=(16, 3)).astype("float32")
    found = []
    for setting in ({"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}):
        model = lazily("net")
        model.build((None, 3))
        model.compile(SymbolicOptimizer(RULE, 0.1, views=model), "mse", **setting)
        model.fit(x, x[:, :2], batch_size=4, shuffle=False, verbose=0)
        found.append(model.get_weights())
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_mode_raise_raises_in_graphs_too():
    p = keras.Variable(np.ones((4, 3)))
    optimizer = SymbolicOptimizer(RULE, 0.1, nonfinite="raise")
    optimizer.build([p])
    step = tf.function(lambda g: optimizer.apply([g], [p]))
    step(tf.ones([4, 3]))
    before = p.numpy()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"12 of 12 coordinates .* the gradient was not"):
        step(tf.constant([[np.nan, 1.0, 1.0]] + [[1.0] * 3] * 3))
    np.testing.assert_array_equal(p.numpy(), before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_variables_are_stepped_in_float32(dtype):
    g = np.random.default_rng(0).normal(size=(1, 4, 3)).astype("float32")
    p = keras.Variable(np.zeros((4, 3)), dtype=dtype)
    optimizer = SymbolicOptimizer(RULE)
    optimizer.apply([tf.cast(tf.constant(g[0]), dtype)], [p])
    u = RULE.evaluate({"g": g.reshape(1, -1)}, shapes=[(4, 3)]).reshape(4, 3)
    np.testing.assert_allclose(tf.cast(p, tf.float32), u, atol=0.05)
    assert {a.dtype for a in optimizer._states[0]} == {"float32"}


def test_sparse_gradients_are_dense_ones_with_zeros():
    params = [keras.Variable(np.zeros((5, 3), "float32")) for _ in range(2)]
    rows = tf.IndexedSlices(tf.constant([[1.0, 2.0, 3.0], [4.0, 5.0, 7.0]]), tf.constant([3, 1]), [5, 3])
    for p, g in zip(params, (rows, tf.convert_to_tensor(rows)), strict=True):
        SymbolicOptimizer(RULE).apply([g], [p])
    np.testing.assert_allclose(params[0].numpy(), params[1].numpy(), atol=1e-6)
    assert params[0].numpy().all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"far/kernel": False}, "expected paths of variables such as .*a/kernel, got far/kernel"),
        ({"a/kernel": views.canonical((3, 5))}, r"expected one of shape \(3, 4\) for .*, got \(3, 5\)"),
        ({"a/kernel": "rows"}, "matrix: expected True, False or a pair of axes"),
        ({"x/a/kernel": True, "y/a/kernel": False}, "views: expected one of a/kernel, got those of x"),
    ],
)
def test_views_that_do_not_fit_are_refused_in_one_line(options, told):
    p = keras.Variable(np.ones((3, 4)))
    p._path = "a/kernel"
    with pytest.raises(L2OError, match=told) as error:
        SymbolicOptimizer(RULE, views=options).build([p])
    assert "\n" not in str(error.value)


def test_models_that_are_not_built_or_have_two_variables_of_a_name_are_refused():
    with pytest.raises(L2OError, match="expected a built model"):
        SymbolicOptimizer(RULE, views=lazily("net"))
    inputs = keras.Input((3,))
    model = keras.Model(inputs, kl.Dense(2, name="a")(kl.Dense(3, name="b")(inputs)))
    model.layers[1].kernel._path = model.layers[2].kernel.path
    with pytest.raises(L2OError, match="expected one variable called a/kernel, got two"):
        layers.views(model)


@pytest.mark.parametrize("name", ["adam", "rp_s"])
def test_a_saved_model_keeps_step_sizes_by_the_ends_of_paths(name, tmp_path):
    """Trained on after loading, it takes the same step as the one that was saved."""
    rule = name == "adam"
    given = dataclasses.replace(Rule.named(name) if rule else Teacher.named(name), step_sizes=STEP_SIZES)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    model.compile((SymbolicOptimizer if rule else LearnedOptimizer)(given, 0.1), "mse")
    x, y = np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32)
    model.train_on_batch(x, y)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    for one in (model, again):
        one.train_on_batch(x, y)
    for v, w in zip(model.trainable_variables, again.trainable_variables, strict=True):
        np.testing.assert_array_equal(v.numpy(), w.numpy())
    assert again.optimizer._sizes == list(STEP_SIZES.values())
