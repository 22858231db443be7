"""Other programs' spellings: exact rows of the operator table, or a refusal that names the node."""

import numpy as np
import pytest

from common.errors import L2OError
from interchange.dialects.table import DIALECTS, operon_tree
from interchange.emit.targets.to_sympy import build, emit
from interchange.language.expression import call, name, number, to_text
from interchange.language.operators import OPERATORS, TEMPORAL
from interchange.language.parse import ParseError, parse
from interchange.language.sugar import MAX_POWER, integer_power
from interchange.rule.rule import Rule

# Dialect -> spelling -> the same in the rule language.
SPELLINGS = {
    "native": {
        "pow(a, 2) / sqrt(b)": "pow(a, 2.0) / sqrt(b)",
        "a ** 2 - b**-3": "square(a) - 1.0 / cube(b)",
        "a ** b + abs(a) ** 0.5": "powreal(a, b) + powabs(a, 0.5)",
        "Max(a, b, 1) - Min(a, Abs(b))": "max(max(a, b), 1.0) - min(a, abs(b))",
        "(a > b) + (a < 0.5)": "greater(a, b) + greater(0.5, a)",
        "a >= b": "greater(1.0, sign(b - a))",
        "a <= 0": "greater(1.0, sign(a))",
    },
    "pysr-0.3": {
        "plus(a, mult(b, -0.5))": "a + b * -0.5",
        "div(sub(a, b), 2.0)": "(a - b) / 2.0",
        "pow(a, b)": "pow(a, b)",
        "sqrtm(logm(a))": "sqrt(log(a))",
        "greater(sign(a), relu(b))": "greater(sign(a), relu(b))",
        "(a + b) * sqrtm(a)": "(a + b) * sqrt(a)",
        "erfc(asinh(cube(square(neg(a)))))": "erfc(asinh(cube(square(-a))))",
        "1.5e-5": "1.5e-05",
    },
    "pysr-0.6": {
        "(a ^ b)": "powabs(a, b)",
        "a ^ 3": "powabs(a, 3.0)",
        "pow(a, 2.0) + pow_abs(a, b)": "powabs(a, 2.0) + powabs(a, b)",
        "sqrt_abs(log_abs(a))": "sqrt(log(a))",
        "log1p_abs(a)": "log1p(abs(a))",
        "-(0.5 ^ a)": "-powabs(0.5, a)",
        "(-0.5) ^ a": "powabs(-0.5, a)",
    },
    "pysr-2": {
        "a ^ 2": "square(a)",
        "a ^ 3.0": "cube(a)",
        "a ^ 1 + b ^ 0": "a + 1.0",
        "a ^ 4": "square(square(a))",
        "a ^ 5": "a * square(square(a))",
        "a ^ -2": "1.0 / square(a)",
        "a * b ^ 2": "a * square(b)",
        "(a ^ 2) ^ 2": "square(square(a))",
        "sqrt(a ^ 2 + 1e-8)": "sqrt(square(a) + 1e-08)",
        "sqrt(abs(a))": "sqrt(abs(a))",
        "sqrt(a) - log(a - 1)": "root(a) - ln(a - 1.0)",
        "abs(a) ^ 1.5": "powabs(abs(a), 1.5)",
        "square(a) ^ 0.7 + 2.5 ^ a": "powabs(square(a), 0.7) + powabs(2.5, a)",
        "a ^ 0.5": "powreal(a, 0.5)",
        "a ^ b ^ 2": "powreal(a, square(b))",
        "a ^ 17": "powreal(a, 17.0)",
        "a > 0.47": "greater(a, 0.47)",
        "fma(a, 2, b) + muladd(a, b, a)": "a * 2.0 + b + (a * b + a)",
        "sigmoid(a) * cond(a, b)": "sigmoid(a) * (greater(a, 0.0) * b)",
        "logical_or(a, b) - logical_and(a, b)": "max(greater(a, 0.0), greater(b, 0.0)) - "
        "greater(a, 0.0) * greater(b, 0.0)",
        "less(a, b) + greater_equal(a, b)": "greater(b, a) + greater(1.0, sign(b - a))",
        "clamp(a, -1, 1)": "min(max(a, -1.0), 1.0)",
        "log2(exp(a)) + log10(a)": "logabs(exp(a)) / 0.6931471805599453 + ln(a) / 2.302585092994046",
        "safe_pow(a, 0.5) + safe_log(a)": "powreal(a, 0.5) + ln(a)",
        "log(exp(a) * 2.0)": "logabs(exp(a) * 2.0)",
        "inv(a)": "1.0 / a",
        "max(a, min(b, 1))": "max(a, min(b, 1.0))",
        "log1p(a) + cbrt(a)": "log1p(a) + cbrt(a)",
    },
    "operon": {
        "(a / (sqrt(1 + b ^ 2)))": "aq(a, b)",
        "(a / (sqrt(1 + ((-0.500000) * b) ^ 2)))": "aq(a, -0.5 * b)",
        "(a / (sqrt(2 + b ^ 2)))": "a / sqrt(2.0 + square(b))",
        "(abs((2.0 * a)) ^ ((-0.437124) * b))": "powabs(2.0 * a, -0.437124 * b)",
        "(abs(a) ^ 2)": "square(abs(a))",
        "log((2.0 * a))": "ln(2.0 * a)",
        "sqrt((2.0 * a))": "root(2.0 * a)",
        "(a ^ b)": "powreal(a, b)",
        "log(abs((1.5 * a)))": "logabs(1.5 * a)",
        "log((2.0 * a)+1)": "log1p(2.0 * a)",
        "sqrt(abs((a ^ 2)))": "sqrt(square(a))",
        "cbrt((a - b))": "cbrt(a - b)",
        "((-0.25) + ((a ^ 2) / tanh(b)))": "-0.25 + square(a) / tanh(b)",
    },
    "sympy": {
        "Abs(a) + Max(0, a, b) - Min(a, b)": "abs(a) + max(max(0.0, a), b) - min(a, b)",
        "a**2/b**3 - c0*a**(-1)": "square(a) / cube(b) - c0 * (1.0 / a)",
        "-a**2": "-square(a)",
        "sqrt(a) + lag(a, 3)": "root(a) + lag(a, 3)",
        "sqrt(Abs(a)) + log(Abs(a))": "sqrt(a) + logabs(a)",
        "sign(a)*Abs(a)**b": "pow(a, b)",
        "Piecewise((1, a > b), (0, True))": "greater(a, b)",
        "Piecewise((a, a > b), (b, True))": "max(a, b)",
        "Piecewise((a**2, a > 1), (b, True))": "greater(a, 1.0) * square(a) + (1.0 - greater(a, 1.0)) * b",
        "Piecewise((sqrt(a), a >= 0), (nan, True))": "root(a)",
        "Piecewise((nan, a < 0), (sqrt(a), True))": "root(a)",
        "Piecewise((nan, a*(b - floor(b)) < 0), (a**b, True))": "powreal(a, b)",
        "Piecewise((nan, a < 0), (nan, log(a) - 2 < 0), (sqrt(log(a) - 2), True))": "root(ln(a) - 2.0)",
        "Piecewise((0, a < 0), (1, sqrt(a) > b), (0, True))": "greater(root(a), b)",
        "Piecewise((log(a), a >= 1), (nan, True))": "ln(a) + 0.0 * root(a - 1.0)",
        "Piecewise((nan, b < 0), (sqrt(a), True))": "root(a) + 0.0 * root(b)",
        "Piecewise(((sqrt(a) > 1) + a, a >= 0), (nan, True))": "greater(root(a), 1.0) + a + 0.0 * root(a)",
        "Piecewise((nan, a < -1), (2*asinh(a/(2*sqrt(1 + a))), True))": "log1p(a)",
        "Heaviside(a) + Heaviside(b, 0)": "0.5 * (1.0 + sign(a)) + greater(b, 0.0)",
        "Heaviside(a, 1)": "greater(1.0, sign(0.0 - a))",
        "cbrt(a) + pow(a, 2)": "powreal(a, 0.3333333333333333) + square(a)",
    },
}
CASES = [(dialect, text, want) for dialect, cases in SPELLINGS.items() for text, want in cases.items()]


