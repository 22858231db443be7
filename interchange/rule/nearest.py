"""Which hand-made optimizer a rule is nearest to: each one's constants fitted to the rule's updates."""

import dataclasses
import math

import numpy as np

from common.metrics import r2
from interchange.language import expression as ex
from interchange.language.execute import compile_program, evaluate_with_tangents
from interchange.rule.forms import forms, from_free, slope, to_free
from interchange.rule.rule import Rule, RuleError

HAND_MADE = ("sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "amsgrad", "lion")
_STEPS, _COLUMNS = 200, 40
_GAIN = "lr"
_EDGE = 30.0  # of logits and logarithms
_TIE = 4  # digits of R2: AMSGrad holds Adam's updates too


@dataclasses.dataclass(frozen=True)
class Match:
    """A named rule with the constants that bring it nearest, and R2 of the updates on other gradients."""

    name: str
    rule: Rule
    r2: float


def nearest(rule: Rule) -> list[Match]:
    """The hand-made optimizers of the gallery, the nearest first; of two as near the shorter.

    Gradients are noise with a memory of two steps and log-normal scales, theta is 0; updates count relative
    to the size of a coordinate's. Each optimizer has its lr and all its constants free.

    Raises:
        RuleError: a feature of the rule has no definition over g, or its updates are hardly ever finite.
    """
    g = _gradients()
    target = rule.tried({"g": g, "theta": np.zeros_like(g)})
    finite = np.isfinite(target).all(0)
    if finite.sum() < 4:
        raise RuleError(
            f"rule {rule.name!r}: expected finite updates to compare, got hardly any; check it first"
        )
    g, target = g[:, finite], target[:, finite]
    size = np.sqrt(np.square(target).mean(0))
    weight = 1.0 / np.where(size > 0.0, size, 1.0)
    matches = [_fitted(name, g, target * weight, weight) for name in HAND_MADE]
    return sorted(matches, key=lambda match: (-round(match.r2, _TIE), match.rule.complexity))


def _gradients() -> np.ndarray:
    """float64 [step, column]."""
    rng = np.random.default_rng(20220301)
    g = rng.normal(size=(_STEPS, _COLUMNS))
    for t in range(1, _STEPS):
        g[t] = 0.5 * g[t - 1] + math.sqrt(0.75) * g[t]
    return g * np.exp(rng.normal(size=_COLUMNS))


def _fitted(name: str, g: np.ndarray, target: np.ndarray, weight: np.ndarray) -> Match:
    """Fitted on every other column, judged on the rest."""
    from scipy.optimize import least_squares

    named = Rule.named(name)
    tree = ex.call("mul", ex.name(_GAIN), named.expression)
    named = dataclasses.replace(named, expression=tree, constants={_GAIN: 1.0} | named.constants)
    program, names = compile_program([tree]), list(named.constants)
    kinds = list(forms(named).values())
    bounded = np.array([kind != "plain" for kind in kinds])

    def constants(point: np.ndarray) -> np.ndarray:
        point = np.where(bounded, np.clip(point, -_EDGE, _EDGE), point)
        return np.array(list(map(from_free, point, kinds)))

    def values(point: np.ndarray, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        given = dict(zip(names, map(float, constants(point)), strict=True)) | {"g": g[:, columns]}
        with np.errstate(all="ignore"):
            out, tangents = evaluate_with_tangents(program, given, names)
        return out * weight[columns], tangents * weight[columns]

    def residual(point: np.ndarray) -> np.ndarray:
        return (values(point, slice(0, None, 2))[0] - target[:, ::2]).ravel()

    def jacobian(point: np.ndarray) -> np.ndarray:
        inner = np.array(list(map(slope, constants(point), kinds)))
        return (values(point, slice(0, None, 2))[1] * inner[:, None, None]).reshape(len(names), -1).T

    start = np.array(list(map(to_free, named.constants.values(), kinds)))
    unit = values(start, slice(0, None, 2))[0]
    start[0] = float((unit * target[:, ::2]).sum() / max(np.square(unit).sum(), 1e-300))
    found = least_squares(residual, start, jacobian, max_nfev=60).x
    out = values(found, slice(1, None, 2))[0]
    fitted = named.with_constants(dict(zip(names, map(float, constants(found)), strict=True)))
    return Match(name, fitted, r2(target[:, 1::2], out))
