"""The gallery of rules by name: hand-made optimizers as equations, published ones, and a template to tune.

Hand-made ones follow torch.optim 2.13 (MATH.md section 6): in float64 their steps are torch's. What others
call lr multiplies the rule's update, as everywhere.
"""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

from common.errors import L2OError
from common.registry import Registry
from interchange.language.equation import Equation


@dataclasses.dataclass(frozen=True)
class NamedRule:
    """One row: ``build(**options)`` makes the rule; the defaults of its arguments are the source's."""

    build: Callable[..., Equation]
    source: str


def named(name: str, **options: float) -> Equation:
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
    return dataclasses.replace(rule, name=name, provenance=rule.provenance | {"source": row.source})


def _sgd() -> Equation:
    return Equation.from_text("-g")


def _momentum(beta: float = 0.9) -> Equation:
    # torch's buffer b*s + g is ema / (1 - b).
    return Equation.from_text("-gain * ema(g, beta)", {"gain": 1.0 / (1.0 - beta), "beta": beta})


def _nesterov(beta: float = 0.9) -> Equation:
    return Equation.from_text("-(g + gain * ema(g, beta))", {"gain": beta / (1.0 - beta), "beta": beta})


def _rmsprop(alpha: float = 0.99, eps: float = 1e-8) -> Equation:
    return Equation.from_text("-g / (sqrt(ema(square(g), alpha)) + eps)", {"alpha": alpha, "eps": eps})


def _adagrad(eps: float = 1e-10) -> Equation:
    return Equation.from_text("-g / (sqrt(cumsum(square(g))) + eps)", {"eps": eps})


def _adam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Equation:
    return Equation.from_text(
        "-ema_hat(g, beta1) / (sqrt(ema_hat(square(g), beta2)) + eps)",
        {"beta1": beta1, "beta2": beta2, "eps": eps},
    )


def _amsgrad(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Equation:
    # The maximum is over uncorrected averages; ema(1, b) is 1 - b**t.
    return Equation.from_text(
        "-ema_hat(g, beta1) / (sqrt(cummax(ema(square(g), beta2)) / ema(1, beta2)) + eps)",
        {"beta1": beta1, "beta2": beta2, "eps": eps},
    )


def _lion(beta1: float = 0.9, beta2: float = 0.99) -> Equation:
    return Equation.from_text(
        "-sign(keep * lag(ema(g, beta2), 1) + new * g)",
        {"keep": beta1, "new": 1.0 - beta1, "beta2": beta2},
    )


def _dm_48() -> Equation:
    return _lags_of_gradient("relu(lag(g, 13))")


def _dm_49() -> Equation:
    return _lags_of_gradient("relu(tanh(lag(g, 13)))")


def _lags_of_gradient(last: str) -> Equation:
    drive = "cube(sinh(square(sinh(sinh(sign(cube(square(g * (lag(g, 2) + lag(g, 14))))))))))"
    inner = f"pow(asinh(sinh({drive} + t_10000) * (a0 + a1)) + lag(g, 10), a2 + lag(g, 1))"
    outer = f"asinh(square(tanh(sqrt(tanh(asinh(asinh(asinh({inner})) + {last})))) + a3))"
    return Equation.from_text(
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


def psi(features: dict[str, str], lags: int = 2, gamma: float = 1.0, start: float = 0.3) -> Equation:
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
    return Equation.from_text(f"-({' + '.join(terms)})", constants | {"gamma": gamma}, features, "psi", 0.01)


def _psi(gamma: float = 1.0, start: float = 0.3) -> Equation:
    from common.tables.teachers import TEACHERS

    return psi(TEACHERS["rnnprop"].expressions(), gamma=gamma, start=start)


def _distilled(text: str, constants: dict[str, float], teacher: str) -> Equation:
    from common.tables.teachers import TEACHERS

    return Equation.from_text(text, constants, TEACHERS[teacher].expressions(), scale=0.01)


def _rp_s_11() -> Equation:
    constants = {
        "c0": -0.2277056431523075,
        "c1": 0.6997312679490238,
        "c2": -0.11644595677660458,
        "c3": 0.5886005244592508,
    }
    return _distilled("c0 * ema(m_tilde, c1) + c2 * ema(g_tilde, c3)", constants, "rp_s")


def _rnnprop_17() -> Equation:
    constants = {
        "c0": -0.5694304526681907,
        "c1": 0.8884925986262299,
        "c2": -0.01740767900521846,
        "c3": -0.1261189401345537,
        "c4": 0.7256389756356371,
        "c5": 0.00858219493629732,
    }
    text = "c0 * ema(m_tilde, c1) + c2 * g_tilde + c3 * ema(g_tilde, c4) + c5"
    return _distilled(text, constants, "rnnprop")


def _rnnprop_start() -> Equation:
    constants = {"c0": -0.05, "c1": 0.9, "c2": -0.14, "c3": -1.0, "c4": 0.983, "c5": 0.005}
    text = "(c0 * ema(m_tilde, c1) + c2 * g_tilde + c3 * ema(g_tilde, c4)) / sqrt(1 + c5 * t)"
    return _distilled(text, constants, "rnnprop")


def _rnnprop_tuned() -> Equation:
    return Equation.from_json(
        (Path(__file__).parents[1] / "shipped" / "rnnprop_tuned.json").read_text("utf-8")
    )


_ICLR = "Zheng et al. 2022 (ICLR), released results: a DM teacher over lags of g, t / 10,000"

_DISTILL = "python -m interchange.distill trajectories.h5 --time 60 --max-size 50 --select rollout"
_TUNE = (
    "--problem mnist-mlp,quadratic-k100 --horizon 200..1000 --factors --pairs 6 --sigma 0.1 --lr 0.03 "
    "--epochs 50 --validate-every 10 --validation-tasks 2 --average 0.5"
)

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
        "rp_s_11": NamedRule(_rp_s_11, f"{_DISTILL} --active 240, of the shipped teacher rp_s"),
        "rnnprop_17": NamedRule(_rnnprop_17, f"{_DISTILL} --active 240, of the shipped teacher rnnprop"),
        "rnnprop_start": NamedRule(
            _rnnprop_start,
            "the terms of rnnprop_17 over sqrt(1 + c5 t), constants from a scan on mnist-mlp; tune it",
        ),
        "rnnprop_tuned": NamedRule(_rnnprop_tuned, f"python -m torch_impl.tune rnnprop_start {_TUNE}"),
        "psi": NamedRule(_psi, "template of Zheng et al. 2022 over m_tilde and g_tilde; tune it"),
    },
)
