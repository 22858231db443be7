"""How equations are written down, independent of the markup: one layout for LaTeX and MathML.

Features carry the step as index (g_t, and g_{t-k} for ``lag(g, k)``); suffixes _tilde, _hat, _bar become
accents; ``ema(x, b)`` is ema with index b, ``ema_hat`` the same under a hat; a lagged compound is put in
brackets with the index t-k; ``greater(a, b)`` is Iverson's [a > b]. A name whose parts do not tell it stands
as it is. Numbers are rounded, for print only, decays so that they stay below 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from interchange.language.expression import Node, decay_text, number, substitute
from interchange.language.operators import OPERATORS
from interchange.language.simplify import folded
from interchange.language.view import SIZES

DIGITS = 4
ACCENTS = ("tilde", "hat", "bar")

_SUM, _PRODUCT, _POWER, _ATOM = 1, 2, 3, 4
_NEVER_NEGATIVE = {"square", "abs", "exp", "cosh", "sqrt", "powabs", "sigmoid", "relu", "greater", "erfc"}
_NEVER_NEGATIVE_IF_ARGS = {"add", "mul", "div", "max", "min", "cube", "cumsum", "cummax", "cbrt", "asinh"}
_NEVER_NEGATIVE_IF_ARGS |= {"mean", "row_mean", "col_mean", "row_max", "col_max", "by_matrix"}


@dataclass(frozen=True)
class Box:
    """A piece of layout.

    ``kind`` is one of

    * "row" (parts side by side);
    * "letter", "word" (a function), "name", "number", "symbol" (text);
    * "fraction" (two parts), "root" (one part; text is the degree), "sub" and "sup" (base, script);
    * "accent" (one part; text is the accent), "fence" (one part; text is "()", "[]" or "||").
    """

    kind: str
    parts: tuple["Box", ...] = ()
    text: str = ""


def equation(expression: Node, constants: Mapping[str, float], scale: float = 1.0) -> Box:
    """``u_t = scale * expression`` with the values of the constants put in."""
    tree = substitute(expression, {name: number(value) for name, value in constants.items()})
    tree = tree if scale == 1.0 else Node("mul", (number(scale), tree))
    return definition("u", _tidied(folded(tree)))


def _tidied(node: Node) -> Node:
    """As one writes it: no factor 1, one number in front of a product, a sign in front of a fraction."""
    args = tuple(map(_tidied, node.args))
    node = node if args == node.args else Node(node.op, args)
    match node.op, *args:
        case ("mul", Node(op="number", value=1.0), x) | ("mul", x, Node(op="number", value=1.0)):
            return x
        case ("div", x, Node(op="number", value=1.0)):
            return x
        case ("mul", Node(op="number", value=a), Node(op="mul", args=(Node(op="number", value=b), x))):
            return Node("mul", (number(a * b), x)) if math.isfinite(a * b) else node
        case ("mul", Node(op="number", value=a), Node(op="neg", args=(x,))):
            return _tidied(Node("mul", (number(-a), x)))
        case ("neg", Node(op="mul", args=(Node(op="number", value=a), x))):
            return Node("mul", (number(-a), x))
        case ("mul", Node(op="number", value=-1.0), x):
            return Node("neg", (x,))
        case ("neg", Node(op="neg", args=(x,))):
            return x
        case ("pow", Node(op="number", value=a), _) if a > 0.0:
            return Node("powabs", args)
        case ("div", Node(op="neg", args=(x,)), y):
            return Node("neg", (Node("div", (x, y)),))
    return node


def definition(symbol: str, node: Node) -> Box:
    """``symbol_t = node``: a rule's update, or a feature by its name."""
    return _row(_indexed(symbol, 0), _symbol("="), layout(node))


def layout(node: Node) -> Box:
    """The layout of one tree; names are features, ``t`` or ``theta``."""
    return _lay(node)[0]


