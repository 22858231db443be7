"""The operators that SymPy has not with our meaning, as SymPy functions of their names.

Each knows its formula in plain SymPy, which is what is printed, evaluated (``evalf``) and compiled by
``lambdify``, and its derivative by the table's conventions. Temporal and tensor operators are functions by
name alone. SymPy is imported at the first use.
"""

import functools
from typing import Any

from common.errors import L2OError
from interchange.language.operators import OPERATORS

_NAMED = (
    "{op}(...) has memory or sees a whole tensor, so SymPy cannot compute it: put a feature in its place, "
    " or use Rule.evaluate"
)
# SymPy's hooks by which a function says how it is printed; without one it would be taken for SymPy's log.
_SHOWN = ("_sympystr", "_latex", "_pretty", "_sympyrepr", "_mathml_content", "_mathml_presentation")
_COMPILED = (
    "_pythoncode", "_mpmathcode", "_cmathcode", "_numpycode", "_scipycode", "_cupycode", "_jaxcode",
    "_numexprcode", "_lambdacode", "_torchcode", "_tensorflowcode", "_aesara", "_theano", "_ccode",
    "_cxxcode", "_fcode", "_javascript", "_julia", "_rcode", "_rust_code", "_octave", "_mcode", "_maple",
    "_glsl", "_smtlib",
)  # fmt: skip
# What NumPy computes as the oracle does, nan outside the domain.
_NUMPY = {"log1p": "log1p", "cbrt": "cbrt", "root": "sqrt", "ln": "log", "powreal": "power"}


@functools.cache
def functions() -> dict[str, Any]:
    """Row of the operator table -> SymPy class, of all that SymPy does not have itself."""
    import sympy

    formulas, slopes = _formulas(sympy), _slopes(sympy)
    found = {
        op: type(op, (_protected(sympy),), {"row": op, "formula": staticmethod(formulas[op])})
        for op in formulas
    }
    for op, make in slopes.items():
        found[op].slopes = staticmethod(functools.partial(make, found))
    found |= {op: type(op, (_by_name(sympy),), {"row": op}) for op, row in OPERATORS.items() if not row.numpy}
    # SymPy's own derivative is a delta, of no use as a number.
    zero = {"row": "sign", "_eval_derivative": lambda self, by: sympy.S.Zero}
    return found | {"sign": type("sign", (sympy.sign,), zero)}


def __getattr__(name: str) -> Any:
    """The classes by their names, for copies of expressions in other processes."""
    if name in OPERATORS and name in functions():
        return functions()[name]
    raise AttributeError(name)


@functools.cache
def _protected(sympy: Any) -> type:
    class Protected(sympy.Function):
        """An operator with a formula."""

        is_commutative = True

        @classmethod
        # SymPy's hook, as below: it stumbles over numbers of which a function is nan.
        def eval(cls, *args: Any) -> Any:
            if sympy.nan in args:
                return sympy.S.Zero if cls.row == "greater" else sympy.nan
            outside = all(arg.is_Number for arg in args) and excluded(cls.row, *args) == True  # noqa: E712
            return sympy.nan if outside else None

        def _eval_is_extended_real(self) -> bool | None:
            return all(arg.is_extended_real for arg in self.args) or None

        def plain(self) -> Any:
            """The formula in functions of SymPy alone."""
            return self.formula(*self.args)

        @property
        def precedence(self) -> int:
            """Of what is printed, so that it is put in parentheses where it has to be.

            A quotient counts as a sum: below a line SymPy puts products in parentheses by their class.
            """
            order, own = sympy.printing.precedence.PRECEDENCE, rank(self.plain())
            return own if own >= order["Pow"] else min(own, order["Add"])

        def _eval_evalf(self, prec: int) -> Any:
            if not all(arg.is_number for arg in self.args):
                return None
            digits = sympy.core.evalf.prec_to_dps(prec)
            args = [arg.evalf(digits) for arg in self.args]
            if sympy.nan in args:  # which SymPy compares with nothing
                return sympy.S.Zero if self.row == "greater" else sympy.nan
            return self.formula(*args).evalf(digits)

        def fdiff(self, argindex: int = 1) -> Any:
            return self.slopes(self, *self.args)[argindex - 1]

    for method in _SHOWN + _COMPILED:
        setattr(Protected, method, _printed)
    Protected._latex = _latex
    Protected._numpycode = _numpy
    return Protected


def _printed(self: Any, printer: Any, *args: Any) -> Any:
    return printer._print(self.plain(), *args)


def _numpy(self: Any, printer: Any, *args: Any) -> str:
    if self.row not in _NUMPY:
        return _printed(self, printer, *args)
    inner = ", ".join(printer._print(arg) for arg in self.args)
    return f"{printer._module_format(f'numpy.{_NUMPY[self.row]}')}({inner})"


def _latex(self: Any, printer: Any, exp: str = "") -> str:
    if not exp:  # SymPy's LaTeX of a power of a function
        return _printed(self, printer)
    return rf"\left({printer._print(self.plain())}\right)^{{{exp}}}"


def rank(expression: Any) -> int:
    """How tightly what is printed binds; SymPy takes 1/x for a power, also within a product."""
    from sympy.printing.precedence import PRECEDENCE, precedence

    under = expression.is_Pow and expression.exp.could_extract_minus_sign()
    return PRECEDENCE["Mul"] if under else precedence(expression)


