"""Optimizers with one number for a tensor, a row or a column: LAMB, LARS, Adafactor, SM3."""

from interchange.language.equation import Equation
from interchange.rule.published.text import ADAM, over, rms


def lamb(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-6, weight_decay: float = 0.0) -> Equation:
    """norm(theta) / norm(r) r, r = m_hat / (sqrt(v_hat) + eps) + decay theta.

    You et al. 2020, algorithm 2.
    """
    direction = f"({ADAM} + weight_decay * theta)"
    return Equation.from_text(
        f"-{_trust('', rms(direction))} * {direction}",
        {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay},
    )


def lars(momentum: float = 0.9, trust: float = 0.001, weight_decay: float = 0.0) -> Equation:
    """Momentum v <- m v + trust norm(theta) / (norm(g) + decay norm(theta)) (g + decay theta).

    You et al. 2017, algorithm 1.
    """
    size = f"({rms('g')} + weight_decay * {rms('theta')})"
    return Equation.from_text(
        f"-gain * ema({_trust('trust * ', size)} * (g + weight_decay * theta), momentum)",
        {"gain": 1.0 / (1.0 - momentum), "momentum": momentum, "trust": trust, "weight_decay": weight_decay},
    )


def _trust(coefficient: str, size: str) -> str:
    """coefficient norm(theta) / size; 1 where theta is 0, so that it can leave 0."""
    own = rms("theta")
    return f"({coefficient}{own} + (1 - greater({own}, 0)) * {size}) / {over(size)}"


def adafactor(
    decay: float = 0.8,
    eps1: float = 1e-30,
    eps2: float = 1e-3,
    clip: float = 1.0,
    rho: float = 0.01,
) -> Equation:
    """alpha U / max(1, RMS(U) / clip), U = g / sqrt(R C / sum(R)).

    Shazeer and Stern 2018, algorithms 4 and 5. One root after the other, as the product of two of ``eps1``
    vanishes in float32.
    """
    average = f"ema({{}}(square(g) + eps1), 1 - powabs(t, -{float(decay)!r}))"
    rows, columns = average.format("row_mean"), average.format("col_mean")
    factored = f"g / sqrt({rows}) / sqrt({columns}) * sqrt(mean({rows}))"
    whole = f"g / sqrt({average.format('')})"
    step = f"max(eps2, {rms('theta')}) * min(1, most / sqrt(t))"
    return Equation.from_text(
        f"by_matrix({', '.join(f'-{step} * ({u}) / max(1, {rms(u)} / clip)' for u in (factored, whole))})",
        {"eps1": eps1, "eps2": eps2, "clip": clip, "most": 1.0 / rho},
    )


def sm3() -> Equation:
    """g / sqrt(nu), nu the smaller mu of row and column, mu <- mu + max g^2 (Anil et al. 2019, SM3-I).

    Of a vector every coordinate is its own cover, which is Adagrad.
    """
    smaller = "min(cumsum(row_max(square(g))), cumsum(col_max(square(g))))"
    matrix, vector = (f"-g / {over(f'sqrt({size})')}" for size in (smaller, "cumsum(square(g))"))
    return Equation.from_text(f"by_matrix({matrix}, {vector})")
