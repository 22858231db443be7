"""Data sets that need no file: the embedded digits and what is made of them, and drawn sequences.

Each function gives training images and labels, then test images and labels; images [n, h, w, c] of bytes.
"""

import numpy as np

from common.rng import rng

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

SHIFTS = 9  # of every image, by up to one pixel along either axis
RECALL_LENGTH, RECALL_SYMBOLS = 8, 8
TEXT_CONTEXT, TEXT_SYMBOLS = 4, 24


def digits() -> Arrays:
    """1,797 images of 8x8 from scikit-learn's own package, in bytes up to 16."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = rng(0, "digits").permutation(len(labels))
    x = images[order].astype(np.uint8).reshape(-1, 8, 8, 1)
    y = labels[order].astype(np.int64)
    return x[:1500], y[:1500], x[1500:], y[1500:]


def shifted_digits() -> Arrays:
    """Every training image of the digits shifted by -1, 0 or 1 pixels along both axes, nine in a row.

    A batch drawn from them is a batch of images shifted at random. The test images are as they are.
    """
    x, y, x_test, y_test = digits()
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, down : down + 8, right : right + 8] for down in range(3) for right in range(3)]
    return np.stack(shifts, axis=1).reshape(-1, 8, 8, 1), y.repeat(SHIFTS), x_test, y_test


def odd_digits() -> Arrays:
    """The digits, even (0) or odd (1)."""
    x, y, x_test, y_test = digits()
    return x, y % 2, x_test, y_test % 2


def recall() -> Arrays:
    """Sequences of symbols [length, 1, symbols], one-hot; the label is the first symbol."""
    parts: list[np.ndarray] = []
    for stream, rows in enumerate((4000, 1000)):
        tokens = rng(0, "recall", stream).integers(RECALL_SYMBOLS, size=(rows, RECALL_LENGTH))
        parts += [_one_hot(tokens, RECALL_SYMBOLS), tokens[:, 0]]
    return tuple(parts)


def text() -> Arrays:
    """Contexts of a text [context, 1, symbols], one-hot; the label is the symbol that follows.

    The text is drawn from a chain in which the next symbol depends on the one before it and less on the one
    before that: few are likely, so that the best loss is far below ln(symbols).
    """
    generator = rng(0, "text")
    logits = 2.0 * generator.normal(size=(TEXT_SYMBOLS, TEXT_SYMBOLS))
    logits = logits + generator.normal(size=(TEXT_SYMBOLS, TEXT_SYMBOLS, TEXT_SYMBOLS))
    edges = np.exp(logits).cumsum(-1)
    edges /= edges[..., -1:]
    tokens = np.zeros(12_000, dtype=np.int64)
    for place, height in enumerate(generator.uniform(size=len(tokens))[2:], start=2):
        tokens[place] = np.searchsorted(edges[tokens[place - 2], tokens[place - 1]], height)
    tokens = np.minimum(tokens, TEXT_SYMBOLS - 1)
    contexts = np.lib.stride_tricks.sliding_window_view(tokens[:-1], TEXT_CONTEXT)
    x, y, at = _one_hot(contexts, TEXT_SYMBOLS), tokens[TEXT_CONTEXT:], 10_000
    return x[:at], y[:at], x[at:], y[at:]


def _one_hot(tokens: np.ndarray, symbols: int) -> np.ndarray:
    """[n, length] as images [n, length, 1, symbols]."""
    return (tokens[..., None, None] == np.arange(symbols)).astype(np.uint8)
