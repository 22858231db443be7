"""LaTeX as ``--to latex`` writes it, as text of the rule language; any other LaTeX is refused in one line.

Its constants are rounded to 4 digits, so what is read has the rounded numbers.
"""

import re

from common.errors import L2OError

_TOKEN = re.compile(
    r"\\left\s*[(\[|]|\\right\s*[)\]|]|\\,|\\_|\\[A-Za-z]+|\d+\.?\d*|\.\d+|[A-Za-z]|[{}^_+\-=>,\[\]()]|\s+"
)
_FUNCTIONS = {"arctan": "atan", "arsinh": "asinh", "sgn": "sign"}
_WORDS = ("sin", "cos", "tan", "exp", "log", "ln", "max", "min", "sinh", "cosh", "tanh", "arctan")
_LETTERS = {r"\theta": "theta"}
_ACCENTS = ("tilde", "hat", "bar")
_SIZES = ("rows", "cols", "numel")


def looks_like_latex(text: str) -> bool:
    """Whether it can be nothing else: other programs write no backslash."""
    return "\\" in text or bool(re.match(r"\s*u_t\s*=", text))


def latex_text(latex: str) -> str:
    """``u_t = ...`` as an expression of the rule language.

    Raises:
        L2OError: it is not LaTeX as the exporter writes it.
    """
    reader = _Reader(latex)
    try:
        return reader.equation()
    except (IndexError, RecursionError):
        raise L2OError(f"LaTeX ends too early or is too deep: {latex[:80]!r}; {_REMEDY}") from None


_REMEDY = "LaTeX is read as --to latex writes it; write the equation as text of the rule language"


