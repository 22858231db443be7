"""Teachers exported to ONNX against the NumPy oracle of common.reference, every row, 100 steps."""

import numpy as np
import pytest

from common import reference
from common.errors import L2OError
from common.tables.teachers import TEACHERS, initial_weights
from interchange.emit import TARGETS
from interchange.files.weights import SHIPPED, Teacher
from interchange.language.matrix import op_orth
from interchange.language.view import matrix, vector

onnx = pytest.importorskip("onnx", reason="onnx is not installed: extra [onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: extra [onnx]")


def fresh(name: str) -> Teacher:
    weights = initial_weights(TEACHERS[name], 3)
    return Teacher(TEACHERS[name], {key: 1.5 * value for key, value in weights.items()}, "", "")


MADE = {**dict.fromkeys(TEACHERS, fresh), **{f"trained {name}": Teacher.named for name in SHIPPED}}


def session(teacher: Teacher):
    content = TARGETS["onnx"].emit(teacher)
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def zero_states(runner, n: int, shape: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    shapes = {value.name: value.shape for value in runner.get_inputs() if value.name not in ("g", "t")}
    return {
        name: np.zeros(shape if "rows" in own else [n if d == "N" else d for d in own], np.float32)
        for name, own in shapes.items()
    }


def gradients(steps: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    g = rng.normal(size=(steps, n)) * 10.0 ** rng.uniform(-6, 1, size=n)
    g[:, 0] = 0.0
    g[: steps // 2, 1] = 0.0
    return g.astype(np.float32)


@pytest.mark.parametrize("name", MADE)
def test_100_steps_equal_the_oracle(name):
    teacher = MADE[name](name.removeprefix("trained "))
    row, g, runner = teacher.row, gradients(100, 16), session(teacher)
    seen = teacher.sees_tensors
    shape, view = ((2, 8), matrix((2, 8), (0,))) if seen else ((16,), vector((16,)))
    weights = {key: np.float64(np.float32(value)) for key, value in teacher.weights.items()}
    # The oracle's layout is canonical, outputs last.
    features = reference.Features(row.beta1, row.beta2, row.eps, row.p, [(8, 2)] if seen else None)
    cells, states = reference.zero_cells(row, 16), zero_states(runner, 16, shape)
    for step, gradient in enumerate(g, 1):
        with np.errstate(all="ignore"):  # it computes features that nothing reads, too
            values = features.step(np.float64(gradient.reshape(2, 8).T.ravel() if seen else gradient))
        given = [values[key].reshape(8, 2).T.ravel() if seen else values[key] for key in row.inputs]
        x = np.stack(given, axis=1)
        expected, cells = reference.teacher_step(row, weights, x, cells)
        u, *new = runner.run(None, {"g": gradient.reshape(shape), "t": np.array(step), **states})
        states = dict(zip(states, new, strict=True))
        if row.structure:
            expected = op_orth(expected.reshape(shape), view.axes)
        room = 1e-5 if row.structure else 1e-6  # the iteration multiplies rounding
        np.testing.assert_allclose(u / row.scale, expected.reshape(shape), rtol=0, atol=room)
    assert np.ptp(u) > 0.0
    np.testing.assert_allclose(states["lstm_0/h"], cells[0][0].T, atol=1e-6)
    np.testing.assert_allclose(states["lstm_0/c"], cells[0][1].T, atol=1e-5)


def test_what_is_no_matrix_is_one_row():
    plain, runner = session(fresh("rp_s")), session(fresh("rp_s_m"))
    g = gradients(1, 9)[0]
    first = {"t": np.array(1)}
    expected = plain.run(None, {"g": g, **first, **zero_states(plain, 9)})[0]
    got = runner.run(None, {"g": g[None], **first, **zero_states(runner, 9, (1, 9))})[0]
    np.testing.assert_allclose(got, expected[None], rtol=1e-6)
    assert got.shape == (1, 9)


@pytest.mark.parametrize("name", ["rnnprop", "rp_s"])
def test_in_double_the_first_steps_are_the_oracles_to_more_digits(name):
    teacher, g = fresh(name), np.float64(gradients(5, 8))
    runner = onnxruntime.InferenceSession(
        TARGETS["onnx"].emit(teacher, double=True), providers=["CPUExecutionProvider"]
    )
    features = reference.Features(teacher.row.beta1, teacher.row.beta2, teacher.row.eps, teacher.row.p)
    weights = {key: np.float64(value) for key, value in teacher.weights.items()}
    cells = reference.zero_cells(teacher.row, 8)
    states = {key: np.float64(value) for key, value in zero_states(runner, 8).items()}
    for step, gradient in enumerate(g, 1):
        with np.errstate(all="ignore"):
            values = features.step(gradient)
        x = np.stack([values[key] for key in teacher.row.inputs], axis=1)
        expected, cells = reference.teacher_step(teacher.row, weights, x, cells)
        u, *new = runner.run(None, {"g": gradient, "t": np.array(step), **states})
        states = dict(zip(states, new, strict=True))
        np.testing.assert_allclose(u / teacher.row.scale, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_any_number_of_coordinates(n):
    runner = session(fresh("rnnprop"))
    u, *new = runner.run(None, {"g": np.ones(n, np.float32), "t": np.array(1), **zero_states(runner, n)})
    assert u.shape == (n,)
    assert [state.shape for state in new] == [state.shape for state in zero_states(runner, n).values()]


def test_weights_keep_their_names_shapes_and_order():
    teacher = Teacher.named("rp_s")
    content = TARGETS["onnx"].emit(teacher)
    assert content == TARGETS["onnx"].emit(teacher)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(content).graph.initializer}
    assert held.pop("scale") == teacher.row.scale
    assert list(held) == list(teacher.row.weight_shapes())
    for name, array in held.items():
        np.testing.assert_array_equal(array, np.float32(teacher.weights[name]))


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "onnx"])
def test_other_targets_refuse_teachers(target):
    with pytest.raises(L2OError, match=f"no form as {target}; export it to onnx"):
        TARGETS[target].emit(Teacher.named("rp_s"))
