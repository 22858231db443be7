"""Tensor operators: the oracle against formulas written out, derivatives, views, and what is kept."""

import numpy as np
import pytest

from common.errors import L2OError
from interchange.language import view as views
from interchange.language.execute import evaluate_with_tangents, initial_state, step
from interchange.language.matrix import DERIVATIVES, op_orth, op_polar
from interchange.language.operators import OPERATORS, TENSOR
from interchange.rule.rule import Rule
from interchange.rule.safety import singular

VIEWS = {
    "dense": views.canonical((5, 3)),
    "kernel": views.canonical((3, 3, 4, 8)),
    "rows first": views.matrix((6, 2, 3), (0,)),
    "grouped": views.matrix((6, 2, 3), (0,), parts=2),
    "vector": views.vector((7,)),
    "one": views.vector((1,)),
    "one row": views.matrix((1, 9), (0,)),
    "one column": views.matrix((9, 1), (0,)),
}
every_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


def rows_of(x: np.ndarray, view: views.View) -> np.ndarray:
    """[parts, rows, columns], by moving one axis after the other."""
    rows, columns, parts = view.axes
    return np.moveaxis(x.reshape(view.split), [*parts, *rows, *columns], range(-len(view.split), 0)).reshape(
        -1, view.sizes["rows"], view.sizes["cols"]
    )


def test_the_layouts_of_one_layer_have_one_view():
    torch_kernel = np.random.default_rng(0).normal(size=(8, 4, 3, 3))
    ours = torch_kernel.transpose(2, 3, 1, 0)
    one = op_polar(torch_kernel, views.matrix((8, 4, 3, 3), (0,)).axes)
    other = op_polar(ours, views.canonical((3, 3, 4, 8)).axes)
    np.testing.assert_allclose(one.transpose(2, 3, 1, 0), other, atol=1e-13)


@every_view
def test_sums_are_those_of_the_matrix_view(view):
    x = np.random.default_rng(1).normal(size=view.split)
    m = rows_of(x, view)
    expected = {
        "mean": np.full_like(m, m.mean()),
        "row_mean": m.mean(2, keepdims=True) + 0 * m,
        "col_mean": m.mean(1, keepdims=True) + 0 * m,
        "row_max": m.max(2, keepdims=True) + 0 * m,
        "col_max": m.max(1, keepdims=True) + 0 * m,
    }
    for op, values in expected.items():
        found = np.broadcast_to(OPERATORS[op].tensor(x, view.axes), view.split)
        np.testing.assert_allclose(rows_of(found, view), values, atol=1e-13, err_msg=op)


@every_view
def test_polar_moves_singular_values_by_the_polynomial_and_keeps_the_directions(view):
    x = np.random.default_rng(2).normal(size=view.split)
    for m, polar in zip(rows_of(x, view), rows_of(op_polar(x, view.axes), view), strict=True):
        u, s, v = np.linalg.svd(m, full_matrices=False)
        s = s / np.linalg.norm(s)
        for _ in range(5 if min(m.shape) > 1 else 0):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        np.testing.assert_allclose(polar, (u * s) @ v, atol=1e-12)


@every_view
def test_orth_has_the_directions_of_polar_and_the_size_of_what_it_is_given(view):
    x = np.random.default_rng(3).normal(size=view.split) * 1e-7
    found, polar = (rows_of(op(x, view.axes), view) for op in (op_orth, op_polar))
    for m, orth, direction in zip(rows_of(x, view), found, polar, strict=True):
        np.testing.assert_allclose(np.linalg.norm(orth), np.linalg.norm(m), rtol=1e-12)
        np.testing.assert_allclose(
            orth / np.linalg.norm(orth), direction / np.linalg.norm(direction), atol=1e-12
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("op", [op_polar, op_orth])
def test_nothing_is_lost_of_tiny_and_huge_matrices_and_of_nothing_comes_nothing(op, dtype):
    m = np.random.default_rng(4).normal(size=(4, 3)).astype(dtype)
    axes, tolerance = views.canonical((4, 3)).axes, 1e-3 if dtype == np.float32 else 1e-11
    plain = op(m, axes)
    for scale in (1e-25, 1e25):
        found = op(m * dtype(scale), axes) / dtype(scale if op is op_orth else 1)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, plain, atol=tolerance)
    assert not op(np.zeros((4, 3), dtype), axes).any()
    m[1, 1] = np.nan
    with np.errstate(all="ignore"):
        assert np.isnan(op(m, axes)).all()


