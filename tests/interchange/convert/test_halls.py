"""Halls of fame and Operon's models as rules: formats, dialects guessed, names, provenance, broken lines."""

import hashlib
import logging
import math

import numpy as np
import pytest

from common.errors import L2OError
from interchange import import_hall_of_fame, import_operon_front
from interchange.language.expression import name, to_text
from interchange.rule.rule import Rule

OLD = """Complexity|MSE|Equation
1|2.5e-2|-0.5
5|1.25e-2|mult(plus(x0, x1), -0.25)
6|1e-2|pow(relu(x0), sqrtm(0.5))

"""
MIDDLE = """Complexity|MSE|Equation
3|0.25|(x0 ^ 0.5)
4|0.125|(x0 * sqrt_abs(x1))
"""
NEW = """Complexity,Loss,Equation
1,0.5,"x0"
4,0.25,"max(x0 * x1, 2.0)"
6,0.125,"x0 ^ 2 - (x1 * -1.5)"
"""
OPERON = """((-0.550909) + (0.186122 * X1))
(X1 / (sqrt(1 + ((2.0 * X2)) ^ 2)))

"""
OPERON_CSV = """length,mean_squared_error,model
3,0.25,"(0.5 * X1)"
7,0.125,"(abs(X2) ^ (1.5 * X1))"
"""
PLAIN = "0.5 * tanh(a)\n-b / 3.0\n"
FILES = {
    "hall_of_fame.csv": (OLD, "pysr-0.3", [2, 3, 4], [0.025, 0.0125, 0.01], [1, 5, 5]),
    "hall_of_fame.csv.bkup": (MIDDLE, "pysr-0.6", [2, 3], [0.25, 0.125], [3, 4]),
    "hall_of_fame.csv.bak": (NEW, "pysr-2", [2, 3, 4], [0.5, 0.25, 0.125], [1, 5, 6]),
    "models.txt": (OPERON, "operon", [1, 2], [None, None], [5, 5]),
    "models.csv": (OPERON_CSV, "operon", [2, 3], [0.25, 0.125], [3, 5]),
    "plain.txt": (PLAIN, "native", [1, 2], [None, None], [4, 4]),
}


@pytest.fixture
def write(tmp_path):
    def put(text: str, name: str = "file.csv"):
        (tmp_path / name).write_text(text, newline="")
        return tmp_path / name

    return put


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_formats_and_dialects_are_told_by_header_and_spelling(file, newline, write):
    text, dialect, lines, losses, sizes = FILES[file]
    path = write(text.replace("\n", newline), file)
    rules = import_hall_of_fame(path)
    assert [rule.provenance["line"] for rule in rules] == lines
    assert [rule.provenance.get("loss") for rule in rules] == losses
    assert [rule.complexity for rule in rules] == sizes
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert {(r.provenance["file"], r.provenance["dialect"]) for r in rules} == {(file, dialect)}
    assert {rule.provenance["file_sha256"] for rule in rules} == {digest}
    for rule, again in zip(rules, import_hall_of_fame(path, dialect=dialect), strict=True):
        assert again == rule == Rule.from_json(rule.to_json())


def test_constants_are_named_and_variables_are_features_with_or_without_expressions(write):
    _, rule, power = import_hall_of_fame(write(OLD), scale=0.1)
    assert to_text(rule.expression) == "(x0 + x1) * c0" and rule.constants == {"c0": -0.25}
    assert rule.features == {"x0": None, "x1": None} and rule.scale == 0.1
    assert to_text(power.expression) == "pow(relu(x0), sqrt(c0))" and power.features == {"x0": None}
    x = np.array([[1.0, -2.0]])
    np.testing.assert_allclose(rule.evaluate({"x0": x, "x1": 2.0 * x}), 0.1 * -0.25 * 3.0 * x, rtol=1e-15)
    with pytest.raises(L2OError, match="'x0' has no definition"):
        rule.program()
    _, optimizer, _ = import_hall_of_fame(write(OLD), features={"x0": "g", "x1": "lag(g, 1)"})
    assert to_text(optimizer.inlined()) == "(g + lag(g, 1)) * c0" and optimizer.state_floats == 1
    for features, message in (
        ({"x7": "g"}, "feature 'x7': no equation has that variable; they have: x0, x1"),
        ({"x0": "g +"}, "feature 'x0': not an expression"),
        ({"x0": "x1"}, "feature 'x0': unknown name 'x1'"),
    ):
        with pytest.raises(L2OError, match=message):
            import_hall_of_fame(write(OLD), features=features)