def _lay(node: Node) -> tuple[Box, int]:
    """Layout and binding strength."""
    args = node.args
    if node.op == "number":
        box = Box("number", text=node.name) if node.name else _number(node.value)
        return box, {"number": _ATOM, "sup": _POWER, "row": _PRODUCT}[box.kind] if node.value >= 0 else _SUM
    if node.op == "name":
        return _indexed(node.name, 0), _ATOM
    if node.op in ("add", "sub"):
        return _sum(args[0], args[1], node.op == "sub"), _SUM
    if node.op == "neg":
        return _row(_symbol("-"), _factor(args[0])), _SUM
    if node.op == "mul":
        between = _symbol("times" if args[1].op == "number" else "")
        left, strength = _lay(args[0])
        leads_negative = args[0].op == "number" and args[0].value < 0
        left = left if strength >= _PRODUCT or leads_negative else _fence(left)
        return _row(left, between, _factor(args[1])), _PRODUCT
    if node.op == "div":
        return Box("fraction", (layout(args[0]), layout(args[1]))), _PRODUCT
    if node.op in _SPECIAL:
        return _SPECIAL[node.op](*args), _STRENGTHS.get(node.op, _ATOM)
    return _function(OPERATORS[node.op].symbol or node.op, *args), _ATOM


def _sum(left: Node, right: Node, minus: bool) -> Box:
    positive = _negated(right)
    if positive is not None:
        right, minus = positive, not minus
    first = right
    while first.op in ("add", "sub"):
        first = first.args[0]
    strength = _PRODUCT if minus or _negated(first) is not None else _SUM
    return _row(layout(left), _symbol("-" if minus else "+"), _bound(right, strength))


def _negated(node: Node) -> Node | None:
    """The tree without its leading minus, or None if it has none."""
    if node.op == "number" and node.value < 0:
        return number(-node.value)
    if node.op == "neg":
        return node.args[0]
    if node.op in ("mul", "div"):
        first = _negated(node.args[0])
        return None if first is None else Node(node.op, (first, node.args[1]))
    return None


def _bound(node: Node, strength: int) -> Box:
    box, own = _lay(node)
    return box if own >= strength else _fence(box)


def _factor(node: Node) -> Box:
    """A factor that follows something: no sum, and no leading minus."""
    return _fence(layout(node)) if _negated(node) is not None else _bound(node, _PRODUCT)


def _power(base: Node, exponent: str) -> Box:
    return Box("sup", (_bound(base, _ATOM), Box("number", text=exponent)))


def _magnitude(node: Node) -> Box:
    return _fence(layout(node), "||")


def _root(node: Node) -> Box:
    inner = layout(node) if _never_negative(node) else _magnitude(node)
    return Box("root", (inner,), "2")


def _never_negative(node: Node) -> bool:
    if node.op == "number":
        return node.value >= 0
    if node.op == "name":
        return node.name in ("t", *SIZES)
    if node.op in ("ema", "ema_hat", "lag"):
        return _never_negative(node.args[0])
    return node.op in _NEVER_NEGATIVE or (
        node.op in _NEVER_NEGATIVE_IF_ARGS and all(map(_never_negative, node.args))
    )


def _signed_power(base: Node, exponent: Node) -> Box:
    sign = _function("sgn", base)
    return _row(sign, _symbol(""), Box("sup", (_magnitude(base), layout(exponent))))


def _lag(x: Node, steps: Node) -> Box:
    count = int(steps.value)
    if count == 0:
        return _bound(x, _ATOM)
    if x.op == "name" and x.name not in ("t", *SIZES):
        return _indexed(x.name, count)
    return Box("sub", (_fence(layout(x), "[]"), _time(count)))


def _average(x: Node, decay: Node, hat: bool) -> Box:
    head = Box("word", text="ema")
    head = Box("accent", (head,), "hat") if hat else head
    index = _name(decay.name) if decay.op == "name" else layout(_decay(decay))
    return _row(Box("sub", (head, index)), _fence(layout(x)))


def _decay(node: Node) -> Node:
    """A decay whose numbers near 1 are written, as their names, with the digits that matter."""
    if node.op == "number" and 0.5 <= node.value < 1.0:
        return Node("number", name=decay_text(node.value, DIGITS), value=node.value)
    return Node(node.op, tuple(map(_decay, node.args)), node.name, node.value)


def _fraction_over(a: Node, below: Box) -> Box:
    return Box("fraction", (layout(a), below))