@pytest.mark.parametrize(("dialect", "text", "want"), CASES)
def test_a_spelling_maps_to_exact_rows(dialect, text, want):
    assert to_text(parse(text, None, DIALECTS[dialect])) == want


REFUSED = [
    ("native", "a ^ 2", "unexpected character '^'"),
    ("native", "a == b", "of comparisons one of < > <= >="),
    ("native", "0 < a < 1", "of comparisons one of < > <= >="),
    ("native", "a = b", "not an expression"),
    ("pysr-2", "clamp(a, 1, -1)", "clamp is read between two numbers"),
    ("pysr-2", "fma(a, b)", "fma takes 3 arguments, got 2"),
    ("operon", "ceil(a)", "'ceil(a)': the operator table has no row"),
    ("sympy", "Piecewise((1, a > b))", "expected Piecewise to end with (value, True)"),
    ("sympy", "Piecewise((1/a, a > b), (0, True))", "a branch of Piecewise with div"),
    ("sympy", "Piecewise((nan, a <= 0), (b, True))", "nan where two sides are equal"),
    ("sympy", "Piecewise((a, a > 0), (nan, True))", "nan where two sides are equal"),
    ("sympy", "Heaviside(a, 0.25)", "Heaviside has a row"),
    ("sympy", "floor(a)", "'floor' has no row"),
    ("pysr-0.3", "plus(a, sqrt(b))", "'sqrt(b)': the operator table has no row"),
    ("pysr-0.3", "a ^ 2", "unexpected character '^'"),
    ("pysr-0.3", "gamma(a)", "'gamma(a)': the operator table has no row"),
    ("pysr-0.3", "plus(a)", "add takes 2 arguments, got 1: 'plus(a)'"),
    ("pysr-0.3", "plus(a, NaN)", "'NaN' is no variable"),
    ("pysr-0.6", "plus(a, b)", "unknown operator 'plus'"),
    ("pysr-0.6", "b * -0.5 ^ a", "'-0.5 ^ a' can be read in two ways"),
    ("pysr-0.6", "log2_abs(a)", "no row"),
    ("pysr-2", "-a ^ 2", "can be read in two ways"),
    ("pysr-2", "-(a) ^ 2", "can be read in two ways"),
    ("pysr-2", "a ** 2", "powers are written ^ here"),
    ("pysr-2", "sqrt(a, b)", "sqrt takes 1 argument, got 2"),
    ("pysr-2", "pow(a, b)", "unknown operator 'pow'"),
    ("pysr-2", "floor(a)", "'floor(a)': the operator table has no row"),
    ("operon", "(max((a), (b)))", "swaps fmin and fmax"),
    ("operon", "fmin(a, b)", "swaps fmin and fmax"),
    ("operon", "(nan * a)", "'nan' is no variable"),
    ("sympy", "pi * a", "'pi' is no variable"),
    ("sympy", "Max()", "Max takes"),
    ("sympy", "Heaviside()", "Heaviside takes 1 or 2 arguments, got 0"),
    ("sympy", "Heaviside(a, b, 1)", "Heaviside takes 1 or 2 arguments, got 3"),
    ("sympy", "a ^ 2", "unexpected character '^'"),
]


