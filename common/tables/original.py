"""Problems of the codes that this project follows: functions, and variants of networks as those have them.

"The TF code" is that of Chen et al. 2020 and 2022, which goes back to that of Andrychowicz et al. 2016.
"""

import dataclasses
from typing import Any

from common.tables import networks as net
from common.tables.layers import Layer
from common.tables.problem import Problem


def function(name: str, note: str, **fields: Any) -> Problem:
    """A row of functions, of 10 numbers if nothing else is said."""
    return Problem(**{"name": name, "kind": "function", "dims": 10, "note": note} | fields)


QUADRATIC = function("quadratic", "||A x - b||^2 (Andrychowicz et al. 2016)")
LASSO = function("lasso", "0.5 ||A x - b||^2 + 0.005 |x|_1 (Chen et al. 2022)", square=0.5, lasso=0.005)
RASTRIGIN = function(
    "rastrigin",
    "0.5 ||A x - b||^2 - 10 c.cos(2 pi x) + 10 n (Cao et al. 2019), from N(0, 1)",
    square=0.5,
    cosine=10.0,
    std=1.0,
)
SQUARE_COS = function("square-cos", "||A x - b||^2 - 10 c.cos(2 pi x) + 10 n, from N(0, 0.01^2)", cosine=10.0)
_SIMPLE = function(
    "simple", "x^2 from 1 (Andrychowicz et al. 2016, code)", dims=1, batch_size=1, identity=True,
    mean=1.0, std=0.0,
)  # fmt: skip


def _sum(name: str, note: str, *parts: Problem) -> Problem:
    return function(name, note, parts=tuple((1.0, part) for part in parts))


def _in_the_plane(row: Problem) -> Problem:
    note = f"{row.note.partition(' (')[0]} with n = 2, as the TF code has it"
    return dataclasses.replace(row, name=f"{row.name}-2d", dims=2, note=note)


def _conv(name: str, note: str, layers: tuple[Layer, ...], **fields: Any) -> Problem:
    return Problem(name, "classifier", "cifar10", layers, note=note, **fields)


ORIGINAL = (
    _SIMPLE,
    _sum("simple-multi", "x_0^2 + x_1^2, a tensor each, from 1 (the same)", _SIMPLE, _SIMPLE),
    _sum(
        "ensemble",
        "quadratic + lasso + rastrigin, each with its own x (cf. the same)",
        QUADRATIC,
        LASSO,
        RASTRIGIN,
    ),
    *map(_in_the_plane, (LASSO, RASTRIGIN, SQUARE_COS)),
    dataclasses.replace(
        LASSO,
        name="lasso-fixed",
        fixed=True,
        note="lasso with the same A and b for every seed (Chen et al. 2022)",
    ),
    _conv(
        "lenet-sigmoid",
        "LeNet-5 with batch norm before each sigmoid, from N(0, 0.01^2), as the TF code has it",
        net.lenet_sigmoid(),
        init="normal",
    ),
    _conv("vgg-16-plain", "VGG-16 without batch norm, as the TF code has it", net.vgg16(norm=False)),
    _conv(
        "cifar-conv-3",
        "three 5x5x16 convolutions and a dense layer of 32 with batch norm (Andrychowicz et al. 2016, code)",
        net.conv_3(),
        init="normal",
    ),
    _conv(
        "nas-small",
        "four convolutions in a small graph of three nodes, as the TF code has it",
        net.nas_small(),
    ),
    _conv(
        "resnet-18-halves",
        "ResNet-18, half of the classes each (Zheng et al. 2022)",
        net.resnet(2, 2, 2, 2),
        class_halves=True,
    ),
)
