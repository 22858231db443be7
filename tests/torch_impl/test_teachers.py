"""Teacher networks and feature streams in torch against the NumPy oracle and the ICLR code's outputs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from common import reference
from common.tables.features import FEATURES
from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS, TeacherRow, initial_weights
from interchange.files.weights import SHIPPED, Teacher, load_weights
from interchange.meta.config import TrainConfig

torch = pytest.importorskip("torch")

from torch_impl.convert import canonical  # noqa: E402
from torch_impl.meta import unroll  # noqa: E402
from torch_impl.networks.features import FeatureStream  # noqa: E402
from torch_impl.networks.teacher import TeacherNetwork, lstm_cell  # noqa: E402
from torch_impl.problems.tasks import ProblemTask  # noqa: E402
from torch_impl.train import train  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"
PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


def gradients(steps: int = 25, n: int = 40) -> np.ndarray:
    """Gradients [T, N] over nine orders of magnitude, and one coordinate whose gradient is 0."""
    generator = np.random.default_rng(5)
    return generator.normal(size=(steps, n)) * np.r_[0.0, 10.0 ** np.linspace(-6, 3, n - 1)]


def oracle_features(teacher: TeacherRow, g: np.ndarray) -> np.ndarray:
    """Features [T, F, N] by the oracle."""
    stream = reference.Features(teacher.beta1, teacher.beta2, teacher.eps, teacher.p)
    rows = [stream.step(row) for row in g]
    return np.stack([np.stack([row[name] for name in teacher.inputs]) for row in rows])


def run_features(teacher: TeacherRow, g: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    stream = FeatureStream(teacher.expressions())
    state, out = stream.initial_state(torch.zeros(g.shape[1], dtype=dtype)), []
    for t, row in enumerate(g, 1):
        x, state = stream.step(torch.tensor(row, dtype=dtype), state, t)
        out.append(x.numpy())
    return np.stack(out)


def run_network(network: TeacherNetwork, x: np.ndarray, grad: bool) -> np.ndarray:
    """Outputs [T, N] before ``scale`` for inputs [T, F, N]."""
    dtype = network.weights["out/b"].dtype
    state = network.initial_state(torch.zeros(x.shape[2], dtype=dtype)).network
    weights = {name: w.clone().requires_grad_(grad) for name, w in network.weights.items()}
    outs = []
    with torch.set_grad_enabled(grad):
        for t, row in enumerate(x, 1):
            out, state = network.step(weights, torch.tensor(row, dtype=dtype), state, t)
            outs.append(out.detach().numpy())
    return np.stack(outs)


def close_to_largest(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("grad", [False, True], ids=["in-place", "recorded"])
@pytest.mark.parametrize("name", TEACHERS)
def test_network_equals_the_oracle(name, grad, dtype, tolerance):
    teacher = TEACHERS[name]
    weights = {key: 3.0 * w for key, w in initial_weights(teacher, 7).items()}
    x = np.random.default_rng(1).normal(size=(25, len(teacher.inputs), 40))
    got = run_network(TeacherNetwork(teacher, weights, dtype), x, grad)
    assert got.dtype == torch.zeros(0, dtype=dtype).numpy().dtype
    cells, expected = reference.zero_cells(teacher, 40), []
    for row in x:
        out, cells = reference.teacher_step(teacher, weights, row.T, cells)
        expected.append(out)
    close_to_largest(got, np.stack(expected), tolerance)


@pytest.mark.parametrize("grad", [False, True], ids=["in-place", "recorded"])
def test_an_lstm_cell_leaves_its_arguments_as_they_are(grad):
    generator = torch.Generator().manual_seed(0)
    shapes = ((12, 5), (12, 3), (12,), (5, 7), (3, 7), (3, 7))
    args = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    before = [arg.clone() for arg in args]
    with torch.set_grad_enabled(grad):
        h, c = lstm_cell(*args)
    assert all(torch.equal(a, b) for a, b in zip(args, before, strict=True))
    w_input, w_hidden, bias, x, h0, c0 = (arg.numpy() for arg in args)
    expected = reference.lstm_cell(w_input, w_hidden, bias, x.T, h0.T, c0.T)
    close_to_largest(h.numpy().T, expected[0], 1e-14)
    close_to_largest(c.numpy().T, expected[1], 1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", TEACHERS)
def test_feature_streams_of_a_teacher_equal_the_oracle(name, dtype, tolerance):
    teacher, g = TEACHERS[name], gradients()
    got = run_features(teacher, g, dtype)
    np.testing.assert_allclose(got, oracle_features(teacher, g), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_equals_the_oracle_at_unusual_settings(feature, dtype, tolerance):
    """Distinct settings, so that no two of them can be swapped; relative to each coordinate's size."""
    g = gradients()
    teacher = TeacherRow("probe", (feature,), (3,), beta1=0.8, beta2=0.97, eps=1e-6, p=4.0)
    got, expected = run_features(teacher, g, dtype)[:, 0], oracle_features(teacher, g)[:, 0]
    size = np.maximum(np.abs(expected).max(axis=0), 1e-300)
    np.testing.assert_allclose(got / size, expected / size, rtol=tolerance, atol=tolerance)


