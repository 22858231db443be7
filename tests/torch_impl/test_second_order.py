"""The second-order meta-gradient against autograd through the whole graph, differences and itself."""

import dataclasses

import pytest

from common.tables import layers as net
from common.tables.problems import PROBLEMS, Instance, Problem
from common.tables.teachers import TEACHERS, initial_weights
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from interchange.protocols import Task  # noqa: E402
from torch_impl.meta import unroll  # noqa: E402
from torch_impl.meta.second_order import unrolled  # noqa: E402
from torch_impl.networks.rule import RuleNetwork  # noqa: E402
from torch_impl.networks.teacher import TeacherNetwork  # noqa: E402
from torch_impl.problems.augment import ConvexTerm, RandomScaling  # noqa: E402
from torch_impl.problems.tasks import ModuleTask, ProblemTask, value_and_gradient  # noqa: E402
from torch_impl.tensors import unflatten  # noqa: E402

RULES = {
    "adam": dataclasses.replace(Rule.named("adam"), scale=0.01),
    "tanh": Rule.from_text(
        "-c0 * tanh(m_tilde / c1) - c2 * ema(g, c3)",
        {"c0": 0.02, "c1": 0.7, "c2": 0.05, "c3": 0.8},
        {"m_tilde": "ema_hat(g, 0.9) / (sqrt(ema_hat(square(g), 0.99)) + 1e-8)"},
        scale=0.5,
    ),
    "lags-t-and-decay": Rule.from_text(
        "-c0 * g / (1 + c1 * t) - c2 * lag(g, 1) - c3 * lag(g, 2) - c4 * theta",
        {"c0": 0.1, "c1": 0.1, "c2": 0.05, "c3": -0.02, "c4": 0.3},
    ),
}
# No bias before batch norm: its gradient is rounding errors only, and so would the reference be.
NORM_LAYERS = (net.Layer("conv", out=4, size=3, pad=1, bias=False), net.NORM, net.RELU, *net.mlp())
NORM = Problem("probe", "classifier", "digits", NORM_LAYERS)
Grads = dict[str, torch.Tensor]


def problem(name: str = "digits-mlp") -> ProblemTask:
    return ProblemTask(Instance(NORM if name == "norm" else PROBLEMS[name], 0, batch_size=16), torch.float64)


def model(dtype: torch.dtype = torch.float64, bias: bool = False) -> ModuleTask:
    """Batch norm (after a bias, if asked for), dropout, inputs that always are 0, units that never are on."""
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(6, 8, bias), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.3)
    ).append(torch.nn.Linear(8, 3))
    module = module.to(dtype)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
        module[1].bias[:2] = -50.0
    x = torch.randn(4, 16, 6, generator=generator, dtype=torch.float64).to(dtype)
    x[..., 3:] = 0.0
    y = torch.randint(3, (4, 16), generator=generator)
    return ModuleTask(module, torch.nn.functional.cross_entropy, zip(x, y, strict=True))


def network_of(name: str, dtype: torch.dtype = torch.float64) -> unroll.Network:
    """A rule, or a teacher whose weights are large enough that saturation and memory matter."""
    if name in RULES:
        return RuleNetwork(RULES[name])
    weights = {key: 2.0 * w for key, w in initial_weights(TEACHERS[name], 1).items()}
    return TeacherNetwork(TEACHERS[name], weights, dtype)


def by_autograd(
    task: Task, network: unroll.Network, at: unroll.Position, steps: int, loss: str, lr: float = 1.0
) -> Grads:
    """The definition: one graph through every gradient, feature, update and loss."""
    weights = {name: w.clone().requires_grad_() for name, w in network.weights.items()}
    theta, state, losses = at.theta, at.state, []
    for k in range(steps + 1):
        if k == 0:
            value, g = value_and_gradient(task, theta, at.step)
        else:
            value = task.loss(unflatten(theta, task.shapes), at.step + k)
            (g,) = torch.autograd.grad(value, theta, create_graph=True)
        losses.append(value)
        if k < steps:
            x, state = unroll.inputs_at(network, unroll.Position(at.step + k, theta, state, value, g))
            out, hidden = network.step(weights, x, state.network, state.t)
            state = dataclasses.replace(state, network=hidden)
            theta = theta + lr * network.scale * out
    total = torch.stack(losses).sum() if loss == "sum" else losses[-1]
    grads = torch.autograd.grad(total, list(weights.values()), materialize_grads=True)
    return dict(zip(weights, grads, strict=True))


def assert_equal(got: Grads, expected: Grads, tolerance: float = 1e-9) -> None:
    """Relative to the largest entry of each array, and to four roundings of the largest of all.

    At Adam's first step its update is the gradient's sign whatever the decays are: the derivatives by them
    are 0 by terms as large as the others', so all that is left of them is rounding.
    """
    assert list(got) == list(expected)
    largest = max(float(want.abs().max()) for want in expected.values())
    assert largest > 1e-6
    for name, want in expected.items():
        room = tolerance * float(want.abs().max()) + 1e-15 * largest
        assert float((got[name] - want).abs().max()) <= room, name


