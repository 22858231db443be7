"""What a rule is made of: the terms of its sum, and the share of the update that each carries."""

import dataclasses

import numpy as np

from interchange.analysis.recorded import Recorded, phases
from interchange.analysis.subjects import Subject
from interchange.language import expression as ex
from interchange.language.execute import evaluate_trees
from interchange.language.expression import Node
from interchange.rule.rule import Rule


@dataclasses.dataclass(frozen=True)
class Term:
    """One term.

    Attributes:
        node: over the rule's features and constants; the terms' sum is the rule's expression.
        share: mean(term * u) / mean(u * u), of the update's power; all terms' shares add up to 1, and one
            that works against the others has a share below 0.
        phases: the same in each phase of the runs.
    """

    node: Node
    share: float
    phases: dict[str, float]


def terms(subject: Subject, data: Recorded) -> list[Term]:
    """The terms of a rule, the one that carries most first; none of a teacher."""
    if not isinstance(subject.loaded, Rule):
        return []
    nodes = summands(subject.body)
    given = {**subject.loaded.constants, **subject.features(data.given, data.views)}
    values = evaluate_trees(nodes, given, shapes=data.views)
    values = [np.broadcast_to(value, data.shape) for value in values]
    total = np.sum(values, axis=0)
    parts = phases(len(total))
    found = [
        Term(
            node,
            _share(value, total),
            {name: _share(value[part], total[part]) for name, part in parts.items()},
        )
        for node, value in zip(nodes, values, strict=True)
    ]
    return sorted(found, key=lambda term: -term.share)


def _share(term: np.ndarray, total: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return float((term * total).sum() / np.square(total).sum())


def summands(node: Node) -> list[Node]:
    """The expression as a sum of as many terms as its products and quotients of sums have."""
    if node.op == "add":
        return [term for arg in node.args for term in summands(arg)]
    if node.op == "sub":
        return [*summands(node.args[0]), *map(_negative, summands(node.args[1]))]
    if node.op == "neg":
        return list(map(_negative, summands(node.args[0])))
    if node.op == "div":
        return [ex.call("div", term, node.args[1]) for term in summands(node.args[0])]
    if node.op == "mul":
        left, right = map(summands, node.args)
        if len(right) == 1:
            return [ex.call("mul", term, node.args[1]) for term in left]
        if len(left) == 1:
            return [ex.call("mul", node.args[0], term) for term in right]
    return [node]


def _negative(node: Node) -> Node:
    return node.args[0] if node.op == "neg" else ex.call("neg", node)
