"""Rules that see tensors, layers and their gradients, and the updates that the oracle says they get."""

from collections.abc import Sequence

import numpy as np

from interchange.language import view as views
from interchange.rule.rule import Rule

MUON = Rule.from_text(
    "by_matrix(-0.2 * sqrt(max(rows, cols)) * polar(g + c * ema(g, b)), -c * ema_hat(g, b))",
    {"c": 0.9, "b": 0.8},
)
FACTORS = Rule.from_text(
    "-g / (sqrt(ema(row_mean(square(g)), 1 - powabs(t, -0.8)) * ema(col_mean(square(g)), b)) + e) "
    "- 0.1 * lag(mean(abs(g)), 2)",
    {"b": 0.9, "e": 1e-3},
)
EVENED = Rule.from_text("-orth(ema(g, 0.9)) - cummax(row_max(abs(g))) * col_max(g) / numel")
RULES = {"muon": MUON, "factors": FACTORS, "evened": EVENED}
# In canonical layout: the last axis has the outputs.
SHAPES = ((1,), (7,), (5, 3), (3, 5), (64, 32), (3, 3, 4, 8), (1, 9), (9, 1), (), (0, 3))
KINDS = ("usual", "zero", "rank one", "tiny", "badly scaled")


def gradients(
    kind: str, shapes: Sequence[tuple[int, ...]] = SHAPES, steps: int = 4
) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(3)
    rows = [[np.asarray(rng.normal(size=shape)) for shape in shapes] for _ in range(steps)]

    def of_kind(g: np.ndarray) -> np.ndarray:
        if kind == "rank one" and g.ndim > 1 and g.size:
            return np.broadcast_to(g.sum(-1, keepdims=True) * g[(0,) * (g.ndim - 1)], g.shape).copy()
        if kind == "badly scaled":
            return g * 10.0 ** np.linspace(-9.0, 4.0, g.size).reshape(g.shape)
        return g * {"zero": 0.0, "tiny": 1e-25}.get(kind, 1.0)

    return [[of_kind(g) for g in row] for row in rows]


def updates(rule: Rule, rows: list[list[np.ndarray]], has_matrix: bool | None = None) -> list[np.ndarray]:
    """By the oracle, of every tensor [T, *shape]."""
    found = []
    for column in zip(*rows, strict=True):
        g, shape = np.stack(column), column[0].shape
        if not g.size:
            found.append(g)
            continue
        view = views.canonical(shape, has_matrix)
        found.append(rule.evaluate({"g": g.reshape(len(g), -1)}, shapes=[view]).reshape(g.shape))
    return found
