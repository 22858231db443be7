"""Rules made of other rules: cautious, schedule-free."""

import dataclasses

from common.errors import L2OError
from interchange.language import expression as ex
from interchange.language.equation import Equation
from interchange.language.expression import Node
from interchange.language.parse import MAX_NODES, parse


def cautious(rule: Equation) -> Equation:
    """phi u d / (sum(phi) + 1), phi = 1 where the update goes down the gradient, d coordinates.

    Liang et al. 2024, algorithm 1. By the gradient's sign, as products of small numbers vanish.
    """
    down = "relu(-sign(g) * u)"
    return _wrapped(rule, f"-sign(g) * {down} / (mean(sign({down})) + 1 / numel)", {})


def schedule_free(rule: Equation, beta: float = 0.9) -> Equation:
    """The rule's updates d, summed to z from the start; the parameter is between z and the average of all z.

    Defazio et al. 2024 with a constant learning rate: theta = (1 - beta) z + beta x, z <- z + lr d,
    x <- (1 - 1/t) x + z / t. Then theta moves by (1 - beta) d + beta D / t, where D = z - x obeys
    D <- (1 - 1 / (t - 1)) D + d, and (t - 1) D is a sum; the first step is d. The average to evaluate at is
    x = theta - lr (1 - beta) cumsum((t - 1) d) / t.
    """
    text = "(1 - average * greater(t, 1)) * u + average * cumsum((t - 1) * u) / (t * max(t - 1, 1))"
    return _wrapped(rule, text, {"average": beta})


def _wrapped(rule: Equation, text: str, constants: dict[str, float]) -> Equation:
    """The expression ``text`` with the rule's update for ``u``, of matrices and of vectors by itself."""
    taken = [name for name in constants if name in rule.constants or name in rule.features]
    if taken:
        raise L2OError(f"rule {rule.name!r}: expected no name {taken[0]!r} in it, or it is wrapped already")
    outer = parse(text, ("u", "g", "t", "numel", *constants))
    tree = rule.expression if rule.scale > 0.0 else ex.call("neg", rule.expression)

    def change(inner: Node) -> Node:
        return ex.substitute(outer, {"u": inner})

    if any(node.op == "by_matrix" for node in ex.walk(tree)):
        tree = ex.call("by_matrix", *(change(ex.branch(tree, case)) for case in (True, False)))
    else:
        tree = change(tree)
    nodes = ex.complexity(tree)
    if nodes > MAX_NODES:
        raise L2OError(f"rule {rule.name!r}: expected at most {MAX_NODES} nodes when wrapped, got {nodes}")
    return dataclasses.replace(
        rule, expression=tree, constants=rule.constants | constants, scale=abs(rule.scale), provenance={}
    )
