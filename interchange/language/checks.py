"""What makes a rule well formed: its file's keys and types, its names, its decays."""

import keyword
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

import numpy as np

from common.errors import L2OError
from interchange.language import expression as ex
from interchange.language.expression import Node
from interchange.language.operators import OPERATORS
from interchange.language.parse import NAME
from interchange.language.view import SIZES

FORMAT = "l2o-rule"
FORMAT_VERSION = "1.2.0"
RAW = ("g", "t", "theta", *SIZES)


FIELDS = {
    "format": str,
    "format_version": str,
    "name": str,
    "expression": str,
    "constants": dict,
    "features": dict,
    "scale": (int, float),
    "step_sizes": dict,
    "complexity": int,
    "provenance": dict,
    "sha256": str,
}
MAX_NAMES = 1000  # of constants, and of features: an expression has no more nodes
MAX_TEXT = 50_000  # characters of all expressions together
_OPTIONAL = ("scale", "step_sizes", "complexity", "provenance", "sha256")
_KIND_NAMES = {str: "text", dict: "an object", int: "an integer", (int, float): "a number"}


class RuleError(L2OError):
    """A rule that is not well formed, or cannot do what was asked of it."""


class RuleParts(Protocol):
    """What of a rule is checked here."""

    name: str
    expression: Node
    constants: dict[str, float]
    features: dict[str, Node | None]
    step_sizes: dict[str, float]


class Constants(dict[str, float]):
    """Values by name that stay as they are: another program would otherwise run than the rule says."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "a rule's constants are read-only; make another rule: rule.with_constants({name: value})"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse  # type: ignore[assignment]
    clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Constants, (dict(self),)


def finite(value: Any, what: str) -> float:
    """``value`` as a float if it is a finite number."""
    if isinstance(value, (bool, str)) or not np.isscalar(value) or not np.isfinite(value):
        raise RuleError(f"{what}: expected a finite number, got {value!r}")
    return float(value)


def step_sizes(given: Any, what: str) -> dict[str, float]:
    """Step sizes by the name of a parameter tensor, as they are to be kept: positive numbers."""
    if not isinstance(given, Mapping) or len(given) > MAX_NAMES:
        raise RuleError(
            f"{what}: expected at most {MAX_NAMES} numbers by names of tensors, got {given!r:.80}"
        )
    for name, size in given.items():
        if not isinstance(name, str) or len(name) > 200 or not finite(size, f"{what} {name!r:.80}") > 0.0:
            raise RuleError(f"{what}: expected numbers above 0 by names, got {size!r} of {name!r:.80}")
    return {name: float(size) for name, size in given.items()}


def version(rule: RuleParts) -> str:
    """The format's first version that holds what a rule has, so that an older reader takes its file."""
    if rule.step_sizes:
        return FORMAT_VERSION
    trees = [rule.expression, *(tree for tree in rule.features.values() if tree is not None)]
    nodes = [node for tree in trees for node in ex.walk(tree)]
    courses = [n for n in nodes if n.op == "ema" and n.args[1].op not in ("name", "number")]
    added = any(n.op in ("root", "ln", "powreal") for n in nodes)
    return "1.1.0" if courses or added or any(map(ex.sees_tensors, trees)) else "1.0.0"


def check_payload(payload: Any, where: str) -> None:
    """Keys, types and version of a rule file; values are checked when the rule is made."""
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        found = payload.get("format", "no format") if isinstance(payload, dict) else type(payload).__name__
        raise RuleError(f'{where}: expected a rule file ("format": "{FORMAT}"), got {str(found)[:60]!r}')
    version = str(payload.get("format_version"))
    if not re.fullmatch(r"1\.\d{1,6}\.\d{1,6}", version):
        raise RuleError(
            f"{where}: format_version {version[:20]!r}, this reader knows 1.x.y; update the software"
        )
    missing = [key for key in FIELDS if key not in payload and key not in _OPTIONAL]
    unknown = [key for key in payload if key not in FIELDS]
    if missing or unknown:
        raise RuleError(
            f"{where}: expected the keys {', '.join(FIELDS)}; "
            f"missing: {', '.join(missing) or 'none'}, unknown: {', '.join(unknown)[:80] or 'none'}"
        )
    for key, kind in FIELDS.items():
        if key in payload and (not isinstance(payload[key], kind) or isinstance(payload[key], bool)):
            raise RuleError(f"{where}: {key}: {str(payload[key])[:40]!r} is not {_KIND_NAMES[kind]}")
    for key in ("constants", "features"):
        if len(payload[key]) > MAX_NAMES:
            raise RuleError(f"{where}: expected at most {MAX_NAMES} {key}, got {len(payload[key])}")
    for key, text in payload["features"].items():
        if not isinstance(text, str | None):
            raise RuleError(f"{where}: feature {key[:64]!r}: expected an expression or null")
    written = len(payload["expression"]) + sum(len(text or "") for text in payload["features"].values())
    if written > MAX_TEXT:
        raise RuleError(f"{where}: expected expressions of at most {MAX_TEXT} characters, got {written}")


