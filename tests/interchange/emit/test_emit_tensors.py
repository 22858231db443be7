"""Exported rules that see tensors: the guard of rows' state, both ways of one file, layouts, refusals."""

import numpy as np
import pytest

from common.errors import L2OError
from interchange import export
from interchange.emit import TARGETS
from interchange.emit.c_kernels import roll_source, step_source, vjp_source
from interchange.language.execute import initial_state, step
from interchange.language.view import View, canonical, matrix, vector
from interchange.rule.rule import Rule
from tests.parity.needs import need
from tests.parity.rule_runners import load, onnx_session
from tests.parity.tensors.tensor_runners import CMatrix, as_matrix, as_vector

MUON = Rule.from_text("by_matrix(-polar(g + c * ema(g, b)), -ema_hat(g, b))", {"b": 0.9, "c": 0.7})
FACTORED = Rule.from_text(
    "-g / (sqrt(ema(row_mean(square(g)), 0.9) * col_max(abs(g)) * ema(mean(abs(g)), 0.5)) "
    "+ cummax(col_max(abs(g))) + c + 0.1 * lag(g, 1))",
    {"c": 0.5},
)


def guarded_steps(rule: Rule, view: View, gradients: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], int]:
    """The guard of FORMATS.md section 3 written out on the oracle: parameters, states and t."""
    program = rule.program(view.matrix)
    theta, state, t = np.zeros(view.shape), initial_state(program, view), 0
    for g in gradients:
        (u,), new = step(program, {"g": g, "theta": theta, **rule.constants}, state, t + 1, view)
        ok = np.isfinite(theta + u)
        for a in new:
            ok = ok & np.isfinite(a)
        theta = np.where(ok, theta + u, theta)
        kept = []
        for a, old in zip(new, state, strict=True):
            moved = ok
            for axis, n in enumerate(a.shape):
                moved = moved.any(axis, keepdims=True) if n != view.shape[axis] else moved
            kept.append(np.where(moved, a, old))
        state, t = tuple(kept), t + bool(ok.any())
    return theta, list(state), t


def gradients(shape: tuple[int, ...], bad: float) -> np.ndarray:
    """Three steps; in the second something is not finite."""
    g = np.random.default_rng(0).normal(size=(3, *shape))
    g[(1, *(n - 1 for n in shape))] = bad
    return g


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
@pytest.mark.parametrize("flags", ["-O2", "-Ofast"])
def test_c_keeps_state_of_a_row_where_none_of_it_moved(bad, flags):
    need("exported c")
    view, g = canonical((5, 3)), gradients((5, 3), bad)
    theta, state, t = guarded_steps(FACTORED, view, g)
    made = CMatrix(FACTORED, np.zeros((3, 5)), True, flags)
    for row in g:
        made.step(as_matrix(row, view))
    np.testing.assert_allclose(as_vector(made.theta, view), theta.reshape(-1), rtol=1e-9)
    assert made.t[0] == t
    for found, wanted in zip(made.state, state, strict=True):
        wanted = wanted.T if wanted.shape == (5, 3) else wanted
        np.testing.assert_allclose(found, wanted.reshape(-1), rtol=1e-9)


@pytest.mark.parametrize("rows", [(2,), (-3,), (0, 0), (0, -2), 0, ("a",)])
def test_rows_that_are_no_axes_are_refused_in_one_line_by_generated_files(rows):
    module = load(MUON, "numpy")
    for call in (
        module.init,
        lambda theta, rows: module.update(theta, {"t": 0, "slots": ()}, theta, rows=rows),
    ):
        with pytest.raises(ValueError, match=r"^rows: expected axes of a tensor of shape \(5, 3\)[^\n]+$"):
            call(np.zeros((5, 3)), rows=rows)


def test_c_takes_a_whole_matrix_of_nan_as_no_step_and_an_empty_one_as_one():
    need("exported c")
    made = CMatrix(MUON, np.ones((3, 5)), True)
    made.step(np.full((3, 5), np.nan))
    assert made.left == 15 and made.t[0] == 0 and (made.theta == 1).all() and not made.state[0].any()
    for shape in ((0, 4), (4, 0)):
        empty = CMatrix(MUON, np.ones(shape), True)
        empty.step(np.ones(shape))
        assert empty.left == 0 and empty.t[0] == 1


