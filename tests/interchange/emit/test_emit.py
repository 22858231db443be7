"""Exported rules: generated code run in a clean namespace against the oracle; notation; reading back."""

import importlib.util
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from common.errors import L2OError
from interchange import export as export_command
from interchange.emit import TARGETS
from interchange.emit.source import copied_source
from interchange.emit.targets.to_sympy import build, from_sympy
from interchange.language.expression import to_text
from interchange.language.operators import OPERATORS, TEMPORAL
from interchange.language.parse import parse
from interchange.rule.rule import Rule

FEATURES = {
    "m_tilde": "ema_hat(g, 0.95) / (sqrt(ema_hat(square(g), 0.95)) + 1e-12)",
    "g_tilde": "g / (sqrt(ema_hat(square(g), 0.95)) + 1e-12)",
    "mean_g": None,
}
POINTWISE = [name for name in OPERATORS if name not in TEMPORAL]
SQUASHED = {"exp", "sinh", "cosh", "tan", "sin", "cos"}  # of 1e6 they overflow, or only amplify rounding


def pointwise_rule(op: str) -> Rule:
    x = "tanh(g)" if op in SQUASHED else "g"
    second = "c0" if op in ("pow", "powabs") else "lag(g, 1)"
    text = f"{op}({x})" if OPERATORS[op].arity == 1 else f"{op}({x}, {second})"
    return Rule.from_text(text, {"c0": 1.5}, name=op)


RULES = {
    "rnnprop": Rule.from_text(
        "c0 * tanh(m_tilde / c1) + c2 * ema(g_tilde, c3)",
        {"c0": -0.0098, "c1": 0.61, "c2": -0.0012, "c3": 0.87},
        FEATURES,
        scale=0.1,
    ),
    "temporal": Rule.from_text(
        "cummax(powabs(g, c0) - 2.0) - lag(ema(g, b), 1) * lag(theta, 3) + lag(c0, 2)", {"c0": 0.5, "b": 0.9}
    ),
    "time": Rule.from_text("sqrt(cumsum(square(g))) * (t / 7.0)"),
    "digits": Rule.from_text("c0 * g + 0.3333333333333333 * ema(g, 0.9123456789012345)", {"c0": -1 / 30}),
    "slow": Rule.from_text("ema_hat(g, 0.999) - 2.0 + -theta * greater(g, 0.0)"),
    "constant": Rule.from_text("c0 / -4.0", {"c0": 1.0}),
    "lion": Rule.from_text("-sign(0.9 * lag(ema(g, b), 1) + 0.1 * g)", {"b": 0.99}),
    **{op: pointwise_rule(op) for op in POINTWISE},
}


def nasty_gradients(dtype) -> np.ndarray:
    """300 steps of zeros, tiny and huge values, sign changes: [T, N]."""
    rng = np.random.default_rng(3)
    values = np.array([0.0, -0.0, 1e-12, -1e-12, 1e6, -1e6, 1.0, -1.0, 0.3])
    g = rng.choice(values, size=(300, 8))
    g[:, :3] = rng.normal(size=(300, 3)) * 10.0 ** rng.uniform(-6, 3, size=(300, 3))
    g[:40, 7] = 0.0
    return g.astype(dtype)