@every_view
@pytest.mark.parametrize("op", sorted(TENSOR))
def test_derivatives_are_the_slopes(op, view):
    rng = np.random.default_rng(5)
    x, dx = rng.normal(size=(2, *view.split))
    h, value = 1e-6, OPERATORS[op].tensor
    slope = (value(x + h * dx, view.axes) - value(x - h * dx, view.axes)) / (2 * h)
    np.testing.assert_allclose(DERIVATIVES[op](x, dx, view.axes), slope, atol=1e-7 * max(1, abs(slope).max()))


def test_at_zero_the_derivatives_of_polar_and_orth_are_zero():
    axes, x = views.canonical((4, 3)).axes, np.zeros((4, 3))
    for op in ("polar", "orth"):
        assert not DERIVATIVES[op](x, np.ones_like(x), axes).any()


MUON = "by_matrix(polar(g + c * ema(g, b)), tanh(ema(g, b) / c))"
TEXTS = (
    MUON,
    "g / (sqrt(ema(row_mean(square(g)), 1 - powabs(t, -0.8)) * ema(col_mean(square(g)), 0.9)) + c)",
    "cummax(row_max(abs(g))) * lag(mean(c * g), 2) + orth(ema(g, b)) / sqrt(numel * rows + cols)",
)


@every_view
@pytest.mark.parametrize("text", TEXTS)
def test_steps_sequences_and_their_derivatives_agree(text, view):
    rule = Rule.from_text(text, {name: v for name, v in {"b": 0.9, "c": 0.7}.items() if name in text})
    program, names = rule.program(view.matrix), list(rule.constants)
    g = np.random.default_rng(6).normal(size=(6, *view.shape))
    out, tangents = evaluate_with_tangents(program, {"g": g, **rule.constants}, names, view)
    state = initial_state(program, view)
    for t, row in enumerate(g, 1):
        (u,), state = step(program, {"g": row, **rule.constants}, state, t, view)
        np.testing.assert_allclose(u, out[t - 1], rtol=1e-11, atol=1e-13)
    for name, tangent in zip(names, tangents, strict=True):
        ends = [
            evaluate_with_tangents(
                program, {"g": g, **rule.constants, name: rule.constants[name] + h}, [], view
            )[0]
            for h in (1e-6, -1e-6)
        ]
        slope = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(tangent, slope, atol=1e-6 * max(1.0, abs(slope).max()))
    wanted = rule.evaluate({"g": g.reshape(6, -1)}, shapes=[view])
    np.testing.assert_allclose(wanted, out.reshape(6, -1), rtol=1e-12, atol=1e-14)


def test_state_over_rows_and_columns_is_as_small_as_they_are():
    adafactor = Rule.from_text(TEXTS[1], {"c": 1e-8})
    assert adafactor.state_size((64, 32)) == 64 + 32 and adafactor.state_floats == 0
    assert adafactor.state_size((7,)) == 1 + 7
    muon = Rule.from_text(MUON, {"b": 0.9, "c": 1.0})
    assert muon.state_size((3, 3, 4, 8)) == 288 and muon.state_floats == 1


def test_a_program_is_compiled_once_for_both_kinds_of_tensors_where_they_agree_and_once_each_otherwise():
    for text, count in (("-g", 1), ("by_matrix(-g, -g)", 1), ("by_matrix(-polar(g), -g)", 2)):
        programs = Rule.from_text(text).programs()
        assert len({id(program) for program in programs.values()}) == count, text
        assert programs == {has: Rule.from_text(text).program(has) for has in (True, False)}


