"""The meta-gradient without optimizee graphs: against autograd, finite differences and the ICLR code."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from common.kernels import missing
from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS, initial_weights
from interchange.meta.config import TrainConfig
from interchange.meta.trainer import make_trainer
from interchange.rule.decay import with_schedule, with_weight_decay
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from interchange.protocols import State, Task  # noqa: E402
from tests.helpers.samples import EMA_AND_TANH  # noqa: E402
from tests.helpers.torch_side import whole_graph  # noqa: E402
from torch_impl.meta import unroll  # noqa: E402
from torch_impl.meta.learner import Learner  # noqa: E402
from torch_impl.networks.rule import RuleNetwork  # noqa: E402
from torch_impl.networks.structure import by_outputs  # noqa: E402
from torch_impl.networks.teacher import TeacherNetwork  # noqa: E402
from torch_impl.problems.modules import ModuleTask  # noqa: E402
from torch_impl.problems.tasks import ProblemTask, value_and_gradient  # noqa: E402
from torch_impl.tensors import unflatten  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"
RULES = {
    "ema-and-tanh": EMA_AND_TANH,
    "bias-corrected-and-t": Rule.from_text(
        "-c0 * ema_hat(g, b) / (sqrt(ema_hat(square(g), c)) + 1e-3) / (1 + d * t) + e * lag(g, 2)",
        {"c0": 0.03, "b": 0.9, "c": 0.95, "d": 0.1, "e": -0.01},
    ),
    "weight-decay-and-schedule": with_weight_decay(
        with_schedule(Rule.from_text("-c0 * ema(g, b)", {"c0": 0.8, "b": 0.7}, scale=0.5), 0.05), 0.2
    ),
}


def digits() -> ProblemTask:
    return ProblemTask(Instance(PROBLEMS["digits-mlp"], 0, batch_size=16), torch.float64)


def quadratic() -> ProblemTask:
    return ProblemTask(Instance(PROBLEMS["quadratic"], 0), torch.float64)


def teacher_network(name: str, path: str = "") -> TeacherNetwork:
    """A teacher whose weights are large enough that saturation and memory matter.

    Args:
        path: ``compiled`` or ``plain``; compiled where it can be if "".
    """
    weights = initial_weights(TEACHERS[name], 1)
    network = TeacherNetwork(TEACHERS[name], {k: 2.0 * w for k, w in weights.items()}, torch.float64)
    if path == "plain":
        network.__dict__["compiled"] = None
    if path == "compiled" and network.compiled is None:
        pytest.skip(missing("float64"))
    return network


def by_autograd(*given, **more) -> dict[str, torch.Tensor]:
    """The definition, exactly first order: gradients enter the features as constants."""
    return whole_graph(*given, **more, second=False)


def without_graph(
    task: Task,
    network: unroll.Network,
    at: unroll.Position,
    steps: int,
    loss: str,
    lr: float = 1.0,
    memory: float = 0.0,
) -> dict[str, torch.Tensor]:
    outs: list[torch.Tensor] = []
    _, losses, gradients, inputs = unroll.advance(task, network, at, steps, lr, outs=outs)
    keep = unroll.decay_factor(network, lr)
    c = by_outputs(network, task, outs, unroll.cotangents(gradients, loss, keep, losses=losses))
    return unroll.meta_gradient(network, at.state, inputs, lr * c, memory=memory)


def position(task: Task, network: unroll.Network, carried: bool) -> unroll.Position:
    at = unroll.start(task, network)
    return unroll.advance(task, network, at, 7)[0] if carried else at


def assert_equal(got: dict, expected: dict, tolerance: float) -> None:
    """Relative to the largest entry of each array, none of which may vanish."""
    assert list(got) == list(expected)
    for name, want in expected.items():
        size = float(want.abs().max())
        assert size > 0.0, name
        assert float((got[name] - want).abs().max()) < tolerance * size, name


UNROLLS = [
    (loss, steps, carried) for loss in ("sum", "last", "log") for steps in (1, 5, 20) for carried in (0, 7)
]
QUICK = [(loss, 5, carried) for loss in ("sum", "last") for carried in (0, 7)]
QUICK += [("log", 5, 7), ("sum", 1, 0), ("sum", 20, 7)]


@pytest.mark.slow_with(name=[name for name in TEACHERS if name not in ("dm", "rnnprop", "rp_s", "rp_s_m")])
@pytest.mark.parametrize(
    ("loss", "steps", "carried"),
    [pytest.param(*given, marks=[] if given in QUICK else pytest.mark.slow) for given in UNROLLS],
)
@pytest.mark.parametrize("path", ["compiled", "plain"])
@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_equal_autograd_through_the_whole_graph(name, path, loss, steps, carried):
    task, network = digits(), teacher_network(name, path)
    at = position(task, network, carried)
    expected = by_autograd(task, network, at, steps, loss)
    if steps == 1 and not carried:  # h is zero before the first step
        expected = {k: w for k, w in expected.items() if not k.endswith("w_hidden")}
    got = without_graph(task, network, at, steps, loss)
    assert_equal({k: got[k] for k in expected}, expected, 1e-10)


@pytest.mark.parametrize("path", ["compiled", "plain"])
@pytest.mark.parametrize("name", ["rnnprop", "rp_s"])
def test_unrolls_longer_than_what_is_kept_at_once_equal_autograd_too(name, path):
    """The compiled code keeps 20 steps' activations, and computes those of the steps before once more."""
    task, network = quadratic(), teacher_network(name, path)
    at = position(task, network, carried=True)
    for steps in (21, 47):
        expected = by_autograd(task, network, at, steps, "sum")
        assert_equal(without_graph(task, network, at, steps, "sum"), expected, 1e-10)


