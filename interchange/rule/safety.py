"""What keeps a rule finite where gradients are 0, and a rule that is not finite there mended.

Dead units, constant pixels and rows of an embedding that no example has have gradients of exactly 0, for a
while or for ever. A rule that divides by a running size without a small constant beside it is 0/0 there.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from interchange.language import expression as ex
from interchange.language.execute import evaluate
from interchange.language.expression import Node
from interchange.language.view import View, canonical, vector
from interchange.rule.rule import Rule

SMALLEST, LARGEST = 1e-30, 1e10  # abs(g), beside 0, for which an update must be finite
EPS = 1e-8
_HALF = 20  # steps of either half of a sequence
_REPAIRS = 4
_NOT_NEGATIVE = ("abs", "square", "sqrt", "exp", "cosh", "powabs", "sigmoid", "relu", "greater")
_KEEPS_SIGN = (  # of what is not negative
    *("ema", "ema_hat", "lag", "cumsum", "cummax", "cbrt", "log1p"),
    *("mean", "row_mean", "col_mean", "row_max", "col_max"),
)


def singular(rule: Rule) -> str:
    """Where the rule's update or state is not finite, in words; "" where it is in all that is tried.

    Sequences of gradients of 0 and of every size from 1e-30 to 1e10: steady, after zeros, before zeros, once
    in calm, and by turns with zeros; theta is 1. A rule with a feature that has no definition over g cannot
    run, and is not judged.
    """
    if rule.undefined:
        return ""
    g, names = _gradients()
    for dtype in (np.float32, np.float64):
        u, lost = apart(rule, g.astype(dtype), dtype)
        wrong = lost | ~np.isfinite(u)
        if wrong.any():
            column = int(wrong.any(0).argmax())
            size, kind = names[column]
            step = int(wrong[:, column].argmax()) + 1
            return f"not finite in {np.dtype(dtype).name} at step {step} of gradients of {size:g} {kind}"
    return ""


def apart(rule: Rule, g: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a rule makes of gradients [T, K], each column an experiment of its own; theta is 1.

    A rule that sees tensors gets of each column a matrix and a vector whose coordinates are multiples of it;
    the answer is one of their coordinates, one that is not finite if there is any.

    Returns:
        The expression [T, K] before ``scale``, and where state is not finite [T, K].
    """
    if not rule.sees_tensors:
        u, *state = _with_state(rule, g, dtype, None)
        return u, np.any([~np.isfinite(x) for x in state], axis=0) if state else np.zeros(u.shape, bool)
    u, lost = np.zeros_like(g), np.zeros(g.shape, bool)
    for view in (canonical((4, 3)), vector((3,))):
        factors = np.cos(np.arange(view.sizes["numel"])).reshape(view.shape)
        given = np.multiply.outer(g, factors).astype(dtype)
        out, *state = (x.reshape(*g.shape, -1) for x in _with_state(rule, given, dtype, view))
        lost |= np.any([~np.isfinite(x).all(-1) for x in state], axis=0) if state else False
        worst = np.argmax(~np.isfinite(out), axis=-1)
        found = np.take_along_axis(out, worst[..., None], -1)[..., 0]
        u = np.where(np.isfinite(u), found, u)
    return u, lost


def _with_state(rule: Rule, g: np.ndarray, dtype: Any, view: View | None) -> tuple[np.ndarray, ...]:
    """The expression and all of its state over a sequence."""
    program = rule.program(view is None or view.matrix)
    whole = dataclasses.replace(program, outputs=program.outputs + program.writes)
    return evaluate(whole, {"g": g, "theta": np.ones_like(g), **rule.constants}, dtype, view)


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
    return node.op in ("add", "max") and any(arg.op in ("number", "name") for arg in node.args)


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
    """Positive constants added to a size in a denominator, or below which it does not fall: while they are
    positive, the rule is finite at 0.
    """
    found: dict[str, None] = {}

    def visit(node: Node, below: bool) -> None:
        if below and node.op in ("add", "max"):
            for own, other in (node.args, node.args[::-1]):
                if rule.constants.get(own.name, 0.0) > 0.0 and not_negative(other, rule.constants):
                    found[own.name] = None
        through = below and node.op in ("add", "max", "sqrt", "abs", "mul", "powabs", "pow")
        for k, arg in enumerate(node.args):
            base = node.op in ("pow", "powabs") and k == 0
            top = below and node.op == "div" and k == 0  # eps over a bias correction, as Keras has it
            visit(arg, through or base or top or (node.op == "div" and k == 1))

    visit(rule.expression, False)
    uses = [node.name for node in ex.walk(rule.expression) if node.op == "name"]
    decays = rule.decay_constants
    return tuple(name for name in found if uses.count(name) == 1 and name not in decays)
