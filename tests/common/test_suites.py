"""Suites: what is in them, and how a command names problems and horizons."""

import collections

import pytest

from common.errors import L2OError
from common.tables.problems import PROBLEMS
from common.tables.suites import SUITES, Entry, entries


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
        ("suite:cor", r"unknown suite 'cor' \(did you mean 'core'\?\); known: core"),
        ("suite:", "unknown suite ''; known: core"),
        ("lasso,", "--problem 'lasso,': expected names .*; known: suite:core, quadratic, "),
        ("", "--problem '': expected names .*; known: suite:core, quadratic, "),
    ],
)
def test_a_name_nobody_knows_is_refused_with_one_line(text, message):
    with pytest.raises(L2OError, match=f"^{message}") as caught:
        entries(text, (200,))
    assert "\n" not in str(caught.value)


def test_a_problem_named_before_its_suite_is_still_one_that_may_be_trained_on():
    assert entries("mnist-mlp,suite:core", (200,))[0] == Entry("mnist-mlp", 200, trained_on=True)
