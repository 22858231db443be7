"""The operator table: values at nasty points, NaN, dtypes, derivatives."""

import math

import numpy as np
import pytest

from common.errors import L2OError
from interchange.language.operators import OPERATORS, POINTWISE

NAN, INF = math.nan, math.inf


def value(name, *args):
    with np.errstate(all="ignore"):
        return OPERATORS[name].numpy(*map(np.float64, args))


def partials(name, *args):
    args = tuple(np.float64(arg) for arg in args)
    with np.errstate(all="ignore"):
        return tuple(map(float, OPERATORS[name].derivative(*args, OPERATORS[name].numpy(*args))))


VALUES = {
    "div": [(1, 0, INF), (0, 0, NAN)],
    "sign": [(0, 0)],
    "pow": [(-2, 2, -4), (-4, 0.5, -2), (0, 2, 0), (0, 0, 0), (0, -1, NAN), (3, 0, 1)],
    "powabs": [(-2, 3, 8), (0, 0, 1), (0, -1, INF)],
    "sqrt": [(-4, 2)],
    "log": [(0, math.log(1e-8)), (-1, math.log(1 + 1e-8))],
    "root": [(4, 2), (0, 0), (-4, NAN)],
    "ln": [(1, 0), (0, -INF), (-1, NAN)],
    "powreal": [
        (-2, 2, 4),
        (-2, 3, -8),
        (-8, 1 / 3, NAN),
        (4, 0.5, 2),
        (0, 0, 1),
        (0, -1, INF),
        (-2, -1, -0.5),
    ],
    "logabs": [(0, -INF), (-math.e, 1)],
    "log1p": [(1e-20, 1e-20)],
    "cbrt": [(-8, -2)],
    "erf": [(0.5, 0.5204998778130465)],
    "erfc": [(10, 2.088487583762545e-45)],
    "sigmoid": [(-700, 9.859676543759770e-305), (800, 1), (-800, 0)],
    "softsign": [(-3, -0.75)],
    "greater": [(1, 1, 0), (2, 1, 1)],
    "aq": [(3, 1, 3 / math.sqrt(2))],
}


@pytest.mark.parametrize(
    ("name", "args", "expected"), [(name, row[:-1], row[-1]) for name, rows in VALUES.items() for row in rows]
)
def test_values(name, args, expected):
    np.testing.assert_allclose(value(name, *args), expected, rtol=1e-14)


@pytest.mark.parametrize("name", POINTWISE)
def test_nan_goes_through_everything_but_greater(name):
    arity = OPERATORS[name].arity
    for position in range(arity):
        for other in (-1.0, 0.0, 1.0, 2.0):
            args = [NAN if i == position else other for i in range(arity)]
            assert value(name, *args) == 0 if name == "greater" else np.isnan(value(name, *args))


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_kept(name, dtype):
    array, scalar = np.array([0.3, 0.7], dtype), dtype(0.5)
    args = [array, scalar][: OPERATORS[name].arity]
    out = OPERATORS[name].numpy(*args)
    assert out.dtype == dtype
    assert all(np.result_type(out, part) == dtype for part in OPERATORS[name].derivative(*args, out))
    if len(args) == 2:
        assert OPERATORS[name].numpy(scalar, array).dtype == dtype


@pytest.mark.parametrize("name", POINTWISE)
def test_derivatives_match_finite_differences(name):
    rng = np.random.default_rng(0)
    points = rng.uniform(-2.0, 2.0, (2, 200))[: OPERATORS[name].arity]
    if name in ("log1p", "root", "ln", "powreal"):
        points = np.abs(points)
    if name == "tan":
        points = points / 2.0
    far = np.abs(points).min(axis=0) > 0.05
    if len(points) == 2:
        far &= np.abs(points[0] - points[1]) > 0.05
    points = points[:, far]
    function = OPERATORS[name].numpy
    for i, partial in enumerate(OPERATORS[name].derivative(*points, function(*points))):
        up, down = points.copy(), points.copy()
        up[i] += 1e-6
        down[i] -= 1e-6
        slope = (function(*up) - function(*down)) / (up[i] - down[i])
        np.testing.assert_allclose(np.broadcast_to(partial, slope.shape), slope, rtol=1e-6, atol=1e-6)


AT_KINKS = [
    *(
        (name, (zero,), (0.0,))
        for name in ["abs", "sqrt", "root", "log", "logabs", "ln", "relu", "cbrt", "sign"]
        for zero in (0.0, -0.0)
    ),
    *((name, (0.0, b), (0.0, 0.0)) for name in ("pow", "powabs", "powreal") for b in (0.5, 1.0, 2.0, 0.0)),
    *((name, (x, x), (0.5, 0.5)) for name in ("max", "min") for x in (1.5, INF)),
    ("max", (1.0, 2.0), (0.0, 1.0)),
    ("min", (1.0, 2.0), (1.0, 0.0)),
    ("greater", (1.0, 1.0), (0.0, 0.0)),
    ("greater", (2.0, 1.0), (0.0, 0.0)),
]


@pytest.mark.parametrize(("name", "args", "expected"), AT_KINKS)
def test_derivatives_at_kinks_are_zero_and_ties_are_shared(name, args, expected):
    assert partials(name, *args) == expected


def test_an_unknown_operator_lists_the_known():
    with pytest.raises(L2OError, match=r"unknown operator 'sqr' \(did you mean 'sqrt'\?\); known: add, "):
        OPERATORS["sqr"]
