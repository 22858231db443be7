"""Optimizees: losses and gradients, canonical layout, batches, and the readers of data sets."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from common import datasets, reference
from common.errors import L2OError
from common.problems import PROBLEMS, Instance, Layer, Problem, parameter_specs

torch = pytest.importorskip("torch")

from torch_impl.problems import (  # noqa: E402
    ModuleTask,
    ProblemTask,
    coordinate_table,
    forward,
    value_and_gradient,
)
from torch_impl.tensors import unflatten  # noqa: E402

IDX_NAMES = datasets._MNIST_IDX
SHAPES = {
    "quadratic": {"x": (128, 10)},
    "digits-mlp": {
        "layer_0/w": (64, 30),
        "layer_0/b": (30,),
        "layer_1/w": (30, 20),
        "layer_1/b": (20,),
        "layer_2/w": (20, 10),
        "layer_2/b": (10,),
    },
    "digits-conv": {
        "layer_0/w": (3, 3, 1, 8),
        "layer_0/b": (8,),
        "layer_1/w": (3, 3, 8, 16),
        "layer_1/b": (16,),
        "layer_2/w": (64, 10),
        "layer_2/b": (10,),
    },
    "mnist-mlp": {
        "layer_0/w": (784, 30),
        "layer_0/b": (30,),
        "layer_1/w": (30, 20),
        "layer_1/b": (20,),
        "layer_2/w": (20, 10),
        "layer_2/b": (10,),
    },
}


def tiny_mnist(rows: int = 60) -> tuple[np.ndarray, ...]:
    """Training and test images and labels, bytes, all different."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, size=(rows + 20, 28, 28), dtype=np.uint8)
    labels = np.arange(rows + 20, dtype=np.uint8) % 10
    return images[:rows], labels[:rows], images[rows:], labels[rows:]


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">{array.ndim + 1}I", 2048 + array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, zipped: bool = False) -> tuple[np.ndarray, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = tiny_mnist()
    for name, array in zip(IDX_NAMES, arrays, strict=True):
        raw = idx_bytes(array)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(raw) if zipped else raw)
    return arrays


def write_npz(folder: Path) -> tuple[np.ndarray, ...]:
    arrays = tiny_mnist()
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(folder / "mnist.npz", **dict(zip(names, arrays, strict=True)))
    return arrays


def instance(name: str, folder: Path, seed: int = 3, **fields) -> Instance:
    if name.startswith("mnist"):
        write_npz(folder)
        fields["data_dir"] = str(folder)
    return Instance(PROBLEMS[name], seed, **fields)


def test_every_problem_has_its_shapes_written_down_here():
    assert list(SHAPES) == list(PROBLEMS)


@pytest.mark.parametrize("name", PROBLEMS)
def test_parameters_have_canonical_names_shapes_and_initial_values(name):
    assert {spec.name: spec.shape for spec in parameter_specs(PROBLEMS[name])} == SHAPES[name]
    values = Instance(PROBLEMS[name], 3).initial_parameters()
    assert {key: array.shape for key, array in values.items()} == SHAPES[name]
    for key, array in values.items():
        if key.endswith("/b"):
            assert not array.any()
        elif key.endswith("/w"):  # He: normal with sqrt(2 / fan_in)
            he = np.sqrt(2 / np.prod(array.shape[:-1]))
            assert array.std() == pytest.approx(he, rel=5 / np.sqrt(2 * array.size))
            assert abs(array.mean()) < 5 * he / np.sqrt(array.size)
        else:
            assert array.std() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient_equals_finite_differences(name, tmp_path):
    task = ProblemTask(instance(name, tmp_path, batch_size=8), torch.float64)
    generator = np.random.default_rng(1)
    theta = task.initial()
    theta += 0.1 * torch.from_numpy(generator.normal(size=len(theta)))  # biases off 0 too
    loss, gradient = value_and_gradient(task, theta, 5)
    assert loss.dtype == torch.float64 and not loss.requires_grad and gradient.shape == theta.shape
    for tensor in range(len(task.shapes)):
        which, _ = coordinate_table(task.shapes)
        direction = torch.from_numpy(generator.normal(size=len(theta)) * (which == tensor))
        h = 1e-6
        ends = [float(value_and_gradient(task, theta + s * h * direction, 5)[0]) for s in (1, -1)]
        slope = float(gradient @ direction)
        assert slope != 0.0
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(slope, rel=1e-5, abs=1e-8), task.names[tensor]


