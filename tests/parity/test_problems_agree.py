"""Every optimizee in both backends: the same loss, gradient, running values and accuracy in float64."""

import math

import numpy as np
import pytest

from common.tables.layers import Layer
from common.tables.networks import RELU6
from common.tables.problems import PROBLEMS, parameter_specs, problem_row
from tests.parity.backends import close, tasks, tf, tf_impl, torch, torch_impl

by_torch, by_tf = (backend.problems.tasks.value_and_gradient for backend in (torch_impl, tf_impl))
SIZES = {name: sum(math.prod(spec.shape) for spec in parameter_specs(row)) for name, row in PROBLEMS.items()}
LARGEST = 12_000_000  # above it are more of the same blocks
DEEP = [name for name, size in SIZES.items() if 200_000 < size < LARGEST]
EMBEDDED = ("", "digits", "digits-shifted", "digits-odd", "recall", "text")


def pair(name: str, batch_size: int = 6):
    """The same instance in torch and in TensorFlow, on data that need no file."""
    row = PROBLEMS[name]
    return tasks(problem_row(name, "" if row.dataset in EMBEDDED else "synthetic"), 3, batch_size)


@pytest.mark.parametrize(
    ("name", "steps"),
    [pytest.param(name, 1, marks=pytest.mark.slow) for name in DEEP]
    + [
        pytest.param(name, 2, marks=[pytest.mark.slow] * (name in DEEP))
        for name, size in SIZES.items()
        if size < LARGEST
    ],
)
def test_losses_and_gradients_agree(name, steps):
    one, other = pair(name, 3 if name in DEEP else 6)
    theta = one.initial()
    assert np.array_equal(theta.numpy(), other.initial().numpy())
    assert (one.names, one.shapes) == (other.names, other.shapes)
    for step in range(steps):
        loss, gradient = by_torch(one, theta, step)
        again, other_gradient = by_tf(other, tf.constant(theta.numpy()), step)
        close(again, loss, 1e-12)
        close(other_gradient, gradient, 1e-9 if name in DEEP else 1e-11)
        theta = theta - 1e-3 * gradient
    assert one.buffers.keys() == other.buffers.keys()
    for key, value in one.buffers.items():
        # A mean may be 0 but for rounding: what feeds it has the mean 0.
        spread = float(one.buffers[key.replace("/mean", "/var")].max()) ** 0.5
        np.testing.assert_allclose(other.buffers[key].numpy(), value.numpy(), rtol=1e-9, atol=1e-9 * spread)


@pytest.mark.parametrize(
    "name",
    [
        "digits-mlp",
        "mnist-conv",
        "cifar-small-conv",
        "quadratic",
        "digits-autoencoder",
        "recall-recurrent",
        "text-tied",
    ],
)
def test_accuracies_and_losses_on_test_images_agree(name):
    one, other = pair(name)
    theta = one.initial()
    by_torch(one, theta, 0)
    by_tf(other, tf.constant(theta.numpy()), 0)
    found = one.test_scores(theta), other.test_scores(tf.constant(theta.numpy()))
    np.testing.assert_allclose(*found, rtol=1e-12)  # nan where there are no images, or no classes


@pytest.mark.parametrize(("stride", "pad", "size"), [(1, 0, 3), (2, 0, 3), (2, 1, 3), (1, 2, 5), (2, 2, 5)])
@pytest.mark.parametrize("kind", ["conv", "average", "groups", "depthwise", "skip"])
def test_layers_on_images_agree(kind, stride, pad, size):
    """TensorFlow's own SAME pads on one side only where the stride is 2, and has no grouped convolutions."""
    generator, channels, parts = np.random.default_rng(0), 4, {"groups": 2, "depthwise": 4}.get(kind, 1)
    layer = {
        "average": Layer("average", size=size, stride=stride, pad=pad),
        "skip": Layer("skip", out=7, stride=stride),
    }.get(kind) or Layer("conv", out=8, size=size, stride=stride, pad=pad, groups=0 if parts == 4 else parts)
    shapes = (
        {"layer_0/w": (size, size, channels // parts, 8), "layer_0/b": (8,)} if layer.kind == "conv" else {}
    )
    arrays = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    images = generator.normal(size=(2, 8, 8, channels))
    expected, got = (
        backend.problems.layers.forward(
            (layer, RELU6), {k: as_tensor(v) for k, v in arrays.items()}, as_tensor(images)
        )
        for backend, as_tensor in ((torch_impl, torch.from_numpy), (tf_impl, tf.constant))
    )
    close(got, expected, 1e-13)


@pytest.mark.parametrize("kind", ["RandomScaling", "ConvexTerm"])
def test_random_scaling_and_the_convex_term_agree(kind):
    numbers = (2.0, 7, 3) if kind == "RandomScaling" else (7, 3)
    first, second = (
        getattr(backend.problems.augment, kind)(task, *numbers)
        for backend, task in zip((torch_impl, tf_impl), pair("digits-mlp"), strict=True)
    )
    theta = first.initial()
    close(second.initial(), theta, 1e-15)
    loss, gradient = by_torch(first, theta, 2)
    again, other_gradient = by_tf(second, tf.constant(theta.numpy()), 2)
    close(again, loss, 1e-12)
    close(other_gradient, gradient, 1e-11)
