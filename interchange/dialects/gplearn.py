"""gplearn's protected operators, for finite arguments exactly."""

import logging
from collections.abc import Callable, Mapping

from interchange.dialects.functions import ONE, named
from interchange.language.expression import Node, call, names, number, to_text
from interchange.language.sugar import of_numbers

_GUARD = 0.001
_PRINTED = 0.0005  # what a constant may be off: gplearn prints three digits

_log = logging.getLogger(__name__)


def _protected(outside: float, build: Callable[[Node], Node]) -> Callable[[Node], Node]:
    """``build(a)`` where abs(a) > 0.001, else a constant."""

    def chosen(a: Node) -> Node:
        if not names(a):
            return _decided(a)
        inside = call("greater", call("abs", a), number(_GUARD))
        beside = call("sub", ONE, inside)  # added to what is not used, it keeps that finite
        used = call("mul", inside, build(call("add", a, beside)))
        return call("add", used, beside) if outside else used

    def _decided(a: Node) -> Node:
        size = abs(of_numbers(a))
        if size <= _GUARD + _PRINTED or (a.op != "number" and size <= 0.1):
            _log.warning(
                "%s: a protected operator of gplearn is applied to %s, which its three printed digits may "
                "put on the other side of its limit %g; read the fitted program itself, or print more digits",
                to_text(a)[:80], f"{size:.4g}", _GUARD,
            )  # fmt: skip
        return build(number(of_numbers(a))) if size > _GUARD else number(outside)

    return chosen


def _division(a: Node, b: Node) -> Node:
    return _protected(1.0, lambda divisor: call("div", a, divisor))(b)


PROTECTED: Mapping[str, Callable[..., Node]] = named(2, div=_division) | named(
    1,
    log=_protected(0.0, lambda a: call("logabs", a)),
    inv=_protected(0.0, lambda a: call("div", ONE, a)),
)
