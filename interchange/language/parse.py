"""Text of the rule language -> tree, by a whitelist on Python's ``ast``. Nothing is ever executed.

Refused with one line that names the fault: other syntax, unknown names, and anything over the limits
(10,000 characters, depth 100, 1,000 nodes). Other programs' spellings are in interchange.dialects.table.
"""

import ast
import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from common.errors import L2OError
from interchange.language.expression import MAX_LAG, Node, call, complexity, depth, name, number, walk
from interchange.language.operators import OPERATORS
from interchange.language.sugar import ALIASES, COMPARISONS, compare, real_power

MAX_CHARACTERS = 10_000
MAX_DEPTH = 100
MAX_NODES = 1_000
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")

_ALIEN = re.compile(r"[^A-Za-z0-9_+\-*/(),.<>= ]")
_LITERAL = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INTEGER = re.compile(r"\d+")
_BINARY = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}


class ParseError(L2OError):
    """Text that is not an expression of the rule language."""


@dataclass(frozen=True)
class Dialect:
    """How calls and binary operators are spelled in one source of expressions.

    Attributes:
        calls: spelling -> builder of the node from its parsed arguments.
        binary: ``ast`` operator class -> the same for two operands.
        caret: powers are written ``^``; ``**`` then is no spelling of anything.
        finish: what is done to the whole tree.
        pieces: what makes one node of the (value, condition) pairs of ``Piecewise``; None is ``nan`` or
            ``True`` there.
        refused: known functions without a row of their meaning -> the reason.
        reserved: words that are no variables, such as ``nan``.
    """

    calls: Mapping[str, Callable[..., Node]]
    binary: Mapping[type, Callable[..., Node]] = field(default_factory=dict)
    caret: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    reserved: Collection[str] = ()
    pieces: Callable[[list[tuple[Node | None, Node | None]]], Node] | None = None
    finish: Callable[[Node], Node] = lambda node: node


def builder(op: str) -> Callable[..., Node]:
    """What builds the node of one row of the operator table."""
    return lambda *args: call(op, *args)


ARITHMETIC = {kind: builder(op) for kind, op in _BINARY.items()}


class _Operators(Mapping[str, Callable[..., Node]]):
    """The table's operators as calls, whatever the table has when it is asked; aliases are not listed."""

    def __getitem__(self, op: str) -> Callable[..., Node]:
        if op in ALIASES:
            return ALIASES[op]
        if op not in OPERATORS:
            raise KeyError(op)
        return builder(op)

    def __iter__(self) -> Iterator[str]:
        return iter(OPERATORS)

    def __len__(self) -> int:
        return len(OPERATORS)


NATIVE = Dialect(calls=_Operators(), binary=ARITHMETIC | {ast.Pow: real_power})