def load(rule: Rule, target: str, folder):
    """The generated file as a module, from its own folder."""
    path = folder / "generated.py"
    path.write_text(TARGETS[target].emit(rule))
    spec = importlib.util.spec_from_file_location("generated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(rule: Rule, updates: list, thetas: list, dtype) -> None:
    g = nasty_gradients(dtype)
    oracle = rule.evaluate({"g": g, "theta": np.stack(thetas)}, dtype)
    assert updates[0].dtype == dtype
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    # A sum that cancels is exact only relative to its terms.
    np.testing.assert_allclose(np.stack(updates), oracle, rtol=tolerance, atol=tolerance * 1e-3)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_numpy_files_equal_the_oracle(rule, dtype, tmp_path):
    module = load(RULES[rule], "numpy", tmp_path)
    theta, updates, thetas = np.linspace(-1, 1, 8).astype(dtype), [], []
    state = module.init(theta)
    assert len(state["slots"]) == RULES[rule].state_floats
    for g in nasty_gradients(dtype):
        thetas.append(theta)
        u, state = module.update(g, state, theta)
        theta = theta + dtype(1e-3) * np.sign(g)
        updates.append(np.array(u))
    check(RULES[rule], updates, thetas, dtype)
    assert state["t"] == 300


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_torch_files_equal_the_oracle(rule, dtype, tmp_path):
    torch = pytest.importorskip("torch")
    module = load(RULES[rule], "torch", tmp_path)
    theta, updates, thetas = torch.from_numpy(np.linspace(-1, 1, 8).astype(dtype)), [], []
    state = module.init(theta)
    for g in nasty_gradients(dtype):
        thetas.append(theta.numpy())
        u, state = module.update(torch.from_numpy(g), state, theta)
        theta = theta + 1e-3 * torch.sign(torch.from_numpy(g))
        updates.append(u.numpy())
    check(RULES[rule], updates, thetas, dtype)


def test_torch_updates_are_differentiable_by_constants(tmp_path):
    torch = pytest.importorskip("torch")
    rule = RULES["rnnprop"]
    module = load(rule, "torch", tmp_path)
    g = np.random.default_rng(0).normal(size=(12, 5)) * np.array([1, 0, 1, 1, 0])
    names = list(rule.constants)
    constants = {
        key: torch.tensor(v, dtype=torch.float64, requires_grad=True) for key, v in rule.constants.items()
    }
    theta = torch.zeros(5, dtype=torch.float64)
    state = module.init(theta)
    for row in g:
        u, state = module.update(torch.from_numpy(row), state, theta, constants)
    got = torch.autograd.grad(u.sum(), list(constants.values()))
    from interchange.language.execute import evaluate_with_tangents

    _, tangents = evaluate_with_tangents(rule.program(), {**rule.constants, "g": g}, names)
    np.testing.assert_allclose([float(x) for x in got], rule.scale * tangents[:, -1].sum(axis=1), rtol=1e-10)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_tensorflow_files_equal_the_oracle(rule, dtype, tmp_path):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: extra [tf]")
    module = load(RULES[rule], "tensorflow", tmp_path)
    update = tf.function(module.update)
    theta, updates, thetas = tf.constant(np.linspace(-1, 1, 8), dtype), [], []
    state = module.init(theta)
    assert len(state["slots"]) == RULES[rule].state_floats
    for g in nasty_gradients(dtype):
        thetas.append(theta.numpy())
        u, state = update(tf.constant(g), state, theta)
        theta = theta + 1e-3 * tf.sign(tf.constant(g))
        updates.append(u.numpy())
    check(RULES[rule], updates, thetas, dtype)


@pytest.fixture
def optimizer_class(tmp_path):
    pytest.importorskip("torch")
    return load(RULES["rnnprop"], "torch", tmp_path).RuleOptimizer


def quadratic(torch, optimizer_class, steps=20, dtype=None, **settings):
    theta = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=dtype))
    idle = torch.nn.Parameter(torch.ones(2))
    optimizer = optimizer_class([theta, idle], **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        (theta * theta).sum().backward()
        optimizer.step()
    return theta, idle, optimizer


def test_the_optimizer_descends_and_leaves_idle_parameters(optimizer_class):
    import torch

    theta, idle, optimizer = quadratic(torch, optimizer_class, lr=10.0)
    assert float((theta.detach() ** 2).sum()) < 14.0 * 0.9
    assert torch.equal(idle, torch.ones(2))
    assert idle not in optimizer.state


def test_the_optimizer_equals_the_pure_update_with_decoupled_decay(optimizer_class):
    import torch

    theta, _, _ = quadratic(torch, optimizer_class, steps=5, dtype=torch.float64, lr=2.0, weight_decay=0.01)
    expected, gradients = np.array([1.0, -2.0, 3.0]), []
    for _ in range(5):
        gradients.append(2 * expected)
        u = RULES["rnnprop"].evaluate({"g": np.stack(gradients)})[-1]
        expected = expected * (1 - 2.0 * 0.01) + 2.0 * u
    np.testing.assert_allclose(theta.detach().numpy(), expected, rtol=1e-12)


GUARDED = {  # rule, dtype, learning rate, gradient of a coordinate that is left alone, why
    "gradient": ("-g", "float32", 1.0, math.nan),
    "update": ("-g / greater(1.5, g)", "float32", 1.0, 2.0),
    "state": ("-sign(ema(square(g), 0.5))", "float32", 1.0, 1e30),
    "moved parameter": ("-g", "float16", 10.0, 6e4),
}


@pytest.mark.parametrize("cause", GUARDED)
def test_a_coordinate_is_left_alone_and_one_warning_says_why(cause, tmp_path):
    torch = pytest.importorskip("torch")
    text, dtype, lr, g = GUARDED[cause]
    module = load(Rule.from_text(text), "torch", tmp_path)
    theta = torch.nn.Parameter(torch.ones(3, dtype=getattr(torch, dtype)))
    optimizer = module.RuleOptimizer([theta], lr, weight_decay=0.001)
    theta.grad = torch.tensor([g, 0.5, 0.5]).to(theta.dtype)
    with pytest.warns(RuntimeWarning) as told:
        for _ in range(200):
            optimizer.step()
    assert [str(w.message) for w in told] == [
        f"1 of 3 coordinates of a parameter of shape (3,) were left alone, because the {cause} was not "
        "finite; lower lr or check the gradients"
    ]
    store = optimizer.state[theta]
    assert theta[0] == 1.0 and torch.isfinite(theta).all() and (theta[1:] < 0.0).all()
    assert (int(store["step"]), int(store["skipped"])) == (200, 1)
    assert all(bool(torch.isfinite(value).all()) for value in store.values())


def test_all_of_a_parameter_at_ten_looks_in_a_row_is_an_error(tmp_path):
    torch = pytest.importorskip("torch")
    bad, good = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = load(Rule.from_text("-g"), "torch", tmp_path).RuleOptimizer([bad, good], 1e-3)
    bad.grad, good.grad = torch.full((2,), math.nan), torch.ones(2)
    with pytest.warns(RuntimeWarning, match=r"2 of 2 .* because the gradient was not finite"):
        for _ in range(999):
            optimizer.step()
    with pytest.raises(RuntimeError, match="at ten looks in a row 2 of 2"):
        optimizer.step()
    assert torch.equal(bad, torch.ones(2)) and (good < 0.1).all()
    assert [int(optimizer.state[p]["step"]) for p in (bad, good)] == [0, 1000]


@pytest.mark.parametrize(("name", "spike"), [("lion", math.inf), ("adam", math.inf), ("adam", 3e38)])
def test_after_a_spike_a_coordinate_ends_where_its_neighbour_does(name, spike, tmp_path):
    torch = pytest.importorskip("torch")
    theta = torch.nn.Parameter(torch.ones(2))
    optimizer = load(Rule.named(name), "torch", tmp_path).RuleOptimizer([theta], 0.01)
    for step in range(300):
        theta.grad = 2.0 * theta.detach()
        if step == 5:
            theta.grad[0] = spike
        optimizer.step()
    assert theta.detach().abs().max() < 0.05 and int(optimizer.state[theta]["step"]) == 300


def test_empty_and_0_dim_parameters_step(tmp_path):
    torch = pytest.importorskip("torch")
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((0, 3), (), (2,))]
    optimizer = load(Rule.from_text("-g / abs(g)"), "torch", tmp_path).RuleOptimizer(params, 0.5)
    for p, g in zip(params, (1.0, 2.0, 0.0), strict=True):
        p.grad = torch.full_like(p, g)
    optimizer.step()
    assert [p.tolist() for p in params] == [[], 0.5, [1.0, 1.0]]
    assert [int(optimizer.state[p]["step"]) for p in params] == [1, 1, 0]


