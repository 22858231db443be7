"""Mapping curves: the update against one input of the present step (MATH.md section 5).

What the update depends on otherwise, all other inputs now and everything before, is as recorded at
coordinates drawn from the runs; a curve is the median over these, its band goes from the lower to the upper
quartile. The line ``fixed`` has all of that at the recorded medians.
"""

import dataclasses

import numpy as np

from common.rng import rng
from interchange.analysis.recorded import Recorded
from interchange.analysis.subjects import Subject

POINTS = 41
GRADIENT = "g"
_CONTEXTS, _STEP = 32, 100  # coordinates, and the step that is looked at, or the middle of shorter runs
_RANGE = 0.01  # share of recorded values beyond each end of the curve


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Updates u [points] against x [points] of one input.

    Attributes:
        x: symmetric around 0, from what is recorded or asked for.
        middle, low, high: median and quartiles over recorded contexts.
        fixed: with everything else at its recorded median; None against the gradient, of which all inputs
            are made, or where tensors are seen.
    """

    x: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    fixed: np.ndarray | None


def curves(subject: Subject, data: Recorded, width: float = 0.0, seed: int = 0) -> dict[str, Curve]:
    """A curve for each input, and one for the gradient.

    Args:
        width: the curves go from -width to width; 0 takes the range of the recorded values, without 1 % at
            each end.
    """
    contexts = _contexts(data, seed)
    inputs = subject.features(contexts.given, contexts.views)
    found = {}
    for name in dict.fromkeys((*subject.inputs, GRADIENT)):
        values = contexts.given[GRADIENT] if name == GRADIENT else inputs[name]
        x = np.linspace(-1.0, 1.0, POINTS) * (width or _width(values))
        if name in subject.inputs and not subject.sees_tensors:
            found[name] = _curve(subject, inputs, name, x)
        elif not subject.sees_tensors and None not in subject.inputs.values():
            found[name] = _of_gradient(subject, contexts, x)
    return found


def _contexts(data: Recorded, seed: int) -> Recorded:
    """Histories up to the step that is looked at, of coordinates drawn from all that moved."""
    steps, count = data.shape
    last = min(_STEP, -(-steps // 2))
    moving = np.flatnonzero(np.ptp(data.given[GRADIENT][:last], axis=0) > 0.0)
    moving = moving if len(moving) else np.arange(count)
    chosen = np.sort(rng(seed, "mapping").permutation(moving)[:_CONTEXTS])
    return data.columns(chosen, last)


def _width(values: np.ndarray) -> float:
    return float(np.quantile(np.abs(values), 1.0 - 2.0 * _RANGE)) or 1.0


def _curve(subject: Subject, inputs: dict[str, np.ndarray], name: str, x: np.ndarray) -> Curve:
    updates = _at(subject, inputs, {name: x})
    fixed = {key: np.full((len(values), 1), np.median(values)) for key, values in inputs.items()}
    return Curve(x, *_quartiles(updates), _at(subject, fixed, {name: x})[0])


def _of_gradient(subject: Subject, contexts: Recorded, x: np.ndarray) -> Curve:
    """Against the gradient, from which every input of the present step is computed anew."""
    given = {name: np.repeat(values, len(x), axis=1) for name, values in contexts.given.items()}
    given[GRADIENT][-1] = np.tile(x, contexts.shape[1])
    updates = subject.outputs(subject.features(given))[-1].reshape(-1, len(x))
    return Curve(x, *_quartiles(updates), None)


def _at(subject: Subject, inputs: dict[str, np.ndarray], last: dict[str, np.ndarray]) -> np.ndarray:
    """Updates [contexts, points] at the last step, with some inputs there replaced by values [points]."""
    points = len(next(iter(last.values())))
    many = {name: np.repeat(values, points, axis=1) for name, values in inputs.items()}
    for name, values in last.items():
        many[name][-1] = np.tile(values, many[name].shape[1] // points)
    return subject.outputs(many)[-1].reshape(-1, points)


def _quartiles(updates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, lower and upper quartile over contexts."""
    low, middle, high = np.nanquantile(updates, (0.25, 0.5, 0.75), axis=0)
    return middle, low, high