def parse(text: str, known_names: Collection[str] | None = None, dialect: Dialect = NATIVE) -> Node:
    """The tree of ``text``.

    Args:
        text: one expression, printable ASCII on one line.
        known_names: names the expression may use; None allows every well-formed name.
        dialect: spelling of operators; the rule language itself by default.

    Raises:
        ParseError: the text is not an expression over the known names, or exceeds a limit.
    """
    if not isinstance(text, str):
        raise ParseError(f"expected an expression as text, got {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise ParseError(f"expected an expression of at most {MAX_CHARACTERS} characters, got {len(text)}")
    text = text.strip(" ")
    if dialect.caret:
        if "**" in text:
            raise ParseError(f"unexpected '**', powers are written ^ here: {_shorten(text)!r}")
        text = text.replace("^", "**")
    alien = _ALIEN.search(text)
    if alien:
        raise ParseError(
            f"unexpected character {alien.group()!r} in an expression at position {alien.start() + 1}; "
            "allowed: letters, digits, _ + - * / ( ) , . < > = and space"
        )
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = _shorten(error.msg, 40) if isinstance(error, SyntaxError) else type(error).__name__
        raise ParseError(f"not an expression: {reason}: {_shorten(text)!r}") from None
    node = dialect.finish(_Reader(text, known_names, dialect).read(tree, 1))
    # A power and what is protected stand for several nodes.
    size = complexity(node)
    if size > MAX_NODES or depth(node) > MAX_DEPTH:
        raise ParseError(
            f"expected at most {MAX_NODES} nodes and {MAX_DEPTH} levels with powers and protected operators "
            f"written out in the rule language, got {size} nodes: {_shorten(text)!r}"
        )
    strange = next((n.op for n in walk(node) if n.args and n.op not in OPERATORS), "")
    if strange:
        raise ParseError(f"{strange!r} has no row in the operator table but as part of a condition")
    return node


class _Reader:
    """One pass over Python's tree, counting nodes."""

    def __init__(self, text: str, known_names: Collection[str] | None, dialect: Dialect) -> None:
        self.text = text
        self.known_names = known_names
        self.dialect = dialect
        self.nodes = 0

    def read(self, tree: ast.AST, level: int) -> Node:
        self.nodes += 1
        if level > MAX_DEPTH:
            raise ParseError(f"expected an expression at most {MAX_DEPTH} levels deep: {self._show()}")
        if self.nodes > MAX_NODES:
            raise ParseError(f"expected an expression of at most {MAX_NODES} nodes: {self._show()}")
        if isinstance(tree, ast.Constant):
            return number(self._literal(tree))
        if isinstance(tree, ast.Name):
            return name(self._name(tree.id))
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            if isinstance(tree.operand, ast.Constant):
                return number(-self._literal(tree.operand))
            self._check_sign(tree)
            return call("neg", self.read(tree.operand, level + 1))
        if isinstance(tree, ast.BinOp) and type(tree.op) in self.dialect.binary:
            left, right = self.read(tree.left, level + 1), self.read(tree.right, level + 1)
            return self._build(self.dialect.binary[type(tree.op)], [left, right], tree)
        if isinstance(tree, ast.Compare) and len(tree.ops) == 1 and isinstance(tree.ops[0], COMPARISONS):
            sides = [self.read(side, level + 1) for side in (tree.left, *tree.comparators)]
            return compare(type(tree.ops[0]), *sides)
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.keywords:
            return self._call(tree, level)
        raise ParseError(self._refusal(tree))

    def _call(self, tree: ast.Call, level: int) -> Node:
        op = tree.func.id
        if op in self.dialect.refused:
            raise ParseError(f"{self._shown(tree)!r}: {self.dialect.refused[op]}")
        if op == "Piecewise" and self.dialect.pieces:
            return self._build(self.dialect.pieces, [self._pieces(tree, level)], tree)
        if op not in self.dialect.calls:
            raise ParseError(_unknown("operator", op, self.dialect.calls))
        if op == "lag" and len(tree.args) == 2 and not _INTEGER.fullmatch(self._segment(tree.args[1])):
            written = _shorten(self._segment(tree.args[1]))
            raise ParseError(f"lag(x, k) needs a literal integer k from 0 to {MAX_LAG}, got {written}")
        return self._build(self.dialect.calls[op], [self.read(arg, level + 1) for arg in tree.args], tree)

    def _pieces(self, tree: ast.Call, level: int) -> list[tuple[Node | None, Node | None]]:
        pairs = []
        for pair in tree.args:
            if not isinstance(pair, ast.Tuple) or len(pair.elts) != 2:
                raise ParseError(f"expected Piecewise((value, condition), ...), got {self._shown(tree)!r}")
            value, condition = pair.elts
            nan = isinstance(value, ast.Name) and value.id == "nan"
            always = isinstance(condition, ast.Constant) and condition.value is True
            pairs.append(
                (
                    None if nan else self.read(value, level + 1),
                    None if always else self.read(condition, level + 1),
                )
            )
        return pairs

    def _build(self, build: Callable[..., Node], args: list, tree: ast.expr) -> Node:
        try:
            return build(*args)
        except L2OError as error:
            raise ParseError(f"{error}: {self._shown(tree)!r}") from None

    def _check_sign(self, tree: ast.UnaryOp) -> None:
        """Programs that write ``^`` print (-2.0)^x as ``-2.0 ^ x``, which reads as -(2.0 ^ x)."""
        power = tree.operand
        if self.dialect.caret and isinstance(power, ast.BinOp) and isinstance(power.op, ast.Pow):
            between = self.text[tree.col_offset + 1 : power.col_offset]
            if not between.strip():
                shown = self._shown(tree)
                raise ParseError(
                    f"{shown!r} can be read in two ways; put the sign or the power in parentheses"
                )

    def _literal(self, tree: ast.Constant) -> float:
        written = self._segment(tree)
        if not _LITERAL.fullmatch(written):
            raise ParseError(f"expected a plain decimal number, got {_shorten(written)}")
        value = float(written)
        if not math.isfinite(value):
            raise ParseError(f"expected a finite number, got {_shorten(written)}")
        return value

    def _name(self, written: str) -> str:
        if written in self.dialect.reserved:
            raise ParseError(f"{written!r} is no variable; write a finite number in its place")
        if self.known_names is not None:
            if written not in self.known_names:
                raise ParseError(_unknown("name", written, self.known_names))
        elif not NAME.fullmatch(written):
            raise ParseError(f"expected a name of the form {NAME.pattern}, got {_shorten(written)!r}")
        if written in (OPERATORS if self.dialect is NATIVE else self.dialect.calls):
            raise ParseError(f"{written!r} is an operator; write {written}(...)")
        return written

    def _segment(self, tree: ast.AST) -> str:
        return self.text[tree.col_offset : tree.end_col_offset]

    def _shown(self, tree: ast.AST) -> str:
        """The text of a node, as it was written."""
        written = self._segment(tree)
        return _shorten(written.replace("**", "^") if self.dialect.caret else written)

    def _show(self) -> str:
        return repr(_shorten(self.text))

    def _refusal(self, tree: ast.AST) -> str:
        remedy = "use numbers, names, operator calls, + - * / and parentheses"
        if isinstance(tree, ast.Compare):
            remedy = "of comparisons one of < > <= >= between two sides"
        return f"{self._shown(tree)!r} is not part of the rule language; {remedy}"


def _unknown(kind: str, written: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(written, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown {kind} {_shorten(written)!r}{hint}; known: {', '.join(known) or 'none'}"


def _shorten(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
