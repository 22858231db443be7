"""Optimizers' usual forms fitted to sequences: sums of filtered inputs, over a running size, behind a link.

    y = link( sum_i w_i N_i / D / (1 + c t) ) - w theta

N: an input, its lags and moving averages, simple functions of lags; D: 1 or a running size (root of an
average square, average magnitude, root of a sum of squares, each with an eps as torch or Keras place it);
link: none, tanh, or a sign; theta where it was recorded. For every D the weights are a sparse linear fit
(orthogonal matching pursuit, Pati et al. 1993), so that SGD, momentum, RMSprop, Adagrad, Adam, AMSGrad and
Lion, with weight decay or without, come out exactly, up to the grid of decays, which a refit leaves behind.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from common.rng import rng
from interchange.language import expression as ex
from interchange.language.expression import Node
from interchange.search.dictionary import EPS, FORMS, functions_of_lags, is_lag, numerators, running_sizes
from interchange.search.pursuit import Columns, pursuit
from interchange.search.samples import Rows, Sequences, row_values
from interchange.search.signs import sign_forms

SCHEDULES = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
_FOUND = 1e-9  # of the squares: what leaves less is the optimizer
_AVERAGES = ("ema", "ema_hat")
_DECAYS = (1e-2, 1e-3, 1e-4)  # c of g + c theta, which is what L2 decay makes of g
_BEST_ROOTS = 4  # of the fits of sqrt(S + c)
_FADING, _CORRECTION = (1.6e-4, 0.04), 0.47  # of NAdam in torch and in Keras; a refit finds others
_THETA = ex.name("theta")
_ONE_SIZE = 1e-3  # how far sizes of updates that are a sign may be apart: theta's rounding is in them
_KEPT = 4  # drafts per number of terms
_ROWS = 10_000  # for the fits; a refit sees all
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
    decay: float = 0.0

    def expression(self) -> Node:
        node = _sum(zip(self.terms, self.weights, strict=True))
        if self.size is not None:
            node = ex.call("div", node, self.size)
        if self.schedule:
            node = ex.call("div", node, ex.call("add", ex.number(1.0), _times(self.schedule, ex.name("t"))))
        if self.link:
            node = _times(self.factor, ex.call(self.link, node))
        if self.decay:
            op = "sub" if self.decay > 0.0 else "add"
            node = ex.call(op, node, ex.call("mul", ex.number(abs(self.decay)), _THETA))
        return node


def _sum(terms: Iterable[tuple[Node, float]]) -> Node:
    parts = [_times(weight, term) for term, weight in terms]
    return functools.reduce(lambda left, right: ex.call("add", left, right), parts)


def _times(factor: float, node: Node) -> Node:
    return node if factor == 1.0 else ex.call("mul", ex.number(factor), node)


def drafts(
    data: Sequences,
    inputs: Sequence[str],
    seconds: float = math.inf,
    most_terms: int = 12,
    tries: int | None = None,
    at_most: float = math.inf,
) -> list[Node]:
    """Expressions over ``inputs``, the best few per number of terms, best first.

    Args:
        data: with all ``inputs`` among its features; sequences from the first step.
        seconds: of work, after which no further form is tried; those with most divisors come last.
        tries, at_most: forms, and seconds by the clock, after which none is tried. With ``tries`` and no
            limit of time the result is always the same.
    """
    begun, deadline = time.thread_time(), time.monotonic() + at_most
    fits = []
    for fit in itertools.islice(_fits(data, inputs, most_terms), tries):
        if np.isfinite(fit.error):
            fits.append(fit)
        if time.thread_time() > begun + seconds or time.monotonic() > deadline:
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
    lags = is_lag(filtered, names)
    for family in (lags, ~lags | (np.arange(len(filtered)) % (len(filtered) // len(names)) == 0)):
        for chosen, weights, error in pursuit(np.where(family[:, None], columns, np.nan), y, most_terms):
            yield _Fit(error, tuple(filtered[i] for i in chosen), weights)
    size = np.abs(y[y != 0.0])
    step = float(np.median(size)) if len(size) else 0.0
    if step and np.allclose(size, step, rtol=_ONE_SIZE):
        for form, wrong in sign_forms(filtered, columns, y, data.features, rows):
            yield _Fit(4.0 * wrong, (form,), (1.0,), link="sign", factor=step)
    inputs = _Inputs(names, filtered, columns, y, t, data.features, rows, most_terms)
    mine, least = "theta" in data.features, np.inf  # recorded of a loop: hand-made, so a quotient, probably
    yield from () if mine else _links_and_functions(inputs)
    for fit in itertools.chain(_nesterov_adam(inputs), _quotients(inputs, SCHEDULES[:1])):
        least = min(least, fit.error)
        yield fit
    if mine and least > _FOUND:
        yield from _with_l2_decay(inputs)
    yield from _links_and_functions(inputs) if mine else ()
    yield from _quotients(inputs, SCHEDULES[1:])


@dataclasses.dataclass(frozen=True, eq=False)
class _Inputs:
    """Inputs, terms of them, the terms' values as ``columns`` [terms, n], and the target y [n]."""

    names: Sequence[Node]
    terms: Sequence[Node]
    columns: np.ndarray
    y: np.ndarray
    t: np.ndarray
    features: Mapping[str, np.ndarray]
    rows: Rows
    most_terms: int

    def values(self, nodes: Sequence[Node]) -> np.ndarray:
        """[nodes, n]"""
        return _values(nodes, self.features, self.rows)

    def theta(self) -> np.ndarray:
        """[1, n], or [0, n] where it was not recorded."""
        theta = self.features.get("theta")
        return np.zeros((0, len(self.y))) if theta is None else self.rows.of(theta)[None]

    def divisors(self) -> Iterator[tuple[Node | None, np.ndarray]]:
        """What a sum may be over: nothing, and running sizes of the inputs."""
        yield None, np.ones_like(self.y)
        for x in self.names:
            sizes = running_sizes(x)
            yield from zip(sizes, self.values(sizes), strict=True)
            yield from _roots(x, self)


