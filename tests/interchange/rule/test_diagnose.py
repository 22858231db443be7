"""Domain scan, descent check, and the command that prints them."""

import math

import numpy as np
import pytest

from interchange.rule.__main__ import main
from interchange.rule.diagnose import descent, difference, domain_scan
from interchange.rule.rule import Rule


def rule(text: str, **constants: float) -> Rule:
    return Rule.from_text(text, constants)


def faults(text: str) -> dict[tuple[str, str], tuple[float, float]]:
    return {(f.kind, f.dtype): (f.low, f.high) for f in domain_scan(rule(text)).faults}


def test_a_scan_finds_where_updates_and_state_overflow_also_only_after_calm_steps():
    assert faults("-tanh(g)") == {}
    assert faults("-cube(g)")["overflow", "float32"] == (1e13, 1e38)
    assert faults("-g / g")["nan", "float32"][0] == 0.0
    assert ("nan", "float64") in faults("square(g) - square(g)")
    behind_a_finite_update = faults("-g / (sqrt(ema(square(g), 0.9)) + 1e-8)")
    assert behind_a_finite_update["state", "float32"] == (1e20, 1e38)
    late = domain_scan(rule("exp(g / (max(lag(abs(g), 1), greater(2, t) * abs(g)) + 1e-3))")).faults
    assert late and all(fault.after_calm for fault in late)
    assert "after calm steps, first at step 33" in str(late[0])


@pytest.mark.parametrize(
    ("text", "jumps"),
    [
        ("-tanh(g)", ()),
        ("-g / (abs(g) + 1e-9)", ()),
        ("cbrt(g)", ()),
        ("-sign(g)", (0.0,)),
        ("greater(g, 2.5) - g", (2.5,)),
        ("greater(lag(g, 1), 0.3)", (0.3,)),
        ("1 / g", ()),
    ],
)
def test_a_scan_finds_jumps(text, jumps):
    assert domain_scan(rule(text)).jumps == jumps


def test_descent_tells_down_from_up():
    assert list(descent(rule("-g")).values()) == pytest.approx([1.0, 1.0, 1.0])
    assert list(descent(rule("g")).values()) == pytest.approx([-1.0, -1.0, -1.0])
    momentum = descent(Rule.named("momentum"))
    assert 0.0 < momentum[0.0] < momentum[0.5] < momentum[0.9] < 1.0
    # E cos of the sign of a Gaussian with log-normal scales of variance 1.
    want = math.sqrt(2.0 / math.pi) * math.exp(0.5) / math.exp(1.0)
    assert descent(rule("-sign(g)"))[0.0] == pytest.approx(want, abs=0.05)
    assert math.isnan(descent(rule("g / 0"))[0.0])
    assert descent(rule("0 * g"))[0.0] == 0.0


def test_difference_is_relative_and_infinite_where_one_breaks():
    assert difference(rule("-g"), rule("-g - 0")) == 0.0
    assert difference(rule("-g"), rule("-1.001 * g")) == pytest.approx(1e-3, rel=1e-2)
    assert difference(rule("-g"), rule("-g * (g / g)")) == float("inf")


def test_show_prints_equation_constants_and_a_shorter_form(tmp_path, capsys):
    given = Rule.from_text("c0 * m + 0 * 3", {"c0": -0.123456}, {"m": "ema(g, 0.9)", "x": None}, name="mine")
    given.save(tmp_path / "r.json")
    assert main(["show", str(tmp_path / "r.json")]) == 0
    printed = capsys.readouterr().out
    assert "mine:  u = 1 * (c0 * m + 0.0 * 3.0)" in printed and "c0 = -0.123456" in printed
    assert "m = ema(g, 0.9)" in printed and "x = not defined over g" in printed
    assert "simplified, 3 nodes:  c0 * m" in printed and "u_t = " in printed
    assert main(["show"]) == 0
    assert "amsgrad" in capsys.readouterr().out


def test_diff_tells_same_alike_and_other(tmp_path, capsys):
    def diff(left: str, right: str) -> tuple[int, str]:
        for name, text in (("a", left), ("b", right)):
            rule(text).save(tmp_path / name)
        return main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]), capsys.readouterr().out

    code, text = diff("-g * 2", "-(g + g)")
    assert code == 0 and "the same updates" in text
    code, text = diff("-ema(g, 0.9)", "-3 * ema(g, 0.8)")
    assert code == 1 and "the same equation with other constants; updates differ by" in text
    code, text = diff("-g", "-tanh(g)")
    assert code == 1 and "another equation" in text
    code, text = diff("-g", "-g * (g / g)")
    assert code == 1 and "one is finite where the other is not" in text


def test_check_reports_and_rehash_mends(tmp_path, capsys):
    path = tmp_path / "r.json"
    rule("-sign(g) + 0.25").save(path)
    assert main(["check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "moves weights at zero gradient: by up to 0.25 x lr; center=True subtracts it" in printed
    assert "jumps at g = 0" in printed and "descends: E cos(u, -g) = " in printed
    assert main(["check", "sgd", "lion"]) == 0
    assert "finite for every gradient of float32 and float64" in capsys.readouterr().out
    path.write_text(path.read_text().replace("0.25", "0.75"))
    assert main(["check", str(path)]) == 2
    assert "--rehash" in capsys.readouterr().err
    assert main(["check", str(path), "--rehash"]) == 0 and Rule.load(path).expression
    for bad in (["diff", "sgd"], ["check"], ["show", "sgd", "--rehash"], ["shou", "sgd"]):
        assert (main(bad) == 2 and "expected" in (error := capsys.readouterr().err)) or "missing" in error


def test_a_rule_over_undefined_features_is_shown_and_compared_as_text(tmp_path, capsys):
    Rule.from_text("c0 * x", {"c0": 1.0}, {"x": None}).save(tmp_path / "a")
    assert main(["check", str(tmp_path / "a")]) == 0
    assert "no optimizer, as 'x' has no definition over g" in capsys.readouterr().out
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    assert np.isfinite(Rule.load(tmp_path / "a").evaluate({"x": np.ones((2, 1))})).all()
