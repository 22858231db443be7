"""Decoupled weight decay and schedules as parts of a rule: what ``tune`` adds, finds again and takes off."""

import dataclasses

from common.errors import L2OError
from interchange.language import expression as ex
from interchange.language.expression import Node, call, name, number
from interchange.rule.rule import Rule


def with_weight_decay(rule: Rule, value: float, constant: str = "weight_decay") -> Rule:
    """The rule minus ``value`` * theta, value a constant: theta <- theta + lr scale (u - wd theta) (AdamW's).

    Raises:
        L2OError: the rule has a constant or a feature of that name, or reads theta.
    """
    _free(rule, constant)
    if "theta" in ex.names(rule.expression):
        raise L2OError(f"rule {rule.name!r} reads theta; expected one without, to give it weight decay")
    tree = call("sub", rule.expression, call("mul", name(constant), name("theta")))
    return dataclasses.replace(rule, expression=tree, constants={**rule.constants, constant: value})


def with_schedule(rule: Rule, value: float, constant: str = "slowing") -> Rule:
    """The rule over 1 + ``value`` * t, value a constant: a learning rate that falls as 1/t in the long run.

    Weight decay stays outside, so it does not fall.

    Raises:
        L2OError: the rule has a constant or a feature of that name.
    """
    _free(rule, constant)
    factor = call("add", number(1.0), call("mul", name(constant), name("t")))
    body, decay = split(rule)
    tree = call("div", body, factor)
    if decay:
        tree = call("sub", tree, call("mul", name(decay), name("theta")))
    return dataclasses.replace(rule, expression=tree, constants={**rule.constants, constant: value})


def split(rule: Rule) -> tuple[Node, str]:
    """The rule without its weight decay, and the constant of that; "" where it has none.

    Raises:
        L2OError: the rule reads theta elsewhere than in ``... - constant * theta``.
    """
    tree, decay = rule.expression, ""
    if tree.op == "sub" and tree.args[1].op == "mul":
        factor, theta = tree.args[1].args
        if theta == name("theta") and factor.name in rule.constants:
            tree, decay = tree.args[0], factor.name
    if "theta" in ex.names(tree) or decay in ex.names(tree):
        raise L2OError(
            f"rule {rule.name!r} reads theta; expected one over gradient features, or one that ends in "
            "'- constant * theta' (weight decay), to tune"
        )
    return tree, decay


def _free(rule: Rule, constant: str) -> None:
    if constant in rule.constants or constant in rule.features:
        raise L2OError(f"rule {rule.name!r} has a {constant!r} already; tune it without adding one")