@pytest.mark.parametrize(
    ("name", "steps", "carried"),
    [
        pytest.param(name, steps, carried, marks=pytest.mark.slow if carried and steps != 5 else [])
        for name in ("dm", "rnnprop", "rp_s", "rp_si", *RULES)
        for steps in (1, 5, 20)
        for carried in (False, True)
    ],
)
def test_it_equals_autograd_through_the_whole_graph(name, steps, carried):
    task, network = problem(), network_of(name)
    at = unroll.start(task, network)
    if carried:
        at = unroll.advance(task, network, at, 7)[0]
    for loss in ("sum", "last"):
        expected = by_autograd(task, network, at, steps, loss)
        assert_equal(unrolled(task, network, at, steps, loss)[2], expected)


@pytest.mark.parametrize("name", ["rp_s", *RULES])
@pytest.mark.parametrize(
    "task", ["quadratic", "lasso", "rastrigin", "digits-conv", "norm", "scaled", "module"]
)
def test_any_optimizee_works(task, name):
    if task == "module":
        task = model()
    elif task == "scaled":
        task = ConvexTerm(RandomScaling(problem("norm"), 1.0, 0, 0), 0, 0)
    else:
        task = problem(task)
    network = network_of(name)
    at = unroll.start(task, network)
    torch.manual_seed(5)
    expected = by_autograd(task, network, at, 4, "sum", 0.3)
    torch.manual_seed(5)
    assert_equal(unrolled(task, network, at, 4, "sum", 0.3)[2], expected)


@pytest.mark.parametrize("name", RULES)
def test_it_equals_differences_of_the_losses_themselves(name):
    """A rule over g has no feature outside the graph, so this is the whole derivative of its rollouts."""
    task, network, steps = problem(), network_of(name), 6
    at = unroll.start(task, network)
    got = unrolled(task, network, at, steps, "sum")[2]
    for key, w in network.weights.items():
        value, h = w.clone(), 1e-5 * max(float(w.abs()), 1e-9)
        ends = []
        for sign in (1.0, -1.0):
            w.copy_(value + sign * h)
            ends.append(unroll.rollout(task, network, steps).sum())
        w.copy_(value)
        assert float(got[key]) == pytest.approx((ends[0] - ends[1]) / (2.0 * h), rel=1e-4, abs=1e-8), key


def test_it_steps_as_advance_does_and_leaves_running_values_alone():
    network, ends = network_of("rp_s"), []
    for second in (False, True):
        for task in (problem("norm"), model()):
            torch.manual_seed(5)
            at = unroll.advance(task, network, unroll.start(task, network), 3)[0]
            end, losses = (
                unrolled(task, network, at, 4, "sum") if second else unroll.advance(task, network, at, 4)
            )[:2]
            buffers = task.buffers if isinstance(task, ProblemTask) else dict(task.module.named_buffers())
            arrays = {"theta": end.theta, "g": end.gradient, "loss": end.loss, "losses": losses, **buffers}
            ends.append((end.step, arrays | end.state.named() | {"next draw": torch.rand(3)}))
    for (step, want), (got_step, got) in zip(ends[:2], ends[2:], strict=True):
        assert got_step == step == 7 and got.keys() == want.keys()
        for key in want:
            assert torch.equal(got[key], want[key]), key


@pytest.mark.parametrize("name", ["dm", "rnnprop", "rp_s", "rp_si", *RULES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_that_always_are_zero_leave_it_finite(name, dtype):
    task, network = model(dtype, bias=True), network_of(name, dtype)
    at = unroll.start(task, network)
    _, _, gradients, _ = unroll.advance(task, network, at, 8)
    assert int((gradients == 0).all(0).sum()) >= 24  # weights of the inputs that are 0
    assert 0.0 < float(gradients[:, 48:56].abs().max()) < 1e-6
    grads = unrolled(task, network, at, 8, "sum")[2]
    assert all(bool(torch.isfinite(grad).all()) for grad in grads.values())
    assert max(float(grad.abs().max()) for grad in grads.values()) < 1e6


def test_a_rule_without_constants_has_no_gradient():
    network = RuleNetwork(Rule.from_text("-0.1 * sign(g)"))
    task = problem("quadratic")
    end, losses, grads = unrolled(task, network, unroll.start(task, network), 3, "sum")
    assert grads == {} and len(losses) == 4 and end.step == 3


class Touching:
    """0.5 x^2 twice, which starts where its gradient is 0, then x; and a coordinate with gradient 1."""

    names, shapes = ("x",), ((2,),)

    def initial(self) -> torch.Tensor:
        return torch.zeros(2, dtype=torch.float64)

    def loss(self, parameters: list[torch.Tensor], step: int) -> torch.Tensor:
        x, y = parameters[0]
        return y + (0.5 * x * x if step < 2 else x)


def test_a_gradient_that_is_zero_is_not_divided_by():
    """By the book the derivative of g_tilde is 1e8 there, of a jump no step of training sees as a slope."""
    features = {"g_tilde": "g / (sqrt(ema_hat(square(g), 0.9)) + 1e-8)"}
    network = RuleNetwork(Rule.from_text("-c0 * g_tilde - c1", {"c0": 0.01, "c1": 0.0}, features))
    grads = unrolled(Touching(), network, unroll.start(Touching(), network), 2, "last")[2]
    assert 1.0 <= abs(float(grads["c1"])) < 10.0
