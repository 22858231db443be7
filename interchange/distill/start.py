"""A rule that is given: its constants fitted to a recording, and the search begun from it."""

import dataclasses
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from common.errors import L2OError
from interchange.distill.refit import polish
from interchange.distill.structure import structure_of, whole
from interchange.language import expression as ex
from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.rule.rule import RAW, Rule

if TYPE_CHECKING:
    from interchange.distill.config import DistillConfig
    from interchange.files.trajectories import Trajectories

_COLUMNS = 8  # of its parts that an engine sees, at most
_SHARE = 0.2  # of the time, for the fit of the rule as it is; it comes on top


def over_recording(rule: Rule, trajectories: "Trajectories", name: str = "start") -> Rule:
    """The rule over what was recorded, with the recording's scale: its own features and ``g`` elsewhere.

    What differs in scale is a constant ``gain`` of the rule.

    Raises:
        L2OError: the rule sees tensors, or needs a feature or theta that was not recorded.
    """
    known = {key: parse(text, RAW) if text else None for key, text in trajectories.features.items()}
    tables = trajectories.samples is not None
    replaced, used = {}, {}
    for key, tree in rule.features.items():
        if key in known and (tree is None or tree == known[key] or known[key] is None):
            used[key] = known[key]
        elif tree is not None and not tables:
            replaced[key] = tree
        else:
            raise _unrecorded(rule, key, known)
    node = ex.substitute(rule.body, replaced)
    read = ex.names(node)
    if ex.sees_tensors(node):
        raise _unrecorded(rule, "whole tensors", known)
    for raw, there in (("theta", not tables and _has_theta(trajectories)), ("t", not tables)):
        if raw in read and not there:
            raise _unrecorded(rule, raw, known)
    scale = _scale(trajectories)
    constants = dict(rule.constants)
    if rule.scale != scale:
        gain = next(text for text in ("gain", "start_gain") if text not in (*constants, *used))
        node, constants[gain] = ex.call("mul", ex.name(gain), node), rule.scale / scale
    used = {key: tree for key, tree in used.items() if key in read}
    provenance = {"start": rule.name, "trajectories_sha256": trajectories.sha256}
    return Rule(name, node, constants, used, scale=scale, provenance=provenance)


def _unrecorded(rule: Rule, what: str, known: Iterable[str]) -> L2OError:
    shown = ", ".join(dict.fromkeys((*known, "g")))
    return L2OError(
        f"--start: rule {rule.name!r} reads {what}; expected one over {shown}, which was recorded"
    )


def parts(rule: Rule) -> list[Node]:
    """The rule and the largest parts of it, numbers for its constants, as an engine may build on them."""
    literals = {name: ex.number(value) for name, value in rule.constants.items()}
    whole = ex.substitute(rule.expression, literals)
    inner = [node for node in ex.walk(whole) if node.args and set(ex.names(node))]
    inner.sort(key=lambda node: -ex.complexity(node))
    return list(dict.fromkeys(inner))[:_COLUMNS]


def refitted(rule: Rule, trajectories: "Trajectories", config: "DistillConfig") -> Rule:
    """The rule in its own form, with constants fitted to the training runs and R2 of every split.

    Raises:
        L2OError: it reads what was not recorded, or is not finite on what was.
    """
    from interchange.search import samples

    data = {split: samples.sequences(trajectories, split) for split in ("train", "valid", "test")}
    deadline = math.inf if config.evaluations else time.monotonic() + _SHARE * config.time
    found = polish(over_recording(rule, trajectories), data, deadline)
    if "r2" not in found.provenance:
        raise L2OError(f"--start: rule {rule.name!r} is not finite on what was recorded; name another")
    return dataclasses.replace(whole(found, structure_of(trajectories)), name=rule.name)


def _has_theta(trajectories: "Trajectories") -> bool:
    return all(run.theta is not None for run in trajectories.runs.values())


def _scale(trajectories: "Trajectories") -> float:
    if trajectories.samples is not None:
        return trajectories.samples.scale
    return next(iter(trajectories.runs.values())).scale
