"""Formulas that are rows: what SymPy prints of an operator that it has not, as that operator again."""

import functools

from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.language.sugar import not_negative

# Over a and b, as the parser of SymPy's text reads them; the values and the derivatives are the row's.
# Those of the second table are it where a is not negative by its form.
_FORMS = (
    ("cbrt", "sign(a) * powabs(a, 1 / 3)"),  # before pow, whose form it has too
    ("pow", "sign(a) * powabs(a, b)"),
    ("log", "logabs(abs(a) + 1e-8)"),
    ("log1p", "2 * asinh(a / (2 * root(a + 1)))"),
    ("sigmoid", "exp(min(a, 0)) / (1 + exp(-abs(a)))"),
    ("softsign", "a / (1 + abs(a))"),
    ("aq", "a / sqrt(1 + square(b))"),
)
_OF_POSITIVE = (("log1p", "2 * asinh(a / (2 * sqrt(a + 1)))"),)
_COMMUTE = ("add", "mul", "min", "max")


@functools.cache
def _templates() -> list[tuple[str, Node, bool]]:
    return [(op, parse(text, ("a", "b")), (op, text) in _OF_POSITIVE) for op, text in _FORMS + _OF_POSITIVE]


def recognised(node: Node) -> Node:
    """The tree with rows in place of their formulas."""
    node = Node(node.op, tuple(map(recognised, node.args)), node.name, node.value) if node.args else node
    for op, template, positive in _templates():
        for bound in _matches(template, node, {}):
            if not positive or not_negative(bound["a"]):
                return Node(op, tuple(bound[name] for name in ("a", "b") if name in bound))
    return node


def _matches(template: Node, node: Node, bound: dict[str, Node]) -> list[dict[str, Node]]:
    """What a and b stand for where the node has the template's form; factors and terms in any order."""
    if template.op == "name":
        return [{**bound, template.name: node}] if bound.get(template.name, node) == node else []
    if template.op == "number" or template.op != node.op:
        return [bound] if template == node else []
    orders = [node.args, node.args[::-1]] if template.op in _COMMUTE else [node.args]
    found = []
    for args in orders:
        states = [bound]
        for below, arg in zip(template.args, args, strict=True):
            states = [after for state in states for after in _matches(below, arg, state)]
        found += states
    return found[:1]


def ordered(node: Node) -> Node:
    """The tree with factors and terms in one order, for comparisons."""
    args = tuple(map(ordered, node.args))
    return Node(
        node.op, tuple(sorted(args, key=repr)) if node.op in _COMMUTE else args, node.name, node.value
    )
