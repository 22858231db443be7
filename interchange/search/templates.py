"""Optimizers' usual forms fitted to sequences: sums of filtered inputs, over a running size, behind a link.

    y = link( sum_i w_i N_i / (D + eps) / (1 + c t) )

N: an input, its lags and moving averages, simple functions of lags; D: 1 or a running size (root of an
average square, average magnitude, root of a sum of squares); link: none, tanh, or a sign. For every D the
weights are a sparse linear fit (orthogonal matching pursuit, Pati et al. 1993), so that SGD, momentum,
RMSprop, Adagrad, Adam and Lion come out exactly, up to the grid of decays, which a refit leaves behind.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from common.rng import rng
from interchange.language import expression as ex
from interchange.language.expression import Node
from interchange.search.dictionary import FORMS
from interchange.search.pursuit import Columns, pursuit
from interchange.search.samples import Rows, Sequences, row_values
from interchange.search.signs import sign_forms

SCHEDULES = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
_FUNCTIONS = ("square", "exp", "tanh", "abs", "cube", "sign", "cbrt")
_FUNCTION_LAGS = 6
_EPS = 1e-8
_KEPT = 3  # drafts per number of terms
_ROWS = 20_000  # for the fits; a refit sees all
_CELLS = 200_000  # of the whole sequences that the rows are of


@dataclasses.dataclass(frozen=True)
class _Fit:
    """A fit before it is an expression; ``error`` is relative to the sum of squares of y."""

    error: float
    terms: tuple[Node, ...]
    weights: tuple[float, ...]
    size: Node | None = None
    schedule: float = 0.0
    link: str = ""
    factor: float = 1.0

    def expression(self) -> Node:
        parts = [_times(weight, term) for weight, term in zip(self.weights, self.terms, strict=True)]
        node = parts[0]
        for part in parts[1:]:
            node = ex.call("add", node, part)
        if self.size is not None:
            node = ex.call("div", node, ex.call("add", self.size, ex.number(_EPS)))
        if self.schedule:
            node = ex.call("div", node, ex.call("add", ex.number(1.0), _times(self.schedule, ex.name("t"))))
        if self.link:
            node = _times(self.factor, ex.call(self.link, node))
        return node


def _times(factor: float, node: Node) -> Node:
    return node if factor == 1.0 else ex.call("mul", ex.number(factor), node)


def drafts(
    data: Sequences,
    inputs: Sequence[str],
    seconds: float = math.inf,
    most_terms: int = 12,
    tries: int | None = None,
) -> list[Node]:
    """Expressions over ``inputs``, the best few per number of terms, best first.

    Args:
        data: with all ``inputs`` among its features; sequences from the first step.
        seconds: after which no further form is tried; the forms with most divisors come last.
        tries: forms after which none is tried; with it and no limit of time the result is always the same.
    """
    deadline = time.monotonic() + seconds
    fits = []
    for fit in itertools.islice(_fits(data, inputs, most_terms), tries):
        if np.isfinite(fit.error):
            fits.append(fit)
        if time.monotonic() > deadline:
            break
    kept: list[_Fit] = []
    for count in sorted({len(fit.terms) for fit in fits}):
        of_size = sorted((fit for fit in fits if len(fit.terms) == count), key=lambda fit: fit.error)
        kept += of_size[:_KEPT]
    kept.sort(key=lambda fit: fit.error * 1.3 ** len(fit.terms))
    return list(dict.fromkeys(fit.expression() for fit in kept))


def _fits(data: Sequences, inputs: Sequence[str], most_terms: int) -> Iterator[_Fit]:
    rows = _rows(data)
    y, t = rows.of(data.target), rows.steps + 1.0
    names = [ex.name(name) for name in inputs]
    filtered = [node for name in names for node in numerators(name)]
    columns = _values(filtered, data.features, rows)
    lags = np.arange(len(filtered)) % (len(filtered) // len(names)) <= len(FORMS.lags)
    for family in (lags, ~lags | (np.arange(len(filtered)) % (len(filtered) // len(names)) == 0)):
        for chosen, weights, error in pursuit(np.where(family[:, None], columns, np.nan), y, most_terms):
            yield _Fit(error, tuple(filtered[i] for i in chosen), weights)
    size = np.abs(y)
    if size.max() > 0.0 and np.allclose(size[size > 0.0], size.max(), rtol=1e-5):
        for form, wrong in sign_forms(filtered, columns, y, data.features, rows):
            yield _Fit(4.0 * wrong, (form,), (1.0,), link="sign", factor=float(size.max()))
    for link, factor, z in _links(y):
        for chosen, weights, error in pursuit(columns, z, 5):
            yield _Fit(error, tuple(filtered[i] for i in chosen), weights, link=link, factor=factor)
    functions = [node for name in names for node in functions_of_lags(name)]
    with_functions = [*filtered, *functions, ex.number(1.0)]
    x = np.concatenate([columns, _values(functions, data.features, rows), np.ones((1, len(y)))])
    # A few huge values would be all that a sum of squares sees.
    weight = 1.0 / (size + np.median(size) + 1e-300)
    # An average that holds several terms at once leads the pursuit astray.
    plain = np.concatenate([lags, np.ones(len(with_functions) - len(lags), bool)])
    for family in (plain, np.ones_like(plain)):
        for chosen, weights, error in pursuit(np.where(family[:, None], x * weight, np.nan), y * weight, 8):
            yield _Fit(error, tuple(with_functions[i] for i in chosen), weights)
    sizes: list[Node | None] = [None, *(node for name in names for node in running_sizes(name))]
    size_values = _values([node for node in sizes if node is not None], data.features, rows)
    divisors = [np.ones_like(y), *(size_values + _EPS)]
    for schedules in (SCHEDULES[:1], SCHEDULES[1:]):
        for size, divisor in zip(sizes, divisors, strict=True):
            x = Columns(columns / divisor, np.isfinite(y))
            for schedule in schedules:
                count = most_terms if size is None and not schedule else 4
                for chosen, weights, error in x.pursuit(y * (1.0 + schedule * t), count):
                    yield _Fit(error, tuple(filtered[i] for i in chosen), weights, size, schedule)


def numerators(x: Node) -> list[Node]:
    """x, its lags, its moving averages, and those of a step ago."""
    lags = [ex.call("lag", x, ex.number(k)) for k in FORMS.lags]
    averages = [ex.call(op, x, ex.number(b)) for b in FORMS.decays for op in ("ema", "ema_hat")]
    return [
        x,
        *lags,
        *averages,
        *(ex.call("lag", ex.call("ema", x, ex.number(b)), ex.number(1)) for b in FORMS.decays),
    ]


def running_sizes(x: Node) -> list[Node]:
    """What optimizers divide by: running root mean squares and magnitudes."""
    nodes = []
    for b in FORMS.size_decays:
        for op in ("ema", "ema_hat"):
            nodes.append(ex.call("sqrt", ex.call(op, ex.call("square", x), ex.number(b))))
            nodes.append(ex.call(op, ex.call("abs", x), ex.number(b)))
    return [*nodes, ex.call("sqrt", ex.call("cumsum", ex.call("square", x)))]


def functions_of_lags(x: Node) -> list[Node]:
    """Simple functions of the input and its first lags."""
    lags = [x, *(ex.call("lag", x, ex.number(k)) for k in range(1, _FUNCTION_LAGS))]
    return [ex.call(op, lag) for op in _FUNCTIONS for lag in lags]


def _links(y: np.ndarray) -> Iterator[tuple[str, float, np.ndarray]]:
    """Functions y may be of: name, factor in front, and what the function was applied to, roughly."""
    largest = float(np.abs(y).max())
    for factor in (1.0, 1.001 * largest):
        if largest < factor:
            yield "tanh", factor, np.arctanh(np.clip(y / factor, -1.0 + 1e-9, 1.0 - 1e-9))


def _rows(data: Sequences) -> Rows:
    """Rows drawn from sequences that are spread evenly, or all of them."""
    steps, coordinates = data.target.shape
    count = min(coordinates, max(1, _CELLS // steps))
    taken = np.linspace(0, coordinates - 1, count).astype(int)
    # Evenly spaced ones would show each sequence at a few steps only.
    drawn = rng(0, "forms").choice(steps * count, min(steps * count, _ROWS), replace=False)
    cells = np.sort(drawn)
    return Rows(cells // count, taken[cells % count], np.ones(len(cells)))


def _values(nodes: Sequence[Node], features: Mapping[str, np.ndarray], rows: Rows) -> np.ndarray:
    """[len(nodes), rows] of expressions over whole sequences."""
    return np.ascontiguousarray(row_values(nodes, features, rows).T)
