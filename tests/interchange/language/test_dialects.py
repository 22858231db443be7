"""Other programs' spellings: exact rows of the operator table, or a refusal that names the node."""

import numpy as np
import pytest

from common.errors import L2OError
from interchange.emit.targets.to_sympy import build, emit
from interchange.language.dialects import DIALECTS, MAX_POWER, integer_power, operon_tree
from interchange.language.expression import call, name, to_text
from interchange.language.operators import OPERATORS, TEMPORAL
from interchange.language.parse import ParseError, parse
from interchange.rule.rule import Rule

# Dialect -> spelling -> the same in the rule language.
SPELLINGS = {
    "native": {"pow(a, 2) / sqrt(b)": "pow(a, 2.0) / sqrt(b)"},
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
        "sqrt(a) + lag(a, 3)": "sqrt(a) + lag(a, 3)",
    },
}
CASES = [(dialect, text, want) for dialect, cases in SPELLINGS.items() for text, want in cases.items()]


@pytest.mark.parametrize(("dialect", "text", "want"), CASES)
def test_a_spelling_maps_to_exact_rows(dialect, text, want):
    assert to_text(parse(text, None, DIALECTS[dialect])) == want


REFUSED = [
    ("native", "a ^ 2", "unexpected character '^'"),
    ("native", "a ** 2", "for powers use square"),
    ("pysr-0.3", "plus(a, sqrt(b))", "'sqrt(b)': the operator table has no row"),
    ("pysr-0.3", "a ^ 2", "unexpected character '^'"),
    ("pysr-0.3", "gamma(a)", "'gamma(a)': the operator table has no row"),
    ("pysr-0.3", "plus(a)", "add takes 2 arguments, got 1: 'plus(a)'"),
    ("pysr-0.3", "plus(a, NaN)", "'NaN' is no variable"),
    ("pysr-0.6", "plus(a, b)", "unknown operator 'plus'"),
    ("pysr-0.6", "b * -0.5 ^ a", "'-0.5 ^ a' can be read in two ways"),
    ("pysr-0.6", "log2_abs(a)", "no row"),
    ("pysr-2", "1 + sqrt(a)", "sqrt is refused: it is nan outside its domain"),
    ("pysr-2", "1 + sqrt(a)", ": 'sqrt(a)'"),
    ("pysr-2", "log(a - 1)", "log is refused"),
    ("pysr-2", "sqrt(-1.0)", "sqrt is refused"),
    ("pysr-2", "b + a ^ 2.5", "expected a literal integer as exponent"),
    ("pysr-2", "b + a ^ 2.5", ": 'a ^ 2.5'"),
    ("pysr-2", "a ^ b", "expected a literal integer as exponent"),
    ("pysr-2", "a ^ b ^ 2", ": 'a ^ b ^ 2'"),
    ("pysr-2", "a ^ 17", "expected an integer power up to 16, got 17"),
    ("pysr-2", "-a ^ 2", "can be read in two ways"),
    ("pysr-2", "-(a) ^ 2", "can be read in two ways"),
    ("pysr-2", "a ** 2", "powers are written ^ here"),
    ("pysr-2", "sqrt(a, b)", "sqrt takes 1 argument, got 2"),
    ("pysr-2", "pow(a, b)", "unknown operator 'pow'"),
    ("pysr-2", "a > b", "'>'"),
    ("pysr-2", "floor(a)", "'floor(a)': the operator table has no row"),
    ("operon", "log(a)", "log is refused"),
    ("operon", "sqrt((2.0 * a))", "sqrt is refused"),
    ("operon", "(a ^ b)", "literal integer as exponent"),
    ("operon", "(max((a), (b)))", "swaps fmin and fmax"),
    ("operon", "fmin(a, b)", "swaps fmin and fmax"),
    ("operon", "acos(a)", "'acos(a)': the operator table has no row"),
    ("operon", "(nan * a)", "'nan' is no variable"),
    ("sympy", "pi * a", "'pi' is no variable"),
    ("sympy", "a**b", "literal integer as exponent"),
    ("sympy", "Max()", "Max takes"),
    ("sympy", "a ^ 2", "unexpected character '^'"),
    ("sympy", "Heaviside(a)", "unknown operator 'Heaviside'"),
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
    for printed in (str(build(rule.expression)), emit(rule).strip()):
        again = Rule("again", parse(printed, None, DIALECTS["sympy"]), constants, {"m": None})
        np.testing.assert_allclose(again.tried(inputs), rule.tried(inputs), rtol=1e-13)


def test_operon_trees_keep_their_shape_and_unknown_kinds_are_refused():
    tree = ["add", ["sqrtabs", ["mul", ["c", 2.5e-6], ["x", 0]]], ["powabs", ["x", 1], ["c", 0.5]]]
    assert operon_tree(tree) == ["add", ["sqrt", tree[1][1]], ["powabs", ["x", 1], ["c", 0.5]]]
    for kind in ("pow", "log", "sqrt", "fmin", "fmax", "acos", "ceil", "no_such_kind"):
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
                    assert node == a or node == call(node.op, *node.args)
