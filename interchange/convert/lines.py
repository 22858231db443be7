"""A file of equations as lines: its encoding, separator and columns."""

import codecs
import csv
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from common.errors import L2OError
from interchange.rule.front import BEFORE_STRUCTURE, FRONT_COLUMNS

_TEXT, _LOSS = ("equation", "model", "expression"), ("mse", "loss", "mean_squared_error")
_SEPARATORS = "|,;\t"
_MOST = 2000  # equations of a file; a hall of fame has one a size
_END = r"\r\n?|\n"  # of a line: Unix, Windows, old Mac
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclasses.dataclass(frozen=True)
class Line:
    """One equation as written.

    Attributes:
        loss: None where the file has none, or none that is finite, as PySR's ``Inf``.
        fault: why the line is no equation; "" if it may be one.
    """

    number: int
    text: str
    loss: float | None = None
    complexity: float | None = None
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """The lines of a file, its comments, and its separator and the equations' title, "" without a header."""

    lines: list[Line]
    comments: tuple[str, ...] = ()
    separator: str = ""
    title: str = ""
    latex: bool = False


def read_lines(path: Any, data: bytes) -> Table:
    """The equations of a file; a line that is broken has its fault.

    Raises:
        L2OError: not a file of equations.
    """
    text = _decoded(path, data)
    numbered = [(k, line) for k, line in enumerate(re.split(_END, text), 1) if line.strip()]
    comments = tuple(line.strip("# ") for _, line in numbered if line.startswith("#"))
    numbered = [(k, line) for k, line in numbered if not line.startswith("#")]
    if not numbered:
        raise L2OError(f"{path}: expected equations, got none; is it the right file?")
    if len(numbered) > _MOST + 1:
        raise L2OError(
            f"{path}: expected at most {_MOST} equations, got {len(numbered)} lines; keep the best of them"
        )
    for separator in _SEPARATORS:
        titles = [title.strip().strip('"').lower() for title in numbered[0][1].split(separator)]
        if tuple(titles) in (FRONT_COLUMNS, BEFORE_STRUCTURE):
            raise L2OError(
                f"{path}: this is the table of a front; its rules are the files it names, beside it"
            )
        place = next((titles.index(title) for title in _TEXT if title in titles), None)
        if place is not None:
            break
    else:
        return Table([Line(k, line) for k, line in numbered], comments)
    lines = [_line(number, line, separator, titles, place) for number, line in numbered[1:]]
    if not lines:
        raise L2OError(f"{path}: expected equations, got none below the header; is it the right file?")
    return Table(lines, comments, separator, titles[place])


def _decoded(path: Any, data: bytes) -> str:
    encoding = "utf-16" if data.startswith(_UTF_16) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(re.split(_END.encode(), data[: error.start]))
        raise L2OError(f"{path}:{line}: expected UTF-8 text; is it the right file?") from None


def _line(number: int, line: str, separator: str, titles: Sequence[str], place: int) -> Line:
    quoting = csv.QUOTE_NONE if separator == "|" else csv.QUOTE_MINIMAL  # PySR quotes nothing there
    try:
        (row,) = csv.reader([line], delimiter=separator, quoting=quoting, strict=True)
    except (csv.Error, ValueError) as error:
        return Line(number, line, fault=f"not a row of a table: {error}; correct it")
    if len(row) != len(titles):
        shown = ", ".join(titles)[:80]
        return Line(
            number, line, fault=f"expected {len(titles)} columns ({shown}), got {len(row)}; correct it"
        )
    values: dict[str, float | None] = {}
    for key, known in (("loss", _LOSS), ("complexity", ("complexity",))):
        title = next((title for title in known if title in titles), None)
        if title is not None:
            written = row[titles.index(title)].strip()
            try:
                number_ = float(written)
            except ValueError:
                return Line(
                    number, line, fault=f"{title}: expected a number, got {written[:40]!r}; correct it"
                )
            values[key] = number_ if math.isfinite(number_) else None
    return Line(number, row[place].strip(), **values)
