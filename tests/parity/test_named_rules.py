"""Hand-made optimizers written as equations take the steps of the originals, in float64 for 1,000 steps."""

from collections.abc import Callable

import numpy as np
import pytest

from interchange.language import view as views
from interchange.language.execute import initial_state
from interchange.language.execute import step as oracle_step
from interchange.meta.config import TrainConfig
from interchange.rule.rule import Rule
from tests.conftest import DATA

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

from torch_impl.optimizers.optimizers import SymbolicOptimizer  # noqa: E402
from torch_impl.problems.tasks import table_task, value_and_gradient  # noqa: E402

STEPS = 1000
ORIGINALS: dict[str, tuple[Callable, float]] = {
    "sgd": (torch.optim.SGD, 0.5),
    "momentum": (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), 0.05),
    "nesterov": (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True), 0.05),
    "rmsprop": (torch.optim.RMSprop, 1e-3),
    "adagrad": (torch.optim.Adagrad, 0.1),
    "adam": (torch.optim.Adam, 1e-3),
    "amsgrad": (lambda p, lr: torch.optim.Adam(p, lr, amsgrad=True), 1e-3),
}


def quadratic(condition: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A [12, 12] with largest eigenvalue 1, and a start far enough that 1,000 steps do not reach 0.

    Where a coordinate hovers around its zero, steps that do not shrink with the gradient (RMSprop) make
    any rounding larger; the conditions were chosen so that no coordinate gets there.
    """
    generator = torch.Generator().manual_seed(int(condition))
    basis, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))
    values = torch.logspace(0.0, -np.log10(condition), 12, dtype=torch.float64)
    start = 2.0 + torch.rand(12, generator=generator, dtype=torch.float64)
    return basis @ torch.diag(values) @ basis.T, start


@pytest.mark.parametrize("name", ORIGINALS)
def test_closed_loop_on_convex_quadratics(name):
    """Of three conditions, a row of the parameter each."""
    a, start = map(torch.stack, zip(*map(quadratic, (30.0, 1e4, 1e6)), strict=True))
    make, lr = ORIGINALS[name]
    x, y = (start.clone().requires_grad_() for _ in range(2))
    pairs = [(x, make([x], lr)), (y, SymbolicOptimizer([y], Rule.named(name), lr))]
    for step in range(STEPS):
        for theta, optimizer in pairs:
            theta.grad = (a @ theta.detach()[..., None])[..., 0]
            optimizer.step()
        with torch.no_grad():
            apart = ((x - y).abs().amax(1) / x.abs().amax(1)).max()
        assert apart <= 1e-12, f"step {step + 1}: {apart:.2e}"
    assert ((x - start).abs() > 1e-3 * start.abs()).any(1).all()


@pytest.mark.parametrize("steps", [200, pytest.param(STEPS, marks=pytest.mark.slow)])
def test_open_loop_over_the_gradients_of_adam_on_mnist_mlp(steps):
    # Without the data folder images of the same shape stand in.
    dataset = "" if (DATA / "mnist.npz").is_file() else "synthetic"
    config = TrainConfig(problem="mnist-mlp", dataset=dataset, dtype="float64", data_dir=str(DATA))
    task = table_task(config, "meta_train", 0)
    theta = task.initial().requires_grad_()
    leader = torch.optim.Adam([theta])
    copies = {name: [theta.detach().clone().requires_grad_() for _ in range(2)] for name in ORIGINALS}
    optimizers = {}
    for name, (make, lr) in ORIGINALS.items():
        x, y = copies[name]
        optimizers[name] = (make([x], lr), SymbolicOptimizer([y], Rule.named(name), lr))
    for step in range(steps):
        _, gradient = value_and_gradient(task, theta, step)
        theta.grad = gradient
        leader.step()
        for name, (x, y) in copies.items():
            x.grad = y.grad = gradient
            for optimizer in optimizers[name]:
                optimizer.step()
            apart = (x - y).abs().max() / x.abs().max()
            assert apart <= 1e-12, f"{name}, step {step + 1}: {apart:.2e}"
    assert not torch.allclose(copies["adam"][0], task.initial(), rtol=1e-3)


def test_lion_takes_the_steps_of_optax():
    generator = np.random.default_rng(0)
    gradients = np.exp(generator.uniform(-8, 2, (STEPS, 1))) * generator.normal(size=(STEPS, 300))
    with jax.enable_x64(True):
        original = optax.lion(1e-3, b1=0.9, b2=0.99, weight_decay=0.0)
        x = jax.numpy.zeros(300, jax.numpy.float64)
        state, step = original.init(x), jax.jit(original.update)
        y = torch.zeros(300, dtype=torch.float64, requires_grad=True)
        optimizer = SymbolicOptimizer([y], Rule.named("lion"), 1e-3)
        for gradient in gradients:
            update, state = step(jax.numpy.asarray(gradient), state, x)
            x = optax.apply_updates(x, update)
            y.grad = torch.tensor(gradient)
            optimizer.step()
            np.testing.assert_allclose(y.detach().numpy(), np.asarray(x), rtol=0.0, atol=1e-12)
    assert np.abs(np.asarray(x)).max() > 0.01


def optax_adafactor(lr: float) -> optax.GradientTransformation:
    """The parts of optax.adafactor, whose decay is a float32; it has no min(rho, 1 / sqrt(t))."""
    return optax.chain(
        optax.scale_by_factored_rms(
            min_dim_size_to_factor=1, decay_rate_fn=lambda step, power: 1.0 - (step + 1.0) ** -power
        ),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
        optax.scale(-lr),
    )


# What else optax and torch have in float64 as the papers do. They have Muon otherwise: torch's rounds to
# bfloat16, optax's corrects the two parts of Nesterov's momentum by different powers of beta. optax.sm3 is
# SM3-II. Neither has NorMuon, AdaMuon, Grams, MARS or cautious rules: see test_published_rules.
LIBRARIES: dict[str, tuple[dict, Callable, float]] = {
    "lamb": ({"weight_decay": 0.01}, lambda lr: optax.lamb(lr, weight_decay=0.01), 0.01),
    "lars": ({}, lambda lr: optax.lars(lr), 1.0),
    "adopt": ({}, lambda lr: optax.contrib.adopt(lr), 0.01),
    "ademamix": ({}, lambda lr: optax.contrib.ademamix(lr, alpha=5.0), 0.001),
    "schedule_free": ({}, lambda lr: optax.contrib.schedule_free_adamw(lr, warmup_steps=None), 0.01),
    "schedule_free(sgd)": ({}, lambda lr: optax.contrib.schedule_free_sgd(lr, warmup_steps=None), 0.1),
    "adafactor": ({"rho": 1e-9}, lambda lr: optax_adafactor(lr), 0.01),
}
WHOLE = {"matrix": views.canonical((12, 7)), "vector": views.vector((9,))}
every_tensor = pytest.mark.parametrize("view", WHOLE.values(), ids=WHOLE)


def walk(rule: Rule, view: views.View, start: np.ndarray, gradients: np.ndarray, lr: float) -> np.ndarray:
    """The parameter after every step [T, *shape], by the NumPy oracle."""
    program, theta, path = rule.program(view.matrix), start, []
    state = initial_state(program, view)
    for t, g in enumerate(gradients, 1):
        (u,), state = oracle_step(program, {"g": g, "theta": theta, **rule.constants}, state, t, view)
        theta = theta + lr * u
        path.append(theta)
    return np.stack(path)


def drawn(view: views.View) -> tuple[np.ndarray, np.ndarray]:
    """A parameter, and 200 gradients of sizes over four decades."""
    rng = np.random.default_rng(5)
    sizes = np.exp(rng.uniform(-6, 2, view.shape))
    return rng.normal(size=view.shape), sizes * (rng.normal(size=(200, *view.shape)) + 0.2)


def assert_same_path(found: np.ndarray, expected: np.ndarray, start: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-12 * np.abs(expected).max())
    assert np.abs(expected[-1] - start).max() > 1e-3


@every_tensor
@pytest.mark.parametrize("name", LIBRARIES)
def test_published_rules_take_the_steps_of_optax(name, view):
    options, make, lr = LIBRARIES[name]
    start, gradients = drawn(view)
    with jax.enable_x64(True):
        original, x, path = make(lr), jax.numpy.asarray(start), []
        state, update = original.init(x), jax.jit(original.update)
        for g in gradients:
            u, state = update(jax.numpy.asarray(g), state, x)
            x = optax.apply_updates(x, u)
            path.append(np.asarray(x))
    assert path[0].dtype == np.float64
    assert_same_path(walk(Rule.named(name, **options), view, start, gradients, lr), np.stack(path), start)


@every_tensor
def test_adafactor_takes_the_steps_of_torch(view):
    """With rho = lr, past t = 1 / rho**2; torch has no eps1 in its averages, only a bound of 2e-16 below."""
    start, gradients = drawn(view)
    x, path = torch.tensor(start, requires_grad=True), []
    optimizer = torch.optim.Adafactor([x], lr=0.1, weight_decay=0.0)
    for g in gradients:
        x.grad = torch.tensor(g)
        optimizer.step()
        path.append(x.detach().numpy().copy())
    found = walk(Rule.named("adafactor", rho=0.1), view, start, gradients, 0.1)
    assert_same_path(found, np.stack(path), start)
