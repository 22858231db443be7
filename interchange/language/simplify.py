"""Algebra on rules: constants folded, terms gathered, zero-gradient drift removed, equality up to constants.

A simplified tree is offered beside the original, never in its place: it must agree with it on the inputs
of ``probes``, values and non-finite places alike, or the original is returned.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from interchange.language import expression as ex
from interchange.language.canonical import to_node
from interchange.language.checks import RuleError
from interchange.language.equation import Equation, zero_update
from interchange.language.execute import evaluate_trees
from interchange.language.expression import Node
from interchange.language.operators import OPERATORS, TEMPORAL, TENSOR
from interchange.language.view import trial

E = TypeVar("E", bound=Equation)
_TOLERANCE = 1e-9  # relative to the largest value of a column
_MEANS = frozenset({"mean", "row_mean", "col_mean", "row_max", "col_max"})  # a number's are itself


def folded(node: Node) -> Node:
    """The tree with everything that is a number at every step as a number; other parts as they were."""
    args = tuple(map(folded, node.args))
    if not args:
        return node
    node = node if args == node.args else Node(node.op, args)
    first = args[0]
    if node.op == "ema_hat" or node.op == "cummax":
        return first if first.op == "number" else node
    if node.op in TEMPORAL:  # lag and ema start at 0, so only a 0 stays what it is
        return first if first == ex.number(0.0) else node
    if node.op in TENSOR or node.op == "by_matrix":
        return first if node.op in _MEANS and first.op == "number" else node
    if all(arg.op == "number" for arg in args):
        with np.errstate(all="ignore"):
            value = float(OPERATORS[node.op].numpy(*(np.float64(arg.value) for arg in args)))
        return ex.number(value) if np.isfinite(value) else node
    if node.op == "mul" and ex.number(0.0) in args and any(arg.op == "name" for arg in args):
        return ex.number(0.0)
    if node.op == "div" and first == ex.number(0.0) and args[1].op == "name":
        return first
    if node.op in ("add", "sub") and args[1] == ex.number(0.0):
        return first
    return args[1] if node.op == "add" and first == ex.number(0.0) else node


def centered(rule: E) -> E:
    """The rule minus what it does at g = 0 and theta = 0; the rule itself where that is nothing.

    Raises:
        RuleError: it has no finite value there, or a feature without definition.
    """
    drift = zero_update(rule)
    if drift == 0.0:
        return rule
    if not np.isfinite(drift):
        raise RuleError(f"rule {rule.name!r}: expected a finite update at zero gradient, got {drift}")
    zero = ex.number(0.0)
    at_zero = folded(ex.substitute(rule.inlined(), {"g": zero, "theta": zero}))
    return dataclasses.replace(rule, expression=ex.call("sub", rule.expression, at_zero))


def simplified(rule: E) -> E:
    """The rule with a shorter expression of the same values; the rule itself where none was found."""
    shorter = simplify(rule.expression, lambda new: _agrees(rule, new))
    return rule if shorter is rule.expression else dataclasses.replace(rule, expression=shorter)


def simplify(node: Node, agrees: Callable[[Node], bool]) -> Node:
    """A tree with fewer nodes for which ``agrees`` holds, or ``node`` itself."""
    shorter = _gathered(_reduced(folded(node)))
    return shorter if ex.complexity(shorter) < ex.complexity(node) and agrees(shorter) else node


def _reduced(node: Node) -> Node:
    """Local identities, from the leaves up; exact where values are finite."""
    args = tuple(map(_reduced, node.args))
    node = node if args == node.args else Node(node.op, args)
    match node.op, *args:
        case ("neg", Node(op="neg", args=(x,))):
            return x
        case ("abs", Node(op="abs" | "square" | "exp" | "sqrt" | "powabs" | "sigmoid" | "relu")):
            return args[0]
        case ("abs" | "square", Node(op="neg" | "abs", args=(x,))):
            return Node(node.op, (x,))
        case ("sqrt", Node(op="neg" | "abs", args=(x,))):
            return Node("sqrt", (x,))
        case ("sqrt", Node(op="square", args=(x,))):
            return Node("abs", (x,))
        case ("relu", Node(op="relu" | "abs" | "square" | "exp" | "sqrt")):
            return args[0]
        case ("max" | "min", x, y) if x == y:
            return x
        case ("mul", x, Node(op="div", args=(Node(op="number", value=1.0), y))):
            return Node("div", (x, y))
        case ("div", x, Node(op="div", args=(Node(op="number", value=1.0), y))):
            return Node("mul", (x, y))
        case ("powabs", x, Node(op="number", value=1.0)):
            return Node("abs", (x,))
        case ("powabs", x, Node(op="number", value=2.0)):
            return Node("square", (x,))
        case ("pow", x, Node(op="number", value=1.0)):
            return x
        case ("pow", x, Node(op="number", value=3.0)):
            return Node("cube", (x,))
        case (op, Node(op=inner)) if op == inner and op in _MEANS:
            return args[0]
        case ("lag", x, Node(op="number", value=0.0)):
            return x
        case ("lag", Node(op="lag", args=(x, inner)), outer) if inner.value + outer.value <= ex.MAX_LAG:
            return Node("lag", (x, ex.number(inner.value + outer.value)))
    return node


def _gathered(node: Node) -> Node:
    """Sums and factors gathered as for a search engine's trees (interchange.language.canonical)."""
    columns: list[Node] = []

    def tree(n: Node) -> list:
        if n.op == "number":
            return ["c", n.value]
        if n.op == "name" or n.op in TEMPORAL:
            columns.append(Node(n.op, (_gathered(n.args[0]), *n.args[1:])) if n.args else n)
            return ["x", len(columns) - 1]
        return [n.op, *map(tree, n.args)]

    return to_node(tree(node), columns)


