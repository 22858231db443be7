"""The networks of the table of optimizees, as ``common.tables.layers``."""

import itertools
from typing import Literal

from common.tables.layers import Layer

RELU, SIGMOID, TANH, GELU = Layer("relu"), Layer("sigmoid"), Layer("tanh"), Layer("gelu")
RELU6 = Layer("relu6")
NORM, FLATTEN, MEAN = Layer("norm"), Layer("flatten"), Layer("mean")
CLASSES = Layer("dense")
LAYER_NORM = Layer("layer_norm")


def mlp(*widths: int, activation: Layer = RELU) -> tuple[Layer, ...]:
    """Hidden layers of the given widths, then the classes."""
    hidden = [part for width in widths for part in (Layer("dense", out=width), activation)]
    return (FLATTEN, *hidden, CLASSES)


def conv(out: int, size: int, stride: int = 1, pad: int = 0, norm: bool = False) -> tuple[Layer, ...]:
    """Convolution, batch norm if asked for, ReLU."""
    return (Layer("conv", out=out, size=size, stride=stride, pad=pad), *[NORM] * norm, RELU)


def conv_net(stride: int) -> tuple[Layer, ...]:
    """Conv 3x3x16, conv 5x5x32, each with batch norm, ReLU and pooling (Chen et al. 2020)."""
    pool = Layer("pool", size=2)
    return (*conv(16, 3, stride, norm=True), pool, *conv(32, 5, stride, norm=True), pool, FLATTEN, CLASSES)


def lenet() -> tuple[Layer, ...]:
    """LeNet-5 (LeCun et al. 1998) with ReLU and maximum pooling: 61,706 parameters on 32x32x1."""
    pool = Layer("pool", size=2)
    return (*conv(6, 5), pool, *conv(16, 5), pool, *mlp(120, 84))


def lenet_sigmoid() -> tuple[Layer, ...]:
    """LeNet-5 as the code of Chen et al. 2020 has it: batch norm and sigmoid after each hidden layer."""
    squashed, pool = (NORM, SIGMOID), Layer("pool", size=2)
    convolutions = [(Layer("conv", out=out, size=5), *squashed, pool) for out in (6, 16)]
    hidden = [(Layer("dense", out=width), *squashed) for width in (120, 84)]
    return (*itertools.chain(*convolutions), FLATTEN, *itertools.chain(*hidden), CLASSES)


def conv_3() -> tuple[Layer, ...]:
    """Three convolutions 5x5x16 and a dense layer of 32, of the code of Andrychowicz et al. 2016."""
    pool = Layer("pool", size=2)
    convolutions = (*conv(16, 5, pad=2, norm=True), pool) * 3
    return (*convolutions, FLATTEN, Layer("dense", out=32), NORM, RELU, CLASSES)


def nas_small() -> tuple[Layer, ...]:
    """What the code of Chen et al. 2020 calls NAS: node 2 is pool(1) + conv(0), node 3 is 2 + conv(1) + 0."""
    block, average = conv(16, 3, pad=1, norm=True), Layer("average", size=3, pad=1)
    nodes = (((0, block),), ((1, (average,)), (0, block)), ((2, ()), (1, block), (0, ())))
    return (*block, Layer("graph", nodes=nodes), MEAN, CLASSES)


def vgg16(*hidden: int, norm: bool = True) -> tuple[Layer, ...]:
    """VGG-16 (Simonyan and Zisserman 2015, configuration D), ``hidden`` widths of its dense layers."""
    blocks = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    parts = [(*conv(out, 3, pad=1, norm=norm) * count, Layer("pool", size=2)) for out, count in blocks]
    return (*itertools.chain(*parts), *mlp(*hidden))


def resnet(*blocks: int, bottleneck: bool = False, width: int = 64) -> tuple[Layer, ...]:
    """A ResNet for 32x32 images (He et al. 2016): ``width`` channels at first, doubled per stage.

    Args:
        blocks: of each stage.
        bottleneck: blocks of 1x1, 3x3 and 1x1 with four times the channels at the end, else two of 3x3.
    """
    ends = 4 if bottleneck else 1

    def block(out: int, stride: int, grown: bool) -> tuple[Layer, ...]:
        if bottleneck:
            path = (*_free(out, 1), RELU, *_free(out, 3, stride), RELU, *_free(4 * out, 1))
        else:
            path = (*_free(out, 3, stride), RELU, *_free(out, 3))
        past = _free(ends * out, 1, stride) if grown else ()
        return (Layer("graph", nodes=(((0, path), (0, past)),)), RELU)

    layers = [*_free(width, 3), RELU]
    for stage, count in enumerate(blocks):
        for k in range(count):
            first = k == 0
            layers += block(width * 2**stage, 2 if first and stage else 1, first and (stage > 0 or ends > 1))
    return (*layers, MEAN, CLASSES)