def check_names(rule: RuleParts) -> None:
    """Names are well formed, distinct and known, and decays are constants."""
    if not isinstance(rule.name, str) or len(rule.name) > 200:
        raise RuleError("rule name: expected text of at most 200 characters")
    for key in (*rule.constants, *rule.features):
        allowed = isinstance(key, str) and NAME.fullmatch(key) and not keyword.iskeyword(key)
        if not allowed or key in OPERATORS:
            raise RuleError(f"name {str(key)[:70]!r}: expected {NAME.pattern}, and no operator or keyword")
        if key in RAW and not (key == "g" and rule.features.get(key) == ex.name("g")):
            raise RuleError(f"name {key!r} is reserved ({', '.join(RAW)} are always given); choose another")
        if key in rule.constants and key in rule.features:
            raise RuleError(f"name {key!r} is both a constant and a feature; rename one")
    known = (*rule.features, *rule.constants, *RAW)
    trees = [("expression", rule.expression, known)]
    trees += [(f"feature {key!r}", tree, RAW) for key, tree in rule.features.items() if tree is not None]
    for what, tree, allowed in trees:
        unknown = [used for used in ex.names(tree) if used not in allowed]
        if unknown:
            raise RuleError(f"{what}: unknown name {unknown[0]!r}; known: {', '.join(allowed)}")
        decays = [used for used in decay_names(tree) if used not in rule.constants]
        if decays:
            raise RuleError(f"{what}: expected a literal or a constant as decay, got {decays[0]!r}")


def check_decays(rule: RuleParts) -> None:
    """Every constant used as a decay is used as nothing else and lies in (0, 1); one of t is in [0, 1)."""
    for tree in (rule.expression, *rule.features.values()):
        for node in ex.walk(tree) if tree is not None else ():
            if node.op == "ema" and node.args[1].op not in ("name", "number"):
                _check_course(node.args[1])
    decays = decay_names(rule.expression)
    uses = Counter(node.name for node in ex.walk(rule.expression) if node.op == "name")
    for key, count in decays.items():
        if uses[key] != count:
            raise RuleError(f"constant {key!r} is a decay and used elsewhere too; give each use its own")
        if not 0.0 < rule.constants[key] < 1.0:
            raise RuleError(f"constant {key!r} is a decay: expected 0 < b < 1, got {rule.constants[key]!r}")


def _check_course(decay: Node) -> None:
    """A decay that changes with t, at the first steps and at some far ones."""
    t = np.concatenate([np.arange(1.0, 1001.0), 10.0 ** np.arange(4, 10)])
    with np.errstate(all="ignore"):
        values = np.broadcast_to(_value(decay, t), t.shape)
    wrong = ~((values >= 0.0) & (values < 1.0))
    if wrong.any():
        step = int(wrong.argmax())
        raise RuleError(
            f"ema(x, b): expected a decay with 0 <= b < 1 at every step, got {ex.to_text(decay)}, which is "
            f"{values[step]:.6g} at t = {t[step]:g}"
        )


def _value(node: Node, t: np.ndarray) -> Any:
    """An expression of t alone."""
    if node.op == "number":
        return np.float64(node.value)
    return t if node.op == "name" else OPERATORS[node.op].numpy(*(_value(arg, t) for arg in node.args))


def decay_names(tree: Node) -> Counter[str]:
    """Names used as b of ema or ema_hat -> how often."""
    averages = [node for node in ex.walk(tree) if node.op in ("ema", "ema_hat")]
    return Counter(node.args[1].name for node in averages if node.args[1].op == "name")
