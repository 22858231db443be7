"""Fitted regressors of PySR and Operon as rules."""

from types import SimpleNamespace

import numpy as np
import pytest

from common.errors import L2OError
from interchange.language.expression import to_text
from interchange.rule.rule import Rule


class Fitted:
    """What a fitted PySRRegressor offers."""

    def __init__(self, rows, **given):
        pandas = pytest.importorskip("pandas")
        self.equations_ = pandas.DataFrame(rows, columns=["complexity", "loss", "equation"])
        self.feature_names_in_ = np.array(["Δx", "g"])
        vars(self).update(given)

    def get_best(self):
        return self.equations_.iloc[1]


ROWS = [(1, 0.5, "0.25f0"), (3, 0.1, "sq(Δx) * 1.5f-3"), (5, float("inf"), "g + floor(Δx)")]


def test_the_row_that_pysr_picks_or_another_one():
    model = Fitted(ROWS, unary_operators=["sq(x) = x^2", "floor"], binary_operators=["+"])
    rule = Rule.from_pysr(model, features={"Δx": "g", "g": "lag(g, 1)"}, scale=0.1)
    assert to_text(rule.expression) == "square(Deltax) * c0" and rule.constants == {"c0": 1.5e-3}
    assert to_text(rule.inlined()) == "square(g) * c0" and rule.scale == 0.1
    assert rule.provenance == {"engine": "pysr", "row": 1, "loss": 0.1}
    first = Rule.from_pysr(model, 0)
    assert first.constants == {"c0": 0.25} and first.provenance["row"] == 0
    with pytest.raises(L2OError, match="'floor"):
        Rule.from_pysr(model, -1)
    with pytest.raises(L2OError, match="one of the 3 rows of equations_, got 3"):
        Rule.from_pysr(model, 3)


def test_operators_are_read_from_the_model_or_given():
    model = Fitted(ROWS, operators={1: ["sq(x) = myown(x)"]})
    with pytest.raises(L2OError, match="unknown operator 'sq'"):
        Rule.from_pysr(model)
    assert to_text(Rule.from_pysr(model, operators=["sq=cube(x)"]).expression) == "cube(Deltax) * c0"
    model = Fitted([(3, 0.1, "aq(Δx, g)")] * 2, binary_operators=["aq(x, y) = x / sqrt(one(y) + y * y)"])
    assert to_text(Rule.from_pysr(model).expression) == "Deltax / root(c0 + g_column * g_column)"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("2x + 1", "not an expression"),
        ("-x^2", "can be read in two ways"),
        ("pi*x", "unknown name 'pi'"),
        ("x > 0 ? x : 0.1f0", r"unexpected character '\?'"),
    ],
)
@pytest.mark.parametrize("name", ["f", "square"])  # one whose name means something else here
def test_why_an_operator_is_not_read_and_what_to_do_is_said(name, body, reason):
    model = Fitted([(3, 0.1, f"{name}(Δx)")] * 2, unary_operators=[f"{name}(x) = {body}"])
    with pytest.raises(L2OError, match=reason) as caught:
        Rule.from_pysr(model)
    assert f"operators=['{name}=EXPRESSION']" in str(caught.value) and "\n" not in str(caught.value)
    assert f"{name}(x) = {body}" in str(caught.value)
    assert to_text(Rule.from_pysr(model, operators=[f"{name}=cube(x)"]).expression) == "cube(Deltax)"
    with pytest.raises(L2OError, match=r"unknown operator 'h'.*operators=\['h=EXPRESSION'\]"):
        Rule.from_pysr(Fitted([(3, 0.1, "h(Δx)")] * 2))


@pytest.mark.parametrize("model", [SimpleNamespace(), SimpleNamespace(equations_=[1, 2])])
def test_what_is_not_fitted_to_one_output_is_refused(model):
    with pytest.raises(L2OError, match="expected a fitted PySRRegressor of one output"):
        Rule.from_pysr(model)


def test_a_template_is_named_as_one():
    model = Fitted([(3, 0.1, "f = #1; g = #1 - 3.7e-08; C = [0.34, 0.146]")] * 2)
    with pytest.raises(L2OError, match="row 1 of equations_: a template expression of PySR, "):
        Rule.from_pysr(model)


def node(kind, value=0.0, code=0, arity=0):
    return SimpleNamespace(Type=f"NodeType.{kind}", Value=value, HashValue=code, Arity=arity)


def test_the_model_that_operon_chose_or_another_one():
    square = SimpleNamespace(Nodes=[node("Variable", 2.0, 7), node("Sqrt", arity=1)])
    line = SimpleNamespace(Nodes=[node("Variable", 1e-7, 7)])
    front = [
        {"tree": line, "mean_squared_error": 0.5},
        {"tree": square, "mean_squared_error": 0.25},
    ]
    model = SimpleNamespace(variables_={7: "X1"}, pareto_front_=front, model_=line)
    assert Rule.from_operon(model, features={"X1": "g"}).constants == {"c0": 1e-7}
    rule = Rule.from_operon(model, 1)
    assert to_text(rule.expression) == "root(X1 * c0)" or "root" in to_text(rule.expression)
    assert rule.provenance == {"engine": "operon", "loss": 0.25}
    with pytest.raises(L2OError, match="one of the 2 rows of pareto_front_, got 2"):
        Rule.from_operon(model, 2)
    with pytest.raises(L2OError, match="expected a fitted SymbolicRegressor"):
        Rule.from_operon(SimpleNamespace())
