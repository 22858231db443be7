"""Rules: meaning, files, fronts."""

import csv
import dataclasses
import json
import pickle

import numpy as np
import pytest

from common.errors import L2OError
from interchange.rule.front import read_front, write_front
from interchange.rule.rule import Rule, RuleError, zero_update
from tests.parity.rule_conformance import RNNPROP


@pytest.fixture
def rule():
    record = {"engine": "none", "r2": {"valid": 0.97}, "loss": {"valid": 1e-3}}
    return dataclasses.replace(RNNPROP, name="example", provenance=record)


@pytest.fixture
def g():
    return np.random.default_rng(1).normal(size=(30, 4))


def test_numbers_of_a_rule(rule):
    assert rule.complexity == 12
    assert rule.state_floats == 3
    assert rule.decay_constants == ("c3",)
    assert Rule.from_text("ema(g, b) - ema(g * g, b)", {"b": 0.5}).decay_constants == ("b",)
    assert list(rule.constants) == ["c0", "c1", "c2", "c3"]
    assert rule.program().inputs == ("c0", "g", "c1", "c2", "c3")
    assert zero_update(rule) == 0.0
    assert zero_update(Rule.from_text("c0 - g", constants={"c0": -0.25}, scale=2.0)) == 0.5


def test_a_rule_is_evaluated_on_gradients_or_features_times_its_scale(rule, g):
    columns = {key: Rule(key, tree).evaluate({"g": g}) for key, tree in rule.features.items()}
    np.testing.assert_allclose(rule.evaluate({"g": g}), rule.evaluate(columns), rtol=1e-14)
    mixed = rule.evaluate({"g": g, "m_tilde": columns["m_tilde"]})
    np.testing.assert_allclose(rule.evaluate({"g": g}), mixed, rtol=1e-14)
    plain = dataclasses.replace(rule, scale=1.0)
    np.testing.assert_allclose(rule.evaluate({"g": g}), 0.1 * plain.evaluate({"g": g}), rtol=1e-15)
    assert rule.evaluate({"g": g}, np.float32).dtype == np.float32
    with pytest.raises(RuleError, match="unknown input 'm_tild'; known: m_tilde"):
        rule.evaluate({"m_tild": g})
    with pytest.raises(L2OError, match="expected a value for 'g'"):
        rule.evaluate({"m_tilde": g})


def test_constants_can_be_changed(rule, g):
    changed = rule.with_constants({"c0": 0.5})
    assert list(changed.constants) == list(rule.constants)
    np.testing.assert_array_equal(changed.evaluate({"g": g}), rule.evaluate({"g": g, "c0": 0.5}))
    with pytest.raises(RuleError, match="unknown constant 'c9'; known: c0, c1, c2, c3"):
        rule.with_constants({"c9": 0.5})
    with pytest.raises(RuleError, match="0 < b < 1"):
        rule.with_constants({"c3": 1.0})


def test_files_are_exact(rule, tmp_path):
    rule = rule.with_constants({"c0": 0.1 + 0.2, "c1": 5e-324, "c2": -1.7976931348623157e308})
    rule.save(tmp_path / "rule.json")
    again = Rule.load(tmp_path / "rule.json")
    assert again == rule
    assert again.to_json() == rule.to_json() == (tmp_path / "rule.json").read_text()
    assert again.sha256 == rule.sha256 == json.loads(rule.to_json())["sha256"]
    assert list(again.constants) == list(rule.constants)
    assert pickle.loads(pickle.dumps(rule)) == rule
    changed = rule.with_constants({"c0": np.float32(0.5), "c1": np.int64(2)})
    assert type(changed.constants["c0"]) is float and Rule.from_json(changed.to_json()) == changed


