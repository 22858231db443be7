"""A rule for SymPy: text with every digit, and trees built node by node. No text is ever handed to SymPy.

Operators that SymPy has with exactly our meaning become SymPy's; the others become functions of our names
that know their formula (emit.sympy_functions), so that nothing is simplified under a wrong assumption,
numbers are the rule's, and ``dialects.sympy_tree`` can read a tree back after the user's algebra.
"""

import functools
import math
from typing import Any

from common.errors import L2OError
from interchange.dialects.table import BY_SYMPY
from interchange.emit.sympy_functions import excluded, functions, natural, rank
from interchange.language.equation import Equation
from interchange.language.expression import Node, call, names, number, substitute, to_text, walk
from interchange.language.operators import OPERATORS
from interchange.language.sugar import not_negative, numbers_alone, of_numbers

_ARITHMETIC = frozenset({"add", "sub", "mul", "div", "neg", "square", "cube"})


def emit(rule: Equation) -> str:
    """The expression with its numbers, as SymPy reads it; below it, as comments, what the features are.

    ``sympy.sympify`` of the whole file gives the expression, and ``interchange.convert`` the rule.
    """
    used = names(rule.expression)
    given = {name: tree for name, tree in rule.features.items() if name in used and tree is not None}
    tree = _scaled(rule, values=True)
    if any(math.isnan(part.value) for part in walk(tree) if part.op == "number"):
        raise L2OError(f"{rule.name}: expected a rule with a value somewhere, got one that is nan everywhere")
    import sympy

    with sympy.evaluate(False):  # what SymPy knows of real numbers floats do not keep: exp(-1000) > 0
        expression = _closed(*_flat(tree))
    lines = [printed(expression), f"# {BY_SYMPY}"]
    return "\n".join([*lines, *(f"# {name} = {to_text(tree)}" for name, tree in given.items())]) + "\n"


def printed(expression: Any) -> str:
    """What SymPy prints, but for floats, which have every digit, and terms, which stay in their order."""
    return _printer().doprint(expression)


@functools.cache
def _printer() -> Any:
    from sympy.printing.precedence import PRECEDENCE
    from sympy.printing.str import StrPrinter

    class Exact(StrPrinter):
        """SymPy's printer cuts floats after 15 digits, and multiplies out or turns round some products."""

        def _print_Mul(self, expression: Any) -> str:  # noqa: N802
            first, *others = expression.args
            minus = bool(others) and first.is_Number and bool(first.is_negative)
            factors = [-first] * (first != -1) + others if minus else list(expression.args)
            under = [factor.base for factor in factors if factor.is_Pow and factor.exp == -1]
            over = [factor for factor in factors if not (factor.is_Pow and factor.exp == -1)]
            # A sign goes before a product as it is, but not into its number: -(2*x) is not (-2)*x.
            alone = minus and len(factors) == 1 and not (factors[0].is_Mul and factors[0].args[0].is_Number)
            level = PRECEDENCE["Mul"]
            top = "*".join(self.parenthesize(factor, level, strict=alone) for factor in over) or "1"
            return "/".join(["-" * minus + top, *(self.parenthesize(factor, level) for factor in under)])

        def parenthesize(self, item: Any, level: int, strict: bool = False) -> str:
            text, own = self._print(item), rank(item)
            return f"({text})" if own < level or (own == level and not strict) else text

        def _print_Float(self, expression: Any) -> str:  # noqa: N802
            return repr(float(expression))

    return Exact({"order": "none"})


def build_rule(rule: Equation, *, values: bool = False) -> Any:
    """``scale * expression`` as an unevaluated SymPy expression over features and constants.

    Args:
        values: put in the numbers of the constants.
    """
    return build(_scaled(rule, values))


def _scaled(rule: Equation, values: bool) -> Node:
    tree = rule.expression
    if values:
        tree = substitute(tree, {name: number(value) for name, value in rule.constants.items()})
    return _known(tree if rule.scale == 1.0 else call("mul", number(rule.scale), tree))


def _known(node: Node) -> Node:
    """A tree whose parts of numbers alone are the numbers they are, nan and infinite ones included.

    SymPy works with them in ways of its own, and cannot compare what is nan by its form. Arithmetic stays.
    """
    if not node.args:
        return node
    node = Node(node.op, tuple(map(_known, node.args)))
    if not OPERATORS[node.op].numpy:
        return node
    if all(map(numbers_alone, node.args)):
        value = of_numbers(node)
        return node if node.op in _ARITHMETIC and math.isfinite(value) else Node("number", value=value)
    if node.op == "powreal" and numbers_alone(node.args[0]):  # whose sign is asked for
        node = Node("powreal", (Node("number", value=of_numbers(node.args[0])), node.args[1]))
    if any(math.isnan(arg.value) for arg in node.args if arg.op == "number"):
        return number(0.0) if node.op == "greater" else Node("number", value=math.nan)
    if node.op == "div" and numbers_alone(node.args[1]) and not (zero := of_numbers(node.args[1])):
        return Node("mul", (node.args[0], Node("number", value=math.copysign(math.inf, zero))))
    return node


