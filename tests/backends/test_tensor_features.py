"""Features that see whole tensors, in both frameworks: their values, and teachers that are given them."""

import numpy as np
import pytest

from common import reference
from common.data.coordinates import choose_subset
from common.errors import L2OError
from common.rng import rng
from common.tables.teachers import TEACHERS, initial_weights
from interchange.distill.active import find_teacher
from interchange.files.trajectories import Trajectories
from interchange.files.weights import Teacher
from interchange.language.view import canonical, vector
from tests.backends.test_structures import MEANS as TEACHER
from tests.backends.test_structures import begun, distance, learner_of, network_of, task_of
from tests.helpers.recordings import make_run

pytestmark = pytest.mark.slow_with(impl=("tf",))
SHAPES = ((6, 4), (4,), (3, 3, 2, 5), (5,))
N = 24 + 4 + 90 + 5


def gradients(steps: int = 7) -> np.ndarray:
    generator = np.random.default_rng(5)
    return generator.normal(size=(steps, N)) * 10.0 ** generator.uniform(-3, 1, N)


def streamed(impl, row, views, rows) -> np.ndarray:
    """Features [T, F, N]."""
    stream = impl.module("networks.features").FeatureStream(row.expressions())
    state, found = stream.initial_state(impl.tensor(rows[0])), []
    for t, g in enumerate(rows, 1):
        x, state = stream.step(impl.tensor(g), state, t, views)
        found.append(np.asarray(x))
    return np.stack(found)


def test_row_and_column_means_equal_the_oracle(impl):
    """On matrices, a convolution's kernel and vectors, which are one row; lanes are as each alone."""
    row, g, views = TEACHERS["rnnprop_f"], gradients(), tuple(map(canonical, SHAPES))
    weights = initial_weights(row, 1)
    expected = np.moveaxis(reference.replay(row, weights, g, SHAPES)[0], 1, 2)
    got = streamed(impl, row, views, g)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    both = streamed(impl, row, views, np.concatenate([g, 2.0 * g[:, ::-1]], axis=1))
    np.testing.assert_allclose(both[..., :N], expected, rtol=1e-10)
    np.testing.assert_allclose(both[..., N:], streamed(impl, row, views, 2.0 * g[:, ::-1]), rtol=1e-10)
    by_row, by_column = got[0, 2, :24].reshape(6, 4), got[0, 3, :24].reshape(6, 4)
    w = g[0, :24].reshape(6, 4)  # inputs x outputs: an output is a row
    np.testing.assert_allclose(by_row, w / np.sqrt(np.square(w).mean(0)), rtol=1e-6)
    np.testing.assert_allclose(by_column, w / np.sqrt(np.square(w).mean(1, keepdims=True)), rtol=1e-6)
    vector = slice(24, 28)
    np.testing.assert_allclose(got[:, 3, vector], got[:, 1, vector], rtol=1e-12)  # g_col is g_tilde
    whole = g[0, vector] / np.sqrt(np.square(g[0, vector]).mean())
    np.testing.assert_allclose(got[0, 2, vector], whole, rtol=1e-6)


def test_a_subset_of_the_coordinates_has_the_features_of_all(impl):
    """The one of every coordinate is the whole, and the mean over draws comes near it."""
    task, network = task_of(impl), network_of(impl, TEACHER)
    learner, at = learner_of(impl, network), begun(impl, task, network, 2)
    whole = learner.first_order(task, at, 3, None)[2]
    sizes, found = [int(np.prod(shape)) for shape in task.shapes], []
    for draw in range(60):
        subset = choose_subset(sizes, 0.3 if draw else 1.0, rng(3, "features", draw))
        again = learner.position_from(at.step, *learner.position_arrays(at))
        found.append(learner.first_order(task, again, 3, subset)[2])
    assert distance(found[0], whole) < 1e-9
    flat = [np.concatenate([np.asarray(g).ravel() for g in grads.values()]) for grads in (whole, *found[1:])]
    mean, spread = np.mean(flat[1:], 0), np.std(flat[1:], 0, ddof=1) / 59**0.5
    assert np.abs((mean - flat[0]) / spread).max() < 5.0


def test_one_network_goes_from_one_set_of_views_to_another(impl):
    """Same shapes, other views: what was traced for the first must not run for the second."""
    network, found = network_of(impl, TEACHER), []
    tasks = [task_of(impl), task_of(impl)]
    tasks[1].views = tuple(vector(shape) for shape in tasks[1].shapes)
    for task in (*tasks, tasks[0]):
        at = begun(impl, task, network, 1)
        grads = learner_of(impl, network).second_order(task, at, 2)[2]
        found.append((np.asarray(at.theta), grads))
    assert np.array_equal(found[0][0], found[2][0]) and distance(found[2][1], found[0][1]) < 1e-12
    assert not np.allclose(found[0][0], found[1][0]) and distance(found[1][1], found[0][1]) > 1e-3


def test_a_teacher_cannot_be_asked_at_coordinates_alone():
    teacher = Teacher(TEACHER, initial_weights(TEACHER, 1), "0" * 64, "test")
    assert teacher.sees_tensors
    run = make_run(source_kind="teacher", source_sha256=teacher.sha256)
    with pytest.raises(L2OError, match="single coordinates, got 'g_row', which sees the whole tensor"):
        find_teacher(Trajectories(TEACHER.expressions(), {run.name: run}))


def test_a_recorder_refuses_what_it_cannot_see(impl):
    params = impl.parameters([np.ones((4, 3))])
    optimizer = impl.sgd(params, 0.1)
    for given in ("g+g_row", {"r": "row_mean(g)"}):
        with pytest.raises(L2OError, match="expected one of a single coordinate"):
            impl.Recorder(optimizer, features=given)