def test_the_quadratic_equals_the_oracle():
    given = Instance(PROBLEMS["quadratic"], 8)
    task = ProblemTask(given, torch.float64)
    theta = np.random.default_rng(0).normal(size=1280)
    loss, gradient = value_and_gradient(task, torch.from_numpy(theta), 3)
    expected = reference.quadratic(*given.data())(theta, 3)
    assert float(loss) == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(gradient.numpy(), expected[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in PROBLEMS if PROBLEMS[name].kind == "classifier"])
@pytest.mark.parametrize("split", ["meta_train", "evaluation", "test"])
def test_the_starting_loss_is_that_of_the_instances_own_batch(name, split, tmp_path):
    """Cross-entropy written out over the rows ``batch_indices`` names, split by split."""
    given = instance(name, tmp_path, split=split, batch_size=8)
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


def test_an_mlp_is_affine_maps_with_relu_between(tmp_path):
    task = ProblemTask(instance("digits-mlp", tmp_path), torch.float64)
    w0, b0, w1, b1, w2, b2 = (a.numpy() + 0.1 for a in unflatten(task.initial(), task.shapes))
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1))
    hidden = np.maximum(np.maximum(images.reshape(5, 64) @ w0 + b0, 0) @ w1 + b1, 0)
    got = task.logits([torch.from_numpy(a) for a in (w0, b0, w1, b1, w2, b2)], torch.from_numpy(images))
    np.testing.assert_allclose(got.numpy(), hidden @ w2 + b2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("stride", "pad", "size"), [(1, 0, 3), (1, 1, 3), (2, 1, 3), (1, 2, 5)])
