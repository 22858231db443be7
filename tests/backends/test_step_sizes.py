"""Step sizes by tensor: their meta-gradients by every estimator, and the optimizers that take them."""

import dataclasses

import numpy as np
import pytest

from common.errors import L2OError
from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS, initial_weights
from interchange.files.weights import Teacher
from interchange.meta.config import TuneConfig
from interchange.rule.rule import Rule
from interchange.rule.step_sizes import sized
from tests.helpers.evolving import evolution, learner_of

CONFIG = TuneConfig(rule="r.json", problem="digits-mlp", per_tensor=True, step_size=0.7)
ADAM = dataclasses.replace(Rule.named("adam"), scale=0.01)
SIZES = {"a": 2.0, "b": 0.25, "c": 0.0625}


def teacher(name: str) -> Teacher:
    weights = {key: 2.0 * w for key, w in initial_weights(TEACHERS[name], 1).items()}
    return Teacher(TEACHERS[name], weights, "", "")


GIVEN = {"adam": ADAM, "rp_s": teacher("rp_s"), "rp_s_m": teacher("rp_s_m"), "muon": Rule.named("muon")}


def digits(impl):
    instance = Instance(PROBLEMS["digits-mlp"], 0, batch_size=16)
    return impl.module("problems.tasks").ProblemTask(instance, impl.DTYPES["float64"])


def network_of(impl, given, **sizes):
    source = sized(given, CONFIG, None)
    changed = {name.replace("__", "/"): size for name, size in sizes.items()}
    loaded = dataclasses.replace(source.loaded, step_sizes=source.loaded.step_sizes | changed)
    return impl.module("backend").step_sizes_network(
        dataclasses.replace(source, loaded=loaded), "float64", "cpu"
    )


def assert_equal(got, expected) -> None:
    largest = max(abs(float(value)) for value in expected.values())
    assert got.keys() == expected.keys() and largest > 1e-6
    for name, value in expected.items():
        assert float(got[name]) == pytest.approx(float(value), abs=1e-10 * largest), name


@pytest.mark.parametrize("name", GIVEN)
def test_first_and_second_order_are_the_gradients_of_the_whole_graph(impl, name):
    task, network = digits(impl), network_of(impl, GIVEN[name], layer_0__w=0.3)
    learner, unroll = learner_of(network), impl.module("meta.unroll")
    at = unroll.advance(task, network, unroll.start(task, network), 3)[0]
    for method, second in ((learner.first_order, False), (learner.second_order, True)):
        expected = impl.whole_graph(task, network, at, 6, "sum", second=second)
        assert_equal(method(task, at, 6, None)[2], expected)


@pytest.mark.parametrize("loss", ["sum", "last", "log"])
@pytest.mark.parametrize("name", ["adam", "rp_s", "rp_s_m"])
def test_forward_is_first_order_where_nothing_is_truncated(impl, name, loss):
    """The losses of both unrolls by what happened in either."""
    task, network = digits(impl), network_of(impl, GIVEN[name], layer_1__w=3.0)
    forward, unroll = impl.module("meta.forward"), impl.module("meta.unroll")
    at, start = forward.start(task, network), unroll.start(task, network)
    found = [forward.advance(task, network, at, steps, loss) for steps in (3, 2)]
    expected = impl.whole_graph(task, network, start, 5, loss, second=False)
    total = found[1][1] if loss == "last" else {k: g + found[1][1][k] for k, g in found[0][1].items()}
    assert_equal(total, expected)
    assert at.step == 5 and len(found[0][0]) == 4


@pytest.mark.slow_with(impl=("tf",))
def test_second_order_and_evolution_agree_on_which_step_sizes_grow(impl):
    """Of one layer they are far too small, of another too large: there is no doubt about their signs."""
    given = dataclasses.replace(Rule.named("sgd"), scale=1.0)
    network = network_of(impl, given, layer_0__w=0.01, layer_0__b=0.01, layer_2__w=0.02, layer_2__b=8.0)
    task = digits(impl)
    at = impl.module("meta.unroll").start(task, network)
    second = impl.module("meta.second_order").unrolled(task, network, at, 20, "sum")[2]
    found, _ = evolution(lambda k: task, network, 20, {}, np.random.default_rng(0), 40, 0.1)
    largest = max(abs(float(g)) for g in second.values())
    clear = [name for name, g in second.items() if abs(float(g)) > 0.2 * largest]
    assert {np.sign(float(second[name])) for name in clear} == {-1.0, 1.0}
    for name in clear:
        assert np.sign(float(found[name])) == np.sign(float(second[name])), name


def arrays(seed: int = 0) -> list[np.ndarray]:
    return [np.random.default_rng(seed).normal(size=shape) for shape in ((4, 3), (3,), (3, 2))]


@pytest.mark.parametrize("name", GIVEN)
def test_an_optimizer_moves_every_tensor_by_its_own_rate(impl, name):
    """As optimizers of one tensor each do at that learning rate; and other tensors know nothing of it."""
    given, rows = GIVEN[name], [arrays(step) for step in range(1, 4)]
    found = impl.named(SIZES, arrays())
    one = impl.optimizer(found, dataclasses.replace(given, step_sizes=SIZES), 0.5)
    alone = [impl.parameters([a]) for a in arrays()]
    others = [impl.optimizer(p, given, 0.5 * size) for p, size in zip(alone, SIZES.values(), strict=True)]
    plain = impl.plain(found)
    for row in rows:
        impl.feed(one, plain, row)
        for each, p, g in zip(others, alone, row, strict=True):
            impl.feed(each, p, [g])
    for p, (expected,) in zip(plain, alone, strict=True):
        np.testing.assert_allclose(impl.value(p), impl.value(expected), rtol=0, atol=1e-12)


def test_parameters_without_a_name_or_a_step_size_are_refused(impl):
    given = dataclasses.replace(ADAM, step_sizes={name: SIZES[name] for name in "ab"})
    with pytest.raises(L2OError, match=r"expected the .* that there are step sizes for \(a, b\), got 'c'"):
        impl.optimizer(impl.named(SIZES, arrays()), given, 0.5)
