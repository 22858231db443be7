"""A rule as LaTeX, in the notation of interchange.emit.notation; needs amsmath for ``\\operatorname``."""

from interchange.emit.notation import Box, definition, equation
from interchange.language.equation import Equation
from interchange.language.expression import Node

_COMMANDS = {"sin", "cos", "tan", "exp", "log", "ln", "max", "min", "sinh", "cosh", "tanh", "arctan"}
_LETTERS = {"theta": r"\theta", "sigma": r"\sigma"}
_SYMBOLS = {"": r"\,", "times": r" \cdot ", ",": ", ", "+": " + ", "-": " - ", "=": " = ", ">": " > "}
_FENCES = {
    "()": (r"\left(", r"\right)"),
    "[]": (r"\left[", r"\right]"),
    "||": (r"\left|", r"\right|"),
}


def emit(rule: Equation) -> str:
    """``u_t = ...``, features by name, constants rounded to 4 significant digits; one line."""
    return latex(equation(rule.expression, rule.constants, rule.scale)) + "\n"


def emit_feature(name: str, node: Node) -> str:
    """A feature's definition, ``name_t = ...``; one line."""
    return latex(definition(name, node)) + "\n"


def latex(box: Box) -> str:
    """The LaTeX of one layout."""
    parts = [latex(part) for part in box.parts]
    match box.kind:
        case "row":
            # A minus that opens a row is a sign.
            signed = box.parts[0].kind == "symbol" and box.parts[0].text == "-"
            return "".join(["-", *parts[1:]] if signed else parts)
        case "letter":
            return _LETTERS.get(box.text, box.text)
        case "word":
            return f"\\{box.text}" if box.text in _COMMANDS else f"\\operatorname{{{_escaped(box.text)}}}"
        case "name":
            return rf"\mathrm{{{_escaped(box.text)}}}"
        case "number":
            return box.text
        case "symbol":
            return _SYMBOLS[box.text]
        case "fraction":
            return rf"\frac{{{parts[0]}}}{{{parts[1]}}}"
        case "root":
            return rf"\sqrt{{{parts[0]}}}" if box.text == "2" else rf"\sqrt[{box.text}]{{{parts[0]}}}"
        case "sub" | "sup":
            mark = "_" if box.kind == "sub" else "^"
            base = f"{{{parts[0]}}}" if box.parts[0].kind == box.kind else parts[0]
            return base + mark + (parts[1] if len(parts[1]) == 1 else f"{{{parts[1]}}}")
        case "accent":
            wide = "wide" if box.parts[0].kind in ("word", "name") and box.text in ("hat", "tilde") else ""
            return rf"\{wide}{box.text}{{{parts[0]}}}"
        case "fence":
            left, right = _FENCES[box.text]
            return f"{left}{parts[0]}{right}"
    raise ValueError(f"no LaTeX for layout {box.kind!r}")


def _escaped(text: str) -> str:
    return text.replace("_", r"\_")