def test_reserved_names_become_columns_unless_they_are_meant(write, caplog):
    path = write("Complexity,Loss,Equation\n5,0.1,g * t + theta\n")
    with caplog.at_level(logging.WARNING):
        (rule,) = import_hall_of_fame(path)
    assert to_text(rule.expression) == "g_column * t_column + theta_column"
    assert "variable 't' is called 't_column' in the rules" in caplog.text
    (rule,) = import_hall_of_fame(path, features={"g": "g", "t": "t / 1000.0", "theta": "theta"})
    assert to_text(rule.expression) == "g * t_column + theta"
    assert {name: to_text(tree) for name, tree in rule.features.items()} == {"t_column": "t / 1000.0"}


def test_another_complexity_and_lost_digits_are_one_warning(write, caplog):
    with caplog.at_level(logging.WARNING):
        import_hall_of_fame(write(OLD))
        import_hall_of_fame(write(NEW))
    first, second = (record.message for record in caplog.records)
    assert "1 of 3 rules have another number of nodes than the file says" in first
    assert first.endswith("the first in line 4: 5, there 6")
    assert "1 of 3 rules" in second and "line 3: 5, there 4" in second
    caplog.clear()
    import_hall_of_fame(write(MIDDLE))
    import_hall_of_fame(write(OPERON_CSV))
    assert not caplog.records
    import_hall_of_fame(write("((0.000000 * X1) ^ 2)\n"))
    assert "some constants are 0; print models with more digits" in caplog.text


# What may mean two things, and the dialects that read it.
AMBIGUOUS = {
    "pow with and without a sign": ("Complexity|MSE|Equation\n3|0.1|pow(x0, x1)\n", "pysr-0.3 or pysr-0.6"),
    "one per line, sqrt protected or not": ("X1 + 1.0\nsqrt(abs(X1))\n", "native or operon or sympy"),
    "a root alone": ("sqrt(X1)\n", "native or operon or sympy or gplearn"),
    "refused by Operon": ("-0.1*g**2\n", "native or sympy"),
    "a csv without a program's header": ("expression,loss\nlog(X1 + 1),0.1\n", "native or operon or sympy"),
    "prefix calls": ("div(X0, add(X1, -0.5))\n", "native or sympy or gplearn"),
    "read by one, not surely its own": ("add(sig(X0), X1)\n", "gplearn"),
    "beside what nobody reads": ("sqrt(X0)\nceil(X0)\n", "native or operon or sympy or gplearn"),
}


