"""Templates to be tuned: short equations with many free constants (Zheng et al. 2022 and its code)."""

from collections.abc import Callable, Mapping

from common.errors import L2OError
from common.tables.features import default_expression, names
from interchange.language.equation import Equation
from interchange.language.expression import MAX_LAG


def psi(
    features: str | Mapping[str, str] = "m_tilde+g_tilde",
    lags: float = 2,
    gamma: float = 1.0,
    start: float = 0.3,
) -> Equation:
    """- sum over features x and lags k of w_xk * gamma * tanh(x_{t-k} / gamma) (MATH.md section 5).

    Weights start at ``start``, halved with every lag, shared by the features.

    Args:
        features: of the table, as ``m_tilde+g``; or name -> expression over ``g``.
        lags: oldest step, 0 for the present one only.
        gamma: where inputs are squashed, above 0.
    """
    _above_zero("gamma", gamma)
    return _sum(
        "psi",
        features,
        lags,
        start,
        lambda weight, x: f"{weight} * gamma * tanh({x} / gamma)",
        {"gamma": gamma},
    )


def psi_power(
    features: str | Mapping[str, str] = "m_tilde+g_tilde",
    lags: float = 2,
    power: float = 1.0,
    start: float = 0.3,
) -> Equation:
    """- sum over features x and lags k of w_xk * sign(x_{t-k}) abs(x_{t-k})^power, power above 0."""
    _above_zero("power", power)
    return _sum(
        "psi_power", features, lags, start, lambda weight, x: f"{weight} * pow({x}, power)", {"power": power}
    )


def adam_blend(
    blend: float = 0.5,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> Equation:
    """Adam's average over 1 - blend + blend times its root: momentum at 0, Adam at 1."""
    return Equation.from_text(
        "-ema_hat(g, beta1) / (1 - blend + blend * (sqrt(ema_hat(square(g), beta2)) + eps))",
        {"blend": blend, "beta1": beta1, "beta2": beta2, "eps": eps},
    )


def _above_zero(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and value > 0.0):
        raise L2OError(f"{name}: expected a number above 0, got {value}")


def _sum(
    name: str,
    features: str | Mapping[str, str],
    lags: float,
    start: float,
    term: Callable[[str, str], str],
    more: Mapping[str, float],
) -> Equation:
    """Minus the sum of a term for every feature and lag, each with a weight of its own."""
    if not isinstance(lags, (int, float)) or not 0 <= lags <= MAX_LAG or lags != int(lags):
        raise L2OError(f"{name}: expected a whole number of lags from 0 to {MAX_LAG}, got {lags}")
    if not isinstance(features, Mapping):
        features = {feature: default_expression(feature) for feature in names(str(features))}
    texts, constants = [], {}
    for feature in features:
        for k in range(int(lags) + 1):
            weight = f"w_{feature}_{k}"
            constants[weight] = start * 0.5**k / len(features)
            texts.append(term(weight, feature if k == 0 else f"lag({feature}, {k})"))
    return Equation.from_text(f"-({' + '.join(texts)})", {**constants, **more}, features, name, 0.01)
