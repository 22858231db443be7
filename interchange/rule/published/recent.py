"""Relatives of Adam: Grams, MARS, ADOPT, AdEMAMix."""

import math

from interchange.language.equation import Equation
from interchange.rule.published.text import ADAM, adam, rms


def grams(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Equation:
    """sign(g) |m_hat / (sqrt(v_hat) + eps)|: the gradient's direction (Cao et al. 2024, algorithm 1)."""
    return Equation.from_text(f"-sign(g) * abs({ADAM})", {"beta1": beta1, "beta2": beta2, "eps": eps})


def mars(
    beta1: float = 0.95,
    beta2: float = 0.99,
    gamma: float = 0.025,
    eps: float = 1e-8,
    vector_beta1: float = 0.9,
    vector_beta2: float = 0.95,
) -> Equation:
    """Adam over c = g + gamma beta1 / (1 - beta1) (g - the last g), cut to norm 1; AdamW on vectors.

    Yuan et al. 2024, algorithm MARS-AdamW in its approximate form.
    """
    c = "(g + gain * greater(t, 1) * (g - lag(g, 1)))"
    cut = f"{c} / max(1, sqrt(numel) * {rms(c)})"
    matrix, vector = adam(cut, "beta1", "beta2", "eps"), adam("g", "vector_beta1", "vector_beta2", "eps")
    return Equation.from_text(
        f"by_matrix(-({matrix}), -({vector}))",
        {
            "gain": gamma * beta1 / (1.0 - beta1),
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "vector_beta1": vector_beta1,
            "vector_beta2": vector_beta2,
        },
    )


def adopt(beta1: float = 0.9, beta2: float = 0.9999, eps: float = 1e-6, power: float = 0.25) -> Equation:
    """m <- beta1 m + (1 - beta1) clip(g / max(sqrt(v), eps), t**power), v the average of squares before g.

    Taniguchi et al. 2024, algorithm 2. v begins as the first square, and the first step moves nothing: at
    t = 1 the decay of v is 0 and the clip is 0.
    """
    squares = f"ema(square(g), 1 - max({1.0 - beta2!r}, greater(2, t)))"
    most = "powabs(t - 1, power)"
    return Equation.from_text(
        f"-ema(max(min(g / max(sqrt(lag({squares}, 1)), eps), {most}), -{most}), beta1)",
        {"beta1": beta1, "eps": eps, "power": power},
    )


def ademamix(
    beta1: float = 0.9,
    beta2: float = 0.999,
    beta3: float = 0.9999,
    alpha: float = 5.0,
    eps: float = 1e-8,
    warmup: float = 0.0,
) -> Equation:
    """(m1_hat + alpha m2) / (sqrt(v_hat) + eps), m2 slower; over ``warmup`` steps alpha and beta3 grow.

    Pagliardini et al. 2024, algorithm 1; beta3(t) is its schedule of a half-life that grows linearly.
    """
    slow, share = "beta3", "alpha"
    constants = {"beta1": beta1, "beta2": beta2, "beta3": beta3, "alpha": alpha, "eps": eps}
    if warmup:
        # beta3(t) = exp(-x); 1 - exp(-x) is 2 y / (1 + y) with y = tanh(x / 2), exact for small x.
        a, b = -math.log(beta1), -math.log(constants.pop("beta3"))
        y = f"tanh({a * b / 2.0!r} / ({b!r} + t * {(a - b) / warmup!r}))"
        slow = f"1 - max({1.0 - beta3!r}, 2 * {y} / (1 + {y}))"
        share, constants["per_step"] = "min(t * per_step, alpha)", alpha / warmup
    first = f"ema_hat(g, beta1) + {share} * ema(g, {slow})"
    return Equation.from_text(f"-({first}) / (sqrt(ema_hat(square(g), beta2)) + eps)", constants)
