"""A row of the table of optimizees."""

import dataclasses
import math
from typing import Any, Literal

from common.data import datasets
from common.tables.layers import Init, Layer


@dataclasses.dataclass(frozen=True)
class Problem:
    """One row of the table.

    Attributes:
        kind: ``classifier`` (layers on a data set, mean cross-entropy or what ``target`` says) or
            ``function``: the mean over a batch
            of square ||A x - b||^2 + lasso |x|_1 + cosine (n - c.cos(2 pi x)), A, b, c ~ N(0, 1), one x [n]
            per row of the batch; or a weighted sum of such (``parts``).
        parts: weight and function of each term of a sum, whose x is the tensor ``problem_k/x``.
        identity: A is the identity and b 0.
        fixed: A, b and c are the same whatever the seed.
        condition: 0, or the condition number of A^T A: A = U diag(s) V^T with random rotations U, V and s
            log-spaced, |s|^2 = n.
        noise: standard deviation of what is added to b, drawn anew at every step, so that the gradient's
            noise has a covariance proportional to the Hessian (Zhang et al. 2019).
        dataset: a name ``common.data.datasets`` knows; empty for functions.
        init: initial values, ``he`` or ``normal`` (``common.tables.layers.specs``).
        class_halves: meta-train on the first half of the classes, evaluate on the second.
        dims: n of a function; mean, std: of its x_0, which is normal.
        batch_size: default mini-batch size.
        crop: training images get so many black pixels at every side and are cut out of that anywhere.
        flip: half of the training images are mirrored, left to right.
        channels: images have mean 0 and deviation 1 in every channel, over the training images.
        target: what a network is to give: the ``labels``, or the ``images`` it sees, by their mean squared
            error.
        smoothing: share of every label that is spread over all classes, in training.
        bfloat16: matrix products and convolutions of the training are computed in bfloat16.
        matrix: names of the parameters that rules see as matrices, rows along the last axis; None for all
            weights of layers. A function's x [batch, n] is no layer.
    """

    name: str
    kind: Literal["classifier", "function"]
    dataset: str = ""
    layers: tuple[Layer, ...] = ()
    init: Init = "he"
    class_halves: bool = False
    dims: int = 0
    std: float = 0.01
    mean: float = 0.0
    square: float = 1.0
    lasso: float = 0.0
    cosine: float = 0.0
    condition: float = 0.0
    noise: float = 0.0
    identity: bool = False
    fixed: bool = False
    parts: tuple[tuple[float, "Problem"], ...] = ()
    batch_size: int = 128
    crop: int = 0
    flip: bool = False
    channels: bool = False
    note: str = ""
    target: Literal["labels", "images"] = "labels"
    matrix: tuple[str, ...] | None = None
    smoothing: float = 0.0
    bfloat16: bool = False

    @property
    def varied(self) -> bool:
        """Whether training images are drawn anew at every pass."""
        return bool(self.crop or self.flip)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready data."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        row |= {"layers": [layer.to_dict() for layer in self.layers]}
        return row | {"parts": [[weight, part.to_dict()] for weight, part in self.parts]}

    def batched(self, batch_size: int) -> "Problem":
        """A function with another size of its batch."""
        parts = tuple((weight, part.batched(batch_size)) for weight, part in self.parts)
        return dataclasses.replace(self, batch_size=batch_size, parts=parts)

    def classes(self) -> int:
        """Number of classes the network tells apart, or of pixels it gives; 0 for a function."""
        if self.kind == "function":
            return 0
        if self.target == "images":
            return math.prod(datasets.source(self.dataset).image_shape)
        return datasets.source(self.dataset).num_classes // (2 if self.class_halves else 1)
