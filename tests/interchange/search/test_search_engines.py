"""The engines of rows: exact where they can be, reproducible, weights heeded, any regressor readable."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from common.errors import L2OError
from interchange.dialects.table import DIALECTS
from interchange.distill.refit import refit, score
from interchange.language import expression as ex
from interchange.language.canonical import name_constants
from interchange.language.execute import compile_program, evaluate
from interchange.language.parse import parse
from interchange.rule.rule import Rule
from interchange.search import Task, pursuit, templates
from interchange.search.auto import search as auto
from interchange.search.child import run_engine
from interchange.search.linear import search as linear
from interchange.search.operon import front
from interchange.search.regressor import fit, prefix_text, read
from interchange.search.samples import Sequences
from interchange.search.standard import Archive, as_tree, resampled, standardised

COLUMNS = ("a", "lag(b, 1)", "ema(a, 0.9)")


def task(y, rows=None, **changes) -> Task:
    """A task of columns of very different sizes; ``y(x)`` makes the target."""
    if rows is None:
        rows = np.random.default_rng(0).normal(size=(400, 3)) * [1e-5, 1.0, 300.0]
    base = Task(
        ("a", "b"), {}, np.zeros((0, 0)), COLUMNS, rows, y(rows), np.ones(len(rows)), time=20.0, max_size=15
    )
    return dataclasses.replace(base, **changes)


def error(text: str, asked: Task) -> float:
    """Squared error on the rows relative to the variance, of a text over the features."""
    columns = {parse(c): ex.name(f"x{k}") for k, c in enumerate(asked.columns)}

    def over_columns(node):
        if node in columns:
            return columns[node]
        return ex.Node(node.op, tuple(map(over_columns, node.args)), node.name, node.value)

    inputs = {f"x{k}": asked.rows[None, :, k] for k in range(len(asked.columns))}
    (out,) = evaluate(compile_program([over_columns(parse(text))]), inputs)
    return float(np.mean(np.square(out[0] - asked.y)) / asked.y.var())


def test_linear_finds_a_sparse_sum_to_the_last_digits_and_knows_functions_products_and_an_offset():
    asked = task(lambda x: 2.5e-4 * x[:, 0] - 3e-9 * x[:, 1])
    reports = []
    texts = linear(asked, reports.append)
    assert reports[-1] == texts
    best = parse(texts[-1])
    factors = sorted(node.value for node in ex.walk(best) if node.op == "number" and abs(node.value) < 0.1)
    np.testing.assert_allclose(factors, [-3e-9, 2.5e-4], rtol=1e-6)
    assert error(texts[-1], asked) < 1e-20
    asked = task(lambda x: 2.0 * np.tanh(1e5 * x[:, 0]) + 0.01 * x[:, 1] * x[:, 2] + 0.7)
    texts = linear(asked, lambda texts: None)
    sizes = [ex.complexity(parse(text)) for text in texts]
    errors = [error(text, asked) for text in texts]
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
    assert min(errors) < 1e-3 and sizes[-1] <= 1.5 * asked.max_size


def operon(asked: Task) -> list[str]:
    pytest.importorskip("pyoperon", reason="pyoperon is not installed")
    return [ex.to_text(node) for node in run_engine("operon", asked)]


def test_operon_is_the_same_for_a_seed_and_a_budget_whatever_the_time_and_the_threads():
    rows = np.random.default_rng(0).normal(size=(1_200, 3))  # more than the early parts see
    settings = {"evaluations": 2_200, "options": {"population_size": 100}, "time": 300.0, "seed": 3}
    asked = task(lambda x: np.tanh(x[:, 0]) * x[:, 1], rows, **settings)
    first = operon(asked)
    assert len(first) > 2
    assert operon(dataclasses.replace(asked, threads=2, time=900.0)) == first
    assert operon(dataclasses.replace(asked, seed=4)) != first


def test_operon_folds_sizes_back_at_full_precision():
    asked = task(lambda x: 1e-6 * (np.tanh(1e5 * x[:, 0]) + 0.004 * x[:, 2]), evaluations=30_000, time=300.0)
    texts = operon(asked)
    assert min(error(text, asked) for text in texts) < 1e-9
    assert max(ex.complexity(parse(text)) for text in texts) <= 1.5 * asked.max_size


def test_operon_takes_options_and_names_a_bad_one():
    asked = task(lambda x: x[:, 1] ** 2, evaluations=2_000, options={"allowed_symbols": "add,mul,variable"})
    assert {node.op for text in operon(asked) for node in ex.walk(parse(text))} <= {
        "add", "mul", "square", "number", "name", "lag", "ema",
    }  # fmt: skip
    with pytest.raises(L2OError, match=r"engine 'operon' failed.*no_such_option"):
        operon(dataclasses.replace(asked, options={"no_such_option": 1}))


def test_operons_trees_with_constants_that_are_not_finite_are_left_out():
    def model(value):
        node = SimpleNamespace(Type="NodeType.Constant", Value=value, Arity=0)
        return {"tree": SimpleNamespace(Nodes=[node])}

    models = [model(value) for value in (1.5, float("nan"), float("inf"))]
    fitted = SimpleNamespace(variables_={5: "X1"}, pareto_front_=models)
    data = standardised(task(lambda x: x[:, 1]))
    assert front(fitted, data) == [ex.number(1.5 * data.spread)]


def test_forms_are_fitted_to_few_rows_of_few_sequences_spread_over_all():
    for shape in ((500, 3_000), (100, 80), (250_000, 4), (1, 50_000)):
        rows = templates._rows(Sequences({}, np.zeros(shape)))
        cells = np.unique(rows.steps * shape[1] + rows.coordinates)
        assert len(cells) == len(rows.steps) == min(np.prod(shape), templates._ROWS)
        counts = np.bincount(rows.coordinates, minlength=shape[1])
        assert (counts > 0).sum() <= max(1, templates._CELLS // shape[0])
        quarters = np.array_split(counts, 4) if shape[0] < 1000 else [counts]
        for part in quarters:
            assert part.sum() == pytest.approx(len(cells) / len(quarters), rel=0.05)
        first = rows.steps[rows.coordinates == rows.coordinates.min()]
        assert shape[0] == 1 or np.ptp(first) > 0.8 * shape[0]


def test_forms_know_no_clock_where_the_tries_are_given(monkeypatch):
    data = Sequences({"a": np.random.default_rng(0).normal(size=(30, 9))}, np.ones((30, 9)))
    data = dataclasses.replace(
        data, target=np.tanh(data.features["a"]) + np.cumsum(data.features["a"], axis=0)
    )
    clock = iter(range(10**6))
    monkeypatch.setattr(templates.time, "thread_time", lambda: float(next(clock)))
    few, more = (templates.drafts(data, ("a",), tries=tries) for tries in (20, 60))
    assert few == templates.drafts(data, ("a",), tries=20) and 0 < len(few) < len(more)
    assert templates.drafts(data, ("a",), seconds=19.5) == few  # one second a form
    monkeypatch.setattr(templates.time, "monotonic", lambda: float(next(clock)))
    assert templates.drafts(data, ("a",), at_most=38.5) == few  # both clocks tick


def test_autos_forms_know_no_clock_where_there_is_a_budget(monkeypatch):
    generator = np.random.default_rng(0)
    features = {name: generator.normal(size=(30, 9)) for name in ("a", "b")}
    clock = iter(range(10**6))
    monkeypatch.setattr(templates.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("interchange.search.operon.search", lambda task, report: [])
    sums = np.cumsum(features["b"], axis=0)
    asked = task(lambda x: x[:, 1], features=features, target=np.tanh(features["a"]) + sums, max_size=40)
    short, long = (
        auto(dataclasses.replace(asked, time=seconds, evaluations=2_000), lambda texts: None)
        for seconds in (20.0, 900.0)
    )
    assert len(short) > 5 and short == long
    assert auto(asked, lambda texts: None) != short  # the clock cuts them off


def test_the_shortest_form_is_kept_however_small_rules_are_to_be(monkeypatch):
    g = np.random.default_rng(0).normal(size=(60, 12))
    forms = [
        parse("g / (sqrt(ema(square(g), 0.9)) + 0.1)"),
        parse("tanh(g) / (sqrt(ema(square(g), 0.9)) + 0.1)"),
    ]
    monkeypatch.setattr("interchange.search.auto.drafts", lambda *given, **more: forms)
    monkeypatch.setattr("interchange.search.operon.search", lambda task, report: [])
    asked = task(lambda x: x[:, 0], features={"g": g}, target=g, max_size=3)
    assert auto(asked, lambda texts: None) == [ex.to_text(forms[0])]
    assert len(auto(dataclasses.replace(asked, max_size=40), lambda texts: None)) == 2


def test_a_pursuit_of_shared_columns_is_the_one_of_its_own():
    x = np.random.default_rng(0).normal(size=(8, 300))
    x[2, :100] = np.nan
    shared = pursuit.Columns(x, np.ones(300, bool))
    for y in (x[1] - 2.0 * x[5], np.square(x[0]) + x[7]):
        assert list(shared.pursuit(y, 4)) == list(pursuit.pursuit(x, y, 4))
    (chosen, weights, error), *_ = reversed(list(shared.pursuit(x[1] - 2.0 * x[5], 4)))
    assert sorted(zip(chosen, np.round(weights, 9), strict=True)) == [(1, 1.0), (5, -2.0)] and error < 1e-20


class Stub:
    """A regressor that offers its equation in one way."""

    def __init__(self, **offered):
        self.seen, self._offered = None, offered

    def fit(self, X, y):
        self.seen = X, y
        self.__dict__.update(self._offered)
        return self


class Weighted(Stub):
    def fit(self, X, y, sample_weight=None):
        self.weights = sample_weight
        return super().fit(X, y)


class Program:
    def __init__(self, program):
        self.program = program

    def __str__(self):
        return "mul(X0, 0.123)"


DIGITS = 0.1234567890123456
MUL, ADD = (SimpleNamespace(name=name, arity=2) for name in ("mul", "add"))
OFFERED = {
    "_program": (Program([MUL, 0, ADD, DIGITS, 2]), [f"x0 * ({DIGITS} + x2)"]),
    "equations_": (
        SimpleNamespace(equation=("x0", "x0 * 2.0 + square(x2)")), ["x0", "x0 * 2.0 + square(x2)"]
    ),
    "sympy": (lambda: "tanh(x_1)*X2**2", ["tanh(x1) * square(x2)"]),
    "sympy_expr": ("2.0*Abs(x0)", ["2.0 * abs(x0)"]),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFERED)
def test_the_equation_is_read_from_what_a_regressor_offers(name):
    value, want = OFFERED[name]
    assert list(map(ex.to_text, read(Stub(**{name: value}).fit(None, None)))) == want


def test_a_regressor_that_offers_nothing_or_other_variables_is_refused():
    with pytest.raises(
        L2OError, match=r"_program, equations_, sympy.. or sympy_expr, got Stub; pass a function"
    ):
        read(Stub())
    with pytest.raises(L2OError, match=r"expected variables x0, x1, \.\.\. in an equation, got 'g'"):
        read(Stub(sympy_expr="2.0*g").fit(None, None))


def test_an_object_sees_standardised_rows_and_its_equation_comes_back_in_the_tasks_units():
    asked = task(lambda x: 5e-6 * (3.0 + x[:, 1]))
    stub = Stub()
    (text,) = fit(stub, asked, read=lambda fitted: [parse("x1 + 2.0 * x0")])
    x, y = stub.seen
    np.testing.assert_allclose(np.sqrt(np.square(x).mean(0)), 1.0)
    np.testing.assert_allclose(y.std(), 1.0)
    prediction = asked.y.std() * (x[:, 1] + 2.0 * x[:, 0])
    want = np.mean(np.square(prediction - asked.y)) / asked.y.var()
    assert error(text, asked) == pytest.approx(want, rel=1e-12)


def test_weights_reach_the_regressor_or_choose_its_rows():
    weights = np.arange(400.0) ** 2
    asked = task(lambda x: x[:, 1], weights=weights)
    regressor = Weighted(sympy_expr="x1")
    fit(regressor, asked)
    np.testing.assert_allclose(regressor.weights, weights / weights.mean())
    stub = Stub(sympy_expr="x1")
    fit(stub, asked)
    (index,) = resampled(asked, [np.arange(400)])
    times = np.bincount(index, minlength=400)
    assert np.abs(times - weights / weights.mean()).max() <= 1.0  # what systematic resampling promises
    np.testing.assert_array_equal(stub.seen[1], standardised(asked).y[index])


@pytest.mark.parametrize("engine", ["linear", "operon"])
def test_rows_of_weight_0_do_not_count(engine):
    if engine == "operon":
        pytest.importorskip("pyoperon", reason="pyoperon is not installed")
    asked = task(lambda x: 1.0 * x[:, 1], evaluations=5_000, time=300.0)
    asked.y[::4] = 40.0
    weights = np.where(np.arange(400) % 4 == 0, 0.0, 1.0)
    nodes = run_engine(engine, dataclasses.replace(asked, weights=weights))
    good = dataclasses.replace(asked, rows=asked.rows[weights > 0], y=asked.y[weights > 0])
    assert min(error(ex.to_text(node), good) for node in nodes) < 1e-9


def test_the_archive_is_a_front_by_our_sizes_and_errors():
    asked = task(lambda x: x[:, 1])
    reports = []
    archive = Archive(asked, reports.append)
    archive.add(map(parse, ["0.5 * x1", "0.6 * x1", "x0 + x1", "x1 / 0.0", "x1"]))
    assert archive.texts() == ["lag(b, 1)"]  # of 3 nodes; nothing longer is better
    archive.add([parse("0.5 * x1")])
    assert len(reports) == 1
    archive = Archive(asked, reports.append)
    archive.add(map(parse, ["0.5 * x1", "0.6 * x1", "exp(1000.0 * x2)"]))
    assert archive.texts() == ["0.6 * lag(b, 1)"]


def gplearn_meaning(name, *args):
    """gplearn 0.4's protected functions."""
    with np.errstate(all="ignore"):
        a = args[-1]
        near = np.abs(a) <= 0.001
        return {
            "div": lambda: np.where(near, 1.0, args[0] / a),
            "inv": lambda: np.where(near, 0.0, 1.0 / a),
            "log": lambda: np.where(near, 0.0, np.log(np.abs(a))),
            "sqrt": lambda: np.sqrt(np.abs(a)),
            "sig": lambda: 1.0 / (1.0 + np.exp(-a)),
        }[name]()


