"""Rule files from strangers: one clear error, quickly, and nothing is executed."""

import ast
import dataclasses
import json
import keyword
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import L2OError
from interchange.emit import TARGETS
from interchange.language.checks import RAW
from interchange.language.operators import OPERATORS
from interchange.language.parse import NAME, ParseError, parse
from interchange.rule.rule import Rule
from tests.helpers.effort import few_calls
from tests.security.hostile_rules import PIECES, REFUSED

pytestmark = pytest.mark.filterwarnings("ignore:.*carries no sha256")


@pytest.fixture
def rule():
    return Rule.from_text("c0 * tanh(g / c1)", {"c0": -0.01, "c1": 0.5}, name="honest")


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text[:24]))
def test_hostile_expressions_are_refused_in_one_short_line(text):
    with few_calls(50_000), pytest.raises(ParseError) as caught:
        parse(text)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 1, ["g"], b"g"])
def test_an_expression_is_text(value):
    with pytest.raises(ParseError, match="as text"):
        parse(value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"c0": -0.01', '"c0": NaN'),
        ('"c0": -0.01', '"c0": -Infinity'),
        ('"c0": -0.01', '"c0": 1e999'),
        ('"c0": -0.01', '"c0": ' + "9" * 5000),
        ('"c0": -0.01', '"c0": -0.01, "c0": 1.0'),
        ('"c0": -0.01', '"c0": "-0.01"'),
        ('"c0": -0.01', '"c0": true'),
        ('"c0": -0.01', '"c0": null'),
        ('"c0": -0.01', '"__class__": -0.01'),
        ('"name": "honest"', '"name": 7'),
        ('"name": "honest"', '"name": "honest", "surprise": 1'),
        ('"format": "l2o-rule"', '"format": "l2o-teacher"'),
        ('"format_version": "1.0.0"', '"format_version": "2.0.0"'),
        ('"format_version": "1.0.0"', '"format_version": 1'),
        ('"features": {}', '"features": []'),
        ('"features": {}', '"features": {"f": 1}'),
        ('"features": {}', '"features": {"f": "f"}'),
        ('"features": {}', '"features": {"f": "g.real"}'),
        ('"scale": 1.0', '"scale": true'),
        ('"scale": 1.0', '"scale": [1.0]'),
        ('"complexity": 6', '"complexity": true'),
        ('"provenance": {}', '"provenance": ' + "[" * 100_000),
        ('"provenance": {}', '"provenance": "' + "x" * (1 << 20) + '"'),
        ("tanh(g / c1)", "__import__('os')"),
        ("tanh(g / c1)", "tanh(g / c2)"),
        ("{", "["),
        ("}", ""),
    ],
    ids=lambda text: ascii(text[:30]),
)
def test_hostile_files_are_refused_by_name(rule, tmp_path, old, new):
    text = rule.to_json()
    assert old in text
    changed = text.replace(old, new, 1)
    payload_line = changed.rsplit(",\n", 1)[0] + "\n}\n"  # without the hash, which alone would refuse it
    path = tmp_path / "hostile.json"
    for content in (changed, payload_line):
        path.write_text(content)
        with few_calls(50_000), pytest.raises(L2OError, match=r"hostile\.json"):
            Rule.load(path)


def test_every_changed_byte_is_noticed(rule, tmp_path):
    text = rule.to_json()
    path = tmp_path / "rule.json"
    accepted = 0
    for position, letter in enumerate(text):
        changed = text[:position] + chr(ord(letter) ^ 1) + text[position + 1 :]
        path.write_text(changed)
        try:
            again = Rule.load(path)
        except L2OError:
            continue
        accepted += 1
        assert again == rule, ascii(changed[max(0, position - 20) : position + 20])
    assert accepted < len(text) // 10  # a change of white space changes nothing


def onnx_without_metadata(content: bytes) -> bytes:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: extra [onnx]")
    model = onnx.load_from_string(content)
    model.ClearField("metadata_props")
    return model.SerializeToString(deterministic=True)


def c_without_name(content: str, name: str) -> str:
    """The C file without its name, which has to be this one, in one string of plain characters."""
    found = re.search(r'^const char RULE\(name\)\[\] = "((?:[ !#->@-\[\]-~]|\\[0-7]{3})*)";$', content, re.M)
    characters = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), found[1].encode())
    assert characters == name.encode()
    return content[: found.start(1)] + content[found.end(1) :]


