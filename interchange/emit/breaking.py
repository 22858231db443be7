"""A layout in pieces between which a line may end: no browser breaks a line inside MathML.

Sums break before their signs, products between factors, brackets behind the opening one. A fraction or a root
that is too wide is written on one line, with a slash or an exponent, a wide exponent behind a caret.
"""

from interchange.emit.notation import Box

_SYMBOLS = {"": 0.3, "times": 1.0, "=": 2.0, "+": 2.0, "-": 2.0}
_LEAST = 8.0  # digits of a piece, however deep in brackets
_SCRIPT = 0.7  # size of indices and exponents


def width(box: Box) -> float:
    """About how wide a layout is, in digits."""
    parts = [width(part) for part in box.parts]
    match box.kind:
        case "row":
            return sum(parts)
        case "fraction":
            return max(parts) + 0.5
        case "root" | "fence":
            return parts[0] + 1.2
        case "sub" | "sup":
            return parts[0] + _SCRIPT * parts[1]
        case "symbol":
            return _SYMBOLS.get(box.text, 1.0)
    return parts[0] if parts else float(len(box.text))


def pieces(box: Box, room: float) -> list[Box]:
    """The layout as pieces of at most ``room`` digits, as far as it can be broken."""
    room = max(room, _LEAST)
    if width(box) <= room:
        return [box]
    match box.kind:
        case "row":
            return _row_pieces(_flat(box), room)
        case "fence":
            first, *rest = pieces(box.parts[0], room - 1.0)
            opening = _symbol(box.text[0])
            opened = [opening, first, *rest] if width(first) >= room else [_row(opening, first), *rest]
            return [*opened[:-1], _row(opened[-1], _symbol(box.text[1]))]
        case "fraction":
            top, bottom = map(_bracketed, box.parts)
            first, *rest = pieces(bottom, room - 1.0)
            return [*pieces(top, room), _row(_symbol("/"), first), *rest]
        case "root":
            inside = pieces(Box("fence", box.parts, "()"), room - 2.0)
            return [*inside[:-1], Box("sup", (inside[-1], Box("number", text=f"1/{box.text}")))]
        case "sup" if width(box.parts[1]) > room:
            first, *rest = pieces(Box("fence", (box.parts[1],), "()"), room - 1.0)
            return [*pieces(box.parts[0], room), _row(_symbol("^"), first), *rest]
        case "sub" | "sup" if box.parts[0].kind in ("fence", "row"):
            inside = pieces(box.parts[0], room)
            return [*inside[:-1], Box(box.kind, (inside[-1], box.parts[1]))]
    return [box]


def _flat(box: Box) -> list[Box]:
    """The parts of a row, those of sums and products inside it among them."""
    found: list[Box] = []
    for part in box.parts:
        inner = part.kind == "row" and any(each.kind == "symbol" for each in part.parts)
        found += _flat(part) if inner else [part]
    return found


def _row_pieces(parts: list[Box], room: float) -> list[Box]:
    found: list[Box] = []
    head: list[Box] = []  # what must stand before the next part: a sign, a function's name
    for k, part in enumerate(parts):
        if part.kind == "symbol" and part.text == "=" and found:
            found[-1] = _row(found[-1], part)
        elif part.kind == "symbol" or (k + 1 < len(parts) and parts[k + 1].kind == "fence"):
            head.append(part)
        else:
            first, *rest = pieces(part, room - sum(map(width, head)))
            new = [_row(*head, first), *rest]
            head = []
            if found and not _begins_term(new[0]) and width(found[-1]) + width(new[0]) <= room:
                new[0] = _row(found.pop(), new[0])
            found += new
    return found


def _begins_term(box: Box) -> bool:
    """Whether a piece opens with the sign of a term."""
    first = box
    while first.kind == "row":
        first = first.parts[0]
    return first.kind == "symbol" and first.text in ("+", "-")


def _bracketed(box: Box) -> Box:
    """What is divided by, or is, a fraction in one line: in brackets unless it is one thing."""
    return Box("fence", (box,), "()") if box.kind == "row" else box


def _row(*parts: Box) -> Box:
    return parts[0] if len(parts) == 1 else Box("row", parts)


def _symbol(text: str) -> Box:
    return Box("symbol", text=text)
