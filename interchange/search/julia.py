"""The rule language and PySR's Julia: operators there and back, guesses, the hall of fame it writes."""

import csv
import dataclasses
import io
import logging
from collections.abc import Sequence

from common.errors import L2OError
from interchange.dialects.objects import without_suffix
from interchange.dialects.table import DIALECTS
from interchange.language import expression as ex
from interchange.language.expression import Node
from interchange.language.parse import Dialect, builder, parse

# Row of the operator table -> PySR's operator, or its definition in Julia, which takes every finite number.
JULIA = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
JULIA |= {
    op: op
    for op in (
        "neg", "square", "cube", "abs", "sign", "exp", "tanh", "sinh", "cosh", "asinh", "erf", "erfc", "sin",
        "cos", "tan", "atan", "cbrt", "log1p", "relu", "max", "min", "greater",
    )
}  # fmt: skip
JULIA |= {"powreal": "^", "root": "sqrt", "ln": "log"}  # as PySR has them, nan outside their domain
JULIA |= {
    "sqrt": "sqrt_abs(x) = sqrt(abs(x))",
    "log": "log_eps(x) = log(abs(x) + oftype(x, 1.0e-8))",
    "logabs": "logabs(x) = log(abs(x))",
    "sigmoid": "sigmoid(x) = one(x) / (one(x) + exp(-x))",
    "softsign": "softsign(x) = x / (one(x) + abs(x))",
    "pow": "signed_pow(x, y) = sign(x) * abs(x) ^ y",
    "powabs": "powabs(x, y) = abs(x) ^ y",
    "aq": "aq(x, y) = x / sqrt(one(y) + y * y)",
}
DEFINED = {text.partition("(")[0]: op for op, text in JULIA.items() if "(" in text}

_PYSR = DIALECTS["pysr-2"]
DIALECT: Dialect = dataclasses.replace(
    _PYSR, calls={**_PYSR.calls, **{name: builder(op) for name, op in DEFINED.items()}}
)

_log = logging.getLogger(__name__)


def spelled(op: str) -> str:
    """PySR's name of a row of the operator table."""
    return JULIA[op].partition("(")[0]


def variables(count: int) -> list[str]:
    """x0, x1, ...: no name among them means anything to Julia or SymPy."""
    return [f"x{k}" for k in range(count)]


def to_julia(node: Node) -> str:
    """An expression as PySR reads guesses; all in parentheses, as Julia takes a + b + c for one call of 3."""
    if node.op == "number":
        return repr(node.value)
    if node.op == "name":
        return node.name
    args = [to_julia(arg) for arg in node.args]
    if node.op == "neg":
        return f"(-1.0 * {args[0]})"
    if len(spelled(node.op)) == 1:
        return f"({args[0]} {spelled(node.op)} {args[1]})"
    return f"{spelled(node.op)}({', '.join(args)})"


def to_guess(node: Node, ops: Sequence[str]) -> str:
    """An expression over x0, x1, ... as a guess; "" if it needs an operator that is not among ``ops``."""
    used = {part.op for part in ex.walk(node)} - {"number", "name"}
    needed = used - {"neg"} | {"mul"} if "neg" in used else used
    return to_julia(node) if needed <= set(ops) else ""


def read_front(text: str, count: int) -> list[Node]:
    """The equations of a hall of fame, over x0, x1, ... and in its order; what means nothing here is dropped.

    A file without its last line break is half written: [].

    Args:
        text: ``Complexity,Loss,Equation`` and a line for each.
        count: of variables.
    """
    if not text.endswith("\n"):
        return []
    nodes = []
    try:
        for row in csv.DictReader(io.StringIO(text), strict=True):
            try:
                equation = without_suffix(row.get("Equation") or "")
                nodes.append(parse(equation, variables(count), DIALECT))
            except L2OError as error:
                _log.warning("an equation of PySR is dropped: %s", error)
    except csv.Error:
        return []
    return nodes