def test_saved_state_continues_exactly_also_for_bfloat16(optimizer_class):
    import torch

    theta, idle, optimizer = quadratic(torch, optimizer_class, dtype=torch.bfloat16)
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


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("numpy", {"math", "numpy"}),
        ("torch", {"torch", "warnings"}),
        ("tensorflow", {"keras", "tensorflow", "warnings"}),
    ],
)
def test_files_import_only_their_framework(target, allowed):
    import ast

    for rule in RULES.values():
        for node in ast.walk(ast.parse(TARGETS[target].emit(rule))):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= allowed
            assert not isinstance(node, ast.ImportFrom)


def test_only_needed_operators_are_copied():
    text = TARGETS["torch"].emit(RULES["lion"])
    assert "def op_sign" in text
    assert "def op_tanh" not in text
    assert "def op_" not in TARGETS["numpy"].emit(RULES["constant"])


def test_exporting_to_torch_needs_no_torch():
    code = (
        "import sys; from interchange.rule.rule import Rule; from interchange.emit import TARGETS;"
        "r = Rule.from_text('tanh(g)'); [t.emit(r) for t in TARGETS.values()];"
        "assert not {'torch', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_operators_are_named():
    with pytest.raises(L2OError, match=r"op_nothing in interchange\.language\.operators"):
        copied_source("interchange.language.operators", ["op_nothing"])
    with pytest.raises(L2OError, match=r"interchange\.nothing"):
        copied_source("interchange.nothing", ["op_add"])


@pytest.mark.parametrize("target", ["numpy", "torch", "tensorflow"])
def test_a_rule_over_an_undefined_feature_is_refused(target):
    with pytest.raises(L2OError, match="'mean_g' has no definition"):
        TARGETS[target].emit(Rule.from_text("mean_g", features=FEATURES))


@pytest.mark.parametrize("rule", RULES)
def test_sympy_text_reads_back(rule):
    text = TARGETS["sympy"].emit(RULES[rule])
    tree = parse(text.strip())
    assert to_text(tree) == text.strip()
    if RULES[rule].scale == 1.0:
        assert tree == RULES[rule].expression


@pytest.mark.parametrize("rule", RULES)
def test_sympy_trees_read_back_with_the_same_meaning(rule):
    expression = RULES[rule].expression
    back = from_sympy(build(expression))
    again = Rule(rule, back, RULES[rule].constants, RULES[rule].features)
    g = np.random.default_rng(0).normal(size=(20, 3))
    inputs = {"g": g, "theta": g[::-1]}
    plain = Rule(rule, expression, RULES[rule].constants, RULES[rule].features)
    np.testing.assert_allclose(again.evaluate(inputs), plain.evaluate(inputs), rtol=1e-12)


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
    ],
)
def test_latex(text, latex):
    rule = Rule("x", parse(text), features=dict.fromkeys(("a", "b", "m_tilde", "mom5")))
    assert rule.latex() == f"u_t = {latex}"


