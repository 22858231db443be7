"""The forward meta-gradient against the reverse one, and the memory of both, in torch and in TensorFlow."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest

from common.data.coordinates import Subset
from common.errors import L2OError
from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS, initial_weights
from interchange.meta import carried as module
from interchange.meta.rule_weights import RuleWeights
from interchange.rule.decay import with_schedule, with_weight_decay
from interchange.rule.rule import Rule
from tests.helpers.evolving import least_memory

# name -> rule and a learning rate with which it descends
RULES = {
    "adam": (Rule.named("adam", eps=1e-4), 0.01),
    "nesterov": (Rule.named("nesterov"), 0.01),
    "lion": (Rule.named("lion"), 0.001),
    "psi": (Rule.named("psi"), 1.0),
    "dm_48": (Rule.named("dm_48"), 1.0),
    "decay-and-schedule": (with_schedule(with_weight_decay(Rule.named("momentum"), 0.1), 0.02), 0.01),
    "max": (
        Rule.from_text("-c * ema(max(g, d), b) - e * abs(g)", {"c": 1.0, "d": 0.0, "b": 0.5, "e": 0.2}),
        0.05,
    ),
}
CASES = [
    pytest.param(
        backend,
        name,
        steps,
        marks=[pytest.mark.slow]
        if (steps == 200 and name != "adam")
        or (backend == "tf" and (steps > 20 or name not in ("nesterov", "lion")))
        else [],
    )
    for backend in ("torch", "tf")
    for name in RULES
    for steps in (1, 20, 200)
]
MEMORY = """
import json
from common.tables.problems import PROBLEMS, Instance
from interchange.rule.rule import Rule
from {name}_impl.meta import forward, unroll
from {name}_impl.networks.rule import RuleNetwork
from {name}_impl.problems.tasks import ProblemTask
from {name}_impl.tensors import DTYPES

def peak():  # not ru_maxrss, which begins with that of the process before exec
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

task = ProblemTask(Instance(PROBLEMS["digits-mlp"], 0, batch_size=2), DTYPES["float64"])
network = RuleNetwork(Rule.named("nesterov"))
at, found = unroll.start(task, network), []
for steps in (500, 20, 2000):  # the first fills the allocator's pools
    forward.advance(task, network, forward.start(task, network), steps, "sum", 1e-3)
    found.append(peak())
_, _, gradients, inputs = unroll.advance(task, network, at, 2000, 1e-3)
unroll.meta_gradient(network, at.state, inputs, unroll.cotangents(gradients, "sum"))
print(json.dumps([*found[1:], peak()]))
"""


def digits(impl, dtype="float64"):
    given = Instance(PROBLEMS["digits-mlp"], 0, batch_size=16)
    return impl.module("problems.tasks").ProblemTask(given, impl.DTYPES[dtype])


def reverse(impl, task, network, at, steps, lr):
    """Losses of ``unroll``, and by loss the meta-gradient of one backward pass."""
    _, losses, gradients, inputs = impl.module("meta.unroll").advance(task, network, at, steps, lr)
    keep, found = impl.module("meta.unroll").decay_factor(network, lr), {}
    for loss in ("sum", "last"):
        c = lr * impl.module("meta.unroll").cotangents(gradients, loss, keep)
        found[loss] = impl.module("meta.unroll").meta_gradient(network, at.state, inputs, c)
    return losses, found


def assert_equal(got, expected, tolerance):
    """Relative to each, or to rounding of the largest: those by Adam's decays are 0 at its first step."""
    assert got.keys() == expected.keys()
    rounding = 1e-15 * max(1.0, *(abs(float(value)) for value in expected.values()))
    for name, value in expected.items():
        assert float(got[name]) == pytest.approx(float(value), rel=tolerance, abs=rounding), name


@pytest.mark.parametrize(("impl", "name", "steps"), CASES, indirect=["impl"])
def test_it_equals_the_reverse_meta_gradient(impl, name, steps):
    rule, lr = RULES[name]
    task, network = digits(impl), impl.module("backend").rule_network(rule, "cpu")
    at = impl.module("meta.unroll").start(task, network)
    losses, expected = reverse(impl, task, network, at, steps, lr)
    for loss in ("sum", "last"):
        end = impl.module("meta.forward").start(task, network)
        seen, got = impl.module("meta.forward").advance(task, network, end, steps, loss, lr)
        assert end.step == end.parts[0].state.t == steps
        np.testing.assert_allclose(seen, losses, rtol=1e-12)
        assert_equal(got, expected[loss], 1e-9)
        if name != "lion":  # whose sign has the derivative 0
            assert any(float(value) for value in got.values())


@pytest.mark.slow_with(impl=("tf",))
@pytest.mark.parametrize("loss", ["sum", pytest.param("last", marks=pytest.mark.slow)])
def test_tangents_carried_over_leave_no_truncation_bias(impl, loss):
    rule, lr = RULES["decay-and-schedule"]
    task, network = digits(impl), impl.module("backend").rule_network(rule, "cpu")
    forward = impl.module("meta.forward")
    whole = forward.advance(task, network, forward.start(task, network), 200, loss, lr)[1]
    at = forward.start(task, network)
    first = forward.advance(task, network, at, 100, loss, lr)[1]
    fresh = copy.copy(at)  # an unroll that forgets the steps before it
    fresh.parts = [copy.copy(part) for part in at.parts]
    for part in fresh.parts:
        part.tangents = [(0.0 * theta, tuple(0.0 * a for a in slots)) for theta, slots in part.tangents]
    second = forward.advance(task, network, at, 100, loss, lr)[1]
    assert at.step == 200
    if loss == "sum":
        second = {key: first[key] + value for key, value in second.items()}
    assert_equal(second, whole, 1e-12)
    alone = forward.advance(task, network, fresh, 100, loss, lr)[1]
    assert any(abs(float(alone[key]) / float(value) - 1.0) > 0.01 for key, value in whole.items())


