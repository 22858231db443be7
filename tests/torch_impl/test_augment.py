"""Random scaling and the convex term of Lv et al. 2017: values, gradients, draws, and training with them."""

import numpy as np
import pytest

from common.tables.problems import Instance, problem_row
from common.tables.teachers import TEACHERS, initial_weights
from interchange.meta.config import TrainConfig
from interchange.meta.trainer import make_trainer

torch = pytest.importorskip("torch")

from interchange.protocols import Task  # noqa: E402
from torch_impl.meta.learner import Learner  # noqa: E402
from torch_impl.networks.teacher import TeacherNetwork  # noqa: E402
from torch_impl.problems.augment import ConvexTerm, RandomScaling  # noqa: E402
from torch_impl.problems.tasks import ProblemTask, value_and_gradient  # noqa: E402
from torch_impl.tensors import unflatten  # noqa: E402

ROWS = [("rastrigin", ""), ("mnist-mlp-iclr", "synthetic"), ("mnist-conv", "synthetic")]
SETTINGS = {"problem": "digits-mlp", "batch_size": 16, "epochs": 1, "epoch_length": 6, "unroll": 3}
SETTINGS |= {"validate_every": 1, "validation_tasks": 2, "quiet": True}


def plain_task(name: str = "rastrigin", dataset: str = "", dtype: torch.dtype = torch.float64) -> ProblemTask:
    return ProblemTask(Instance(problem_row(name, dataset), 3, batch_size=8), dtype)


def factors(task: Task, scaled: RandomScaling) -> torch.Tensor:
    """Read off where both start; nan where the start is 0."""
    return task.initial() / scaled.initial()


def start_loss(task: Task) -> float:
    return float(task.loss(unflatten(task.initial(), task.shapes), 0))


def theta_of(task: Task) -> torch.Tensor:
    return task.initial() + 0.1 * torch.from_numpy(np.random.default_rng(0).normal(size=len(task.initial())))


