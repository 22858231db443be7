"""SymPy's Piecewise and Heaviside as rows, where rows say exactly that."""

from collections.abc import Sequence

from common.errors import L2OError
from interchange.dialects.functions import ONE, ZERO
from interchange.language.expression import Node, call, number, to_text, walk
from interchange.language.sugar import COMPARISONS, compare, not_negative

Pair = tuple[Node | None, Node | None]
_GT, _LT, _GE, _LE = COMPARISONS

# Finite for every finite argument, but for overflow: what a condition excludes then does no harm.
_TOTAL = frozenset({
    "number", "name", "add", "sub", "mul", "neg", "square", "cube", "abs", "sign", "sqrt", "log", "cbrt",
    "tanh", "asinh", "erf", "erfc", "sin", "cos", "atan", "sigmoid", "relu", "softsign", "max", "min",
    "greater", "aq",
})  # fmt: skip
_STRICT = ("root", "ln", "power")


def piecewise(pairs: Sequence[Pair]) -> Node:
    """The node of (value, condition) pairs; a value None is nan, a condition None is True.

    Raises:
        L2OError: no rows mean exactly that.
    """
    if not pairs or pairs[-1][1] is not None or any(condition is None for _, condition in pairs[:-1]):
        raise L2OError("expected Piecewise to end with (value, True), so that it has a value everywhere")
    (*cases, (last, _)) = pairs
    if last is None:
        return _domain(cases)
    result = last
    for value, condition in reversed(cases):
        if value is None:
            raise L2OError("nan in the midst of Piecewise has no row")
        result = _chosen(condition, value, result)
    return result


def _domain(cases: Sequence[Pair]) -> Node:
    """A value that is nan outside its domain anyway, beside nan under the condition that says so."""
    value, condition = cases[0]
    if value is not None:
        for node in _reached(value):
            if not node.args or (node.op not in _STRICT and not not_negative(node.args[0])):
                continue  # of what is not negative only nan fails the condition
            if condition == compare(_GE, node.args[0], ZERO) and _rest(cases[1:], value, node):
                return value
    raise L2OError("nan under a condition has a row only where sqrt, log or a power is nan there by itself")


def _rest(cases: Sequence[Pair], value: Node, node: Node) -> bool:
    """No further case, or for a power the one of integer exponents."""
    if not cases:
        return node.op != "power" or (node.args[1].op == "number" and not node.args[1].value.is_integer())
    whole = Node("Eq", (Node("floor", (node.args[1],)), node.args[1])) if node.op == "power" else None
    return len(cases) == 1 and cases[0] in ((value, whole), (value, _swapped(whole)))


def _swapped(node: Node | None) -> Node | None:
    return None if node is None else Node(node.op, node.args[::-1])


def _reached(node: Node) -> list[Node]:
    """The nodes whose nan the whole tree takes on."""
    if node.op == "greater":
        return []
    return [node, *(below for arg in node.args for below in _reached(arg))]


def _chosen(condition: Node, yes: Node, no: Node) -> Node:
    """``yes`` where the condition is 1, else ``no``."""
    if condition.op != "greater":
        raise L2OError(f"expected a comparison as condition, got {to_text(condition)[:60]}")
    known = {
        (condition, ONE, ZERO): condition,
        (condition, *condition.args): call("max", *condition.args),
        (condition, *condition.args[::-1]): call("min", *condition.args),
    }
    if (condition, yes, no) in known:
        return known[condition, yes, no]
    for part in (*walk(yes), *walk(no)):
        if part.op not in _TOTAL:
            raise L2OError(
                f"a branch of Piecewise with {part.op} may be infinite or nan where it is not chosen, and no "
                "row chooses; write it of max, min, abs or greater"
            )
    taken = condition if yes == ONE else call("mul", condition, yes)
    other = call("sub", ONE, condition)
    if no == ZERO:
        return taken
    return call("add", taken, other if no == ONE else call("mul", other, no))


def heaviside(a: Node, at_zero: Node = number(0.5)) -> Node:  # noqa: B008
    """0 below 0, 1 above; at 0 a half, or what SymPy's second argument says."""
    if at_zero == ZERO:
        return call("greater", a, ZERO)
    if at_zero == ONE:
        return compare(_GE, a, ZERO)
    if at_zero not in (number(0.5), call("div", ONE, number(2.0))):
        raise L2OError("Heaviside has a row where its value at 0 is 0, 1 or 1/2")
    return call("mul", number(0.5), call("add", ONE, call("sign", a)))
