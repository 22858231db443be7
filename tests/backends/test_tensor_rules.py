"""Rules that see tensors in meta-training, in both frameworks: views, state, estimators, lanes."""

import dataclasses
import math

import numpy as np
import pytest

from common.errors import L2OError
from common.tables.baselines import parse_spec
from common.tables.problems import PROBLEMS, Instance
from interchange.backend import Half
from interchange.language.view import canonical, vector
from interchange.meta import carried
from interchange.meta.config import TrainConfig
from interchange.meta.rule_weights import KINDS, kind_of
from interchange.meta.trainer import make_trainer
from interchange.rule.rule import Rule
from tests.helpers.evolving import learner_of, least_memory
from tests.helpers.tensor_rules import ADAFACTOR_LIKE, MUON_LIKE, RULES

every_rule = pytest.mark.parametrize("name", RULES)
SHAPES = ((5, 3), (3,), (3, 3, 2, 4), (4,), ())
pytestmark = pytest.mark.slow_with(impl=("tf",))


def task_of(impl, problem: str = "digits-mlp", seed: int = 0, **fields):
    row = dataclasses.replace(PROBLEMS[problem], **fields)
    given = Instance(row, seed, batch_size=8)
    return impl.module("problems.tasks").ProblemTask(given, impl.DTYPES["float64"])


def network_of(impl, rule: Rule, **given):
    return impl.module("backend").rule_network(rule, "cpu", **given)


class Shapes:
    """An optimizee of which nothing but its tensors is asked."""

    names, shapes = tuple(map(str, SHAPES)), SHAPES
    views = tuple(map(canonical, SHAPES))


def rolled(impl, network, g: np.ndarray) -> np.ndarray:
    """Outputs [T, N] for gradients [T, N], from zero state; theta is 0."""
    network.bind(Shapes)
    theta = impl.tensor(np.zeros(g.shape[1]))
    at, outs = impl.module("meta.unroll").Position(0, theta, network.initial_state(theta)), []
    for row in g:
        at = dataclasses.replace(at, gradient=impl.tensor(row))
        x, state = impl.module("meta.unroll").inputs_at(network, at)
        out, hidden = network.roll(x, state.network, state.t)
        at = dataclasses.replace(at, state=dataclasses.replace(state, network=hidden))
        outs.append(np.asarray(out))
    return np.stack(outs)


@every_rule
def test_the_network_of_a_rule_is_the_rule(impl, name):
    rule = RULES[name]
    g = np.random.default_rng(0).normal(size=(6, sum(map(math.prod, SHAPES))))
    expected = rule.evaluate({"g": g, "theta": 0 * g}, shapes=SHAPES) / rule.scale
    np.testing.assert_allclose(rolled(impl, network_of(impl, rule), g), expected, rtol=1e-11, atol=1e-12)


def test_state_is_as_small_as_the_rule_says(impl):
    network = network_of(impl, ADAFACTOR_LIKE)
    network.bind(Shapes)
    state = network.initial_state(impl.tensor(np.zeros(sum(map(math.prod, SHAPES))))).network
    kept = sum(math.prod(a.shape) for a in state)
    assert kept == sum(map(ADAFACTOR_LIKE.state_size, SHAPES))


def test_constants_by_kind_are_those_of_each_tensor(impl):
    g = np.random.default_rng(1).normal(size=(3, sum(map(math.prod, SHAPES))))
    network, factors = network_of(impl, MUON_LIKE, kinds=True), {"k": (0.1, 0.5, 2.0), "c": (9.0, 9.0, 0.7)}
    learner_of(network).put(
        {name: np.asarray(factors.get(name, w)) for name, w in learner_of(network).weights().items()}
    )
    found = np.split(rolled(impl, network, g), np.cumsum([math.prod(shape) for shape in SHAPES])[:-1], 1)
    for kind in range(len(KINDS)):
        rule = MUON_LIKE.with_constants({name: values[kind] for name, values in factors.items()})
        whole = rolled(impl, network_of(impl, rule), g)
        parts = np.split(whole, np.cumsum([math.prod(shape) for shape in SHAPES])[:-1], 1)
        for shape, got, expected in zip(SHAPES, found, parts, strict=True):
            if kind_of(shape) == kind:
                np.testing.assert_allclose(got, expected, rtol=1e-12)