@functools.cache
def _by_name(sympy: Any) -> type:
    class ByName(sympy.Function):
        """A temporal or tensor operator."""

        is_extended_real = True
        is_commutative = True

        @classmethod
        # SymPy's hook for values it can work out at once; the name is SymPy's, and no text is run.
        def eval(cls, *args: Any) -> None:
            return None

        def _eval_evalf(self, prec: int) -> None:
            return None

        def fdiff(self, argindex: int = 1) -> Any:
            raise L2OError(_NAMED.format(op=self.row))

    def refused(self: Any, printer: Any, *args: Any) -> str:
        raise L2OError(_NAMED.format(op=self.row))

    for method in _COMPILED:
        setattr(ByName, method, refused)
    return ByName


def _formulas(sympy: Any) -> dict[str, Any]:
    """The operators in plain SymPy, nan where they are not real."""

    def guarded(op: str) -> Any:
        def formula(*args: Any) -> Any:
            outside = excluded(op, *args)
            inside = natural(op, *args)
            return inside if outside is None else sympy.Piecewise((sympy.nan, outside), (inside, True))

        return formula

    def greater(a: Any, b: Any) -> Any:
        higher = sympy.false if sympy.nan in (a, b) else sympy.Gt(a, b)
        return sympy.Piecewise((sympy.S.One, higher), (sympy.S.Zero, True), evaluate=False)

    return {op: guarded(op) for op in _natural(sympy)} | {"greater": greater}


def natural(op: str, *args: Any) -> Any:
    """An operator in functions of SymPy alone, whatever they give outside its domain."""
    import sympy

    return _natural(sympy)[op](*args)


def excluded(op: str, *args: Any, evaluate: bool = True) -> Any:
    """The comparison that holds where an operator is not real and so nan; None for nowhere."""
    import sympy

    a, *more = args
    if op == "log1p":
        a = sympy.Add(a, sympy.S.One, evaluate=evaluate)
    elif op == "powreal":
        (b,) = more
        if b.is_comparable and (abs(float(b)) >= 2**53 or float(b).is_integer()):
            return None
        if a.is_Number:  # its size would come into the rounding of what is 0
            if a.is_extended_nonnegative:
                return None
            a = sympy.S.NegativeOne
        if not b.is_comparable:  # of a fraction above an integer only the sign of a is left
            rest = sympy.Add(b, sympy.Mul(-1, sympy.floor(b), evaluate=evaluate), evaluate=evaluate)
            a = sympy.Mul(a, rest, evaluate=evaluate)
    elif op not in ("root", "ln"):
        return None
    try:
        return sympy.Lt(a, 0, evaluate=evaluate)
    except TypeError:  # of a number that is nan, and passes on as such
        return sympy.false


@functools.cache
def _natural(sympy: Any) -> dict[str, Any]:
    # SymPy would split abs(a**b) into real and imaginary parts, of what is real.
    absolute = functools.partial(sympy.Abs, evaluate=False)
    sign, log, root = sympy.sign, sympy.log, sympy.sqrt
    third, tiny = sympy.Rational(1, 3), sympy.Float(1e-8)
    return {
        "sqrt": lambda a: root(absolute(a)),
        "log": lambda a: log(absolute(a) + tiny),
        "logabs": lambda a: log(absolute(a)),
        "log1p": lambda a: 2 * sympy.asinh(a / (2 * root(a + 1))),
        "cbrt": lambda a: sign(a) * absolute(a) ** third,
        "pow": lambda a, b: sign(a) * absolute(a) ** b,
        "powabs": lambda a, b: absolute(a) ** b,
        "powreal": lambda a, b: sympy.Pow(a, b, evaluate=False),
        "root": root,
        "ln": log,
        "sigmoid": lambda a: sympy.exp(sympy.Min(a, 0)) / (1 + sympy.exp(-absolute(a))),
        "relu": lambda a: sympy.Max(a, 0),
        "softsign": lambda a: a / (1 + absolute(a)),
        "aq": lambda a, b: a / root(1 + b**2),
    }


def _slopes(sympy: Any) -> dict[str, Any]:
    """Operator -> (classes, result, arguments) -> its derivatives by each argument."""
    absolute, sign, zero, one = sympy.Abs, sympy.sign, sympy.S.Zero, sympy.S.One

    def off_zero(a: Any, *slopes: Any) -> tuple:
        return tuple(sympy.Piecewise((zero, sympy.Eq(a, 0)), (slope, True)) for slope in slopes)

    def power_like(op: str, outer: Any) -> Any:
        return lambda own, out, a, b: off_zero(
            a, outer(a) * b * own[op](a, b - 1, evaluate=False), out * own["logabs"](a)
        )

    return {
        "sqrt": lambda own, out, a: off_zero(a, sign(a) / (2 * out)),
        "log": lambda own, out, a: (sign(a) / (absolute(a) + sympy.Float(1e-8)),),
        "logabs": lambda own, out, a: off_zero(a, one / a),
        "log1p": lambda own, out, a: (one / (1 + a),),
        "cbrt": lambda own, out, a: off_zero(a, one / (3 * out**2)),
        "pow": power_like("powabs", lambda a: one),
        "powabs": power_like("powabs", sign),
        "powreal": power_like("powreal", lambda a: one),
        "root": lambda own, out, a: off_zero(a, one / (2 * out)),
        "ln": lambda own, out, a: off_zero(a, one / a),
        "sigmoid": lambda own, out, a: (sympy.exp(-absolute(a)) / (1 + sympy.exp(-absolute(a))) ** 2,),
        "relu": lambda own, out, a: (own["greater"](a, zero),),
        "softsign": lambda own, out, a: (one / (1 + absolute(a)) ** 2,),
        "greater": lambda own, out, a, b: (zero, zero),
        "aq": lambda own, out, a, b: (one / sympy.sqrt(1 + b**2), -out * b / (1 + b**2)),
    }
