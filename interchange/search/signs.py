"""Targets that are a sign: which sum of two or three filtered inputs has it.

Least squares finds only a direction close to the sum's. Counting wrong signs is exact: along z + r v each
row's sign changes at one r, so the best r of all is found by sorting. A decay is refined the same way,
because a refit sees no slope through a sign.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from interchange.language import expression as ex
from interchange.language.expression import Node
from interchange.search.samples import Rows, row_values

_PAIRS_FROM = 12  # single columns that are combined with every other one
_ROUNDS = 5  # of refining a decay, each three times finer


def best_ratio(z: np.ndarray, v: np.ndarray, sign: np.ndarray) -> tuple[float, int]:
    """The r for which z + r v has the most rows' signs, the middle of where it does, and how many are wrong.

    Args:
        z, v, sign: [rows]; signs are -1 or 1.
    """
    moving = v != 0.0
    fixed = int((np.sign(z[~moving]) != sign[~moving]).sum())
    turns = -z[moving] / v[moving]
    gained = np.where(np.sign(v[moving]) == sign[moving], 1, -1)  # right beyond the turn, or before it
    order = np.argsort(turns)
    turns, gained = turns[order], gained[order]
    if not len(turns):
        return 0.0, fixed
    wrong = int((gained > 0).sum()) - np.concatenate([[0], np.cumsum(gained)])
    k = int(wrong.argmin())
    low = turns[k - 1] if k else turns[0] - 1.0
    high = turns[k] if k < len(turns) else turns[-1] + 1.0
    return float((low + high) / 2.0), int(wrong[k]) + fixed


def sign_forms(
    columns: Sequence[Node],
    values: np.ndarray,
    y: np.ndarray,
    features: Mapping[str, np.ndarray],
    rows: Rows,
) -> list[tuple[Node, float]]:
    """Sums of one, two and three columns whose sign is y's, decays refined; with the part of wrong rows.

    The best first.

    Args:
        columns: what may be summed; values: [columns, n]; y: [n].
        features: name -> [T, N]; rows: which n cells of them the values are of.
    """
    kept = (y != 0.0) & np.isfinite(values).all(0)
    sign, x = np.sign(y[kept]), values[:, kept]
    rows = Rows(rows.steps[kept], rows.coordinates[kept], rows.weights[kept])
    if not len(sign):
        return []
    wrong = (np.sign(x) != sign).sum(1)
    wrong = np.minimum(wrong, len(sign) - wrong)
    starts = np.argsort(wrong, kind="stable")[:_PAIRS_FROM]
    first = int(starts[0])
    found = [_Form([columns[first]], [_direction(x[first], sign)], int(wrong[first]))]
    pairs = []
    for i in starts:
        start = _direction(x[i], sign)
        for j in range(len(columns)):
            if j != i:
                ratio, errors = best_ratio(start * x[i], x[j], sign)
                pairs.append(_Form([columns[i], columns[j]], [start, ratio], errors))
    pairs.sort(key=lambda form: form.errors)
    seen: dict[tuple[str, ...], _Form] = {}
    for form in pairs:  # one decay stands for its neighbours on the grid
        seen.setdefault(tuple(sorted(_family(term) for term in form.terms)), form)
    for form in list(seen.values())[:3]:
        found.append(_as_written(_refined(form, sign, features, rows), sign, features, rows))
    best = min(found, key=lambda form: form.errors)
    if best.errors:
        z = np.array(best.weights) @ _values(best.terms, features, rows)
        tries = [(best_ratio(z, v, sign), node) for node, v in zip(columns, x, strict=True)]
        (ratio, errors), node = min(tries, key=lambda item: item[0][1])
        found.append(_Form([*best.terms, node], [*best.weights, ratio], errors))
    found.sort(key=lambda form: form.errors)
    return [(form.expression(), form.errors / len(sign)) for form in found]


class _Form:
    """A sum whose sign is meant."""

    def __init__(self, terms: list[Node], weights: list[float], errors: int) -> None:
        size = max(map(abs, weights))
        self.terms, self.weights, self.errors = terms, [weight / size for weight in weights], errors

    def expression(self) -> Node:
        parts = [
            node if w == 1.0 else ex.call("mul", ex.number(w), node)
            for w, node in zip(self.weights, self.terms, strict=True)
        ]
        node = parts[0]
        for part in parts[1:]:
            node = ex.call("add", node, part)
        return node


def _direction(v: np.ndarray, sign: np.ndarray) -> float:
    return 1.0 if (np.sign(v) == sign).mean() >= 0.5 else -1.0


def _family(node: Node) -> str:
    """The node's text without its decays."""
    return ex.to_text(_with_decay(node, 0.5))


def _with_decay(node: Node, decay: float) -> Node:
    if node.op in ("ema", "ema_hat"):
        return ex.call(node.op, node.args[0], ex.number(decay))
    return ex.call(node.op, *(_with_decay(arg, decay) for arg in node.args)) if node.args else node


def _decay(node: Node) -> float | None:
    return next((part.args[1].value for part in ex.walk(node) if part.op in ("ema", "ema_hat")), None)


def _values(terms: Sequence[Node], features: Mapping[str, np.ndarray], rows: Rows) -> np.ndarray:
    return row_values(terms, features, rows).T


def _as_written(form: _Form, sign: np.ndarray, features: Mapping[str, np.ndarray], rows: Rows) -> _Form:
    """The form with decays and weights of few digits, where as few rows are wrong with them.

    Weights of a sign have no size, so they are written to add up to 1 or with one of them 1.
    """

    def judged(terms: list[Node], weights: list[float]) -> _Form:
        z = np.array(weights) @ _values(terms, features, rows)
        return _Form(terms, weights, int((np.sign(z) != sign).sum()))

    best = form
    for digits in range(4, 0, -1):
        terms = []
        for term in form.terms:
            decay = _decay(term)
            rounded = None if decay is None else float(f"{decay:.{digits}g}")
            terms.append(_with_decay(term, rounded) if rounded and rounded < 1.0 else term)
        for total in (sum(form.weights), *form.weights):
            if total:
                weights = [float(f"{weight / total:.{digits}g}") for weight in form.weights]
                tried = judged(terms, [weight * np.sign(total) for weight in weights])
                if tried.errors <= best.errors:
                    best = tried
    return best


def _refined(form: _Form, sign: np.ndarray, features: Mapping[str, np.ndarray], rows: Rows) -> _Form:
    """The form with the decays of its two terms moved to the middle of where fewest rows are wrong."""
    step = 1.0  # in logits; the grid's own steps are about as wide
    for _ in range(_ROUNDS if form.errors else 0):
        for k in (0, 1):
            decay = _decay(form.terms[k])
            if decay is None:
                continue
            logit = np.log(decay / (1.0 - decay))
            tries = []
            for offset in step * np.linspace(-1.0, 1.0, 7):
                moved = 1.0 / (1.0 + np.exp(-(logit + offset)))
                terms = list(form.terms)
                terms[k] = _with_decay(terms[k], float(moved))
                z, v = _values(terms, features, rows)
                ratio, errors = best_ratio(form.weights[0] * z, v, sign)
                tries.append(_Form(terms, [form.weights[0], ratio], errors))
            fewest = min(item.errors for item in tries)
            equal = [item for item in tries if item.errors == fewest]
            form = equal[len(equal) // 2]
        step /= 3.0
    return form
