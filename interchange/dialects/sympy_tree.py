"""A SymPy expression -> a tree of the rule language, where rows say exactly that over the reals."""

import ast
from collections.abc import Callable
from typing import Any

from common.errors import L2OError
from interchange.dialects.forms import recognised
from interchange.dialects.functions import REAL
from interchange.dialects.pieces import heaviside, piecewise
from interchange.language.expression import Node, call, name, number, walk
from interchange.language.operators import OPERATORS
from interchange.language.parse import MAX_DEPTH
from interchange.language.sugar import (
    compare,
    folded,
    numbers_alone,
    of_numbers,
    real_logarithm,
    real_power,
    real_root,
)

_RELATIONS = {">": ast.Gt, "<": ast.Lt, ">=": ast.GtE, "<=": ast.LtE}


def from_sympy(expression: Any) -> Node:
    """A tree of the rule language; what the language lacks raises ``L2OError`` that names the part.

    Roots, logarithms and powers are nan outside their domain, where SymPy's are complex; symbols count as
    real whatever they are said to be.
    """
    import sympy

    if not isinstance(expression, sympy.Basic):
        raise L2OError(f"expected a SymPy expression, got {type(expression).__name__}; text: Rule.from_text")
    tree = recognised(_Reader(sympy).read(expression, 1))
    if any(node.op == "floor" for node in walk(tree)):
        raise L2OError("floor has no row in the operator table but as part of a condition; rewrite that part")
    return tree


class _Reader:
    def __init__(self, sympy: Any) -> None:
        self.sympy = sympy
        rows = {row.sympy: row.name for row in OPERATORS.values() if row.sympy}
        self.calls: dict[str, Callable[..., Node]] = {
            **{spelled: lambda *args, op=op: call(op, *args) for spelled, op in rows.items()},
            **{spelled: REAL[spelled] for spelled in ("asin", "acos", "atanh", "acosh")},
            "log": real_logarithm,
            "Max": folded("max"),
            "Min": folded("min"),
            "Heaviside": heaviside,
            "floor": lambda a: Node("floor", (a,)),
        }

    def read(self, expression: Any, level: int) -> Node:
        sympy = self.sympy
        if level > MAX_DEPTH:
            raise L2OError(f"expected an expression at most {MAX_DEPTH} levels deep; simplify it")
        if isinstance(expression, sympy.Symbol):
            return name(expression.name)
        if isinstance(expression, sympy.Rational) and not expression.is_Integer and _fits(expression):
            return call("div", number(int(expression.p)), number(int(expression.q)))
        if expression.is_number and not expression.args:
            return number(_real(expression))
        if isinstance(expression, sympy.Piecewise):
            return self._pieces(expression, level)
        own = getattr(expression.func, "row", "")
        if isinstance(expression, sympy.core.function.AppliedUndef):
            own = expression.func.__name__
        spelled = expression.func.__name__
        known = own in OPERATORS or spelled in self.calls or getattr(expression, "rel_op", "") in _RELATIONS
        if not known and not isinstance(expression, sympy.Pow | sympy.Mul | sympy.Add):
            raise L2OError(f"the rule language has no {spelled}: {str(expression)[:80]}; rewrite that part")
        args = [self.read(arg, level + 1) for arg in expression.args]
        if own in OPERATORS:
            return call(own, *args[:1], *(args[1:] if OPERATORS[own].numpy else map(_number, args[1:])))
        return self._built(expression, args)

    def _built(self, expression: Any, args: list[Node]) -> Node:
        sympy = self.sympy
        if isinstance(expression, sympy.Pow):
            return self._power(expression, args)
        if isinstance(expression, sympy.Mul):
            return _product(args)
        if isinstance(expression, sympy.Add):
            return _sum(args)
        if getattr(expression, "rel_op", "") in _RELATIONS:
            return compare(_RELATIONS[expression.rel_op], *args)
        try:
            return self.calls[expression.func.__name__](*args)
        except L2OError as error:
            raise L2OError(f"{error}: {str(expression)[:80]}") from None

    def _power(self, expression: Any, args: list[Node]) -> Node:
        base, exponent = args
        if expression.exp == self.sympy.S.Half:
            return real_root(base)
        if expression.exp == -self.sympy.S.Half:
            return call("div", number(1.0), real_root(base))
        if expression.base == self.sympy.E:
            return call("exp", exponent)
        return real_power(base, exponent)

    def _pieces(self, expression: Any, level: int) -> Node:
        pairs = []
        for value, condition in self._single(expression.args):
            if condition not in (True, False) and getattr(condition, "rel_op", "") not in _RELATIONS:
                raise L2OError(f"expected one comparison as condition, got {str(condition)[:80]}; rewrite it")
            pairs.append(
                (
                    None if value is self.sympy.nan else self.read(value, level + 1),
                    None if condition == True else self.read(condition, level + 1),  # noqa: E712
                )
            )
        return piecewise(pairs)

    def _single(self, cases: Any) -> list[tuple[Any, Any]]:
        """The cases with nan where one of several comparisons holds, or not all do, as several cases."""
        sympy = self.sympy
        (value, condition), (last, _) = cases[0], cases[-1]
        if len(cases) == 2 and last is sympy.nan and isinstance(condition, sympy.And):
            return [*((sympy.nan, sympy.Not(part)) for part in condition.args), (value, sympy.true)]
        several = [value is sympy.nan and isinstance(condition, sympy.Or) for value, condition in cases]
        return [
            (value, part)
            for (value, condition), split in zip(cases, several, strict=True)
            for part in (condition.args if split else [condition])
        ]


def _fits(fraction: Any) -> bool:
    return max(abs(fraction.p), fraction.q) < 2**1023


def _number(node: Node) -> Node:
    """A decay or count that SymPy holds as a fraction, as the number it is."""
    return number(of_numbers(node)) if numbers_alone(node) else node


def _real(constant: Any) -> float:
    try:
        return float(constant)
    except (TypeError, OverflowError):
        raise L2OError(f"expected real finite numbers, got {constant}; rewrite that part") from None


def _product(args: list[Node]) -> Node:
    """Factors left to right: 1/x is a division, a leading -1 a sign, the same two or three times a power."""
    if len(args) in (2, 3) and all(arg == args[0] for arg in args):
        return call("square" if len(args) == 2 else "cube", args[0])
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
