"""Teachers whose output goes through a tensor operator, in both frameworks: meta-gradients and lanes."""

import dataclasses

import numpy as np
import pytest

from common.data.coordinates import choose_subset
from common.errors import L2OError
from common.rng import rng
from common.tables.baselines import parse_spec
from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS, TeacherRow, initial_weights, variant
from interchange.backend import Half
from interchange.files.weights import Teacher
from interchange.language import matrix as oracle
from interchange.language.view import slices
from interchange.meta.config import TrainConfig

TEACHER = TEACHERS["rp_s_m"]
MEANS = variant(TEACHERS["rp_s"], "m_tilde+g_row+g_col")
# What sees whole tensors: the output, the features, both.
ROWS = {"orth": TEACHER, "means": MEANS, "both": variant(MEANS, structure="orth")}
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
pytestmark = pytest.mark.slow_with(impl=("tf",))


def task_of(impl, problem: str = "digits-mlp", seed: int = 0):
    given = Instance(PROBLEMS[problem], seed, batch_size=8)
    return impl.module("problems.tasks").ProblemTask(given, impl.DTYPES["float64"])


def network_of(impl, row: TeacherRow = TEACHER):
    """Weights large enough that saturation and memory matter."""
    weights = {key: 2.0 * w for key, w in initial_weights(row, 1).items()}
    return impl.module("backend").teacher_network(row, weights, "float64", "cpu")


def learner_of(impl, network, **settings):
    config = TrainConfig(problem="digits-mlp", dtype="float64", **settings)
    return impl.module("meta.learner").Learner(network, config)


def begun(impl, task, network, steps: int):
    unroll = impl.module("meta.unroll")
    at = unroll.start(task, network)
    return unroll.advance(task, network, at, steps)[0] if steps else at


def distance(got, expected) -> float:
    """The largest difference, relative to the largest entry of each weight, or of all where that is 0."""
    assert list(got) == list(expected)
    sizes = {name: float(np.abs(np.asarray(want)).max()) for name, want in expected.items()}
    largest = max(sizes.values())
    found = {n: np.abs(np.asarray(got[n]) - np.asarray(want)).max() for n, want in expected.items()}
    return max(float(gap) / (sizes[name] or largest) for name, gap in found.items())


CASES = [("digits-mlp", 1, 0), ("digits-mlp", 5, 3), ("digits-conv", 3, 2), ("digits-mlp", 20, 3)]


@every_row
@pytest.mark.slow_with(steps=(20,))
@pytest.mark.parametrize(("problem", "steps", "before"), CASES)
@pytest.mark.parametrize("loss", ["sum", "last", "log"])
def test_first_and_second_order_equal_the_graph_of_everything(impl, row, problem, steps, before, loss):
    task, network = task_of(impl, problem), network_of(impl, row)
    at, learner = begun(impl, task, network, before), learner_of(impl, network, loss=loss)
    first = learner.first_order(task, at, steps, None)[2]
    assert distance(first, impl.whole_graph(task, network, at, steps, loss, second=False)) < 1e-9
    second = learner.second_order(task, at, steps)[2]
    assert distance(second, impl.whole_graph(task, network, at, steps, loss)) < 1e-9
    if steps > 1 and row is TEACHER:
        assert distance(first, second) > 1e-4
        plain = dataclasses.replace(TEACHER, structure="")
        other = learner_of(impl, network_of(impl, plain), loss=loss).first_order(task, at, steps, None)[2]
        assert distance(first, other) > 1e-2


def test_the_update_is_the_operator_of_the_output_on_matrices_alone(impl):
    task, network = task_of(impl, "digits-conv"), network_of(impl)
    unroll, outs = impl.module("meta.unroll"), []
    at = unroll.start(task, network)
    end = unroll.advance(task, network, at, 1, 0.5, outs=outs)[0]
    y, moves = np.asarray(outs[0]), np.asarray(end.theta) - np.asarray(at.theta)
    for place, view in slices(task.views):
        expected = oracle.op_orth(y[place].reshape(view.split), view.axes)
        np.testing.assert_allclose(moves[place], 0.5 * TEACHER.scale * expected.ravel(), rtol=1e-9)
        if not view.matrix:
            np.testing.assert_allclose(moves[place], 0.5 * TEACHER.scale * y[place], rtol=1e-9)


