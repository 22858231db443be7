"""The table of optimizees: layers or a function, batch, initial values and data, with no framework.

A row is declarative; ``Instance`` pairs it with a seed and a data split and hands out initial
parameters and batches as NumPy arrays, so both backends start and feed the same numbers.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from common.data import datasets
from common.data.datasets import Split
from common.errors import L2OError
from common.registry import Registry
from common.rng import derived_seed, rng
from common.tables import networks as net
from common.tables.held import HELD
from common.tables.layers import Init, Layer, ParameterSpec, specs
from common.tables.original import LASSO, ORIGINAL, QUADRATIC, RASTRIGIN, SQUARE_COS, function
from common.tables.problem import Problem


def _noisy(condition: int) -> Problem:
    note = f"||A x - b - 0.1 n_t||^2, condition {condition:,}, n_t drawn anew (cf. Zhang et al. 2019)"
    return function(f"quadratic-k{condition}", note, condition=float(condition), noise=0.1)


def _mnist(name: str, network: tuple[Layer, ...], note: str, init: Init = "he") -> list[Problem]:
    """A row on MNIST and its twin on Fashion-MNIST."""
    return [
        Problem(f"{short}-{name}", "classifier", dataset, network, init, note=note)
        for short, dataset in (("mnist", "mnist"), ("fashion", "fashion-mnist"))
    ]


def _cifar(name: str, network: tuple[Layer, ...], note: str, **fields: Any) -> Problem:
    return Problem(name, "classifier", "cifar10", network, note=note, **fields)


def _large(name: str, network: tuple[Layer, ...], note: str) -> Problem:
    """With the images as such networks are trained on: cut out, mirrored, scaled by channels."""
    return _cifar(name, network, note, crop=4, flip=True, channels=True)


_POOL = Layer("pool", size=2)
_DIGITS_CONV = (*net.conv(8, 3, pad=1), _POOL, *net.conv(16, 3, pad=1), _POOL, *net.mlp())
_SMALL_CONV = (*net.conv(6, 3), _POOL, *net.conv(12, 3), _POOL, *net.mlp())
# An architecture of the benchmark with all of its operations but none.
_NAS = net.nas_bench_201(("conv3", "conv1", "conv3", "skip", "average", "conv3"))

_RESNET = "ResNet-{} for 32x32 images (He et al. 2016)"
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

PROBLEMS: Registry[Problem] = Registry(
    "problem",
    {
        row.name: row
        for row in (
            QUADRATIC,
            LASSO,
            RASTRIGIN,
            SQUARE_COS,
            *(_noisy(condition) for condition in (10, 100, 1000)),
            Problem(
                name="digits-mlp",
                kind="classifier",
                dataset="digits",
                layers=net.mlp(30, 20),
                note="64-30-20-10 ReLU on the embedded 8x8 digits",
            ),
            Problem(
                "digits-conv",
                "classifier",
                "digits",
                _DIGITS_CONV,
                note="two 3x3 convolutions with pooling on the embedded 8x8 digits",
            ),
            *_mnist("mlp", net.mlp(30, 20), "784-30-20-10 ReLU (Zheng et al. 2022)"),
            *_mnist("mlp-iclr", net.mlp(30, 20), "the same from N(0, 0.01^2), as its code starts", "normal"),
            *_mnist("mlp-deep", net.mlp(50, 20, 20, 12), "784-50-20-20-12-10 ReLU (Zheng et al. 2022)"),
            *_mnist("sigmoid", net.mlp(20, activation=net.SIGMOID), "784-20-10 (Andrychowicz et al. 2016)"),
            *_mnist("relu", net.mlp(20), "784-20-10 ReLU (Andrychowicz et al. 2016)"),
            *_mnist("sigmoid-2", net.mlp(20, 20, activation=net.SIGMOID), "784-20-20-10 (Lv et al. 2017)"),
            *_mnist("tanh-2", net.mlp(20, 20, activation=net.TANH), "784-20-20-10 tanh"),
            *_mnist("wide", net.mlp(128, 64, activation=net.GELU), "784-128-64-10 GELU"),
            *_mnist("linear", net.mlp(), "softmax regression, 784-10: convex"),
            *_mnist("conv", net.conv_net(1), "two convolutions with batch norm (Chen et al. 2020)"),
            _cifar("cifar-mlp", net.mlp(64, 32), "3072-64-32-10 ReLU"),
            _cifar("cifar-conv", net.conv_net(2), "as mnist-conv, stride 2 (Chen et al. 2020)"),
            _cifar(
                "cifar-small-conv",
                _SMALL_CONV,
                "two 3x3 convolutions, half of the classes each (Zheng et al. 2022)",
                class_halves=True,
            ),
            _cifar("lenet", net.lenet(), "LeNet-5 with ReLU (LeCun et al. 1998)"),
            _large("vgg-16", net.vgg16(), "VGG-16 with batch norm (Simonyan and Zisserman 2015)"),
            *(
                _large(
                    f"resnet-{depth}",
                    net.resnet_of_depth(depth),
                    f"ResNet-{depth} for CIFAR (He et al. 2016)",
                )
                for depth in (20, 56)
            ),
            *(
                _large(f"resnet-{name}", net.resnet(*blocks, bottleneck=name >= 50), _RESNET.format(name))
                for name, blocks in _BLOCKS.items()
            ),
            _large("mobilenet-v2", net.mobilenet_v2(), "MobileNetV2 for 32x32 images (Sandler et al. 2018)"),
            _large("mobilenet-v2-0.25", net.mobilenet_v2(0.25), "MobileNetV2 with a quarter of the channels"),
            *HELD,
            *ORIGINAL,
            _cifar("nas", _NAS, "a network of NAS-Bench-201, 3 x 5 cells (Dong and Yang 2020)"),
        )
    },
)


def problem_row(name: str, dataset: str = "") -> Problem:
    """The row called ``name``, on another data set if one is given (``datasets.instead_of``)."""
    row = PROBLEMS[name]
    if not dataset:
        return row
    if row.kind == "function":
        raise L2OError(f"--dataset {dataset}: {name} is a function and has no data; leave --dataset out")
    return dataclasses.replace(row, dataset=datasets.instead_of(row.dataset, dataset))


def parameter_specs(problem: Problem) -> tuple[ParameterSpec, ...]:
    """The parameter tensors of a problem, in canonical order."""
    if problem.kind == "function":
        rows = [("x", problem)] if not problem.parts else []
        rows += [(f"problem_{k}/x", part) for k, (_, part) in enumerate(problem.parts)]
        return tuple(ParameterSpec(name, (r.batch_size, r.dims), r.std, r.mean) for name, r in rows)
    shape = datasets.source(problem.dataset).image_shape
    return tuple(specs(problem.layers, shape, problem.classes(), problem.init))


def coordinate_table(shapes: Iterable[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """For every coordinate of the flat vector: number of its tensor, place within the tensor (i4 [N])."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    tensor = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    place = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    return tensor, place


