"""Optimizees: losses against NumPy, modules, batch norm's running values, accuracy, and where they start."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.data import datasets
from common.errors import L2OError
from common.rng import derived_seed
from common.tables.layers import Layer
from common.tables.problems import PROBLEMS, Instance, Problem, coordinate_table, problem_row
from interchange.evaluation.config import EvaluateConfig
from interchange.files.checkpoint import save_checkpoint
from interchange.meta.config import TrainConfig

torch = pytest.importorskip("torch")

from torch_impl.problems.modules import ModuleTask  # noqa: E402
from torch_impl.problems.tasks import ProblemTask, table_task, value_and_gradient  # noqa: E402
from torch_impl.tensors import unflatten  # noqa: E402


def numpy_function(name: str, x: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    """The formulas of MATH.md section 7, row by row of the batch."""
    values = []
    for x_k, a_k, b_k, c_k in zip(x, a, b, c, strict=True):
        square, waves = ((a_k @ x_k - b_k) ** 2).sum(), (c_k * np.cos(2 * np.pi * x_k)).sum()
        values.append(
            {
                "quadratic": square,
                **{f"quadratic-k{condition}": square for condition in (10, 100, 1000)},
                "lasso": 0.5 * square + 0.005 * np.abs(x_k).sum(),
                "rastrigin": 0.5 * square - 10 * waves + 10 * len(x_k),
                "square-cos": square - 10 * waves + 10 * len(x_k),
                "simple": x_k[0] ** 2,
            }[name.removesuffix("-2d").removesuffix("-fixed")]
        )
    return float(np.mean(values))


SUMS = {"simple-multi": ("simple", "simple"), "ensemble": ("quadratic", "lasso", "rastrigin")}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_the_sum_of_its_parts(name):
    """And of every tensor the gradient is that of its part."""
    given = Instance(PROBLEMS[name], 8)
    task, generator = ProblemTask(given, torch.float64), np.random.default_rng(0)
    x = [generator.normal(size=shape) for shape in task.shapes]
    loss, g = value_and_gradient(task, torch.from_numpy(np.concatenate([each.ravel() for each in x])), 0)
    constants = given.constants()
    expected = [
        numpy_function(part, x[k], *constants[3 * k : 3 * k + 3]) for k, part in enumerate(SUMS[name])
    ]
    assert float(loss) == pytest.approx(sum(expected), rel=1e-12)
    alone = [ProblemTask(Instance(PROBLEMS[part], derived_seed(8, "part", k)), torch.float64)
             for k, part in enumerate(SUMS[name])]  # fmt: skip
    slopes = [
        value_and_gradient(one, torch.from_numpy(each.ravel()), 0)[1]
        for one, each in zip(alone, x, strict=True)
    ]
    np.testing.assert_allclose(g.numpy(), torch.cat(slopes).numpy(), rtol=1e-13)


FUNCTIONS = [name for name, row in PROBLEMS.items() if row.kind == "function" and not row.parts]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_its_formula(name):
    given = Instance(PROBLEMS[name], 8)
    x = np.random.default_rng(0).normal(size=ProblemTask(given, torch.float64).shapes[0])
    task = ProblemTask(given, torch.float64)
    loss, _ = value_and_gradient(task, torch.from_numpy(x.ravel()), 3)
    a, b, c = given.constants()
    b = b if given.noise(3) is None else b + given.noise(3)
    assert float(loss) == pytest.approx(numpy_function(name, x, a, b, c), rel=1e-12)
    assert (task.names, task.shapes, task.buffers) == (("x",), (x.shape,), {})


def test_the_gradients_noise_has_the_hessians_covariance():
    """2 A^T A is the Hessian of ||A x - b||^2, and 4 noise^2 A^T A the covariance of its gradient's noise."""
    row = dataclasses.replace(PROBLEMS["quadratic-k10"], batch_size=2)
    given = Instance(row, 4)
    task, a = ProblemTask(given, torch.float64), given.constants()[0]
    theta = torch.from_numpy(np.random.default_rng(0).normal(size=20))
    gradients = np.stack([value_and_gradient(task, theta, step)[1].numpy() for step in range(3000)])
    noise = 2.0 * gradients.reshape(-1, 2, 10)  # the loss is the mean of two
    for k in range(2):
        expected = 4 * 0.1**2 * a[k].T @ a[k]
        found = np.cov(noise[:, k], rowvar=False)
        assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("name", "dataset"),
    [("digits-mlp", ""), ("digits-conv", ""), ("mnist-mlp", "synthetic"), ("cifar-small-conv", "synthetic")],
)
@pytest.mark.parametrize("split", ["meta_train", "evaluation", "train", "validation", "test", "test_a"])
def test_the_starting_loss_is_that_of_the_instances_own_batch(name, dataset, split):
    """Cross-entropy written out over the rows ``batch_indices`` names, split by split."""
    given = Instance(problem_row(name, dataset), 3, split=split, batch_size=8)
    task = ProblemTask(given, torch.float64)
    theta = task.initial()
    images, labels = given.data()
    rows = given.batch_indices(2)
    scores = task.logits(
        unflatten(theta, task.shapes), torch.tensor(images[rows], dtype=torch.float64)
    ).numpy()
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    loss, _ = value_and_gradient(task, theta, 2)
    assert float(loss) == pytest.approx(-log_p[np.arange(8), labels[rows]].mean(), rel=1e-12)


