"""Every row of the problem table: its gradient by finite differences, and optimizers on it."""

import numpy as np
import pytest

from common.tables.problems import PROBLEMS, Instance, coordinate_table, parameter_specs, problem_row
from interchange.files.weights import Teacher

torch = pytest.importorskip("torch")

from torch_impl.optimizers.optimizers import LearnedOptimizer  # noqa: E402
from torch_impl.problems.tasks import ProblemTask, value_and_gradient  # noqa: E402
from torch_impl.rollout import descend, leaves  # noqa: E402
from torch_impl.tensors import unflatten  # noqa: E402

STEPS = 20
COUNTS = {
    name: sum(int(np.prod(spec.shape)) for spec in parameter_specs(row)) for name, row in PROBLEMS.items()
}
LARGEST = 12_000_000  # above it are more of the same blocks
# Deep ones take minutes; nas has nearly all kinds of their layers.
ALL = [
    pytest.param(name, marks=pytest.mark.slow if count > 200_000 and name != "nas" else [])
    for name, count in COUNTS.items()
    if count < LARGEST
]
DEEP = [name for name, count in COUNTS.items() if count > 10**5]  # many tensors, and costly


def task_of(name: str, dtype: torch.dtype, batch_size: int) -> ProblemTask:
    """On data that need no file; functions keep their batch."""
    row = PROBLEMS[name]
    embedded = row.kind == "function" or row.dataset == "digits"
    row = problem_row(name, "" if embedded else "synthetic")
    return ProblemTask(Instance(row, 3, batch_size=batch_size), dtype)


def without_effect(names: tuple[str, ...]) -> set[str]:
    """Biases of layers that batch norm follows, which takes them away again."""
    norms = [int(name[6:-6]) for name in names if name.endswith("/gamma")]
    return {f"layer_{number - 1}/b" for number in norms} & set(names)


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_equals_finite_differences(name):
    """Tensor by tensor, batch norm in training; along steps so short that they meet no kink.

    A direction of unit length is half random and half the gradient, without which its slope would be lost
    among the rounding errors of a million coordinates. Both losses may be off by a few roundings.
    """
    task = task_of(name, torch.float64, 3 if name in DEEP else 8)
    generator, theta, h = np.random.default_rng(1), task.initial(), 1e-7
    theta += (
        0.1 * float(theta.std(correction=0)) * torch.from_numpy(generator.normal(size=len(theta)))
    )  # no bias is 0
    loss, gradient = value_and_gradient(task, theta, 5)
    assert loss.dtype == torch.float64 and not loss.requires_grad and gradient.shape == theta.shape
    rounding = 16.0 * np.spacing(float(loss)) / h
    which, tensors = torch.from_numpy(coordinate_table(task.shapes)[0]), range(len(task.shapes))
    chosen = generator.choice(tensors, 3, replace=False) if name in DEEP else tensors
    for tensor in (*chosen, None):
        mask = torch.ones_like(which) if tensor is None else which == tensor
        direction, along = mask * torch.from_numpy(generator.normal(size=len(theta))), mask * gradient
        idle = tensor is not None and task.names[tensor] in without_effect(task.names)
        if idle:
            assert along.norm() < 1e-12 * gradient.norm()
        else:
            direction = direction / direction.norm() + along / along.norm()
        with torch.no_grad():
            ends = [float(task.loss(unflatten(theta + s * direction, task.shapes), 5)) for s in (h, -h)]
        slope = float(gradient @ direction)
        assert idle or slope > 1e-4
        expected = pytest.approx(slope, rel=1e-5, abs=max(rounding, 1e-6 if idle else 1e-8))
        assert (ends[0] - ends[1]) / (2 * h) == expected, tensor


@pytest.mark.slow_with(name=("nas",))
@pytest.mark.parametrize("name", ALL)
def test_a_trained_teacher_takes_finite_steps_on_every_problem(name):
    task = task_of(name, torch.float32, 4)
    parameters = leaves(task)
    before = [p.detach().clone() for p in parameters]
    optimizer = LearnedOptimizer(parameters, Teacher.named("rp_s"))
    losses, outcome = descend(task, parameters, optimizer, STEPS)
    assert outcome == "ok" and len(losses) == STEPS and np.isfinite(losses).all()
    for name, p, start in zip(task.names, parameters, before, strict=True):
        largest = float((p.detach() - start).abs().max())
        assert largest <= 0.0101 * STEPS  # 0.01 tanh(..) a step
        assert largest > 0.0 or name in without_effect(task.names)
