"""What people write that is no row by itself: powers, comparisons, Max of several; each as exact rows."""

import ast
from collections.abc import Callable

import numpy as np

from common.errors import L2OError
from interchange.language.expression import Node, call, complexity, number, walk
from interchange.language.operators import OPERATORS

MAX_POWER = 16
_MAX_NODES = 1_000
_ONE = number(1.0)


def integer_power(base: Node, exponent: int) -> Node:
    """``base**exponent`` as squares, cubes and products; a negative power is one over it."""
    if abs(exponent) > MAX_POWER:
        return call("powreal", base, number(exponent))
    if exponent <= 0:
        return call("div", _ONE, integer_power(base, -exponent)) if exponent else _ONE
    if exponent == 1:
        return base
    if exponent % 2 == 0:
        return call("square", integer_power(base, exponent // 2))
    if exponent % 3 == 0:
        return call("cube", integer_power(base, exponent // 3))
    power = call("mul", base, integer_power(base, exponent - 1))
    if complexity(power) > _MAX_NODES:  # powers of powers grow without bound
        raise L2OError(f"expected a power of at most {_MAX_NODES} nodes when written out")
    return power


def real_power(base: Node, exponent: Node) -> Node:
    """``base**exponent`` over the reals: nan where the base is negative and the exponent no integer."""
    if exponent.op == "number" and exponent.value.is_integer():
        return integer_power(base, int(exponent.value))
    if base.op == "abs":
        return call("powabs", base.args[0], exponent)
    return call("powabs" if not_negative(base) else "powreal", base, exponent)


def real_root(a: Node) -> Node:
    """The square root over the reals: nan below 0."""
    if a.op == "abs":
        return call("sqrt", a.args[0])
    return call("sqrt" if not_negative(a) else "root", a)


def real_logarithm(a: Node) -> Node:
    """The natural logarithm over the reals: nan below 0."""
    if a.op == "abs":
        return call("logabs", a.args[0])
    return call("logabs" if not_negative(a) else "ln", a)


def not_negative(node: Node) -> bool:
    """Whether a tree is 0 or more by its form."""
    if node.op == "number":
        return node.value >= 0.0
    if node.op in ("add", "mul", "div"):
        return all(map(not_negative, node.args))
    never = ("abs", "square", "exp", "cosh", "sqrt", "root", "powabs", "sigmoid", "relu", "erfc", "greater")
    return node.op in never


def folded(op: str) -> Callable[..., Node]:
    """``op`` of one argument or more, as Max and Min are written."""

    def build(*args: Node) -> Node:
        if not args:
            raise L2OError(f"{op.capitalize()} takes 1 argument or more, got 0")
        first, *others = args
        for other in others:
            first = call(op, first, other)
        return first

    return build


def compare(kind: type[ast.cmpop], a: Node, b: Node) -> Node:
    """1 where a comparison holds and else 0, as also where one side is NaN; exact for finite sides."""
    if kind in (ast.Lt, ast.LtE):
        return compare(ast.Gt if kind is ast.Lt else ast.GtE, b, a)
    if kind is ast.Gt:
        return call("greater", a, b)
    return call("greater", _ONE, call("sign", b if a == number(0.0) else call("sub", b, a)))


def numbers_alone(node: Node) -> bool:
    """Whether ``of_numbers`` has a value of it."""
    return all(part.op == "number" or (part.args and OPERATORS[part.op].numpy) for part in walk(node))


def of_numbers(node: Node) -> float:
    """The value of a pointwise expression of numbers alone."""
    if node.op == "number":
        return node.value
    with np.errstate(all="ignore"):
        return float(OPERATORS[node.op].numpy(*(np.float64(of_numbers(arg)) for arg in node.args)))


COMPARISONS = (ast.Gt, ast.Lt, ast.GtE, ast.LtE)
ALIASES = {"Abs": lambda a: call("abs", a), "Max": folded("max"), "Min": folded("min")}
