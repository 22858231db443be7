"""Name -> row tables that list themselves when a name is unknown."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from common.errors import L2OError

Row = TypeVar("Row")


class Registry(Mapping[str, Row], Generic[Row]):
    """A read-only table of named rows.

    Args:
        kind: what a row is, for messages, e.g. ``"problem"``.
        rows: the table itself; insertion order is kept and is the order shown to users.
    """

    def __init__(self, kind: str, rows: Mapping[str, Row]) -> None:
        self.kind = kind
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> Row:
        """The row called ``name``; an unknown name raises ``L2OError`` listing the known ones."""
        try:
            return self._rows[name]
        except (KeyError, TypeError):
            raise L2OError(self._unknown(name)) from None

    def get(self, name: str, default: Row | None = None) -> Row | None:
        """The row called ``name``, or ``default``."""
        return self._rows.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _unknown(self, name: object) -> str:
        close = difflib.get_close_matches(str(name), self._rows, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f"unknown {self.kind} {name!r}{hint}; known: {', '.join(self._rows)}"
