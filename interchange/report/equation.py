"""A rule in a page: the equation, broken where the page is narrow, and every symbol in it defined."""

from collections.abc import Iterator

from interchange.emit.notation import Box, definition, equation, layout
from interchange.emit.targets.to_mathml import broken, mathml
from interchange.language import expression as ex
from interchange.language.expression import Node, call, name
from interchange.language.operators import OPERATORS
from interchange.language.view import SIZES
from interchange.report.page import escape
from interchange.rule.rule import Rule

WIDE, NARROW = 64.0, 22.0  # digits on a line of a page of 1200 and of 390 px
_X, _B = name("x"), name("b")
_MEANING = {
    "ema": "a moving average with decay b, from 0: b times itself one step before, plus (1 − b) times x",
    "ema_hat": "the moving average over 1 − b to the power t, which corrects that it starts from 0",
    "sign": "−1, 0 or 1, as x is below, at or above 0",
    "lag": "x of k steps before, here k = 1; 0 before the first step",
    "greater": "1 where x is above b, else 0",
    "sigmoid": "1 / (1 + exp(−x))",
    "by_matrix": "x where the tensor is seen as a matrix, b elsewhere",
    "erf": "the error function, 2 / √π times the integral of exp(−z²) from 0 to x",
    "erfc": "1 − erf(x)",
    "asinh": "the inverse of the hyperbolic sine",
    "atan": "the arc tangent, between −π/2 and π/2",
}
# What a reader knows, or what is printed as what it is.
_KNOWN = (
    "add", "sub", "mul", "div", "neg", "square", "cube", "abs", "sqrt", "powabs", "log", "logabs", "log1p",
    "cbrt", "relu", "softsign", "aq", "max", "min", "pow",
)  # fmt: skip


def equation_block(rule: Rule) -> str:
    """The equation and below it what each of its symbols is, as HTML."""
    return formula(rule) + where(rule)


def where(*rules: Rule) -> str:
    """What each symbol of the equations is, once, as HTML."""
    symbols = dict.fromkeys(pair for rule in rules for pair in _symbols(rule))
    terms = "".join(f"<dt>{symbol}</dt><dd>{meaning}</dd>" for symbol, meaning in symbols)
    return f'<h3>Where</h3><dl class="where">{terms}</dl>'


def formula(rule: Rule) -> str:
    """The equation alone, as HTML."""
    return f'<div class="equation">{_lines(equation(rule.expression, rule.constants, rule.scale))}</div>'


def _lines(box: Box) -> str:
    """One element for wide pages and one for narrow ones, where they differ."""
    wide, narrow = ("\n".join(broken(box, room)) for room in (WIDE, NARROW))
    if wide == narrow:
        return f'<div class="pieces">{wide}</div>'
    return f'<div class="pieces on-wide">{wide}</div><div class="pieces on-narrow">{narrow}</div>'


def _symbols(rule: Rule) -> Iterator[tuple[str, str]]:
    """Symbol and meaning, in the order in which a reader meets them."""
    features = {key: tree for key, tree in rule.features.items() if key != "g"}
    nodes = [node for tree in (rule.expression, *features.values()) if tree for node in ex.walk(tree)]
    read = {node.name for node in nodes}
    step = "" if rule.provenance.get("include_lr") else "<mi>η</mi>"
    moved = f"<mrow>{_at('θ', '<mo>+</mo><mn>1</mn>')}<mo>=</mo>{_at('θ')}<mo>+</mo>{step}{_at('u')}</mrow>"
    rate = " with the learning rate η" if step else ""
    yield (
        _inline(_at("u")),
        f"what is added to one number θ of the parameters at step t: {_inline(moved)}{rate}",
    )
    yield _inline("<mi>t</mi>"), "the step, counted from 1"
    if "g" in read:
        yield _inline(_at("g")), "the gradient of the loss by that number"
    if "theta" in read:
        yield _inline(_at("θ")), "the number itself"
    for size in [size for size in SIZES if size in read]:
        yield _inline(mathml(layout(name(size)))), SIZES[size]
    for key, tree in features.items():
        box = definition(key, tree) if tree is not None else layout(name(key))
        note = "" if tree is not None else "a column of the table, which has no definition"
        yield _inline(mathml(layout(name(key)))), note or _lines(box)
    ops = [node.op for node in nodes if node.op in OPERATORS and node.op not in _KNOWN]
    # Those by which others are printed or explained.
    ops = ["ema"] * ("ema_hat" in ops) + ops + ["sign"] * any(node.op == "pow" for node in nodes)
    for op in dict.fromkeys(ops):
        if meaning := _MEANING.get(op) or OPERATORS[op].note:
            yield _inline(mathml(layout(_example(op)))), escape(meaning)


def _example(op: str) -> Node:
    """The operator over plain names."""
    if op == "lag":
        return call(op, _X, ex.number(1.0))
    return call(op, _X, _B) if OPERATORS[op].arity == 2 else call(op, _X)


def _at(letter: str, more: str = "") -> str:
    return f"<msub><mi>{letter}</mi><mrow><mi>t</mi>{more}</mrow></msub>"


def _inline(content: str) -> str:
    return f"<math>{content}</math>"
