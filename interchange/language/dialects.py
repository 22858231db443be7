"""How other programs spell expressions: PySR in its old, middle and new form, Operon, gplearn, SymPy.

Every spelling maps to rows of the operator table with exactly the meaning it has in that program, or is
refused with the reason; nothing is read as something similar. The whitelist parser reads all of them.

* ``pysr-0.3``: prefix calls ``plus, sub, mult, div``, later infix; ``pow`` keeps the sign of its base.
* ``pysr-0.6``: infix; ``pow`` and ``^`` are abs(a)**b; ``sqrt_abs, log_abs``.
* ``pysr-2``: infix, from PySR 0.12 on; powers, roots and logarithms are nan outside their domain. At a pole
  (1/0, log of 0) it gives nan, the row an infinity.
* ``operon``: what pyoperon prints, ``a / (sqrt(1 + b ^ 2))`` for its ``aq`` and so on.
* ``gplearn``: prefix calls; ``div, log, inv`` give a constant near 0, which is written out with ``greater``.
* ``sympy``: ``str`` of what ``Rule.sympy()`` gives; functions under our names keep our meaning.
"""

import ast
from collections.abc import Callable

from common.errors import L2OError
from common.registry import Registry
from interchange.language.expression import Node, call, complexity, number
from interchange.language.parse import ARITHMETIC, MAX_NODES, NATIVE, Dialect, builder

Builder = Callable[..., Node]

MAX_POWER = 16
_NO_ROW = "the operator table has no row of exactly this meaning; search again without it or rewrite it"
_PROTECTED = "it is nan outside its domain and our operator is not; write it of abs(...) or a square"
_NOT_FINITE = frozenset({"nan", "NaN", "inf", "Inf"})
_ONE = number(1.0)
_GUARD = 0.001


def _rows(*ops: str, **spelled: str) -> dict[str, Builder]:
    """Calls that are rows as they are, and others by the row they mean."""
    return {name: builder(op) for name, op in {**dict(zip(ops, ops, strict=True)), **spelled}.items()}


def _refused(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, _NO_ROW)