def probes(columns: int = 48, steps: int = 60) -> dict[str, np.ndarray]:
    """Gradients and parameters [T, N], calm to extreme: noise of many scales, zeros, spikes, steady signs."""
    rng = np.random.default_rng(20220316)
    scale = 10.0 ** rng.uniform(-9, 9, columns)
    g = rng.normal(size=(steps, columns)) * scale
    for t in range(1, steps):
        g[t] = 0.7 * g[t - 1] + 0.3 * g[t]
    g[:, :4] = 0.0
    g[steps // 2, 2:8] = (1e-12, -1e6, 1e20, -1e20, 1e6, -1e-12)
    g[:, 8:12] = np.abs(g[:, 8:12])
    return {"g": g, "theta": rng.normal(size=(steps, columns))}


def _agrees(rule: Equation, expression: Node) -> bool:
    """Whether an expression has the rule's values on ``probes``; features without definition are noise."""
    given: dict[str, Any] = dict(probes())
    shapes = trial(given["g"].shape[1])
    rng = np.random.default_rng(1)
    for name, tree in rule.features.items():
        given[name] = (
            rng.normal(size=given["g"].shape) * given["g"] ** 0
            if tree is None
            else evaluate_trees([tree], probes(), shapes=shapes)[0]
        )
    inputs = given | rule.constants
    trees = (rule.expression, expression)
    old, new = (evaluate_trees([tree], inputs, shapes=shapes)[0] for tree in trees)
    return bool(_close(old, new).all())


def _close(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Per element: both not finite, or equal within rounding of the largest value of their column."""
    finite = np.isfinite(old)
    with np.errstate(all="ignore"):
        size = np.where(finite, np.abs(old), 0.0).max(0, initial=0.0)
        near = np.abs(old - new) <= _TOLERANCE * np.maximum(np.abs(old), 1e-3 * size)
    return np.where(finite, near, ~np.isfinite(new))


def equal_up_to_constants(a: Equation, b: Equation) -> bool:
    """Whether two rules are one equation with other values of its constants.

    Order of terms and factors, signs of constants, numbers against named constants and features against
    their definitions make no difference; an overall factor counts as a constant, as lr can be it.
    """
    one, other = _shape_of(a), _shape_of(b)
    free, other_free = _scaled("c", *one), _scaled("c", *other)
    return one == other or (free == other_free and (one == free or other == other_free))


def _shape_of(rule: Equation) -> Any:
    defined = {name: tree for name, tree in rule.features.items() if tree is not None}
    tree = ex.substitute(rule.expression, defined)
    return _scaled("c" if rule.scale != 1.0 else 1, *_shape(tree, frozenset(rule.constants)))


def _scaled(outer: Any, factor: Any, body: Any) -> Any:
    """``outer * (factor * body)``; c * (x + c y) is c x + c y: as many free constants. c * (x + y) is not."""
    factor = "c" if "c" in (outer, factor) else outer * factor
    if factor == "c" and body and body[0] == "sum":
        terms = body[1]
        if sum(own == "c" for own, _ in terms) >= len(terms) - 1:
            return 1, ("sum", tuple(("c", part) for _, part in terms))
    return factor, body


def _shape(node: Node, constants: frozenset[str]) -> tuple[Any, Any]:
    """(1, -1 or "c", body): a factor, "c" if a constant can absorb it, and what it multiplies; None is 1."""
    if node.op == "number" or (node.op == "name" and node.name in constants):
        return "c", None
    if node.op == "name":
        return 1, ("name", node.name)
    parts = [_shape(arg, constants) for arg in node.args]
    if node.op in ("add", "sub", "neg"):
        signs = (1, -1) if node.op == "sub" else (-1,) if node.op == "neg" else (1, 1)
        return _sum_shape([_scaled(sign, *part) for sign, part in zip(signs, parts, strict=True)])
    if node.op == "lag":
        return 1, ("lag", parts[0], node.args[1].value)
    if node.op not in TEMPORAL and all(part == ("c", None) for part in parts):
        return "c", None
    powers = {"mul": (1, 1), "div": (1, -1), "square": (2,), "cube": (3,)}.get(node.op)
    if powers:
        return _product_shape(parts, powers)
    if node.op in ("max", "min"):
        parts.sort(key=repr)
    return 1, (node.op, *parts)


def _sum_shape(terms: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    flat: list[tuple[Any, Any]] = []
    for factor, body in terms:
        if factor != "c" and body and body[0] == "sum":
            flat.extend(_scaled(factor, own, part) for own, part in body[1])
        else:
            flat.append((factor, body))
    merged: dict[Any, Any] = {}
    for factor, body in flat:
        together = "c" if "c" in (factor, merged.get(body, 0)) else merged.get(body, 0) + factor
        merged[body] = together if together in (0, 1, -1) else "c"
    kept = sorted(((factor, body) for body, factor in merged.items() if factor), key=lambda t: repr(t[1]))
    if len(kept) == 1:
        return kept[0]
    if not kept:
        return "c", None
    sign = next((factor for factor, _ in kept if factor != "c"), 1)
    return sign, ("sum", tuple((factor if factor == "c" else sign * factor, body) for factor, body in kept))


def _product_shape(parts: list[tuple[Any, Any]], powers: tuple[int, ...]) -> tuple[Any, Any]:
    outer: Any = 1
    factors: Counter = Counter()
    for (factor, body), power in zip(parts, powers, strict=True):
        outer = "c" if "c" in (outer, factor) else outer * factor ** abs(power)
        inner = body[1] if body and body[0] == "product" else ((body, 1),) if body else ()
        for base, exponent in inner:
            factors[base] += exponent * power
    kept = tuple(sorted(((base, power) for base, power in factors.items() if power), key=repr))
    if not kept:
        return outer, None
    return _scaled(outer, 1, kept[0][0] if len(kept) == 1 and kept[0][1] == 1 else ("product", kept))
