"""Refitting and pruning: constants recovered, never worse, useless nodes gone, deadlines kept."""

import dataclasses
import math
import random
import time

import numpy as np
import pytest

from interchange.distill import refit as module
from interchange.distill.refit import improve, polish, predict, refit, score
from interchange.language import expression as ex
from interchange.language.execute import compile_program, evaluate
from interchange.rule.rule import Rule
from interchange.search.samples import Sequences

TRUE = Rule.from_text(
    "c0 * tanh(c1 * m + c2 * ema(m, c3))",
    {"c0": -0.9, "c1": 0.7, "c2": 1.6, "c3": 0.85},
    {"m": None, "g": "g"},
    scale=0.01,
)


def made(rule: Rule, seed: int, steps: int = 60, coordinates: int = 8) -> Sequences:
    """Noise-free sequences of a rule; scale belongs to the rule, not to the target."""
    generator = np.random.default_rng(seed)
    features = {name: generator.normal(size=(steps, coordinates)) for name in ("m", "g")}
    program = compile_program([rule.expression])
    return Sequences(features, evaluate(program, features | rule.constants)[0])


@pytest.fixture(scope="module")
def splits() -> dict[str, Sequences]:
    return {split: made(TRUE, seed) for seed, split in enumerate(("train", "valid", "test"))}


@pytest.mark.parametrize(
    "start",
    [
        {"c0": -0.5, "c1": 1.0, "c2": 1.0, "c3": 0.5},
        {"c0": -2.0, "c1": 0.3, "c2": 0.5, "c3": 0.98},
        {"c0": -0.1, "c1": 0.1, "c2": 0.1, "c3": 0.7},
    ],
)
def test_all_constants_of_a_known_rule_are_recovered_decay_included(start, splits):
    begin = TRUE.with_constants(start)
    assert score(begin, splits["train"]) < 0.9
    found = refit(begin, splits["train"], iterations=60)
    np.testing.assert_allclose(predict(TRUE, splits["test"]), splits["test"].target, rtol=1e-12)
    for name, value in TRUE.constants.items():
        assert found.constants[name] == pytest.approx(value, abs=1e-4), name
    assert score(found, splits["test"]) > 0.99999
    assert (found.expression, found.scale, found.features) == (TRUE.expression, TRUE.scale, TRUE.features)


def random_rule(seed: int) -> Rule:
    """Any rule over the same features with constants anywhere."""
    generator = random.Random(seed)
    constants: dict[str, float] = {}

    def constant(value: float) -> ex.Node:
        constants[f"c{len(constants)}"] = value
        return ex.name(f"c{len(constants) - 1}")

    def tree(depth: int) -> ex.Node:
        kind = generator.random()
        if depth == 0 or kind < 0.2:
            return ex.call("mul", constant(generator.gauss(0, 2)), ex.name(generator.choice("mg")))
        if kind < 0.4:
            return ex.call("ema", tree(depth - 1), constant(generator.uniform(0.01, 0.99)))
        if kind < 0.6:
            return ex.call(generator.choice(["tanh", "square", "abs", "exp", "sqrt"]), tree(depth - 1))
        return ex.call(generator.choice(["add", "mul", "sub", "aq", "div"]), tree(depth - 1), tree(depth - 1))

    node = ex.call("mul", constant(generator.gauss(0, 1)), tree(3))
    return Rule("random", node, constants, {"m": None, "g": ex.name("g")})


def test_refitting_any_rule_never_lowers_its_r2_on_the_data_it_is_fitted_to(splits):
    data, gains = splits["train"], []
    for seed in range(40):
        rule = random_rule(seed)
        before, found = score(rule, data), refit(rule, data, iterations=8)
        after = score(found, data)
        assert after >= before - 1e-12, f"{rule.expression}: {before} -> {after}"
        assert all(0.0 < found.constants[name] < 1.0 for name in rule.decay_constants)
        gains.append(after - before)
    assert sum(gain > 0.01 for gain in gains) > 20


