"""Layers of optimizees as plain data, the networks built from them, and the parameters they need.

Canonical layout: dense ``w [in, out]``, conv ``w [kh, kw, in, out]``, images NHWC, flattened in C order;
padding is explicit and symmetric. A layer with parameters is ``layer_k``, k counted in reading order.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal

from common.errors import L2OError

Shape = tuple[int, ...]
Init = Literal["he", "normal"]
Activation = Literal["relu", "sigmoid", "tanh", "gelu"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        kind: ``dense`` (out), ``conv`` (out, size, stride, pad, bias), ``norm`` (batch norm, eps 1e-5),
            ``pool`` (maximum over size x size, stride size), ``average`` (size, stride, pad; padding is not
            counted), ``mean`` (over all pixels), ``graph`` (nodes), or a layer without settings; ``gelu`` is
            x Phi(x) with the error function (Hendrycks and Gimpel 2016). On vectors ``layer_norm`` (eps
            1e-5). On sequences, images [length, 1, symbols], ``embed`` (out), one-hot symbols times a matrix
            E, and ``recurrent`` (out): h <- tanh(x w + h u + b) from 0, the last h. ``tied``: x E^T + b with
            the E of ``embed``, which is the first layer.
        out: units or channels; 0 stands for the number of classes.
        nodes: of a graph: node 0 is its input, every other the sum of its edges (source node, layers);
            the last node is the output.
    """

    kind: (
        Literal["dense", "conv", "norm", "pool", "average", "flatten", "mean", "graph"]
        | Literal["layer_norm", "embed", "recurrent", "tied"]
        | Activation
    )
    out: int = 0
    size: int = 0
    stride: int = 1
    pad: int = 0
    bias: bool = True
    nodes: tuple[tuple[tuple[int, tuple["Layer", ...]], ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, JSON-ready."""
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        row = {name: getattr(self, name) for name in fields if getattr(self, name) != fields[name]}
        if self.nodes:
            row["nodes"] = [
                [[source, [layer.to_dict() for layer in layers]] for source, layers in node]
                for node in self.nodes
            ]
        return row


@dataclasses.dataclass(frozen=True)
class ParameterSpec:
    """Name, shape, and mean and standard deviation of the normal initial values of one tensor."""

    name: str
    shape: Shape
    std: float
    mean: float = 0.0


def specs(layers: tuple[Layer, ...], shape: Shape, classes: int, init: Init = "he") -> list[ParameterSpec]:
    """The parameter tensors of a network on images of ``shape`` [h, w, c], in canonical order.

    ``he``: normal with sqrt(2 / fan_in), biases 0 (He et al. 2015); ``normal``: N(0, 0.01^2), biases too (the
    ICLR 2022 code).
    """
    return list(_specs(layers, shape, classes, init, itertools.count())[0])


def _specs(
    layers: tuple[Layer, ...], shape: Shape, classes: int, init: Init, numbers: Iterator[int]
) -> tuple[list[ParameterSpec], Shape]:
    found: list[ParameterSpec] = []

    def add(part: str, size: Shape, std: float, mean: float = 0.0) -> None:
        std = 0.01 if init == "normal" else std
        found.append(ParameterSpec(f"layer_{number}/{part}", size, std, mean))

    for layer in layers:
        out = layer.out or classes
        if layer.kind == "flatten":
            shape = (math.prod(shape),)
        elif layer.kind == "mean":
            shape = shape[-1:]
        elif layer.kind == "dense":
            number = next(numbers)
            add("w", (*shape, out), math.sqrt(2.0 / shape[0]))
            add("b", (out,), 0.0)
            shape = (out,)
        elif layer.kind == "conv":
            number = next(numbers)
            kernel = (layer.size, layer.size, shape[2])
            add("w", (*kernel, out), math.sqrt(2.0 / math.prod(kernel)))
            if layer.bias:
                add("b", (out,), 0.0)
            shape = (*_slid(layer, shape), out)
        elif layer.kind == "norm":
            number = next(numbers)
            add("gamma", shape[-1:], 0.0, 1.0)
            add("beta", shape[-1:], 0.0)
        elif layer.kind == "layer_norm":
            number = next(numbers)
            add("scale", shape[-1:], 0.0, 1.0)
            add("shift", shape[-1:], 0.0)
        elif layer.kind in ("embed", "recurrent"):
            number = next(numbers)
            add("w", (shape[-1], out), out**-0.5)
            if layer.kind == "recurrent":
                add("u", (out, out), out**-0.5)
                add("b", (out,), 0.0)
            shape = (out,) if layer.kind == "recurrent" else (*shape[:-1], out)
        elif layer.kind == "tied":
            number = next(numbers)
            add("b", (out,), 0.0)
            shape = (out,)
        elif layer.kind == "pool":
            shape = (shape[0] // layer.size, shape[1] // layer.size, shape[2])
        elif layer.kind == "average":
            shape = (*_slid(layer, shape), shape[2])
        elif layer.kind == "graph":
            known = [shape]
            for node in layer.nodes:
                ends = []
                for source, inner in node:
                    more, end = _specs(inner, known[source], classes, init, numbers)
                    found += more
                    ends.append(end)
                if any(end != ends[0] for end in ends):
                    raise L2OError(
                        f"expected images whose sides can be halved, got {shape[0]}x{shape[1]} where the "
                        "network does so; take others (--dataset) or another problem"
                    )
                known.append(ends[0] if ends else shape)  # a node without edges is 0
            shape = known[-1]
        if min(shape) < 1:
            raise L2OError(
                f"expected images that leave pixels after every layer of the network, got none after "
                f"{layer.kind} {layer.size}x{layer.size}; take larger images (--dataset) or another problem"
            )
    return found, shape


def _slid(layer: Layer, shape: Shape) -> Shape:
    return tuple((side + 2 * layer.pad - layer.size) // layer.stride + 1 for side in shape[:2])


RELU, SIGMOID, TANH, GELU = Layer("relu"), Layer("sigmoid"), Layer("tanh"), Layer("gelu")
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


def vgg16(*hidden: int, norm: bool = True) -> tuple[Layer, ...]:
    """VGG-16 (Simonyan and Zisserman 2015, configuration D), ``hidden`` widths of its dense layers."""
    blocks = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    parts = [(*conv(out, 3, pad=1, norm=norm) * count, Layer("pool", size=2)) for out, count in blocks]
    return (*itertools.chain(*parts), *mlp(*hidden))


def resnet(*blocks: int) -> tuple[Layer, ...]:
    """A ResNet of basic blocks for 32x32 images (He et al. 2016): 64 channels at first, doubled per stage."""

    def block(out: int, stride: int, grown: bool) -> tuple[Layer, ...]:
        first = Layer("conv", out=out, size=3, stride=stride, pad=1, bias=False)
        path = (first, NORM, RELU, Layer("conv", out=out, size=3, pad=1, bias=False), NORM)
        past = (Layer("conv", out=out, size=1, stride=stride, bias=False), NORM) if grown else ()
        return (Layer("graph", nodes=(((0, path), (0, past)),)), RELU)

    layers = [Layer("conv", out=64, size=3, pad=1, bias=False), NORM, RELU]
    for stage, count in enumerate(blocks):
        for k in range(count):
            new = k == 0 and stage > 0
            layers += block(64 * 2**stage, 2 if new else 1, new)
    return (*layers, MEAN, CLASSES)


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
