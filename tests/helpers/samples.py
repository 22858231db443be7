"""Rules, teachers, parameters and gradients that many tests of optimizers take."""

from collections.abc import Sequence

import numpy as np

from common.tables.teachers import TEACHERS, initial_weights
from interchange.files.weights import Teacher
from interchange.rule.rule import Rule

M_TILDE = {"m_tilde": "ema_hat(g, 0.9) / (sqrt(ema_hat(square(g), 0.99)) + 1e-8)"}
CONSTANTS = {"c0": 0.02, "c1": 0.7, "c2": 0.003}
RULE = Rule.from_text(
    "-c0 * tanh(m_tilde / c1) / (1 + t / 50) - c2 * lag(g, 2)", CONSTANTS, M_TILDE, scale=0.5
)
RULE_OF_EVERYTHING = Rule.from_text(
    "-c0 * tanh(m_tilde / c1) / (1 + t / 50) - c2 * lag(g, 2) - c3 * cummax(abs(g)) - 0.01 * theta",
    CONSTANTS | {"c3": 0.001},
    M_TILDE,
    scale=0.5,
)
DRIFT = Rule.from_text("c0 - g + ema(cos(c1 * g), 0.9)", {"c0": 0.25, "c1": 2.0})
L2O = Rule.from_text(
    "-c0 * tanh(m_tilde / c1) - c2 * asinh(lag(g, 2))", {"c0": 0.2, "c1": 0.7, "c2": 0.3}, M_TILDE, scale=0.5
)
EMA_AND_TANH = Rule.from_text(
    "-c0 * tanh(m_tilde / c1) - c2 * ema(g, c3)",
    {"c0": 0.02, "c1": 0.7, "c2": 0.05, "c3": 0.8},
    M_TILDE,
    scale=0.5,
)
SHAPES = ((4, 3), (5,), ())


def enlarged(name: str = "rp_s") -> Teacher:
    """A teacher whose weights are large enough that saturation and memory matter."""
    weights = {key: 2.0 * w for key, w in initial_weights(TEACHERS[name], 1).items()}
    return Teacher(TEACHERS[name], weights, "0" * 64, "test")


def start(shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[np.ndarray]:
    """Parameters."""
    generator = np.random.default_rng(0)
    return [np.asarray(generator.normal(size=shape)) for shape in shapes]


def gradients(steps: int, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(1)
    return [[np.asarray(generator.normal(size=shape)) for shape in shapes] for _ in range(steps)]