_STRENGTHS = {
    "pow": _PRODUCT,
    "softsign": _PRODUCT,
    "aq": _PRODUCT,
    "square": _POWER,
    "cube": _POWER,
    "powabs": _POWER,
    "powreal": _POWER,
}
_ONE = Box("number", text="1")
_SPECIAL = {
    "square": lambda a: _power(a, "2"),
    "cube": lambda a: _power(a, "3"),
    "abs": _magnitude,
    "pow": _signed_power,
    "powabs": lambda a, b: Box("sup", (_bound(a, _ATOM) if _never_negative(a) else _magnitude(a), layout(b))),
    "sqrt": _root,
    "log": lambda a: _row(
        Box("word", text="log"), _fence(_row(_magnitude(a), Box("symbol", text="+"), _number(1e-8)))
    ),
    "root": lambda a: Box("root", (layout(a),), "2"),
    "powreal": lambda a, b: Box("sup", (_bound(a, _ATOM), layout(b))),
    "logabs": lambda a: _row(Box("word", text="log"), _magnitude(a)),
    "log1p": lambda a: _row(Box("word", text="log"), _fence(_sum(number(1.0), a, minus=False))),
    "cbrt": lambda a: Box("root", (layout(a),), "3"),
    "sigmoid": lambda a: _row(Box("letter", text="sigma"), _fence(layout(a))),
    "relu": lambda a: _function("max", a, number(0.0)),
    "softsign": lambda a: _fraction_over(a, _row(_ONE, Box("symbol", text="+"), _magnitude(a))),
    "greater": lambda a, b: _fence(_row(layout(a), Box("symbol", text=">"), layout(b)), "[]"),
    "aq": lambda a, b: _fraction_over(
        a, Box("root", (_row(_ONE, Box("symbol", text="+"), _power(b, "2")),), "2")
    ),
    "lag": _lag,
    "ema": lambda x, b: _average(x, b, hat=False),
    "ema_hat": lambda x, b: _average(x, b, hat=True),
}


def _function(symbol: str, *args: Node) -> Box:
    parts = [layout(args[0])]
    for arg in args[1:]:
        parts += [_symbol(","), layout(arg)]
    return _row(Box("word", text=symbol), _fence(_row(*parts)))


def _number(value: float) -> Box:
    mantissa, _, exponent = f"{value:.{DIGITS}g}".partition("e")
    if mantissa.lstrip("-") == "1" and not exponent and abs(value) < 1.0:
        mantissa = decay_text(abs(value), DIGITS)  # a decay, or what is made of one
    box = Box("number", text=mantissa.lstrip("-"))
    if exponent:
        power = Box("sup", (Box("number", text="10"), Box("number", text=str(int(exponent)))))
        box = power if box.text == "1" else _row(box, _symbol("times"), power)
    return _row(_symbol("-"), box) if value < 0 else box


def _name(name: str) -> Box:
    """A name without time index: base, accents, and the rest as index."""
    head, *tail = _parts(name)
    if name[0] == "c" and name[1:].isdigit():
        return Box("sub", (Box("letter", text="c"), Box("number", text=name[1:])))
    box = Box("letter" if len(head) == 1 or head == "theta" else "name", text=head)
    for accent in [part for part in tail if part in ACCENTS]:
        box = Box("accent", (box,), accent)
    return box


def _parts(name: str) -> list[str]:
    """The parts of a name: base, accents, the rest; the whole of one that they would not give back."""
    head, *tail = name.split("_")
    in_order = sorted(tail, key=lambda part: part not in ACCENTS)
    return [head, *tail] if tail == in_order and all(tail) else [name]


def _indexed(name: str, lag: int) -> Box:
    if name == "t":
        return Box("letter", text="t")
    if name in SIZES:
        return Box("name", text=name)
    rest = [Box("name", text=part) for part in _parts(name)[1:] if part not in ACCENTS]
    index = [piece for part in rest for piece in (part, _symbol(","))]
    return Box("sub", (_name(name), _row(*index, _time(lag))))


def _time(lag: int) -> Box:
    t = Box("letter", text="t")
    return _row(t, _symbol("-"), Box("number", text=str(lag))) if lag else t


def _row(*parts: Box) -> Box:
    return parts[0] if len(parts) == 1 else Box("row", parts)


def _symbol(text: str) -> Box:
    return Box("symbol", text=text)


def _fence(box: Box, marks: str = "()") -> Box:
    return Box("fence", (box,), marks)
