"""Expressions of the rule language as immutable trees, and their text.

A node is a number, a name, or an operator of the table beside this applied to nodes. Trees are at most
100 deep where they come from text (``parse``), so plain recursion is fine here.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from common.errors import L2OError
from interchange.language.operators import OPERATORS, TEMPORAL, TENSOR
from interchange.language.view import SIZES

MAX_LAG = 100

_INFIX = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2)}
_UNARY, _ATOM = 3, 4


@dataclass(frozen=True, slots=True)
class Node:
    """One node.

    Attributes:
        op: "number", "name", or an operator's name.
        args: the operands of an operator.
        name: of a "name".
        value: of a "number"; finite.
    """

    op: str
    args: tuple["Node", ...] = ()
    name: str = ""
    value: float = 0.0

    def __str__(self) -> str:
        return to_text(self)


def number(value: float) -> Node:
    """A literal; a value that is not finite raises ``L2OError``."""
    value = float(value)
    if not math.isfinite(value):
        raise L2OError(f"expected a finite number in an expression, got {value}")
    return Node("number", value=value)


def name(text: str) -> Node:
    """A feature, a constant, ``g``, ``t`` or ``theta``."""
    return Node("name", name=text)


def call(op: str, *args: Node) -> Node:
    """An operator applied to nodes; an unknown operator or bad arguments raise ``L2OError``."""
    arity = OPERATORS[op].arity
    if len(args) != arity:
        raise L2OError(f"{op} takes {arity} argument{'s'[: arity != 1]}, got {len(args)}")
    if op == "lag" and not _is_lag_count(args[1]):
        raise L2OError(f"lag(x, k) needs a literal integer k from 0 to {MAX_LAG}, got {to_text(args[1])}")
    if op in ("ema", "ema_hat") and not (_is_decay(args[1]) or (op == "ema" and of_t_alone(args[1]))):
        raise L2OError(
            f"{op}(x, b) needs a literal b with 0 < b < 1 or the name of a constant"
            f"{', or for ema an expression of t alone' * (op == 'ema')}, got {to_text(args[1])}"
        )
    return Node(op, args)


def _is_lag_count(node: Node) -> bool:
    return node.op == "number" and node.value.is_integer() and 0 <= node.value <= MAX_LAG


def _is_decay(node: Node) -> bool:
    return node.op == "name" or (node.op == "number" and 0.0 < node.value < 1.0)


def of_t_alone(node: Node) -> bool:
    """Whether it is an expression whose value is a number that depends on t, without memory."""
    if node.op in TEMPORAL or node.op in TENSOR or node.op == "by_matrix":
        return False
    return node == Node("name", name="t") or (
        bool(node.args)
        and names(node) == ("t",)
        and all(arg.op == "number" or of_t_alone(arg) for arg in node.args)
    )


def sees_tensors(node: Node) -> bool:
    """Whether it has to know the whole tensor of a coordinate: a tensor operator, or a size of the tensor."""
    return any(
        part.op in TENSOR or part.op == "by_matrix" or (part.op == "name" and part.name in SIZES)
        for part in walk(node)
    )


def branch(node: Node, has_matrix: bool) -> Node:
    """The tree for tensors with, or without, a matrix view: ``by_matrix`` gives way to what it chooses."""
    if node.op == "by_matrix":
        return branch(node.args[0 if has_matrix else 1], has_matrix)
    args = tuple(branch(arg, has_matrix) for arg in node.args)
    return node if all(new is old for new, old in zip(args, node.args, strict=True)) else Node(node.op, args)


def walk(node: Node) -> Iterator[Node]:
    """Every node of the tree, parents before children, left to right."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(reversed(current.args))


def names(node: Node) -> tuple[str, ...]:
    """The names used, each once, in order of first appearance."""
    return tuple(dict.fromkeys(part.name for part in walk(node) if part.op == "name"))


def complexity(node: Node) -> int:
    """Every operator, feature, constant, literal and lag count is 1; a sign on a literal is 0."""
    return sum(not (part.op == "neg" and part.args[0].op == "number") for part in walk(node))


def depth(node: Node) -> int:
    """Nodes on the longest path from the root to a leaf; 1 for a leaf."""
    return 1 + max(map(depth, node.args), default=0)


def substitute(node: Node, replacements: Mapping[str, Node]) -> Node:
    """The tree with every name in ``replacements`` replaced; shares what does not change."""
    if node.op == "name":
        return replacements.get(node.name, node)
    args = tuple(substitute(arg, replacements) for arg in node.args)
    if all(new is old for new, old in zip(args, node.args, strict=True)):
        return node
    return call(node.op, *args)


def to_text(node: Node) -> str:
    """The expression as text: infix ``+ - * /``, unary ``-``, calls; floats exact (shortest repr).

    ``parse(to_text(node)) == node`` for every tree.
    """
    return _render(node)[0]


def decay_text(value: float, digits: int) -> str:
    """A decay rounded so that 1 minus it has these digits, too: that tells how long an average remembers."""
    places = digits - 1 - math.floor(math.log10(1.0 - value))
    return f"{value:.{places}f}".rstrip("0") if value >= 0.5 else f"{value:.{digits}g}"


def _render(node: Node) -> tuple[str, int]:
    """Text and binding strength."""
    if node.op == "name":
        return node.name, _ATOM
    if node.op == "number":
        return repr(node.value), _ATOM if math.copysign(1.0, node.value) > 0 else _UNARY
    if node.op in _INFIX:
        symbol, strength = _INFIX[node.op]
        left = _bound(node.args[0], strength)
        right = _bound(node.args[1], strength + 1)
        return f"{left} {symbol} {right}", strength
    if node.op == "neg" and node.args[0].op != "number":
        # A sign in front of a literal belongs to the literal, so neg(2.0) keeps its name.
        return "-" + _bound(node.args[0], _UNARY), _UNARY
    parts = [_render(arg)[0] for arg in node.args]
    if node.op == "lag":
        parts[1] = str(int(node.args[1].value))
    return f"{node.op}({', '.join(parts)})", _ATOM


def _bound(node: Node, strength: int) -> str:
    text, own = _render(node)
    return text if own >= strength else f"({text})"
