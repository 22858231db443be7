"""Random rules over every operator and leaf, and nasty gradients to run them on."""

import numpy as np

from interchange.language import expression as ex
from interchange.language.expression import Node
from interchange.language.operators import OPERATORS, POINTWISE, TEMPORAL
from interchange.language.parse import parse
from interchange.rule.rule import Rule

Array = np.ndarray

STEPS, COLUMNS, DEPTH = 100, 28, 6
FEATURES = {
    "m_tilde": "ema_hat(g, 0.95) / (sqrt(ema_hat(square(g), 0.95)) + 1e-12)",
    "g_tilde": "g / (sqrt(ema_hat(square(g), 0.999)) + 1e-8)",
    "mom9": "ema(g, 0.9)",
    "t_1000": "t / 1000.0",
    "drift": "theta - lag(theta, 2)",
}
DECAYS = (0.3, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999)
_LEAVES = ("g", "g", "g", "feature", "feature", "constant", "constant", "literal", "literal", "t", "theta")
_NASTY = np.array([0.0, -0.0, 1e-12, -1e-12, 1e6, -1e6, 1.0, -1.0, 0.3, -2.5])


# Of these hardly a rule is finite at half of its steps; test_operators_agree has them.
_SELDOM_FINITE = ("root", "ln", "powreal")
COORDINATEWISE = [op for op in OPERATORS if op in (*POINTWISE, *TEMPORAL) and op not in _SELDOM_FINITE]


class Draw:
    """One random expression; constants are collected on the way."""

    operators, leaves = COORDINATEWISE, _LEAVES

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.constants: dict[str, float] = {}

    def tree(self, depth: int, op: str = "") -> Node:
        """At most ``depth`` levels, with ``op`` at the root where given."""
        if not op and (depth == 1 or self.rng.random() < 0.12):
            return self._leaf()
        op = op or str(self.rng.choice(self.operators))
        first = self.tree(depth - 1)
        if OPERATORS[op].arity == 1:
            return ex.call(op, first)
        if op == "lag":
            return ex.call(op, first, ex.number(int(self.rng.choice([0, 1, 1, 2, 3, 7, 12]))))
        if op in ("ema", "ema_hat"):
            return ex.call(op, first, self.decay(op))
        second = self.tree(depth - 1)
        return ex.call(op, *((first, second) if self.rng.random() < 0.5 else (second, first)))

    def _leaf(self) -> Node:
        kind = str(self.rng.choice(self.leaves))
        if kind == "feature":
            return ex.name(str(self.rng.choice(list(FEATURES))))
        if kind == "literal":
            return ex.number(self._size() if self.rng.random() < 0.6 else float(self.rng.integers(-3, 4)))
        if kind == "constant":
            key = f"c{self.rng.integers(3)}"
            self.constants.setdefault(key, self._size())
            return ex.name(key)
        return ex.name(kind)

    def _size(self) -> float:
        return float(self.rng.choice([-1.0, 1.0]) * 10.0 ** self.rng.normal(0.0, 1.5))

    def decay(self, op: str) -> Node:
        """b of an average."""
        value = float(self.rng.choice(DECAYS))
        if self.rng.random() < 0.5:
            return ex.number(value)
        key = f"b{self.rng.integers(2)}"
        self.constants.setdefault(key, value)
        return ex.name(key)


def random_rule(seed: int, index: int) -> tuple[Rule, int]:
    """Rule ``index`` of a row that holds every operator equally often, and how many drafts were refused.

    A draft is refused that does not read ``g``, or of whose updates in float32 less than half are finite.
    """
    ops = COORDINATEWISE
    g, theta = nasty_inputs(np.float32, seed)
    for draft in range(1000):
        rng = np.random.default_rng((seed, index, draft))
        draw = Draw(rng)
        wanted = draw.tree(int(rng.integers(2, 5)), ops[index % len(ops)])
        tree = around(draw, wanted, int(rng.integers(3, DEPTH + 1)))
        used = ex.names(tree)
        features = {key: parse(text) for key, text in FEATURES.items() if key in used}
        constants = {key: value for key, value in draw.constants.items() if key in used}
        scale = float(rng.choice([1.0, 1.0, 0.01, -0.1]))
        rule = Rule(f"random {seed}/{index}", tree, constants, features, scale)
        if "g" in ex.names(rule.inlined()):
            u = rule.evaluate({"g": g, "theta": theta}, np.float32)
            if np.isfinite(u).mean() >= 0.5:
                return rule, draft
    raise AssertionError(f"no rule around {ops[index % len(ops)]} has finite updates")


def around(draw: Draw, tree: Node, depth: int) -> Node:
    """``tree`` inside of operators, up to ``depth`` levels."""
    while ex.depth(tree) < depth:
        op = str(draw.rng.choice(draw.operators))
        if OPERATORS[op].arity == 1:
            tree = ex.call(op, tree)
        elif op == "lag":
            tree = ex.call(op, tree, ex.number(int(draw.rng.integers(1, 4))))
        elif op in ("ema", "ema_hat"):
            tree = ex.call(op, tree, draw.decay(op))
        else:
            other = draw.tree(min(ex.depth(tree), 4))
            tree = ex.call(op, *((tree, other) if draw.rng.random() < 0.5 else (other, tree)))
    return tree


def nasty_inputs(dtype: type, seed: int = 0) -> tuple[Array, Array]:
    """g and theta [STEPS, COLUMNS]: calm columns of many scales, then one kind of trouble per column."""
    rng = np.random.default_rng((seed, 1))
    tiny = float(np.finfo(dtype).tiny)
    calm = rng.normal(size=(STEPS, COLUMNS))
    for t in range(1, STEPS):
        calm[t] = 0.9 * calm[t - 1] + 0.4 * calm[t]
    g = calm * 10.0 ** rng.uniform(-4, 2, size=COLUMNS)
    g[:, 8:10] *= np.where(rng.random((STEPS, 2)) < 0.05, 1e4, 1.0)
    g[:, 10:12] *= rng.random((STEPS, 2)) < 0.5
    g[:, 12] = 0.0
    g[:, 13] = 0.01 * (-1.0) ** np.arange(STEPS)
    g[:, 14] = rng.choice([0.0, 1e-12, -1e-12], size=STEPS)
    g[:, 15] = rng.choice([1e6, -1e6], size=STEPS)
    g[60, 16] = 1e20
    g[:, 17] = np.where(rng.random(STEPS) < 0.05, 1e20 * np.sign(calm[:, 17]), calm[:, 17])
    g[70:, 18] = tiny * rng.integers(-8, 9, size=30) / 8.0
    g[:, 19] = rng.choice(_NASTY, size=STEPS)
    g[:, 20] = rng.choice([0.0, -0.0, 1.0], size=STEPS)
    g[:, 21] = 1.0
    g[:, 22] = -(10.0 ** np.linspace(-12, 6, STEPS))
    g[:, 23] = np.where(rng.random(STEPS) < 0.3, rng.choice(_NASTY, size=STEPS), calm[:, 23])
    theta = 0.2 * np.cumsum(rng.normal(size=(STEPS, COLUMNS)), axis=0)
    theta[:, 10:12] = 0.0
    theta[:, 19] = rng.choice(_NASTY, size=STEPS)
    return g.astype(dtype), theta.astype(dtype)
