"""The tanh family: where an optimizer squashes its inputs, by the template psi fitted to its updates.

psi = - sum_{x, lag} W_{x, lag} gamma tanh(x_{t - lag} / gamma)        (Zheng et al. 2022; MATH.md section 5)
"""

import dataclasses

import numpy as np

from interchange.analysis.recorded import Recorded
from interchange.analysis.subjects import Subject
from interchange.distill.refit import refit, score
from interchange.language import expression as ex
from interchange.language.expression import Node
from interchange.rule.published.templates import psi
from interchange.rule.rule import Rule
from interchange.search.samples import Sequences

FAMILY = (0.1, 0.3, 1.0, 3.0, 10.0)
_CELLS = 20_000
_STARTS = (0.3, 1.0, 3.0)  # gamma, in standard deviations of the inputs
_LINEAR = 10.0  # largest inputs: beyond it tanh is a line


@dataclasses.dataclass(frozen=True)
class Squashing:
    """The fitted template.

    Attributes:
        gamma: where inputs are squashed, in units of the inputs; infinite where the fit found a line.
        r2: of the template on the optimizer's updates.
        rule: the template with its weights.
        own: whether the optimizer is such a template itself, and gamma its own.
    """

    gamma: float
    r2: float
    rule: Rule
    own: bool = False


def squashing(subject: Subject, data: Recorded, lags: int = 2) -> Squashing | None:
    """The member of the family that is nearest to an optimizer; None where its inputs have no expressions."""
    inputs = {name: tree for name, tree in subject.inputs.items() if tree is not None}
    if not inputs or len(inputs) < len(subject.inputs) or subject.sees_tensors:
        return None
    few = data.columns(
        np.unique(np.linspace(0, data.shape[1] - 1, max(8, _CELLS // data.shape[0])).astype(int))
    )
    features = subject.features(few.given)
    updates = subject.outputs(features)
    scale = float(np.sqrt(np.square(updates).mean())) or 1.0
    sequences = Sequences(features, updates / scale)
    if (own := _gamma_of(subject)) is not None:
        return Squashing(own, 1.0, subject.loaded, own=True)
    size = float(np.sqrt(np.mean([np.square(x).mean() for x in features.values()])))
    best: tuple[float, Rule] | None = None
    for start in _STARTS:
        template = _template(inputs, lags, start * size, 1.0 / size, scale)
        fitted = refit(template, sequences)
        value = score(fitted, sequences)
        best = (value, fitted) if best is None or value > best[0] else best
    value, rule = best
    gamma = abs(rule.constants["gamma"])
    largest = max(float(np.abs(x).max()) for x in features.values())
    return Squashing(gamma if gamma < _LINEAR * largest else float("inf"), value, rule)


def _template(inputs: dict[str, Node], lags: int, gamma: float, start: float, scale: float) -> Rule:
    found = psi({name: ex.to_text(tree) for name, tree in inputs.items()}, lags, gamma, start)
    return Rule(**vars(dataclasses.replace(found, scale=scale)))


def _gamma_of(subject: Subject) -> float | None:
    """The gamma of a rule that holds gamma * tanh(x / gamma)."""
    if not isinstance(subject.loaded, Rule) or "gamma" not in subject.loaded.constants:
        return None
    squashed = (node for node in ex.walk(subject.body) if node.op == "tanh")
    if any("gamma" in ex.names(node) for node in squashed):
        return abs(subject.loaded.constants["gamma"])
    return None