def _links_and_functions(inputs: _Inputs) -> Iterator[_Fit]:
    """Sums behind tanh, and sums of the terms and of simple functions of lags."""
    y, size = inputs.y, np.abs(inputs.y)
    for link, factor, z in _links(y):
        for chosen, weights, error in pursuit(inputs.columns, z, 5):
            yield _Fit(error, tuple(inputs.terms[i] for i in chosen), weights, link=link, factor=factor)
    functions = [node for name in inputs.names for node in functions_of_lags(name)]
    with_functions = [*inputs.terms, *functions, ex.number(1.0)]
    x = np.concatenate([inputs.columns, inputs.values(functions), np.ones((1, len(y)))])
    # A few huge values would be all that a sum of squares sees.
    weight = 1.0 / (size + np.median(size) + 1e-300)
    # An average that holds several terms at once leads the pursuit astray.
    lags = is_lag(inputs.terms, inputs.names)
    plain = np.concatenate([lags, np.ones(len(with_functions) - len(lags), bool)])
    for family in (plain, np.ones_like(plain)):
        for chosen, weights, error in pursuit(np.where(family[:, None], x * weight, np.nan), y * weight, 8):
            yield _Fit(error, tuple(with_functions[i] for i in chosen), weights)


def _quotients(inputs: _Inputs, schedules: Sequence[float]) -> Iterator[_Fit]:
    """Sums of the terms over running sizes of the inputs, less some theta."""
    for size, divisor in inputs.divisors():
        x = Columns(np.concatenate([inputs.columns / divisor, inputs.theta()]), np.isfinite(inputs.y))
        for schedule in schedules:
            count = inputs.most_terms if size is None and not schedule else 4
            for found in x.pursuit(inputs.y * (1.0 + schedule * inputs.t), count):
                yield from _quotient(inputs.terms, *found, size, schedule)