def integer_power(base: Node, exponent: int) -> Node:
    """``base**exponent`` as squares, cubes and products; a negative power is one over it."""
    if abs(exponent) > MAX_POWER:
        raise L2OError(f"expected an integer power up to {MAX_POWER}, got {exponent}; rewrite it with powabs")
    if exponent <= 0:
        return call("div", _ONE, integer_power(base, -exponent)) if exponent else _ONE
    if exponent == 1:
        return base
    if exponent % 2 == 0:
        return call("square", integer_power(base, exponent // 2))
    if exponent % 3 == 0:
        return call("cube", integer_power(base, exponent // 3))
    power = call("mul", base, integer_power(base, exponent - 1))
    if complexity(power) > MAX_NODES:  # powers of powers grow without bound
        raise L2OError(f"expected a power of at most {MAX_NODES} nodes when written out")
    return power


def _power(base: Node, exponent: Node) -> Node:
    """A power that is nan for a negative base: only literal integers mean the same everywhere."""
    if exponent.op != "number" or not exponent.value.is_integer():
        raise L2OError(
            "expected a literal integer as exponent, because other powers are nan below 0 and no row "
            "of the operator table is"
        )
    return integer_power(base, int(exponent.value))


def _of_one(build: Callable[[Node], Node], name: str) -> Builder:
    def checked(*args: Node) -> Node:
        if len(args) != 1:
            raise L2OError(f"{name} takes 1 argument, got {len(args)}")
        return build(args[0])

    return checked


def _not_negative(node: Node) -> bool:
    """Whether a tree is 0 or more by its form."""
    if node.op == "number":
        return node.value >= 0.0
    if node.op in ("add", "mul", "div"):
        return all(map(_not_negative, node.args))
    return node.op in ("abs", "square", "exp", "cosh", "sqrt", "powabs", "sigmoid", "relu", "erfc")


def _root(a: Node) -> Node:
    if not _not_negative(a):
        raise L2OError(f"sqrt is refused: {_PROTECTED}")
    return call("sqrt", a)


def _logarithm(a: Node) -> Node:
    if not _not_negative(a):
        raise L2OError(f"log is refused: {_PROTECTED}")
    return call("logabs", a)


def _operon_root(a: Node) -> Node:
    return call("sqrt", a.args[0]) if a.op == "abs" else _root(a)


def _operon_logarithm(a: Node) -> Node:
    if a.op == "abs":
        return call("logabs", a.args[0])
    if a.op == "add" and a.args[1] == _ONE:
        return call("log1p", a.args[0])
    return _logarithm(a)


def _operon_division(a: Node, b: Node) -> Node:
    """``a / (sqrt(1 + b ^ 2))`` is how ``aq`` is printed."""
    if b.op == "sqrt" and b.args[0].op == "add":
        one, square = b.args[0].args
        if one == _ONE and square.op == "square":
            return call("aq", a, square.args[0])
    return call("div", a, b)


def _operon_power(base: Node, exponent: Node) -> Node:
    if base.op == "abs" and exponent != number(2.0):
        return call("powabs", base.args[0], exponent)
    return _power(base, exponent)


def _protected(outside: float, build: Callable[[Node], Node]) -> Callable[[Node], Node]:
    """gplearn's: ``build(a)`` where abs(a) > 0.001, else a constant; for finite arguments, exactly."""

    def chosen(a: Node) -> Node:
        if a.op == "number":
            return build(a) if abs(a.value) > _GUARD else number(outside)
        inside = call("greater", call("abs", a), number(_GUARD))
        beside = call("sub", _ONE, inside)  # added to what is not used, it keeps that finite
        value = call("mul", inside, build(call("add", a, beside)))
        return call("add", value, beside) if outside else value

    return chosen


def _protected_division(*args: Node) -> Node:
    if len(args) != 2:
        raise L2OError(f"div takes 2 arguments, got {len(args)}")
    return _protected(1.0, lambda divisor: call("div", args[0], divisor))(args[1])


def _folded(op: str) -> Builder:
    def build(*args: Node) -> Node:
        if not args:
            raise L2OError(f"{op.capitalize()} takes 1 argument or more, got 0")
        first, *others = args
        for other in others:
            first = call(op, first, other)
        return first

    return build


# What all of PySR's versions share; ``log1p`` of theirs is the row, nan below -1.
_JULIA = _rows(
    "neg", "square", "cube", "abs", "sign", "exp", "tanh", "sinh", "cosh", "asinh", "erf", "erfc", "sin",
    "cos", "tan", "atan", "cbrt", "log1p", "relu", "greater", "max", "min",
)  # fmt: skip
_JULIA_REFUSED = _refused(
    "gamma", "round", "floor", "ceil", "mod", "asin", "acos", "acosh", "atanh", "atanh_clip", "cond",
    "logical_or", "logical_and", "log2", "log10",
)  # fmt: skip
_SWAPPED = "pyoperon 0.6.2 swaps fmin and fmax, so its text does not tell which one was meant"

DIALECTS: Registry[Dialect] = Registry(
    "dialect",
    {
        "native": NATIVE,
        "pysr-0.3": Dialect(
            _JULIA | _rows("div", "pow", plus="add", sub="sub", mult="mul", sqrtm="sqrt", logm="log"),
            ARITHMETIC,
            refused=_JULIA_REFUSED | _refused("log", "sqrt", "logm2", "logm10", "loga"),
            reserved=_NOT_FINITE,
        ),
        "pysr-0.6": Dialect(
            _JULIA
            | _rows(pow="powabs", pow_abs="powabs", sqrt_abs="sqrt", log_abs="log")
            | {"log1p_abs": _of_one(lambda a: call("log1p", call("abs", a)), "log1p_abs")},
            ARITHMETIC | {ast.Pow: builder("powabs")},
            caret=True,
            refused=_JULIA_REFUSED | _refused("log", "sqrt", "log2_abs", "log10_abs", "acosh_abs"),
            reserved=_NOT_FINITE,
        ),
        "pysr-2": Dialect(
            _JULIA
            | {
                "sqrt": _of_one(_root, "sqrt"),
                "log": _of_one(_logarithm, "log"),
                "inv": _of_one(lambda a: call("div", _ONE, a), "inv"),
            },
            ARITHMETIC | {ast.Pow: _power},
            caret=True,
            refused=_JULIA_REFUSED,
            reserved=_NOT_FINITE,
        ),
        "operon": Dialect(
            _rows("abs", "cbrt", "cos", "cosh", "exp", "sin", "sinh", "tan", "tanh", "atan")
            | {"sqrt": _of_one(_operon_root, "sqrt"), "log": _of_one(_operon_logarithm, "log")},
            ARITHMETIC | {ast.Div: _operon_division, ast.Pow: _operon_power},
            caret=True,
            refused=_refused("acos", "asin", "ceil", "floor")
            | dict.fromkeys(("max", "min", "fmax", "fmin"), _SWAPPED),
            reserved=_NOT_FINITE,
        ),
        "gplearn": Dialect(
            _rows("add", "sub", "mul", "sqrt", "abs", "neg", "max", "min", "sin", "cos", "tan", sig="sigmoid")
            | {
                "div": _protected_division,
                "log": _of_one(_protected(0.0, lambda a: call("logabs", a)), "log"),
                "inv": _of_one(_protected(0.0, lambda a: call("div", _ONE, a)), "inv"),
            },
            reserved=_NOT_FINITE,
        ),
        "sympy": Dialect(
            dict(NATIVE.calls) | _rows(Abs="abs") | {"Max": _folded("max"), "Min": _folded("min")},
            ARITHMETIC | {ast.Pow: _power},
            reserved=_NOT_FINITE | {"oo", "zoo", "pi", "E", "I"},
        ),
    },
)

# Kinds of Operon's nodes -> our rows. Its log, sqrt, pow are nan outside their domain.
_OPERON_KINDS = {
    name: name for name in ("add", "sub", "mul", "div", "aq", "square", "powabs", "logabs", "log1p")
}
_OPERON_KINDS |= {name: name for name in DIALECTS["operon"].calls if name not in ("sqrt", "log")}
_OPERON_KINDS |= {"sqrtabs": "sqrt"}


def operon_tree(tree: list) -> list:
    """A tree of ``interchange.search.operon.read_tree`` with our rows' names; other kinds are refused."""
    kind, *args = tree
    if kind in ("c", "x"):
        return tree
    if kind not in _OPERON_KINDS:
        raise L2OError(f"Operon's {kind!r}: {_SWAPPED if kind in ('fmin', 'fmax') else _NO_ROW}")
    return [_OPERON_KINDS[kind], *map(operon_tree, args)]
