"""Rules and fronts in Python: printed, in notebooks, made of the table's features, and not to be changed."""

import copy
import json
import pickle

import pytest

from interchange import Front, Rule
from interchange.language.checks import RuleError
from tests.helpers.pages import Page

RULE = Rule.from_text("c0 * m_tilde + ema(g, c1)", {"c0": -0.5, "c1": 0.9})


def test_features_of_the_table_are_known_by_name():
    assert str(RULE.features["m_tilde"]) and set(RULE.features) == {"m_tilde"}
    own = Rule.from_text("m_tilde", features={"m_tilde": "g"})
    assert own.features != RULE.features
    assert Rule.from_text("m_tilde * g", {"m_tilde": 2.0}).features == {}
    payload = json.loads(RULE.to_json()) | {"features": {}}
    with pytest.raises(RuleError, match="unknown name 'm_tilde'"):  # a file says all it needs
        Rule.from_json(json.dumps(payload), verify=False)


def test_a_rule_prints_with_its_definitions():
    lines = str(RULE).splitlines()
    assert lines[0] == "rule:  u = -0.5 * m_tilde + ema(g, 0.9)"
    assert any(line.split()[:1] == ["m_tilde"] for line in lines)
    assert lines[-1] == f"  {RULE.complexity} nodes, 3 floats of state per parameter"
    momentum = str(Rule.named("momentum"))
    assert "u = -10.0 * ema(g, 0.9)\n" in momentum and momentum.endswith(", 1 float of state per parameter")


@pytest.mark.parametrize(
    ("decay", "shown"), [(0.999962, "0.999962"), (0.99996204, "0.99996204"), (0.8, "0.8")]
)
def test_decays_near_1_keep_the_digits_that_tell_them_from_it(decay, shown):
    assert f"ema(g, {shown})" in str(Rule.from_text("ema(g, c0)", {"c0": decay}))


def test_notebooks_show_a_rule_as_latex_and_a_front_as_a_table():
    text = RULE._repr_latex_()
    assert text.startswith(r"$$\begin{aligned} u_t &= ") and text.count("&=") == 2
    assert r"\tilde{m}_t &=" in text
    front = Front([Rule.named("sgd"), RULE])
    read = Page(front._repr_html_())
    assert not read.open and read.tags.count("math") == 2
    assert str(front).splitlines()[0].split() == ["2", "nodes", "u", "=", "-g"]


def test_constants_are_read_only():
    for change in (
        lambda c: c.__setitem__("c0", 1.0),
        lambda c: c.update(c0=1.0),
        lambda c: c.pop("c0"),
        lambda c: c.clear(),
        lambda c: c.setdefault("c9", 1.0),
    ):
        with pytest.raises(TypeError, match=r"read-only; make another rule: rule\.with_constants"):
            change(RULE.constants)
    assert RULE.constants == {"c0": -0.5, "c1": 0.9} == (RULE.constants | {})
    assert pickle.loads(pickle.dumps(RULE)) == copy.deepcopy(RULE) == RULE
