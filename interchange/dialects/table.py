"""How other programs spell expressions: PySR in its old, middle and new form, Operon, gplearn, SymPy.

Every spelling maps to rows of the operator table with exactly the meaning it has in that program, or is
refused with the reason; nothing is read as something similar. The whitelist parser reads all of them.

* ``pysr-0.3``: prefix calls ``plus, sub, mult, div``, later infix; ``pow`` keeps the sign of its base.
* ``pysr-0.6``: infix; ``pow`` and ``^`` are abs(a)**b; ``sqrt_abs, log_abs``.
* ``pysr-2``: infix, from PySR 0.12 on; powers, roots and logarithms are nan outside their domain. At a pole
  (1/0, log of 0) it gives nan, the row an infinity.
* ``operon``: what pyoperon prints, ``a / (sqrt(1 + b ^ 2))`` for its ``aq`` and so on.
* ``gplearn``: prefix calls; ``div, log, inv`` give a constant near 0, which is written out with ``greater``.
* ``sympy``: what SymPy prints, of ``--to sympy`` or its own; ``sqrt``, ``log``, powers are nan outside their
  domain, and functions of our names that SymPy has not keep our meaning.
"""

import ast

from common.errors import L2OError
from common.registry import Registry
from interchange.dialects.forms import recognised
from interchange.dialects.functions import (
    JULIAN,
    KEPT,
    NO_ROW,
    ONE,
    REAL,
    Builder,
    kept_power,
    named,
    refused,
)
from interchange.dialects.gplearn import PROTECTED
from interchange.dialects.pieces import heaviside, piecewise
from interchange.language.expression import Node, call, number
from interchange.language.parse import ARITHMETIC, NATIVE, Dialect, builder
from interchange.language.sugar import COMPARISONS, compare, real_logarithm, real_power, real_root

_NOT_FINITE = frozenset({"nan", "NaN", "inf", "Inf"})
_GE, _LE = COMPARISONS[2:]


def _rows(*ops: str, **spelled: str) -> dict[str, Builder]:
    """Calls that are rows as they are, and others by the row they mean."""
    return {name: builder(op) for name, op in {**dict(zip(ops, ops, strict=True)), **spelled}.items()}


def _operon_logarithm(a: Node) -> Node:
    return call("log1p", a.args[0]) if a.op == "add" and a.args[1] == ONE else real_logarithm(a)


def _operon_division(a: Node, b: Node) -> Node:
    """``a / (sqrt(1 + b ^ 2))`` is how ``aq`` is printed."""
    if b.op == "sqrt" and b.args[0].op == "add":
        one, square = b.args[0].args
        if one == ONE and square.op == "square":
            return call("aq", a, square.args[0])
    return call("div", a, b)


BY_SYMPY = "symbolic-l2o: sympy.sympify reads this file, and so does interchange.convert"
_SWAPPED = "pyoperon 0.6.2 swaps fmin and fmax, so its text does not tell which one was meant"

# What all of PySR's versions share; ``log1p`` of theirs is the row, nan below -1.
_JULIA = JULIAN | _rows(
    "neg", "square", "cube", "abs", "sign", "exp", "tanh", "sinh", "cosh", "asinh", "erf", "erfc", "sin",
    "cos", "tan", "atan", "cbrt", "log1p", "relu", "greater", "max", "min", "sigmoid",
)  # fmt: skip
_JULIA_REFUSED = refused("gamma", "round", "floor", "ceil", "mod", "atanh_clip")
_LATER = refused("asin", "acos", "acosh", "atanh", "log2", "log10")  # protected in ways of their own
_PYSR_2 = _JULIA | REAL | KEPT
_PYSR_2 |= named(2, greater_equal=lambda a, b: compare(_GE, a, b), less_equal=lambda a, b: compare(_LE, a, b))
_SAFE = {f"safe_{name}": _PYSR_2[name] for name in ("sqrt", "log", "log2", "log10", "log1p", "acosh")}
_SAFE |= named(2, safe_pow=kept_power)

