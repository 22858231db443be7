"""Derivatives of a teacher's outputs along changes of its inputs, forward through the LSTM in NumPy."""

from collections.abc import Mapping, Sequence

import numpy as np

from common.reference import CellStates, sigmoid, teacher_step, zero_cells
from common.tables.teachers import TeacherRow, folded

Array = np.ndarray
Tangents = list[tuple[Array, Array]]


def pulse_responses(
    row: TeacherRow, weights: Mapping[str, Array], x: Array, starts: Sequence[int], lags: int
) -> Array:
    """d y_{s + lag} / d x_{k, s} for every start s, input k and lag; y is the output before ``scale``.

    Args:
        x: inputs [T, N, F] from the first step on.
        starts: places along T; none is later than T - lags.

    Returns:
        [F, starts, lags, N].
    """
    cells, kept = zero_cells(row, x.shape[1]), {}
    for t, now in enumerate(x[: max(starts) + 1]):
        if t in starts:
            kept[t] = cells
        cells = teacher_step(row, weights, now, cells)[1]
    inputs, many = x.shape[2], len(starts) * x.shape[1]
    cells = [
        tuple(np.concatenate([kept[s][layer][part] for s in starts]) for part in (0, 1))
        for layer in range(len(row.lstm))
    ]
    tangents: Tangents = [
        (np.zeros((inputs, many, size)), np.zeros((inputs, many, size))) for size in row.lstm
    ]
    found = np.empty((inputs, lags, many))
    for lag in range(lags):
        now = np.concatenate([x[s + lag] for s in starts])
        change = np.zeros((inputs, many, inputs))
        if lag == 0:
            change[np.arange(inputs), :, np.arange(inputs)] = 1.0
        found[:, lag], cells, tangents = _step(row, weights, now, change, cells, tangents)
    return np.moveaxis(found.reshape(inputs, lags, len(starts), -1), 2, 1)


def _step(
    row: TeacherRow, weights: Mapping[str, Array], x: Array, dx: Array, cells: CellStates, tangents: Tangents
) -> tuple[Array, CellStates, Tangents]:
    """One step and its derivative: d output [K, N], the cells and their derivatives [K, N, H]."""
    if row.pre:
        x = x @ weights["pre/w"].T + weights["pre/b"]
        dx = (dx @ weights["pre/w"].T) * np.where(x > 0, 1.0, np.exp(np.minimum(x, 0)))
        x = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    new_cells, new_tangents = [], []
    for layer, ((h, c), (dh, dc)) in enumerate(zip(cells, tangents, strict=True)):
        w_input, w_hidden, bias = (
            weights[f"lstm_{layer}/{name}"] for name in ("w_input", "w_hidden", "bias")
        )
        i, f, g, o = np.split(x @ w_input.T + h @ w_hidden.T + bias, 4, axis=-1)
        di, df, dg, do = np.split(dx @ w_input.T + dh @ w_hidden.T, 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        dc = f * dc + f * (1 - f) * df * c + i * (1 - i) * di * g + i * (1 - g * g) * dg
        c = f * c + i * g
        squashed = np.tanh(c)
        dh = o * (1 - o) * do * squashed + o * (1 - squashed * squashed) * dc
        h = o * squashed
        new_cells.append((h, c))
        new_tangents.append((dh, dc))
        x, dx = h, dh
    last = folded(weights)
    out = (x @ last["out/w"].T + last["out/b"])[..., 0]
    change = (dx @ last["out/w"].T)[..., 0]
    if row.output == "tanh":
        change = change * (1 - np.tanh(out) ** 2)
    return change, new_cells, new_tangents