@pytest.mark.parametrize(("dialect", "text", "message"), REFUSED)
def test_what_has_no_exact_row_is_refused_and_named(dialect, text, message):
    with pytest.raises(ParseError) as caught:
        parse(text, None, DIALECTS[dialect])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("exponent", range(-MAX_POWER, MAX_POWER + 1))
def test_integer_powers_are_products(exponent):
    node = integer_power(name("a"), exponent)
    x = np.array([[-1.7, -0.3, 0.6, 2.2]])
    got = Rule("power", node, {}, {"a": None}).evaluate({"a": x})
    np.testing.assert_allclose(np.broadcast_to(got, x.shape), x ** float(exponent), rtol=1e-13)


@pytest.mark.parametrize("text", ["a" + "^11)" * 7, "a" + "^16)" * 30])
def test_powers_of_powers_stay_within_the_limits(text):
    """Written out they would have thousands of nodes, or more levels than can be read back."""
    with pytest.raises(ParseError, match="nodes"):
        parse("(" * text.count(")") + text, None, DIALECTS["pysr-2"])


RULES = {
    "rnnprop": "c0 * tanh(m / c1) + c2 * ema(g, 0.95) - square(g) / cube(m + 1e-8)",
    "temporal": "cummax(powabs(g, c0) - 2.0) - lag(ema_hat(g, 0.5), 1) * lag(m, 3) / cumsum(g)",
    "signs": "-(-2.0 * g) - -m + -(g - m)",
} | {
    op: f"{op}(g)" if row.arity == 1 else f"{op}(g, m)" for op, row in OPERATORS.items() if op not in TEMPORAL
}


@pytest.mark.parametrize("text", RULES.values(), ids=RULES)
def test_what_sympy_prints_reads_back_with_the_same_meaning(text):
    constants = {c: v for c, v in {"c0": 0.25, "c1": -1.5, "c2": 3.0}.items() if c in text}
    rule = Rule.from_text(text, constants, {"m": None})
    generator = np.random.default_rng(0)
    inputs = {key: generator.normal(size=(6, 19)) for key in ("g", "m")}
    for printed in (str(build(rule.expression)), emit(rule).splitlines()[0]):
        again = Rule("again", parse(printed, None, DIALECTS["sympy"]), constants, {"m": None})
        np.testing.assert_allclose(again.tried(inputs), rule.tried(inputs), rtol=1e-13)


def test_operon_trees_keep_their_shape_and_unknown_kinds_are_refused():
    tree = ["add", ["sqrtabs", ["mul", ["c", 2.5e-6], ["x", 0]]], ["powabs", ["x", 1], ["c", 0.5]]]
    assert operon_tree(tree) == ["add", ["sqrt", tree[1][1]], ["powabs", ["x", 1], ["c", 0.5]]]
    for kind in ("fmin", "fmax", "acos", "ceil", "no_such_kind"):
        with pytest.raises(L2OError, match=f"Operon's '{kind}'"):
            operon_tree(["add", ["x", 0], [kind, ["x", 0]]])


def test_every_row_a_dialect_names_exists():
    """A misspelt row would only show when a file uses it."""
    a = name("a")
    for dialect in DIALECTS.values():
        for spelling, build_call in dialect.calls.items():
            for args in ((a,), (a, a)):
                try:
                    node = build_call(*args)
                except L2OError as error:
                    assert "unknown operator" not in str(error), spelling
                else:
                    inner = node.op in ("floor", "Eq")  # of conditions of Piecewise only
                    assert inner or node in (a, number(1.0)) or node == call(node.op, *node.args)