@pytest.mark.parametrize("loss", ["sum", "log"])
@pytest.mark.parametrize("row", [TEACHER, ROWS["both"]], ids=["orth", "both"])
def test_lanes_do_what_each_does_alone(impl, row, loss):
    """Two optimizees that are alike and one of another problem; of their meta-gradients the sum."""
    for problems in (("digits-mlp",) * 3, ("digits-mlp", "digits-conv", "digits-mlp")):
        tasks = [task_of(impl, problem, k) for k, problem in enumerate(problems)]
        network = network_of(impl, row)
        learner = learner_of(impl, network, loss=loss)
        starts = [begun(impl, task, network, 2) for task in tasks]
        ends, losses, total = learner.first_order_batch(tasks, starts, 4, None, lambda losses: losses[0])
        expected = {}
        for task, at, end, found in zip(tasks, starts, ends, losses, strict=True):
            network.bind(task)
            alone, its, grads = learner.first_order(task, at, 4, None)
            np.testing.assert_allclose(np.asarray(end.theta), np.asarray(alone.theta), rtol=1e-9)
            np.testing.assert_allclose(found, its, rtol=1e-9)
            for name, g in grads.items():
                expected[name] = expected.get(name, 0.0) + its[0] * np.asarray(g)
        assert distance(total, expected) < 1e-9