@dataclasses.dataclass(frozen=True)
class Instance:
    """A problem with everything random about it fixed: initial values, data order, constants.

    Args:
        problem: a row of ``PROBLEMS``.
        seed: fixes initial values, batch order and synthetic constants.
        split: part of the data (``common.data.datasets.Split``).
        batch_size: mini-batch size; 0 takes the problem's own.
        data_dir: where data sets are looked for.
        start_scale: r > 0 multiplies every initial value by exp(U(-r, r)).
    """

    problem: Problem
    seed: int
    split: Split = "meta_train"
    batch_size: int = 0
    data_dir: str = ""
    start_scale: float = 0.0

    def initial_parameters(self) -> dict[str, np.ndarray]:
        """Parameter name -> float64 array of initial values, in canonical order and layout."""
        values = {}
        for index, spec in enumerate(parameter_specs(self.problem)):
            values[spec.name] = (
                rng(self.seed, "theta", index).normal(spec.mean, spec.std, spec.shape)
                if spec.std
                else np.full(spec.shape, spec.mean)
            )
        return self.scaled(values)

    def scaled(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Initial values by name, each times its exp(U(-r, r))."""
        if not self.start_scale:
            return dict(values)
        return {
            name: array
            * np.exp(self.start_scale * rng(self.seed, "start_scale", k).uniform(-1, 1, array.shape))
            for k, (name, array) in enumerate(values.items())
        }

    def constants(self) -> tuple[np.ndarray, ...]:
        """A [batch, n, n], b [batch, n] and c [batch, n] of a function, or of each part of a sum in turn."""
        if self.problem.parts:
            parts = enumerate(part for _, part in self.problem.parts)
            each = [Instance(part, derived_seed(self.seed, "part", k)).constants() for k, part in parts]
            return tuple(array for arrays in each for array in arrays)
        batch, dims = self.problem.batch_size, self.problem.dims
        generator = rng(0 if self.problem.fixed else self.seed, "quadratic")
        a, b, c = (generator.normal(size=(batch, dims, *more)) for more in ((dims,), (), ()))
        if self.problem.identity:
            a, b = np.broadcast_to(np.eye(dims), a.shape), np.zeros_like(b)
        if self.problem.condition:
            s = self.problem.condition ** np.linspace(0.0, -0.5, dims)
            s *= np.sqrt(dims / np.square(s).sum())
            v = generator.normal(size=(batch, dims, dims))
            a = (_rotations(a) * s) @ _rotations(v).swapaxes(1, 2)
        return a, b, c

    def noise(self, step: int) -> np.ndarray | None:
        """What ``step`` (from 0) adds to b, [batch, n]; None where a problem has no noise."""
        row = self.problem
        if not row.noise:
            return None
        return row.noise * rng(self.seed, "noise", step).normal(size=(row.batch_size, row.dims))

    def whole(self) -> datasets.Dataset:
        """The data set, with the scale that the problem's row asks for."""
        whole = datasets.load(self.problem.dataset, self.data_dir)
        return whole.by_channels if self.problem.channels else whole

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """All of the split: images [n, h, w, c], normalised, float32, and labels [n] int64."""
        images, labels = self.stored()
        return self.whole().normalised(images), labels

    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        """All of the split: images [n, h, w, c] as they are stored, and labels [n] int64."""
        whole = datasets.load(self.problem.dataset, self.data_dir)
        return whole.split(self.split, self.problem.class_halves)

    def varied(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The mini-batch at ``step`` (from 0) of a row that varies its images: these as stored, and labels.

        What befalls an image is drawn anew at every step, from the seed and the step alone.
        """
        row, rows, (images, labels) = self.problem, self.batch_indices(step), self.stored()
        chosen, draw = images[rows], rng(self.seed, "varied", step)
        count, height, width, _ = chosen.shape
        padded = np.pad(chosen, ((0, 0), *((row.crop, row.crop),) * 2, (0, 0)))
        top, left = draw.integers(0, 2 * row.crop + 1, (2, count, 1))
        across = np.broadcast_to(np.arange(width), (count, width))
        mirrored = row.flip & (draw.integers(0, 2, (count, 1)) > 0)
        across = left + np.where(mirrored, across[:, ::-1], across)
        down = top + np.arange(height)
        each = np.arange(count)[:, None, None]
        return padded[each, down[:, :, None], across[:, None, :]], labels[rows]

    def batch_indices(self, step: int) -> np.ndarray | None:
        """Row numbers of the mini-batch at ``step`` (from 0); None where the data has no batches.

        Every pass over the data is a fresh permutation; an incomplete last batch is dropped.
        """
        if self.problem.kind == "function":
            return None
        rows, size = self._sizes()
        pass_, place = divmod(step, rows // size)
        return _permutation(self.seed, pass_, rows)[place * size : (place + 1) * size]

    def steps(self, passes: int, accumulate: int = 1) -> int:
        """Steps, of ``accumulate`` mini-batches each, of so many passes over the data.

        Raises:
            L2OError: there are no data to pass over.
        """
        if self.problem.kind == "function":
            raise L2OError(
                f"--passes: {self.problem.name} is a function and has no data; give --steps instead"
            )
        rows, size = self._sizes()
        return max(1, passes * (rows // size) // accumulate)

    def _sizes(self) -> tuple[int, int]:
        """Images of the split, and of a mini-batch."""
        rows = len(self.stored()[1])
        return rows, min(self.batch_size or self.problem.batch_size, rows)


def _rotations(normal: np.ndarray) -> np.ndarray:
    """Orthogonal matrices [batch, n, n], uniform, from normal ones (Mezzadri 2007)."""
    q, r = np.linalg.qr(normal)
    return q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]


_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, pass_: int, rows: int) -> np.ndarray:
    key = (seed, pass_, rows)
    if key not in _PERMUTATIONS:
        if len(_PERMUTATIONS) >= 8:
            _PERMUTATIONS.pop(next(iter(_PERMUTATIONS)))
        _PERMUTATIONS[key] = rng(seed, "batches", pass_).permutation(rows)
    return _PERMUTATIONS[key]
