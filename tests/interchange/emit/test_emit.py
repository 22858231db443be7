"""Exported rules: the files, torch's optimizer, notation. tests/parity runs them against the oracle."""

import ast
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from common.errors import L2OError
from interchange.dialects.sympy_tree import from_sympy
from interchange.dialects.table import DIALECTS
from interchange.emit import TARGETS
from interchange.emit.source import copied_source
from interchange.emit.targets.to_sympy import build
from interchange.language.expression import names
from interchange.language.operators import OPERATORS, POINTWISE
from interchange.language.parse import parse
from interchange.rule.rule import Rule
from tests.parity.rule_conformance import HAND_MADE, RNNPROP, rule_of
from tests.parity.rule_runners import load

LION = Rule.named("lion")
OPERATIONS = [Rule.from_text(f"{op}({', '.join(['g', 'theta'][: OPERATORS[op].arity])})") for op in POINTWISE]
RULES = HAND_MADE + OPERATIONS + [rule_of(index) for index in range(20)]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.expression))


@pytest.fixture
def optimizer_class():
    pytest.importorskip("torch")
    return load(RNNPROP, "torch").RuleOptimizer


def quadratic(optimizer_class, dtype=None, **settings):
    import torch

    theta = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=dtype))
    idle = torch.nn.Parameter(torch.ones(2))
    optimizer = optimizer_class([theta, idle], **settings)
    for _ in range(20):
        optimizer.zero_grad()
        (theta * theta).sum().backward()
        optimizer.step()
    return theta, idle, optimizer


def test_the_optimizer_descends_and_leaves_idle_parameters(optimizer_class):
    import torch

    theta, idle, optimizer = quadratic(optimizer_class, lr=10.0)
    assert float((theta.detach() ** 2).sum()) < 14.0 * 0.9
    assert torch.equal(idle, torch.ones(2))
    assert idle not in optimizer.state


def test_saved_state_continues_exactly_also_for_bfloat16(optimizer_class):
    import torch

    theta, idle, optimizer = quadratic(optimizer_class, dtype=torch.bfloat16)
    assert optimizer.state[theta]["slot_0"].dtype == torch.float32
    other_theta, other_idle = (torch.nn.Parameter(p.detach().clone()) for p in (theta, idle))
    other = optimizer_class([other_theta, other_idle])
    other.load_state_dict(optimizer.state_dict())
    for key, value in optimizer.state[theta].items():
        loaded = other.state[other_theta][key]
        assert loaded.dtype == value.dtype
        assert torch.equal(loaded, value)
        assert loaded.data_ptr() != value.data_ptr()


def test_sparse_gradients_and_negative_settings_are_refused(optimizer_class):
    import torch

    theta = torch.nn.Parameter(torch.ones(3))
    theta.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer_class([theta]).step()
    with pytest.raises(ValueError, match="lr >= 0"):
        optimizer_class([theta], lr=-1.0)


IMPORTS = {
    "numpy": {"math", "numpy"},
    "torch": {"torch", "warnings"},
    "tensorflow": {"keras", "tensorflow", "warnings"},
}


@pytest.mark.parametrize(("target", "allowed"), IMPORTS.items())
def test_files_import_only_their_framework(target, allowed):
    for rule in RULES:
        for node in ast.walk(ast.parse(TARGETS[target].emit(rule))):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= allowed
            assert not isinstance(node, ast.ImportFrom)


def test_only_needed_operators_are_copied_and_missing_ones_named():
    text = TARGETS["torch"].emit(LION)
    assert "def op_sign" in text
    assert "def op_tanh" not in text
    assert "def op_" not in TARGETS["numpy"].emit(Rule.from_text("g"))
    with pytest.raises(L2OError, match=r"op_nothing in interchange\.language\.operators"):
        copied_source("interchange.language.operators", ["op_nothing"])
    with pytest.raises(L2OError, match=r"interchange\.nothing"):
        copied_source("interchange.nothing", ["op_add"])


@pytest.mark.parametrize("target", ["numpy", "torch", "tensorflow"])
def test_a_rule_over_an_undefined_feature_is_refused(target):
    with pytest.raises(L2OError, match="'mean_g' has no definition"):
        TARGETS[target].emit(Rule.from_text("mean_g", features={"mean_g": None}))


@every_rule
def test_sympy_text_reads_back(rule):
    line, mark, *notes = TARGETS["sympy"].emit(rule).splitlines()
    again = Rule("again", parse(line, None, DIALECTS["sympy"]), features=rule.features)
    generator = np.random.default_rng(0)
    inputs = {name: generator.normal(size=(8, 16)) for name in ("g", "theta")}
    np.testing.assert_allclose(again.evaluate(inputs), rule.evaluate(inputs), rtol=1e-9)
    used = set(names(rule.expression)) & set(rule.features)
    assert mark.startswith("# symbolic-l2o") and len(notes) == len(used)


