"""Refit all constants of a rule, decays included, on whole sequences.

Levenberg-Marquardt with forward-mode derivatives (interchange.program); decays are fitted as logits
so that they stay in (0, 1) (More 1978; FORMATS.md section 3, Numbers).
"""

import dataclasses
import math
import time
from collections.abc import Iterator

import numpy as np

from common.metrics import r2
from interchange import expression as ex
from interchange.expression import Node
from interchange.program import Program, compile_program, evaluate_with_tangents
from interchange.rule import RAW, Rule
from interchange.samples import Sequences

_LARGEST_LOGIT = 9.0  # a decay above 0.99988 cannot be told from a running sum within a trajectory


def predict(rule: Rule, data: Sequences) -> np.ndarray:
    """The rule's output before ``scale`` over whole sequences, [T, N]."""
    given = {name: data.features[name] for name in (*rule.features, *RAW) if name in data.features}
    return rule.evaluate(given) / rule.scale


def score(rule: Rule, data: Sequences) -> float:
    """Pooled R2 of the rule's output before ``scale``."""
    return r2(data.target, predict(rule, data))


def refit(rule: Rule, data: Sequences, iterations: int = 30, tolerance: float = 1e-6) -> Rule:
    """The rule with constants that minimise the squared error on ``data``; never worse than before.

    Args:
        iterations: at most so many steps of Levenberg-Marquardt.
        tolerance: relative gain of a step below which it ends.
    """
    names = list(rule.constants)
    if not names:
        return rule
    decays = [name in rule.decay_constants for name in names]
    program = compile_program([rule.expression])
    point = np.array([_to_free(rule.constants[n], d) for n, d in zip(names, decays, strict=True)])
    error, normal, slope = _normal_equations(program, names, decays, point, data)
    damping = 1e-3
    for _ in range(iterations):
        if not math.isfinite(error):
            return rule
        diagonal = np.diag(normal).copy()
        diagonal[diagonal <= 0.0] = 1.0
        try:
            move = np.linalg.solve(normal + damping * np.diag(diagonal), slope)
        except np.linalg.LinAlgError:
            damping *= 10.0
            continue
        candidate = point + move
        candidate[decays] = np.clip(candidate[decays], -_LARGEST_LOGIT, _LARGEST_LOGIT)
        new = _normal_equations(program, names, decays, candidate, data)
        if math.isfinite(new[0]) and new[0] < error:
            gain = (error - new[0]) / error if error else 0.0
            point, (error, normal, slope) = candidate, new
            damping = max(damping / 5.0, 1e-12)
            if gain < tolerance:
                break
        else:
            damping *= 4.0
            if damping > 1e12:
                break
    return rule.with_constants({n: _from_free(v, d) for n, v, d in zip(names, point, decays, strict=True)})


def _normal_equations(
    program: Program, names: list[str], decays: list[bool], point: np.ndarray, data: Sequences
) -> tuple[float, np.ndarray, np.ndarray]:
    """Squared error, J J^T [k, k] and J r [k] at ``point`` [k]."""
    values = {n: _from_free(v, d) for n, v, d in zip(names, point, decays, strict=True)}
    with np.errstate(all="ignore"):
        out, tangents = evaluate_with_tangents(program, {**data.features, **values}, names)
        residual = (data.target - out).reshape(-1)
        jacobian = tangents.reshape(len(names), -1)
        for k, decay in enumerate(decays):
            if decay:
                b = values[names[k]]
                jacobian[k] *= b * (1.0 - b)
        return float(residual @ residual), jacobian @ jacobian.T, jacobian @ residual


def _to_free(value: float, decay: bool) -> float:
    return math.log(value / (1.0 - value)) if decay else value


def _from_free(value: float, decay: bool) -> float:
    return float(1.0 / (1.0 + math.exp(-value))) if decay else float(value)


def improve(rule: Rule, data: dict[str, Sequences], deadline: float, max_size: int) -> list[Rule]:
    """Refit, then prune node by node; the versions of at most ``max_size`` nodes with their R2.

    Args:
        data: ``train`` is fitted; ``valid`` judges what a node earns; ``test`` is only reported.
        deadline: ``time.monotonic()`` after which nothing new is begun; the draft itself is then scored
            as it came.
    """
    versions: list[Rule] = []
    current: Rule | None = rule if time.monotonic() > deadline else refit(rule, data["train"])
    while current is not None:
        if current.complexity <= max_size:
            scores = {split: score(current, part) for split, part in data.items()}
            if all(map(math.isfinite, scores.values())):
                provenance = current.provenance | {"r2": scores}
                versions.append(dataclasses.replace(current, provenance=provenance))
        current = None if time.monotonic() > deadline else _best_cut(current, data["train"])
    return versions


def _best_cut(rule: Rule, data: Sequences) -> Rule | None:
    """The refitted rule with one sub-tree less that loses least on ``data``; None if none is left."""
    few = data.part(np.arange(0, data.target.shape[1], 1 + data.target.shape[1] // 64))
    cuts = []
    for node in dict.fromkeys(_cuts(rule.expression)):
        shorter = _restrict(rule, node)
        if shorter is not None:
            value = score(refit(shorter, few, iterations=2), few)
            if math.isfinite(value):
                # What a cut loses is weighed by the nodes it saves.
                loss = (score(rule, few) - value) / (rule.complexity - shorter.complexity)
                cuts.append((loss, shorter.complexity, shorter))
    if not cuts:
        return None
    return refit(min(cuts, key=lambda cut: cut[:2])[2], data)


def _cuts(node: Node) -> Iterator[Node]:
    """All trees with one operation less: an operation replaced by one of its arguments."""
    own = node.args[:1] if node.op in ("ema", "ema_hat", "lag") else node.args  # no decays, no lag counts
    yield from (arg for arg in own if arg.op != "number")
    for k, arg in enumerate(own):
        for cut in _cuts(arg):
            yield dataclasses.replace(node, args=(*node.args[:k], cut, *node.args[k + 1 :]))


def _restrict(rule: Rule, node: Node) -> Rule | None:
    """The rule with another expression and only the constants and features it still uses."""
    used = set(ex.names(node))
    constants = {name: value for name, value in rule.constants.items() if name in used}
    features = {name: value for name, value in rule.features.items() if name in used}
    if not (features or "g" in used) or not constants:  # nothing to fit or to tune is left
        return None
    return dataclasses.replace(rule, expression=node, constants=constants, features=features)
