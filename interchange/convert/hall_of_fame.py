"""Equations that PySR and Operon found -> rules.

``import_hall_of_fame`` reads text; ``import_operon_front`` takes a fitted regressor, whose printed models
would lose digits.
"""

import csv
import dataclasses
import io
import logging
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import L2OError
from common.run.storage import content_hash, read_file
from interchange.language import expression as ex
from interchange.language.canonical import name_constants, to_node
from interchange.language.dialects import DIALECTS, operon_tree
from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.rule.front import FRONT_COLUMNS
from interchange.rule.rule import RAW, Rule

_LIMIT = 16 << 20  # bytes; the largest published file has 0.2 MB
_TEXT, _LOSS = ("equation", "model", "expression"), ("mse", "loss", "mean_squared_error")
_OLD, _PLAIN = ("pysr-0.3", "pysr-0.6"), ("native", "operon", "sympy")
_ABS = re.compile(r"\b(sqrt|log|pow|log1p)_abs\(")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Line:
    number: int
    text: str
    loss: float | None = None
    complexity: int | None = None


@dataclasses.dataclass(frozen=True)
class _Reading:
    """What one dialect makes of the lines; where it stopped, and why, if it did not read all."""

    nodes: list[Node]
    error: str = ""


def import_hall_of_fame(
    path: str | os.PathLike[str],
    *,
    dialect: str = "",
    features: Mapping[str, str] | None = None,
    scale: float = 1.0,
) -> list[Rule]:
    """The rules of a file of equations, in its order.

    Read are: PySR's old ``Complexity|MSE|Equation`` and new ``Complexity,Loss,Equation`` (csv, quoted), the
    copies ``.bkup`` and ``.bak`` too; Operon's models as a csv with a header that names a column ``model``
    or ``expression`` (of pyoperon's columns ``length``, ``mean_squared_error`` and so on, the loss is kept);
    and plain text with one expression per line.

    Constants become c0, c1, ...; variables become features. ``g``, ``t`` and ``theta`` mean the gradient,
    the step and the parameter in a rule, so a variable of that name is called ``g_column`` and so on,
    unless ``features`` says it is that one (``{"g": "g"}``).

    Args:
        dialect: row of ``interchange.language.dialects.DIALECTS``; "" goes by header and spelling.
        features: variable -> its expression over ``g``, e.g. ``{"g1": "lag(g, 1)"}``; a rule over a variable
            without one evaluates on arrays but is no optimizer.
        scale: u = scale * equation.

    Raises:
        L2OError: a line that is broken or has no exact meaning here, as ``FILE:LINE: reason``.
    """
    if dialect:
        DIALECTS[dialect]  # an unknown one lists the known
    data = read_file(path, _LIMIT)
    header, lines = _read_lines(path, data)
    dialect, nodes = _parse_all(path, header, lines, dialect)
    names = dict.fromkeys(name for node in nodes for name in ex.names(node))
    variables = _Variables(names, features or {})
    origin = {"file": Path(path).name, "file_sha256": content_hash(data), "dialect": dialect}
    rules = []
    for line, node in zip(lines, nodes, strict=True):
        try:
            rule = variables.rule(node, scale, origin | {"line": line.number}, line.loss)
        except L2OError as error:
            raise L2OError(f"{path}:{line.number}: {error}") from None
        rules.append(rule)
    if dialect.startswith("pysr"):
        _compare(path, lines, rules)
    if dialect == "operon" and any(0.0 in rule.constants.values() for rule in rules):
        _log.warning(
            "%s: some constants are 0; print models with more digits, or import the front itself", path
        )
    return rules


def import_operon_front(
    regressor: Any, *, features: Mapping[str, str] | None = None, scale: float = 1.0
) -> list[Rule]:
    """The Pareto front of a fitted ``pyoperon.sklearn.SymbolicRegressor``, shortest first, constants exact.

    Args:
        regressor: after ``fit``; its trees are read node by node.
        features, scale: as of ``import_hall_of_fame``.
    """
    from interchange.search.operon import read_tree

    codes = {code: index for index, code in enumerate(regressor.variables_)}
    columns = [ex.name(name) for name in regressor.variables_.values()]
    variables = _Variables(regressor.variables_.values(), features or {})
    rules = []
    for row in regressor.pareto_front_:
        node = to_node(operon_tree(read_tree(row["tree"].Nodes, codes)), columns)
        loss = float(row.get("mean_squared_error", math.nan))
        rules.append(variables.rule(node, scale, {"engine": "operon"}, loss if math.isfinite(loss) else None))
    return sorted(rules, key=lambda rule: rule.complexity)


class _Variables:
    """The variables of one file as features."""

    def __init__(self, names: Collection[str], features: Mapping[str, str]) -> None:
        unknown = [name for name in features if name not in names]
        if unknown:
            known = ", ".join(names) or "none"
            raise L2OError(f"feature {unknown[0]!r}: no equation has that variable; they have: {known}")
        self.renamed: dict[str, Node] = {}
        self.features: dict[str, Node | None] = {}
        for name in names:
            text = features.get(name)
            if name in RAW and text is not None and text.strip() == name:
                continue
            called = f"{name}_column" if name in RAW else name
            if called != name:
                _log.warning(
                    "variable %r is called %r in the rules, where %r has a meaning", name, called, name
                )
                self.renamed[name] = ex.name(called)
            try:
                self.features[called] = None if text is None else parse(text, RAW)
            except L2OError as error:
                raise L2OError(f"feature {name!r}: {error}") from None

    def rule(self, node: Node, scale: float, origin: dict[str, Any], loss: float | None) -> Rule:
        """The rule of one equation over these variables."""
        expression, constants = name_constants(ex.substitute(node, self.renamed))
        used = set(ex.names(expression))
        features = {name: tree for name, tree in self.features.items() if name in used}
        provenance = origin | ({} if loss is None else {"loss": loss})
        name = f"{ex.complexity(expression)} nodes"
        return Rule(name, expression, constants, features, scale, provenance)


