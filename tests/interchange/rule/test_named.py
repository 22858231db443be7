"""The gallery of named rules."""

import dataclasses
import inspect
import shlex
from pathlib import Path

import numpy as np
import pytest

from common.errors import L2OError
from common.run.cli import parser_for
from interchange.meta.config import TuneConfig
from interchange.rule import gallery as named
from interchange.rule.published.templates import psi
from interchange.rule.rule import Rule
from interchange.rule.source import named_spec
from interchange.rule.words import floats


@pytest.mark.parametrize("name", named.NAMED)
def test_a_named_rule_is_an_optimizer_that_survives_its_file(name, tmp_path):
    rule = Rule.named(name)
    assert rule.name == name and rule.provenance["source"]
    rule.save(tmp_path / "rule.json")
    assert Rule.load(tmp_path / "rule.json") == rule
    u = rule.tried({"g": np.random.default_rng(0).normal(size=(30, 19)), "theta": np.zeros((30, 19))})
    assert np.isfinite(u).all() and np.abs(u).max() > 0.0


def test_options_replace_the_defaults_and_files_come_before_names(tmp_path, monkeypatch):
    rule = Rule.named("momentum", beta=0.5)
    assert rule.constants == {"gain": 2.0, "beta": 0.5}
    np.testing.assert_allclose(rule.evaluate({"g": np.ones((3, 1))})[:, 0], [-1.0, -1.5, -1.75])
    monkeypatch.chdir(tmp_path)
    assert Rule.load("sgd") == Rule.named("sgd")
    Rule.from_text("-2 * g", name="mine").save("sgd")
    assert Rule.load("sgd").name == "mine"


def test_state_and_published_equations_have_the_sizes_they_are_known_for():
    floats = {"sgd": 0, "adam": 2, "amsgrad": 3}
    floats |= dict.fromkeys(("momentum", "nesterov", "rmsprop", "adagrad", "lion"), 1)
    assert {name: Rule.named(name).state_floats for name in floats} == floats
    for name, nodes in (("dm_48", 48), ("dm_49", 49)):
        rule = Rule.named(name)
        assert all(f"lag(g, {k})" in str(rule.expression) for k in (1, 2, 10, 13))
        # There a lag was a column, here it is three nodes; five stand in each equation.
        assert rule.complexity - 2 * 5 == nodes


def test_faults_name_what_is_known():
    with pytest.raises(L2OError, match=r"unknown rule 'adem' \(did you mean 'adam'\?\); known: sgd, "):
        Rule.named("adem")
    with pytest.raises(L2OError, match="rule 'adam': unknown option 'beta'; known: beta1, beta2, eps"):
        Rule.named("adam", beta=0.9)
    with pytest.raises(L2OError, match="nor a rule of the gallery: sgd, "):
        Rule.load("adem")
    with pytest.raises(L2OError, match="rule 'sgd': unknown option 'of'; known: none"):
        Rule.load("sgd(adam)")
    with pytest.raises(L2OError, match=r"unknown rule 'adem' \(did you mean 'adam'"):
        Rule.named("cautious", of="adem")


