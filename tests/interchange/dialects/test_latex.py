"""LaTeX as the exporter writes it comes back; other LaTeX is one clear line."""

import numpy as np
import pytest

from common.errors import L2OError
from interchange import import_hall_of_fame
from interchange.dialects.latex import latex_text
from interchange.language.operators import OPERATORS, POINTWISE
from interchange.rule.gallery import NAMED
from interchange.rule.rule import Rule

TEXTS = {op: f"{op}({', '.join(['g', 'x_hat'][: OPERATORS[op].arity])})" for op in POINTWISE}
TEXTS |= {
    "sums": "g - (x_hat - 2.5) * -0.125 + -square(g - x_hat)",
    "powers": "pow(g, 3.0) + powabs(x_hat, 1.5) - powreal(g, x_hat) / cube(g * x_hat)",
    "nested roots": "sqrt(sqrt(g) + log(g)) - cbrt(cbrt(x_hat))",
    "roots of several sizes": "root(abs(g) + abs(x_hat)) - sqrt(abs(g) * x_hat)",
    "small numbers": "1e-8 * g / (x_hat + 3.5e-12) - 1e7",
    "names": "m_tilde * log_g + v_a2 - theta",
    "memory": "ema(g, 0.9) - lag(g, 1) + lag(g * x_hat, 3) - ema_hat(square(g), 0.999) + cummax(cumsum(g))",
    "products of comparisons": "greater(g, x_hat) * sigmoid(g * x_hat)",
    "log1p of a difference": "log1p(-g) + log1p(g - 0.5) + logabs(g + 1.0)",
    "log1p of what opens with a minus": "log1p(-g - 1.0) + log1p(-2.0 + g) - (-2.0 * g / x_hat - g)",
    "names of the same parts": "g_ - 2 * g_hat_x + 3 * g_x_hat - 5 * v__a2 + 7 * v_a2 - 11 * v_a2_",
    "names like constants": "c0_hat + 2 * c0_bar - 3 * c0_a - 5 * lag(c1_, 2)",
    "powers of small numbers": "powabs(2.5e-5, g) + 1e-8 ** x_hat - pow(3e-7, g) + powreal(2.5e6, g)",
    "squares of small numbers": "aq(g, 2.5e-7) - powabs(aq(x_hat, 1e-8), 1e7)",
    "decays elsewhere": "ema(g, 0.99999) / (1.0 - powabs(0.99999, t)) + lag(t, 2)",
    "decays near 1 and 0": "ema(g, 0.99999) - ema_hat(g, 0.9999901) + ema(g, 2.5e-5) * lag(ema(g, 0.5), 1)",
}
FEATURES = dict.fromkeys((
    "x_hat", "m_tilde", "log_g", "v_a2", "g_", "g_hat_x", "g_x_hat", "v__a2", "v_a2_", "c0_hat", "c0_bar",
    "c0_a", "c1_",
))  # fmt: skip


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_is_written_reads_back(text):
    rule = Rule.from_text(text, features=FEATURES)
    again = Rule.from_text(latex_text(rule.latex()), features=FEATURES)
    generator = np.random.default_rng(0)
    inputs = {name: generator.normal(size=(7, 20)) for name in ("g", "theta", *FEATURES)}
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(again.evaluate(inputs), rule.evaluate(inputs), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("name", NAMED)
def test_the_gallery_is_read_from_files(name, tmp_path):
    rule = Rule.named(name)
    (tmp_path / "rule.tex").write_text(rule.latex() + "\n")
    (again,) = import_hall_of_fame(tmp_path / "rule.tex", features={})
    inputs = {key: np.random.default_rng(0).normal(size=(5, 9)) for key in ("g", "theta")}
    if rule.features or again.features:
        assert set(again.features) <= set(rule.features)
        return
    np.testing.assert_allclose(again.tried(inputs), rule.tried(inputs), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    "latex",
    [
        r"u_t = \\alpha g_t",
        r"u_t = \\sum_i g_i",
        r"\\theta_{t+1} = \\theta_t - \\eta g_t",
        r"u_t = \\frac{g_t}{2",
        r"u_t = \\log(g_t)",
        r"u_t = g_t \\over 2",
        r"u_t = \\left( g_t",
        "u_t = ",
        r"u_t = g_t &= 2",
        r"u_t = \\log\\left(g_t\\right)",
        "u_t = g_t^23",
        "u_t = c_12",
        r"u_t = \frac12 g_t",
        r"u_t = \sqrt12",
        "u_t = g_t^-",
    ],
)
def test_other_latex_is_one_line(latex):
    with pytest.raises(L2OError, match="LaTeX") as caught:
        latex_text(latex)
    assert "\n" not in str(caught.value)
