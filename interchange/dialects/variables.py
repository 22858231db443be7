"""Names of other programs' variables -> names that rules can have."""

import keyword
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import L2OError
from interchange.language import expression as ex
from interchange.language.canonical import name_constants
from interchange.language.checks import RAW
from interchange.language.expression import Node
from interchange.language.operators import OPERATORS
from interchange.language.parse import NAME, parse

_WORD = re.compile(r"(?<![\w.])[^\W\d]\w*(?!\w*\s*\()")  # not the exponent of 1e5, not what is called
_VALUES = frozenset({"nan", "NaN", "inf", "Inf", "True"})

_log = logging.getLogger(__name__)


def _ascii(name: str) -> str:
    """A name in ASCII: letters without accents, Greek ones spelled out, others by number."""
    parts = []
    for letter in unicodedata.normalize("NFKD", name):
        if letter.isascii():
            parts.append(letter)
        elif not unicodedata.combining(letter):
            kind, _, spelled = unicodedata.name(letter, "").rpartition(" ")
            greek = kind in ("GREEK SMALL LETTER", "GREEK CAPITAL LETTER")
            spelled = spelled.lower() if "SMALL" in kind else spelled.capitalize()
            parts.append(spelled if greek else f"u{ord(letter):x}")
    text = "".join(parts).strip("_")
    return text if text[:1].isalpha() else f"x{text}"


class Variables:
    """The variables of one file, or of one fitted regressor, as features.

    Args:
        texts: the equations as they are written.
        features: variable -> its expression over ``g``, ``t``, ``theta``.
        known: names of variables, where they are known beside the texts.

    Attributes:
        renamed: variable -> its name in rules, of those that have another there.
        features: name in rules -> tree, None for a variable without an expression.

    Raises:
        L2OError: an expression belongs to no variable, or is none.
    """

    def __init__(
        self, texts: Sequence[str], features: Mapping[str, str] | None = None, known: Sequence[str] = ()
    ) -> None:
        given = features or {}
        names = dict.fromkeys((*known, *(word for text in texts for word in _WORD.findall(text))))
        names = [name for name in names if name not in _VALUES]
        unknown = [name for name in given if name not in names]
        if unknown:
            shown = ", ".join(names) or "none"
            raise L2OError(f"feature {unknown[0]!r}: no equation has that variable; they have: {shown}")
        self.renamed: dict[str, str] = {}
        self.features: dict[str, Node | None] = {}
        for name in names:
            text = given.get(name)
            if name in RAW and text is not None and text.strip() == name:
                continue
            called = self._called(name, names)
            if called != name:
                self.renamed[name] = called
            try:
                self.features[called] = None if text is None else parse(text, RAW)
            except L2OError as error:
                raise L2OError(f"feature {name!r}: {error}") from None

    def _called(self, name: str, names: Sequence[str]) -> str:
        called = name if NAME.fullmatch(name) else _ascii(name)[:50]
        taken = called in RAW or called in OPERATORS or keyword.iskeyword(called)
        if taken or re.fullmatch(r"c\d+", called):
            called = f"{called}_column"
        base, count = called, 1
        while called in self.features or (called != name and called in names):
            count += 1
            called = f"{base}_{count}"
        return called

    def said(self, used: Sequence[str]) -> None:
        """Say once which of the variables in use have another name in the rules."""
        for name, called in self.renamed.items():
            if called in used:
                _log.warning("variable %r is called %r in the rules", name, called)

    def text(self, written: str) -> str:
        """An equation with the variables called as in rules."""
        return _WORD.sub(lambda word: self.renamed.get(word[0], word[0]), written)

    def parts(self, node: Node) -> dict[str, Any]:
        """Name, expression, constants and features of the rule of one equation over these variables."""
        expression, constants = name_constants(node)
        used = set(ex.names(expression))
        features = {name: tree for name, tree in self.features.items() if name in used}
        return {
            "name": f"{ex.complexity(expression)} nodes",
            "expression": expression,
            "constants": constants,
            "features": features,
        }
