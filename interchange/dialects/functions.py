"""Functions over the reals that have no row of their own, by rows that have; nan outside their domain.

Each keeps its digits where a plainer formula would lose them: the inverse of tanh near 0, of cosh near 1.
"""

import math
from collections.abc import Callable

from common.errors import L2OError
from interchange.language.expression import Node, call, number
from interchange.language.sugar import real_logarithm, real_power, real_root

Builder = Callable[..., Node]
NO_ROW = "the operator table has no row of exactly this meaning; search again without it or rewrite it"
ONE, ZERO = number(1.0), number(0.0)


def taking(arity: int, build: Callable[..., Node], name: str) -> Builder:
    """``build`` with its number of arguments checked."""

    def checked(*args: Node) -> Node:
        if len(args) != arity:
            raise L2OError(f"{name} takes {arity} argument{'s'[: arity != 1]}, got {len(args)}")
        return build(*args)

    return checked


def named(arity: int, **builds: Callable[..., Node]) -> dict[str, Builder]:
    """Spelling -> builder, of functions that take as many arguments."""
    return {name: taking(arity, build, name) for name, build in builds.items()}


def refused(*names: str) -> dict[str, str]:
    """Known functions without a row -> why."""
    return dict.fromkeys(names, NO_ROW)


def _over(a: Node, b: Node) -> Node:
    return call("div", a, b)


def _both_sides(a: Node) -> tuple[Node, Node]:
    return call("sub", ONE, a), call("add", ONE, a)


def _asin(a: Node) -> Node:
    return call("atan", _over(a, call("root", call("mul", *_both_sides(a)))))


def _acos(a: Node) -> Node:
    return call("mul", number(2.0), call("atan", call("root", _over(*_both_sides(a)))))


def _atanh(a: Node) -> Node:
    between = call("sub", call("log1p", a), call("log1p", call("neg", a)))
    return call("mul", number(0.5), between)


def _acosh(a: Node) -> Node:
    below, above = call("sub", a, ONE), call("add", a, ONE)
    roots = call("mul", call("root", below), call("root", above))
    return call("log1p", call("add", below, roots))


def _clamp(a: Node, low: Node, high: Node) -> Node:
    if not low.op == high.op == "number" or low.value > high.value:
        raise L2OError("clamp is read between two numbers of which the second is not below the first")
    return call("min", call("max", a, low), high)


def _both(a: Node, b: Node) -> Node:
    return call("mul", _positive(a), _positive(b))


def _positive(a: Node) -> Node:
    return call("greater", a, ZERO)


REAL = named(
    1,
    asin=_asin,
    acos=_acos,
    atanh=_atanh,
    acosh=_acosh,
    log2=lambda a: _over(real_logarithm(a), number(math.log(2.0))),
    log10=lambda a: _over(real_logarithm(a), number(math.log(10.0))),
    exp2=lambda a: call("powabs", number(2.0), a),
    inv=lambda a: _over(ONE, a),
)
# As SymbolicRegression.jl and Julia define them.
JULIAN = named(
    2,
    less=lambda a, b: call("greater", b, a),
    logical_or=lambda a, b: call("max", _positive(a), _positive(b)),
    logical_and=_both,
    cond=lambda a, b: call("mul", _positive(a), b),
)
JULIAN |= named(
    3,
    fma=lambda a, b, c: call("add", call("mul", a, b), c),
    muladd=lambda a, b, c: call("add", call("mul", a, b), c),
    clamp=_clamp,
)
JULIAN |= named(1, abs2=lambda a: call("square", a))


def _kept(op: str, build: Callable[..., Node]) -> Callable[..., Node]:
    """``build``, but abs(a) stays inside, so that an equation keeps its size."""
    return lambda a, *more: call(op, a, *more) if a.op == "abs" else build(a, *more)


def kept_power(a: Node, b: Node) -> Node:
    """``real_power`` with abs(a) kept."""
    whole = b.op == "number" and b.value.is_integer()
    return call("powabs", a, b) if a.op == "abs" and not whole else real_power(a, b)


KEPT = named(1, sqrt=_kept("sqrt", real_root), log=_kept("logabs", real_logarithm))
