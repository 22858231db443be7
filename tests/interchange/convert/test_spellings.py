"""Sixty halls of fame drawn at random, spelled as people's files are, against an evaluator in mpmath.

Every file has good lines, whose numbers have to be those of the program that wrote them, and lines without an
exact meaning, which have to be left out by their number and for their reason.
"""

import dataclasses
import logging
import math
from collections.abc import Callable

import numpy as np
import pytest

from interchange import import_hall_of_fame

mpmath = pytest.importorskip("mpmath", reason="mpmath is not installed: it comes with SymPy")

Number = Callable[..., object]
NAN = mpmath.mpf("nan")
FILES, POINTS = 60, 12
X = np.array([0.0, -1.5, 0.5, 2.0, -8.0, 1e6, 1e-3, -0.25, 3.0, -2.0, 1.0, 0.7])
Y = np.array([1.0, 2.0, -0.5, 0.0, 3.0, -2.0, 0.25, -1.5, 7.0, 0.3, -4.0, 1e4])


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of an equation as a program prints it, and its value by (x, y) in mpmath."""

    text: str
    value: Number


class UndecidedError(ArithmeticError):
    """A pole, where a program gives nan and a row the infinity of a side, or a number beyond doubles."""


def _sized(a):
    if a != 0 and not 1e-100 < abs(a) < 1e100:
        raise UndecidedError
    return a


def _real(function: Number, fits: Number) -> Number:
    return lambda a: function(a) if fits(a) else NAN


def _size_power(a, b):
    if a == 0 and b <= 0:
        raise UndecidedError
    if a != 0 and abs(b * mpmath.log(abs(a))) > 230:
        raise UndecidedError
    return mpmath.power(abs(a), b)


def _power(a, b):
    """Real, nan outside its domain; a whole exponent takes any base."""
    if a < 0 and b != mpmath.floor(b):
        return NAN
    size = _size_power(a, b)
    return -size if a < 0 and b % 2 == 1 else size


def _signed_power(a, b):
    return mpmath.sign(a) * _size_power(a, b)


def _over(a, b):
    if b == 0:
        raise UndecidedError
    return a / b


def _log(a):
    if a == 0:
        raise UndecidedError
    return mpmath.log(a) if a > 0 else NAN


def _exp(a):
    if abs(a) > 230:
        raise UndecidedError
    return mpmath.exp(a)


_PLAIN = {"sin": mpmath.sin, "cos": mpmath.cos, "exp": _exp, "tanh": mpmath.tanh, "abs": abs}
_JULIA = {
    "square": lambda a: a * a,
    "cube": lambda a: a * a * a,
    "cbrt": lambda a: mpmath.sign(a) * mpmath.cbrt(abs(a)),
    "sign": mpmath.sign,
    "relu": lambda a: max(a, mpmath.mpf(0)),
    "sigmoid": lambda a: 1 / (1 + _exp(-a)),
    "erf": mpmath.erf,
    "neg": lambda a: -a,
    "log1p": lambda a: _log(1 + a),
}
_ROOTS = {
    "sqrt": _real(mpmath.sqrt, lambda a: a >= 0),
    "log": _log,
}
_SIZES = {"max({}, {})": max, "min({}, {})": min, "greater({}, {})": lambda a, b: mpmath.mpf(a > b)}
_INFIX = {
    "({} + {})": lambda a, b: a + b,
    "({} - {})": lambda a, b: a - b,
    "({} * {})": lambda a, b: a * b,
    "({} / {})": _over,
}
_FLOOR = ("floor({})", "the operator table has no row")
_UNKNOWN = ("magic({})", "unknown operator 'magic'")
# Per program: header (separators to choose from), functions, pairs, and what it cannot say exactly.
PROGRAMS = {
    "pysr-2": (
        (",", ";", "\t"),
        _PLAIN | _JULIA | _ROOTS | {"sq": lambda a: a * a, "half_of": lambda a: a / 2},
        _INFIX
        | _SIZES
        | {
            "({} ^ {})": _power,
            "({} > {})": lambda a, b: mpmath.mpf(a > b),
            "({} < {})": lambda a, b: mpmath.mpf(a < b),
            "({} >= {})": lambda a, b: mpmath.mpf(a >= b),
            "({} <= {})": lambda a, b: mpmath.mpf(a <= b),
            "dist({}, {})": lambda a, b: abs(a - b),
        },
        (_FLOOR, _UNKNOWN, ("{} + Inf", "no variable"), ("f = #1 + {}", "a template"), ("sin({}", "not an")),
    ),
    "pysr-0.3": (
        ("|",),
        _PLAIN | _JULIA | {"sqrtm": lambda a: mpmath.sqrt(abs(a))},
        {
            "plus({}, {})": _INFIX["({} + {})"],
            "sub({}, {})": _INFIX["({} - {})"],
            "mult({}, {})": _INFIX["({} * {})"],
            "div({}, {})": _over,
            "pow({}, {})": _signed_power,
        },
        (_FLOOR, _UNKNOWN, ("asin({})", "'asin"), ("sin({}", "not an")),
    ),
    "pysr-0.6": (
        ("|",),
        _PLAIN | _JULIA | {"sqrt_abs": lambda a: mpmath.sqrt(abs(a))},
        _INFIX | _SIZES | {"({} ^ {})": _size_power},
        (_FLOOR, _UNKNOWN, ("log10_abs({})", "'log10_abs"), ("({} + ", "not an")),
    ),
    "operon": (
        (",", ""),
        {name: _PLAIN[name] for name in ("sin", "cos", "exp", "tanh", "abs")} | _ROOTS,
        _INFIX | {"({} ^ {})": _power},
        (_FLOOR, _UNKNOWN, ("max({}, 2.0)", "swaps fmin and fmax"), ("sin({}", "not an")),
    ),
}
OPERATORS = ("sq=square(x)", "half_of = x / 2", "dist(a, b)=abs(a - b)")
NAMES = (("x0", "x1"), ("Δx", "x₁"), ("lambda", "c0"), ("g", "t"), ("sin", "é"), ("theta", "X_2"))
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")
DRAWN = [
    name
    for name, count in (("pysr-2", 33), ("pysr-0.3", 9), ("pysr-0.6", 9), ("operon", 9))
    for _ in range(count)
]


def drawn(rng: np.random.Generator, program: str, names: tuple[str, str], depth: int) -> Term:
    """An equation of at most this depth."""
    _, functions, pairs, _ = PROGRAMS[program]
    kind = rng.random()
    if depth == 0 or kind < 0.1:
        which = rng.integers(3)
        if which < 2:
            return Term(names[which], (lambda x, y: x, lambda x, y: y)[which])
        value = float(rng.choice((0.5, 2.0, 3.0, 0.25, 1.5)))
        return Term(repr(value), lambda x, y: mpmath.mpf(value))
    if kind < 0.5:
        name = str(rng.choice(list(functions)))
        a = drawn(rng, program, names, depth - 1)
        return Term(f"{name}({a.text})", lambda x, y: _sized(functions[name](a.value(x, y))))
    form = str(rng.choice(list(pairs)))
    a, b = (drawn(rng, program, names, depth - 1) for _ in range(2))
    return Term(form.format(a.text, b.text), lambda x, y: _sized(pairs[form](a.value(x, y), b.value(x, y))))


def written(rng: np.random.Generator, program: str, index: int) -> tuple[str, dict, dict, tuple[str, str]]:
    """A file's text, line -> good term, line -> reason of a bad one, and the variables' names."""
    separators, _, _, bad = PROGRAMS[program]
    separator = separators[index % len(separators)]
    names = (
        NAMES[index % len(NAMES)]
        if program == "pysr-2"
        else (("X1", "X2") if program == "operon" else NAMES[0])
    )
    join = "plus({}, {})" if program == "pysr-0.3" else "({} + {})"
    terms = [Term(join.format(*names), lambda x, y: x + y)]
    terms += [drawn(rng, program, names, 3) for _ in range(4)]
    form, reason = bad[index % len(bad)]
    place = int(rng.integers(1, len(terms)))
    texts = [term.text for term in terms]
    texts.insert(place, form.format(names[0]))
    header = {
        "pysr-2": ("Complexity", "Loss", "Equation"),
        "operon": ("length", "mean_squared_error", "model"),
    }
    titles = header.get(program, ("Complexity", "MSE", "Equation"))
    quote = (lambda text: f'"{text}"') if separator in ",;" and separator else (lambda text: text)
    lines = [separator.join(titles)] * bool(separator)
    lines += [
        separator.join([str(3 + k), "0.5", quote(text)]) if separator else text
        for k, text in enumerate(texts)
    ]
    first = 1 + bool(separator)
    good = dict(zip([first + k for k in range(len(texts)) if k != place], terms, strict=True))
    return "\n".join(lines) + "\n", good, {first + place: reason}, names


def exactly(term: Term, x: float, y: float) -> float | None:
    """The value; None where it is undecided, or the last bits of the variables decide it."""
    try:
        with mpmath.workdps(40):
            at = [term.value(mpmath.mpf(x) * (1 + d), mpmath.mpf(y) * (1 - d)) for d in (0, 1e-14, -1e-14)]
    except UndecidedError:
        return None
    value, *others = map(float, at)
    if math.isnan(value):
        return value if all(map(math.isnan, others)) else None
    return value if all(abs(other - value) <= 1e-9 * abs(value) for other in others) else None


@pytest.mark.parametrize("index", range(FILES))
def test_what_is_read_is_right_and_the_rest_is_named(index, tmp_path, caplog):
    program, rng = DRAWN[index], np.random.default_rng(index)
    text, good, bad, names = written(rng, program, index)
    newline = "\r\n" if index % 2 else "\n"
    path = tmp_path / "hall.csv"
    path.write_bytes(
        text.replace("\n", newline).encode(ENCODINGS[index % 3] if program == "pysr-2" else "utf-8")
    )
    features = {names[0]: "g", names[1]: "lag(g, 1)"}
    with caplog.at_level(logging.WARNING):
        rules = import_hall_of_fame(path, dialect=program, features=features, operators=OPERATORS)
    assert {rule.provenance["line"] for rule in rules} == set(good), text
    left = [record.getMessage() for record in caplog.records if "left out: " in record.getMessage()]
    ((line, reason),) = bad.items()
    assert len(left) == 1 and left[0].startswith(f"{path}:{line}: left out: ") and reason in left[0]
    compared = 0
    for rule in rules:
        with np.errstate(all="ignore"):
            got = np.broadcast_to(rule.evaluate({"g": np.stack([Y, X])}), (2, POINTS))[1]
        for x, y, value in zip(X, Y, got, strict=True):
            expected = exactly(good[rule.provenance["line"]], x, y)
            if expected is None:
                continue
            compared += 1
            shown = f"{good[rule.provenance['line']].text} at {x}, {y}"
            assert value == pytest.approx(expected, rel=1e-8, abs=1e-300, nan_ok=True), shown
    assert compared >= POINTS