def test_the_page_on_rules_has_every_published_row_with_its_options_and_state():
    text = Path(named.__file__).parents[1].joinpath("RULES.md").read_text("utf-8")
    table = text.partition("| name | what it is | options | floats |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    after, before = (list(named.NAMED).index(name) for name in ("lion", "dm_48"))
    assert [row[0].strip("`") for row in rows] == list(named.NAMED)[after + 1 : before]
    for name, _, options, kept, _ in rows:
        rule = Rule.named(name.strip("`"))
        known = inspect.signature(named.NAMED[rule.name].build).parameters
        assert [option.partition(" (")[0] for option in options.split(", ") if option] == list(known)
        if "of" not in known:
            vector = str(rule.state_size((7,)) // 7)
            matrix = floats(rule).replace(" floats", "").replace(" float", "").removeprefix("0 + ")
            assert kept == (matrix if matrix == vector else f"{matrix}; vectors {vector}"), name


def test_psi_sums_over_features_and_lags():
    rule = psi({"g": "g", "m": "ema(g, 0.9)"}, lags=1, gamma=2.0)
    values = {"w_g_0": 0.4, "w_g_1": 0.3, "w_m_0": -0.2, "w_m_1": 0.1}
    g = np.random.default_rng(0).normal(size=(6, 2))
    m = np.zeros_like(g)
    for t in range(6):
        m[t] = 0.9 * (m[t - 1] if t else 0.0) + 0.1 * g[t]
    want = 0.0
    for key, x in (("g", g), ("m", m)):
        for k in (0, 1):
            past = np.concatenate([np.zeros((k, 2)), x[: len(x) - k]])
            want = want - values[f"w_{key}_{k}"] * 2.0 * np.tanh(past / 2.0)
    np.testing.assert_allclose(rule.with_constants(values).evaluate({"g": g}), 0.01 * want, rtol=1e-12)


def test_options_stand_behind_a_name():
    rule = Rule.load("psi:features=m_tilde+g,lags=5,gamma=2")
    assert set(rule.features) == {"m_tilde", "g"} and rule.constants["gamma"] == 2.0
    assert len(rule.constants) == 2 * 6 + 1
    assert Rule.named("adam:beta1=0.8").constants["beta1"] == 0.8
    assert Rule.named("cautious(momentum:beta=0.5)").constants["beta"] == 0.5


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("psi:lags=2.5", "whole number of lags"),
        ("psi:gamma=0", "above 0"),
        ("psi:features=nothing", "unknown feature"),
        ("psi:lags", "option=value"),
        ("psi:beta=1", "unknown option"),
    ],
)
def test_bad_options_behind_a_name_are_told(name, said):
    with pytest.raises(L2OError, match=said):
        Rule.named(name)


def test_options_of_a_rule_and_of_any_optimizer_stand_together_in_a_spec():
    spec = named_spec("psi:features=m_tilde+g,lags=1,lr=0.5")
    assert (spec.kind, spec.target, spec.lr) == ("rule", "psi:features=m_tilde+g,lags=1", 0.5)
    assert named_spec("rnnprop_tuned:lr=2").target == "rnnprop_tuned"
    assert named_spec("rule:psi:lags=0,schedule=cosine").target == "psi:lags=0"


def test_templates_are_what_they_say():
    g = np.random.default_rng(0).normal(size=(40, 3))
    adam, whole = Rule.named("adam"), Rule.named("adam_blend", blend=1.0)
    np.testing.assert_allclose(whole.evaluate({"g": g}), adam.evaluate({"g": g}), rtol=1e-12)
    plain = Rule.named("adam_blend", blend=0.0).evaluate({"g": g})
    np.testing.assert_allclose(plain, Rule.from_text("-ema_hat(g, 0.9)").evaluate({"g": g}), rtol=1e-12)
    powers = Rule.named("psi_power:features=g,lags=0,power=0.5,start=2").evaluate({"g": g})
    np.testing.assert_allclose(powers, -0.02 * np.sign(g) * np.sqrt(np.abs(g)), rtol=1e-12)


def test_the_tuned_rule_is_what_the_command_beside_it_makes():
    """Its record names the settings and the start of that command."""
    rule, start = Rule.named("rnnprop_tuned"), Rule.named("rnnprop_start")
    record = rule.provenance["tuned"]
    words = shlex.split(rule.provenance["source"])
    assert words[:4] == ["python", "-m", "torch_impl.tune", "rnnprop_start"]
    flags = vars(
        parser_for(TuneConfig, prog="tune", description="", positional=("rule",)).parse_args(words[3:])
    )
    asked = {name: value for name, value in flags.items() if value and name not in ("rule", "config")}
    # Defaults of TuneConfig are not on record; start values were given by hand, those of the start rule.
    defaults = {field.name: field.default for field in dataclasses.fields(TuneConfig)}
    asked = {name: value for name, value in asked.items() if value != defaults[name]}
    settings = {k: v for k, v in record["settings"].items() if k not in ("rule", "constants")}
    assert settings == asked
    assert record["from_constants"] == start.constants and record["from_scale"] == start.scale
    assert (rule.expression, rule.features) == (start.expression, start.features)
    assert record["validation"]["best"] < record["validation"]["before"]


def test_the_searched_rule_is_what_the_command_beside_it_chose():
    """By its own record, better than where the search began on optimizees that decided nothing before."""
    rule = Rule.named("polar_normalised")
    record = rule.provenance["found"]
    assert rule.provenance["source"].startswith(record["command"])
    assert record["chosen"] == "found" and record["behind_start"] < -2.0 * record["error"] < 0.0
    assert rule.sees_tensors and rule.decay_constants == ("memory", "memory_of_vectors")
