"""Refit all constants of a rule, decays included, on whole sequences.

Levenberg-Marquardt with forward-mode derivatives (interchange.language.execute); decays are fitted as logits
so that they stay in (0, 1), what keeps a denominator above 0 as a logarithm (More 1978; FORMATS.md section 3,
Numbers).
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator

import numpy as np

from common.metrics import r2
from interchange.language import expression as ex
from interchange.language.execute import Program, compile_program, evaluate_with_tangents
from interchange.language.expression import Node
from interchange.rule.forms import forms, from_free, slope, to_free
from interchange.rule.rule import RAW, Rule
from interchange.rule.safety import repaired, singular
from interchange.search.samples import Sequences

_LARGEST_LOG_STEP, _LOGS = 2.0, (-80.0, 80.0)
_LARGEST_LOGIT = 9.0  # a decay above 0.99988 cannot be told from a running sum within a trajectory
_HARDLY = 1e-2  # of what a rule leaves: rounding that tells nothing apart
_CHUNK = 128 << 20  # bytes of values and derivatives at once, about
_FEW = 100_000  # cells of whole sequences for the first fit, where there are many more
_TRIED = 5  # cuts that are refitted before one is chosen
_PRUNED_ITERATIONS = 12  # of the refit after a cut, which changes little
_FEW_FOR_PRUNING = 30_000  # cells of whole sequences
_FEW_FOR_CUTS = 5_000  # cells that tell what a cut loses; whole sequences, 64 at least


def predict(rule: Rule, data: Sequences) -> np.ndarray:
    """The rule's output before ``scale`` over whole sequences, [T, N]."""
    given = {name: data.features[name] for name in (*rule.features, *RAW) if name in data.features}
    parts = [
        rule.evaluate({name: x[:, part] for name, x in given.items()}) / rule.scale
        for part in _parts(data, len(given) + rule.complexity)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _parts(data: Sequences, arrays: int) -> list[slice]:
    """Coordinates cut so that so many arrays over a part of them take ``_CHUNK`` bytes."""
    steps, coordinates = data.target.shape
    width = max(1, _CHUNK // (8 * steps * arrays))
    return [slice(start, start + width) for start in range(0, coordinates, width)]


def few(data: Sequences, cells: int, least: int = 1) -> Sequences:
    """About so many cells: whole sequences, spread evenly over the coordinates."""
    steps, coordinates = data.target.shape
    count = max(least, -(-cells // steps))
    return data.part(np.arange(0, coordinates, -(-coordinates // count)))


def score(rule: Rule, data: Sequences) -> float:
    """Pooled R2 of the rule's output before ``scale``."""
    return r2(data.target, predict(rule, data))


def refit(
    rule: Rule, data: Sequences, iterations: int = 30, tolerance: float = 1e-6, deadline: float = math.inf
) -> Rule:
    """The rule with constants that minimise the squared error on ``data``; never worse than before.

    Cells whose rounding is known and larger than what the rule leaves count less, as they tell less.

    Args:
        iterations: at most so many steps of Levenberg-Marquardt; where sequences are many, so many on few of
            them and then on all.
        tolerance: relative gain of a step below which it ends.
        deadline: ``time.monotonic()`` from which on no step is taken.
    """
    if data.target.size > 2 * _FEW:
        near = _fitted(rule, few(data, _FEW), iterations, tolerance, deadline)
        rule = near if score(near, data) > score(rule, data) else rule
    return _fitted(rule, data, iterations, tolerance, deadline)


def _fitted(rule: Rule, data: Sequences, iterations: int, tolerance: float, deadline: float) -> Rule:
    names = list(rule.constants)
    if not names:
        return rule
    kinds = forms(rule)
    logits, logs = (np.array([form == kind for form in kinds.values()]) for kind in ("logit", "log"))
    program, weights = compile_program([rule.expression]), _weights(rule, data)
    point = np.array([to_free(rule.constants[n], form) for n, form in kinds.items()])
    error, normal, gradient = _normal_equations(program, kinds, point, data, weights, deadline)
    damping = 1e-3
    for _ in range(iterations):
        if not math.isfinite(error):
            return rule
        diagonal = np.diag(normal).copy()
        diagonal[diagonal <= 0.0] = 1.0
        try:
            move = np.linalg.solve(normal + damping * np.diag(diagonal), gradient)
        except np.linalg.LinAlgError:
            damping *= 10.0
            continue
        # A logarithm that hardly matters would leap where the error is flat.
        candidate = point + np.where(logs, np.clip(move, -_LARGEST_LOG_STEP, _LARGEST_LOG_STEP), move)
        if not np.isfinite(candidate).all():  # a derivative is infinite somewhere, as the root's at 0
            break
        candidate[logits] = np.clip(candidate[logits], -_LARGEST_LOGIT, _LARGEST_LOGIT)
        candidate[logs] = np.clip(candidate[logs], *_LOGS)
        new = _normal_equations(program, kinds, candidate, data, weights, deadline)
        if time.monotonic() > deadline:
            break
        if math.isfinite(new[0]) and new[0] < error:
            gain = (error - new[0]) / error if error else 0.0
            point, (error, normal, gradient) = candidate, new
            damping = max(damping / 5.0, 1e-12)
            if gain < tolerance:
                break
        else:
            damping *= 4.0
            if damping > 1e12:
                break
    return rule.with_constants({n: from_free(v, f) for (n, f), v in zip(kinds.items(), point, strict=True)})


def _weights(rule: Rule, data: Sequences) -> np.ndarray | None:
    """[T, N], 1 where rounding is far below what the rule leaves; None where that is so everywhere."""
    if data.rounding is None:
        return None
    with np.errstate(all="ignore"):
        left = float(np.sqrt(np.square(data.target - predict(rule, data)).mean()))
        left = max(left if math.isfinite(left) else math.inf, float(np.median(data.rounding)))
        if data.rounding.max() < _HARDLY * left:
            return None
        return 1.0 / np.hypot(1.0, data.rounding / left)


def _normal_equations(
    program: Program,
    kinds: dict[str, str],
    point: np.ndarray,
    data: Sequences,
    weights: np.ndarray | None,
    deadline: float,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Squared error, J J^T [k, k] and J r [k] at ``point`` [k]; an infinite error past the deadline.

    Args:
        weights: [T, N], what residuals are multiplied by.
    """
    names = list(kinds)
    values = {n: from_free(v, form) for (n, form), v in zip(kinds.items(), point, strict=True)}
    used = {ins.name for ins in program.instructions if ins.op == "input"}
    features = {name: x for name, x in data.features.items() if name in used}
    error, normal, gradient = 0.0, np.zeros((len(names), len(names))), np.zeros(len(names))
    arrays = round(len(program.instructions) * (1.0 + 0.5 * len(names)))
    for part in _parts(data, arrays):
        if time.monotonic() > deadline:
            return math.inf, normal, gradient
        inputs = {name: x[:, part] for name, x in features.items()}
        with np.errstate(all="ignore"):
            out, tangents = evaluate_with_tangents(program, inputs | values, names)
            residual = data.target[:, part] - out
            if weights is not None:
                residual, tangents = residual * weights[:, part], tangents * weights[:, part]
            residual, jacobian = residual.reshape(-1), tangents.reshape(len(names), -1)
            for k, (name, form) in enumerate(kinds.items()):
                if form != "plain":
                    jacobian[k] *= slope(values[name], form)
            error += float(residual @ residual)
            normal += jacobian @ jacobian.T
            gradient += jacobian @ residual
    return error, normal, gradient


def improve(
    rule: Rule, data: dict[str, Sequences], deadline: float, max_size: int, allow_singular: bool = False
) -> list[Rule]:
    """Refit, then prune node by node; the versions of at most ``max_size`` nodes with their R2.

    Without ``allow_singular`` all of them are finite for gradients of 0 and of usual size
    (``rule.safety``): a draft that is not is mended, or pruned until it is, and no sound version is cut or
    fitted to one that is not.

    Many cells are thinned out: what is worth keeping gets its last fit from ``polish``.

    Args:
        data: ``train`` is fitted; ``valid`` judges what a node earns; ``test`` is only reported.
        deadline: ``time.monotonic()`` after which nothing new is begun; the draft itself is then scored
            as it came.
    """
    train = few(data["train"], _FEW_FOR_PRUNING, 64)
    versions: list[Rule] = []
    current: Rule | None = rule if allow_singular else repaired(rule) or rule
    if time.monotonic() <= deadline:
        current = _sound(refit(current, train, deadline=deadline), current, allow_singular)
    while current is not None:
        if current.complexity <= max_size and (allow_singular or not singular(current)):
            judged = scored(current, data)
            versions += [judged] if judged else []
        current = None if time.monotonic() > deadline else best_cut(current, train, deadline, allow_singular)
    return versions


def _sound(fitted: Rule, before: Rule, allow_singular: bool) -> Rule:
    """The fit, unless it has made a rule singular that was not."""
    return before if not allow_singular and singular(fitted) and not singular(before) else fitted


def polish(rule: Rule, data: dict[str, Sequences], deadline: float) -> Rule:
    """The rule fitted to all of ``train``, with its R2 of every part of ``data``.

    A fit that is not finite where gradients are 0, where the rule was, is not taken.
    """
    fitted = _sound(refit(rule, data["train"], deadline=deadline), rule, allow_singular=False)
    return scored(fitted, data) or rule


def scored(rule: Rule, data: dict[str, Sequences]) -> Rule | None:
    """The rule with its R2 of every part, None for a test without; no rule where another part has none."""
    values = {split: score(rule, part) for split, part in data.items()}
    scores = {split: value if math.isfinite(value) else None for split, value in values.items()}
    if scores["train"] is None or scores["valid"] is None:
        return None
    return dataclasses.replace(rule, provenance=rule.provenance | {"r2": scores})


def best_cut(rule: Rule, data: Sequences, deadline: float, allow_singular: bool) -> Rule | None:
    """The refitted rule with one sub-tree less that loses least on ``data``.

    What a cut loses is weighed by the nodes it saves; those that look best by the squared correlation with
    the target, which a new factor and offset would reach, are refitted and compared. None if none is left,
    or if the deadline came before all were tried.
    """
    cells, anything = few(data, _FEW_FOR_CUTS, 64), allow_singular or bool(singular(rule))
    shorter = [_restrict(rule, node) for node in dict.fromkeys(_cuts(rule.expression))]
    whole, nodes = _correlation(rule, cells), rule.complexity
    cuts = [
        ((_correlation(cut, cells) - whole) / (nodes - cut.complexity), cut)
        for cut in shorter
        if cut is not None
    ]
    ranked = (cut for _, cut in sorted(cuts, key=lambda pair: pair[0], reverse=True))
    sound = (cut for cut in ranked if anything or not singular(cut))
    whole, best = score(rule, cells), (-math.inf, 0)
    chosen: Rule | None = None
    for cut in itertools.islice(sound, _TRIED):
        if time.monotonic() > deadline:
            return None
        value = score(refit(cut, cells, iterations=2), cells)
        worth = ((value - whole) / (nodes - cut.complexity), -cut.complexity)
        if math.isfinite(value) and worth > best:
            best, chosen = worth, cut
    if chosen is None:
        return None
    fitted = refit(chosen, data, iterations=_PRUNED_ITERATIONS, tolerance=1e-5, deadline=deadline)
    return _sound(fitted, chosen, allow_singular)


def _correlation(rule: Rule, data: Sequences) -> float:
    """Squared correlation with the target; 0 where it has none."""
    with np.errstate(all="ignore"):
        out, target = predict(rule, data).reshape(-1), data.target.reshape(-1)
        value = float(np.corrcoef(out, target)[0, 1] ** 2)
    return value if math.isfinite(value) else 0.0


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
