"""Optimizers that take the polar factor of a matrix of momenta; vectors go by AdamW, as in their papers.

Weight decay is outside, as it is in the papers. All have updates of root mean square ``rms`` on matrices
(0.2: that of AdamW's updates), so that matrices and vectors share one learning rate (Liu et al. 2025).
"""

from interchange.language.equation import Equation
from interchange.rule.published.text import ADAM
from interchange.rule.published.text import rms as root_mean_square


def muon(
    momentum: float = 0.95, rms: float = 0.2, beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8
) -> Equation:
    """B <- mu B + g, then polar(g + mu B) (Jordan et al. 2024), times rms sqrt(max(rows, cols)).

    ema(g, mu) is (1 - mu) B. The factor makes the root mean square ``rms`` (Liu et al. 2025, equation 4).
    """
    matrix = "rms * sqrt(max(rows, cols)) * polar(g + gain * ema(g, momentum))"
    gain = momentum / (1.0 - momentum)
    return _with_adamw(matrix, {"rms": rms, "gain": gain, "momentum": momentum}, beta1, beta2, eps)


def normuon(
    momentum: float = 0.95,
    decay: float = 0.95,
    rms: float = 0.2,
    floor: float = 1e-10,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-8,
) -> Equation:
    """O = polar(m), each row over sqrt(ema(mean O^2)) + eps (Li et al. 2025, algorithm 1)."""
    polar = "polar(ema(g, momentum))"
    direction = f"{polar} / (sqrt(ema(row_mean(square({polar})), decay)) + floor)"
    constants = {"rms": rms, "momentum": momentum, "decay": decay, "floor": floor}
    return _with_adamw(_scaled(direction), constants, beta1, beta2, eps)


def adamuon(
    momentum: float = 0.95,
    decay: float = 0.95,
    rms: float = 0.2,
    floor: float = 1e-8,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-8,
) -> Equation:
    """O = polar(sign(m)) over sqrt(ema(O^2)) + eps, by coordinate (Si et al. 2025, algorithm 1)."""
    polar = "polar(sign(ema(g, momentum)))"
    direction = f"{polar} / (sqrt(ema(square({polar}), decay)) + floor)"
    constants = {"rms": rms, "momentum": momentum, "decay": decay, "floor": floor}
    return _with_adamw(_scaled(direction), constants, beta1, beta2, eps)


def _scaled(direction: str) -> str:
    """rms sqrt(rows cols) X / norm(X); X has entries near 1, or is 0 and stays."""
    return f"rms * ({direction}) / max({root_mean_square(direction)}, floor)"


def _with_adamw(matrix: str, constants: dict[str, float], beta1: float, beta2: float, eps: float) -> Equation:
    return Equation.from_text(
        f"by_matrix(-({matrix}), -({ADAM}))", constants | {"beta1": beta1, "beta2": beta2, "eps": eps}
    )
