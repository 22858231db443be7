"""The derivatives of rules that see tensors, by GradientTape through the lowering, are the oracle's."""

import numpy as np
import pytest

from interchange.language import view as views
from interchange.language.execute import evaluate_with_tangents
from interchange.rule.rule import Rule

tf = pytest.importorskip("tensorflow")

from tf_impl.networks.lowering import Lowered  # noqa: E402

TEXTS = (
    "by_matrix(polar(g + c * ema(g, b)), tanh(ema(g, b) / c))",
    "g / (sqrt(ema(row_mean(square(g)), 1 - powabs(t, -0.8)) * ema(col_mean(square(c * g)), b)) + c)",
    "orth(c * ema(g, b) + col_max(g)) + c * row_max(abs(ema(g, b))) - lag(mean(c * g), 2)",
)
SHAPES = ((1,), (7,), (5, 3), (3, 5), (16, 8), (3, 3, 2, 4), (1, 9))
VIEWS = [*map(views.canonical, SHAPES), views.matrix((2, 3, 8), (-1,), parts=2)]
MODES = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}
KINDS = {
    "usual": lambda g: g,
    "zero": np.zeros_like,
    "rank one": lambda g: np.broadcast_to(g[..., :1] * np.ones(g.shape[-1]), g.shape).copy(),
    "tiny": lambda g: 1e-25 * g,
    "badly scaled": lambda g: g * np.logspace(-6, 3, g.size).reshape(g.shape),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_derivatives_by_constants_are_the_oracles_tangents(text, kind):
    check(text, kind, "eager", VIEWS)


@pytest.mark.slow_with(mode=("graph",))
@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("text", TEXTS)
def test_so_they_are_in_graphs(text, mode):
    check(text, "usual", mode, VIEWS[4:6])


def check(text: str, kind: str, mode: str, seen: list[views.View]) -> None:
    rule = Rule.from_text(text, {"c": 0.7, "b": 0.9})
    names, rng = list(rule.constants), np.random.default_rng(0)
    for view in seen:
        g = np.stack([KINDS[kind](rng.normal(size=view.shape)) for _ in range(3)])
        weights = rng.normal(size=g.shape)
        program = rule.program(view.matrix)
        lowered = Lowered(program)

        def slopes(g, lowered=lowered, view=view, weights=weights):
            constants = {name: tf.constant(value, tf.float64) for name, value in rule.constants.items()}
            with tf.GradientTape() as tape:
                tape.watch(constants)
                state, total = lowered.initial_state(g[0], view), tf.constant(0.0, tf.float64)
                for t in range(3):
                    (u,), state = lowered.step({"g": g[t], **constants}, state, float(t + 1), view)
                    total += tf.reduce_sum(weights[t] * u)
            return tape.gradient(total, [constants[name] for name in names], unconnected_gradients="zero")

        found = MODES[mode](slopes)(tf.constant(g))
        u, tangents = evaluate_with_tangents(program, {"g": g, **rule.constants}, names, view)
        wanted = (weights * tangents).reshape(len(names), -1).sum(1)
        # Slopes may cancel to 0: polar does not ask for the size of its argument.
        atol = 1e-10 * np.abs(weights * tangents).sum() + 1e-13 * np.abs(weights * u).sum()
        np.testing.assert_allclose(found, wanted, atol=atol, err_msg=str(view.shape))