def test_a_decay_that_belongs_outside_its_range_stays_inside():
    """A running sum is what no decay below 1 gives."""
    rule = Rule.from_text("c0 * ema(m, c1)", {"c0": 1.0, "c1": 0.9}, {"m": None})
    data = made(rule, 3, steps=200)
    data = dataclasses.replace(data, target=np.cumsum(data.features["m"], axis=0))
    found = refit(rule, data, iterations=60)
    assert 0.99 < found.constants["c1"] < 1.0
    assert score(found, data) > 0.98


def test_pruning_removes_a_planted_useless_term_and_keeps_r2(splits):
    planted = Rule.from_text(
        "c0 * tanh(c1 * m + c2 * ema(m, c3)) + c4 * square(g)",
        TRUE.constants | {"c4": 1e-3},
        {"m": None, "g": "g"},
        scale=0.01,
    )
    versions = improve(planted, splits, time.monotonic() + 60.0, max_size=planted.complexity)
    sizes = [version.complexity for version in versions]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == planted.complexity
    kept = next(version for version in versions if version.complexity <= TRUE.complexity)
    assert kept.complexity == TRUE.complexity and "g" not in kept.features
    assert set(kept.constants) == set(TRUE.constants)
    assert kept.provenance["r2"]["test"] > 0.99999
    assert sizes[-1] < TRUE.complexity  # pruning goes on below, where it costs
    smaller = improve(planted, splits, time.monotonic() + 60.0, max_size=TRUE.complexity - 3)
    assert smaller and max(version.complexity for version in smaller) <= TRUE.complexity - 3
    assert versions[-1].provenance["r2"]["test"] < 0.99


def test_scores_of_every_split_are_recorded_and_are_the_rules_own(splits):
    rule = dataclasses.replace(TRUE.with_constants({"c0": -0.5}), provenance={"engine": "none"})
    for version in improve(rule, splits, time.monotonic() + 60.0, max_size=100):
        assert version.provenance["engine"] == "none"
        assert version.provenance["r2"] == {split: score(version, data) for split, data in splits.items()}


def test_after_the_deadline_nothing_is_fitted_but_the_draft_is_scored(splits, monkeypatch):
    def never(*args: object) -> None:
        raise AssertionError("fitted after the deadline")

    monkeypatch.setattr(module, "_normal_equations", never)
    draft = TRUE.with_constants({"c0": -0.5})
    smaller = TRUE.complexity - 3  # sizes above it are pruned but not returned
    assert improve(TRUE, splits, time.monotonic() - 1.0, max_size=smaller) == []
    (version,) = improve(draft, splits, time.monotonic() - 1.0, max_size=100)
    assert version.constants == draft.constants and version.expression == draft.expression
    assert version.provenance["r2"]["valid"] == score(draft, splits["valid"])


def test_once_the_deadline_passes_pruning_ends(splits, monkeypatch):
    clock, judge = [0.0], module.score

    def late(rule: Rule, data: Sequences) -> float:
        clock[0] += data is splits["test"]  # once per version
        return judge(rule, data)

    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module, "score", late)
    versions = improve(TRUE, splits, 1.5, max_size=100)
    assert len(versions) == 2 and versions[1].complexity < versions[0].complexity


def test_a_fit_ends_at_the_deadline_with_the_best_so_far(splits, monkeypatch):
    clock, begin = [0.0], TRUE.with_constants({"c0": -0.5, "c3": 0.5})
    equations = module._normal_equations

    def slow(*arguments: object) -> object:
        clock[0] += 1.0
        return equations(*arguments)

    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module, "_normal_equations", slow)
    scores = []
    for end in (0.5, 5.5, 99.0):
        clock[0] = 0.0
        scores.append(score(refit(begin, splits["train"], deadline=end), splits["train"]))
        assert clock[0] <= end + 1.0
    assert scores[0] == score(begin, splits["train"]) < scores[1] < scores[2]


