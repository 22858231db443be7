"""The table of input features, each one expression over the raw gradient ``g``.

The expressions are in the rule language (interchange.language.parse): ``ema`` is a streaming moving average
from zero, ``ema_hat`` the same with Adam's bias correction, ``sqrt`` and ``log`` are protected
(``log(a)`` is log(abs(a) + 1e-8)). ``{beta1}``, ``{beta2}``, ``{eps}`` and ``{p}`` are filled in from
the teacher's row, so nothing is a hidden constant. ``g_row`` and ``g_col`` see the tensor: its rows are the
outputs of the matrix view, its columns the inputs; of a tensor without one, which is one row, ``g_row`` is g
over the root mean square of the whole and ``g_col`` is ``g_tilde``. Sources: Lv et al. 2017 (``m_tilde``,
``g_tilde``), Andrychowicz et al. 2016 (``log_g``, ``clip_g``), the row and column means of Shazeer and
Stern 2018 (``g_row``, ``g_col``), the ICLR 2022 code (the rest).
"""

from common.errors import L2OError
from common.registry import Registry

FEATURES: Registry[str] = Registry(
    "feature",
    {
        "g": "g",
        "m_tilde": "ema_hat(g, {beta1}) / (sqrt(ema_hat(square(g), {beta2})) + {eps})",
        "g_tilde": "g / (sqrt(ema_hat(square(g), {beta2})) + {eps})",
        "g_row": "g / (sqrt(ema_hat(row_mean(square(g)), {beta2})) + {eps})",
        "g_col": "g / (sqrt(ema_hat(col_mean(square(g)), {beta2})) + {eps})",
        "log_g": "max(log(g) / {p}, -1.0)",
        "clip_g": "min(max(g * exp({p}), -1.0), 1.0)",
        "mom5": "ema(g, 0.5)",
        "mom9": "ema(g, 0.9)",
        "mom99": "ema(g, 0.99)",
        "m": "ema(g, {beta1})",
        "m_hat": "ema_hat(g, {beta1})",
        "v_hat_sqrt": "sqrt(ema_hat(square(g), {beta2}))",
        "m_p2": "ema(g, {beta1}) / (powabs(ema_hat(powabs(g, 2.0), {beta2}), 0.5) + 1e-08)",
        "m_p2_5": "ema(g, {beta1}) / (powabs(ema_hat(powabs(g, 2.5), {beta2}), 0.4) + 1e-08)",
        "m_p3": "ema(g, {beta1}) / (powabs(ema_hat(powabs(g, 3.0), {beta2}), 1.0 / 3.0) + 1e-08)",
        "m_p4": "ema(g, {beta1}) / (powabs(ema_hat(powabs(g, 4.0), {beta2}), 0.25) + 1e-08)",
        "t_1000": "t / 1000.0",
    },
)

# Those that depend on other coordinates of their tensor.
SEE_TENSORS = ("g_row", "g_col")
# Settings of the rows of ``common.tables.teachers`` that give no others.
DEFAULTS = {"beta1": 0.95, "beta2": 0.95, "eps": 1e-8, "p": 10.0}
ALIASES = {"mt": "m_tilde", "gt": "g_tilde"}


def names(text: str) -> tuple[str, ...]:
    """The features of a list such as ``mt+gt+mom5``, aliases resolved; unknown or repeated: ``L2OError``."""
    found = tuple(ALIASES.get(name, name) for name in map(str.strip, text.split("+")))
    for name in found:
        FEATURES[name]  # an unknown name raises, listing the known ones
        if found.count(name) > 1:
            raise L2OError(f"inputs {text!r}: expected each feature once, got {name} twice; leave one out")
    return found


def expression(name: str, *, beta1: float, beta2: float, eps: float, p: float) -> str:
    """The text of one feature with the given settings filled in exactly (shortest repr)."""
    text = FEATURES[ALIASES.get(name, name)]
    return text.format(
        beta1=repr(float(beta1)), beta2=repr(float(beta2)), eps=repr(float(eps)), p=repr(float(p))
    )


def default_expression(name: str) -> str:
    """The text of one feature with the default settings."""
    return expression(name, **DEFAULTS)