def estimates(impl, task, network, at, loss: str, steps: int = 5):
    """The first-order meta-gradient, by one sweep back."""
    unroll = impl.module("meta.unroll")
    _, _, gradients, inputs = unroll.advance(task, network, at, steps)
    c = unroll.cotangents(gradients, loss, unroll.decay_factor(network))
    return unroll.meta_gradient(network, at.state, inputs, c)


def assert_equal(got, expected, tolerance: float = 1e-10) -> None:
    assert list(got) == list(expected)
    for name, want in expected.items():
        assert float(want) != 0.0
        assert float(got[name]) == pytest.approx(float(want), rel=tolerance), name


def begun(impl, task, network, steps: int = 3):
    unroll = impl.module("meta.unroll")
    return unroll.advance(task, network, unroll.start(task, network), steps)[0]


CASES = [
    pytest.param(backend, name, loss, marks=[pytest.mark.slow] if backend == "tf" and loss == "last" else [])
    for backend in ("torch", "tf")
    for name in RULES
    for loss in ("sum", "last")
]
every_case = pytest.mark.parametrize(("impl", "name", "loss"), CASES, indirect=["impl"])


@every_case
@pytest.mark.parametrize("problem", ["digits-mlp", "digits-conv"])
def test_first_and_second_order_equal_the_graph_of_everything(impl, name, loss, problem):
    task, network = task_of(impl, problem), network_of(impl, RULES[name])
    at = begun(impl, task, network)
    second = impl.module("meta.second_order").unrolled(task, network, at, 5, loss)[2]
    assert_equal(second, impl.whole_graph(task, network, at, 5, loss))
    first = estimates(impl, task, network, at, loss)
    assert_equal(first, impl.whole_graph(task, network, at, 5, loss, second=False))
    assert any(float(first[n]) != pytest.approx(float(second[n]), rel=1e-3) for n in first)


@every_case
def test_forward_and_reverse_are_one_gradient(impl, name, loss, monkeypatch):
    """Of all tensors at once, of one after the other, and with tangents in a file."""
    task, network = task_of(impl), network_of(impl, RULES[name])
    at, forward = impl.module("meta.unroll").start(task, network), impl.module("meta.forward")
    expected = estimates(impl, task, network, at, loss, 6)

    def advanced(memory: float = 0.0):
        at = forward.start(task, network)
        assert_equal(forward.advance(task, network, at, 6, loss, memory=memory)[1], expected)
        return [part.piece for part in at.parts]

    assert [piece.shelved for piece in advanced()] == [False]
    monkeypatch.setattr(carried, "_MOST", 1)
    assert [piece.views for piece in advanced()] == [(view,) for view in task.views]
    assert any(piece.shelved for piece in advanced(least_memory(advanced)))