def test_step_sizes_are_in_the_file_of_a_rule_that_has_some(rule):
    sized = dataclasses.replace(rule, step_sizes={"layer_0/w": 0.1, "layer_0/b": 2})
    again = Rule.from_json(sized.to_json())
    assert again == sized and again.step_sizes == {"layer_0/w": 0.1, "layer_0/b": 2.0}
    assert '"1.2.0"' in sized.to_json() and "step_sizes" not in rule.to_json()
    assert sized.sha256 != rule.sha256 and sized.centered().step_sizes == sized.step_sizes
    for wrong in ({"x": 0.0}, {"x": float("nan")}, {"x": "1"}, {1: 1.0}, [1.0], {"x" * 201: 1.0}):
        with pytest.raises(RuleError, match="step_sizes"):
            dataclasses.replace(rule, step_sizes=wrong)


def test_a_missing_hash_warns_and_a_wrong_one_is_refused(rule, tmp_path):
    path = tmp_path / "rule.json"
    payload = json.loads(rule.to_json())
    payload["constants"]["c0"] = 0.0
    path.write_text(json.dumps(payload))
    with pytest.raises(RuleError, match=r"rule\.json: .*--rehash"):
        Rule.load(path)
    assert Rule.load(path, verify=False).constants["c0"] == 0.0
    del payload["sha256"]
    path.write_text(json.dumps(payload))
    with pytest.warns(UserWarning, match=r"rule\.json carries no sha256"):
        assert Rule.load(path).constants["c0"] == 0.0


def test_a_feature_without_definition_evaluates_on_arrays_only(g):
    rule = Rule.from_text("c * mean_g + g", {"c": 2.0}, {"mean_g": None})
    np.testing.assert_allclose(rule.evaluate({"mean_g": g, "g": g}), 3 * g)
    assert Rule.from_json(rule.to_json()) == rule
    for use in (rule.inlined, rule.program, lambda: rule.state_floats, lambda: rule.evaluate({"g": g})):
        with pytest.raises(RuleError, match="'mean_g' has no definition"):
            use()


@pytest.mark.parametrize(
    ("expression", "constants", "features", "message"),
    [
        ("c9 * g", {"c0": 1.0}, {}, "unknown name 'c9'"),
        ("g", {"t": 1.0}, {}, "'t' is reserved"),
        ("g", {}, {"theta": "g"}, "'theta' is reserved"),
        ("g", {}, {"g": "g * g"}, "'g' is reserved"),
        ("g", {"a": 1.0}, {"a": "g"}, "both a constant and a feature"),
        ("g", {"tanh": 1.0}, {}, "no operator or keyword"),
        ("g", {"lambda": 1.0}, {}, "no operator or keyword"),
        ("g", {"_a": 1.0}, {}, "no operator or keyword"),
        ("g", {"c0": float("nan")}, {}, "finite"),
        ("g", {"c0": "1"}, {}, "finite"),
        ("g", {"c0": True}, {}, "finite"),
        ("ema(g, b) + b", {"b": 0.5}, {}, "decay and used elsewhere"),
        ("ema(g, b)", {"b": 1.5}, {}, "0 < b < 1"),
        ("ema(g, b)", {"b": 0.0}, {}, "0 < b < 1"),
        ("ema(g, t)", {}, {}, "as decay, got 't'"),
        ("f", {}, {"f": "ema(g, theta)"}, "as decay, got 'theta'"),
        ("f", {"c": 1.0}, {"f": "c * g"}, "unknown name 'c'"),
    ],
)
def test_malformed_rules_are_refused(expression, constants, features, message):
    with pytest.raises(L2OError, match=message):
        Rule.from_text(expression, constants, features)


def test_a_front_is_read_back_from_its_own_folder_only(rule, tmp_path):
    rules = [rule, Rule.from_text("-g", provenance={"r2": {"valid": 0.5}})]
    write_front(tmp_path / "front", rules)
    assert read_front(tmp_path / "front") == rules
    with (tmp_path / "front" / "front.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["rule_000.json", "rule_001.json"]
    assert rows[0]["complexity"] == "12"
    assert (rows[0]["r2"], rows[0]["loss"], rows[1]["loss"]) == ("0.97", "0.001", "")
    assert rows[1]["expression"] == "-g"
    table = tmp_path / "front" / "front.csv"
    table.write_text(table.read_text().replace("rule_000.json", "../rule_000.json"))
    with pytest.raises(RuleError, match="line 2"):
        read_front(tmp_path / "front")