def test_a_small_memory_means_small_chunks_and_the_same_sum():
    task, network, rows = quadratic(), teacher_network("rp_s", "plain"), []
    at, step = position(task, network, carried=True), network.step
    network.step = lambda weights, x, hidden, t: rows.append(x.shape[1]) or step(weights, x, hidden, t)
    expected = without_graph(task, network, at, 5, "sum")
    assert max(rows) == 1280
    rows.clear()
    got = without_graph(task, network, at, 5, "sum", memory=0.02)
    assert max(rows[5:]) == 699  # 2^30 / 50 bytes over 4 threads, 5 steps and 192 numbers of 8 bytes
    assert_equal(got, expected, 1e-12)


@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried-over"])
@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize("loss", ["sum", "last"])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.usefixtures("code")
def test_rules_equal_autograd_through_the_whole_graph(name, loss, steps, carried):
    task, network = digits(), RuleNetwork(RULES[name])
    at = position(task, network, carried)
    expected = by_autograd(task, network, at, steps, loss)
    assert_equal(without_graph(task, network, at, steps, loss), expected, 1e-10)


@pytest.mark.parametrize(
    "make", [lambda: teacher_network("rp_s"), lambda: RuleNetwork(RULES["ema-and-tanh"])]
)
@pytest.mark.usefixtures("code")
def test_the_learning_rate_is_part_of_the_cotangent(make):
    task, network = quadratic(), make()
    at = unroll.start(task, network)
    expected = by_autograd(task, network, at, 6, "sum", lr=0.3)
    assert_equal(without_graph(task, network, at, 6, "sum", lr=0.3), expected, 1e-10)


@pytest.mark.parametrize("name", ["ema-and-tanh", "bias-corrected-and-t"])  # the oracle has no theta here
@pytest.mark.usefixtures("code")
def test_rules_equal_finite_differences_of_the_oracle(name):
    """u from the NumPy rule over the recorded gradients, so nothing here is shared but the losses."""
    rule, task, steps = RULES[name], digits(), 8
    network = RuleNetwork(rule)
    start = unroll.start(task, network)
    _, _, gradients, _ = unroll.advance(task, network, start, steps)
    g = gradients[:-1].numpy()

    def total(values: dict[str, float]) -> float:
        updates = rule.with_constants(values).evaluate({"g": g})
        thetas = start.theta.numpy() + np.cumsum(updates, axis=0)
        return sum(float(value_and_gradient(task, torch.tensor(x), t)[0]) for t, x in enumerate(thetas, 1))

    got = without_graph(task, network, start, steps, "sum")
    for key, value in rule.constants.items():
        h = 1e-5 * abs(value)
        slope = (total({key: value + h}) - total({key: value - h})) / (2 * h)
        if key in rule.decay_constants:  # the weight is the decay's logit
            slope *= value * (1 - value)
        assert float(got[key]) == pytest.approx(slope, rel=1e-5), key


