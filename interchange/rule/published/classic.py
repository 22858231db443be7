"""Optimizers as torch.optim 2.13 has them, to rounding in float64 (MATH.md section 6), and Lion.

Papers: the rows of interchange.rule.gallery.
"""

from interchange.language.equation import Equation
from interchange.rule.published.text import ADAM


def sgd() -> Equation:
    """Against the gradient."""
    return Equation.from_text("-g")


def momentum(beta: float = 0.9) -> Equation:
    """torch's buffer b s + g, which is ema / (1 - b)."""
    return Equation.from_text("-gain * ema(g, beta)", {"gain": 1.0 / (1.0 - beta), "beta": beta})


def nesterov(beta: float = 0.9) -> Equation:
    """The gradient and what momentum will add to it."""
    return Equation.from_text("-(g + gain * ema(g, beta))", {"gain": beta / (1.0 - beta), "beta": beta})


def rmsprop(alpha: float = 0.99, eps: float = 1e-8) -> Equation:
    """The gradient over the root of its average square."""
    return Equation.from_text("-g / (sqrt(ema(square(g), alpha)) + eps)", {"alpha": alpha, "eps": eps})


def adagrad(eps: float = 1e-10) -> Equation:
    """The gradient over the root of the sum of its squares."""
    return Equation.from_text("-g / (sqrt(cumsum(square(g))) + eps)", {"eps": eps})


def adam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Equation:
    """m_hat / (sqrt(v_hat) + eps), averages freed of their bias (Kingma and Ba 2015, algorithm 1)."""
    return Equation.from_text(f"-{ADAM}", {"beta1": beta1, "beta2": beta2, "eps": eps})


def amsgrad(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Equation:
    """Adam over the largest average so far, of those not freed of bias; ema(1, b) is 1 - b**t."""
    return Equation.from_text(
        "-ema_hat(g, beta1) / (sqrt(cummax(ema(square(g), beta2)) / ema(1, beta2)) + eps)",
        {"beta1": beta1, "beta2": beta2, "eps": eps},
    )


def lion(beta1: float = 0.9, beta2: float = 0.99) -> Equation:
    """sign(beta1 m + (1 - beta1) g), then m <- beta2 m + (1 - beta2) g (Chen et al. 2023, algorithm 2)."""
    return Equation.from_text(
        "-sign(keep * lag(ema(g, beta2), 1) + new * g)",
        {"keep": beta1, "new": 1.0 - beta1, "beta2": beta2},
    )
