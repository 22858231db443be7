"""What keeps a rule finite where gradients are 0, and a rule that is not finite there mended.

Dead units, constant pixels and rows of an embedding that no example has have gradients of exactly 0, for a
while or for ever. A rule that divides by a running size without a small constant beside it is 0/0 there.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from interchange.language import expression as ex
from interchange.language.execute import evaluate
from interchange.language.expression import Node
from interchange.rule.rule import Rule

SMALLEST, LARGEST = 1e-30, 1e10  # abs(g), beside 0, for which an update must be finite
EPS = 1e-8
_HALF = 20  # steps of either half of a sequence
_REPAIRS = 4
_NOT_NEGATIVE = ("abs", "square", "sqrt", "exp", "cosh", "powabs", "sigmoid", "relu", "greater")
_KEEPS_SIGN = ("ema", "ema_hat", "lag", "cumsum", "cummax", "cbrt", "log1p")  # of what is not negative


def singular(rule: Rule) -> str:
    """Where the rule's update or state is not finite, in words; "" where it is in all that is tried.

    Sequences of gradients of 0 and of every size from 1e-30 to 1e10: steady, after zeros, before zeros, once
    in calm, and by turns with zeros; theta is 1. A rule with a feature that has no definition over g cannot
    run, and is not judged.
    """
    if any(tree is None for tree in rule.features.values()):
        return ""
    program = rule.program()
    whole = dataclasses.replace(program, outputs=program.outputs + program.writes)
    g, names = _gradients()
    for dtype in (np.float32, np.float64):
        given = {"g": g.astype(dtype), "theta": np.ones_like(g, dtype), **rule.constants}
        wrong = ~np.isfinite(np.stack(evaluate(whole, given, dtype))).all(0)
        if wrong.any():
            column = int(wrong.any(0).argmax())
            size, kind = names[column]
            step = int(wrong[:, column].argmax()) + 1
            return f"not finite in {np.dtype(dtype).name} at step {step} of gradients of {size:g} {kind}"
    return ""


def _gradients() -> tuple[np.ndarray, list[tuple[float, str]]]:
    """float64 [step, column], and of each column the size and the kind of sequence."""
    sizes = [0.0, SMALLEST, 1e-12, 1e-6, 1e-3, 1.0, 1e3, 1e6, LARGEST]
    steps = np.arange(2 * _HALF)
    patterns = {
        "throughout": np.ones_like(steps),
        "after zeros": steps >= _HALF,
        "and then zeros": steps < _HALF,
        "by turns with zeros": steps % 2,
    }
    columns, names = [], []
    for size in sizes:
        for sign in (1.0, -1.0):
            for kind, pattern in patterns.items():
                columns.append(sign * size * pattern)
                names.append((sign * size, kind))
            columns.append(np.where(steps == _HALF, sign * size, 1e-3))
            names.append((sign * size, "once in calm"))
    return np.stack(columns, 1), names


def repaired(rule: Rule) -> Rule | None:
    """The rule with a small constant beside every size it divides by and that can be 0; itself if sound.

    Its equation is the same wherever that size is far above 1e-8. None where nothing of the kind helps: a
    rule that overflows, or divides by what can have either sign.
    """
    for _ in range(_REPAIRS):
        if not singular(rule):
            return rule
        name = next(f"eps{k}" for k in range(len(rule.constants) + 1) if f"eps{k}" not in rule.constants)
        for tree in _with_eps(rule.expression, ex.name(name), rule.constants):
            mended = dataclasses.replace(rule, expression=tree, constants=rule.constants | {name: EPS})
            if not singular(mended):
                return mended
        tree = next(_with_eps(rule.expression, ex.name(name), rule.constants), None)
        if tree is None:
            return None
        rule = dataclasses.replace(rule, expression=tree, constants=rule.constants | {name: EPS})
    return rule if not singular(rule) else None


def _with_eps(node: Node, eps: Node, constants: Mapping[str, float]) -> Iterator[Node]:
    """The tree with ``eps`` added in one of the places where it divides by a size without one."""
    if node.op == "div" and not_negative(node.args[1], constants) and not _has_guard(node.args[1]):
        yield ex.call("div", node.args[0], ex.call("add", node.args[1], eps))
    if (
        node.op in ("pow", "powabs")
        and not_negative(node.args[0], constants)
        and not _has_guard(node.args[0])
    ):
        yield ex.call(node.op, ex.call("add", node.args[0], eps), node.args[1])
    for k, arg in enumerate(node.args):
        for tree in _with_eps(arg, eps, constants):
            yield dataclasses.replace(node, args=(*node.args[:k], tree, *node.args[k + 1 :]))


def _has_guard(node: Node) -> bool:
    return node.op == "add" and any(arg.op in ("number", "name") for arg in node.args)


def not_negative(node: Node, constants: Mapping[str, float]) -> bool:
    """Whether structure and the values of constants alone say that a value is 0 or more."""
    if node.op == "number":
        return node.value >= 0.0
    if node.op == "name" and node.name in constants:
        return constants[node.name] >= 0.0
    if node.op in _NOT_NEGATIVE or node == ex.name("t"):
        return True
    if node.op in _KEEPS_SIGN:
        return not_negative(node.args[0], constants)
    signs = [not_negative(arg, constants) for arg in node.args]
    if node.op in ("add", "mul", "div", "min"):
        return all(signs)
    return node.op == "max" and any(signs)


def guards(rule: Rule) -> tuple[str, ...]:
    """Positive constants added to a size in a denominator: while they are, the rule is finite at 0."""
    found: dict[str, None] = {}

    def visit(node: Node, below: bool) -> None:
        if below and node.op == "add":
            for own, other in (node.args, node.args[::-1]):
                if rule.constants.get(own.name, 0.0) > 0.0 and not_negative(other, rule.constants):
                    found[own.name] = None
        through = below and node.op in ("add", "sqrt", "abs", "mul", "powabs", "pow")
        for k, arg in enumerate(node.args):
            base = node.op in ("pow", "powabs") and k == 0
            top = below and node.op == "div" and k == 0  # eps over a bias correction, as Keras has it
            visit(arg, through or base or top or (node.op == "div" and k == 1))

    visit(rule.expression, False)
    uses = [node.name for node in ex.walk(rule.expression) if node.op == "name"]
    decays = rule.decay_constants
    return tuple(name for name in found if uses.count(name) == 1 and name not in decays)