def test_a_convolution_is_the_sum_over_its_window_in_canonical_layout(stride, pad, size):
    generator = np.random.default_rng(0)
    images = generator.normal(size=(2, 7, 6, 3))
    w, b = generator.normal(size=(size, size, 3, 4)), generator.normal(size=4)
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((n + 2 * pad - size) // stride + 1 for n in (7, 6))
    expected = np.empty((2, height, width, 4))
    for i in range(height):
        for j in range(width):
            window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            expected[:, i, j] = np.tensordot(window, w, axes=3) + b
    layers = (Layer("conv", out=4, size=size, stride=stride, pad=pad),)
    got = forward(layers, [torch.from_numpy(w), torch.from_numpy(b)], torch.from_numpy(images))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_images_are_pooled_and_flattened_as_nhwc_in_c_order():
    images = torch.arange(2 * 4 * 6 * 3, dtype=torch.float64).view(2, 4, 6, 3)
    got = forward((Layer("pool", size=2), Layer("flatten")), [], images).numpy()
    expected = images.numpy()[:, 1::2, 1::2].reshape(2, 2 * 3 * 3)  # values grow to the lower right
    np.testing.assert_array_equal(got, expected)


def test_strides_and_odd_sizes_give_the_shapes_the_layers_need():
    layers = (
        Layer("conv", out=5, size=3, stride=2),
        Layer("relu"),
        Layer("pool", size=2),
        Layer("flatten"),
        Layer("dense", out=10),
    )
    problem = Problem("probe", "classifier", "digits", layers)
    assert [spec.shape for spec in parameter_specs(problem)][2] == (1 * 1 * 5, 10)
    task = ProblemTask(Instance(problem, 0, batch_size=4), torch.float64)
    assert torch.isfinite(value_and_gradient(task, task.initial(), 0)[1]).all()


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


def test_coordinates_are_numbered_tensor_by_tensor():
    tensor, place = coordinate_table([(2, 2), (3,), ()])
    assert tensor.tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert place.tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert tensor.dtype == place.dtype == np.int32


@pytest.mark.parametrize("name", ["digits-mlp", "mnist-mlp"])
def test_each_pass_over_the_data_is_a_new_permutation(name, tmp_path):
    given = instance(name, tmp_path, batch_size=10)
    rows = len(given.data()[1])
    per_pass = rows // 10
    passes = [
        np.concatenate([given.batch_indices(p * per_pass + k) for k in range(per_pass)]) for p in range(3)
    ]
    for order in passes:
        assert len(order) == len(set(order)) == per_pass * 10
        assert order.min() >= 0 and order.max() < rows
    assert not any(np.array_equal(passes[a], passes[b]) for a, b in ((0, 1), (1, 2), (0, 2)))


def test_batches_are_fixed_by_seed_and_step_alone():
    def batch(seed: int, step: int, split: str = "meta_train") -> list[int]:
        given = Instance(PROBLEMS["digits-mlp"], seed, split, 16)
        return given.batch_indices(step).tolist()

    later = [batch(1, step) for step in (500, 3, 46)]
    assert later == [batch(1, step) for step in (500, 3, 46)]
    assert batch(1, 0) != batch(2, 0) and batch(1, 0) != batch(1, 1)
    assert len(Instance(PROBLEMS["digits-mlp"], 1).batch_indices(0)) == 128
    assert len(Instance(PROBLEMS["digits-mlp"], 1, batch_size=10**6).batch_indices(9)) == 750
    for seed in range(12):  # more than the permutations kept at a time
        batch(seed, 0)
    assert later == [batch(1, step) for step in (500, 3, 46)]


def test_the_same_seed_gives_the_same_problem_and_another_seed_another():
    for name in ("quadratic", "digits-conv"):
        first, same, other = (Instance(PROBLEMS[name], seed) for seed in (1, 1, 2))
        for key, array in first.initial_parameters().items():
            assert np.array_equal(array, same.initial_parameters()[key])
            assert key.endswith("/b") or not np.array_equal(array, other.initial_parameters()[key])
    assert not np.array_equal(first.initial_parameters()["layer_0/w"].ravel()[:72], 0)
    w, y = Instance(PROBLEMS["quadratic"], 1).data()
    assert np.array_equal(w, Instance(PROBLEMS["quadratic"], 1).data()[0])
    assert not np.array_equal(w, Instance(PROBLEMS["quadratic"], 2).data()[0])
    assert w.shape == (128, 10, 10) and y.shape == (128, 10)


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_halves_of_the_training_images_are_disjoint_and_cover_them(name, tmp_path):
    write_npz(tmp_path)
    data = datasets.load(name, str(tmp_path))

    def rows(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
        return sorted(x.tobytes() + bytes([y]) for x, y in zip(images, labels, strict=True))

    first, second = rows(*data.split("meta_train")), rows(*data.split("evaluation"))
    assert sorted(first + second) == rows(data.x_train, data.y_train)
    assert abs(len(first) - len(second)) <= 1
    common = set(first) & set(second)  # the same image may be in the set twice
    assert len(common) <= len(first + second) - len(set(first + second))
    assert len(set(data.split("meta_train")[1])) == 10


def test_digits_are_scaled_split_and_typed():
    data = datasets.load("digits")
    assert data.x_train.shape == (1500, 8, 8, 1) and data.x_test.shape == (297, 8, 8, 1)
    assert data.x_train.dtype == np.float32 and data.y_train.dtype == np.int64
    assert data.x_train.min() == -0.5 and data.x_train.max() == 0.5
    np.testing.assert_array_equal(data.x_train * 16 % 1, 0)


@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("kind", ["npz", "idx", "idx.gz"])
def test_mnist_is_read_from_each_kind_of_file_in_each_place(kind, place, tmp_path):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    arrays = write_npz(folder) if kind == "npz" else write_idx(folder, kind == "idx.gz")
    data = datasets.load("mnist", str(tmp_path))
    for got, raw in zip((data.x_train, data.x_test), arrays[::2], strict=True):
        assert got.dtype == np.float32 and got.shape == (*raw.shape, 1)
        np.testing.assert_allclose(got[..., 0], raw / 255 - 0.5, atol=1e-6)
    for got, raw in zip((data.y_train, data.y_test), arrays[1::2], strict=True):
        assert got.dtype == np.int64 and np.array_equal(got, raw)


def test_mnist_is_found_by_the_environment_variable_unless_a_folder_is_given(tmp_path, monkeypatch):
    write_npz(tmp_path)
    datasets.load.cache_clear()
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    assert len(datasets.load("mnist").y_train) == 60
    with pytest.raises(L2OError, match="not found"):
        datasets.load("mnist", str(tmp_path / "elsewhere"))
    datasets.load.cache_clear()


@pytest.mark.parametrize("given", [True, False])
def test_missing_mnist_is_said_with_the_places_looked_in_and_the_remedy(given, tmp_path, monkeypatch):
    monkeypatch.delenv("L2O_DATA", raising=False)
    datasets.load.cache_clear()
    with pytest.raises(L2OError) as error:
        datasets.load("mnist", str(tmp_path) if given else "")
    text = str(error.value)
    assert (str(tmp_path / "MNIST/raw") if given else "no folder was given") in text
    assert "--data-dir" in text and "L2O_DATA" in text and IDX_NAMES[0] in text


def damage_idx(kind: str, raw: bytes) -> bytes:
    return {
        "empty": b"",
        "cut header": raw[:6],
        "cut": raw[:-1],
        "longer": raw + b"\0",
        "magic": b"\0\0\x08\x07" + raw[4:],
        "shape": raw[:4] + b"\xff\xff\xff\xff" * 3 + raw[16:],
        "text": b"<html>Not found</html>",
    }[kind]


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("kind", ["empty", "cut header", "cut", "longer", "magic", "shape", "text"])
@pytest.mark.parametrize("file", IDX_NAMES[:2])
def test_a_broken_idx_file_is_named(file, kind, zipped, tmp_path):
    write_idx(tmp_path, zipped)
    path = tmp_path / (file + ".gz" * zipped)
    raw = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
    raw = damage_idx(kind, raw)
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    with pytest.raises(L2OError, match=f"{file}.*expected an IDX file.*copy the file again"):
        datasets.load("mnist", str(tmp_path))


@pytest.mark.parametrize("kind", ["cut", "not gzip", "bit"])
def test_a_broken_gzip_file_is_named(kind, tmp_path):
    write_idx(tmp_path, zipped=True)
    path = tmp_path / f"{IDX_NAMES[0]}.gz"
    raw = path.read_bytes()
    middle = len(raw) // 2
    broken = {
        "cut": raw[:middle],
        "not gzip": b"GIF89a" + raw,
        "bit": raw[:middle] + bytes([raw[middle] ^ 64]) + raw[middle + 1 :],
    }
    path.write_bytes(broken[kind])
    with pytest.raises(L2OError, match=IDX_NAMES[0]):
        datasets.load("mnist", str(tmp_path))


@pytest.mark.parametrize(
    "kind",
    [
        "text",
        "bit",
        "missing",
        "pickle",
        "shape",
        "labels",
        "empty",
        "cut",
        "a single array",
        "deflate",
        "method",
    ],
)
def test_a_broken_npz_is_named(kind, tmp_path):
    write_npz(tmp_path)
    path = tmp_path / "mnist.npz"
    raw, (x, y, x_test, y_test) = path.read_bytes(), tiny_mnist()
    middle = 20_000
    whole = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
    if kind in ("empty", "text", "cut"):
        path.write_bytes({"empty": b"", "text": b"<html>", "cut": raw[:middle]}[kind])
    elif kind == "bit":
        path.write_bytes(raw[:middle] + bytes([raw[middle] ^ 64]) + raw[middle + 1 :])
    elif kind == "method":
        place = raw.index(b"PK\x01\x02") + 10  # in the first entry of the central directory
        path.write_bytes(raw[:place] + b"\x63" + raw[place + 1 :])
    elif kind == "a single array":
        with path.open("wb") as file:
            np.save(file, x)
    elif kind == "deflate":
        np.savez_compressed(path, **whole)
        raw = path.read_bytes()
        path.write_bytes(raw[:60] + bytes(16) + b"\xff" * 200 + raw[276:])
    else:
        damage = {
            "missing": {"x_test": None},
            "pickle": {"x_train": np.array([{}], object)},
            "shape": {"x_train": x[:, :27]},
            "labels": {"y_train": y[1:]},
        }[kind]
        np.savez(path, **{name: a for name, a in (whole | damage).items() if a is not None})
    with pytest.raises(L2OError, match="mnist"):
        datasets.load("mnist", str(tmp_path))


def test_the_real_mnist_is_as_the_table_says(data_dir):
    data = datasets.load("mnist", str(data_dir))
    assert data.x_train.shape == (60000, 28, 28, 1) and data.x_test.shape == (10000, 28, 28, 1)
    assert data.x_train.min() == -0.5 and data.x_train.max() == 0.5
    assert np.bincount(data.y_train).min() > 5000 and len(data.split("meta_train")[1]) == 30000


def test_accuracy_is_the_share_of_right_answers():
    task = ProblemTask(Instance(PROBLEMS["digits-mlp"], 0, "test"), torch.float64)
    theta = torch.zeros(len(task.initial()), dtype=torch.float64)
    theta[-10 + 3] = 1.0  # only the last bias: it always says 3
    labels = datasets.load("digits").y_test
    assert task.accuracy(theta) == pytest.approx(np.mean(labels == 3), abs=1e-12)
    assert np.isnan(ProblemTask(Instance(PROBLEMS["quadratic"], 0)).accuracy(torch.zeros(1280)))
