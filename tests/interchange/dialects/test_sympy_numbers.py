"""SymPy computes a rule's numbers by every way it has, and what goes there comes back."""

import math
import pickle
import re
import warnings

import numpy as np
import pytest

from common.errors import L2OError
from interchange.dialects.sympy_tree import from_sympy
from interchange.dialects.table import DIALECTS
from interchange.emit import TARGETS
from interchange.language import expression as ex
from interchange.language.operators import OPERATORS, POINTWISE
from interchange.language.parse import parse
from interchange.rule.rule import Rule

sympy = pytest.importorskip("sympy")
FAST, RULES = 40, 500  # the first hold every operator
PARTS = [
    range(FAST),
    *(pytest.param(range(k, k + 92), marks=pytest.mark.slow) for k in range(FAST, RULES, 92)),
]
NASTY = (0.0, 1.0, -1.0, 1e6, -1e6, 1e-12, -8.0, 2.0, -0.5, 0.3)


def random_rule(index: int) -> Rule:
    """Up to 4 levels over all pointwise operators, one at the root after the other."""
    rng = np.random.default_rng(index)

    def tree(depth, op=""):
        if not op and (depth == 1 or rng.random() < 0.2):
            kind = rng.integers(4)
            names = ("x", "y", "c0")
            if kind < 3:
                return ex.name(names[kind])
            return ex.number(float(rng.choice((0.5, 1.0, 2.0, -1.5, 3.0, 0.1))))
        op = op or str(rng.choice(POINTWISE))
        return ex.call(op, *(tree(depth - 1) for _ in range(OPERATORS[op].arity)))

    node = tree(4, POINTWISE[index % len(POINTWISE)])
    constants = {"c0": float(rng.choice((0.25, -1.5, 0.1234567890123456)))}
    return Rule("random", node, constants, {"x": None, "y": None}, float(rng.choice((1.0, -0.1))))


def points(index: int, count: int = 50) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1000 + index)
    x, y = (np.where(rng.random(count) < 0.5, rng.choice(NASTY, count), rng.normal(size=count)) for _ in "xy")
    x[: len(NASTY)] = NASTY[:count]  # 0, negative and large ones whatever is drawn
    return {"x": x, "y": y}


