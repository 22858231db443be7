"""The emitted C99 file: its guard, its names whatever they hold, and several rules in one program."""

import ctypes
import dataclasses
import shutil
import subprocess

import numpy as np
import pytest

from interchange.emit import TARGETS
from interchange.language.expression import to_text
from interchange.rule.rule import Rule
from tests.parity.rule_runners import WARNINGS, CSteps, c_library

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler cc")

AVERAGE = Rule.from_text("-c0 * ema_hat(g, b) - 0.1 * tanh(lag(g, 2)) / t", {"c0": 0.5, "b": 0.8})
DTYPES = {"float": np.float32, "double": np.float64}
# rule, gradient that float32 or lr make infinite, lr -> what is not finite
BAD = {
    "gradient": ("-sign(lag(ema(g, 0.9), 1) + g)", np.nan, 1.0),
    "update": ("-1 / g", 0.0, 1.0),
    "state": ("-sign(ema(square(g), 0.9))", np.inf, 1.0),
    "moved": ("-g", 3e38, 1e300),
}
HOSTILE = (
    'a */ #error "b" \\ ??/ end',
    '"); } int main(void) { return 1; } /*',
    "line\nbreak\r\n\t\\\n",
    "??=define x ??' ??( \x01\x7f",
    "Größe \u202e 速い \U0001f600",
    "%s %n {name} {constants} ${x}",
    "x" * 200,
    "",
)


def made(rule: Rule, theta, *flags: str) -> CSteps:
    return CSteps(c_library(TARGETS["c"].emit(rule), *flags), theta)


def text_of(library: ctypes.CDLL, name: str, size: int) -> bytes:
    return bytes((ctypes.c_char * size).in_dll(library, f"rule_{name}"))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("flags", ["-O2", "-Ofast"])
def test_a_coordinate_is_left_alone_whatever_the_compiler_may_assume(dtype, what, flags):
    expression, bad, lr = BAD[what]
    if what == "moved":
        lr = 10.0 if dtype is np.float32 else 1e300
    steps = made(Rule.from_text(expression), np.full(5, -1.0, dtype), flags)
    steps.step(np.array([0.25, 0.25, bad, 0.25, 0.25], dtype), lr)
    assert steps.left == 1 and steps.t == 1.0 and np.isfinite(steps.theta).all()
    assert (steps.theta != -1.0).tolist() == [True, True, False, True, True]
    assert all(np.isfinite(a).all() and a[2] == 0.0 for a in steps.state)


@pytest.mark.parametrize("text", ["-max(g / g, 0.5)", "-min(g / g, 2)"])
def test_what_is_not_a_number_is_not_hidden_by_the_other_argument(text):
    steps = made(Rule.from_text(text), np.ones(2))
    steps.step(np.array([0.0, 0.25]))
    assert steps.left == 1 and steps.theta[0] == 1.0


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_text_and_never_code(name):
    library = c_library(TARGETS["c"].emit(dataclasses.replace(AVERAGE, name=name)))
    assert text_of(library, "name", len(name.encode()) + 1) == name.encode() + b"\0"
    expression = b"-c0 * ema_hat(g, b) - 0.1 * tanh(lag(g, 2)) / t\0"
    assert text_of(library, "expression", len(expression)) == expression
    constants = (ctypes.c_double * 2).in_dll(library, "rule_constants")
    assert list(constants) == [0.5, 0.8]


def test_a_rule_as_long_as_a_rule_may_be_compiles():
    """C99 promises strings of 4,095 characters only; a rule may have 10,000."""
    terms = [f"c{k} * g * 0.1234567890123456" for k in range(160)]
    while len(terms) > 1:
        terms = [f"({' + '.join(terms[k : k + 2])})" for k in range(0, len(terms), 2)]
    rule = Rule.from_text(terms[0], dict.fromkeys((f"c{k}" for k in range(160)), 1e-3))
    steps = made(rule, np.zeros(1))
    steps.step(np.ones(1))
    assert steps.theta[0] == pytest.approx(160 * 1e-3 * 0.1234567890123456, rel=1e-12)
    text = to_text(rule.expression).encode()
    assert len(text) > 4095 and text_of(steps.library, "expression", len(text) + 1) == text + b"\0"


def test_a_rule_that_reads_no_gradient_compiles_without_a_warning():
    steps = made(Rule.from_text("-theta * t"), np.ones(3), "-O1")
    steps.step(np.full(3, np.nan), lr=0.5)
    assert (steps.theta == 0.5).all()


def test_constants_keep_every_digit():
    values = {"c0": 0.1, "c1": -1e-300, "c2": 5e-324, "c3": 1.7976931348623157e308, "c4": -0.0}
    rule = Rule.from_text("-g * (c0 + c1 + c2 + c3 + c4)", values)
    found = (ctypes.c_double * 5).in_dll(c_library(TARGETS["c"].emit(rule)), "rule_constants")
    assert [repr(x) for x in found] == [repr(x) for x in values.values()]


def test_several_rules_in_one_program(tmp_path):
    """Each under names of its own; all that is visible is RULE(...)."""
    rules = {"a": Rule.from_text("-g"), "b": AVERAGE, "c": Rule.from_text("-c0 * asinh(g)", {"c0": 2.0})}
    for key, rule in rules.items():
        (tmp_path / f"{key}.c").write_text(TARGETS["c"].emit(rule))
        command = ["cc", *WARNINGS, f"-DRULE(name)={key}_##name", "-fPIC", "-c", f"{key}.c"]
        subprocess.run(command, cwd=tmp_path, check=True)
    subprocess.run(["cc", "-shared", "-o", "all.so", "a.o", "b.o", "c.o", "-lm"], cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "all.so"))
    slots = [ctypes.c_int.in_dll(library, f"{key}_slots").value for key in rules]
    assert slots == [rule.state_floats for rule in rules.values()]