def test_parts_of_the_coordinates_give_the_same_fit_and_the_same_predictions(splits, monkeypatch):
    begin, data = TRUE.with_constants({"c0": -0.5, "c3": 0.5}), splits["train"]
    whole, found = predict(begin, data), refit(begin, data, iterations=12)
    assert score(found, data) > score(begin, data) + 0.01
    forms = dict.fromkeys(("c0", "c1", "c2"), "plain") | {"c3": "logit"}
    point = np.array([-0.5, 0.7, 1.6, 0.3])
    asked = (compile_program([TRUE.expression]), forms, point, data, None, math.inf)
    sums = module._normal_equations(*asked)
    monkeypatch.setattr(module, "_CHUNK", 1)  # one coordinate at a time
    np.testing.assert_array_equal(predict(begin, data), whole)
    for part, expected in zip(module._normal_equations(*asked), sums, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-9)
    parts = refit(begin, data, iterations=12)
    np.testing.assert_allclose(list(parts.constants.values()), list(found.constants.values()), rtol=1e-9)


def test_many_sequences_are_fitted_in_part_first_and_never_worse(splits, monkeypatch):
    begin, seen = TRUE.with_constants({"c0": -0.5, "c3": 0.5}), []
    data = made(TRUE, 7, coordinates=40)
    factors = np.where(np.arange(40) == 0, -1.0, 1.1)  # the first part misleads
    data = dataclasses.replace(data, target=data.target * factors)
    equations = module._normal_equations

    def noted(*arguments: object) -> object:
        seen.append(arguments[3].target.shape[1])
        return equations(*arguments)

    monkeypatch.setattr(module, "_normal_equations", noted)
    monkeypatch.setattr(module, "_FEW", 2 * 60)
    found = refit(begin, data)
    assert set(seen) == {2, 40} and seen.index(40) == seen.count(2)
    assert seen.count(40) < seen.count(2) + 10
    monkeypatch.setattr(module, "_FEW", 60)
    best = TRUE.with_constants({"c0": -0.99})
    assert score(refit(best, data, iterations=1), data) >= score(best, data)
    assert score(found, data) > 0.9


def test_drafts_whose_output_is_not_finite_are_dropped_and_rules_without_constants_are_not_fitted(splits):
    plain = Rule.from_text("-m", {}, {"m": None})
    assert refit(plain, splits["train"]) is plain
    constants = {"c0": 1.0, "c1": 50.0, "c2": 9.0}
    rule = Rule.from_text("c0 * exp(c1 * exp(square(m) * c2))", constants, {"m": None})
    assert score(rule, splits["valid"]) == -math.inf
    for version in improve(rule, splits, time.monotonic() + 60.0, max_size=100):
        assert math.isfinite(version.provenance["r2"]["valid"])


def test_a_test_split_without_an_r2_is_only_told(splits):
    """Its targets are all equal; what is fitted and what is chosen must not depend on it."""
    still = Sequences(splits["test"].features, np.ones_like(splits["test"].target))
    rule = Rule.from_text("c0 * ema(m, c1)", {"c0": 1.0, "c1": 0.5}, {"m": None})
    got, want = (improve(rule, splits | other, math.inf, 20) for other in ({"test": still}, {}))
    assert got[0].provenance["r2"] == want[0].provenance["r2"] | {"test": None}
    assert improve(rule, splits | {"valid": still}, math.inf, 20) == []
    polished = polish(rule, splits | {"test": still}, math.inf)
    assert polished.provenance["r2"]["test"] is None and polished.provenance["r2"]["train"] is not None


def test_where_no_step_is_finite_the_rule_stays_as_it_is(splits, monkeypatch):
    """A derivative can be infinite where the error is finite; a decay that is nan would be an error."""
    rule = Rule.from_text("c0 * ema(m, c1)", {"c0": 1.0, "c1": 0.5}, {"m": None})
    nothing = 1.0, np.full((2, 2), np.nan), np.full(2, np.nan)
    monkeypatch.setattr(module, "_normal_equations", lambda *_: nothing)
    assert refit(rule, splits["train"]) == rule
    assert improve(rule, splits, math.inf, 20)[0].constants == rule.constants