def test_latex_rounds_constants_and_merges_the_scale():
    rule = Rule.from_text("c0 * g", {"c0": -0.123456}, scale=0.01)
    assert rule.latex() == r"u_t = -0.001235\,g_t"


@pytest.mark.parametrize("rule", RULES)
def test_markup_is_well_formed(rule):
    root = ElementTree.fromstring(RULES[rule].mathml())
    arity = {"mfrac": 2, "msub": 2, "msup": 2, "mover": 2, "mroot": 2}
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]
        assert tag in {*arity, "math", "mrow", "mi", "mn", "mo", "msqrt"}
        assert tag not in arity or len(element) == arity[tag]
    latex = RULES[rule].latex()
    assert latex.count("{") == latex.count("}")
    assert latex.count(r"\left") == latex.count(r"\right")
    assert "\n" not in latex


def test_mathml_escapes_what_html_reads_as_markup():
    assert "<mo>&gt;</mo>" in Rule.from_text("greater(g, t)").mathml()


def test_the_command(tmp_path, capsys):
    RULES["lion"].save(tmp_path / "rule.json")
    source = str(tmp_path / "rule.json")
    assert export_command.main([source, "--to", "latex"]) == 0
    assert capsys.readouterr().out == TARGETS["latex"].emit(RULES["lion"])
    assert export_command.main([source, "--to", "numpy", "-o", str(tmp_path / "lion.py")]) == 0
    assert (tmp_path / "lion.py").read_text() == export_command.export(RULES["lion"], "numpy")
    assert export_command.main([source, "--to", "lates"]) == 2
    assert "did you mean 'latex'" in capsys.readouterr().err
    assert export_command.main([str(tmp_path / "none.json"), "--to", "latex"]) != 0
    assert "none.json" in capsys.readouterr().err