@pytest.mark.parametrize("name", ["div", "inv", "log", "sqrt", "sig"])
def test_gplearns_functions_have_their_meaning(name):
    x = np.array([0.0, 1e-3, -1e-3, np.nextafter(1e-3, 1.0), 5e-4, -1.0, 0.999, 3.0, -2e5, 1e-9])
    y = np.linspace(-2.0, 5.0, len(x))
    inputs = (y, x) if name == "div" else (x,)
    text = f"{name}({', '.join(f'X{k}' for k in range(len(inputs)))})"
    node = parse(text, dialect=DIALECTS["gplearn"])
    (out,) = evaluate(compile_program([node]), {f"X{k}": value[None] for k, value in enumerate(inputs)})
    np.testing.assert_allclose(out[0], gplearn_meaning(name, *inputs), rtol=1e-14)
    for literal, short in (("2.0", "X0 / 2.0"), ("0.0005", "1.0")):
        assert ex.to_text(parse(f"div(X0, {literal})", dialect=DIALECTS["gplearn"])) == short


def test_gplearn_itself_is_an_engine():
    genetic = pytest.importorskip("gplearn.genetic", reason="gplearn is not installed")
    rows = np.random.default_rng(1).normal(size=(300, 3))
    functions = ["add", "sub", "mul", "div", "sqrt", "log", "neg", "inv", "abs", "max", "min", "sin"]
    regressor = genetic.SymbolicRegressor(
        population_size=100, generations=2, function_set=functions, random_state=0
    )
    asked = task(lambda x: x[:, 0] / x[:, 1] + np.log(np.abs(x[:, 2])), rows, max_size=400)
    data = standardised(asked)
    regressor.fit(data.rows, data.y)
    for program in regressor._programs[-1][:30]:
        node = parse(prefix_text(program.program), dialect=DIALECTS["gplearn"])
        (out,) = evaluate(compile_program([node]), {f"X{k}": data.rows[None, :, k] for k in range(3)})
        out = np.broadcast_to(np.asarray(out).reshape(-1), 300)
        np.testing.assert_allclose(out, program.execute(data.rows), rtol=1e-9)
    asked = task(lambda x: 3.0 * x[:, 0] * x[:, 1], rows, options={"population_size": 100, "generations": 4})
    nodes = run_engine("sklearn:gplearn.genetic:SymbolicRegressor", asked)
    assert len(nodes) == 1 and error(ex.to_text(nodes[0]), asked) < 0.1


