"""Equations that PySR and Operon found -> rules.

``import_hall_of_fame`` reads text; ``import_operon_front`` takes a fitted regressor, whose printed models
would lose digits.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import L2OError
from common.run.storage import content_hash, read_file
from interchange.convert.lines import Line, Table, read_lines
from interchange.dialects.custom import with_operators
from interchange.dialects.latex import latex_text, looks_like_latex
from interchange.dialects.objects import operon_front, template, without_suffix
from interchange.dialects.table import BY_SYMPY, DIALECTS
from interchange.dialects.variables import Variables
from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.rule.rule import RAW, Rule

_LIMIT = 16 << 20  # bytes; the largest published file has 0.2 MB
_OLD, _PLAIN = ("pysr-0.3", "pysr-0.6"), ("native", "operon", "sympy")
_INFIX = re.compile(r"[\w)]\s*[-+*/^<>=]")  # gplearn writes nothing but calls
_ABS = re.compile(r"\b(sqrt|log|pow|log1p)_abs\(")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Reading:
    """What one dialect makes of the lines: line number -> tree, and of those it refuses the reason."""

    nodes: dict[int, Node]
    faults: dict[int, str]


def import_hall_of_fame(
    path: str | os.PathLike[str],
    *,
    dialect: str = "",
    features: Mapping[str, str] | None = None,
    scale: float = 1.0,
    operators: Sequence[str] = (),
    strict: bool = False,
) -> list[Rule]:
    """The rules of a file of equations, in its order; a line without an exact meaning is named and left out.

    Read are: PySR's old ``Complexity|MSE|Equation`` and new ``Complexity,Loss,Equation`` (csv, quoted; with
    ``;`` or tabs too), the copies ``.bkup`` and ``.bak`` too; Operon's models as a csv with a header that
    names a column ``model`` or ``expression`` (of pyoperon's columns ``length``, ``mean_squared_error`` ...
    the loss is kept); plain text with one expression per line; and LaTeX as ``--to latex`` writes it.

    Constants become c0, c1, ...; variables become features. A variable whose name means something in a rule
    (``g``, ``t``, ``theta``, ``c0``, an operator) or cannot stand there is called ``g_column`` and so on,
    unless ``features`` says it is that one (``{"g": "g"}``).

    Args:
        dialect: row of ``interchange.dialects.table.DIALECTS``; "" goes by header and spelling.
        features: variable -> its expression over ``g``, e.g. ``{"g1": "lag(g, 1)"}``; a rule over a variable
            without one evaluates on arrays but is no optimizer.
        scale: u = scale * equation.
        operators: further operators of the equations, as ``sq=square(x)`` (interchange.dialects.custom).
        strict: refuse the file for one line that cannot be read.

    Raises:
        L2OError: no line, or with ``strict`` not every line, has an exact meaning here, as
            ``FILE:LINE: reason``.
    """
    _ = dialect and DIALECTS[dialect]  # an unknown one lists the known
    data = read_file(path, _LIMIT)
    table = _plain(read_lines(path, data))
    texts = [line.text for line in table.lines if not line.fault]
    variables = Variables(texts, {**_noted(table, texts), **(features or {})})
    called = [dataclasses.replace(line, text=variables.text(line.text)) for line in table.lines]
    table = dataclasses.replace(table, lines=called)
    dialect, reading = _parse_all(path, table, dialect, operators)
    origin = {"file": Path(path).name, "file_sha256": content_hash(data), "dialect": dialect}
    rules, faults = _rules(table, reading, variables, origin, scale)
    _report(path, table, faults, strict or not rules)
    variables.said([name for rule in rules for name in rule.features])
    _warn(path, dialect, table, rules)
    return rules


def _rules(
    table: Table, reading: _Reading, variables: Variables, origin: dict[str, Any], scale: float
) -> tuple[list[Rule], dict[int, str]]:
    """The rules of the lines that were read, and line number -> why not of the others."""
    rules, faults = [], dict(reading.faults)
    for line in table.lines:
        if line.number not in reading.nodes:
            continue
        loss = {} if line.loss is None else {"loss": line.loss}
        try:
            parts = variables.parts(reading.nodes[line.number])
            rules.append(Rule(**parts, scale=scale, provenance=origin | {"line": line.number} | loss))
        except L2OError as error:
            faults[line.number] = str(error)
    return rules, faults


def _plain(table: Table) -> Table:
    """The table with LaTeX as text, and with the fault of lines that are templates."""

    def plain(line: Line) -> Line:
        if line.fault:
            return line
        if looks_like_latex(line.text):
            try:
                return dataclasses.replace(line, text=latex_text(line.text))
            except L2OError as error:
                return dataclasses.replace(line, fault=str(error))
        return dataclasses.replace(line, fault=template(line.text))

    latex = bool(table.lines) and all(looks_like_latex(line.text) for line in table.lines)
    return dataclasses.replace(table, lines=[plain(line) for line in table.lines], latex=latex)


def _noted(table: Table, texts: list[str]) -> dict[str, str]:
    """In files written here: what is given in every rule, and the features that comments define."""
    pairs = [note.split(" = ", 1) for note in table.comments if " = " in note] if _ours(table) else []
    known = {name: name for name in RAW if _ours(table) or table.latex} | dict(pairs)
    return {name: text for name, text in known.items() if any(re.search(rf"\b{name}\b", t) for t in texts)}


def _ours(table: Table) -> bool:
    return BY_SYMPY in table.comments


def _report(path: Any, table: Table, faults: dict[int, str], refuse: bool) -> None:
    """Name the lines left out."""
    for number, fault in sorted(faults.items()):
        if refuse:
            raise L2OError(f"{path}:{number}: {fault}")
        _log.warning("%s:%d: left out: %s", path, number, fault)
    if faults:
        _log.warning(
            "%s: %d of %d equations are left out (--strict refuses such a file)",
            path,
            len(faults),
            len(table.lines),
        )


def import_operon_front(
    regressor: Any, *, features: Mapping[str, str] | None = None, scale: float = 1.0
) -> list[Rule]:
    """The Pareto front of a fitted ``pyoperon.sklearn.SymbolicRegressor``, shortest first, constants exact.

    Args:
        regressor: after ``fit``; its trees are read node by node.
        features, scale: as of ``import_hall_of_fame``.
    """
    rules = [Rule(**parts, scale=scale) for parts in operon_front(regressor, features)]
    return sorted(rules, key=lambda rule: rule.complexity)


def _parse_all(path: Any, table: Table, dialect: str, operators: Sequence[str]) -> tuple[str, _Reading]:
    """The dialect and every line's tree in it; a guess is made only where it cannot be wrong."""
    broken = {line.number: line.fault for line in table.lines if line.fault}
    lines = [line for line in table.lines if not line.fault]
    candidates = (dialect,) if dialect else _candidates(table, lines)
    readings = {name: _read(lines, name, operators) for name in candidates}
    furthest = max(readings.values(), key=lambda reading: len(reading.nodes))
    anyone = {number for reading in readings.values() for number in reading.nodes}
    whole = {name: reading for name, reading in readings.items() if set(reading.nodes) == anyone}
    # Without a header, a dialect may refuse what another reads with a meaning that was not meant.
    sure = whole and not set(_PLAIN) & set(candidates) - set(whole)
    if not anyone:
        return candidates[0], _Reading({}, broken | furthest.faults)
    name, reading = next(iter(whole.items()), ("", furthest))
    if not sure or any(other.nodes != reading.nodes for other in whole.values()):
        offered = [name for name in candidates if len(readings[name].nodes) == len(furthest.nodes)]
        raise L2OError(
            f"{path}: the spelling does not tell which program wrote it, it reads as {' or '.join(offered)}; "
            "say it with dialect (--dialect)"
        )
    return name, _Reading(reading.nodes, broken | furthest.faults)


