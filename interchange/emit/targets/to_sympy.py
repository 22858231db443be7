"""A rule for SymPy: exact text, and trees built node by node. No text is ever handed to SymPy.

Operators that SymPy has with exactly our meaning become SymPy's; the protected and temporal ones become
functions of our names (``sqrt`` here is sqrt(abs(a))), so nothing is simplified under a wrong assumption
and ``from_sympy`` can read a tree back after the user's algebra.
"""

from typing import Any

from common.errors import L2OError
from interchange.language.dialects import integer_power
from interchange.language.equation import Equation
from interchange.language.expression import Node, call, name, number, to_text
from interchange.language.operators import OPERATORS

_ARITHMETIC = frozenset({"add", "sub", "mul", "div", "neg", "square", "cube"})


def emit(rule: Equation) -> str:
    """``scale * expression`` as one line that SymPy and ``interchange.language.parse`` read; floats exact."""
    return to_text(_scaled(rule)) + "\n"


def build_rule(rule: Equation) -> Any:
    """``scale * expression`` as an unevaluated SymPy expression over features and constants."""
    return build(_scaled(rule))


def _scaled(rule: Equation) -> Node:
    return rule.expression if rule.scale == 1.0 else call("mul", number(rule.scale), rule.expression)


def build(node: Node) -> Any:
    """The SymPy expression of a tree: real symbols, ``evaluate=False`` throughout."""
    import sympy

    if node.op == "number":
        integer = node.value.is_integer() and abs(node.value) <= 100
        return sympy.Integer(int(node.value)) if integer else sympy.Float(node.value)
    if node.op == "name":
        return sympy.Symbol(node.name, real=True)
    args = [build(arg) for arg in node.args]
    if node.op in _ARITHMETIC:
        return _arithmetic(sympy, node.op, args)
    own = OPERATORS[node.op].sympy
    function = getattr(sympy, own) if own else sympy.Function(node.op, real=True)
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


def from_sympy(expression: Any) -> Node:
    """A tree of the rule language from a SymPy expression; what the language lacks raises ``L2OError``."""
    import sympy

    if isinstance(expression, sympy.Symbol):
        return name(expression.name)
    if isinstance(expression, sympy.Rational) and not expression.is_Integer:
        return call("div", number(int(expression.p)), number(int(expression.q)))
    if expression.is_number and not expression.args:
        return number(_real(expression))
    if isinstance(expression, sympy.Pow) and expression.exp.is_Integer:
        return integer_power(from_sympy(expression.base), int(expression.exp))
    args = [from_sympy(arg) for arg in expression.args]
    if isinstance(expression, sympy.Mul):
        return _product(args)
    if isinstance(expression, sympy.Add):
        return _sum(args)
    same = {getattr(sympy, row.sympy): row.name for row in OPERATORS.values() if row.sympy}
    op = same.get(expression.func, "")
    if isinstance(expression, sympy.core.function.AppliedUndef):
        op = expression.func.__name__
    if op not in OPERATORS:
        raise L2OError(f"the rule language has no {expression.func}; rewrite that part")
    if op not in ("max", "min"):
        return call(op, *args)
    result, *rest = args
    for arg in rest:
        result = call(op, result, arg)
    return result


def _real(constant: Any) -> float:
    try:
        return float(constant)
    except (TypeError, OverflowError):
        raise L2OError(f"expected real finite numbers, got {constant}; rewrite that part") from None


def _product(args: list[Node]) -> Node:
    """Factors left to right; a factor 1/x becomes a division, a leading -1 a sign."""
    negative = len(args) > 1 and args[0] == number(-1.0)
    result, *rest = args[1:] if negative else args
    for factor in rest:
        if factor.op == "div" and factor.args[0] == number(1.0):
            result = call("div", result, factor.args[1])
        else:
            result = call("mul", result, factor)
    return call("neg", result) if negative else result


def _sum(args: list[Node]) -> Node:
    """Terms left to right; a term with a sign is subtracted."""
    result, *rest = args
    for arg in rest:
        result = call("sub", result, arg.args[0]) if arg.op == "neg" else call("add", result, arg)
    return result