@pytest.mark.parametrize("bad", ['c0"] + __import__("os")["', "c0 ", "c-0", "é", "", "a" * 65, "if"])
def test_names_of_constants_are_checked_before_anything_is_generated(bad):
    with pytest.raises(L2OError):
        Rule("x", parse("g"), {bad: 1.0})


def test_size_of_inlined_programs_stays_small():
    feature = "max(" * 60 + "g" + ", t)" * 60
    wide = "+".join(["f"] * 99)
    with few_calls(500_000):
        rule = Rule.from_text(wide, features={"f": feature})
        assert len(rule.program().instructions) < 200
        assert len(Rule.from_text("lag(" * 90 + "g" + ", 100)" * 90).program().writes) == 9000


@pytest.mark.parametrize(
    "text",
    ["10**10**10", "g**10**10**10", "2**-10**10", "g**1e300", "(g**16)**16", "(g + 1)**(g**15)", "g < g"],
)
def test_powers_are_written_out_small_whatever_they_stand_for(text):
    """Python would compute the number 10**10**10, of ten thousand million digits, if it were asked."""
    with few_calls(50_000):
        rule = Rule.from_text(text)
        assert rule.complexity <= 12 and len(rule.program().instructions) <= 12
        assert rule.evaluate({"g": np.full((2, 3), 2.0)}).shape == (2, 3)


def test_a_power_of_powers_ends_where_it_grows_too_large():
    with few_calls(50_000), pytest.raises(ParseError, match="power of at most 1000 nodes"):
        parse("(" * 12 + "g" + "**15)" * 12)


def test_a_thousand_hostile_files_run_no_code_and_end_quickly(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("hostile_rules.py")), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["control"] == ["exec", "open"]
    assert report["events"] == report["slow"] == report["odd"] == []
    assert report["valid"] + report["errors"] == 1000 and report["errors"] > 800 and report["valid"] > 50
    assert report["mib"] < 50.0
    assert not (tmp_path / "CANARY").exists()


def hostile_names(count: int) -> list[str]:
    draw = random.Random(5)
    return ["".join(draw.choices(PIECES, k=draw.randint(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("target", TARGETS)
def test_hundreds_of_hostile_names_leave_the_syntax_tree_of_the_template(rule, target):
    def emitted(name: str) -> str | bytes:
        given = dataclasses.replace(rule, name=name, provenance={"by": name, "n": [name]})
        content = TARGETS[target].emit(given)
        if target == "c":
            return c_without_name(content, name)
        return onnx_without_metadata(content) if target == "onnx" else content

    honest = emitted("honest")
    for name in (*PIECES, *hostile_names(300)):
        content = emitted(name)
        if TARGETS[target].suffix != ".py":
            assert content == honest
            continue
        assert content.isascii()
        # All lines are the template's but one, and that one assigns the name as a literal.
        pairs = zip(content.split("\n"), honest.split("\n"), strict=True)
        (changed,) = [line for line, other in pairs if line != other]
        (statement,) = ast.parse(changed).body
        assert ast.unparse(statement.targets) == "NAME" and ast.literal_eval(statement.value) == name


@pytest.mark.parametrize("target", [name for name, row in TARGETS.items() if row.suffix == ".py"])
def test_names_of_the_template_may_be_names_of_constants_and_features(target):
    text = TARGETS[target].emit(Rule.named("adam"))
    used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    used |= {node.arg for node in ast.walk(ast.parse(text)) if isinstance(node, ast.arg)}
    used = {name for name in used if NAME.fullmatch(name) and name not in RAW}
    assert len(used) > 10
    for name in sorted(used - {*OPERATORS} - {*keyword.kwlist}):
        plain = Rule.from_text("c * f", {"c": 2.0}, {"f": "tanh(g)"})
        hostile = Rule.from_text(f"{name} * f", {name: 2.0}, {"f": "tanh(g)"})
        texts = [re.sub("rule_[0-9a-f]{16}", "", TARGETS[target].emit(r)) for r in (plain, hostile)]
        trees = [ast.dump(ast.parse(text)) for text in texts]
        expected = trees[0].replace("'c * f'", f"'{name} * f'").replace("value='c'", f"value='{name}'")
        assert trees[1] == expected