def _candidates(table: Table, lines: list[Line]) -> tuple[str, ...]:
    if any(_ABS.search(line.text) for line in lines):
        return ("pysr-0.6",)
    if table.separator == "|":
        return _OLD
    if table.title == "equation":
        return ("pysr-2",)
    if _ours(table) or table.latex:
        return ("sympy",) if _ours(table) else ("native",)
    carets = any("^" in line.text for line in lines)
    if table.title == "model" or carets:
        return ("operon",)
    return _PLAIN if any(_INFIX.search(line.text) for line in lines) else (*_PLAIN, "gplearn")


def _read(lines: list[Line], dialect: str, operators: Sequence[str]) -> _Reading:
    reading = _Reading({}, {})
    spelled = with_operators(DIALECTS[dialect], operators)
    for line in lines:
        try:
            text = without_suffix(line.text) if dialect.startswith("pysr") else line.text
            reading.nodes[line.number] = parse(text, None, spelled)
        except L2OError as error:
            known = "; give its meaning with --operator NAME=EXPRESSION"
            reading.faults[line.number] = f"{error}{known * str(error).startswith('unknown operator')}"
    return reading


def _warn(path: Any, dialect: str, table: Table, rules: list[Rule]) -> None:
    if dialect.startswith("pysr"):
        _compare(path, table.lines, rules)
    if dialect == "operon" and any(0.0 in rule.constants.values() for rule in rules):
        _log.warning(
            "%s: some constants are 0; print models with more digits, or import the front itself", path
        )


def _compare(path: Any, lines: list[Line], rules: list[Rule]) -> None:
    """Warn where PySR counted other nodes than are in the rules, as powers and its own weights make it."""
    counted = {line.number: line.complexity for line in lines if line.complexity is not None}
    known = [rule for rule in rules if rule.provenance["line"] in counted]
    other = [rule for rule in known if counted[rule.provenance["line"]] != rule.complexity]
    if other:
        number = other[0].provenance["line"]
        _log.warning(
            "%s: %d of %d rules have another number of nodes than the file says, the first in line %d: "
            "%d, there %g", path, len(other), len(known), number, other[0].complexity, counted[number]
        )  # fmt: skip