def _flat(node: Node, asked: bool = False, named: bool = False) -> tuple[Any, list]:
    """A tree in functions of SymPy alone, and the comparisons under which it is nan, the inner ones first.

    SymPy cannot compare what is nan by its form, so the comparisons are gathered up to where they are asked.
    Of comparisons of comparisons it makes ITE, which Heaviside is not (``asked``: it will be compared).
    No number goes through an operator by name, so within one (``named``) no domain has to be said.
    """
    import sympy

    if not node.args:
        return build(node), []
    compared, asked = asked, asked or node.op in ("greater", "root", "ln", "log1p", "powreal")
    named = named or not OPERATORS[node.op].numpy
    parts = [_flat(arg, asked, named) for arg in node.args]
    if not OPERATORS[node.op].numpy:
        return functions()[node.op](*(part[0] for part in parts), evaluate=False), []
    args, outside = [part[0] for part in parts], [bad for part in parts for bad in part[1]]
    if node.op == "greater":
        zeros = [] if named else [(sympy.S.Zero, bad) for bad in outside]
        higher = [(sympy.S.One, sympy.Gt(*args, evaluate=False)), (sympy.S.Zero, True)]
        if named or (compared and not outside) or any(arg.has(sympy.Piecewise) for arg in args):
            gap = sympy.Add(args[0], sympy.Mul(-1, args[1], evaluate=False), evaluate=False)
            higher = [(sympy.Heaviside(gap, 0, evaluate=False), True)]
        return sympy.Piecewise(*zeros, *higher, evaluate=False) if zeros or higher[1:] else higher[0][0], []
    if node.op in _ARITHMETIC:
        return _arithmetic(sympy, node.op, args), outside
    if node.op not in functions() or node.op == "sign":
        return getattr(sympy, OPERATORS[node.op].sympy)(*args, evaluate=False), outside
    bad = None if not_negative(node.args[0]) else excluded(node.op, *args, evaluate=False)
    return natural(node.op, *args), [*outside, *([] if bad is None else [bad])]


def _closed(expression: Any, outside: list) -> Any:
    import sympy

    if not outside:
        return expression
    cases = [(sympy.nan, bad) for bad in dict.fromkeys(outside)]
    return sympy.Piecewise(*cases, (expression, True), evaluate=False)


def build(node: Node) -> Any:
    """The SymPy expression of a tree: real symbols, ``evaluate=False`` throughout."""
    import sympy

    if node.op == "number" and not math.isfinite(node.value):
        size = sympy.exp(sympy.Float(1e4), evaluate=False)  # what no float holds; the language has no number
        return {math.inf: size, -math.inf: sympy.Mul(-1, size, evaluate=False)}.get(node.value, sympy.nan)
    if node.op == "number":
        integer = node.value.is_integer() and abs(node.value) <= 100
        if integer:
            return sympy.Integer(int(node.value))
        short = float(f"{node.value:.15g}") == node.value
        return sympy.Float(node.value, 15 if short else 17)
    if node.op == "name":
        return sympy.Symbol(node.name, real=True)
    args = [build(arg) for arg in node.args]
    if node.op in _ARITHMETIC:
        if node.op in ("square", "cube") and (args[0].is_Mul or args[0].is_Pow):
            # As a power its derivative would be 0/0 at 0.
            return sympy.Mul(*args * (2 if node.op == "square" else 3), evaluate=False)
        return _arithmetic(sympy, node.op, args)
    own = functions()
    function = own[node.op] if node.op in own else getattr(sympy, OPERATORS[node.op].sympy)
    return function(*args, evaluate=False)


def _arithmetic(sympy: Any, op: str, args: list) -> Any:
    minus = sympy.Integer(-1)
    match op:
        case "add":
            return sympy.Add(*args, evaluate=False)
        case "sub":
            return sympy.Add(args[0], sympy.Mul(minus, args[1], evaluate=False), evaluate=False)
        case "mul":
            return sympy.Mul(*args, evaluate=False)
        case "div":
            return sympy.Mul(args[0], sympy.Pow(args[1], minus, evaluate=False), evaluate=False)
        case "neg":
            return sympy.Mul(minus, args[0], evaluate=False)
    return sympy.Pow(args[0], sympy.Integer(2 if op == "square" else 3), evaluate=False)
