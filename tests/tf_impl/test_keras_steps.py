"""Steps of ``SymbolicOptimizer`` in Keras: fused ones equal plain ones, hard gradients beside torch's."""

import functools

import numpy as np
import pytest

from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")  # before TensorFlow, as everywhere
tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

import torch_impl.optimizers.optimizers  # noqa: E402
from tests.helpers import torch_side  # noqa: E402
from tests.helpers.tf_side import feed, tallies  # noqa: E402
from tf_impl.optimizers import base as coordinatewise  # noqa: E402
from tf_impl.optimizers.optimizers import SymbolicOptimizer  # noqa: E402

SGD = Rule.from_text("-g")
ADAM = Rule.named("adam")
RULE = Rule.from_text(
    "-c0 * tanh(m_tilde / c1) / (1 + t / 50) - c2 * lag(g, 2) - c3 * cummax(abs(g)) - 0.01 * theta",
    {"c0": 0.02, "c1": 0.7, "c2": 0.003, "c3": 0.001},
    {"m_tilde": "ema_hat(g, 0.9) / (sqrt(ema_hat(square(g), 0.99)) + 1e-8)"},
    scale=0.5,
)
DRIFT = Rule.from_text("c0 - g + ema(cos(c1 * g), 0.9)", {"c0": 0.25, "c1": 2.0})


def variable(value, dtype: str = "float64", **options) -> keras.Variable:
    return keras.Variable(np.array(value), dtype=dtype, **options)


def steps_of(optimizer) -> list[int]:
    return [tally[0] for tally in tallies(optimizer)]


FUSED = {
    "rule": RULE,
    "adam": ADAM,
    "sums": Rule.from_text("-0.1 * g / (sqrt(cumsum(square(g))) + 1e-3) + 0.01 * cummax(lag(g, 1))"),
    "ema of ema": Rule.from_text("-0.1 * ema(ema_hat(c * g, 0.9) * lag(g, 1), 0.5)", {"c": 0.7}),
}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_the_fused_step_is_the_plain_one(name, mode, monkeypatch):
    """Also where coordinates are left alone; gradients of a graph come without a static shape."""
    monkeypatch.setenv("L2O_KERNELS", "0")  # where there is a compiler no eager step goes through XLA
    generator, rule = np.random.default_rng(0), FUSED[name]
    rows = list(generator.normal(size=(8, 7)))
    rows[3] = np.where(np.arange(7) == 4, np.nan, rows[3])
    rows[5] = np.where(np.arange(7) == 6, -np.inf, rows[5])
    after = []
    for fused_from in (8, 1):
        monkeypatch.setattr(coordinatewise, "FUSED_FROM", fused_from)
        p = variable(np.linspace(-1, 1, 7))
        optimizer = SymbolicOptimizer(rule, 0.5, weight_decay=0.1)
        optimizer.build([p])
        apply = functools.partial(lambda optimizer, p, g: optimizer.apply([g], [p]), optimizer, p)
        if mode == "graph" or (mode == "xla" and fused_from == 1):  # all that XLA compiles is fused
            signature = [tf.TensorSpec([None] if mode == "graph" else [7], tf.float64)]
            apply = tf.function(apply, input_signature=signature, jit_compile=mode == "xla")
        for row in rows:
            apply(tf.constant(row))
        assert bool(optimizer._compiled) == (fused_from == 1 and mode != "xla") and steps_of(optimizer) == [8]
        after.append([v.numpy() for v in (p, *optimizer.variables)])
    for plain, fused in zip(*after, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=1e-12, atol=1e-15)
    assert np.isfinite(after[0][0]).all()


def test_the_fused_look_is_exact(monkeypatch):
    """Values whose sum overflows are finite; a lone nan or inf is found in a large tensor."""
    monkeypatch.setattr(coordinatewise, "FUSED_FROM", 1)
    g = np.full(10_000, 3e38, "float32")
    p = variable(np.zeros(10_000), "float32")
    optimizer = SymbolicOptimizer(SGD, 1e-37)
    for spoil in (None, np.nan, np.inf, -np.inf):
        if spoil is not None:
            g = np.zeros(10_000, "float32")
            g[7_777] = spoil
            before = p.numpy()[7_777]
        optimizer.apply([tf.constant(g)], [p])
        assert np.isfinite(p.numpy()).all() and tallies(optimizer)[0][1] == (spoil is not None)
        assert spoil is None or p.numpy()[7_777] == before
    assert steps_of(optimizer) == [4]
    np.testing.assert_allclose(p.numpy(), -30.0, rtol=1e-5)
    tf.config.run_functions_eagerly(True)
    try:
        optimizer.apply([tf.constant(np.full(10_000, 3e38, "float32"))], [p])
    finally:
        tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(p.numpy(), -60.0, rtol=1e-5)


# Name -> dtype, gradient, whether any coordinate steps; a single None is no gradient at all.
HARD = {
    "nan": ("float32", [1.0, np.nan, 1.0], True),
    "inf": ("float32", [1.0, -np.inf, np.inf], True),
    "zero": ("float32", [0.0, -0.0, 0.0], True),
    "denormal": ("float32", [1e-42, -1e-42, 1e-45], True),
    "1e18": ("float32", [1e18, -1e18, 1.0], True),
    "float16": ("float16", [1e-5, -6e-8, 0.0], True),
    "float16 inf": ("float16", [np.inf, 1.0, 1.0], True),
    "bfloat16": ("bfloat16", [1e-30, 1e15, -1.0], True),
    "float64": ("float64", [1e-300, 1e100, -1.0], True),
    "empty": ("float32", np.zeros((0, 3)), True),
    "0-dim": ("float32", 0.5, True),
    "0-dim nan": ("float32", np.nan, False),
    "strided": ("float32", np.arange(12.0).reshape(3, 4)[:, ::2].T, True),
    "nan everywhere": ("float32", np.full((2, 3), np.nan), False),
    "none": ("float32", None, False),
}


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("rule", [ADAM, RULE, DRIFT], ids=["adam", "rule", "drift"])
@pytest.mark.parametrize("name", HARD)
def test_hard_gradients_leave_parameters_and_state_finite_as_in_torch(name, rule):
    dtype, hard, moves = HARD[name]
    shape = (3,) if hard is None else np.shape(hard)
    tensors = (variable(np.ones(shape), dtype), variable(np.ones(2), dtype))
    params = torch_side.parameters([np.ones(shape), np.ones(2)], dtype)
    ours = SymbolicOptimizer(rule, 0.1, weight_decay=0.1, center=True)
    theirs = torch_impl.optimizers.optimizers.SymbolicOptimizer(
        params, rule.centered(), 0.1, weight_decay=0.1
    )
    ours.build(tensors)
    for row in (np.full(shape, 0.3), hard, np.full(shape, -0.2)):
        feed(ours, tensors, [row, np.full(2, 0.5)])
        torch_side.feed(theirs, params, [row, np.full(2, 0.5)])
        for mine, other in zip(tensors, params, strict=True):
            a, b = tf.cast(mine, tf.float64).numpy(), other.detach().double().numpy()
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b, rtol=1e-2 if dtype[-2:] == "16" else 1e-5, atol=1e-6)
    assert steps_of(ours) == torch_side.counts(theirs, params) == [3 if moves else 2, 3]
    assert all(np.isfinite(slot.numpy()).all() for slot in ours.variables)
