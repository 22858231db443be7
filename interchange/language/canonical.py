"""Engine trees -> expressions with named constants, with factors gathered where that saves nodes.

A sub-tree is held as ``factor * node``; factors move outward through products, squares and odd
functions, sums are flattened and like terms merged, so that a constant is paid for once.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from interchange.language import expression as ex
from interchange.language.expression import Node

_ODD = frozenset({"tanh", "asinh", "sinh", "sin", "atan", "cbrt", "softsign", "polar"})
_HOMOGENEOUS = frozenset({"mean", "row_mean", "col_mean", "orth"})  # f(c x) = c f(x)


@dataclasses.dataclass(frozen=True)
class _Scaled:
    factor: float
    node: Node | None  # None: the constant itself

    def plain(self) -> Node:
        if self.node is None:
            return ex.number(self.factor)
        if self.factor == 1.0:
            return self.node
        return ex.call("mul", ex.number(self.factor), self.node)


def to_node(tree: Any, columns: Sequence[Node], scale: float = 1.0, offset: float = 0.0) -> Node:
    """``scale * tree + offset`` as an expression; ``["x", k]`` stands for ``columns[k]``."""
    terms = _terms(["add", ["mul", ["c", scale], tree], ["c", offset]], columns)
    return _sum(terms).plain()


def _simplify(tree: Any, columns: Sequence[Node]) -> _Scaled:
    op, *args = tree
    if op == "c":
        return _Scaled(float(args[0]), None)
    if op == "x":
        return _Scaled(1.0, columns[args[0]])
    if op in ("add", "sub", "neg"):
        return _sum(_terms(tree, columns))
    parts = [_simplify(arg, columns) for arg in args]
    if op == "mul":
        a, b = parts
        if a.node is None or b.node is None:
            return _Scaled(a.factor * b.factor, a.node or b.node)
        node = ex.call("square", a.node) if a.node == b.node else ex.call("mul", a.node, b.node)
        return _Scaled(a.factor * b.factor, node)
    if op == "div" and (parts[0].node or parts[1].node):
        a, b = parts
        ratio = a.factor / b.factor if b.factor else 0.0
        if ratio and math.isfinite(ratio):
            if b.node is None:
                return _Scaled(ratio, a.node)
            if a.node is None:
                return _Scaled(1.0, ex.call("div", ex.number(ratio), b.node))
            return _Scaled(ratio, ex.call("div", a.node, b.node))
    if op == "square" and parts[0].node is not None:
        return _Scaled(parts[0].factor ** 2, ex.call("square", parts[0].node))
    if op == "abs" and parts[0].node is not None:
        return _Scaled(abs(parts[0].factor), ex.call("abs", parts[0].node))
    if op == "aq" and parts[0].node is not None:
        return _Scaled(parts[0].factor, ex.call("aq", parts[0].node, parts[1].plain()))
    if op in _HOMOGENEOUS and parts[0].node is not None:
        return _Scaled(parts[0].factor, ex.call(op, parts[0].node))
    if op in _ODD and parts[0].factor == -1.0 and parts[0].node is not None:
        return _Scaled(-1.0, ex.call(op, parts[0].node))
    return _Scaled(1.0, ex.call(op, *(part.plain() for part in parts)))


def _terms(tree: Any, columns: Sequence[Node], factor: float = 1.0) -> list[_Scaled]:
    """A sum as a flat list of terms, the factor multiplied in."""
    op, *args = tree
    if op == "add":
        return [term for arg in args for term in _terms(arg, columns, factor)]
    if op == "sub":
        return _terms(args[0], columns, factor) + _terms(args[1], columns, -factor)
    if op == "neg":
        return _terms(args[0], columns, -factor)
    if op == "mul" and args[0][0] == "c":
        return _terms(args[1], columns, factor * float(args[0][1]))
    if op == "mul" and args[1][0] == "c":
        return _terms(args[0], columns, factor * float(args[1][1]))
    part = _simplify(tree, columns)
    return [_Scaled(factor * part.factor, part.node)]


def _sum(terms: list[_Scaled]) -> _Scaled:
    """Like terms merged, terms of one size gathered; the largest factor goes out unless a term has none."""
    merged: dict[Node | None, float] = {}
    for term in terms:
        merged[term.node] = merged.get(term.node, 0.0) + term.factor
    constant = merged.pop(None, 0.0)
    ordered = sorted(merged.items(), key=lambda item: -abs(item[1]))
    groups: dict[float, list[_Scaled]] = {}
    for node, factor in ordered:
        if factor:
            groups.setdefault(abs(factor), []).append(_Scaled(factor, node))
    if not groups:
        return _Scaled(constant, None)
    parts = [_group(group) for group in groups.values()]
    rest = [_Scaled(constant, None)] if constant else []
    # Factors of 1 cost nothing as they are; something must precede those that are subtracted.
    free = 1.0 in groups and (rest or any(part.factor != -1.0 for part in parts))
    outer = 1.0 if free else parts[0].factor
    return _Scaled(outer, _join([_Scaled(part.factor / outer, part.node) for part in parts + rest]))


def _group(terms: list[_Scaled]) -> _Scaled:
    """Terms whose factors differ in sign at most."""
    factor = max(term.factor for term in terms)
    return _Scaled(factor, _join([_Scaled(term.factor / factor, term.node) for term in terms]))


def _join(parts: list[_Scaled]) -> Node:
    first, *others = sorted(parts, key=_is_subtracted)
    total = first.plain()
    for part in others:
        if _is_subtracted(part):
            total = ex.call("sub", total, part.node)
        else:
            total = ex.call("add", total, part.plain())
    return total


def _is_subtracted(part: _Scaled) -> bool:
    return part.factor == -1.0 and part.node is not None


def name_constants(node: Node) -> tuple[Node, dict[str, float]]:
    """Numbers replaced by c0, c1, ... in reading order; a decay of one input is one constant.

    Lag counts and numbers that are averaged stay literals.
    """
    values: dict[str, float] = {}
    decays: dict[tuple[Node, float], Node] = {}

    def fresh(value: float) -> Node:
        name = f"c{len(values)}"
        values[name] = value
        return ex.name(name)

    def visit(n: Node) -> Node:
        if n.op == "number":
            return fresh(n.value)
        if n.op == "lag":
            return ex.call("lag", visit(n.args[0]), n.args[1])
        if n.op in ("ema", "ema_hat") and n.args[1].op == "number":
            key = (n.args[0], n.args[1].value)
            # An average of 1 is 1 - b^t; as a constant the 1 would be a second factor of the whole.
            inner = n.args[0] if n.args[0].op == "number" else visit(n.args[0])
            if key not in decays:
                decays[key] = fresh(n.args[1].value)
            return ex.call(n.op, inner, decays[key])
        if n.op == "ema":  # a decay of t alone has no constants
            return ex.call("ema", visit(n.args[0]), n.args[1])
        return ex.call(n.op, *map(visit, n.args)) if n.args else n

    return visit(node), values