def test_lanes_with_weights_of_their_own_do_what_each_does_alone(impl):
    network = network_of(impl)
    if not network.weights_batchable:
        pytest.skip("several weights at once need a C compiler")
    learner = learner_of(impl, network)
    tasks = [task_of(impl, seed=k // 2) for k in range(4)]
    scale = np.random.default_rng(2).uniform(0.8, 1.2, 4)
    halves = [Half(k // 2, {n: w * s for n, w in learner.weights().items()}) for k, s in enumerate(scale)]
    together = learner.run_halves(tasks, halves, 5, False)
    for task, half, (_, losses) in zip(tasks, halves, together, strict=True):
        (_, alone), *_ = learner.run_halves([task], [half], 5, False)
        np.testing.assert_allclose(losses, alone, rtol=1e-9)


@pytest.mark.slow
def test_a_subset_of_the_coordinates_is_unbiased(impl):
    task, network = task_of(impl), network_of(impl)
    learner, at = learner_of(impl, network), begun(impl, task, network, 3)
    whole = learner.first_order(task, at, 3, None)[2]
    sizes, draws = [int(np.prod(shape)) for shape in task.shapes], 250
    found = []
    for draw in range(draws):
        subset = choose_subset(sizes, 0.05, rng(3, "structures", draw))
        again = learner.position_from(at.step, *learner.position_arrays(at))  # as its state is overwritten
        grads = learner.first_order(task, again, 3, subset)[2]
        found.append(np.concatenate([np.asarray(g).ravel() for g in grads.values()]))
    expected = np.concatenate([np.asarray(g).ravel() for g in whole.values()])
    mean, spread = np.mean(found, 0), np.std(found, 0, ddof=1) / draws**0.5
    assert np.abs((mean - expected) / spread).max() < 5.0
    assert (spread < 0.2 * np.abs(expected).max()).all() and (spread > 0.0).all()


def test_imitation_is_the_derivative_of_its_loss(impl):
    task, network = task_of(impl), network_of(impl)
    learner = learner_of(impl, network)
    at = learner.start_imitation(task, "adam", 0.01)
    grads = learner.imitation(task, at, 6, None)[2]
    weights, name, step = learner.weights(), "out/w", 1e-5
    for column in (0, 3):
        values = []
        for sign in (1.0, -1.0):
            moved = weights | {name: weights[name].copy()}
            moved[name][0, column] += sign * step
            learner.put(moved)
            values.append(sum(learner.imitation(task, at, 6, None)[1]))
        expected = (values[0] - values[1]) / (2.0 * step)
        assert float(np.asarray(grads[name])[0, column]) == pytest.approx(expected, rel=1e-5)


def test_an_optimizee_that_does_not_say_what_is_a_matrix_is_refused(impl):
    task = task_of(impl)
    task.views = ()
    for row in ROWS.values():
        with pytest.raises(L2OError, match="sees tensors: expected an optimizee with views"):
            begun(impl, task, network_of(impl, row), 1)


def test_a_row_says_its_structure_and_rows_without_stay_as_they_were():
    row = TEACHERS["rp_s"]
    assert "structure" not in row.to_dict() and TeacherRow.from_dict(row.to_dict()) == row
    assert TEACHER.to_dict()["structure"] == "orth" and TeacherRow.from_dict(TEACHER.to_dict()) == TEACHER
    with pytest.raises(L2OError, match="unknown structure 'svd'; known: orth"):
        TeacherRow.from_dict(TEACHER.to_dict() | {"structure": "svd"})


def native(impl, task, steps: int, row: TeacherRow) -> np.ndarray:
    """Parameters [N] after steps of the teacher as an optimizer of its framework."""
    network = network_of(impl, row)
    weights = {name: np.array(w) for name, w in network.weights.items()}
    teacher = Teacher(row, weights, "0" * 64, "test")
    source = impl.module("sources").Source(parse_spec("teacher:rp_s_m"), teacher)
    rollout = impl.module("rollout")
    if impl.__name__.endswith("torch_side"):
        leaves = rollout.leaves(task)
        rollout.descend(task, leaves, source.optimizer(leaves, 1.0, task.views), steps)
    else:
        with impl.module("loops").borrowed(source, task, 1.0) as loop:
            rollout.descend(task, loop, steps)
            leaves = [p.numpy() for p in loop.parameters]
    return np.concatenate([np.asarray(p.detach() if hasattr(p, "detach") else p).ravel() for p in leaves])


@every_row
@pytest.mark.parametrize("problem", ["digits-mlp", "digits-conv"])
def test_the_native_optimizer_takes_the_same_steps(impl, row, problem):
    task = task_of(impl, problem)
    expected, found = begun(impl, task, network_of(impl, row), 6).theta, native(impl, task, 6, row)
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-9, atol=1e-12)
    assert not np.allclose(found, np.asarray(task.initial()), rtol=1e-3)


def teacher_of(row: TeacherRow = TEACHER) -> Teacher:
    return Teacher(row, {key: 2.0 * w for key, w in initial_weights(row, 1).items()}, "0" * 64, "test")


def stepped(impl, given: Teacher, gradients, **options):
    """An optimizer of a matrix and a vector after steps by these gradients, and the two."""
    params = impl.parameters([np.ones((4, 3)), np.ones(3)])
    optimizer = impl.optimizer(params, given, 1.0, **options)
    for row in gradients:
        impl.feed(optimizer, params, row)
    return optimizer, params


def drawn(steps: int):
    generator = np.random.default_rng(5)
    return [[generator.normal(size=(4, 3)), generator.normal(size=3)] for _ in range(steps)]


def test_a_matrix_with_one_coordinate_that_is_not_finite_is_left_alone_with_its_state(impl):
    given = drawn(3)
    optimizer, params = stepped(impl, teacher_of(), given)
    matrix, vector = (impl.value(p).copy() for p in params)
    state = [a.copy() for a in impl.state(optimizer, params[0])]
    given[0][0][1, 2] = np.nan
    impl.feed(optimizer, params, given[0])
    assert impl.left_alone(optimizer, params) == [12, 0] and impl.counts(optimizer, params) == [3, 4]
    np.testing.assert_array_equal(impl.value(params[0]), matrix)
    assert np.abs(impl.value(params[1]) - vector).min() > 0.0
    for old, new in zip(state, impl.state(optimizer, params[0]), strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_is_a_matrix_can_be_said(impl):
    plain = teacher_of(dataclasses.replace(TEACHER, structure=""))
    ends = [stepped(impl, given, drawn(4))[1] for given in (teacher_of(), plain)]
    said = {"matrix": False} if impl.__name__.endswith("torch_side") else {"views": {"p0": False}}
    bare = stepped(impl, teacher_of(), drawn(4), **said)[1]
    for k in (0, 1):
        np.testing.assert_allclose(impl.value(bare[k]), impl.value(ends[1][k]), rtol=1e-12)
    assert not np.allclose(impl.value(ends[0][0]), impl.value(ends[1][0]), rtol=1e-4)
    np.testing.assert_allclose(impl.value(ends[0][1]), impl.value(ends[1][1]), rtol=1e-12)
