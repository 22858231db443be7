"""The layers and losses that only ``suite:held`` has, against their formulas in NumPy."""

import numpy as np
import pytest

from common.data import datasets, generated
from common.tables.layers import Layer
from common.tables.problems import PROBLEMS, Instance

torch = pytest.importorskip("torch")

from torch_impl.problems.layers import forward  # noqa: E402
from torch_impl.problems.tasks import ProblemTask, value_and_gradient  # noqa: E402
from torch_impl.tensors import unflatten  # noqa: E402


def run(layers: tuple[Layer, ...], arrays: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    return forward(layers, {n: torch.from_numpy(a) for n, a in arrays.items()}, torch.from_numpy(x)).numpy()


def test_layer_norm_is_over_the_units_of_each_row():
    generator = np.random.default_rng(1)
    x, scale, shift = (generator.normal(size=size) for size in ((3, 5), 5, 5))
    expected = scale * (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) + shift
    got = run((Layer("layer_norm"),), {"layer_0/scale": scale, "layer_0/shift": shift}, x)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_a_recurrent_layer_keeps_a_state_over_the_sequence():
    generator = np.random.default_rng(2)
    x, w, u, b = (generator.normal(size=size) for size in ((2, 4, 1, 3), (3, 5), (5, 5), 5))
    h = np.zeros((2, 5))
    for step in range(4):
        h = np.tanh(x[:, step, 0] @ w + h @ u + b)
    got = run((Layer("recurrent", out=5),), {"layer_0/w": w, "layer_0/u": u, "layer_0/b": b}, x)
    np.testing.assert_allclose(got, h, rtol=1e-12)


def test_the_scores_of_tied_symbols_are_their_embeddings_times_the_last_layer():
    generator = np.random.default_rng(3)
    e, w, b, bias = (generator.normal(size=size) for size in ((6, 4), (12, 4), 4, 6))
    tokens = np.array([[0, 3, 5], [1, 1, 2]])
    x = np.eye(6)[tokens][:, :, None]
    layers = (Layer("embed", out=4), Layer("flatten"), Layer("dense", out=4), Layer("tied"))
    arrays = {"layer_0/w": e, "layer_1/w": w, "layer_1/b": b, "layer_2/b": bias}
    expected = (e[tokens].reshape(2, 12) @ w + b) @ e.T + bias
    np.testing.assert_allclose(run(layers, arrays, x), expected, rtol=1e-12)


def test_the_loss_of_an_autoencoder_is_the_mean_squared_error_of_its_images():
    given = Instance(PROBLEMS["digits-autoencoder"], 1, batch_size=7)
    task = ProblemTask(given, torch.float64)
    theta, seen = task.initial(), given.data()[0][given.batch_indices(2)]
    out = task.logits(unflatten(theta, task.shapes), torch.tensor(seen, dtype=torch.float64)).numpy()
    loss, _ = value_and_gradient(task, theta, 2)
    assert float(loss) == pytest.approx(np.square(out - seen.reshape(7, 64)).mean(), rel=1e-12)
    test_loss, accuracy = task.test_scores(theta)
    assert 0.0 < test_loss < 5.0 and np.isnan(accuracy)


def test_all_shifts_of_an_image_fall_to_one_split():
    whole, plain = datasets.load("digits-shifted"), datasets.load("digits")
    for name in ("meta_train", "evaluation", "train", "validation"):
        images, labels = whole.split(name)
        middle = images[generated.SHIFTS // 2 :: generated.SHIFTS]  # shifted by nothing
        assert len(images) == generated.SHIFTS * len(middle)
        assert np.array_equal(middle, plain.split(name)[0])
        assert np.array_equal(labels[:: generated.SHIFTS], plain.split(name)[1])
    image = whole.x_train[: generated.SHIFTS].reshape(3, 3, 8, 8)
    assert np.array_equal(image[0, 2, 1:, :-1], plain.x_train[0, :-1, 1:, 0]) and not image[0, 2, 0].any()


def test_a_sequence_is_named_after_its_first_symbol():
    x, y, x_test, y_test = generated.recall()
    for images, labels in ((x, y), (x_test, y_test)):
        assert np.array_equal(images[:, 0, 0].argmax(1), labels) and (images.sum(-1) == 1).all()
    assert set(y) == set(range(generated.RECALL_SYMBOLS))


def test_the_text_can_be_foretold_from_the_symbol_before():
    """A table of counts of the training text leaves much less than ln(symbols) on the test text."""
    x, y, x_test, y_test = generated.text()
    symbols, left = generated.TEXT_SYMBOLS, []
    for known in (1, 2):
        before, test_before = (tuple(images[:, -known:, 0].argmax(2).T) for images in (x, x_test))
        counts = np.full((symbols,) * (known + 1), 0.1)
        np.add.at(counts, (*before, y), 1.0)
        chances = counts / counts.sum(-1, keepdims=True)
        left.append(-np.log(chances[(*test_before, y_test)]).mean())
    assert left[0] < 0.85 * np.log(symbols) and left[1] < 0.97 * left[0]  # of two symbols it leaves less
    last = x[:, -1, 0].argmax(1)
    assert np.array_equal(x[1:, -2, 0].argmax(1), last[:-1])  # contexts follow one another