def _with_l2_decay(inputs: _Inputs) -> Iterator[_Fit]:
    """The same of g + c theta in place of g, which is what L2 decay makes of the gradient."""
    for decay in _DECAYS:
        names = [ex.call("add", x, ex.call("mul", ex.number(decay), _THETA)) for x in inputs.names]
        averages = itertools.product(names, FORMS.decays, _AVERAGES)
        terms = [*names, *(ex.call(op, x, ex.number(b)) for x, b, op in averages)]
        own = dataclasses.replace(inputs, names=names, terms=terms, columns=inputs.values(terms))
        # Theta beside it makes up for the grid of decays, which a refit leaves behind.
        yield from (dataclasses.replace(fit, decay=0.0) for fit in _quotients(own, SCHEDULES[:1]))


def _quotient(
    terms: Sequence[Node],
    chosen: list[int],
    weights: tuple[float, ...],
    error: float,
    size: Node | None,
    schedule: float = 0.0,
) -> Iterator[_Fit]:
    """The fit of a pursuit whose columns are ``terms`` and theta; none where it has theta alone."""
    pairs = [(terms[i], w) for i, w in zip(chosen, weights, strict=True) if i < len(terms)]
    decay = sum(-w for i, w in zip(chosen, weights, strict=True) if i == len(terms))
    if pairs and not (decay and schedule):
        nodes, of_nodes = zip(*pairs, strict=True)
        yield _Fit(error, nodes, of_nodes, size, schedule, decay=decay)


def _nesterov_adam(inputs: _Inputs) -> Iterator[_Fit]:
    """Gradient and average with weights that move towards others exponentially, bias corrected: NAdam.

    Dozat 2016: weights 1 - mu and mu, mu = beta (1 - 0.96^(t psi) / 2), over 1 - mu^t, about 1 - 0.47^t.
    """
    fading = [ex.call("exp", ex.call("mul", ex.number(-rate), ex.name("t"))) for rate in _FADING]
    for x in inputs.names:
        square = ex.call("square", x)
        for b in (0.99, 0.999):
            size = ex.call("sqrt", ex.call("ema_hat", square, ex.number(b)))
            size = ex.call("add", size, ex.number(EPS))
            size = ex.call("mul", size, ex.call("ema", ex.number(1.0), ex.number(_CORRECTION)))
            (divisor,) = inputs.values([size])
            for fade in fading:
                terms = [x, ex.call("ema", x, ex.number(0.9))]
                columns = inputs.values([*terms, *(ex.call("mul", term, fade) for term in terms)]) / divisor
                for chosen, weights, error in pursuit(columns, inputs.y, 4):
                    parts = [
                        [(terms[i % 2], w) for i, w in zip(chosen, weights, strict=True) if i // 2 == k]
                        for k in (0, 1)
                    ]
                    sums = [_sum(part) for part in parts if part]
                    if parts[1]:
                        sums[-1] = ex.call("mul", sums[-1], fade)
                    yield _Fit(error, tuple(sums), (1.0,) * len(sums), size)


def _roots(x: Node, inputs: _Inputs) -> list[tuple[Node, np.ndarray]]:
    """Sizes sqrt(S + c), c fitted, that x is about over: Keras' RMSprop, and Adagrad that begins above 0.

    (x / y)^2 = a S + a c is linear in a and a c; what is minimised is the error relative to it.
    """
    sums = [
        ex.call(op, ex.call("square", x), ex.number(b))
        for b in FORMS.size_decays
        for op in ("ema", "ema_hat")
    ]
    sums.append(ex.call("cumsum", ex.call("square", x)))
    (top, *values) = inputs.values([x, *sums])
    found = []
    with np.errstate(all="ignore"):
        ratio = np.square(inputs.y / top)
        used = np.isfinite(ratio) & (ratio > 0.0)
        for node, value in zip(sums, values, strict=True):
            pair = np.stack([ratio * value, ratio])[:, used]
            a, b = np.linalg.lstsq(pair.T, np.ones(used.sum()), rcond=None)[0]
            if a > 0.0 and b > 0.0:
                error = float(np.square(a * pair[0] + b * pair[1] - 1.0).sum())
                found.append((error, float(b / a), node, value))
    found.sort(key=lambda row: row[0])
    return [
        (ex.call("sqrt", ex.call("add", node, ex.number(c))), np.sqrt(value + c))
        for _, c, node, value in found[:_BEST_ROOTS]
    ]


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