def test_c_decays_weights_and_takes_a_learning_rate():
    need("exported c")
    made, g = CMatrix(MUON, np.full((2, 3), 2.0), False), np.arange(6.0).reshape(2, 3)
    made.step(g, 0.5, 0.1)
    np.testing.assert_allclose(made.theta, 2.0 * 0.95 - 0.5 * g)


WRITERS = {
    "step": step_source,
    "roll": lambda program: roll_source(program, ("g",)),
    "vjp": lambda program: vjp_source(program, ("g",), ()),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_compiled_kernels_refuse_what_sees_tensors(write):
    for text in ("orth(g)", "g / rows", "cummax(row_max(g))"):
        with pytest.raises(L2OError, match="sees tensors"):
            write(Rule.from_text(text).program())


@pytest.fixture
def jax():
    need("optax")
    import jax

    with jax.enable_x64(True):
        yield jax


TREE = {"conv": np.full((3, 3, 2, 4), 0.5), "embed": np.full((6, 2), -0.5), "bias": np.zeros(4)}


def layouts(path, array):
    return () if "embed" in path else None


@pytest.mark.parametrize("rule", [MUON, FACTORED], ids=["muon", "factored"])
@pytest.mark.parametrize("bad", [0.5, np.nan])
def test_optax_sees_kernels_as_matrices_and_embeddings_as_the_option_says(rule, bad, jax):
    optimizer = load(rule, "optax").rule_optimizer(1.0, rows=layouts)
    params = {name: jax.numpy.zeros(value.shape) for name, value in TREE.items()}
    update = jax.jit(optimizer.update)
    state, given = optimizer.init(params), {k: gradients(v.shape, bad) for k, v in TREE.items()}
    for k in range(3):
        updates, state = update({name: g[k] for name, g in given.items()}, state, params)
        params = {name: params[name] + updates[name] for name in params}
    assert update._cache_size() == 1
    for name, shape in {"conv": (3, 3, 2, 4), "embed": (6, 2), "bias": (4,)}.items():
        view = canonical(shape) if name == "conv" else vector(shape)
        theta, kept, t = guarded_steps(rule, view, given[name])
        np.testing.assert_allclose(params[name], theta, rtol=1e-9, atol=1e-12)
        assert state["t"][name] == t
        for slot, wanted in zip(state["slots"], kept, strict=False):
            np.testing.assert_allclose(slot[name], wanted, rtol=1e-9, atol=1e-12)
        assert sum(np.size(slot[name]) for slot in state["slots"]) == rule.state_size(view)


def test_optax_maps_over_stacked_matrices(jax):
    module, g = load(MUON, "optax"), np.random.default_rng(1).normal(size=(3, 5, 4))
    one = lambda g: module.update(g, module.init(g), g)[0]  # noqa: E731
    stacked = jax.vmap(one)(g)
    for part, alone in zip(stacked, map(one, g), strict=True):
        np.testing.assert_allclose(part, alone, rtol=1e-9)


def test_optax_derivatives_at_zero_are_zero_and_ties_are_shared(jax):
    for text in ("polar(g)", "orth(g)", "sqrt(mean(square(g)))"):
        module = load(Rule.from_text(text), "optax")
        slope = jax.grad(lambda g: module.update(g, module.init(g), g)[0].sum())(np.zeros((4, 3)))  # noqa: B023
        assert not np.asarray(slope).any(), text
    module = load(Rule.from_text("row_max(g)"), "optax")
    slope = jax.grad(lambda g: module.update(g, module.init(g), g)[0].sum())(np.ones((4, 3)))
    np.testing.assert_allclose(slope, np.ones((4, 3)))


def test_optax_runs_without_matrices_in_the_tree(jax):
    optimizer = load(MUON, "optax").rule_optimizer(1.0)
    state = optimizer.init({})
    assert optimizer.update({}, state, {})[0] == {}


@pytest.mark.parametrize("vector_", [False, True])
def test_onnx_has_sizes_of_any_matrix_and_state_of_rows_and_columns(vector_):
    need("onnx")
    session = onnx_session(export.export(FACTORED, "onnx", vector_))
    high = 1 if vector_ else "rows"
    shown = {value.name: value.shape for value in session.get_inputs()}
    states = [shown.pop(f"state_{k}") for k in range(4)]
    assert shown == {"g": [high, "cols"], "t": []}
    assert sorted(map(str, states)) == sorted(map(str, ([high, 1], [1, 1], [1, "cols"], [high, "cols"])))
    outputs = {value.name: value.shape for value in session.get_outputs()}
    assert [outputs[f"new_state_{k}"] for k in range(4)] == states


def one_step(run, rule: Rule, view: View, g: np.ndarray, **more: np.ndarray) -> np.ndarray:
    m = as_matrix(g, view).astype(np.float32)
    kinds = rule.program(view.matrix).slot_kinds
    shapes = [(m.shape[0] if "rows" in kind else 1, m.shape[1] if "columns" in kind else 1) for kind in kinds]
    zeros = {f"state_{k}": np.zeros(shape, np.float32) for k, shape in enumerate(shapes)}
    return as_vector(run(None, {"g": m, "t": np.array(1), **zeros, **more})[0], view).reshape(view.shape)


@pytest.mark.parametrize("view", [*map(canonical, ((5, 3), (3, 5), (1, 9))), vector((7,))], ids=str)
@pytest.mark.parametrize("rule", [MUON, FACTORED], ids=["muon", "factored"])
def test_the_reference_evaluator_and_onnxruntime_say_what_the_oracle_says(view, rule):
    need("onnx")
    from onnx.reference import ReferenceEvaluator

    content = export.export(rule, "onnx", not view.matrix)
    g = np.random.default_rng(2).normal(size=view.shape)
    wanted = rule.evaluate({"g": g.reshape(1, -1)}, shapes=[view]).reshape(view.shape)
    for run in (ReferenceEvaluator(content).run, onnx_session(content).run):
        np.testing.assert_allclose(one_step(run, rule, view, g), wanted, atol=1e-3 * abs(wanted).max())


@pytest.mark.parametrize("text", ["row_max(g)", "col_max(g)", "polar(g)", "orth(g)", "mean(g)"])
def test_nan_goes_through_sums_and_maxima_of_onnx(text):
    need("onnx")
    g = np.ones((3, 2))
    g[1, 1] = np.nan
    rule = Rule.from_text(text)
    wanted = rule.evaluate({"g": g.reshape(1, -1)}, shapes=[(3, 2)]).reshape(3, 2)
    found = one_step(onnx_session(TARGETS["onnx"].emit(rule)).run, rule, canonical((3, 2)), g)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))


