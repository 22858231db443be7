"""The table of optimizees: layers, loss, batch, initial values and data, with no framework.

A row is declarative; ``Instance`` pairs it with a seed and a data split and hands out initial
parameters and batches as NumPy arrays, so both backends start and feed the same numbers. Canonical
layout: dense ``w [in, out]``, conv ``w [kh, kw, in, out]``, images NHWC, flattened in C order.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from common import datasets
from common.registry import Registry
from common.rng import rng

Split = Literal["meta_train", "evaluation", "test"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: ``dense`` (out), ``conv`` (out, size, stride, pad), ``pool`` (size), ``relu``..."""

    kind: Literal["dense", "conv", "pool", "relu", "flatten"]
    out: int = 0
    size: int = 0
    stride: int = 1
    pad: int = 0


@dataclasses.dataclass(frozen=True)
class Problem:
    """One row of the table.

    Attributes:
        kind: ``classifier`` (layers on a data set, mean cross-entropy) or ``quadratic``.
        dataset: a name of ``common.datasets``; empty for synthetic functions.
        dims: number of dimensions of a synthetic function.
        batch_size: default mini-batch size.
    """

    name: str
    kind: Literal["classifier", "quadratic"]
    dataset: str = ""
    layers: tuple[Layer, ...] = ()
    dims: int = 0
    batch_size: int = 128
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ParameterSpec:
    """Name, shape and standard deviation of the normal initial values of one parameter tensor."""

    name: str
    shape: tuple[int, ...]
    std: float


def _mlp(*widths: int) -> tuple[Layer, ...]:
    layers: list[Layer] = [Layer("flatten")]
    for width in widths[:-1]:
        layers += [Layer("dense", out=width), Layer("relu")]
    return (*layers, Layer("dense", out=widths[-1]))


def _rows(*problems: Problem) -> dict[str, Problem]:
    return {problem.name: problem for problem in problems}


PROBLEMS: Registry[Problem] = Registry(
    "problem",
    _rows(
        Problem(
            name="quadratic",
            kind="quadratic",
            dims=10,
            note="mean over 128 of ||W x - y||^2, W, y ~ N(0, 1) (Andrychowicz et al. 2016)",
        ),
        Problem(
            name="digits-mlp",
            kind="classifier",
            dataset="digits",
            layers=_mlp(30, 20, 10),
            note="64-30-20-10 ReLU on the embedded 8x8 digits",
        ),
        Problem(
            name="digits-conv",
            kind="classifier",
            dataset="digits",
            layers=(
                Layer("conv", out=8, size=3, pad=1),
                Layer("relu"),
                Layer("pool", size=2),
                Layer("conv", out=16, size=3, pad=1),
                Layer("relu"),
                Layer("pool", size=2),
                Layer("flatten"),
                Layer("dense", out=10),
            ),
            note="two 3x3 convolutions with pooling on the embedded 8x8 digits",
        ),
        Problem(
            name="mnist-mlp",
            kind="classifier",
            dataset="mnist",
            layers=_mlp(30, 20, 10),
            note="784-30-20-10 ReLU (Zheng et al. 2022)",
        ),
    ),
)


def parameter_specs(problem: Problem) -> tuple[ParameterSpec, ...]:
    """The parameter tensors of a problem, in canonical order.

    Classifiers use He's initial values: normal with sqrt(2 / fan_in), biases 0 (He et al. 2015).
    """
    if problem.kind == "quadratic":
        return (ParameterSpec("x", (problem.batch_size, problem.dims), 0.01),)
    height, width, channels = datasets.DATASETS[problem.dataset].image_shape
    features = 0
    specs: list[ParameterSpec] = []
    for layer in problem.layers:
        index = len(specs) // 2
        if layer.kind == "flatten":
            features = height * width * channels
        elif layer.kind == "dense":
            std = math.sqrt(2.0 / features)
            specs.append(ParameterSpec(f"layer_{index}/w", (features, layer.out), std))
            specs.append(ParameterSpec(f"layer_{index}/b", (layer.out,), 0.0))
            features = layer.out
        elif layer.kind == "conv":
            shape = (layer.size, layer.size, channels, layer.out)
            std = math.sqrt(2.0 / (layer.size * layer.size * channels))
            specs.append(ParameterSpec(f"layer_{index}/w", shape, std))
            specs.append(ParameterSpec(f"layer_{index}/b", (layer.out,), 0.0))
            height = (height + 2 * layer.pad - layer.size) // layer.stride + 1
            width = (width + 2 * layer.pad - layer.size) // layer.stride + 1
            channels = layer.out
        elif layer.kind == "pool":
            height, width = height // layer.size, width // layer.size
    return tuple(specs)


@dataclasses.dataclass(frozen=True)
class Instance:
    """A problem with everything random about it fixed: initial values, data order, constants.

    Args:
        problem: a row of ``PROBLEMS``.
        seed: fixes initial values, batch order and synthetic constants.
        split: ``meta_train`` is half A of the training images, ``evaluation`` half B, ``test`` the
            test images.
        batch_size: mini-batch size; 0 takes the problem's own.
        data_dir: where data sets are looked for.
    """

    problem: Problem
    seed: int
    split: Split = "meta_train"
    batch_size: int = 0
    data_dir: str = ""

    def initial_parameters(self) -> dict[str, np.ndarray]:
        """Parameter name -> float64 array of initial values, in canonical order and layout."""
        return {
            spec.name: rng(self.seed, "theta", index).normal(0.0, spec.std, spec.shape)
            if spec.std
            else np.zeros(spec.shape)
            for index, spec in enumerate(parameter_specs(self.problem))
        }

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """All of the split: (images [n, h, w, c] float32, labels [n] int64); for a quadratic its (W, y)."""
        if self.problem.kind == "quadratic":
            batch, dims = self.problem.batch_size, self.problem.dims
            generator = rng(self.seed, "quadratic")
            return generator.normal(size=(batch, dims, dims)), generator.normal(size=(batch, dims))
        return datasets.load(self.problem.dataset, self.data_dir).split(self.split)

    def batch_indices(self, step: int) -> np.ndarray | None:
        """Row numbers of the mini-batch at ``step`` (from 0); None where the data has no batches.

        Every pass over the data is a fresh permutation; an incomplete last batch is dropped.
        """
        if self.problem.kind == "quadratic":
            return None
        rows = len(self.data()[1])
        size = min(self.batch_size or self.problem.batch_size, rows)
        pass_, place = divmod(step, rows // size)
        return _permutation(self.seed, pass_, rows)[place * size : (place + 1) * size]


_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, pass_: int, rows: int) -> np.ndarray:
    key = (seed, pass_, rows)
    if key not in _PERMUTATIONS:
        if len(_PERMUTATIONS) >= 8:
            _PERMUTATIONS.pop(next(iter(_PERMUTATIONS)))
        _PERMUTATIONS[key] = rng(seed, "batches", pass_).permutation(rows)
    return _PERMUTATIONS[key]