@pytest.mark.parametrize("name", [pytest.param("psi", marks=pytest.mark.slow), "decay-and-schedule"])
def test_in_float32_it_is_close_to_float64(impl, name):
    rule, lr = RULES[name]
    found = []
    for dtype in ("float32", "float64"):
        task, network = digits(impl, dtype), impl.module("backend").rule_network(rule, "cpu")
        at = impl.module("meta.forward").start(task, network)
        found.append(impl.module("meta.forward").advance(task, network, at, 20, "sum", lr)[1])
        assert at.parts[0].tangents[0][0].dtype == at.theta.dtype == impl.DTYPES[dtype]
    for key, value in found[1].items():
        assert float(found[0][key]) == pytest.approx(float(value), rel=0.02, abs=1e-3), key


def test_weights_that_are_arrays_are_refused(impl):
    row = TEACHERS["rp_s"]
    network = impl.module("backend").teacher_network(row, initial_weights(row, 0), "float64", "cpu")
    task, forward = digits(impl), impl.module("meta.forward")
    with pytest.raises(L2OError, match="expects a rule's constants, got weight arrays"):
        forward.advance(task, network, forward.start(task, network), 1, "sum")


def carried(impl, task, name, unrolls=(3, 2), **how):
    """The sum of the gradients of unrolls, and the optimizee where they end."""
    rule, lr = RULES[name]
    network, forward = impl.module("backend").rule_network(rule, "cpu"), impl.module("meta.forward")
    at, total = forward.start(task, network), {}
    for steps in unrolls:
        for key, value in forward.advance(task, network, at, steps, "sum", lr, **how)[1].items():
            total[key] = total.get(key, 0.0) + float(value)
    return total, at


@pytest.mark.slow_with(impl=("tf",), name=("adam",))
@pytest.mark.parametrize("name", ["adam", "decay-and-schedule"])
def test_pieces_and_a_file_for_tangents_change_nothing(impl, name, monkeypatch):
    whole, at = carried(impl, task := digits(impl), name)
    assert len(at.parts) == 1 and not at.parts[0].piece.shelved
    monkeypatch.setattr(module, "_MOST", 500)
    pieces, at = carried(impl, task, name)
    assert len(at.parts) == -(-len(at.theta) // 500)
    assert_equal(pieces, whole, 1e-12)
    monkeypatch.setattr(module, "_LEAST", 100)
    least, kept = least_memory(lambda memory: carried(impl, task, name, memory=memory)), []
    for times in (1.0, 1.8, 20.0):
        bounded, at = carried(impl, task, name, memory=times * least)
        assert_equal(bounded, whole, 1e-12)
        kept.append(np.mean([part.tangents is not None for part in at.parts]))
    assert kept[0] == 0.0 < kept[1] < kept[2] == 1.0


@pytest.mark.slow_with(impl=("tf",), name=("decay-and-schedule", "max"))
@pytest.mark.parametrize("name", ["psi", "decay-and-schedule", "max"])
def test_without_compiled_code_tangents_are_the_same(impl, name, monkeypatch):
    compiled, _ = carried(impl, task := digits(impl), name)
    seen = []
    monkeypatch.setattr(impl.module("networks.compiled"), "rule_code", lambda *given: seen.append(given))
    assert_equal(carried(impl, task, name)[0], compiled, 1e-10)
    assert any("seed" in source.text for source, _ in seen)


@pytest.mark.slow_with(impl=("tf",))
def test_the_tangents_of_all_coordinates_are_those_of_some_and_of_the_others(impl, monkeypatch):
    task, name = digits(impl), "decay-and-schedule"
    whole, at = carried(impl, task, name)
    numbers = np.random.default_rng(0).permutation(len(at.theta))
    monkeypatch.setattr(module, "_MOST", 500)
    parts = [np.sort(numbers[:700]), np.sort(numbers[700:])]
    found = [carried(impl, task, name, coordinates=Subset(part, np.ones(len(part))))[0] for part in parts]
    assert_equal({key: found[0][key] + found[1][key] for key in whole}, whole, 1e-12)
    double = carried(impl, task, name, coordinates=Subset(parts[0], np.full(700, 2.0)))[0]
    assert_equal(double, {key: 2.0 * value for key, value in found[0].items()}, 1e-12)


def test_only_what_a_constant_moves_has_tangents():
    network = RuleWeights(Rule.named("rnnprop_tuned"))
    out, slots = network.reach[True]
    assert out == set(network.starts) and sorted(map(sorted, slots)) == [["c1"], ["c4"]]
    assert RuleWeights(Rule.named("psi")).reach[True][1] == (frozenset(),) * 4  # lags of features
    assert RuleWeights(Rule.named("lion")).reach[True][0] == set()  # a sign has no derivative
    assert "weight_decay" in RuleWeights(RULES["decay-and-schedule"][0]).reach[True][0]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(impl):
    """Peaks in MiB of one process: forward at 20 and 2,000 steps, then reverse at 2,000."""
    code = MEMORY.format(name=impl.NAME)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    short, long, kept = json.loads(done.stdout.splitlines()[-1])
    assert long - short < 20.0  # one vector [N] kept per step would be 42
    assert kept - long > 50.0