def test_trees_and_nodes_are_the_same_thing():
    asked = task(lambda x: 1e-3 * x[:, 1] + 4.0)
    data = standardised(asked)
    node = data.node(as_tree(parse("x1 + square(2.0 + 0.5)")))
    size, spread = data.sizes[1], data.spread
    inputs = {f"x{k}": asked.rows[None, :, k] for k in range(3)}
    (out,) = evaluate(compile_program([node]), inputs)
    np.testing.assert_allclose(out[0], spread * (asked.rows[:, 1] / size + 6.25), rtol=1e-12)
    assert "square" not in ex.to_text(node)  # constants are folded


def test_decay_in_the_gradient_is_no_decay_beside_it_too():
    """Where its size is none of the grid, theta beside the sum would make up for that and stay."""
    draws = np.random.default_rng(0)
    g, theta = draws.normal(size=(60, 20)), draws.normal(size=(60, 20)).cumsum(0)
    truth = Rule.from_text("-(g + 0.005 * theta) - 9 * ema(g + 0.005 * theta, 0.9)")
    data = Sequences({"g": g, "theta": theta}, truth.evaluate({"g": g, "theta": theta}))
    drafts = [node for node in templates.drafts(data, ["g"]) if "theta" in ex.names(node)]
    beside = [node for node in drafts if node.args[1].args[1:] == (ex.name("theta"),)]
    assert not any("theta" in ex.names(node.args[0]) for node in beside)
    rules = [Rule("draft", *name_constants(node), {}) for node in drafts]
    assert max(score(refit(rule, data), data) for rule in rules) > 1.0 - 1e-12
