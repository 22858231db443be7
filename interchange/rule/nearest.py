"""Which hand-made optimizer updates are nearest to: each one's constants fitted to them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from common.metrics import r2
from interchange.language import expression as ex
from interchange.language.execute import evaluate_trees, tree_with_tangents
from interchange.language.view import View
from interchange.rule.forms import forms, from_free, slope, to_free
from interchange.rule.rule import Rule, RuleError

HAND_MADE = ("sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "amsgrad", "lion")
_STEPS, _COLUMNS = 200, 40
_GAIN = "lr"
_EDGE = 30.0  # of logits and logarithms
_EXACT = 1.0 - 1e-6  # R2 from which on an optimizer is what was looked for
_FIRST, _TRIES = 12, 60  # evaluations of a first fit, and of those that came nearest by it
_BEST = 5
_EQUAL, _TIMES = 1e-10, 2.0  # of 1 - R2: what comes as near as this, or leaves at most so many times as much


@dataclasses.dataclass(frozen=True)
class Match:
    """A named rule with the constants that bring it nearest, and R2 of the updates on other gradients."""

    name: str
    rule: Rule
    r2: float


@dataclasses.dataclass(frozen=True, eq=False)
class Updates:
    """Updates and what an optimizer may have made them of.

    Attributes:
        inputs: name -> [T, N], from the first step on: ``g``, and ``theta`` where it is known.
        target: [T, N].
        shapes: views of the tensors that the columns are, for optimizers that see them.
        weight: [N], what residuals count; all the same if not given.
    """

    inputs: Mapping[str, np.ndarray]
    target: np.ndarray
    shapes: Sequence[View] | None = None
    weight: np.ndarray | float = 1.0


def nearest(rule: Rule) -> list[Match]:
    """The hand-made optimizers of the gallery, the nearest first; of two as near the shorter.

    Gradients are noise with a memory of two steps and log-normal scales, theta is 0; updates count relative
    to the size of a coordinate's. Each optimizer has its lr and all its constants free; every other column
    is fitted, and the rest judge.

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
    fitted, judged = (
        Updates({"g": g[:, part]}, target[:, part], weight=weight[part])
        for part in (slice(0, None, 2), slice(1, None, 2))
    )
    return nearest_to(fitted, judged, {name: Rule.named(name) for name in HAND_MADE})


def nearest_to(fitted: Updates, judged: Updates, candidates: Mapping[str, Rule]) -> list[Match]:
    """The candidates, each with its lr and constants fitted, by R2 on ``judged``, the nearest first.

    Of those that come equally near the smallest comes first, as momentum before what can be momentum, too.
    """
    fits = {name: _fitted(_with_rate(rule), fitted, _FIRST) for name, rule in candidates.items()}
    fits = dict(sorted(fits.items(), key=lambda pair: -_score(pair[1], fitted)))
    for name in list(fits)[:_BEST]:
        fits[name] = _fitted(fits[name], fitted, _TRIES)
    found = [Match(name, fit, _score(fit, judged)) for name, fit in fits.items()]
    found.sort(key=lambda match: -match.r2)
    left = max(_EQUAL, _TIMES * (1.0 - found[0].r2)) if found[0].r2 > _EXACT else 1.0 - found[0].r2
    alike = [match for match in found if 1.0 - match.r2 <= left]
    return sorted(alike, key=lambda match: match.rule.complexity) + found[len(alike) :]


def _score(rule: Rule, data: Updates) -> float:
    with np.errstate(all="ignore"):
        out = rule.evaluate(data.inputs, shapes=data.shapes)
    return r2(data.target * data.weight, out * data.weight)


def _gradients() -> np.ndarray:
    """float64 [step, column]."""
    rng = np.random.default_rng(20220301)
    g = rng.normal(size=(_STEPS, _COLUMNS))
    for t in range(1, _STEPS):
        g[t] = 0.5 * g[t - 1] + math.sqrt(0.75) * g[t]
    return g * np.exp(rng.normal(size=_COLUMNS))


def _with_rate(rule: Rule) -> Rule:
    """The rule times an ``lr`` of its own."""
    expression = ex.call("mul", ex.name(_GAIN), rule.expression)
    return dataclasses.replace(rule, expression=expression, constants={_GAIN: 1.0} | rule.constants)


def _fitted(named: Rule, data: Updates, tries: int) -> Rule:
    """The rule with the constants that bring it nearest; of these ``lr`` is the first."""
    from scipy.optimize import least_squares

    tree, names = named.inlined(), list(named.constants)
    kinds = list(forms(named).values())
    bounded = np.array([kind != "plain" for kind in kinds])

    def constants(point: np.ndarray) -> dict[str, float]:
        point = np.where(bounded, np.clip(point, -_EDGE, _EDGE), point)
        return dict(zip(names, map(float, map(from_free, point, kinds)), strict=True))

    def values(point: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            (out,) = evaluate_trees([tree], {**data.inputs, **constants(point)}, shapes=data.shapes)
        return named.scale * out * data.weight

    def residual(point: np.ndarray) -> np.ndarray:
        return np.nan_to_num(values(point) - data.target * data.weight).ravel()

    def jacobian(point: np.ndarray) -> np.ndarray:
        given = constants(point)
        inner = np.array(list(map(slope, given.values(), kinds)))
        with np.errstate(all="ignore"):
            _, tangents = tree_with_tangents(tree, {**data.inputs, **given}, names, data.shapes)
            tangents = named.scale * tangents * data.weight * inner[:, None, None]
        return np.nan_to_num(tangents.reshape(len(names), -1)).T

    start = np.array(list(map(to_free, named.constants.values(), kinds)))
    unit = np.nan_to_num(values(start))
    start[0] *= float((unit * data.target * data.weight).sum() / max(np.square(unit).sum(), 1e-300))
    found = least_squares(residual, start, jacobian, max_nfev=tries).x
    return named.with_constants(constants(found))
