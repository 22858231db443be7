"""Learning rates that were recorded as part of the output: what they are as a function of t."""

import dataclasses
import logging
import math
from collections.abc import Iterator

import numpy as np

from interchange.files.trajectories import Trajectories
from interchange.language import expression as ex
from interchange.language.execute import compile_program, evaluate
from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.rule.rule import Rule

_EXACT = 1e-6  # of the largest rate: a form that is nearer is the schedule
_MOST_STEPS = 6  # of a rate that falls in steps
_PERIODS = 400  # tried, of a cosine

_log = logging.getLogger(__name__)


def recorded_rate(trajectories: Trajectories) -> np.ndarray | None:
    """Rates [T] that all coordinates of all runs have in common; None where they differ.

    The runs are those of a ``Recorder`` with ``include_lr``.
    """
    rates = [run.lr for run in trajectories.runs.values() if not run.diverged]
    if any(rate is None for rate in rates):
        return None
    steps = min(len(rate) for rate in rates)
    together = np.concatenate([rate[:steps] for rate in rates], axis=1)
    common = together[:, 0]
    return common if np.allclose(together, common[:, None], rtol=_EXACT, atol=0.0) else None


def schedule(rate: np.ndarray) -> tuple[Node, dict[str, float]] | None:
    """rate / rate[0] as an expression of t with its constants; None where no form is exact.

    Constant, linear, exponential, 1 / (1 + c t), 1 / sqrt(1 + c t), cosine, and steps.
    """
    relative = rate / rate[0]
    since = np.arange(len(rate), dtype=float)  # t - 1
    for text, constants in _forms(relative, since):
        tree = parse(text, (*constants, "t"))
        (values,) = evaluate(compile_program([tree]), {"t": since + 1.0, **constants})
        if np.abs(values - relative).max() <= _EXACT * relative.max():
            return tree, constants
    return None


def _forms(relative: np.ndarray, since: np.ndarray) -> Iterator[tuple[str, dict[str, float]]]:
    if np.ptp(relative) <= _EXACT:
        yield "1.0", {}
        return
    late = slice(1, None)
    with np.errstate(all="ignore"):
        yield "relu(1 + slope * (t - 1))", {"slope": _middle((relative - 1.0)[late] / since[late])}
        yield "exp(rate * (t - 1))", {"rate": _middle(np.log(relative)[late] / since[late])}
        yield "1 / (1 + slowing * (t - 1))", {"slowing": _middle((1.0 / relative - 1.0)[late] / since[late])}
        squares = (1.0 / np.square(relative) - 1.0)[late] / since[late]
        yield "1 / sqrt(1 + slowing * (t - 1))", {"slowing": _middle(squares)}
    yield from _cosine(relative, since)
    turns = np.flatnonzero(np.abs(np.diff(relative)) > _EXACT)
    if len(turns) <= _MOST_STEPS:
        factors = [f"(1 + step{k} * greater(t, {int(turn) + 1}))" for k, turn in enumerate(turns)]
        steps = {f"step{k}": float(relative[turn + 1] / relative[turn] - 1.0) for k, turn in enumerate(turns)}
        yield " * ".join(factors), steps


def _middle(values: np.ndarray) -> float:
    """The median of what is finite; 0 without any."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else 0.0


def _cosine(relative: np.ndarray, since: np.ndarray) -> Iterator[tuple[str, dict[str, float]]]:
    """floor + height * cos(pace * (t - 1)), the best of many half periods, refined by golden section."""
    from scipy.optimize import minimize_scalar

    def fit(half: float) -> tuple[float, np.ndarray]:
        columns = np.stack([np.ones_like(since), np.cos(math.pi / half * since)], axis=1)
        weights, *_ = np.linalg.lstsq(columns, relative, rcond=None)
        return float(np.square(columns @ weights - relative).sum()), weights

    halves = len(since) * np.geomspace(0.5, 8.0, _PERIODS)
    best = halves[int(np.argmin([fit(half)[0] for half in halves]))]
    found = minimize_scalar(
        lambda half: fit(half)[0],
        bounds=(0.97 * best, 1.03 * best),
        method="bounded",
        options={"xatol": 1e-9 * best},
    )
    whole = float(round(found.x))  # periods are counted in steps
    half = whole if fit(whole)[0] <= 1.01 * fit(found.x)[0] + 1e-12 else float(found.x)
    floor, height = fit(half)[1]
    yield (
        "floor + height * cos(pace * (t - 1))",
        {"floor": float(floor), "height": float(height), "pace": math.pi / half},
    )


def rated(rules: list[Rule], trajectories: Trajectories) -> list[Rule]:
    """The rules with the learning rate in them, where it was recorded so; as they are otherwise.

    A rate that coordinates or runs do not share, or that no form has exactly, is named and left out.
    """
    if not trajectories.config.get("include_lr"):
        return rules
    rate = recorded_rate(trajectories)
    found = None if rate is None else schedule(rate)
    if found is None:
        what = "differs between tensors or runs"
        if rate is not None:
            what = f"is no known function of t, {rate[0]:.4g} at step 1 and {rate[-1]:.4g} at {len(rate)}"
        _log.warning("the learning rate %s; rules are without it: give it to the optimizer", what)
        return rules
    tree, constants = found
    return [_with_rate(rule, float(rate[0]), tree, constants) for rule in rules]


def _with_rate(rule: Rule, first: float, tree: Node, constants: dict[str, float]) -> Rule:
    """The rule times the rate of the first step and the schedule."""
    if tree == ex.number(1.0):
        tree, constants = None, {}
    return dataclasses.replace(
        rule,
        expression=rule.expression if tree is None else ex.call("mul", tree, rule.expression),
        constants=constants | rule.constants,
        scale=first * rule.scale,
        provenance=rule.provenance | {"include_lr": True},
    )