_THIRD = number(1.0 / 3.0)
_SYMPY = dict(NATIVE.calls) | REAL | _rows(Abs="abs") | {name: NATIVE.calls[name] for name in ("Max", "Min")}
_SYMPY |= named(1, sqrt=real_root, log=real_logarithm, ln=real_logarithm)
_SYMPY |= named(1, cbrt=lambda a: real_power(a, _THIRD), floor=lambda a: Node("floor", (a,)))
_SYMPY |= named(2, pow=real_power, Pow=real_power)
_SYMPY |= {"Heaviside": heaviside}

DIALECTS: Registry[Dialect] = Registry(
    "dialect",
    {
        "native": NATIVE,
        "pysr-0.3": Dialect(
            _JULIA | _rows("div", "pow", plus="add", sub="sub", mult="mul", sqrtm="sqrt", logm="log"),
            ARITHMETIC,
            refused=_JULIA_REFUSED | _LATER | refused("log", "sqrt", "logm2", "logm10", "loga"),
            reserved=_NOT_FINITE,
        ),
        "pysr-0.6": Dialect(
            _JULIA
            | _rows(pow="powabs", pow_abs="powabs", sqrt_abs="sqrt", log_abs="log")
            | named(1, log1p_abs=lambda a: call("log1p", call("abs", a))),
            ARITHMETIC | {ast.Pow: builder("powabs")},
            caret=True,
            refused=_JULIA_REFUSED | _LATER | refused("log", "sqrt", "log2_abs", "log10_abs", "acosh_abs"),
            reserved=_NOT_FINITE,
        ),
        "pysr-2": Dialect(
            _PYSR_2 | _SAFE,
            ARITHMETIC | {ast.Pow: kept_power},
            caret=True,
            refused=_JULIA_REFUSED,
            reserved=_NOT_FINITE,
        ),
        "operon": Dialect(
            _rows("abs", "cbrt", "cos", "cosh", "exp", "sin", "sinh", "tan", "tanh", "atan")
            | named(1, sqrt=real_root, log=_operon_logarithm, asin=REAL["asin"], acos=REAL["acos"]),
            ARITHMETIC | {ast.Div: _operon_division, ast.Pow: real_power},
            caret=True,
            refused=refused("ceil", "floor") | dict.fromkeys(("max", "min", "fmax", "fmin"), _SWAPPED),
            reserved=_NOT_FINITE,
        ),
        "gplearn": Dialect(
            _rows("add", "sub", "mul", "sqrt", "abs", "neg", "max", "min", "sin", "cos", "tan", sig="sigmoid")
            | PROTECTED,
            reserved=_NOT_FINITE,
        ),
        "sympy": Dialect(
            _SYMPY,
            ARITHMETIC | {ast.Pow: real_power},
            reserved=_NOT_FINITE | {"oo", "zoo", "pi", "E", "I"},
            pieces=piecewise,
            finish=recognised,
        ),
    },
)


# Kinds of Operon's nodes -> our rows. Its log, sqrt, pow are nan outside their domain.
_OPERON_KINDS = {
    name: name for name in ("add", "sub", "mul", "div", "aq", "square", "powabs", "logabs", "log1p")
}
_OPERON_KINDS |= {
    name: name for name in DIALECTS["operon"].calls if name not in ("sqrt", "log", "asin", "acos")
}
_OPERON_KINDS |= {"sqrtabs": "sqrt", "sqrt": "root", "log": "ln", "pow": "powreal"}


def operon_tree(tree: list) -> list:
    """A tree of ``interchange.dialects.objects.read_tree`` with our rows' names; other kinds are refused."""
    kind, *args = tree
    if kind in ("c", "x"):
        return tree
    if kind not in _OPERON_KINDS:
        raise L2OError(f"Operon's {kind!r}: {_SWAPPED if kind in ('fmin', 'fmax') else NO_ROW}")
    return [_OPERON_KINDS[kind], *map(operon_tree, args)]
