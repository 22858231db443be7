"""SymPy's Piecewise and Heaviside as rows, where rows say exactly that."""

from collections.abc import Sequence

from common.errors import L2OError
from interchange.dialects.forms import ordered
from interchange.dialects.functions import ONE, ZERO
from interchange.language.expression import Node, call, number, to_text, walk
from interchange.language.sugar import COMPARISONS, compare, not_negative

Pair = tuple[Node | None, Node | None]
_GE = COMPARISONS[2]

# Finite for every finite argument, but for overflow: what a condition excludes then does no harm.
_TOTAL = frozenset({
    "number", "name", "add", "sub", "mul", "neg", "square", "cube", "abs", "sign", "sqrt", "log", "cbrt",
    "tanh", "asinh", "erf", "erfc", "sin", "cos", "atan", "sigmoid", "relu", "softsign", "max", "min",
    "greater", "aq",
})  # fmt: skip
_STRICT = ("root", "ln", "powreal")


def piecewise(pairs: Sequence[Pair]) -> Node:
    """The node of (value, condition) pairs; a value None is nan, a condition None is True.

    Raises:
        L2OError: no rows mean exactly that.
    """
    if not pairs or pairs[-1][1] is not None or any(condition is None for _, condition in pairs[:-1]):
        raise L2OError("expected Piecewise to end with (value, True), so that it has a value everywhere")
    (*cases, (result, _)) = pairs
    if result is None:  # a value, and nan elsewhere
        if len(cases) != 1 or cases[0][0] is None:
            raise L2OError("Piecewise with nan at its end has a row with one value before it; write it so")
        value, condition = cases[0]
        cases, result = [(None, call("sub", ONE, condition))], value
    for value, condition in reversed(cases):
        if value is None:
            result = _outside(result, condition)
        elif not (value == ZERO and _is_zero_where(result, condition)):
            result = _chosen(condition, value, result)
    return result


def _outside(value: Node, condition: Node) -> Node:
    """The value, and nan where a condition holds."""
    if condition.op == "sub":  # where it does not hold
        low, high = _sides(condition.args[1])
        if not _or_equal(condition.args[1]):
            raise L2OError("nan where two sides are equal has no row; write the condition with >= or <=")
        low, high = high, low
    else:
        low, high = _sides(condition)
        if _or_equal(condition):
            raise L2OError("nan where two sides are equal has no row; write the condition with < or >")
    if _is_nan_where(value, low, high):
        return value
    # The root of what is negative there; elsewhere 0 is added.
    gap = low if high == ZERO else call("sub", low, high)
    return call("add", value, call("mul", ZERO, call("root", gap)))


def _sides(condition: Node) -> tuple[Node, Node]:
    """a and b of a < b, or of a <= b."""
    if condition.op != "greater":
        raise L2OError(f"expected a comparison as condition, got {to_text(condition)[:60]}")
    high, low = condition.args
    if not _or_equal(condition):
        return low, high
    inner = low.args[0]
    return inner.args if inner.op == "sub" else (inner, ZERO)


def _or_equal(condition: Node) -> bool:
    """Whether it is a <= b, which is 1 > sign(a - b)."""
    return condition.op == "greater" and condition.args[0] == ONE and condition.args[1].op == "sign"


def _is_nan_where(value: Node, low: Node, high: Node) -> bool:
    """Whether a tree is nan by itself wherever low < high."""
    gaps = [low] if high == ZERO else [call("sub", low, high)]
    if high.op == "number" and high != ZERO:
        gaps.append(call("add", low, number(-high.value)))
    gaps = [ordered(gap) for gap in gaps]
    for node in _reached(value):
        if not node.args or (node.op not in _STRICT and not not_negative(node.args[0])):
            continue
        a, *more = node.args
        if ordered(a) in gaps and _is_real(node):
            return True
        if node.op in ("powreal", "powabs"):  # the latter where the base is not negative
            rest = call("sub", more[0], Node("floor", (more[0],)))
            sign_alone = a.op == "number" and a.value < 0.0
            if ordered(call("neg", rest) if sign_alone else call("mul", a, rest)) in gaps:
                return True
    return False


def _is_real(node: Node) -> bool:
    """Whether the exponent of a power, if it is one, is no integer."""
    return node.op != "powreal" or (node.args[1].op == "number" and not node.args[1].value.is_integer())


def _is_zero_where(result: Node, condition: Node) -> bool:
    """Whether a comparison, or its power, is 0 where the condition holds, as a side of it is nan there."""
    while result.op in ("square", "cube", "neg"):  # SymPy takes them into the pieces
        result = result.args[0]
    if not (result.op == condition.op == "greater") or _or_equal(condition):
        return False
    return any(_is_nan_where(side, *_sides(condition)) for side in result.args)


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
        by_number = part.op == "div" and part.args[1].op == "number" and part.args[1] != ZERO
        if part.op not in _TOTAL and not by_number:
            raise L2OError(
                f"a branch of Piecewise with {part.op} may be infinite or nan where it is not chosen, and no "
                "row chooses; write it of max, min, abs or greater"
            )
    taken = condition if yes == ONE else call("mul", condition, yes)
    other = call("sub", ONE, condition)
    if no == ZERO:
        return taken
    return call("add", taken, other if no == ONE else call("mul", other, no))


def heaviside(*args: Node) -> Node:
    """0 below 0, 1 above; at 0 a half, or what SymPy's second argument says."""
    if len(args) not in (1, 2):
        raise L2OError(f"Heaviside takes 1 or 2 arguments, got {len(args)}")
    a, at_zero = (*args, number(0.5))[:2]
    if at_zero == ZERO:
        return call("greater", *a.args) if a.op == "sub" else call("greater", a, ZERO)
    if at_zero == ONE:
        return compare(_GE, a, ZERO)
    if at_zero not in (number(0.5), call("div", ONE, number(2.0))):
        raise L2OError("Heaviside has a row where its value at 0 is 0, 1 or 1/2")
    return call("mul", number(0.5), call("add", ONE, call("sign", a)))
