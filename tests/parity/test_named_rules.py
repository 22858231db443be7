"""Hand-made optimizers written as equations take the steps of the originals, in float64 for 1,000 steps."""

from collections.abc import Callable

import numpy as np
import pytest

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