def _read_lines(path: Any, data: bytes) -> tuple[tuple[str, str], list[_Line]]:
    """(separator, title of the equations), both "" without a header; and the equations."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise L2OError(f"{path}:{line}: expected UTF-8 text; is it the right file?") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = "|" if "|" in first else ","
    titles = [title.strip().strip('"').lower() for title in first.split(separator)]
    if tuple(titles) == FRONT_COLUMNS:
        raise L2OError(f"{path}: this is the table of a front; its rules are the files it names, beside it")
    place = next((titles.index(title) for title in _TEXT if title in titles), None)
    if place is None:
        lines = [_Line(k, line) for k, line in enumerate(text.splitlines(), 1) if line.strip()]
        header = ("", "")
    else:
        lines = [_line(path, number, row, titles, place) for number, row in _rows(path, text, separator)]
        header = (separator, titles[place])
    if not lines:
        raise L2OError(f"{path}: expected equations, got none; is it the right file?")
    return header, lines


def _rows(path: Any, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of everything below the header."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    if separator == "|":  # PySR quotes nothing there
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="|", quoting=csv.QUOTE_NONE)
    titled = False
    try:
        for row in reader:
            if titled and any(field.strip() for field in row):
                yield reader.line_num, row
            titled = titled or bool(row)
    except csv.Error as error:
        raise L2OError(f"{path}:{reader.line_num}: not a row of a table: {error}; correct it") from None


def _line(path: Any, number: int, row: list[str], titles: Sequence[str], place: int) -> _Line:
    if len(row) != len(titles):
        raise L2OError(
            f"{path}:{number}: expected {len(titles)} columns ({', '.join(titles)[:80]}), got {len(row)}; "
            "correct the line or remove it"
        )
    values: dict[str, Any] = {}
    for key, known, kind in (("loss", _LOSS, float), ("complexity", ("complexity",), int)):
        title = next((title for title in known if title in titles), None)
        if title is not None:
            written = row[titles.index(title)].strip()
            try:
                values[key] = kind(written)
                if not math.isfinite(values[key]):
                    raise ValueError
            except (ValueError, OverflowError):
                raise L2OError(
                    f"{path}:{number}: {title}: expected a finite number, got {written[:40]!r}; "
                    "correct the line or remove it"
                ) from None
    return _Line(number, row[place].strip(), **values)


def _parse_all(
    path: Any, header: tuple[str, str], lines: list[_Line], dialect: str
) -> tuple[str, list[Node]]:
    """The dialect and every line's tree in it; a guess is made only where it cannot be wrong."""
    candidates = (dialect,) if dialect else _candidates(header, lines)
    readings = {name: _read(lines, name) for name in candidates}
    whole = {name: reading.nodes for name, reading in readings.items() if not reading.error}
    if not whole:  # blame the line where the dialect that got furthest stopped
        furthest = max(readings.values(), key=lambda reading: len(reading.nodes))
        raise L2OError(f"{path}:{lines[len(furthest.nodes)].number}: {furthest.error}")
    name, nodes = next(iter(whole.items()))
    # Without a header, a dialect may refuse what another reads with a meaning that was not meant.
    sure = candidates != _PLAIN or len(whole) == len(candidates)
    if not sure or any(other != nodes for other in whole.values()):
        raise L2OError(
            f"{path}: the spelling does not tell which program wrote it, {' or '.join(candidates)}; "
            "say it with dialect (--dialect)"
        )
    return name, nodes


def _candidates(header: tuple[str, str], lines: list[_Line]) -> tuple[str, ...]:
    separator, title = header
    if any(_ABS.search(line.text) for line in lines):
        return ("pysr-0.6",)
    if separator == "|":
        return _OLD
    if title == "equation":
        return ("pysr-2",)
    return ("operon",) if title == "model" or any("^" in line.text for line in lines) else _PLAIN


def _read(lines: list[_Line], dialect: str) -> _Reading:
    nodes: list[Node] = []
    for line in lines:
        try:
            nodes.append(parse(line.text, None, DIALECTS[dialect]))
        except L2OError as error:
            return _Reading(nodes, str(error))
    return _Reading(nodes)


def _compare(path: Any, lines: list[_Line], rules: list[Rule]) -> None:
    """Warn where PySR counted other nodes than are in the rules, as powers and its own weights make it."""
    pairs = [(line, rule) for line, rule in zip(lines, rules, strict=True) if line.complexity is not None]
    other = [(line, rule) for line, rule in pairs if line.complexity != rule.complexity]
    if other:
        line, rule = other[0]
        _log.warning(
            "%s: %d of %d rules have another number of nodes than the file says, the first in line %d: "
            "%d, there %s", path, len(other), len(pairs), line.number, rule.complexity, line.complexity
        )  # fmt: skip