def test_a_decay_that_falls_and_rises_with_t_is_checked_at_every_step():
    first = Rule.from_text("ema(g, 1 - powabs(t, -0.8))").evaluate({"g": np.full((3, 1), 2.0)})
    np.testing.assert_allclose(first[:, 0], 2.0)
    for text in (
        "ema(g, t)",
        "ema(g, 1 - t)",
        "ema(g, 1.5 / t)",
        "ema(g, 1 / t)",  # 1 at the first step
        "ema_hat(g, 1 - 1 / t)",
        "ema(g, 1 - c / t)",
    ):
        with pytest.raises(L2OError):
            Rule.from_text(text, {"c": 0.5} if "c /" in text else {})


def test_a_file_says_the_version_that_its_reader_needs():
    assert '"1.0.0"' in Rule.named("adam").to_json()
    for text in ("polar(g)", "g / rows", "ema(g, 1 - 1 / t)"):
        written = Rule.from_text(text).to_json()
        assert '"1.1.0"' in written and Rule.from_json(written).to_json() == written


def test_arrays_need_the_shapes_of_their_tensors():
    rule = Rule.from_text("orth(g)")
    for shapes in (None, [(3, 4)], [(3, 4), (2,)]):
        with pytest.raises(L2OError, match="shapes"):
            rule.evaluate({"g": np.ones((2, 13))}, shapes=shapes)
    assert rule.evaluate({"g": np.ones((2, 13))}, shapes=[(3, 4), (1,)]).shape == (2, 13)


def test_rules_that_break_at_zero_are_found_among_those_that_see_tensors_too():
    assert singular(Rule.from_text("g / sqrt(row_mean(square(g)))"))
    assert singular(Rule.from_text("by_matrix(orth(g), g / sqrt(mean(square(g))))"))
    assert not singular(Rule.from_text("by_matrix(orth(g), g / (sqrt(mean(square(g))) + c))", {"c": 1e-8}))


@pytest.mark.parametrize(
    ("text", "shorter"),
    [
        ("mean(mean(g))", "mean(g)"),
        ("row_max(row_max(tanh(g)))", "row_max(tanh(g))"),
        ("mean(2.0) * g", "2.0 * g"),
    ],
)
def test_what_is_the_same_is_written_shorter(text, shorter):
    assert str(Rule.from_text(text).simplified().expression) == shorter


@pytest.mark.parametrize(
    ("shape", "rows", "columns", "parts"),
    [((4, 3), (2,), None, 1), ((4, 3), (), None, 1), ((4, 3), (0,), (0,), 1), ((4, 3), (0,), None, 3)],
)
def test_axes_that_make_no_view_are_refused(shape, rows, columns, parts):
    with pytest.raises(L2OError, match="expected"):
        views.matrix(shape, rows, columns, parts)


def test_the_option_matrix_says_how_a_tensor_is_seen():
    default = views.vector((4, 3))
    assert views.chosen((4, 3), None, default) is default
    assert views.chosen((4, 3), True, default) == views.matrix((4, 3), (0,))
    assert views.chosen((4, 3), ((1,), (0,)), default) == views.canonical((4, 3))
    assert not views.chosen((4, 3), False, views.canonical((4, 3))).matrix
    queries = views.chosen((6, 2), ((0,), (1,), 3, 0), default)
    assert queries.split == (3, 2, 2) and queries.sizes == {"rows": 2, "cols": 2, "numel": 12}
    # A grouped transposed convolution: [in, out / groups, k], cut along its columns.
    transposed = views.chosen((4, 3, 2), ((1,), (0, 2), 2, 0), default)
    assert transposed.axes == ((-2,), (-3, -1), (-4,)) and transposed.sizes["cols"] == 4


@pytest.mark.parametrize(
    "option", ["rows", (0, 1), ((0, 1),), ((5,), (0,)), ((0,), (0,)), ((), (0, 1)), ((0,), (1,), 3)]
)
def test_an_option_that_makes_no_view_is_refused_in_one_line(option):
    with pytest.raises(L2OError, match=r"^(matrix: )?expected [^\n]+$"):
        views.chosen((4, 3), option, views.vector((4, 3)))