@pytest.mark.parametrize(("name", "dataset"), ROWS)
def test_scaling_leaves_the_loss_at_the_start_and_rescales_the_gradient(name, dataset):
    """f(c theta) has the gradient c f'(c theta)."""
    task = plain_task(name, dataset)
    scaled = RandomScaling(task, 3.0, 5, 2)
    c = factors(task, scaled)
    assert (scaled.names, scaled.shapes) == (task.names, task.shapes)
    for step in range(3):
        loss, gradient = value_and_gradient(task, task.initial(), step)
        other, its = value_and_gradient(scaled, scaled.initial(), step)
        assert float(other) == pytest.approx(float(loss), rel=1e-12)
        known = ~torch.isnan(c)
        assert known.double().mean() > 0.9
        np.testing.assert_allclose(its[known], (c * gradient)[known], rtol=1e-9, atol=1e-12)
    away = theta_of(scaled)
    zero = torch.where(torch.isnan(c), torch.zeros(()).double(), 1.0)
    theta, c = away * zero, torch.nan_to_num(c)
    loss, gradient = value_and_gradient(task, c * theta, 1)
    other, its = value_and_gradient(scaled, theta, 1)
    assert float(other) == pytest.approx(float(loss), rel=1e-12)
    np.testing.assert_allclose((its * zero).numpy(), (c * gradient).numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("r", [0.5, 3.0])
def test_the_factors_are_log_uniform_within_r(r):
    task = plain_task()
    logs = factors(task, RandomScaling(task, r, 5, 2)).log()
    assert len(logs.unique()) == len(logs) == 1280
    assert float(logs.abs().max()) <= r + 1e-9 and float(logs.std()) == pytest.approx(r / 3**0.5, rel=0.05)
    assert float(logs.min()) < -0.98 * r and float(logs.max()) > 0.98 * r


def test_draws_depend_on_seed_and_number_only():
    first, other = plain_task(), ProblemTask(Instance(problem_row("rastrigin"), 4), torch.float64)
    c = factors(first, RandomScaling(first, 3.0, 5, 2))
    again = factors(other, RandomScaling(other, 3.0, 5, 2))  # another instance
    np.testing.assert_allclose(again, c, rtol=1e-12)
    halved = factors(first, RandomScaling(first, 1.5, 5, 2))
    np.testing.assert_allclose(halved.log(), c.log() / 2, rtol=1e-9, atol=1e-12)
    terms = {}
    for seed, number in ((5, 2), (5, 3), (6, 2)):
        c_of_this = factors(first, RandomScaling(first, 3.0, seed, number))
        assert torch.allclose(c_of_this, c) == ((seed, number) == (5, 2))
        added = [start_loss(ConvexTerm(task, seed, number)) - start_loss(task) for task in (first, other)]
        assert added[0] == pytest.approx(added[1], rel=1e-9)
        terms[seed, number] = added[0]
    assert len(set(terms.values())) == 3


def convex_constants(term: ConvexTerm) -> tuple[np.ndarray, np.ndarray]:
    """c and a of 20 coordinates, from the loss alone: (c x - a)^2 / 20 at x = 0, 0.1 and -0.1, one by one."""

    def value(k: int, x: float) -> float:
        theta = term.initial()
        theta[-20 + k] = x
        return 20 * float(term.loss(unflatten(theta, term.shapes), 0))

    c, a = np.empty(20), np.empty(20)
    for k in range(20):
        middle, up, down = (value(k, x) for x in (0.0, 0.1, -0.1))
        c[k] = np.sqrt((up + down - 2 * middle) / 0.02)
        a[k] = -(up - down) / (0.4 * c[k])
    return c, a


def test_the_convex_term_is_what_its_formula_says():
    task = plain_task()
    term = ConvexTerm(task, 5, 2)
    assert (term.names, term.shapes) == ((*task.names, "convex/x"), (*task.shapes, (20,)))
    start = term.initial()
    assert torch.equal(start[:-20], task.initial()) and not start[-20:].any()
    c, a = convex_constants(term)
    assert np.abs(a).max() <= 1 and np.abs(np.log(c)).max() <= 1 + 1e-6
    assert np.abs(a).max() > 0.8 and np.abs(np.log(c)).max() > 0.8
    x = np.linspace(-6.0, 6.0, 20)  # beyond the clip on either side, within it in the middle
    theta = torch.cat([theta_of(task), torch.from_numpy(x)])
    loss, gradient = value_and_gradient(term, theta, 1)
    plain, its = value_and_gradient(task, theta[:-20], 1)
    squares = (c * x - a) ** 2
    assert 3 < np.sum(squares > 10) < 17
    assert float(loss - plain) == pytest.approx(np.minimum(squares, 10).mean(), rel=1e-6)
    np.testing.assert_array_equal(gradient[:-20], its)
    expected = np.where(squares > 10, 0.0, 2 * c * (c * x - a) / 20)
    np.testing.assert_allclose(gradient[-20:], expected, rtol=1e-5, atol=1e-7)
    assert not gradient[-20:].numpy()[squares > 10].any()


def test_both_variations_go_together_in_either_precision():
    """As training nests them: the convex coordinates are not rescaled by r."""
    for dtype in (torch.float32, torch.float64):
        task = plain_task("mnist-conv", "synthetic", dtype)
        both = ConvexTerm(RandomScaling(task, 3.0, 5, 2), 5, 2)
        theta = both.initial()
        loss, gradient = value_and_gradient(both, theta, 0)
        assert theta.dtype == loss.dtype == gradient.dtype == dtype and gradient.isfinite().all()
        only = ConvexTerm(task, 5, 2)
        expected, its = value_and_gradient(only, only.initial(), 0)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5 if dtype == torch.float32 else 1e-12)
        assert torch.equal(gradient[-20:], its[-20:])
        assert task.buffers["layer_1/mean"].any()  # the running values are those of the network within


def test_only_tasks_to_train_on_are_varied():
    config = TrainConfig(**SETTINGS, random_scaling=2.0, convex=True, seed=7)
    network = TeacherNetwork(TEACHERS["rp_s"], initial_weights(TEACHERS["rp_s"], 0))
    trainer = make_trainer(Learner(network, config))
    for stream in ("validation", "meta_train"):
        varied = trainer.tasks(stream, 1)
        plain = trainer.tasks.plain(stream, 1)
        same = varied.shapes == plain.shapes and torch.equal(varied.initial(), plain.initial())
        assert same == (stream == "validation")
    theta = varied.initial()
    by_hand = ConvexTerm(RandomScaling(plain, 2.0, 7, 1), 7, 1)
    assert torch.equal(theta, by_hand.initial())
    parts = unflatten(theta, by_hand.shapes)
    assert torch.equal(varied.loss(parts, 0), by_hand.loss(parts, 0))
    assert not torch.equal(theta[:-20], trainer.tasks("meta_train", 2).initial()[:-20])