@pytest.mark.usefixtures("code")
def test_unrolls_continue_where_the_one_before_ended():
    """Two unrolls are one: the same losses, one shared batch between them, one state."""
    task, network = digits(), teacher_network("rnnprop")
    start = unroll.start(task, network)
    whole, losses, gradients, inputs = unroll.advance(task, network, start, 9)
    middle, first, _, _ = unroll.advance(task, network, start, 4)
    end, second, grads, x = unroll.advance(task, network, middle, 5)
    assert torch.equal(torch.cat([first[:-1], second]), losses)
    assert torch.equal(grads, gradients[4:]) and torch.equal(x, inputs[4:])
    assert torch.equal(end.theta, whole.theta) and end.step == end.state.t == 9
    named = whole.state.named()
    assert all(torch.equal(a, named[name]) for name, a in end.state.named().items())
    np.testing.assert_array_equal(unroll.rollout(task, network, 9), losses.numpy())


def test_state_goes_through_its_named_arrays_and_back():
    state = teacher_network("rnnprop").initial_state(torch.zeros(3, dtype=torch.float64))
    arrays = [*state.features, *state.network]
    for value, array in enumerate(arrays):
        array.fill_(value)
    back = State.from_named(4, dict(reversed(state.named().items())))
    assert back.t == 4 and len(back.features) == len(state.features)
    for old, new in zip(arrays, [*back.features, *back.network], strict=True):
        assert torch.equal(old, new)


def test_all_coordinates_in_another_order_are_the_full_gradient_and_so_is_the_mean_of_two_halves():
    task, network = quadratic(), teacher_network("dm")
    at = position(task, network, carried=True)
    _, _, gradients, inputs = unroll.advance(task, network, at, 4)
    c = unroll.cotangents(gradients, "sum")
    order = np.random.default_rng(0).permutation(c.shape[1])
    whole = unroll.meta_gradient(network, at.state, inputs, c)
    assert_equal(unroll.meta_gradient(network, at.state, inputs, c, order), whole, 1e-12)
    one, other = (unroll.meta_gradient(network, at.state, inputs, c, part) for part in np.split(order, 2))
    assert_equal({name: (one[name] + other[name]) / 2 for name in one}, whole, 1e-12)


@pytest.mark.parametrize("size", [64, 333])
@pytest.mark.parametrize(
    "make",
    [lambda: teacher_network("rnnprop", "plain"), lambda: RuleNetwork(RULES["bias-corrected-and-t"])],
)
def test_chunks_do_not_change_the_sum(monkeypatch, make, size):
    task, network = quadratic(), make()
    at = position(task, network, carried=True)
    _, _, gradients, inputs = unroll.advance(task, network, at, 5)
    args = (network, at.state, inputs, unroll.cotangents(gradients, "sum"))
    whole = unroll.meta_gradient(*args)
    monkeypatch.setattr(unroll, "_SMALLEST_CHUNK", size)
    monkeypatch.setattr(unroll, "_LARGEST_CHUNK", size)
    chunked = unroll.meta_gradient(*args)
    assert_equal(chunked, whole, 1e-12)
    again = unroll.meta_gradient(*args)
    assert all(torch.equal(chunked[name], again[name]) for name in chunked)


@pytest.mark.parametrize("loss", ["sum", "last"])
def test_an_epoch_of_meta_training_equals_training_by_autograd(loss):
    """Two epochs of unrolls 4 + 4 + 2: state carried over, detached between; Adam on the weights."""
    settings = {"epochs": 2, "epoch_length": 10, "unroll": 4, "batch_size": 16, "lr": 0.01, "loss": loss}
    config = TrainConfig(problem="digits-mlp", dtype="float64", validate_every=0, **settings)
    trainer = make_trainer(Learner(teacher_network("rp_s"), config))
    other = teacher_network("rp_s")
    assert trainer.run(label="test", quiet=True)
    adam = torch.optim.Adam(other.weights.values(), lr=0.01)
    for epoch in range(2):
        task = trainer.tasks("meta_train", epoch)
        at = unroll.start(task, other)
        for steps in (4, 4, 2):
            end = unroll.advance(task, other, at, steps)[0]
            for name, grad in by_autograd(task, other, at, steps, loss).items():
                other.weights[name].grad = grad
            adam.step()
            at = end
    before = teacher_network("rp_s").weights
    for name, want in other.weights.items():
        np.testing.assert_allclose(trainer.state.best[name], want.detach().numpy(), rtol=0, atol=1e-9)
        assert not np.allclose(trainer.state.best[name], before[name].numpy(), atol=1e-3)