@pytest.mark.parametrize(("text", "offered"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_may_mean_two_things_asks_for_one_of_the_dialects_that_read_it(text, offered, write):
    with pytest.raises(L2OError, match=rf"program wrote it, it reads as {offered}; .*--dialect") as caught:
        import_hall_of_fame(write(text))
    assert "\n" not in str(caught.value)


def test_the_dialect_given_decides(write):
    path = write(AMBIGUOUS["pow with and without a sign"][0])
    texts = [to_text(import_hall_of_fame(path, dialect=d)[0].expression) for d in ("pysr-0.3", "pysr-0.6")]
    assert texts == ["pow(x0, x1)", "powabs(x0, x1)"]
    with pytest.raises(L2OError, match=r"^unknown dialect 'pysr' .* known: native, pysr-0\.3"):
        import_hall_of_fame(path, dialect="pysr")


BROKEN = {
    "an operator nobody knows": (OLD.replace("relu(x0)", "magic(x0)"), ":4: unknown operator 'magic'"),
    "cut off": (OLD.replace("plus(x0, x1)", "plus(x0,"), ":3: not an expression"),
    "a column too few": (OLD.replace("5|1.25e-2|", "5|"), ":3: expected 3 columns (complexity"),
    "a column too many": (OLD.replace("5|", "5|1|"), ":3: expected 3 columns"),
    "no loss": (OLD.replace("1.25e-2", "small"), ":3: mse: expected a number, got 'small'"),
    "no complexity": (OLD.replace("5|", "five|"), ":3: complexity: expected a number, got 'five'"),
    "not a number": (OLD.replace("-0.25", "Inf"), ":3: 'Inf' is no variable"),
    "a function without a row": (NEW.replace("x0 * x1", "floor(x0)"), ":3: 'floor(x0)': the operator table"),
    "a quote open": (NEW.replace('"x0"', '"x0'), ":2: not a row of a table"),
    "code": (NEW.replace('"x0"', "\"__import__('os')\""), ":2: unexpected character"),
    "a template": (NEW.replace('"x0"', '"f = #1; g = #2"'), ":2: a template expression of PySR"),
    "decimal commas": ("Complexity;Loss;Equation\n3;0,1;x0\n", ":2: loss: expected a number, got '0,1'"),
    "fmin": (OPERON_CSV.replace("(0.5 * X1)", "(min((X1), X2))"), ":2: 'min((X1), X2)': pyoperon"),
    "nobody reads it": ("tanh(a)\ntanh(\n", ":2: not an expression"),
    "both sides": ("y = 2*x0\n", ":1: expected one side of an equation, as '2*x0', got 'y = 2*x0'"),
    "both sides of a function": ("f(x0) = x0 + 1\n", ":1: expected one side of an equation, as 'x0 + 1'"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_refused_with_its_number_and_the_reason(text, message, write):
    path = write(text)
    with pytest.raises(L2OError) as caught:
        import_hall_of_fame(path, strict=True)
    assert str(caught.value).startswith(f"{path}{message}") and "\n" not in str(caught.value)


def test_one_line_that_cannot_be_read_leaves_the_others(write, caplog):
    path = write('Complexity,Loss,Equation\n1,0.5,"x0"\n3,0.2,"floor(x0)"\n4,0.1,"magic(x0)"\n2,0.3,"-x0"\n')
    with caplog.at_level(logging.WARNING):
        rules = import_hall_of_fame(path)
    assert [(rule.provenance["line"], to_text(rule.expression)) for rule in rules] == [(2, "x0"), (5, "-x0")]
    first, second, last = (record.message for record in caplog.records[:3])
    assert first.startswith(f"{path}:3: left out: 'floor(x0)': the operator table has no row")
    assert second.startswith(f"{path}:4: left out: unknown operator 'magic'")
    assert second.endswith("give its meaning with --operator NAME=EXPRESSION")
    assert "2 of 4 equations are left out (--strict refuses such a file)" in last
    with pytest.raises(L2OError, match=r":2: 'floor\(x0\)'"):
        import_hall_of_fame(write('Complexity,Loss,Equation\n3,0.2,"floor(x0)"\n'))


LIKE_THESE = {
    "semicolons": ("Complexity;Loss;Equation\n3;0.1;x0 * 2.0\n", "x0 * c0", [2.0]),
    "tabs": ("Complexity\tLoss\tEquation\n3\t0.1\tx0 * 2.0\n", "x0 * c0", [2.0]),
    "a byte order mark": ('\ufeffComplexity,Loss,Equation\n3,0.1,"x0 * 2.0"\n', "x0 * c0", [2.0]),
    "single precision": ("Complexity,Loss,Equation\n3,0.1,x0 * 1.5f-3\n", "x0 * c0", [1.5e-3]),
    "an infinite loss": ("Complexity,Loss,Equation\n3,Inf,x0 * 2.0\n", "x0 * c0", [2.0]),
    "a complexity that is no integer": ("Complexity,Loss,Equation\n3.0,0.1,x0 * 2.0\n", "x0 * c0", [2.0]),
    "a comparison": ("Complexity,Loss,Equation\n3,0.1,x0 > 0.47\n", "greater(x0, c0)", [0.47]),
    "a root below 0": ("Complexity,Loss,Equation\n3,0.1,x0 ^ 0.5\n", "powreal(x0, c0)", [0.5]),
    "Greek": ("Complexity,Loss,Equation\n3,0.1,Δx₁ * 2.0\n", "Deltax1 * c0", [2.0]),
    "a keyword": ("Complexity,Loss,Equation\n3,0.1,lambda * 2.0\n", "lambda_column * c0", [2.0]),
    "a constant's name": ("Complexity,Loss,Equation\n3,0.1,c0 * 2.0\n", "c0_column * c0", [2.0]),
    "an operator's name": ("Complexity,Loss,Equation\n3,0.1,sin(sin) * 2\n", "sin(sin_column) * c0", [2.0]),
    "names that become one": (
        "Complexity,Loss,Equation\n3,0.1,é + e + e_2 + é2\n", "e_3 + e + e_2 + e2", []
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expression", "values"), LIKE_THESE.values(), ids=LIKE_THESE)
def test_spellings_of_a_table_are_read(text, expression, values, tmp_path):
    for encoding in ("utf-8", "utf-16"):
        path = tmp_path / "hall.csv"
        path.write_bytes(text.encode(encoding))
        (rule,) = import_hall_of_fame(path)
        assert to_text(rule.expression) == expression and list(rule.constants.values()) == values
        assert rule.provenance.get("loss") == (None if "Inf" in text else 0.1)


def test_what_is_renamed_is_said_and_named_as_before_for_features(write, caplog):
    path = write("Complexity,Loss,Equation\n3,0.1,Δx * lambda\n")
    with caplog.at_level(logging.WARNING):
        (rule,) = import_hall_of_fame(path, features={"Δx": "g", "lambda": "lag(g, 1)"})
    assert "variable 'Δx' is called 'Deltax' in the rules" in caplog.text
    assert to_text(rule.inlined()) == "g * lag(g, 1)"


def test_operators_of_ones_own_are_put_in(write):
    path = write("Complexity,Loss,Equation\n3,0.1,sq(x0) * 0.5\n3,0.1,dist(x0; x1)\n".replace(";", ","))
    with pytest.raises(L2OError, match="unknown operator 'sq'"):
        import_hall_of_fame(path, strict=True)
    path = write('Complexity,Loss,Equation\n3,0.1,sq(x0) * 0.5\n3,0.1,"dist(x0, x1)"\n')
    square, distance = import_hall_of_fame(path, operators=["sq=square(x)", "dist(a, b) = abs(a - b) ** 1.5"])
    assert to_text(square.expression) == "square(x0) * c0"
    assert to_text(distance.expression) == "powabs(x0 - x1, c0)"
    for text, message in (
        ("sq", "expected NAME=EXPRESSION"),
        ("sq=square(q)", "--operator sq: unknown name 'q'; known: x, y, z"),
        ("sq=square(", "--operator sq: not an expression"),
        ("sq=x + y", "sq takes 2 arguments, got 1"),
    ):
        with pytest.raises(L2OError, match=message):
            import_hall_of_fame(path, operators=[text, "dist(a, b)=a - b"], strict=True)


def test_what_gplearns_digits_may_have_hidden_is_said(write, caplog):
    (rule,) = import_hall_of_fame(write("div(X0, sub(0.123, 0.123))\n"), dialect="gplearn")
    assert to_text(rule.expression) == "c0" and rule.constants == {"c0": 1.0}
    assert "three printed digits may put on the other side of its limit 0.001" in caplog.text
    nested = "div(max(X1, tan(0.047)), mul(neg(inv(log(add(inv(sin(-0.768)), sin(log(-0.476)))))), -0.685))\n"
    (rule,) = import_hall_of_fame(write(nested), dialect="gplearn")
    inner = math.log(abs(1 / math.sin(-0.768) + math.sin(math.log(0.476))))
    want = np.maximum(2.0, math.tan(0.047)) / (-(1.0 / inner) * -0.685)
    np.testing.assert_allclose(rule.evaluate({"X1": [[2.0]]}), want, rtol=1e-14)


def test_files_that_are_no_equations_are_one_clear_line(tmp_path, write):
    for text, message in (("", "got none"), ("Complexity|MSE|Equation\n", "got none")):
        with pytest.raises(L2OError, match=f"expected equations, {message}"):
            import_hall_of_fame(write(text))
    for end in (b"\n", b"\r", b"\r\n"):
        (tmp_path / "binary").write_bytes(b"tanh(x)" + end + b"\xff\xfe")
        with pytest.raises(L2OError, match="binary:2: expected UTF-8"):
            import_hall_of_fame(tmp_path / "binary")
    with pytest.raises(L2OError, match="cannot read"):
        import_hall_of_fame(tmp_path / "missing.csv")
    with pytest.raises(L2OError, match="table of a front"):
        import_hall_of_fame(
            write("file,complexity,loss,tasks,behind,r2,expression\nrule_000.json,1,,,c0 * x\n")
        )


def test_a_fitted_regressors_front_keeps_every_digit():
    sklearn = pytest.importorskip("pyoperon.sklearn", reason="pyoperon is not installed")
    generator = np.random.default_rng(0)
    # pyoperon 0.6.2 evaluates a model on a copy it has freed already, unless no copy is needed.
    x = np.asfortranarray(generator.normal(size=(200, 2)).astype(np.float32))
    y = (2e-6 * np.tanh(x[:, 0]) + 1e-6 * np.sqrt(np.abs(x[:, 1]))).astype(np.float32)
    symbols = "add,sub,mul,div,aq,tanh,sqrtabs,logabs,powabs,cbrt,square,constant,variable"
    settings = {"objectives": ["r2", "length"], "max_length": 15, "population_size": 100, "generations": 5}
    regressor = sklearn.SymbolicRegressor(
        allowed_symbols=symbols, optimizer_iterations=2, random_state=1, **settings
    )
    regressor.fit(x, y)
    rules = import_operon_front(regressor, features={"X1": "g"})
    front = {row["mean_squared_error"]: row["tree"] for row in regressor.pareto_front_}
    assert len(rules) == len(regressor.pareto_front_)
    assert [rule.complexity for rule in rules] == sorted(rule.complexity for rule in rules)
    values = {"X1": x[None, :, 0].astype(float), "X2": x[None, :, 1].astype(float)}
    for rule in rules:
        want = regressor.evaluate_model(front[rule.provenance["loss"]], x)
        got = np.broadcast_to(rule.evaluate({name: values[name] for name in rule.features}), (1, 200))[0]
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-3 * y.std())
        assert set(rule.features) <= {"X1", "X2"} and rule.features.get("X2") is None
        assert to_text(rule.features.get("X1", name("g"))) == "g"