def test_bytes_of_a_users_own_are_seen_scaled_and_floats_as_they_are(tmp_path):
    """A network of one dense layer on one pixel: its score is that pixel."""
    x, y = np.arange(40, dtype=np.uint8).reshape(40, 1), np.arange(40) % 2
    for k, (images, seen) in enumerate(((x, x / 255 - 0.5), (x * 2.5, x * 2.5))):
        np.savez(tmp_path / f"{k}.npz", x=images, y=y)
        row = Problem("probe", "classifier", str(tmp_path / f"{k}.npz"), (Layer("flatten"), Layer("dense")))
        task = ProblemTask(Instance(row, 0, "test"), torch.float64)
        theta = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)  # scores x and 0
        scores, right = seen[32:, 0], y[32:] == 0
        expected = np.mean(np.log1p(np.exp(np.where(right, -scores, scores))))
        assert float(value_and_gradient(task, theta, 0)[0]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_task_equals_the_problem_task_of_the_same_network(dtype):
    given = Instance(PROBLEMS["digits-mlp"], 5, batch_size=32)
    task = ProblemTask(given, dtype)
    module = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, 30),
        torch.nn.ReLU(),
        torch.nn.Linear(30, 20),
        torch.nn.ReLU(),
        torch.nn.Linear(20, 10),
    ).to(dtype)
    start = [torch.tensor(a, dtype=dtype) for a in given.initial_parameters().values()]
    with torch.no_grad():
        for p, a in zip(module.parameters(), start, strict=True):
            p.copy_(a.t())  # torch keeps [out, in]
    images, labels = given.data()
    rows = [given.batch_indices(step) for step in range(3)]
    batches = [(torch.tensor(images[r], dtype=dtype), torch.tensor(labels[r])) for r in rows]
    other = ModuleTask(module, torch.nn.functional.cross_entropy, batches)
    assert other.names == tuple(name for name, _ in module.named_parameters())
    tolerance = {"rtol": 0, "atol": 1e-13 if dtype == torch.float64 else 1e-6}
    for step in range(4):
        loss, gradient = value_and_gradient(task, task.initial(), step % 3)
        module_loss, module_gradient = value_and_gradient(other, other.initial(), step)
        np.testing.assert_allclose(module_loss, loss, **tolerance)
        pairs = zip(unflatten(gradient, task.shapes), unflatten(module_gradient, other.shapes), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_allclose(theirs.t(), ours, **tolerance)


def test_a_module_task_leaves_the_modules_parameters_and_updates_its_buffers():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double()
    before = [p.detach().clone() for p in module.parameters()]
    data = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    task = ModuleTask(module, lambda z, y: (z - y).square().mean(), [(data, 0.0)])
    theta = task.initial() + 1.0
    value_and_gradient(task, theta, 0)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    assert all(p.grad is None for p in module.parameters())
    assert module[1].num_batches_tracked == 1 and module[1].running_mean.abs().max() > 0
    with pytest.raises(ValueError, match="at least one"):
        ModuleTask(module, torch.nn.functional.mse_loss, [])


def test_parameters_that_are_frozen_are_no_part_of_the_optimizee():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    module[0].requires_grad_(False)
    task = ModuleTask(module, torch.nn.functional.mse_loss, [(torch.ones(4, 3), torch.zeros(4, 1))])
    assert task.names == ("1.weight", "1.bias") and task.initial().shape == (3,)
    loss, gradient = value_and_gradient(task, task.initial(), 0)
    assert loss == module(torch.ones(4, 3)).square().mean() and gradient.abs().min() > 0.0
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="expected a parameter that requires a gradient"):
        ModuleTask(module, torch.nn.functional.mse_loss, [(torch.ones(4, 3), torch.zeros(4, 1))])


