"""Every row of every table is complete and names only what exists; suites; the gallery that shows them."""

import collections
import dataclasses
import importlib
import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest
import sympy

from common import gallery
from common.data.datasets import DATASETS
from common.errors import L2OError
from common.registry import Registry
from common.tables import features
from common.tables.baselines import BASELINES, missing, parse_spec
from common.tables.features import ALIASES, FEATURES
from common.tables.problems import PROBLEMS, parameter_specs
from common.tables.suites import SUITES, Entry, entries
from common.tables.teachers import INITIAL_WEIGHTS, TEACHERS, TeacherRow, initial_weights, variant
from interchange.emit import TARGETS
from interchange.files.weights import SHIPPED
from interchange.language.expression import sees_tensors, to_text
from interchange.language.matrix import DERIVATIVES
from interchange.language.operators import OPERATORS, POINTWISE, TEMPORAL, TENSOR
from interchange.language.parse import parse
from interchange.rule.gallery import NAMED
from interchange.rule.rule import Rule

ROOT = Path(__file__).parents[2]
ALL = (
    PROBLEMS,
    TEACHERS,
    FEATURES,
    BASELINES,
    DATASETS,
    OPERATORS,
    TARGETS,
    INITIAL_WEIGHTS,
    SHIPPED,
    SUITES,
)
KINDS = ("problem", "teacher", "feature", "optimizer", "data set", "operator", "target", "initial weights")
TABLES = dict(zip((*KINDS, "shipped teacher", "suite"), ALL, strict=True))
SETTINGS = {"beta1": 0.95, "beta2": 0.999, "eps": 1e-12, "p": 10.0}


@pytest.mark.parametrize("kind", TABLES)
def test_an_unknown_name_lists_the_known_ones_and_a_misspelt_one_gets_a_hint(kind):
    table = TABLES[kind]
    assert isinstance(table, Registry) and table.kind == kind
    with pytest.raises(L2OError) as caught:
        table["no such row"]
    message = str(caught.value)
    assert message.startswith(f"unknown {kind} 'no such row'")
    assert message.endswith(f"known: {', '.join(table)}") and "\n" not in message
    name = max(table, key=len)
    with pytest.raises(L2OError, match=f"did you mean '{name}'"):
        table[name + "x"]


