"""The oracle: teachers, features and hand-made optimizers in plain NumPy, written to be read.

No framework, no rule language, no shared work: each formula stands as in its paper, one line each, and
the backends are tested against it. Arrays are flat over coordinates, [N]; hidden units come last,
[N, H] (the backends keep them first). Updates are ``theta + lr * u`` (MATH.md).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from common.tables.teachers import TeacherRow

Array = np.ndarray
LossAndGradient = Callable[[Array, int], tuple[float, Array]]
CellStates = list[tuple[Array, Array]]


class Features:
    """Every input feature of one gradient stream, step by step.

    Sources: Lv et al. 2017 (``m_tilde``, ``g_tilde``), Andrychowicz et al. 2016, appendix A (``log_g``,
    ``clip_g``), Shazeer and Stern 2018 (``g_row``, ``g_col``), the ICLR 2022 code (the rest). Moving averages
    start at zero.

    Args:
        shapes: of the tensors that lie one after another in a gradient, for ``g_row`` and ``g_col``: rows
            along the last axis where there are two or more. One vector if None.
    """

    def __init__(
        self,
        beta1: float,
        beta2: float,
        eps: float,
        p: float,
        shapes: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        self.beta1, self.beta2, self.eps, self.p, self.shapes = beta1, beta2, eps, p, shapes
        self.t = 0
        self._averages: dict[str, Array | float] = {}

    def _ema(self, key: str, x: Array, beta: float) -> Array:
        self._averages[key] = beta * self._averages.get(key, 0.0) + (1 - beta) * x
        return self._averages[key]

    def step(self, g: Array) -> dict[str, Array]:
        """Feature name -> [N] for the next gradient [N]."""
        self.t += 1
        m, v = self._ema("m", g, self.beta1), self._ema("v", g * g, self.beta2)
        m_hat, root = m / (1 - self.beta1**self.t), np.sqrt(v / (1 - self.beta2**self.t))
        rows, columns = (
            np.sqrt(self._ema(name, mean, self.beta2) / (1 - self.beta2**self.t))
            for name, mean in zip(("rows", "columns"), self._means(g * g), strict=True)
        )
        return {
            "g": g,
            "m_tilde": m_hat / (root + self.eps),
            "g_tilde": g / (root + self.eps),
            "g_row": g / (rows + self.eps),
            "g_col": g / (columns + self.eps),
            "log_g": np.maximum(np.log(np.abs(g) + 1e-8) / self.p, -1),
            "clip_g": np.clip(g * np.exp(self.p), -1, 1),
            "mom5": self._ema("mom5", g, 0.5),
            "mom9": self._ema("mom9", g, 0.9),
            "mom99": self._ema("mom99", g, 0.99),
            "m": m,
            "m_hat": m_hat,
            "v_hat_sqrt": root,
            "m_p2": m / (self._norm(g, 2.0) + 1e-8),
            "m_p2_5": m / (self._norm(g, 2.5) + 1e-8),
            "m_p3": m / (self._norm(g, 3.0) + 1e-8),
            "m_p4": m / (self._norm(g, 4.0) + 1e-8),
            "t_1000": np.full_like(g, self.t / 1000),
        }

    def _means(self, squares: Array) -> tuple[Array, Array]:
        """For every coordinate the means over its row and over its column, both [N]."""
        rows, columns, start = np.empty_like(squares), np.empty_like(squares), 0
        for shape in self.shapes or [squares.shape]:
            part = slice(start, start := start + int(np.prod(shape)))
            own = squares[part].reshape(-1, shape[-1]) if len(shape) > 1 else squares[part][:, None]
            rows[part] = np.broadcast_to(own.mean(axis=0), own.shape).ravel()
            columns[part] = np.broadcast_to(own.mean(axis=1, keepdims=True), own.shape).ravel()
        return rows, columns

    def _norm(self, g: Array, p: float) -> Array:
        """(bias-corrected moving average of |g|^p)^(1/p)."""
        average = self._ema(f"p{p}", np.abs(g) ** p, self.beta2)
        return (average / (1 - self.beta2**self.t)) ** (1 / p)


def sigmoid(x: Array) -> Array:
    """The logistic function, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def lstm_cell(
    w_input: Array, w_hidden: Array, bias: Array, x: Array, h: Array, c: Array
) -> tuple[Array, Array]:
    """One LSTM cell with forget gate (Gers et al. 2000): new h and c, both [N, H].

    Args:
        w_input: [4H, D]; w_hidden: [4H, H]; bias: [4H]; gates stacked in the order i, f, g, o.
        x: inputs [N, D].
        h, c: output and cell of the step before, [N, H].
    """
    i, f, g, o = np.split(x @ w_input.T + h @ w_hidden.T + bias, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def zero_cells(teacher: "TeacherRow", n: int) -> CellStates:
    """(h, c) of every cell before the first step, zeros [N, H]."""
    return [(np.zeros((n, size)), np.zeros((n, size))) for size in teacher.lstm]


def teacher_step(
    teacher: "TeacherRow", weights: Mapping[str, Array], x: Array, cells: CellStates
) -> tuple[Array, CellStates]:
    """Network output [N] before ``scale``, and the new cells, for inputs x [N, F].

    Linear + ELU where the row has one (Lv et al. 2017), the LSTM cells, Linear, gain and tanh where it says.
    """
    if teacher.pre:
        x = x @ weights["pre/w"].T + weights["pre/b"]
        x = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    new_cells = []
    for layer, (h, c) in enumerate(cells):
        names = (f"lstm_{layer}/{part}" for part in ("w_input", "w_hidden", "bias"))
        h, c = lstm_cell(*(weights[name] for name in names), x, h, c)
        new_cells.append((h, c))
        x = h
    out = (x @ weights["out/w"].T + weights["out/b"])[:, 0]
    if teacher.pre_tanh_scale:
        out = out * weights["out/gain"]
    return np.tanh(out) if teacher.output == "tanh" else out, new_cells


def replay(
    teacher: "TeacherRow",
    weights: Mapping[str, Array],
    g: Array,
    shapes: Sequence[tuple[int, ...]] | None = None,
) -> tuple[Array, Array]:
    """Inputs [T, N, F] and outputs [T, N] before ``scale`` of a teacher from zero state, for g [T, N].

    Args:
        shapes: as of ``Features``.
    """
    features = Features(teacher.beta1, teacher.beta2, teacher.eps, teacher.p, shapes)
    cells = zero_cells(teacher, g.shape[1])
    inputs, outputs = [], []
    for row in g:
        values = features.step(row)
        x = np.stack([values[name] for name in teacher.inputs], axis=1)
        out, cells = teacher_step(teacher, weights, x, cells)
        inputs.append(x)
        outputs.append(out)
    return np.stack(inputs), np.stack(outputs)


def unroll(
    teacher: "TeacherRow",
    weights: Mapping[str, Array],
    theta: Array,
    loss_and_grad: LossAndGradient,
    steps: int,
    lr: float = 1.0,
) -> tuple[Array, Array]:
    """Losses [T + 1] and parameters [T + 1, N] of a teacher's T steps from ``theta`` [N] and zero state.

    The parameters are no matrices: those alone a structure changes.
    """
    features = Features(teacher.beta1, teacher.beta2, teacher.eps, teacher.p)
    cells = zero_cells(teacher, theta.size)
    losses, thetas = [], [theta]
    for step in range(steps):
        loss, g = loss_and_grad(theta, step)
        values = features.step(g)
        x = np.stack([values[name] for name in teacher.inputs], axis=1)
        out, cells = teacher_step(teacher, weights, x, cells)
        theta = theta + lr * teacher.scale * out
        losses.append(loss)
        thetas.append(theta)
    losses.append(loss_and_grad(theta, steps)[0])
    return np.array(losses), np.stack(thetas)


def quadratic(w: Array, y: Array) -> LossAndGradient:
    """mean_b ||W_b x_b - y_b||^2 over w [B, n, n], y [B, n]; theta is x [B, n] made flat."""

    def loss_and_grad(theta: Array, step: int) -> tuple[float, Array]:
        residual = np.einsum("bij,bj->bi", w, theta.reshape(y.shape)) - y
        gradient = 2 * np.einsum("bij,bi->bj", w, residual) / len(y)
        return float(np.mean(np.sum(residual**2, axis=1))), gradient.ravel()

    return loss_and_grad


def softmax_regression(batches: list[tuple[Array, Array]], classes: int) -> LossAndGradient:
    """Mean cross-entropy of x @ w + b over the batches (x [B, D], labels [B]) in turn; theta is (w, b)."""

    def loss_and_grad(theta: Array, step: int) -> tuple[float, Array]:
        x, labels = batches[step % len(batches)]
        scores = x @ theta[:-classes].reshape(-1, classes) + theta[-classes:]
        scores = scores - scores.max(axis=1, keepdims=True)
        log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        error = (np.exp(log_p) - np.eye(classes)[labels]) / len(labels)
        loss = -np.mean(log_p[np.arange(len(labels)), labels])
        return float(loss), np.concatenate([(x.T @ error).ravel(), error.sum(axis=0)])

    return loss_and_grad


class Optimizer:
    """A hand-made optimizer by the formulas of torch.optim 2.13; ``options`` as in its table."""

    def __init__(self, name: str, lr: float, **options: float) -> None:
        self.name, self.lr, self.o, self.t = name, lr, options, 0
        self.m: Array | float = 0.0
        self.v: Array | float = 0.0
        self.product = 1.0  # of NAdam's momenta
        self.x: Array | None = None  # Schedule-Free's average and base sequence
        self.z: Array | None = None

    def step(self, theta: Array, g: Array) -> Array:
        """The parameters after one step from ``theta`` with gradient ``g``, both [N]."""
        self.t += 1
        return getattr(self, "_" + self.name.replace("-", "_"))(theta, g)

    def _sgd(self, theta: Array, g: Array) -> Array:
        return theta - self.lr * g

    def _momentum(self, theta: Array, g: Array) -> Array:
        self.m = self.o["momentum"] * self.m + g
        return theta - self.lr * self.m

    def _nesterov(self, theta: Array, g: Array) -> Array:
        self.m = self.o["momentum"] * self.m + g
        return theta - self.lr * (g + self.o["momentum"] * self.m)

    def _rmsprop(self, theta: Array, g: Array) -> Array:
        self.v = self.o["alpha"] * self.v + (1 - self.o["alpha"]) * g**2
        return theta - self.lr * g / (np.sqrt(self.v) + self.o["eps"])

    def _adam(self, theta: Array, g: Array) -> Array:
        b1, b2 = self.o["beta1"], self.o["beta2"]
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        m_hat, v_hat = self.m / (1 - b1**self.t), self.v / (1 - b2**self.t)
        return theta - self.lr * m_hat / (np.sqrt(v_hat) + self.o["eps"])

    def _adamw(self, theta: Array, g: Array) -> Array:
        return self._adam(theta * (1 - self.lr * self.o["weight_decay"]), g)

    def _lion(self, theta: Array, g: Array) -> Array:
        """Chen et al. 2023, algorithm 2."""
        b1, b2 = self.o["beta1"], self.o["beta2"]
        direction = np.sign(b1 * self.m + (1 - b1) * g)
        self.m = b2 * self.m + (1 - b2) * g
        return theta - self.lr * (direction + self.o["weight_decay"] * theta)

    def _adagrad(self, theta: Array, g: Array) -> Array:
        self.v = self.v + g**2
        return theta - self.lr * g / (np.sqrt(self.v) + self.o["eps"])

    def _nadamw(self, theta: Array, g: Array) -> Array:
        b1, b2 = self.o["beta1"], self.o["beta2"]
        mu, later = (b1 * (1 - 0.5 * 0.96 ** (k * self.o["momentum_decay"])) for k in (self.t, self.t + 1))
        self.product *= mu
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        m_hat = (1 - mu) * g / (1 - self.product) + later * self.m / (1 - self.product * later)
        theta = theta * (1 - self.lr * self.o["weight_decay"])
        return theta - self.lr * m_hat / (np.sqrt(self.v / (1 - b2**self.t)) + self.o["eps"])

    def _schedule_free(self, theta: Array, g: Array) -> Array:
        """Defazio et al. 2024, algorithm 1, with three sequences; theta is y, lr constant, no warmup."""
        b1, b2 = self.o["beta1"], self.o["beta2"]
        if self.x is None:
            self.x = self.z = theta
        self.v = b2 * self.v + (1 - b2) * g**2
        direction = g / (np.sqrt(self.v / (1 - b2**self.t)) + self.o["eps"])
        self.z = self.z - self.lr * (direction + self.o["weight_decay"] * theta)
        self.x = (1 - 1 / self.t) * self.x + self.z / self.t
        return (1 - b1) * self.z + b1 * self.x
