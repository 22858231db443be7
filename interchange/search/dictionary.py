"""A wide dictionary of temporal features, and the few of them a search should see.

Over the raw gradient and over the teacher's own inputs alike: what optimizers are made of (moving averages,
running sizes, their ratios, signs), so that a search need not find long memory by itself.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from interchange.language import expression as ex
from interchange.language.expression import Node
from interchange.search.pursuit import pursuit


@dataclasses.dataclass(frozen=True)
class Grid:
    """Memories that a search tries; a refit finds what lies between the decays.

    Attributes:
        lags: steps back.
        decays: of moving averages of the input.
        size_decays: of running magnitudes, which forget more slowly in most optimizers.
    """

    lags: tuple[int, ...]
    decays: tuple[float, ...]
    size_decays: tuple[float, ...]


# Columns are many and few are kept, so that the grid is coarse but reaches far.
COLUMNS = Grid(
    (1, 2, 3, 5), (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999), (0.5, 0.9, 0.95, 0.99, 0.999)
)
# Optimizers' usual forms, which are fitted as they stand: 20 lags, as Zheng et al. 2022, and finer decays.
FORMS = Grid(
    tuple(range(1, 21)),
    (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995),
    (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999),
)
RATIO_DECAYS = (0.5, 0.8, 0.9, 0.95, 0.99)  # of what is divided by a running size, or whose sign is taken
POWERS = (0.5, 1.5, 3.0)  # p of (ema |x|^p)^(1/p), beside 1 and 2
_FUNCTIONS = ("sign", "abs", "square", "tanh")
_EPS = 1e-12  # of columns, which engines see in any unit
EPS, EPS_KERAS = 1e-8, 1e-7  # of optimizers, as torch and Keras have it
_OF_LAGS, _LAGS = ("square", "exp", "tanh", "abs", "cube", "sign", "cbrt"), 6


def wide_dictionary(features: Sequence[str]) -> list[Node]:
    """All columns over ``features``, each feature itself first."""
    nodes = [ex.name(feature) for feature in features]
    columns = list(nodes)
    for x in nodes:
        columns += [ex.call(op, x) for op in _FUNCTIONS]
        columns += _filtered(x)
        columns += _sizes(x)
        columns += _ratios(x)
    return columns


def _filtered(x: Node) -> Iterator[Node]:
    """Lags, moving averages and the signs of these."""
    yield from (ex.call("lag", x, ex.number(k)) for k in COLUMNS.lags)
    for b in COLUMNS.decays:
        yield from (ex.call(op, x, ex.number(b)) for op in ("ema", "ema_hat"))
    yield from (ex.call("sign", ex.call("ema", x, ex.number(b))) for b in RATIO_DECAYS)


def _sizes(x: Node) -> Iterator[Node]:
    """Running root mean squares, magnitudes and p-norms."""
    for b in map(ex.number, COLUMNS.size_decays):
        for op in ("ema", "ema_hat"):
            yield ex.call("sqrt", ex.call(op, ex.call("square", x), b))
            yield ex.call(op, ex.call("abs", x), b)
        for p in POWERS:
            average = ex.call("ema_hat", ex.call("powabs", x, ex.number(p)), b)
            yield ex.call("powabs", average, ex.number(1.0 / p))


def _ratios(x: Node) -> Iterator[Node]:
    """The input and its averages over its running root mean square, as in RMSprop and Adam."""
    tops = [x, *(ex.call("ema_hat", x, ex.number(b)) for b in RATIO_DECAYS)]
    for b in COLUMNS.size_decays:
        size = ex.call("sqrt", ex.call("ema_hat", ex.call("square", x), ex.number(b)))
        size = ex.call("add", size, ex.number(_EPS))
        yield from (ex.call("div", top, size) for top in tops)


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


def is_lag(terms: Sequence[Node], inputs: Sequence[Node]) -> np.ndarray:
    """Which of the inputs' ``numerators`` are the inputs themselves or lags of them."""
    return np.arange(len(terms)) % (len(terms) // len(inputs)) <= len(FORMS.lags)


def running_sizes(x: Node) -> list[Node]:
    """What optimizers divide by: running root mean squares and magnitudes, with their eps."""
    square, one = ex.call("square", x), ex.number(1.0)
    nodes = [ex.call("sqrt", ex.call("cumsum", square))]
    for b in map(ex.number, FORMS.size_decays[::-1]):
        for op in ("ema", "ema_hat"):
            nodes += [ex.call("sqrt", ex.call(op, square, b)), ex.call(op, ex.call("abs", x), b)]
        nodes.append(
            ex.call(
                "sqrt", ex.call("div", ex.call("cummax", ex.call("ema", square, b)), ex.call("ema", one, b))
            )
        )
    nodes = [ex.call("add", node, ex.number(EPS)) for node in nodes]
    for b in map(ex.number, FORMS.size_decays[::-1]):  # Keras adds eps before the correction
        for average in (ex.call("ema", square, b), ex.call("cummax", ex.call("ema", square, b))):
            size = ex.call("add", ex.call("sqrt", average), ex.number(EPS_KERAS))
            nodes.append(ex.call("div", size, ex.call("sqrt", ex.call("ema", one, b))))
    return nodes


def functions_of_lags(x: Node) -> list[Node]:
    """Simple functions of the input and its first lags."""
    lags = [x, *(ex.call("lag", x, ex.number(k)) for k in range(1, _LAGS))]
    return [ex.call(op, lag) for op in _OF_LAGS for lag in lags]


def screen(
    columns: Sequence[Node], rows: np.ndarray, y: np.ndarray, weights: np.ndarray, count: int
) -> list[int]:
    """Indices of at most ``count`` columns, in order: the features themselves, then what explains y best.

    Two orthogonal matching pursuits take turns, one on squared errors, one on errors relative to |y|,
    because a few huge values would be all that the first sees.

    Args:
        rows: [n, columns]; columns that are hardly ever finite, and rows that are not, are left out.
        y, weights: [n].
    """
    plain = [k for k, node in enumerate(columns) if node.op == "name"]
    size = np.abs(y)
    turns = []
    for scale in (np.sqrt(weights), np.sqrt(weights) / (size + np.median(size) + 1e-300)):
        paths = [chosen for chosen, _, _ in pursuit(rows.T * scale, y * scale, count)]
        turns.append(paths[-1] if paths else [])
    picked = dict.fromkeys(plain[:count])
    for place in range(max(map(len, turns))):
        for path in turns:
            if place < len(path) and len(picked) < count:
                picked[path[place]] = None
    return sorted(picked)