def test_coordinates_are_numbered_tensor_by_tensor():
    tensor, place = coordinate_table([(2, 2), (3,), ()])
    assert tensor.tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert place.tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert tensor.dtype == place.dtype == np.int32


def test_accuracy_is_the_share_of_right_answers():
    task = ProblemTask(Instance(PROBLEMS["digits-mlp"], 0, "test"), torch.float64)
    theta = torch.zeros(len(task.initial()), dtype=torch.float64)
    theta[-10 + 3] = 1.0  # only the last bias: it always says 3
    labels = datasets.load("digits").y_test
    assert task.accuracy(theta) == pytest.approx(np.mean(labels == 3), abs=1e-12)
    assert np.isnan(ProblemTask(Instance(PROBLEMS["quadratic"], 0)).accuracy(torch.zeros(1280)))


def conv_task() -> ProblemTask:
    """With batch norm, on images no file is needed for."""
    return ProblemTask(Instance(problem_row("mnist-conv", "synthetic"), 3, batch_size=16), torch.float64)


def test_running_values_begin_anew_with_every_start_and_follow_the_batches():
    task = conv_task()
    theta = task.initial()
    assert sorted(task.buffers) == [f"layer_{k}/{part}" for k in (1, 3) for part in ("mean", "var")]
    assert all((b == float(name.endswith("var"))).all() for name, b in task.buffers.items())
    value_and_gradient(task, theta, 0)
    once = {name: b.clone() for name, b in task.buffers.items()}
    assert all((b != float(name.endswith("var"))).any() for name, b in once.items())
    value_and_gradient(task, theta, 1)
    assert all(not torch.equal(task.buffers[name], b) for name, b in once.items())
    task.initial()
    value_and_gradient(task, theta, 0)
    assert all(torch.equal(task.buffers[name], b) for name, b in once.items())


def test_accuracy_is_taken_with_the_running_values():
    """By hand from the same layers; with the values of the start it is another one."""
    task = conv_task()
    theta = task.initial()
    for step in range(30):
        _, gradient = value_and_gradient(task, theta, step)
        theta = theta - 0.02 * gradient
    test = task.on_test()
    assert test.instance.split == "test" and test.buffers is task.buffers
    images, labels = test.instance.data()
    with torch.no_grad():
        scores = test.logits(unflatten(theta, task.shapes), torch.from_numpy(images).double())
        training = test.logits(unflatten(theta, task.shapes), torch.from_numpy(images).double(), True)
    assert not torch.allclose(scores, training)
    share = np.mean(scores.argmax(1).numpy() == labels)
    assert share > 0.5 and test.accuracy(theta) == pytest.approx(share, abs=1e-12)
    for buffer in task.buffers.values():
        buffer.fill_(1.0)
    assert test.accuracy(theta) < share


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("mnist-mlp", "meta_train", "test"),
        ("mnist-mlp", "evaluation", "test"),
        ("cifar-small-conv", "meta_train", "test_a"),
        ("cifar-small-conv", "test_a", "test_a"),
        ("cifar-small-conv", "evaluation", "test"),
        ("cifar-small-conv", "train", "test"),
    ],
)
def test_the_test_images_are_those_of_the_classes_trained_on(name, split, expected):
    task = ProblemTask(Instance(problem_row(name, "synthetic"), 0, split))
    other = task.on_test()
    assert other.instance == dataclasses.replace(task.instance, split=expected)
    assert (other.names, other.dtype) == (task.names, task.dtype)


def trained(folder: Path, task: ProblemTask, **changed: np.ndarray | None) -> dict[str, np.ndarray]:
    """A checkpoint of random parameters and running values as ``optimize`` leaves it; None leaves one out."""
    generator = np.random.default_rng(0)
    arrays = {
        f"theta/{name}": generator.normal(size=shape)
        for name, shape in zip(task.names, task.shapes, strict=True)
    }
    arrays |= {f"buffers/{name}": generator.uniform(1, 2, tuple(b.shape)) for name, b in task.buffers.items()}
    arrays = {name: array for name, array in (arrays | changed).items() if array is not None}
    save_checkpoint(folder, arrays, {"step": 1})
    return arrays


