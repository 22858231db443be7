"""The gallery of rules by name: hand-made optimizers as equations, published ones, and a template to tune.

Hand-made ones follow torch.optim 2.13 (MATH.md section 6): in float64 their steps are torch's. What others
call lr multiplies the rule's update, as everywhere.
"""

import dataclasses
import inspect
from collections.abc import Callable

from common.errors import L2OError
from common.registry import Registry
from interchange.rule import Rule


@dataclasses.dataclass(frozen=True)
class NamedRule:
    """One row: ``build(**options)`` makes the rule; the defaults of its arguments are the source's."""

    build: Callable[..., Rule]
    source: str


def named(name: str, **options: float) -> Rule:
    """The rule ``name`` of the gallery.

    Args:
        options: hyper-parameters of the row, such as ``beta1``; defaults are the source's.

    Raises:
        L2OError: no such rule, or it has no such option.
    """
    row = NAMED[name]
    known = inspect.signature(row.build).parameters
    unknown = [key for key in options if key not in known]
    if unknown:
        raise L2OError(f"rule {name!r}: unknown option {unknown[0]!r}; known: {', '.join(known) or 'none'}")
    rule = row.build(**options)
    return dataclasses.replace(rule, name=name, provenance={"source": row.source})


def _sgd() -> Rule:
    return Rule.from_text("-g")


def _momentum(beta: float = 0.9) -> Rule:
    # torch's buffer b*s + g is ema / (1 - b).
    return Rule.from_text("-gain * ema(g, beta)", {"gain": 1.0 / (1.0 - beta), "beta": beta})


def _nesterov(beta: float = 0.9) -> Rule:
    return Rule.from_text("-(g + gain * ema(g, beta))", {"gain": beta / (1.0 - beta), "beta": beta})


def _rmsprop(alpha: float = 0.99, eps: float = 1e-8) -> Rule:
    return Rule.from_text("-g / (sqrt(ema(square(g), alpha)) + eps)", {"alpha": alpha, "eps": eps})


def _adagrad(eps: float = 1e-10) -> Rule:
    return Rule.from_text("-g / (sqrt(cumsum(square(g))) + eps)", {"eps": eps})


def _adam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Rule:
    return Rule.from_text(
        "-ema_hat(g, beta1) / (sqrt(ema_hat(square(g), beta2)) + eps)",
        {"beta1": beta1, "beta2": beta2, "eps": eps},
    )


def _amsgrad(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Rule:
    # The maximum is over uncorrected averages; ema(1, b) is 1 - b**t.
    return Rule.from_text(
        "-ema_hat(g, beta1) / (sqrt(cummax(ema(square(g), beta2)) / ema(1, beta2)) + eps)",
        {"beta1": beta1, "beta2": beta2, "eps": eps},
    )


def _lion(beta1: float = 0.9, beta2: float = 0.99) -> Rule:
    return Rule.from_text(
        "-sign(keep * lag(ema(g, beta2), 1) + new * g)",
        {"keep": beta1, "new": 1.0 - beta1, "beta2": beta2},
    )


def _dm_48() -> Rule:
    return _lags_of_gradient("relu(lag(g, 13))")


def _dm_49() -> Rule:
    return _lags_of_gradient("relu(tanh(lag(g, 13)))")


def _lags_of_gradient(last: str) -> Rule:
    drive = "cube(sinh(square(sinh(sinh(sign(cube(square(g * (lag(g, 2) + lag(g, 14))))))))))"
    inner = f"pow(asinh(sinh({drive} + t_10000) * (a0 + a1)) + lag(g, 10), a2 + lag(g, 1))"
    outer = f"asinh(square(tanh(sqrt(tanh(asinh(asinh(asinh({inner})) + {last})))) + a3))"
    return Rule.from_text(
        f"sinh(sinh(sinh(sinh(pow(a4, {outer}))))) * a5",
        {
            "a0": -28.506275,
            "a1": 1.3811486,
            "a2": 0.9052736,
            "a3": 0.46329194,
            "a4": 0.11232872,
            "a5": -0.033964403,
        },
        {"t_10000": "t / 10000"},
        scale=0.01,
    )


def psi(features: dict[str, str], lags: int = 2, gamma: float = 1.0, start: float = 0.3) -> Rule:
    """The template of meta-tuning, - sum over features x and lags k of w_xk * gamma * tanh(x_{t-k} / gamma).

    Zheng et al. 2022 (MATH.md section 5). Weights start at ``start``, halved with every lag, shared by the
    features.

    Args:
        features: name -> expression over ``g``.
        lags: oldest step, 0 for the present one only.
        gamma: where inputs are squashed.
    """
    terms, constants = [], {}
    for name in features:
        for k in range(lags + 1):
            constants[f"w_{name}_{k}"] = start * 0.5**k / len(features)
            x = name if k == 0 else f"lag({name}, {k})"
            terms.append(f"w_{name}_{k} * gamma * tanh({x} / gamma)")
    return Rule.from_text(f"-({' + '.join(terms)})", constants | {"gamma": gamma}, features, "psi", 0.01)


def _psi(gamma: float = 1.0, start: float = 0.3) -> Rule:
    from common.teachers import TEACHERS

    return psi(TEACHERS["rnnprop"].expressions(), gamma=gamma, start=start)


_ICLR = "Zheng et al. 2022 (ICLR), released results: a DM teacher over lags of g, t / 10,000"

NAMED: Registry[NamedRule] = Registry(
    "rule",
    {
        "sgd": NamedRule(_sgd, "Robbins and Monro 1951"),
        "momentum": NamedRule(_momentum, "Polyak 1964"),
        "nesterov": NamedRule(_nesterov, "Nesterov 1983; Sutskever et al. 2013"),
        "rmsprop": NamedRule(_rmsprop, "Tieleman and Hinton 2012"),
        "adagrad": NamedRule(_adagrad, "Duchi et al. 2011"),
        "adam": NamedRule(_adam, "Kingma and Ba 2015"),
        "amsgrad": NamedRule(_amsgrad, "Reddi et al. 2018"),
        "lion": NamedRule(_lion, "Chen et al. 2023"),
        "dm_48": NamedRule(_dm_48, f"{_ICLR}, 48 nodes"),
        "dm_49": NamedRule(_dm_49, f"{_ICLR}, 49 nodes"),
        "psi": NamedRule(_psi, "template of Zheng et al. 2022 over m_tilde and g_tilde; tune it"),
    },
)