def test_both_ways_are_exported_and_read_back(tmp_path):
    need("onnx")
    from interchange.inspect.onnx import read_onnx

    rule, out = tmp_path / "muon.json", tmp_path / "muon.onnx"
    MUON.save(rule)
    for flags, wide in (((), "rows"), (("--vector",), 1)):
        assert export.main([str(rule), "--to", "onnx", "--out", str(out), "--overwrite", *flags]) == 0
        found = read_onnx(out)
        assert found.source == MUON and found.as_written and found.inputs["g"] == (wide, "cols")
    with pytest.raises(L2OError, match="--vector is for rules to onnx"):
        export.export(MUON, "c", vector=True)


@pytest.mark.parametrize("rule", [MUON, FACTORED], ids=["muon", "factored"])
def test_a_kernel_of_torch_and_of_keras_get_the_same_update(rule):
    need("exported c")
    g = np.random.default_rng(3).normal(size=(8, 4, 3, 3))
    views = {"torch": matrix(g.shape, (0,)), "keras": canonical((3, 3, 4, 8))}
    ours = CMatrix(rule, np.zeros((8, 36)), True)
    ours.step(g.reshape(8, 36))
    for name, axes in (("torch", (0, 1, 2, 3)), ("keras", (2, 3, 1, 0))):
        turned = g.transpose(axes)
        found = rule.evaluate({"g": turned.reshape(1, -1)}, shapes=[views[name]]).reshape(turned.shape)
        found = found.transpose(np.argsort(axes)).reshape(8, 36)
        np.testing.assert_allclose(found, ours.theta, atol=1e-11)


def test_a_rule_that_sees_tensors_reads_well():
    root = "sqrt(row_mean(square(g)))"
    rule = Rule.from_text(f"sqrt(max(rows, cols)) * polar(ema(square(g), 1 - powabs(t, -0.8))) / {root}")
    shown = TARGETS["latex"].emit(rule)
    assert r"\sqrt{\max\left(\mathrm{rows}, \mathrm{cols}\right)}" in shown
    assert r"\operatorname{ema}_{1 - t^{-0.8}}\left(g_t^2\right)" in shown and "|" not in shown
    text = TARGETS["sympy"].emit(rule)
    assert "rows_" not in shown and all(f"{op}(" in text for op in ("polar", "row_mean", "ema"))
