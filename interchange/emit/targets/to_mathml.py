"""A rule as Presentation MathML Core, in the notation of emit.notation; XML that can stand in HTML."""

from xml.sax.saxutils import escape

from interchange.emit.breaking import pieces
from interchange.emit.notation import Box, definition, equation
from interchange.language.equation import Equation
from interchange.language.expression import Node

_LETTERS = {"theta": "θ", "sigma": "σ"}
_SYMBOLS = {"": "\u2062", "times": "·", "-": "\u2212"}
_ACCENTS = {"tilde": "~", "hat": "^", "bar": "\u00af"}


def emit(rule: Equation) -> str:
    """One ``<math>`` element: ``u_t = ...``, constants rounded to 4 significant digits."""
    return _math(equation(rule.expression, rule.constants, rule.scale))


def emit_feature(name: str, node: Node) -> str:
    """One ``<math>`` element: a feature's definition, ``name_t = ...``."""
    return _math(definition(name, node))


def broken(box: Box, room: float) -> list[str]:
    """Inline ``<math>`` elements of a layout, between which a line may end (``emit.breaking``)."""
    return [
        f'<math xmlns="http://www.w3.org/1998/Math/MathML" displaystyle="true">{mathml(piece)}</math>'
        for piece in pieces(box, room)
    ]


def _math(box: Box) -> str:
    return f'<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">{mathml(box)}</math>\n'


def mathml(box: Box) -> str:
    """The MathML of one layout: exactly one element."""
    parts = [mathml(part) for part in box.parts]
    text = escape(box.text)
    match box.kind:
        case "row":
            return f"<mrow>{''.join(parts)}</mrow>"
        case "letter":
            return f"<mi>{_LETTERS.get(box.text, text)}</mi>"
        case "word" | "name":
            return f'<mi mathvariant="normal">{text}</mi>'
        case "number":
            return f"<mn>{text.replace('-', _SYMBOLS['-'])}</mn>"
        case "symbol" if not text:  # times, left out: a thin space, as before a function's name
            return f'<mo lspace="0.1667em" rspace="0">{_SYMBOLS[text]}</mo>'
        case "symbol":
            return f"<mo>{_SYMBOLS.get(box.text, text)}</mo>"
        case "fraction":
            return f"<mfrac>{''.join(parts)}</mfrac>"
        case "root":
            if text == "2":
                return f"<msqrt>{parts[0]}</msqrt>"
            return f"<mroot>{parts[0]}<mn>{text}</mn></mroot>"
        case "sub" | "sup":
            return f"<m{box.kind}>{''.join(parts)}</m{box.kind}>"
        case "accent":
            return f'<mover accent="true">{parts[0]}<mo>{_ACCENTS[box.text]}</mo></mover>'
        case "fence":
            left, right = box.text
            return f"<mrow><mo>{left}</mo>{parts[0]}<mo>{right}</mo></mrow>"
    raise ValueError(f"no MathML for layout {box.kind!r}")
