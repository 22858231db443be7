"""Layers as data: parameter counts as in the literature, names in reading order, initial values."""

import itertools
import json
import math

import pytest

from common.errors import L2OError
from common.tables import networks as net
from common.tables.layers import Layer, ParameterSpec, specs
from common.tables.problems import PROBLEMS, Problem, parameter_specs

MNIST, CIFAR = (28, 28, 1), (32, 32, 3)


def size(parameters: list[ParameterSpec] | tuple[ParameterSpec, ...]) -> int:
    return sum(math.prod(spec.shape) for spec in parameters)


def dense(*widths: int) -> int:
    """Weights and biases of dense layers between the widths."""
    return sum((before + 1) * after for before, after in itertools.pairwise(widths))


def window(size: int, before: int, after: int) -> int:
    return size * size * before * after


# By hand, from the descriptions in the papers. conv_net on 28x28: 26, 13, 9, 4 pixels a side; with stride 2
# on 32x32: 15, 7, 2, 1.
COUNTS = {
    **dict.fromkeys([name for name, row in PROBLEMS.items() if row.kind == "function"], 1280),
    **dict.fromkeys(["lasso-2d", "rastrigin-2d", "square-cos-2d"], 256),
    **{"simple": 1, "simple-multi": 2, "ensemble": 3 * 1280},
    **dict.fromkeys(["mlp", "mlp-iclr"], dense(784, 30, 20, 10)),
    **dict.fromkeys(["sigmoid", "relu"], dense(784, 20, 10)),
    **dict.fromkeys(["sigmoid-2", "tanh-2"], dense(784, 20, 20, 10)),
    "digits-mlp": dense(64, 30, 20, 10),
    "digits-conv": window(3, 1, 8) + 8 + window(3, 8, 16) + 16 + dense(2 * 2 * 16, 10),
    "mlp-deep": dense(784, 50, 20, 20, 12, 10),
    "wide": dense(784, 128, 64, 10),
    "linear": dense(784, 10),
    "cifar-mlp": dense(3072, 64, 32, 10),
    "conv": window(3, 1, 16) + 3 * 16 + window(5, 16, 32) + 3 * 32 + dense(4 * 4 * 32, 10),
    "cifar-conv": window(3, 3, 16) + 3 * 16 + window(5, 16, 32) + 3 * 32 + dense(1 * 1 * 32, 10),
    "cifar-small-conv": window(3, 3, 6) + 6 + window(3, 6, 12) + 12 + dense(6 * 6 * 12, 5),
    "lenet": 62_006,
    "lenet-sigmoid": 62_006 + 2 * (6 + 16 + 120 + 84),
    "vgg-16": 14_728_266,
    "vgg-16-plain": 14_714_688 + dense(512, 10),  # as Keras counts it without the top, and ten classes
    "cifar-conv-3": window(5, 3, 16) + 2 * window(5, 16, 16) + 3 * 3 * 16 + dense(256, 32, 10) + 2 * 32,
    "nas-small": window(3, 3, 16) + 3 * window(3, 16, 16) + 4 * 3 * 16 + dense(16, 10),
    "resnet-18-halves": 11_173_962 - 5 * 513,
    "resnet-20": 269_722,
    "resnet-56": 853_018,
    "resnet-18": 11_173_962,
    "resnet-34": 21_282_122,
    "resnet-50": 23_520_842,
    "resnet-101": 42_512_970,
    "resnet-152": 58_156_618,
    "mobilenet-v2": 3_504_872 - 990 * 1281,
    "mobilenet-v2-0.25": 250_922,
    "nas": 830_426,
    "mnist-layer-norm": dense(784, 32, 32, 10) + 4 * 32,
    "digits-residual": window(3, 1, 8) + 4 * window(3, 8, 8) + 5 * 8 + dense(8, 10),
    "digits-logistic": dense(64, 2),
    "digits-autoencoder": dense(64, 32, 8, 32, 64),
    "recall-recurrent": dense(8, 32) + 32 * 32 + dense(32, 8),
    "text-tied": 24 * 16 + dense(4 * 16, 16) + 24,
    "digits-shift": dense(64, 30, 20, 10),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_has_as_many_parameters_as_its_description_says(name):
    known = name if name in COUNTS else name.split("-", 1)[1]  # mnist- and fashion- twins
    assert size(parameter_specs(PROBLEMS[name])) == COUNTS[known]


def test_the_small_ones_have_the_published_counts():
    assert (COUNTS["mlp"], COUNTS["cifar-small-conv"]) == (24_380, 2_993)


# In the literature: LeNet's paper; Simonyan and Zisserman 2015, table 2 (138 million on ImageNet, without
# batch norm); MobileNetV2 of torchvision, as strides have no parameters; NAS-Bench-201's smallest, largest,
# and the one of issue 36 of NATS-Bench's repository.
EDGES = ("skip", "none", "conv3", "average", "conv3", "conv3")
PUBLISHED = {
    "lenet, grey": (net.lenet(), (32, 32, 1), 10, 61_706),
    "lenet": (net.lenet(), CIFAR, 10, 62_006),
    "vgg16": (net.vgg16(4096, 4096, norm=False), (224, 224, 3), 1000, 138_357_544),
    "vgg16, small": (net.vgg16(), CIFAR, 10, 14_728_266),
    "mobilenet-v2, 1000 classes": (net.mobilenet_v2(), CIFAR, 1000, 3_504_872),
    "mobilenet-v2, half": (net.mobilenet_v2(0.5), CIFAR, 1000, 1_968_680),
    "nas, smallest": (net.nas_bench_201(("none",) * 6), CIFAR, 10, 73_306),
    "nas, largest": (net.nas_bench_201(("conv3",) * 6), CIFAR, 10, 1_531_546),
    "nas, issue 36": (net.nas_bench_201(EDGES), CIFAR, 10, 802_426),
}


@pytest.mark.parametrize(("layers", "shape", "classes", "count"), PUBLISHED.values(), ids=PUBLISHED)
def test_known_networks_have_the_published_counts(layers, shape, classes, count):
    assert size(specs(layers, shape, classes)) == count


def test_vgg16_has_its_convolutions():
    convolutions = [spec for spec in specs(net.vgg16(), CIFAR, 10) if len(spec.shape) == 4]
    assert [spec.shape[3] for spec in convolutions] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6


def test_layers_are_numbered_in_reading_order_also_inside_graphs():
    inner, outer = Layer("conv", out=2, size=1, bias=False), Layer("conv", out=2, size=3, pad=1)
    graph = Layer("graph", nodes=(((0, (inner, net.NORM)),), ((1, ()), (0, (outer,)))))
    found = specs((graph, net.RELU, net.NORM, net.FLATTEN, net.CLASSES), (4, 5, 3), 7)
    expected = {
        "layer_0/w": (1, 1, 3, 2), "layer_1/gamma": (2,), "layer_1/beta": (2,), "layer_2/w": (3, 3, 3, 2),
        "layer_2/b": (2,), "layer_3/gamma": (2,), "layer_3/beta": (2,), "layer_4/w": (4 * 5 * 2, 7),
        "layer_4/b": (7,),
    }  # fmt: skip
    assert [(spec.name, spec.shape) for spec in found] == list(expected.items())


@pytest.mark.parametrize(
    ("layer", "end"),
    [
        (Layer("conv", out=4, size=3), (7, 4, 4)),
        (Layer("conv", out=4, size=3, pad=1), (9, 6, 4)),
        (Layer("conv", out=4, size=5, stride=2, pad=2), (5, 3, 4)),
        (Layer("pool", size=2), (4, 3, 3)),
        (Layer("average", size=3, pad=1), (9, 6, 3)),
        (Layer("average", size=2, stride=2), (4, 3, 3)),
        (net.NORM, (9, 6, 3)),
        (Layer("graph", nodes=((), ((0, ()), (1, ())))), (9, 6, 3)),
    ],
    ids=lambda value: value.kind if isinstance(value, Layer) else "x".join(map(str, value)),
)
def test_a_layer_leaves_images_of_the_size_it_says(layer, end):
    """Seen by the dense layer behind it; 9x6 images of 3 channels."""
    assert specs((layer, net.FLATTEN, net.CLASSES), (9, 6, 3), 2)[-2].shape == (math.prod(end), 2)
    assert specs((layer, net.MEAN, net.CLASSES), (9, 6, 3), 2)[-2].shape == (end[2], 2)


def test_a_resnet_is_its_stages_one_after_another():
    """He et al. 2016: the first block of every stage but the first halves the side and has a shortcut."""
    shapes = [spec.shape for spec in specs(net.resnet(1, 2), CIFAR, 10) if len(spec.shape) > 1]
    stem, stages = [(3, 3, 3, 64)], [(3, 3, 64, 64)] * 2
    stages += [(3, 3, 64, 128), (3, 3, 128, 128), (1, 1, 64, 128), (3, 3, 128, 128), (3, 3, 128, 128)]
    assert shapes == [*stem, *stages, (128, 10)]


def test_he_is_scaled_by_what_comes_in_and_normal_is_not():
    """He et al. 2015; batch norm starts as the identity in either."""
    layers = (*net.conv(4, 3, norm=True), *net.mlp(5))
    stds = {"layer_0/w": math.sqrt(2 / 27), "layer_2/w": math.sqrt(2 / 16), "layer_3/w": math.sqrt(2 / 5)}
    for spec in specs(layers, (4, 4, 3), 2):
        assert (spec.mean, spec.std) == (float(spec.name == "layer_1/gamma"), stds.pop(spec.name, 0.0))
    assert not stds
    other = specs(layers, (4, 4, 3), 2, "normal")
    assert {(s.name, s.mean) for s in other} == {(s.name, s.mean) for s in specs(layers, (4, 4, 3), 2)}
    assert all(s.std == 0.01 for s in other)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_row_is_written_as_json(name):
    """Whole: rows that differ are written differently, and layers without their defaults."""
    row = PROBLEMS[name].to_dict()
    assert json.loads(json.dumps(row)) == json.loads(json.dumps(row, default=str)) and row["name"] == name
    assert len(row["layers"]) == len(PROBLEMS[name].layers)
    texts = {json.dumps(other.to_dict(), sort_keys=True) for other in PROBLEMS.values()}
    assert len(texts) == len(PROBLEMS)


def test_a_layer_is_written_without_its_defaults():
    conv = Layer("conv", out=2, size=3, bias=False)
    assert conv.to_dict() == {"kind": "conv", "out": 2, "size": 3, "bias": False}
    graph = Layer("graph", nodes=(((0, (conv,)), (0, ())), ((1, ()),)))
    nodes = [[[0, [conv.to_dict()]], [0, []]], [[1, []]]]
    assert graph.to_dict() == {"kind": "graph", "nodes": nodes}


@pytest.mark.parametrize(
    ("layers", "shape", "last"),
    [
        (net.conv_net(1), (8, 8, 1), "conv 5x5"),
        (net.lenet(), (14, 15, 1), "pool 2x2"),
        (net.vgg16(), (16, 16, 3), "pool 2x2"),
        (net.nas_bench_201(("skip",) * 6), (1, 4, 3), "average 2x2"),
    ],
    ids=["conv_net", "lenet", "vgg16", "nas"],
)
def test_images_too_small_for_a_network_are_refused(layers, shape, last):
    with pytest.raises(L2OError, match=f"got none after {last}; take larger images"):
        specs(layers, shape, 10)
    larger = tuple(4 * side for side in shape[:2])
    assert specs(layers, (*larger, shape[2]), 10)


def test_sides_a_network_cannot_halve_are_refused_where_its_paths_would_not_meet():
    """Average pooling leaves 6 of 13, a strided convolution 7."""
    nas = net.nas_bench_201(("skip",) * 6)
    assert specs(nas, (24, 28, 3), 10) and specs(net.resnet(1, 1), (13, 7, 3), 10)
    with pytest.raises(L2OError, match="expected images whose sides can be halved, got 13x14"):
        specs(nas, (26, 28, 3), 10)


def test_half_of_the_classes_is_what_a_network_with_class_halves_tells_apart():
    def count(**fields: object) -> int:
        return Problem("probe", "classifier", "synthetic:4x4x1:7", net.mlp(), **fields).classes()

    assert (count(), count(class_halves=True), PROBLEMS["quadratic"].classes()) == (7, 3, 0)
