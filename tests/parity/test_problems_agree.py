"""Every optimizee in both backends: the same loss, gradient, running values and accuracy in float64."""

import numpy as np
import pytest

from common.tables.layers import Layer
from common.tables.problems import PROBLEMS, problem_row
from tests.parity.backends import close, tasks, tf, tf_impl, torch, torch_impl

by_torch, by_tf = (backend.problems.tasks.value_and_gradient for backend in (torch_impl, tf_impl))
DEEP = ("vgg16", "resnet-18", "nas")
EMBEDDED = ("", "digits", "digits-shifted", "digits-odd", "recall", "text")


def pair(name: str, batch_size: int = 6):
    """The same instance in torch and in TensorFlow, on data that need no file."""
    row = PROBLEMS[name]
    return tasks(problem_row(name, "" if row.dataset in EMBEDDED else "synthetic"), 3, batch_size)


@pytest.mark.parametrize(
    ("name", "steps"),
    [pytest.param(name, 1, marks=[pytest.mark.slow] * (name == "vgg16")) for name in DEEP]
    + [pytest.param(name, 2, marks=[pytest.mark.slow] * (name in DEEP)) for name in PROBLEMS],
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
        close(other.buffers[key], value, 1e-9)


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
@pytest.mark.parametrize("kind", ["conv", "average"])
def test_padding_is_explicit_and_symmetric(kind, stride, pad, size):
    """TensorFlow's own SAME pads on one side only where the stride is 2."""
    generator = np.random.default_rng(0)
    layers = (Layer(kind, out=4 * (kind == "conv"), size=size, stride=stride, pad=pad),)
    arrays = {"layer_0/w": generator.normal(size=(size, size, 3, 4)), "layer_0/b": generator.normal(size=4)}
    arrays = arrays if kind == "conv" else {}
    images = generator.normal(size=(2, 8, 8, 3))
    expected, got = (
        backend.problems.layers.forward(
            layers, {k: as_tensor(v) for k, v in arrays.items()}, as_tensor(images)
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
