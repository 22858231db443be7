"""Fused steps of ``SymbolicOptimizer`` in Keras equal plain ones; of hard gradients see tests/parity."""

import functools

import numpy as np
import pytest

from interchange.rule.rule import Rule

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from tests.helpers.samples import RULE_OF_EVERYTHING as RULE  # noqa: E402
from tests.helpers.tf_side import tallies  # noqa: E402
from tf_impl.optimizers import base as coordinatewise  # noqa: E402
from tf_impl.optimizers.optimizers import SymbolicOptimizer  # noqa: E402

SGD = Rule.from_text("-g")
ADAM = Rule.named("adam")


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