def resnet_of_depth(depth: int) -> tuple[Layer, ...]:
    """The ResNets of 6 n + 2 layers for CIFAR (He et al. 2016, section 4.2): 16, 32 and 64 channels.

    What is added past a block has no parameters.
    """
    layers = [*_free(16, 3), RELU]
    for out in (16, 32, 64):
        for k in range((depth - 2) // 6):
            stride = 2 if k == 0 and out > 16 else 1
            past = (Layer("skip", out=out, stride=stride),) if stride > 1 else ()
            path = (*_free(out, 3, stride), RELU, *_free(out, 3))
            layers += (Layer("graph", nodes=(((0, path), (0, past)),)), RELU)
    return (*layers, MEAN, CLASSES)


# Stages of MobileNetV2: factor of the inner channels, channels, blocks, stride of the first.
_INVERTED = (
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
)  # fmt: skip


def mobilenet_v2(width: float = 1.0) -> tuple[Layer, ...]:
    """MobileNetV2 (Sandler et al. 2018, table 2) with the strides of 32x32 images: no halving before stage 3.

    Args:
        width: multiplies all channels, which then are rounded to a multiple of 8.
    """

    def channels(count: int) -> int:
        whole = max(8, int(count * width + 4) // 8 * 8)
        return whole + 8 * (whole < 0.9 * count * width)

    now = channels(32)
    layers = [*_free(now, 3), RELU6]
    for factor, count, repeats, stride in _INVERTED:
        for k in range(repeats):
            inner, out = factor * now, channels(count)
            wide = (*_free(inner, 1), RELU6) if factor > 1 else ()
            each = _free(inner, 3, stride if k == 0 else 1, groups=0)
            path = (*wide, *each, RELU6, *_free(out, 1))
            same = out == now and (k > 0 or stride == 1)
            layers += (Layer("graph", nodes=(((0, path), (0, ())),)),) if same else path
            now = out
    return (*layers, *_free(max(1280, channels(1280)), 1), RELU6, MEAN, CLASSES)


def _free(out: int, size: int, stride: int = 1, groups: int = 1) -> tuple[Layer, ...]:
    """Convolution without a bias, which the batch norm after it has."""
    conv = Layer("conv", out=out, size=size, stride=stride, pad=size // 2, bias=False, groups=groups)
    return (conv, NORM)


Operation = Literal["none", "skip", "conv1", "conv3", "average"]


def nas_bench_201(edges: tuple[Operation, ...], cells: int = 5) -> tuple[Layer, ...]:
    """A network of NAS-Bench-201 (Dong and Yang 2020): stacked cells of 4 nodes, 16, 32 and 64 channels.

    Args:
        edges: operations of the edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3.
        cells: cells between two reductions.
    """

    def block(out: int, size: int, stride: int = 1) -> tuple[Layer, ...]:
        return (RELU, Layer("conv", out=out, size=size, stride=stride, pad=size // 2, bias=False), NORM)

    def operation(name: Operation, out: int) -> tuple[Layer, ...]:
        if name == "average":
            return (Layer("average", size=3, pad=1),)
        return {"skip": (), "conv1": block(out, 1), "conv3": block(out, 3)}[name]

    def cell(out: int) -> Layer:
        given = iter(edges)
        nodes = [[(source, next(given)) for source in range(node)] for node in (1, 2, 3)]
        return Layer(
            "graph",
            nodes=tuple(
                tuple((source, operation(name, out)) for source, name in node if name != "none")
                for node in nodes
            ),
        )

    def reduction(out: int) -> Layer:
        shrink = (Layer("average", size=2, stride=2), Layer("conv", out=out, size=1, bias=False))
        return Layer("graph", nodes=(((0, block(out, 3, stride=2) + block(out, 3)), (0, shrink)),))

    stem = (Layer("conv", out=16, size=3, pad=1, bias=False), NORM)
    stages = [[cell(out)] * cells for out in (16, 32, 64)]
    body = (*stages[0], reduction(32), *stages[1], reduction(64), *stages[2])
    return (*stem, *body, NORM, RELU, MEAN, CLASSES)