class _Reader:
    """Recursive descent over the tokens; every method returns text of the rule language."""

    def __init__(self, latex: str) -> None:
        self.latex, self.tokens, place = latex.strip(), [], 0
        while place < len(self.latex):
            match = _TOKEN.match(self.latex, place)
            if not match:
                raise L2OError(f"unexpected {self.latex[place : place + 12]!r} in LaTeX; {_REMEDY}")
            token = re.sub(r"\s+", "", match[0]) if match[0].strip() else ""
            if token and token != r"\,":
                self.tokens.append(token)
            elif token:
                self.tokens.append("*")
            place = match.end()
        self.tokens.append("")
        self.place = 0

    @property
    def next(self) -> str:
        return self.tokens[self.place]

    def take(self, *expected: str) -> str:
        token = self.next
        if expected and token not in expected:
            raise L2OError(
                f"expected {' or '.join(expected)} in LaTeX, got {token or 'its end'!r}; {_REMEDY}"
            )
        self.place += 1
        return token

    def equation(self) -> str:
        for token in ("u", "_", "t", "="):
            self.take(token)
        text = self.sum()
        self.take("")
        return text

    def sum(self) -> str:
        text = f"-{self.product()}" if self.next == "-" and self.take("-") else self.product()
        while self.next in ("+", "-"):
            text = f"{text} {self.take()} {self.product()}"
        return text

    def product(self) -> str:
        text = self.power()
        while self.next in ("*", r"\cdot"):
            self.take()
            sign = "-" if self.next == "-" and self.take("-") else ""
            factor = self.power()
            # A mantissa and its power of ten are one number, which a decay has to be.
            scaled = re.fullmatch(r"[\d.]+", text) and re.match("1e", sign + factor)
            text = f"{text}{factor[1:]}" if scaled else f"{text} * {sign}{factor}"
        return text

    def power(self) -> str:
        text, kind = self.atom()
        if self.next != "^":
            return text
        self.take("^")
        exponent = self.group()
        if re.fullmatch(r"10", text) and re.fullmatch(r"-?\d+", exponent):
            return f"1e{exponent}"
        if exponent in ("2", "3"):
            return f"{'square' if exponent == '2' else 'cube'}({text})"
        return f"powabs({text[4:-1]}, {exponent})" if kind == "abs" else f"({text})**({exponent})"

    def group(self) -> str:
        """What stands in braces, or the one digit or t that LaTeX takes without."""
        if self.next != "{":
            return self.single()
        self.take("{")
        text = self.sum()
        self.take("}")
        return text

    def single(self) -> str:
        """The one character that LaTeX takes where no brace opens; a longer number is refused."""
        if not re.fullmatch(r"\d|t", self.next):
            shown = self.next or "end"
            raise L2OError(f"expected {{, one digit or t in LaTeX, got {shown!r}; {_REMEDY}")
        return self.take()

    def atom(self) -> tuple[str, str]:
        token = self.next
        if re.match(r"[\d.]", token):
            return self.take(), "number"
        if token == r"\frac":
            self.take()
            above = self.group()
            return f"(({above}) / ({self.group()}))", ""
        if token == r"\sqrt":
            return self.root(), ""
        if token == r"\left|":
            return f"abs({self.fenced()})", "abs"
        if token in (r"\left(", r"\left["):
            return self.fence(), ""
        if token == "{":
            return f"({self.group()})", ""
        if token == r"\sigma":
            self.take()
            return f"sigmoid({self.fenced()})", ""
        if token.lstrip("\\") in _WORDS or token == r"\operatorname" or self.is_average():
            return self.function(), ""
        return self.name(), ""

    def fence(self) -> str:
        token = self.next
        text = self.fenced()
        if self.next == "_" and token == r"\left[":
            return f"lag({text}, {self.lag()})"
        return f"({text})"

    def fenced(self) -> str:
        left = self.take(r"\left(", r"\left[", r"\left|")
        text = self.sum()
        if left == r"\left[" and self.next == ">":
            self.take()
            text = f"greater({text}, {self.sum()})"
        while left == r"\left(" and self.next == ",":
            self.take()
            text = f"{text}, {self.sum()}"
        self.take({r"\left(": r"\right)", r"\left[": r"\right]", r"\left|": r"\right|"}[left])
        return text

    def root(self) -> str:
        self.take(r"\sqrt")
        if self.next == "[":
            for token in ("[", "3", "]"):
                self.take(token)
            return f"cbrt({self.group()})"
        inner = self.group()
        stripped = re.fullmatch(r"abs\((.*)\)", inner)
        whole = stripped and _closes_last(inner)
        return f"sqrt({stripped[1]})" if whole else f"root({inner})"

    def is_average(self) -> bool:
        return self.next in (r"\widehat", r"\hat") and self.tokens[self.place + 2] == r"\operatorname"

    def function(self) -> str:
        hat = self.is_average()
        if hat:
            self.take()
            self.take("{")
        word = self.take().lstrip("\\")
        if word == "operatorname":
            word = self.word()
        if hat:
            self.take("}")
        if word == "ema":
            self.take("_")
            decay = self.group()
            return f"{'ema_hat' if hat else 'ema'}({self.fenced()}, {decay})"
        if word == "log":
            return self.logarithm()
        return f"{_FUNCTIONS.get(word, word)}({self.fenced()})"

    def logarithm(self) -> str:
        bars = self.next == r"\left|"
        inner = self.fenced()
        if bars:
            return f"logabs({inner})"
        protected = re.fullmatch(r"abs\((.*)\) \+ 1e-8", inner)
        if protected and _closes_last(f"abs({protected[1]})"):
            return f"log({protected[1]})"
        if not inner.startswith("1 + ") and not inner.startswith("1 - "):
            raise L2OError(f"log without bars is none that --to latex writes; {_REMEDY}")
        return f"log1p({'-' if inner[2] == '-' else ''}{inner[4:]})"

    def name(self) -> str:
        parts = self.base()
        if parts == ["t"] and self.next != "_":
            return "t"
        if parts[0] in _SIZES and self.next != "_":
            return parts[0]
        self.take("_")
        text = "_".join(parts)
        if self.next != "{":
            index = self.single()
            return text if index == "t" else f"{text}{index}"
        rest, lag = self.index()
        full = f"{text}{rest[0]}" if parts == ["c"] and lag is None else "_".join((*parts, *rest))
        return full if not lag else f"lag({full}, {lag})"

    def base(self) -> list[str]:
        token = self.take()
        if token in _LETTERS:
            return [_LETTERS[token]]
        if token == r"\mathrm":
            return [self.word()]
        accent = token.lstrip("\\").removeprefix("wide")
        if token.startswith("\\") and accent in _ACCENTS:
            self.take("{")
            inner = self.base()
            self.take("}")
            return [*inner, accent]
        if not re.fullmatch(r"[A-Za-z]", token):
            raise L2OError(f"unexpected {token or 'end'!r} in LaTeX; {_REMEDY}")
        return [token]

    def word(self) -> str:
        self.take("{")
        letters = []
        while self.next != "}":
            letters.append(self.take().replace(r"\_", "_"))
        self.take("}")
        return "".join(letters)

    def index(self) -> tuple[list[str], int | None]:
        """Parts of a name and the lag of ``_{name,t-k}``; None where there is no t."""
        self.take("{")
        parts: list[str] = []
        while self.next == r"\mathrm":
            self.take()
            parts.append(self.word())
            self.take(",")
        if re.fullmatch(r"\d+", self.next):
            parts.append(self.take())
            self.take("}")
            return parts, None
        self.take("t")
        lag = int(self.take()) if self.next == "-" and self.take("-") else 0
        self.take("}")
        return parts, lag

    def lag(self) -> int:
        self.take("_")
        return self.index()[1] or 0


def _closes_last(text: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and not depth:
            return place == len(text) - 1
    return False
