"""Layers of optimizees as plain data, and the parameters they need.

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
Activation = Literal["relu", "relu6", "sigmoid", "tanh", "gelu"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        kind: ``dense`` (out), ``conv`` (out, size, stride, pad, bias, groups), ``norm`` (batch norm, eps
            1e-5), ``pool`` (maximum over size x size, stride size), ``average`` (size, stride, pad; padding
            is not counted), ``mean`` (over all pixels), ``skip`` (out, stride: every stride-th pixel, and
            channels of zeros), ``graph`` (nodes), or a layer without settings; ``gelu`` is
            x Phi(x) with the error function (Hendrycks and Gimpel 2016). On vectors ``layer_norm`` (eps
            1e-5). On sequences, images [length, 1, symbols], ``embed`` (out), one-hot symbols times a matrix
            E, and ``recurrent`` (out): h <- tanh(x w + h u + b) from 0, the last h. ``tied``: x E^T + b with
            the E of ``embed``, which is the first layer.
        out: units or channels; 0 stands for the number of classes.
        groups: the channels are in so many parts that do not see each other; 0 is one part a channel.
        nodes: of a graph: node 0 is its input, every other the sum of its edges (source node, layers);
            the last node is the output.
    """

    kind: (
        Literal["dense", "conv", "norm", "pool", "average"]
        | Literal["flatten", "mean", "skip", "graph"]
        | Literal["layer_norm", "embed", "recurrent", "tied"]
        | Activation
    )
    out: int = 0
    size: int = 0
    stride: int = 1
    pad: int = 0
    bias: bool = True
    groups: int = 1
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
    """Name, shape, and mean and standard deviation of the normal initial values of one tensor.

    ``matrices`` is how many of them lie along its last axis, 0 where rules see none: a vector, or kernels
    that see one channel each.
    """

    name: str
    shape: Shape
    std: float
    mean: float = 0.0
    matrices: int = 0


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

    def add(part: str, size: Shape, std: float, mean: float = 0.0, matrices: int | None = None) -> None:
        std, matrices = 0.01 if init == "normal" else std, len(size) > 1 if matrices is None else matrices
        found.append(ParameterSpec(f"layer_{number}/{part}", size, std, mean, int(matrices)))

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
            groups = layer.groups or shape[2]
            kernel = (layer.size, layer.size, shape[2] // groups)
            matrices = groups if kernel[2] > 1 or groups == 1 else 0
            add("w", (*kernel, out), math.sqrt(2.0 / math.prod(kernel)), matrices=matrices)
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
        elif layer.kind == "skip":
            shape = (*(-(-side // layer.stride) for side in shape[:2]), out)
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
