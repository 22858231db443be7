"""The layers of the problem table in torch, against NumPy, torch's own modules and networks written out."""

import copy
from statistics import NormalDist

import numpy as np
import pytest

from common.tables import networks as net
from common.tables.layers import Layer, specs

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from torch_impl.problems.layers import forward  # noqa: E402

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def parameters(layers: tuple[Layer, ...], shape: tuple[int, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    """Normal values for every tensor of a network, batch norm's too; trainable."""
    generator = np.random.default_rng(seed)
    return {
        spec.name: torch.tensor(generator.normal(spec.mean, spec.std or 0.5, spec.shape), requires_grad=True)
        for spec in specs(layers, shape, 4)
    }


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def nchw(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2)


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.detach().numpy(), expected.detach().numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("stride", "pad", "size"), [(1, 0, 3), (1, 1, 3), (2, 1, 3), (1, 2, 5)])
def test_a_convolution_is_the_sum_over_its_window_in_canonical_layout(stride, pad, size, bias):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, 7, 6, 3))
    w, b = generator.normal(size=(size, size, 3, 4)), generator.normal(size=4)
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((n + 2 * pad - size) // stride + 1 for n in (7, 6))
    expected = np.empty((2, height, width, 4))
    for i in range(height):
        for j in range(width):
            window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            expected[:, i, j] = np.tensordot(window, w, axes=3) + (b if bias else 0.0)
    layers = (Layer("conv", out=4, size=size, stride=stride, pad=pad, bias=bias),)
    assert [spec.name for spec in specs(layers, (7, 6, 3), 4)] == ["layer_0/w"] + ["layer_0/b"] * bias
    given = {"layer_0/w": torch.from_numpy(w)} | ({"layer_0/b": torch.from_numpy(b)} if bias else {})
    np.testing.assert_allclose(forward(layers, given, torch.from_numpy(x)).numpy(), expected, **EXACT)


def test_images_are_pooled_and_flattened_as_nhwc_in_c_order():
    x = torch.arange(2 * 4 * 6 * 3, dtype=torch.float64).view(2, 4, 6, 3)
    got = forward((Layer("pool", size=2), net.FLATTEN), {}, x).numpy()
    expected = x.numpy()[:, 1::2, 1::2].reshape(2, 2 * 3 * 3)  # values grow to the lower right
    np.testing.assert_array_equal(got, expected)
    assert torch.equal(forward((net.FLATTEN,), {}, x), x.reshape(2, -1))
    np.testing.assert_allclose(forward((net.MEAN,), {}, x).numpy(), x.numpy().mean((1, 2)), **EXACT)


def test_dense_layers_are_affine_maps_with_an_activation_between():
    x = images(5, 2, 3, 1)
    activations = {
        net.RELU: lambda z: np.maximum(z, 0),
        net.SIGMOID: lambda z: 1 / (1 + np.exp(-z)),
        net.TANH: np.tanh,
        net.GELU: lambda z: z * np.vectorize(NormalDist().cdf)(z),
    }
    for activation, function in activations.items():
        layers = net.mlp(7, 3, activation=activation)
        given = parameters(layers, (2, 3, 1))
        w0, b0, w1, b1, w2, b2 = (p.detach().numpy() for p in given.values())
        hidden = function(function(x.numpy().reshape(5, 6) @ w0 + b0) @ w1 + b1)
        np.testing.assert_allclose(forward(layers, given, x).detach().numpy(), hidden @ w2 + b2, **EXACT)


def test_average_pooling_leaves_padding_out_of_its_count():
    x = images(2, 4, 5, 3)
    got = forward((Layer("average", size=3, pad=1),), {}, x).numpy()
    for i in range(4):
        for j in range(5):
            window = x.numpy()[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            np.testing.assert_allclose(got[:, i, j], window.mean((1, 2)), **EXACT)
    halved = forward((Layer("average", size=2, stride=2),), {}, x).numpy()
    assert halved.shape == (2, 2, 2, 3)
    np.testing.assert_allclose(halved[:, 1, 1], x.numpy()[:, 2:4, 2:4].mean((1, 2)), **EXACT)


def test_batch_norm_in_training_equals_torchs_module():
    """Output, gradients, and the running mean; the running variance is the biased one."""
    x, given = images(4, 3, 5, 6).requires_grad_(), parameters((net.NORM,), (3, 5, 6))
    buffers = {"layer_0/mean": images(6, seed=2), "layer_0/var": images(6, seed=3).exp()}
    module = torch.nn.BatchNorm2d(6, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(given["layer_0/gamma"])
        module.bias.copy_(given["layer_0/beta"])
        module.running_mean.copy_(buffers["layer_0/mean"])
        module.running_var.copy_(buffers["layer_0/var"])
    before = buffers["layer_0/var"].numpy().copy()
    got = forward((net.NORM,), given, x, buffers)
    theirs = module(nchw(x)).permute(0, 2, 3, 1)
    assert_same(got, theirs)
    upstream = images(*got.shape, seed=4)
    mine = torch.autograd.grad(got, [x, *given.values()], upstream)
    for a, b in zip(
        mine, torch.autograd.grad(theirs, [x, module.weight, module.bias], upstream), strict=True
    ):
        assert_same(a, b)
    assert_same(buffers["layer_0/mean"], module.running_mean)
    biased = x.detach().numpy().var((0, 1, 2))  # divided by n
    np.testing.assert_allclose(buffers["layer_0/var"].numpy(), 0.9 * before + 0.1 * biased, **EXACT)
    assert not np.allclose(buffers["layer_0/var"].numpy(), module.running_var.numpy(), rtol=1e-4)


def test_batch_norm_in_evaluation_uses_the_buffers_and_leaves_them():
    x, given = images(4, 3, 5, 6), parameters((net.NORM,), (3, 5, 6))
    buffers = {"layer_0/mean": images(6, seed=2), "layer_0/var": images(6, seed=3).exp()}
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    got = forward((net.NORM,), given, x, buffers, training=False)
    gamma, beta = given.values()
    scale = gamma / (buffers["layer_0/var"] + 1e-5).sqrt()
    assert_same(got, (x - buffers["layer_0/mean"]) * scale + beta)
    assert all(torch.equal(buffers[name], buffer) for name, buffer in before.items())
    assert_same(forward((net.NORM,), given, x[:1], buffers, training=False), got[:1])  # an image by itself


def test_every_batch_norm_has_running_values_of_its_own():
    layers = (net.NORM, Layer("conv", out=2, size=1), net.NORM)
    given, x = parameters(layers, (3, 3, 2)), images(4, 3, 3, 2)
    buffers = {
        f"layer_{k}/{part}": torch.ones(2, dtype=torch.float64) for k in (0, 2) for part in ("mean", "var")
    }
    with torch.no_grad():
        forward(layers, given, x, buffers)
        inner = forward(layers[:2], given, x)
    for number, seen in ((0, x), (2, inner)):
        np.testing.assert_allclose(buffers[f"layer_{number}/mean"], 0.9 + 0.1 * seen.mean((0, 1, 2)), **EXACT)
    assert torch.equal(forward(layers, given, x), forward(layers, given, x, {}))  # none are kept


def test_a_graph_is_the_sum_of_its_edges_node_by_node():
    """By hand: node 1 = 2x + 1, node 2 = relu(node 1) + x, node 3 = 10 node 2 + node 1."""
    one = Layer("conv", out=1, size=1)
    ten = Layer("conv", out=1, size=1, bias=False)
    graph = Layer("graph", nodes=(((0, (one,)),), ((1, (net.RELU,)), (0, ())), ((2, (ten,)), (1, ()))))
    given = {
        "layer_0/w": torch.full((1, 1, 1, 1), 2.0),
        "layer_0/b": torch.ones(1),
        "layer_1/w": torch.full((1, 1, 1, 1), 10.0),
    }
    x = torch.tensor([[[[3.0], [-4.0]]]])
    # 3: 7, 7 + 3 = 10, 100 + 7. -4: -7, 0 - 4 = -4, -40 - 7.
    assert forward((graph,), given, x).flatten().tolist() == [107.0, -47.0]


def test_nodes_without_edges_are_zero():
    x = images(2, 3, 3, 2)
    empty = Layer("graph", nodes=((), ((0, ()), (1, ()))))  # node 2 = x + 0
    assert torch.equal(forward((empty,), {}, x), x)
    assert torch.equal(forward((Layer("graph", nodes=(((0, ()),), ())),), {}, x), torch.zeros_like(x))


def test_graphs_do_not_change_what_they_are_given():
    """Summing in place would change node 1 for its other edge."""
    twice = Layer("graph", nodes=(((0, ()),), ((0, ()), (1, ())), ((0, ()), (1, ()), (2, ()))))
    x = images(2, 3, 3, 2)
    before = x.clone()
    np.testing.assert_allclose(forward((twice,), {}, x), 4 * before, **EXACT)
    assert torch.equal(x, before)


@pytest.mark.parametrize("training", [True, False])
def test_a_resnet_equals_the_same_written_out(training):
    """He et al. 2016: two basic blocks, the second with a stride and a projection as shortcut."""
    layers, shape = net.resnet(1, 1), (6, 6, 3)
    given, x = parameters(layers, shape), images(3, *shape)
    generator = np.random.default_rng(5)
    norms = [name[:-6] for name in given if name.endswith("/gamma")]
    buffers = {}
    for name in norms:
        count = len(given[f"{name}/gamma"])
        buffers[f"{name}/mean"] = torch.from_numpy(generator.normal(size=count))
        buffers[f"{name}/var"] = torch.from_numpy(generator.uniform(0.5, 2.0, count))
    kept = {name: buffer.clone() for name, buffer in buffers.items()}

    def conv(k: int, z: torch.Tensor, stride: int = 1) -> torch.Tensor:
        w = given[f"layer_{k}/w"].permute(3, 2, 0, 1)
        return F.conv2d(z, w, stride=stride, padding=w.shape[2] // 2)

    def norm(k: int, z: torch.Tensor) -> torch.Tensor:
        mean, var = (kept[f"layer_{k}/{part}"].clone() for part in ("mean", "var"))
        gamma, beta = given[f"layer_{k}/gamma"], given[f"layer_{k}/beta"]
        return F.batch_norm(z, mean, var, gamma, beta, training)

    z = F.relu(norm(1, conv(0, nchw(x))))
    z = F.relu(norm(5, conv(4, F.relu(norm(3, conv(2, z))))) + z)
    path = norm(9, conv(8, F.relu(norm(7, conv(6, z, 2)))))
    z = F.relu(path + norm(11, conv(10, z, 2)))
    expected = z.mean((2, 3)) @ given["layer_12/w"] + given["layer_12/b"]
    got = forward(layers, given, x, buffers, training)
    assert_same(got, expected)
    both = (torch.autograd.grad(out.square().sum(), list(given.values())) for out in (got, expected))
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-9 * float(b.abs().max()))
    assert all(torch.equal(buffers[name], kept[name]) != training for name in kept)


class Block(torch.nn.Sequential):
    """ReLU, convolution, batch norm."""

    def __init__(self, before: int, after: int, size: int, stride: int = 1) -> None:
        convolution = torch.nn.Conv2d(before, after, size, stride, size // 2, bias=False)
        super().__init__(torch.nn.ReLU(), convolution, torch.nn.BatchNorm2d(after))


class Zero(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.0


class Cell(torch.nn.Module):
    """Four nodes, every earlier one joined to every later one, as NAS-Bench-201 describes its cells."""

    def __init__(self, edges: tuple[str, ...], channels: int) -> None:
        super().__init__()
        made = {
            "none": Zero,
            "skip": torch.nn.Identity,
            "conv1": lambda: Block(channels, channels, 1),
            "conv3": lambda: Block(channels, channels, 3),
            "average": lambda: torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        }
        self.edges = torch.nn.ModuleList(made[edge]() for edge in edges)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        to_1, to_2, from_1_to_2, to_3, from_1_to_3, from_2_to_3 = self.edges
        first = to_1(x)
        second = to_2(x) + from_1_to_2(first)
        return to_3(x) + from_1_to_3(first) + from_2_to_3(second)


class Reduction(torch.nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.path = torch.nn.Sequential(Block(before, after, 3, 2), Block(after, after, 3))
        shortcut = torch.nn.Conv2d(before, after, 1, bias=False)
        self.shortcut = torch.nn.Sequential(torch.nn.AvgPool2d(2), shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.path(x) + self.shortcut(x)


def nas_network(edges: tuple[str, ...], cells: int) -> torch.nn.Sequential:
    body = [torch.nn.Conv2d(3, 16, 3, padding=1, bias=False), torch.nn.BatchNorm2d(16)]
    body += [Cell(edges, 16) for _ in range(cells)] + [Reduction(16, 32)]
    body += [Cell(edges, 32) for _ in range(cells)] + [Reduction(32, 64)]
    body += [Cell(edges, 64) for _ in range(cells)] + [torch.nn.BatchNorm2d(64), torch.nn.ReLU()]
    return classifier(*body, channels=64)


def free(before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> list[torch.nn.Module]:
    """A convolution without bias, and batch norm."""
    convolution = torch.nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, torch.nn.BatchNorm2d(after)]


class Skip(torch.nn.Module):
    """Every second pixel, and zeros for as many channels more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, torch.zeros_like(x)], 1)[:, :, ::2, ::2]


class Residual(torch.nn.Module):
    def __init__(self, path: list[torch.nn.Module], past: list[torch.nn.Module]) -> None:
        super().__init__()
        self.path, self.past = torch.nn.Sequential(*path), torch.nn.Sequential(*past)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.path(x) + self.past(x)


def classifier(*body: torch.nn.Module, channels: int) -> torch.nn.Sequential:
    end = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 4)]
    return torch.nn.Sequential(*body, *end).double()


def bottlenecks() -> torch.nn.Sequential:
    """Two stages of one block of 1x1, 3x3 and 1x1 each (He et al. 2016, figure 5)."""

    def block(before: int, inner: int, stride: int) -> list[torch.nn.Module]:
        path = [*free(before, inner, 1), RELU(), *free(inner, inner, 3, stride), RELU()]
        path += free(inner, 4 * inner, 1)
        return [Residual(path, free(before, 4 * inner, 1, stride)), RELU()]

    return classifier(*free(3, 4, 3), RELU(), *block(4, 4, 1), *block(16, 8, 2), channels=32)


def small_resnet() -> torch.nn.Sequential:
    """Eight layers (He et al. 2016, section 4.2)."""
    body = [*free(3, 16, 3), RELU()]
    for before, after in ((16, 16), (16, 32), (32, 64)):
        stride = after // before
        path = [*free(before, after, 3, stride), RELU(), *free(after, after, 3)]
        body += [Residual(path, [Skip()] if stride > 1 else []), RELU()]
    return classifier(*body, channels=64)


def mobile_network() -> torch.nn.Sequential:
    """MobileNetV2 (Sandler et al. 2018, table 2), every count of channels at its least: 8."""
    stages = ((1, 1, 1), (6, 2, 1), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))
    body = [*free(3, 8, 3), torch.nn.ReLU6()]
    for factor, repeats, stride in stages:
        for k in range(repeats):
            path = [*free(8, 48, 1), torch.nn.ReLU6()] if factor > 1 else []
            path += [*free(8 * factor, 8 * factor, 3, 1 if k else stride, 8 * factor), torch.nn.ReLU6()]
            path += free(8 * factor, 8, 1)
            body += path if k == 0 and stride == 2 else [Residual(path, [])]
    return classifier(*body, *free(8, 1280, 1), torch.nn.ReLU6(), channels=1280)


RELU = torch.nn.ReLU
NAS = (
    (("conv3", "conv1", "conv3", "skip", "average", "conv3"), 1),
    (("skip", "none", "conv3", "average", "conv1", "none"), 2),
    (("none",) * 6, 1),
)
MODULES = {
    **{f"nas {k}": (net.nas_bench_201(*each), nas_network(*each)) for k, each in enumerate(NAS)},
    "bottlenecks": (net.resnet(1, 1, bottleneck=True, width=4), bottlenecks()),
    "resnet-8": (net.resnet_of_depth(8), small_resnet()),
    "mobilenet-v2": (net.mobilenet_v2(0.01), mobile_network()),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("layers", "module"), MODULES.values(), ids=MODULES)
def test_networks_equal_the_same_of_torchs_modules(layers, module, training):
    shape = (8, 8, 3)
    given, x = parameters(layers, shape), images(3, *shape)
    module = copy.deepcopy(module).train(training)
    assert len(given) == len(list(module.parameters()))
    with torch.no_grad():
        for p, value in zip(module.parameters(), given.values(), strict=True):
            dims = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.dim()]
            p.copy_(value.permute(dims))
    buffers = {
        name.replace("gamma", part): (torch.zeros_like if part == "mean" else torch.ones_like)(p.detach())
        for name, p in given.items()
        if name.endswith("/gamma")
        for part in ("mean", "var")
    }
    got, expected = forward(layers, given, x, buffers, training), module(nchw(x))
    assert_same(got, expected)
    mine = torch.autograd.grad(got.square().sum(), list(given.values()), allow_unused=True)
    theirs = torch.autograd.grad(expected.square().sum(), list(module.parameters()))
    for a, b in zip(mine, theirs, strict=True):
        a = torch.zeros_like(b) if a is None else a.permute({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[a.dim()])
        largest = max(float(b.abs().max()), 1e-3)
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-8, atol=1e-9 * largest)
    means = [m.running_mean for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for buffer, mean in zip([b for n, b in buffers.items() if n.endswith("mean")], means, strict=True):
        assert_same(buffer, mean)


def test_the_order_of_parameters_tells_their_layer_and_names_need_no_numbers():
    layers = net.mlp(3)
    given, x = parameters(layers, (2, 2, 1)), images(4, 2, 2, 1)
    renamed = {name.replace("layer_", "part_"): p for name, p in given.items()}
    assert torch.equal(forward(layers, given, x), forward(layers, renamed, x))
