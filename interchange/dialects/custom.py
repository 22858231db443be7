"""Operators of the user's own: ``sq=square(x)``, ``dist(a, b)=abs(a - b)``."""

import dataclasses
import re
from collections.abc import Callable, Iterable

from common.errors import L2OError
from interchange.language.expression import Node, names, substitute
from interchange.language.parse import NATIVE, Dialect, parse

_HEAD = re.compile(r"\s*([A-Za-z]\w*)\s*(?:\(([\w\s,]*)\))?\s*")
_ARGUMENTS = ("x", "y", "z")


def with_operators(dialect: Dialect, definitions: Iterable[str], spelled: Dialect = NATIVE) -> Dialect:
    """A dialect that knows more operators.

    Args:
        definitions: ``NAME=EXPRESSION`` over x, y, z, the first, second and third argument, or
            ``NAME(a, b)=EXPRESSION`` with names of one's own.
        spelled: how the expressions are written; the rule language by default.

    Raises:
        L2OError: a definition is none.
    """
    calls = dict(_definition(text, spelled) for text in definitions)
    if not calls:
        return dialect
    refused = {name: reason for name, reason in dialect.refused.items() if name not in calls}
    return dataclasses.replace(dialect, calls={**dialect.calls, **calls}, refused=refused)


def _definition(text: str, spelled: Dialect) -> tuple[str, Callable[..., Node]]:
    head, sign, body = text.partition("=")
    match = _HEAD.fullmatch(head)
    if not sign or not match:
        raise L2OError(f"--operator: expected NAME=EXPRESSION, as sq=square(x), got {text[:60]!r}")
    name, written = match.groups()
    given = tuple(part.strip() for part in written.split(",")) if written is not None else _ARGUMENTS
    try:
        tree = parse(body.strip(), given, spelled)
    except L2OError as error:
        raise L2OError(f"--operator {name}: {error}") from None
    used = names(tree)
    taken = given if written is not None else given[: max((given.index(key) + 1 for key in used), default=1)]

    def build(*args: Node) -> Node:
        if len(args) != len(taken):
            raise L2OError(f"{name} takes {len(taken)} argument{'s'[: len(taken) != 1]}, got {len(args)}")
        return substitute(tree, dict(zip(taken, args, strict=True)))

    return name, build