def oracle(rule: Rule, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Values, and where they are finite on the way and well conditioned, so that any order will do."""
    known, rng = {**inputs, **rule.constants}, np.random.default_rng(0)

    def value(node, dtype, nudge):
        if node.op == "number":
            return dtype(node.value), True
        if node.op == "name":
            return np.asarray(known[node.name], dtype), True
        args = [value(arg, dtype, nudge) for arg in node.args]
        out = OPERATORS[node.op].numpy(*(arg for arg, _ in args))
        fine = np.isfinite(out) & (np.abs(out) < 1e100)
        if nudge:  # every node errs
            out = out * (1.0 + nudge * rng.choice((-1.0, 1.0), np.shape(out)))
        for _, sure in args:
            fine = fine & sure
        if node.op == "sign" and node.args[0].args:  # what underflows has a sign elsewhere
            fine = fine & (args[0][0] != 0)
        if node.op == "log":  # of abs(a) + 1e-8, which is 1 to few digits
            fine = fine & (np.abs(np.abs(args[0][0]) - 1.0) > 1e-5)
        if node.op.startswith("pow") and node.args[1].args:  # 0 to what underflows
            fine = fine & ((args[0][0] != 0) | (args[1][0] != 0))
        if node.op in ("greater", "max", "min"):
            fine = fine & (np.abs(args[0][0] - args[1][0]) != 0)
        return out, fine

    with np.errstate(all="ignore"):
        exact, fine = value(rule.expression, np.float64, 0.0)
        for nudge in (1e-13, 1e-13, 1e-13):
            fine = fine & (
                np.abs(value(rule.expression, np.float64, nudge)[0] - exact) <= 1e-9 * np.abs(exact)
            )
    shape = inputs["x"].shape
    return rule.scale * np.broadcast_to(exact, shape), np.broadcast_to(fine, shape)


def compiled(expression, modules):
    symbols = [next((s for s in expression.free_symbols if s.name == name), name) for name in ("x", "y")]
    return sympy.lambdify(symbols, expression, modules)


def numbers(function, inputs, one_by_one=False):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if not one_by_one:
            return np.broadcast_to(np.asarray(function(inputs["x"], inputs["y"]), float), inputs["x"].shape)
        out = []
        for x, y in zip(inputs["x"], inputs["y"], strict=True):
            try:
                out.append(float(function(float(x), float(y))))
            except (
                OverflowError,
                ZeroDivisionError,
                ValueError,
            ):  # Python's own answer where a float is none
                out.append(None)
        return out


def check(rule, how, got, want, fine):
    for have, expected, sure in zip(got, want, fine, strict=True):
        if sure and have is not None:
            assert have == pytest.approx(expected, rel=1e-8, abs=1e-100), (str(rule), how)


def test_the_fast_part_has_every_operator():
    assert len(POINTWISE) <= FAST


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_lambdify_and_text_give_the_rules_numbers(part):
    compared, poles = 0, 0
    for index in part:
        rule, inputs = random_rule(index), points(index)
        want, fine = oracle(rule, inputs)
        compared += fine.sum()
        if not fine.any():
            continue
        expression = rule.sympy(values=True)
        check(rule, "expression", numbers(compiled(expression, ["scipy", "numpy"]), inputs), want, fine)
        check(rule, "expression", numbers(compiled(expression, "math"), inputs, one_by_one=True), want, fine)
        try:
            text = sympy.sympify(TARGETS["sympy"].emit(rule))
        except ZeroDivisionError:  # of 0 to a negative power, of numbers alone
            poles += 1
            continue
        if text.has(sympy.zoo):  # SymPy divides by what it takes for 0, and says so
            poles += 1
            continue
        check(rule, "text", numbers(compiled(text, ["scipy", "numpy"]), inputs), want, fine)
        again = Rule("again", from_sympy(expression), features={"x": None, "y": None})
        check(rule, "again", oracle(again, inputs)[0], want, fine)
    assert poles < 3 and compared > 0.35 * 50 * len(part)


@pytest.mark.parametrize(
    "text",
    [
        "greater(exp(5000.0), x)",
        "min(x, sinh(-5000.0))",
        "y + x / cosh(2000.0)",
        "atan(1 / (y * log(0.0) * exp(4000.0)))",
        "cube(greater(log1p(cbrt(x) - 7.0), cummax(log1p(log1p(y)))))",
        "-square(greater(ema(ln(x), 0.5), ln(y)))",
        "y / powreal(x, -1.0)",
        "y / sigmoid(3.0) / powabs(x, -1.0)",
        "y / aq(1.0, x) + 1.0 / softsign(1.0)",
        "log1p(exp(abs(logabs(x))))",
        "-0.1 * log1p(exp(abs(logabs(x))))",
        "-softsign(powabs(x, -30.0 * square(y)))",
        "powreal(x, sigmoid(0.5)) + relu(pow(-1.0, -1.0) + 1.0) * y",
        "powreal(softsign(x), erf(log(0.5))) + log1p(powreal(-0.1, (0.5 - 0.1) / greater(0.0, 0.5)))",
        "powreal(x, cbrt(-1.0) / y)",
        "powreal(x, greater(1.0, 0.0)) * powreal(-1.0, y)",
        "root(sign(x)) + ln(sign(y))",
        "-log1p(exp(x)) - 3.0 * log1p(exp(y))",
        "powreal(y, cube(1e200))",
        "powreal(pow(y, x), 2.9)",
        "x / -0.0",
        "square(sigmoid(x)) / aq(x, y)",
        "sign(sqrt(-0.0)) * powreal(aq(-0.0, x), y / 2.0)",
    ],
)
def test_what_no_float_holds_and_comparisons_of_pieces_come_back(text):
    """SymPy has oo for the former, which is no number of the language, and errs over ITE of the latter.

    Where a rule is infinite, its formula in other words is nan.
    """
    rule = Rule("odd", parse(text), features={"x": None, "y": None})
    inputs = {name: a.reshape(10, 5) for name, a in points(3).items()}
    emitted, tree = TARGETS["sympy"].emit(rule), rule.sympy()
    assert not re.search(r"\boo\b", emitted) and not tree.has(sympy.oo)
    assert sympy.latex(tree) and sympy.pretty(tree) and sympy.srepr(tree)
    with np.errstate(all="ignore"):
        want = rule.evaluate(inputs)
        for again in (parse(emitted.splitlines()[0], None, DIALECTS["sympy"]), from_sympy(tree)):
            got = Rule("again", again, features=rule.features).evaluate(inputs)
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("text", ["x * root(-1.0)", "ema(root(-1.0), 0.9) + x"])
def test_a_rule_that_is_nan_everywhere_is_not_exported(text):
    rule = Rule("none", parse(text), features={"x": None})
    with pytest.raises(L2OError, match="none: expected a rule with a value somewhere, got one that is nan"):
        TARGETS["sympy"].emit(rule)


@pytest.mark.parametrize(
    "text",
    [
        "root(ema(root(x), 0.9))",
        "ln(cumsum(log1p(x)))",
        "root(mean(powreal(x, 0.5)))",
        "greater(ema(greater(root(x), y), 0.9), 0.5)",
        "powreal(ema_hat(greater(x, cummax(y)), 0.9), x)",
        "ln(ema(ln(ema(1.0, 0.999)), 0.95))",
    ],
)
def test_domains_within_operators_by_name_are_not_said_and_come_back(text):
    """SymPy cannot fold the cases of one domain within the condition of another."""
    emitted = TARGETS["sympy"].emit(Rule("inner", parse(text), features={"x": None, "y": None}))
    assert parse(emitted.splitlines()[0], None, DIALECTS["sympy"]) == parse(text)
    assert sympy.sympify(emitted).free_symbols or "x" not in text


PRINTERS = (
    "ccode", "cxxcode", "glsl_code", "jscode", "julia_code", "maple_code", "mathematica_code",
    "mathml", "octave_code", "pycode", "rcode", "rust_code", "latex", "pretty", "sstr", "srepr",
)  # fmt: skip


@pytest.mark.parametrize("printer", PRINTERS)
@pytest.mark.parametrize("text", ["log(x)", "sqrt(x)", "pow(x, y)"])
def test_functions_of_sympys_names_are_printed_with_our_meaning(text, printer):
    rule = Rule("named", parse(text), features={"x": None, "y": None})
    show, expression = getattr(sympy, printer), rule.sympy()
    assert show(expression) == show(expression.plain()) != show(parse_by_sympy(text))


def parse_by_sympy(text):
    return sympy.sympify(text, locals={name: sympy.Symbol(name, real=True) for name in "xy"})


@pytest.mark.parametrize("text", ["square(2.0 * x)", "cube(x * y)", "square(x / y)", "square(square(x)) + y"])
def test_derivatives_of_powers_of_products_are_numbers_at_zero(text):
    x = sympy.Symbol("x", real=True)
    slope = Rule("power", parse(text), features={"x": None, "y": None}).sympy().diff(x)
    assert compiled(slope, "math")(0.0, 0.5) == 0.0


@pytest.mark.parametrize("modules", ["numpy", "math", "mpmath"])
@pytest.mark.parametrize(
    ("text", "sure"),
    [
        ("powreal(0.9, x / 3.0)", True),  # of a number only its sign tells where a power is real
        ("powreal(0.9, 0.1 * x + 1.0)", True),
        ("powreal(-1.5, x)", True),
        ("powreal(-1.5, x / 3.0)", False),
        ("square(x / x)", True),  # powers of quotients are not cancelled
        ("cube(1e-100 * x) * 1e300", True),
    ],
)
def test_lambdify_gives_the_rules_numbers_at_integers(text, sure, modules):
    rule, x = Rule("whole", parse(text), features={"x": None}), np.arange(1.0, 40.0)
    function = sympy.lambdify([sympy.Symbol("x", real=True)], rule.sympy(), modules)
    with np.errstate(invalid="ignore"):
        got = [float(function(np.float64(a) if modules == "numpy" else float(a))) for a in x]
        np.testing.assert_allclose(got, rule.evaluate({"x": x[None]})[0], rtol=1e-12)
    assert np.isfinite(got).all() == sure


@pytest.mark.parametrize("op", ["tanh", "exp", "sign", "abs", "relu", "sigmoid", "cube", "log"])
def test_what_is_nan_at_a_number_is_so_at_once(op):
    tree = Rule("inner", parse(f"{op}(root(x))"), features={"x": None}).sympy()
    assert tree.subs(sympy.Symbol("x", real=True), -1).evalf() is sympy.nan


def test_expressions_go_to_other_processes():
    tree = Rule("copied", parse("log(sign(ema(x, 0.9)))"), features={"x": None}).sympy()
    assert pickle.loads(pickle.dumps(tree)) == tree


@pytest.mark.parametrize("modules", ["numpy", "math", "mpmath"])
@pytest.mark.parametrize("scale", [1.0, -0.1])
@pytest.mark.parametrize(
    "text",
    [
        "y / aq(1.0, x)",
        "aq(y, x) / aq(1.0, x)",
        "y / powabs(x, -1.0)",
        "y / powreal(x, -2.0)",
        "root(7.0) / softsign(exp(x))",
        "2.0 - y / sigmoid(x)",
    ],
)
def test_what_is_a_fraction_is_divided_by_in_parentheses(text, scale, modules):
    rule = Rule("fraction", parse(text), features={"x": None, "y": None}, scale=scale)
    inputs = {"x": np.array([0.5, -2.5, 3.0]), "y": np.array([0.25, 7.0, -1.5])}
    function = compiled(rule.sympy(values=True), modules)
    got = numbers(function, inputs, one_by_one=modules != "numpy")
    assert got == pytest.approx(rule.evaluate({k: a[None] for k, a in inputs.items()})[0], rel=1e-12)


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_evalf_subs_and_mpmath_give_the_rules_numbers(part):
    for index in part:
        rule, inputs = random_rule(index), points(index, 12 if index < FAST else 50)
        want, fine = oracle(rule, inputs)
        expression = rule.sympy(values=True)
        by_mpmath = compiled(expression, "mpmath")
        for x, y, expected, sure in zip(inputs["x"], inputs["y"], want, fine, strict=True):
            if not sure:
                continue
            at = {
                sympy.Symbol(name, real=True): sympy.Float(value, 17) for name, value in (("x", x), ("y", y))
            }
            for got in (
                expression.subs(at).evalf(),
                expression.evalf(subs=at),
                by_mpmath(float(x), float(y)),
            ):
                assert float(got) == pytest.approx(expected, rel=1e-8, abs=1e-100)


@pytest.mark.parametrize("op", POINTWISE)
def test_derivatives_are_the_tables_at_kinks_too(op):
    row = OPERATORS[op]
    names = ("x", "y")[: row.arity]
    rule = Rule("one", ex.call(op, *map(ex.name, names)), {}, {"x": None, "y": None})
    grid = np.array([0.0, -2.0, 0.5, 3.0, 1.0])
    x, y = (part.ravel() for part in np.meshgrid(grid, grid + 0.25 * (op not in ("max", "min"))))
    args = [x, y][: row.arity]
    with np.errstate(all="ignore"):
        out = row.numpy(*args)
        slopes = row.derivative(*args, out)
    expression = rule.sympy()
    for name, slope in zip(names, slopes, strict=True):
        function = compiled(expression.diff(sympy.Symbol(name, real=True)), ["scipy", "numpy"])
        got = numbers(function, {"x": x, "y": y})
        fine = np.isfinite(out) & np.isfinite(np.broadcast_to(slope, x.shape))
        np.testing.assert_allclose(got[fine], np.broadcast_to(slope, x.shape)[fine], rtol=1e-9, atol=1e-12)


def test_outside_a_domain_every_way_says_nan():
    for text in ("root(x)", "ln(x)", "powreal(x, 0.5)", "powreal(x, y)", "log1p(x - 1.0)", "abs(ln(x))"):
        rule = Rule.from_text(text, features={"x": None, "y": None})
        printed = sympy.sympify(TARGETS["sympy"].emit(rule))
        for expression in (rule.sympy(), printed):
            for modules in ("numpy", "math", "mpmath"):
                with np.errstate(all="ignore"):
                    at = (np.float64(-2.0), np.float64(0.5)) if modules == "numpy" else (-2.0, 0.5)
                    assert math.isnan(compiled(expression, modules)(*at)), (text, modules)
            at = {s: -2.0 if s.name == "x" else 0.5 for s in expression.free_symbols}
            assert math.isnan(expression.subs(at).evalf())


@pytest.mark.parametrize("op", [op for op, row in OPERATORS.items() if not row.numpy])
def test_temporal_and_tensor_operators_stay_names_and_no_number_goes_through(op):
    more = {"lag": ", 3", "ema": ", 0.9", "ema_hat": ", 0.9", "by_matrix": ", 2.0"}.get(op, "")
    rule = Rule.from_text(f"{op}(g{more}) * 2.0")
    expression = rule.sympy()
    assert str(expression).startswith(("2*", op)) and op in str(expression)
    assert from_sympy(expression) in (rule.expression, Rule.from_text(f"2.0 * {op}(g{more})").expression)
    for modules in ("numpy", "math", "mpmath"):
        with pytest.raises(L2OError, match=f"{op}.* has memory or sees a whole tensor"):
            compiled(expression, modules)


WRITTEN = {
    "Piecewise((nan, (x < 0) | (y < 0)), (sqrt(x) * sqrt(y), True))": "root(x) * root(y)",
    "Piecewise((sqrt(x) * sqrt(y), (x >= 0) & (y >= 0)), (nan, True))": "root(x) * root(y)",
    "Piecewise((x, x > 0), (x/10, True))": "greater(x, 0.0)*x + (1.0 - greater(x, 0.0))*(1.0 / 10.0 * x)",
    "Abs(x)**1.5": "powabs(x, 1.5)",
    "sqrt(x) + x**Rational(1, 3)": "root(x) + powreal(x, 1.0 / 3.0)",
    "sqrt(x**2 + 1)": "sqrt(1.0 + square(x))",
    "log(Abs(x)) - log(y)": "",
    "Max(x, y, 0)": "",
    "Heaviside(x)": "0.5 * (1.0 + sign(x))",
    "Piecewise((1, x > y), (0, True))": "greater(x, y)",
    "Piecewise((x, x < 1), (1, True))": "",
    "exp(x)*x**-2": "",
    "pi*x": "3.141592653589793 * x",
}


@pytest.mark.parametrize(("text", "want"), WRITTEN.items())
def test_what_people_write_is_read(text, want):
    x, y = sympy.symbols("x y", real=True)
    rule = Rule.from_sympy(sympy.sympify(text, locals={"x": x, "y": y}), features={"x": "g", "y": None})
    if want:
        assert Rule.from_text(want, features={"x": None, "y": None}).expression == rule.expression
    grid = np.array([[-3.0, -0.5, 0.5, 4.0]])
    with np.errstate(all="ignore"):
        values = compiled(sympy.sympify(text, locals={"x": x, "y": y}), ["numpy"])(grid, grid[:, ::-1])
    got = np.broadcast_to(rule.evaluate({"x": grid, "y": grid[:, ::-1]}), grid.shape)
    np.testing.assert_allclose(got, values, rtol=1e-13)


def test_constants_and_features_of_a_sympy_rule():
    x, k = sympy.symbols("x k")
    rule = Rule.from_sympy(-k * sympy.tanh(x), {"x": "ema(g, 0.9)"}, {"k": 0.5}, name="mine", scale=0.1)
    assert (
        rule.name == "mine"
        and rule.constants == {"k": 0.5}
        and str(rule.inlined()) == "-(k * tanh(ema(g, 0.9)))"
    )


REFUSED = [
    (lambda x: sympy.gamma(x), "has no gamma: gamma"),
    (lambda x: sympy.floor(x) + 1, "floor has no row"),
    (lambda x: sympy.Piecewise((1 / x, x > 1), (0, True)), "a branch of Piecewise with div"),
    (lambda x: sympy.Piecewise((1, (x > 1) & (x < 2)), (0, True)), "expected one comparison"),
    (lambda x: sympy.Piecewise((1, x > 1)), "expected Piecewise to end"),
    (lambda x: x + sympy.I, "real finite numbers, got I"),
    (lambda x: sympy.zoo + x, "real finite numbers, got zoo"),
    (lambda x: x + sympy.Symbol("y"), "unknown name 'y'"),
    (lambda x: "x + 1", "expected a SymPy expression, got str"),
    (lambda x: sympy.Integral(x, x), "has no Integral"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_no_row_says_is_refused_and_named(make, message):
    with pytest.raises(L2OError, match=message) as caught:
        Rule.from_sympy(make(sympy.Symbol("x")), {"x": "g"})
    assert "\n" not in str(caught.value)


def test_the_text_brings_its_features_and_numbers_along(tmp_path):
    from interchange import import_hall_of_fame

    adam = Rule.named("adam")
    features = {"m_tilde": "ema(g, 0.9)", "v": None}
    for rule in (
        adam,
        Rule.from_text("c0 * tanh(m_tilde / 0.61) + v", {"c0": 0.123456789012345678}, features),
    ):
        (tmp_path / "rule.txt").write_text(TARGETS["sympy"].emit(rule))
        (again,) = import_hall_of_fame(tmp_path / "rule.txt")
        assert again.provenance["dialect"] == "sympy" and again.features == rule.features
        g = np.random.default_rng(0).normal(size=(6, 5))
        inputs = {"g": g, **({"v": g * 2.0} if "v" in rule.features else {})}
        np.testing.assert_allclose(again.evaluate(inputs), rule.evaluate(inputs), rtol=1e-14)