@pytest.mark.parametrize("kind", ["problem", "teacher", "optimizer", "operator"])
def test_rows_know_their_name(kind):
    assert {name: row.name for name, row in TABLES[kind].items()} == {name: name for name in TABLES[kind]}


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_is_an_expression_over_the_gradient(name):
    text = features.expression(name, **SETTINGS)
    tree = parse(text, {"g", "t"})
    assert parse(to_text(tree)) == tree
    assert sees_tensors(tree) == (name in features.SEE_TENSORS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_reach_the_features_that_name_them(setting):
    changed = SETTINGS | {setting: 0.123456789012345678}
    for name in FEATURES:
        given, other = features.expression(name, **SETTINGS), features.expression(name, **changed)
        assert (given != other) == (f"{{{setting}}}" in FEATURES[name])


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_another_name_of_a_feature(alias):
    assert alias not in FEATURES
    assert features.expression(alias, **SETTINGS) == features.expression(ALIASES[alias], **SETTINGS)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_is_complete(name):
    row = TEACHERS[name]
    assert row.inputs and row.lstm and row.scale > 0.0 and row.source
    assert set(row.inputs) <= set(FEATURES)
    assert list(row.expressions()) == list(row.inputs)
    for text in row.expressions().values():
        parse(text, {"g", "t"})
    assert TeacherRow.from_dict(row.to_dict()) == row
    weights = initial_weights(row, seed=1)
    assert {key: value.shape for key, value in weights.items()} == row.weight_shapes()


def test_teachers_differ_from_each_other_as_their_sources_say():
    """MATH.md section 1, what the names of the variants stand for."""

    def fields(row: str, **changed: object) -> TeacherRow:
        return dataclasses.replace(TEACHERS[row], source="", **changed)

    assert fields("dm_p5") == fields("dm", name="dm_p5", p=5.0)
    assert fields("dm_raw") == fields("dm", name="dm_raw", inputs=("g",))
    assert fields("rnnprop_lv") == fields("rnnprop", name="rnnprop_lv", scale=0.1)
    norms = ("m_p2", "m_p2_5", "m_p3")
    assert fields("rp_si") == fields("rp_s", name="rp_si", inputs=norms)
    assert fields("rp_si_n") == fields("rp_s", name="rp_si_n", inputs=("m_tilde", "g_tilde", "m_p3"))
    more = ("m_tilde", "g", "mom5", "mom9", "mom99")
    assert fields("rp_extra") == fields("rp_s", name="rp_extra", inputs=more, pre=9, lstm=(12,))
    assert TEACHERS["rp_s"].eps == 1e-12 and TEACHERS["rnnprop"].eps == 1e-8


def test_a_variant_replaces_inputs_and_scale_and_nothing_else():
    row = TEACHERS["rnnprop"]
    assert variant(row) == row
    found = variant(row, "mt+g_tilde + mom5", 0.1)
    assert found == dataclasses.replace(row, inputs=("m_tilde", "g_tilde", "mom5"), scale=0.1)
    assert found.weight_shapes()["pre/w"] == (20, 3)


@pytest.mark.parametrize("text", ["mt+nosuch", "mt++gt", "m_tilde,g", "+", "MT"])
def test_an_unknown_feature_in_a_list_is_named_beside_the_known_ones(text):
    with pytest.raises(L2OError, match=f"unknown feature .*known: {', '.join(FEATURES)}"):
        features.names(text)


def test_a_feature_is_listed_once():
    assert features.names("gt+mt") == ("g_tilde", "m_tilde")
    with pytest.raises(L2OError, match=r"inputs 'mt\+g\+m_tilde': .*got m_tilde twice"):
        features.names("mt+g+m_tilde")


@pytest.mark.parametrize("name", TEACHERS)
def test_uniform_initial_weights_fill_their_interval(name):
    row = TEACHERS[name]
    weights, shapes = initial_weights(row, 2), row.weight_shapes()
    assert all(np.array_equal(w, initial_weights(row, 2, "uniform")[key]) for key, w in weights.items())
    for key, w in weights.items():
        layer = key.split("/")[0]
        width = shapes[f"{layer}/w_hidden"][1] if layer.startswith("lstm") else shapes[f"{layer}/w"][1]
        assert np.abs(w).max() <= width**-0.5
        if w.size > 50:
            assert w.std() == pytest.approx((3 * width) ** -0.5, rel=0.2)


@pytest.mark.parametrize("name", TEACHERS)
def test_truncated_initial_weights_are_as_lvs(name):
    """A normal with deviation 1 cut at 2 has deviation 0.8796."""
    weights = initial_weights(TEACHERS[name], 2, "truncated")
    assert list(weights) == list(TEACHERS[name].weight_shapes())
    biases = [key for key, w in weights.items() if w.ndim == 1]
    assert biases and not any(weights[key].any() for key in biases)
    drawn = np.concatenate([w.ravel() for key, w in weights.items() if key not in biases])
    assert 0.19 < np.abs(drawn).max() <= 0.2 and len(np.unique(drawn)) == drawn.size
    assert drawn.std() == pytest.approx(0.08796, rel=0.15)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_is_complete(name):
    """What its parameters are is in test_layers.py, how they start in test_instances.py."""
    row, specs = PROBLEMS[name], parameter_specs(PROBLEMS[name])
    assert row.note and row.batch_size > 0
    if row.kind == "classifier":
        data = DATASETS[row.dataset]
        outputs = data.num_classes if row.target == "labels" else math.prod(data.image_shape)
        assert specs[-1].shape == (outputs // (1 + row.class_halves),)
    else:
        assert row.dims > 0 and not row.dataset and not row.layers
    assert len({spec.name for spec in specs}) == len(specs)


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_is_complete(name):
    row = DATASETS[name]
    assert len(row.image_shape) == 3 and min(row.image_shape) > 0
    assert row.num_classes > 1 and callable(row.read)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_complete_and_can_be_written_as_a_spec(name):
    row = BASELINES[name]
    assert 0.0 < row.lr < 1.0 and row.source
    assert parse_spec(name).middle == row.lr
    options = dict.fromkeys(row.options, 0.5)
    text = ",".join(f"{key}={value}" for key, value in {"lr": 0.25, **options}.items())
    spec = parse_spec(f"{name}:{text}")
    assert (spec.target, spec.lr, spec.options) == (name, 0.25, options)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_complete(name):
    row = OPERATORS[name]
    assert row.arity in (1, 2)
    kinds = [name in POINTWISE, name in TEMPORAL, name in TENSOR, name == "by_matrix"]
    assert sum(kinds) == 1 and (row.numpy is None) == (row.derivative is None)
    assert set(OPERATORS) >= TEMPORAL and set(DERIVATIVES) == TENSOR
    assert not row.sympy or issubclass(getattr(sympy, row.sympy), sympy.Basic)


@pytest.mark.parametrize("name", POINTWISE)
def test_an_operator_takes_and_gives_as_many_numbers_as_its_arity(name):
    row = OPERATORS[name]
    arguments = [np.array([0.3, 0.7]), np.array([0.4, 0.2])][: row.arity]
    out = row.numpy(*arguments)
    partials = row.derivative(*arguments, out)
    assert out.shape == (2,) and out.dtype == np.float64
    assert len(partials) == row.arity
    assert all(np.broadcast_to(partial, out.shape).dtype == np.float64 for partial in partials)


@pytest.mark.parametrize(("backend", "framework"), [("torch_impl", "torch"), ("tf_impl", "tensorflow")])
def test_a_backend_has_exactly_the_pointwise_operators_and_makes_every_baseline(backend, framework):
    pytest.importorskip(framework)
    assert set(importlib.import_module(f"{backend}.networks.operators").OPERATORS) == set(POINTWISE)
    assert hasattr(importlib.import_module(f"{backend}.optimizers.baselines"), "make")


@pytest.mark.parametrize("name", BASELINES)
def test_torch_makes_every_baseline(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    make = importlib.import_module("torch_impl.optimizers.baselines").make
    if reason := missing(name):
        pytest.skip(reason)
    theta = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = make(name, [theta], lr=0.1)
    for _ in range(2):  # SOAP's first step only measures
        theta.grad = torch.full_like(theta, 0.5)
        optimizer.step()
    assert (theta < 1.0).all()


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_emits_text(name):
    row = TARGETS[name]
    assert row.suffix.startswith(".") and row.note
    rule = Rule.from_text("c0 * tanh(g)", {"c0": -math.pi}, name="a rule")
    assert row.emit(rule).strip()


def examples() -> list[tuple[str, str]]:
    """(file, code) of CONTRIBUTING.md's examples: a paragraph that opens with a path, then a block."""
    pattern = re.compile(r"^`([\w/]+\.py)`.*(?:\n.+)*\n\n```python\n([^`]*)```", re.MULTILINE)
    return pattern.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def test_the_examples_of_contributing_are_in_the_files_they_name():
    found = examples()
    assert len(found) == 7
    for file, code in found:
        lines = " ".join((ROOT / file).read_text(encoding="utf-8").split())
        assert " ".join(code.split()) in lines, f"CONTRIBUTING.md shows code that is not in {file}:\n{code}"


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_names_problems_that_exist_once_at_every_horizon(name):
    suite = SUITES[name]
    assert all(entry.problem in PROBLEMS and entry.steps > 0 for entry in suite)
    assert max(collections.Counter((entry.problem, entry.steps) for entry in suite).values()) == 1
    trained = {problem: {e.trained_on for e in suite if e.problem == problem} for problem in PROBLEMS}
    assert all(len(marks) < 2 for marks in trained.values())  # at every horizon or at none


def test_core_is_broad_and_little_of_it_was_trained_on():
    core = SUITES["core"]
    problems = {entry.problem for entry in core}
    assert len(core) == 18 and len(problems) == 16
    assert {e.problem for e in core if e.trained_on} == {"mnist-mlp", "cifar-small-conv", "quadratic-k100"}
    assert {entry.steps for entry in core} == {200, 1000, 5000}
    rows = [PROBLEMS[problem] for problem in problems]
    assert {row.dataset for row in rows} == {"", "digits", "mnist", "cifar10"}
    assert {row.condition for row in rows if row.kind == "function"} == {10.0, 100.0, 1000.0}
    kinds = {layer.kind for row in rows for layer in row.layers}
    assert kinds >= {"relu", "sigmoid", "tanh", "gelu", "conv", "norm", "pool"}


def test_nothing_was_trained_on_held_which_shares_no_problem_with_core():
    """Nor does a shipped rule name one of them among what it was tuned, chosen or searched on."""
    held = {entry.problem for entry in SUITES["held"]}
    assert len(held) == len(SUITES["held"]) == 8 and not any(entry.trained_on for entry in SUITES["held"])
    assert not held & {entry.problem for entry in SUITES["core"]}
    records = [record for name in NAMED for record in Rule.named(name).provenance.values()]
    seen = {
        part
        for record in records
        if isinstance(record, dict)
        for part in record.get("problem", "").split(",")
    }
    assert "mnist-mlp" in seen and not held & seen


def test_a_suite_has_its_own_horizons_and_a_list_those_asked_for():
    assert entries("suite:core", ()) == entries("suite:core", (7,)) == SUITES["core"]
    asked = [("lasso", 200), ("lasso", 1000), ("digits-mlp", 200), ("digits-mlp", 1000)]
    assert entries("lasso, digits-mlp", (200, 1000)) == tuple(Entry(*given) for given in asked)


def test_what_is_named_twice_stands_once_with_the_suites_mark():
    found = entries("suite:core,mnist-mlp,lasso,lasso", (200, 300))
    assert found[:-3] == SUITES["core"]
    assert found[-3:] == (Entry("mnist-mlp", 300), Entry("lasso", 200), Entry("lasso", 300))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mnist-mpl", r"unknown problem 'mnist-mpl' \(did you mean 'mnist-mlp'\?\); known: quadratic, "),
        ("lasso,nope", "unknown problem 'nope'.*; known: quadratic, "),
        ("suite:cor", r"unknown suite 'cor' \(did you mean 'core'\?\); known: core, held"),
        ("suite:", "unknown suite ''; known: core, held"),
        ("lasso,", "--problem 'lasso,': expected names .*; known: suite:core, suite:held, quadratic, "),
        ("", "--problem '': expected names .*; known: suite:core, suite:held, quadratic, "),
    ],
)
def test_a_name_nobody_knows_is_refused_with_one_line(text, message):
    with pytest.raises(L2OError, match=f"^{message}") as caught:
        entries(text, (200,))
    assert "\n" not in str(caught.value)


def test_a_problem_named_before_its_suite_is_still_one_that_may_be_trained_on():
    assert entries("mnist-mlp,suite:core", (200,))[0] == Entry("mnist-mlp", 200, trained_on=True)


FILE = Path(gallery.__file__).with_name("GALLERY.md")


def test_the_file_is_what_the_command_prints(capsys):
    assert gallery.main() == 0
    assert FILE.read_text(encoding="utf-8") == capsys.readouterr().out, (
        "the tables have changed: python -m common.gallery > common/GALLERY.md"
    )


@pytest.mark.parametrize("table", [PROBLEMS, TEACHERS, FEATURES, BASELINES, DATASETS], ids=lambda t: t.kind)
def test_every_row_of_a_table_is_a_line_of_its_own(table):
    starts = [line.split(" | ")[0] for line in gallery.page().splitlines() if line.startswith("| `")]
    for name in table:
        assert f"| `{name}`" in starts


def test_every_entry_of_a_suite_is_shown():
    lines = [line for line in gallery.page().splitlines() if line.startswith("| `suite:")]
    for name, suite in SUITES.items():
        for entry in suite:
            (line,) = (row for row in lines if row.startswith(f"| `suite:{name}` | `{entry.problem}` | "))
            steps, trained = line.strip("| ").split(" | ")[2:]
            assert f"{entry.steps:,}" in steps.split(", ")
            assert trained == ("yes" if entry.trained_on else "no")


def test_the_tables_are_rectangular():
    page = gallery.page().replace("\\|", "")
    blocks = [block.splitlines() for block in page.split("\n\n") if block.startswith("| ")]
    assert len(blocks) == 6
    for lines in blocks:
        assert lines[1].replace("|", "").replace("-", "").strip() == ""
        assert len({line.count("|") for line in lines}) == 1