def test_sympy_knows_what_it_may_simplify():
    sympy = pytest.importorskip("sympy")
    g = sympy.Symbol("g", real=True)
    assert build(parse("sqrt(g)")) != sympy.sqrt(g)
    assert build(parse("tanh(g)")) == sympy.tanh(g)
    assert sympy.simplify(build(parse("g + g - g"))) == g
    with pytest.raises(L2OError, match="gamma"):
        from_sympy(sympy.gamma(g))
    with pytest.raises(L2OError, match="real"):
        from_sympy(sympy.I)


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("g", "g_t"),
        ("lag(m_tilde, 3)", r"\tilde{m}_{t - 3}"),
        ("a * -0.5", r"a_t \cdot \left(-0.5\right)"),
        ("a + -0.5 * b", r"a_t - 0.5\,b_t"),
        ("a - (b - a)", r"a_t - \left(b_t - a_t\right)"),
        ("a - -b", "a_t + b_t"),
        ("1.23456e-5 * g", r"1.235 \cdot 10^{-5}\,g_t"),
        ("a / (b + 1e-8)", r"\frac{a_t}{b_t + 10^{-8}}"),
        ("sqrt(ema_hat(square(g), 0.95))", r"\sqrt{\widehat{\operatorname{ema}}_{0.95}\left(g_t^2\right)}"),
        ("sqrt(g)", r"\sqrt{\left|g_t\right|}"),
        ("square(a + b)", r"\left(a_t + b_t\right)^2"),
        ("log(g)", r"\log\left(\left|g_t\right| + 10^{-8}\right)"),
        ("greater(a, b)", r"\left[a_t > b_t\right]"),
        ("lag(tanh(g), 2)", r"\left[\tanh\left(g_t\right)\right]_{t - 2}"),
        ("theta * t", r"\theta_t\,t"),
        ("-(-2.0 * a)", r"2\,a_t"),
        ("-a / b", r"-\frac{a_t}{b_t}"),
        ("1.0 * (a / 1)", "a_t"),
        ("2 * (3 * a)", r"6\,a_t"),
        ("pow(0.5, a)", "0.5^{a_t}"),
        ("square(square(g))", r"\left(g_t^2\right)^2"),
        ("max(mom5, 0)", r"\max\left(\mathrm{mom5}_t, 0\right)"),
        ("v_hat_x + lag(v_x_hat, 1)", r"\hat{v}_{\mathrm{x}, t} + \mathrm{v\_x\_hat}_{t - 1}"),
        ("powabs(0.000025, a)", r"\left(2.5 \cdot 10^{-5}\right)^{a_t}"),
        ("powabs(1e-8, a)", r"\left(10^{-8}\right)^{a_t}"),
        ("lag(rows, 1)", r"\left[\mathrm{rows}\right]_{t - 1}"),
        ("ema(a, 0.99999)", r"\operatorname{ema}_{0.99999}\left(a_t\right)"),
        ("ema(a, 0.123456)", r"\operatorname{ema}_{0.1235}\left(a_t\right)"),
        (
            "ema(a, max(0.99996, 1 - 1 / t))",
            r"\operatorname{ema}_{\max\left(0.99996, 1 - \frac{1}{t}\right)}\left(a_t\right)",
        ),
        ("log1p(-a - 1)", r"\log\left(1 + \left(-a_t - 1\right)\right)"),
        ("a - (b * -2 - a)", r"a_t - \left(b_t \cdot \left(-2\right) - a_t\right)"),
    ],
)
def test_latex(text, latex):
    rule = Rule("x", parse(text), features=dict.fromkeys(("a", "b", "m_tilde", "mom5", "v_hat_x", "v_x_hat")))
    assert rule.latex() == f"u_t = {latex}"
    rounded_with_its_scale = Rule.from_text("c0 * g", {"c0": -0.123456}, scale=0.01)
    assert rounded_with_its_scale.latex() == r"u_t = -0.001235\,g_t"


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("x_ - x", '<msub><mi mathvariant="normal">x_</mi><mi>t</mi></msub>'),
        ("m_hat_x - m_x_hat", '<mi mathvariant="normal">m_x_hat</mi>'),
        ("powabs(2.5e-5, x)", "<msup><mrow><mo>(</mo><mrow><mn>2.5</mn>"),
        ("powabs(1e-5, x)", "<msup><mrow><mo>(</mo><msup><mn>10</mn>"),
        ("ema(x, 0.9999901)", "<mn>0.9999901</mn>"),
        ("x + (-x - 1)", "<mo>+</mo><mrow><mo>(</mo>"),
    ],
)
def test_mathml_says_what_latex_says(text, inside):
    assert inside in Rule("x", parse(text), features=dict.fromkeys(names(parse(text)))).mathml()


@every_rule
def test_markup_is_well_formed(rule):
    root = ElementTree.fromstring(rule.mathml())
    arity = {"mfrac": 2, "msub": 2, "msup": 2, "mover": 2, "mroot": 2}
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]
        assert tag in {*arity, "math", "mrow", "mi", "mn", "mo", "msqrt"}
        assert tag not in arity or len(element) == arity[tag]
    latex = rule.latex()
    assert latex.count("{") == latex.count("}")
    assert latex.count(r"\left") == latex.count(r"\right")
    assert "\n" not in latex
    assert "<mo>&gt;</mo>" in Rule.from_text("greater(g, t)").mathml()  # which HTML would read as markup


@pytest.mark.parametrize("value", [1.0 / 3.0, 0.1 + 0.2, 1.0 - 2.0**-53, 2.5, 1e-8])
def test_a_number_of_sympys_shows_all_of_its_digits(value):
    pytest.importorskip("sympy")
    assert float(str(build(parse(repr(value))))) == value