def test_features_are_relative_to_the_gradient_where_they_should_be():
    """m_tilde and g_tilde of a gradient 1000 times as large are the same, up to eps."""
    g = gradients()[:, 20:]
    rp_s = dataclasses.replace(TEACHERS["rp_s"], eps=0.0)
    close_to_largest(run_features(rp_s, g, torch.float64), run_features(rp_s, 1000 * g, torch.float64), 1e-13)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_whole_unroll_equals_the_oracle(name):
    teacher, weights = TEACHERS[name], initial_weights(TEACHERS[name], 3)
    instance = Instance(PROBLEMS["quadratic"], seed=4)
    task = ProblemTask(instance, torch.float64)
    network = TeacherNetwork(teacher, weights, torch.float64)
    end, losses, _, _ = unroll.advance(task, network, unroll.start(task, network), 12, lr=0.7)
    start = instance.initial_parameters()["x"].ravel()
    expected, thetas = reference.unroll(
        teacher, weights, start, reference.quadratic(*instance.constants()[:2]), 12, lr=0.7
    )
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(end.theta.numpy(), thetas[-1], rtol=0, atol=1e-12)
    assert np.abs(thetas[-1] - start).max() > 1e-3
    assert end.step == end.state.t == 12


def test_the_softmax_regression_of_the_oracle_has_the_gradient_it_says():
    """The oracle's own derivative, against torch's, so that later comparisons stand on something."""
    generator = np.random.default_rng(2)
    x, labels = generator.normal(size=(6, 4)), generator.integers(3, size=6)
    theta = generator.normal(size=15)
    loss, gradient = reference.softmax_regression([(x, labels)], 3)(theta, 8)
    leaf = torch.tensor(theta, requires_grad=True)
    scores = torch.tensor(x) @ leaf[:12].view(4, 3) + leaf[12:]
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor(labels))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", TEACHERS)
def test_weight_shapes_and_state_are_as_the_row_says(name):
    teacher = TEACHERS[name]
    weights = initial_weights(teacher, 0)
    assert {key: w.shape for key, w in weights.items()} == teacher.weight_shapes()
    state = TeacherNetwork(teacher, weights).initial_state(torch.zeros(9))
    assert state.t == 0 and not any(a.any() for a in state.features + state.network)
    assert sum(a.numel() for a in state.network) == 9 * teacher.state_floats()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["rp_s", "rp_extra"])
def test_features_equal_the_iclr_codes(name, dtype):
    file = dict(np.load(GOLDEN / f"{name}.npz"))
    got = run_features(TEACHERS[name], file["g"], dtype).transpose(0, 2, 1)
    assert got.shape == file["features"].shape
    for k in range(len(TEACHERS[name].inputs)):
        close_to_largest(got[..., k], file["features"][..., k], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["rp_s", "rp_extra", "dm_raw"])
def test_outputs_equal_the_iclr_codes(name, dtype):
    file = dict(np.load(GOLDEN / f"{name}.npz"))
    weights = canonical({key[2:]: file[key] for key in file if key.startswith("w/")})
    assert {key: w.shape for key, w in weights.items()} == TEACHERS[name].weight_shapes()
    x = run_features(TEACHERS[name], file["g"], dtype)
    close_to_largest(run_network(TeacherNetwork(TEACHERS[name], weights, dtype), x, False), file["y"], 1e-5)


@pytest.mark.parametrize("problem", ["quadratic", "digits-mlp", "digits-conv"])
@pytest.mark.parametrize("name", TEACHERS)
def test_every_teacher_trains(tmp_path, name, problem):
    tiny = {"epochs": 1, "epoch_length": 6, "unroll": 3, "batch_size": 8, "validate_every": 0, "lr": 0.01}
    run = train(TrainConfig(teacher=name, problem=problem, out=str(tmp_path / "run"), quiet=True, **tiny))
    found = load_weights(run.folder)
    assert found.row == run.teacher == TEACHERS[name]
    assert np.isfinite(run.history[0]["loss"]) and not run.history[0]["diverged"]
    for key, start in initial_weights(TEACHERS[name], 0).items():
        moved = np.abs(found.weights[key] - start)
        assert np.isfinite(moved).all() and 0.005 < moved.max() < 0.05, key


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_teacher_trains_another_network_than_its_own(name):
    """100 steps on digits-mlp; its teacher before training gets nowhere there."""
    task = ProblemTask(Instance(PROBLEMS["digits-mlp"], seed=1), torch.float32)
    trained, row = Teacher.named(name), TEACHERS[name]
    losses = unroll.rollout(task, TeacherNetwork(row, trained.weights), 100)
    untrained = unroll.rollout(task, TeacherNetwork(row, initial_weights(row, 0)), 100)
    assert losses[-20:].mean() < 0.5 * losses[:5].mean()
    assert losses[-20:].mean() < 0.5 * untrained[-20:].mean()