@pytest.mark.parametrize("make", [TrainConfig, EvaluateConfig])
def test_start_is_where_every_task_of_a_command_begins(make, tmp_path):
    arrays = trained(tmp_path, conv_task())
    settings = {"problem": "mnist-conv", "dataset": "synthetic", "batch_size": 16, "dtype": "float64"}
    config, plain = make(**settings, start=str(tmp_path)), make(**settings)
    for number in range(2):
        task = table_task(config, "meta_train", number)
        theta = task.initial()
        for name, value in zip(task.names, unflatten(theta, task.shapes), strict=True):
            np.testing.assert_array_equal(value.numpy(), arrays[f"theta/{name}"])
        for name, buffer in task.buffers.items():
            np.testing.assert_array_equal(buffer.numpy(), arrays[f"buffers/{name}"])
        value_and_gradient(task, theta, 0)
        changed = {name: b.clone() for name, b in task.buffers.items()}
        assert torch.equal(task.initial(), theta)  # and the running values begin anew there
        assert not any(torch.equal(task.buffers[name], b) for name, b in changed.items())
        other = table_task(plain, "meta_train", number)
        assert not torch.equal(other.initial(), theta)
        assert task.instance == other.instance and (task.loss(unflatten(theta, task.shapes), 0)).isfinite()
    assert task.instance.seed == derived_seed(0, "meta_train", 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"theta/layer_0/w": None}, r"layer_0/w of shape \(3, 3, 1, 16\) for mnist-conv, got none"),
        ({"theta/layer_4/b": np.zeros(11)}, r"layer_4/b of shape \(10,\) for mnist-conv, got \(11,\)"),
        ({"buffers/layer_1/mean": None}, r"buffers/layer_1/mean of shape \(16,\) for mnist-conv, got none"),
        ({"buffers/layer_3/var": np.ones(16)}, r"buffers/layer_3/var of shape \(32,\) .*, got \(16,\)"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_with_one_line(changed, message, tmp_path):
    trained(tmp_path, conv_task(), **changed)
    config = TrainConfig(problem="mnist-conv", dataset="synthetic", start=str(tmp_path))
    with pytest.raises(L2OError, match=f"--start {re.escape(str(tmp_path))}: expected {message}; ") as error:
        table_task(config, "meta_train", 0)
    assert "\n" not in str(error.value)


def test_a_start_that_is_not_there_is_refused_with_one_line(tmp_path):
    trained(tmp_path / "run", conv_task())
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    for folder in ("run", "elsewhere"):
        with pytest.raises(L2OError, match=r"--start: .*expected a checkpoint, got none"):
            table_task(TrainConfig(start=str(tmp_path / folder)), "meta_train", 0)
    with pytest.raises(L2OError, match=r"--start .*: expected layer_0/w of shape \(64, 30\) for digits-mlp"):
        trained(tmp_path / "other", conv_task())
        table_task(TrainConfig(start=str(tmp_path / "other")), "meta_train", 0)


def test_start_scale_reaches_the_tasks_of_an_evaluation():
    config = EvaluateConfig(problem="rastrigin", start_scale=2.0, dtype="float64")
    plain = dataclasses.replace(config, start_scale=0.0)
    scaled, theta = (table_task(c, "evaluate_test", 0).initial() for c in (config, plain))
    ratio = (scaled / theta).log().abs()
    assert float(ratio.max()) <= 2.0 + 1e-9 and float(ratio.mean()) == pytest.approx(1.0, abs=0.1)


def test_start_scale_multiplies_a_trained_start_as_well(tmp_path):
    arrays = trained(tmp_path, conv_task())
    settings = {"problem": "mnist-conv", "dataset": "synthetic", "dtype": "float64", "start_scale": 0.5}
    task = table_task(EvaluateConfig(**settings, start=str(tmp_path)), "evaluate_test", 0)
    whole = np.concatenate([arrays[f"theta/{name}"].ravel() for name in task.names])
    logs = np.log(task.initial().numpy() / whole)
    assert 0.45 < np.abs(logs).max() <= 0.5 + 1e-12


def test_the_batch_size_of_a_function_is_its_number_of_draws():
    task = table_task(TrainConfig(problem="lasso", batch_size=5), "meta_train", 0)
    assert task.shapes == ((5, 10),) and task.loss([torch.zeros(5, 10)], 0).isfinite()