@every_rule
@pytest.mark.parametrize("problem", ["digits-mlp", "digits-mlp with one matrix"])
def test_lanes_with_weights_of_their_own_do_what_each_does_alone(impl, name, problem):
    learner = learner_of(network_of(impl, RULES[name], problems=("digits-mlp",)))
    more = {"matrix": ("layer_1/w",)} if "one" in problem else {}
    tasks = [task_of(impl, seed=k // 2, **more) for k in range(4)]
    scale = np.random.default_rng(2).uniform(0.8, 1.2, 4)
    halves = [Half(k // 2, {n: w * s for n, w in learner.weights().items()}) for k, s in enumerate(scale)]
    assert learner.kind(tasks[0]) is not None
    for _ in range(2):  # the second time from where the first ended
        together = learner.run_halves(tasks, halves, 4, keep=True)
        alone = [
            learner.run_halves([task], [half], 4, True)[0] for task, half in zip(tasks, halves, strict=True)
        ]
        for (end, found), (other, expected) in zip(together, alone, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-10)
            arrays, wanted = (learner.position_arrays(at)[1] for at in (end, other))
            assert {n: a.shape for n, a in arrays.items()} == {n: a.shape for n, a in wanted.items()}
            for key, a in arrays.items():
                np.testing.assert_allclose(a, wanted[key], rtol=1e-9, atol=1e-12, err_msg=key)
        halves = [dataclasses.replace(h, position=end) for h, (end, _) in zip(halves, together, strict=True)]


def test_a_position_comes_back_from_its_arrays(impl):
    task, network = task_of(impl), network_of(impl, ADAFACTOR_LIKE)
    learner, at = learner_of(network), begun(impl, task, network)
    t, arrays = learner.position_arrays(at)
    again = learner.position_from(at.step, t, arrays)
    ends = [impl.module("meta.unroll").advance(task, network, one, 3) for one in (at, again)]
    np.testing.assert_array_equal(*(np.asarray(end[1]) for end in ends))


def test_one_network_goes_from_one_set_of_views_to_another(impl):
    """Same shapes, other views: what was traced or compiled for the first must not run for the second."""
    network, ends = network_of(impl, MUON_LIKE), []
    tasks = [task_of(impl), task_of(impl, matrix=())]
    for task in (*tasks, tasks[0]):
        forward = impl.module("meta.forward")
        at = forward.start(task, network)
        grads = forward.advance(task, network, at, 2, "sum")[1]
        ends.append((np.asarray(at.theta), float(grads["k"])))
    assert np.array_equal(ends[0][0], ends[2][0]) and ends[0][1] == ends[2][1] != 0.0
    assert not np.allclose(ends[0][0], ends[1][0]) and ends[1][1] == 0.0


def test_problems_and_models_say_what_is_a_matrix(impl):
    assert [view.matrix for view in task_of(impl, "digits-conv").views] == [True, False] * 3
    assert [view.rows for view in task_of(impl, "digits-conv").views] == [(-1,), ()] * 3
    only = task_of(impl, "digits-mlp", matrix=("layer_1/w",)).views
    assert [view.matrix for view in only] == [False, False, True, False, False, False]
    assert not any(view.matrix for name in ("quadratic", "lasso") for view in task_of(impl, name).views)
    with pytest.raises(L2OError, match="matrix: expected names of layer_0/w"):
        task_of(impl, matrix=("layer_9/w",))
    probe = impl.probe()
    assert [view.matrix for view in probe.views] == [len(shape) > 1 for shape in probe.shapes]
    augment = impl.module("problems.augment")
    varied = augment.ConvexTerm(augment.RandomScaling(task_of(impl), 1.0, 0, 0), 0, 0)
    assert varied.views == (*task_of(impl).views, vector((20,)))


def test_a_model_can_be_told_what_is_a_matrix(impl):
    probe, kind = impl.probe(), impl.module("problems.modules").ModuleTask
    batches = [probe._batches.at(0)]
    assert not any(view.matrix for view in kind(probe.module, probe._loss, batches, matrix=False).views)
    name = next(n for n, shape in zip(probe.names, probe.shapes, strict=True) if len(shape) > 1)
    other = dict(
        zip(probe.names, kind(probe.module, probe._loss, batches, {name: ((1,), (0,))}).views, strict=True)
    )
    assert other[name].rows == (-1,) and sum(view.matrix for view in other.values()) == 2
    with pytest.raises(L2OError, match="matrix: expected names of"):
        kind(probe.module, probe._loss, batches, {"nowhere": True})


def test_what_cannot_be_is_refused_in_one_line(impl):
    class Bare:
        names, shapes = ("w",), ((2, 3),)

    network = network_of(impl, MUON_LIKE)
    with pytest.raises(L2OError, match="expected an optimizee with views"):
        network.bind(Bare)
    settings = TrainConfig(problem="digits-mlp", coordinates=0.5)
    with pytest.raises(L2OError, match="--coordinates: expected 1 for what sees tensors, got 0"):
        make_trainer(impl.module("meta.learner").Learner(network, settings))
    assert not network.tasks_batchable and network.weights_batchable


@pytest.mark.parametrize("problem", ["digits-conv", "quadratic"])
@every_rule
def test_a_rollout_of_the_optimizer_is_that_of_the_network(impl, name, problem, tmp_path):
    """The same views: of kernels, and of a function's x, which is no matrix for all its two axes."""
    RULES[name].save(tmp_path / "rule.json")
    source = impl.module("backend").load_source(parse_spec(f"rule:{tmp_path / 'rule.json'}"))
    found = impl.module("rollout").rollout(source, 1.0, task_of(impl, problem), 6, score=False)
    network = network_of(impl, RULES[name])
    expected = impl.module("meta.unroll").rollout(task_of(impl, problem), network, 6)[:-1]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-9)
