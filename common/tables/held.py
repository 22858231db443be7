"""The optimizees of ``suite:held``, which nobody trains, tunes or chooses on: they stay as they are."""

from common.tables import networks as net
from common.tables.layers import Layer
from common.tables.problem import Problem

_BLOCK = (*net.conv(8, 3, pad=1), Layer("conv", out=8, size=3, pad=1))
_SKIP = (Layer("graph", nodes=(((0, _BLOCK), (0, ())),)), net.RELU)
_RESIDUAL = (*net.conv(8, 3, pad=1), *_SKIP, *_SKIP, net.MEAN, net.CLASSES)

HELD = (
    Problem(
        "mnist-layer-norm",
        "classifier",
        "mnist",
        (
            net.FLATTEN, Layer("dense", out=32), net.LAYER_NORM, net.RELU,
            Layer("dense", out=32), net.LAYER_NORM, net.RELU, net.CLASSES,
        ),
        note="784-32-32-10 ReLU with layer norm (Ba et al. 2016)",
    ),
    Problem(
        "digits-residual", "classifier", "digits", _RESIDUAL, note="two residual blocks of 3x3 convolutions"
    ),
    Problem(
        "digits-logistic", "classifier", "digits-odd", net.mlp(), note="logistic regression, even or odd"
    ),
    Problem(
        "digits-autoencoder",
        "classifier",
        "digits",
        net.mlp(32, 8, 32, activation=net.TANH),
        target="images",
        note="64-32-8-32-64 tanh, mean squared error",
    ),
    Problem(
        "recall-recurrent",
        "classifier",
        "recall",
        (Layer("recurrent", out=32), net.CLASSES),
        note="a recurrent net that names the first of 8 symbols (Elman 1990)",
    ),
    Problem(
        "text-tied",
        "classifier",
        "text",
        (Layer("embed", out=16), net.FLATTEN, Layer("dense", out=16), net.TANH, Layer("tied")),
        matrix=("layer_1/w",),
        note="embedding, context of 4, softmax tied to it (Press and Wolf 2017) on a drawn text",
    ),
    Problem(
        "digits-shift",
        "classifier",
        "digits-shifted",
        net.mlp(30, 20),
        note="digits-mlp on images shifted by up to a pixel",
    ),
)  # fmt: skip
