"""Rules exported to ONNX and run by onnxruntime: values against the oracle, shapes, constants, the file."""

import numpy as np
import pytest

from common.errors import L2OError
from common.run.storage import canonical_json
from interchange.emit import TARGETS
from interchange.rule.rule import Rule
from tests.parity.random_rules import nasty_inputs
from tests.parity.rule_conformance import RNNPROP
from tests.parity.rule_runners import onnx_file, onnx_session, onnx_steps

onnx = pytest.importorskip("onnx", reason="onnx is not installed: extra [onnx]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: extra [onnx]")


def session(rule: Rule):
    return onnx_session(TARGETS["onnx"].emit(rule))


def calm_steps(steps: int, n: int = 7) -> np.ndarray:
    return nasty_inputs(np.float32)[0][:steps, :n]


RULES = {
    "rnnprop": RNNPROP,
    "small eps": Rule.from_text("ema_hat(g, b) / (sqrt(ema_hat(abs(g), b)) + 1e-8)", {"b": 0.999}),
    "lags": Rule.from_text("lag(g, 1) + 2.0 * lag(g, 3) - lag(ema(g, 0.9), 1)"),
    "running": Rule.from_text("sqrt(cumsum(square(g))) - cummax(-abs(g)) + t * theta / 7.0"),
    "no gradient": Rule.from_text("c0 * lag(t, 2) - cumsum(c0) + ema(3.0, 0.9)", {"c0": 0.25}),
    "number": Rule.from_text("c0", {"c0": 0.1}, scale=3.0),
}


@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("name", RULES)
def test_any_number_of_coordinates(name, n):
    g = calm_steps(3, n)
    got = onnx_file(RULES[name], g, g)
    assert got.shape == (3, n)
    np.testing.assert_allclose(
        got, RULES[name].evaluate({"g": g, "theta": g}, np.float32), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("b", [0.5, 0.9, 0.999, 0.9999999])
def test_one_minus_b_and_its_powers_are_exact(b):
    rule = Rule.from_text("ema(g, b)", {"b": b})
    ones = np.ones((30, 1), np.float32)
    assert onnx_file(rule, ones, ones)[0, 0] == np.float32(1.0 - b)
    corrected = Rule.from_text("1.0 / ema_hat(cumsum(g), b)", {"b": b})
    expected = corrected.evaluate({"g": ones}, np.float32)
    np.testing.assert_allclose(onnx_file(corrected, ones, ones), expected, rtol=1e-6)


def test_constants_can_be_edited_in_the_file():
    rule = RULES["rnnprop"]
    changed = rule.with_constants({"c0": -0.5, "c3": 0.999})
    model = onnx.load_from_string(TARGETS["onnx"].emit(rule))
    for tensor in model.graph.initializer:
        name = tensor.name.removeprefix("constants/")
        if name in changed.constants:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(changed.constants[name]), tensor.name))
    g = calm_steps(20)
    edited = onnx_steps(onnx_session(model.SerializeToString()), g, g)
    np.testing.assert_array_equal(edited, onnx_file(changed, g, g))
    assert (onnx_file(rule, g, g) != edited).any()


def test_the_reference_evaluator_gives_the_same():
    from onnx.reference import ReferenceEvaluator

    rule, g = RULES["running"], calm_steps(1)[0]
    evaluator = ReferenceEvaluator(TARGETS["onnx"].emit(rule))
    zeros = {f"state_{k}": np.zeros_like(g) for k in range(rule.state_floats)}
    u, *_ = evaluator.run(None, {"g": g, "theta": g, "t": np.array(1), **zeros})
    np.testing.assert_allclose(u, onnx_file(rule, g[None], g[None])[0], rtol=1e-6)


def test_the_file_says_what_it_is():
    rule = RULES["rnnprop"]
    content = TARGETS["onnx"].emit(rule)
    assert content == TARGETS["onnx"].emit(rule)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (8, 15)
    assert [function.domain for function in model.functions] == ["symbolic_l2o"]
    assert [node.domain for node in model.graph.node] == ["symbolic_l2o"]
    described = dict(session(rule).get_modelmeta().custom_metadata_map)
    assert (described["format"], described["format_version"]) == ("l2o-onnx", "1.0.0")
    assert Rule.from_json(described["rule"]) == rule
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert values == {"scale": 0.1, **{f"constants/{key}": value for key, value in rule.constants.items()}}
    assert {str(value.dtype) for value in values.values()} == {"float64"}


def test_inputs_and_outputs_are_named_and_open_in_n():
    runner = session(RULES["running"])
    shown = {value.name: (value.type, value.shape) for value in runner.get_inputs()}
    vector = ("tensor(float)", ["N"])
    expected = dict.fromkeys(("g", "theta", "state_0", "state_1"), vector)
    assert shown == expected | {"t": ("tensor(int64)", [])}
    shown = {value.name: (value.type, value.shape) for value in runner.get_outputs()}
    assert shown == {"u": vector, "new_state_0": vector, "new_state_1": vector}
    assert "theta" not in [value.name for value in session(RULES["lags"]).get_inputs()]


@pytest.mark.parametrize("name", ["a\nb", "\u202e", "\ud800", "\x00", "{0}", "😀"])
def test_any_name_can_be_exported(name):
    rule = Rule.from_text("c0 * g", {"c0": 0.5}, name=name)
    described = session(rule).get_modelmeta().custom_metadata_map
    assert Rule.from_json(described["rule"]).name == name
    assert canonical_json(described)


def test_files_that_reduce_need_a_newer_opset_and_no_newer_format():
    model = onnx.load_from_string(TARGETS["onnx"].emit(Rule.from_text("-g / (row_mean(square(g)) + 1)")))
    assert (model.ir_version, model.opset_import[0].version) == (8, 18)


@pytest.mark.parametrize("name", RULES)
def test_every_node_is_read_by_another(name):
    """onnxruntime before 1.17 does not load others."""
    (function,) = onnx.load_from_string(TARGETS["onnx"].emit(RULES[name])).functions
    read = {name for node in function.node for name in node.input} | set(function.output)
    assert all(read.intersection(node.output) for node in function.node)


@pytest.mark.parametrize("name", RULES)
def test_double_is_the_oracle_in_double(name):
    g = calm_steps(5).astype(np.float64)
    got = onnx_steps(onnx_session(TARGETS["onnx"].emit(RULES[name], double=True)), g, g)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, RULES[name].evaluate({"g": g, "theta": g}), rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("name", sorted({"sinh", "cosh", "tan", "asinh", "atan", "erf", "erfc"}))
def test_double_is_refused_where_runtimes_have_no_kernel(name):
    with pytest.raises(L2OError, match=f"{name}: ONNX runtimes have no kernel for double") as caught:
        TARGETS["onnx"].emit(Rule.from_text(f"{name}(g)"), double=True)
    assert "\n" not in str(caught.value)