@pytest.mark.parametrize("name", ["rp_s", "rp_extra"])
def test_the_iclr_codes_meta_gradient_is_reproduced(name):
    """With its quirk copied: batch 6 is taken at theta_5, so the last update gets no meta-gradient."""
    file = dict(np.load(GOLDEN / f"{name}_meta.npz"))
    first, second, last = torch.nn.Linear(12, 8), torch.nn.Linear(8, 6), torch.nn.Linear(6, 10)
    module = torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), last).double()
    with torch.no_grad():
        for p, key in zip(module.parameters(), file["theta0_order"], strict=True):
            p.copy_(torch.tensor(file[f"theta0/{key}"]))
    batches = [
        (torch.tensor(x).double(), torch.tensor(y)) for x, y in zip(file["x"], file["labels"], strict=True)
    ]
    task = ModuleTask(module, lambda z, y: torch.nn.functional.nll_loss(torch.log_softmax(z, 1), y), batches)
    names = {
        "pre/w": "preprocNet.0.weight",
        "pre/b": "preprocNet.0.bias",
        "lstm_0/w_input": "recurs.0.weight_ih",
        "lstm_0/w_hidden": "recurs.0.weight_hh",
        "lstm_0/bias": "recurs.0.bias_ih",
        "out/w": "output.weight",
        "out/b": "output.bias",
    }
    weights = {ours: file[f"w/{theirs}"] for ours, theirs in names.items()}
    weights["lstm_0/bias"] = weights["lstm_0/bias"] + file["w/recurs.0.bias_hh"]
    network = TeacherNetwork(TEACHERS[name], weights, torch.float64)

    start = unroll.start(task, network)
    before_last, losses, gradients, inputs = unroll.advance(task, network, start, 5)
    np.testing.assert_allclose(losses.numpy(), file["losses"], rtol=1e-6)
    _, _, _, last_input = unroll.advance(task, network, before_last, 1)
    _, seventh = value_and_gradient(task, before_last.theta, 6)
    c = torch.zeros(6, len(start.theta), dtype=torch.float64)
    for s in range(5):
        c[s] = gradients[s + 1 :].sum(0) + seventh
    got = unroll.meta_gradient(network, start.state, torch.cat([inputs, last_input]), c)
    for ours, theirs in names.items():
        expected = file[f"dloss_dw/{theirs}"]
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(got[ours].numpy(), expected, rtol=0, atol=atol, err_msg=ours)


def test_constants_by_kind_start_as_the_shared_ones_and_their_gradients_sum_to_theirs():
    """eps of Adam: one for matrices and one for biases, no kernels being there; the decays stay shared."""
    rule = dataclasses.replace(with_weight_decay(Rule.named("adam"), 0.1), scale=0.01)
    rule = rule.with_constants({"eps": 1e-3})
    task, found = digits(), []
    for kinds in (False, True):
        network = RuleNetwork(rule, kinds=kinds)
        at = unroll.start(task, network)
        found.append((unroll.rollout(task, network, 9), without_graph(task, network, at, 9, "sum")))
    (losses, shared), (same, apart) = found
    np.testing.assert_allclose(same, losses, rtol=1e-12)  # one is compiled, the other is not
    assert apart["eps"].shape == (3,) and float(apart["eps"][1]) == 0.0 and bool(apart["eps"][[0, 2]].all())
    for name, gradient in shared.items():
        assert float(apart[name].sum()) == pytest.approx(float(gradient), rel=1e-10)


@pytest.mark.usefixtures("code")
def test_constants_of_a_kind_act_on_its_tensors_alone():
    network, task = RuleNetwork(Rule.from_text("-c * g", {"c": 0.5}), kinds=True), digits()
    network.weights["c"][2] = 0.0
    moved = unroll.advance(task, network, unroll.start(task, network), 1)[0].theta - task.initial()
    parts = dict(zip(task.names, unflatten(moved, task.shapes), strict=True))
    assert all(bool(part.any()) == name.endswith("/w") for name, part in parts.items())
    constants = [network.tuned({"c": np.array([0.5, 0.6, 0.7])}, kind).constants["c"] for kind in range(3)]
    assert constants == [0.5, 0.6, 0.7]
