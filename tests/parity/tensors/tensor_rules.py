"""Random rules that see tensors, gradients of all kinds to run them on, and what the oracle says of them."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from interchange.language import expression as ex
from interchange.language.execute import evaluate
from interchange.language.expression import Node
from interchange.language.operators import TENSOR
from interchange.language.parse import parse
from interchange.language.view import View, canonical
from interchange.rule.rule import Rule
from tests.parity.random_rules import FEATURES, Draw, around
from tests.parity.rule_oracle import expect

Array = np.ndarray

SEED = 0
SHAPES = ((1,), (7,), (5, 3), (3, 5), (64, 32), (3, 3, 4, 8), (1, 9))
KINDS = ("calm", "zero", "rank one", "tiny", "scaled")
SEEING = (*sorted(TENSOR), "by_matrix")
COURSES = tuple(parse(text, ["t"]) for text in ("1 - powabs(t, -0.8)", "1 - 1 / t", "t / (t + 9)"))


class TensorDraw(Draw):
    """A random expression in which every second operator sees tensors."""

    operators = (*Draw.operators, *SEEING * 4)
    leaves = (*Draw.leaves, "size")

    def _leaf(self) -> Node:
        node = super()._leaf()
        return ex.name(str(self.rng.choice(["rows", "cols", "numel"]))) if node == ex.name("size") else node

    def decay(self, op: str) -> Node:
        if op == "ema" and self.rng.random() < 0.3:
            return COURSES[self.rng.integers(len(COURSES))]
        return super().decay(op)


@lru_cache(1024)
def rule_of(index: int) -> Rule:
    """Rule ``index`` of a row that holds every operator that sees tensors equally often."""
    wanted = SEEING[index % len(SEEING)]
    for draft in range(1000):
        rng = np.random.default_rng((SEED, 7, index, draft))
        draw = TensorDraw(rng)
        tree = around(draw, draw.tree(int(rng.integers(2, 4)), wanted), int(rng.integers(3, 6)))
        used = ex.names(tree)
        features = {key: parse(text) for key, text in FEATURES.items() if key in used}
        constants = {key: value for key, value in draw.constants.items() if key in used}
        rule = Rule(f"tensors {index}", tree, constants, features, float(rng.choice([1.0, 1.0, -0.1])))
        if all("g" in ex.names(ex.branch(rule.inlined(), has)) for has in (True, False)):
            g, theta = inputs((5, 3), index, np.float32)
            u = rule.evaluate({"g": g, "theta": theta}, np.float32, [(5, 3)])
            if np.isfinite(u).mean() >= 0.5 and np.abs(u).max() > 0:
                return rule
    raise AssertionError(f"no rule around {wanted} has finite updates")


def inputs(shape: tuple[int, ...], index: int, dtype: type) -> tuple[Array, Array]:
    """g and theta [T, N] of one tensor: a step of one kind, then one of each, in any order."""
    view, rng = canonical(shape), np.random.default_rng((SEED, 8, index, *shape))
    kinds = rng.permutation(len(KINDS))
    steps = [gradient(KINDS[kind], view, rng) for kind in (kinds[0], *kinds)]
    g = np.stack(steps).reshape(len(steps), -1)
    return g.astype(dtype), (0.2 * rng.normal(size=g.shape)).astype(dtype)


def gradient(kind: str, view: View, rng: np.random.Generator) -> Array:
    """One gradient, in the tensor's shape."""
    x = rng.normal(size=view.shape)
    if kind == "zero":
        return 0.0 * x
    if kind == "rank one":
        return np.mean(x, -1, keepdims=True) * rng.normal(size=view.shape[-1:])
    if kind == "tiny":
        return 1e-25 * x
    if kind == "scaled":
        return x * 10.0 ** rng.uniform(-6, 6, size=view.shape[-1:])
    return x


@dataclass(frozen=True)
class Case:
    """One rule on one tensor.

    Attributes:
        g, theta: [T, N].
        u: what the oracle says, [T, N]; of theta + u where the target adds.
        size: the largest finite value of every step, [T, 1]; the smallest normal number at least.
        unit: how far the oracle moves where every node errs by 2 ulp.
        apart: where that turns a branch.
        spilled: where a sum or product on the way left the range of the dtype.
        calm: steps before anything is not finite, which a guard would keep from becoming state.
    """

    rule: Rule
    view: View
    g: Array
    theta: Array
    u: Array
    size: Array
    unit: Array
    apart: Array
    spilled: Array
    calm: int


@lru_cache(1024)
def case(index: int, shape: tuple[int, ...], dtype: type, add_theta: bool) -> Case:
    rule, view = rule_of(index), canonical(shape)
    program = rule.program(view.matrix)
    g, theta = inputs(shape, index, dtype)
    if add_theta and "theta" not in program.inputs:
        theta = 0.0 * theta
    expected = expect(rule, g, theta, index, add_theta, view)
    finite = np.isfinite(expected.u)
    size = np.where(finite, np.abs(expected.u), 0.0).max(axis=1, keepdims=True)
    size = np.maximum(size, np.finfo(dtype).tiny)
    arrays = {name: np.reshape(a, (len(g), *view.shape)) for name, a in {"g": g, "theta": theta}.items()}
    states = replace(program, outputs=program.writes)
    fine = (finite & ~expected.apart).all(axis=1)
    for a in evaluate(states, {**rule.constants, **arrays}, dtype, view):
        fine &= (np.abs(np.reshape(a, (len(g), -1))) < 0.1 * np.finfo(dtype).max).all(axis=1)
    calm = int(np.argmin(np.append(fine, False)))
    return Case(rule, view, g, theta, expected.u, size, expected.unit, expected.apart, expected.spilled, calm)
