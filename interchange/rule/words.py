"""A rule told to a reader: the equation, what is in it, its size, how well it fits, and what to do next."""

from collections import Counter

from interchange.language import expression as ex
from interchange.language.equation import Equation
from interchange.language.operators import OPERATORS
from interchange.language.simplify import folded
from interchange.language.view import FULL, SIZES

_RAW = {"g": "the gradient", "t": "the step, from 1", "theta": "the parameter", **SIZES}
_ARGUMENTS = {"lag": "x, k", "ema": "x, b", "ema_hat": "x, b", "cumsum": "x", "cummax": "x"}
_PLAIN = ("add", "sub", "mul", "div", "neg", "square", "cube", "abs")  # what no reader asks about


def told(rule: Equation, file: object, following: str = "") -> str:
    """Some lines for the end of a command.

    Args:
        file: where the rule is.
        following: the next command; none is named if "".
    """
    step = "theta <- theta + u" if rule.provenance.get("include_lr") else "theta <- theta + lr u"
    lines = ["", f"  u = {readable(rule)}        {step}", *definitions(rule), f"  {_facts(rule)}"]
    lines.append(f"rule: {file}")
    return "\n".join(lines + [f"next: {following}"] * bool(following))


def readable(rule: Equation) -> str:
    """The right-hand side with its numbers, to 4 digits, decays so that 1 minus them has 4 too."""
    rounded = {name: float(f"{value:.4g}") for name, value in rule.constants.items()}
    rounded |= {name: float(ex.decay_text(rule.constants[name], 4)) for name in rule.decay_constants}
    numbers = {name: ex.number(value) for name, value in rounded.items()}
    text = ex.to_text(folded(ex.substitute(rule.expression, numbers))).replace(" + -", " - ")
    return text if rule.scale == 1.0 else f"{rule.scale:.4g} * ({text})"


def definitions(rule: Equation) -> list[str]:
    """A line for every feature, input and operator of the expression that is not plain arithmetic."""
    trees = [tree for name, tree in rule.features.items() if tree is not None and name != "g"]
    nodes = [node for tree in (rule.expression, *trees) for node in ex.walk(tree)]
    entries = {
        name: "not defined over g" if tree is None else ex.to_text(tree)
        for name, tree in rule.features.items()
        if name != "g"
    }
    read = {node.name for node in nodes}
    entries |= {name: meaning for name, meaning in _RAW.items() if name in read}
    for op in dict.fromkeys(node.op for node in nodes if node.op in OPERATORS):
        row = OPERATORS[op]
        if op not in _PLAIN and row.note:
            entries[f"{op}({_ARGUMENTS.get(op, 'a, b'[: 3 * row.arity - 2])})"] = row.note
    width = max(map(len, entries), default=0)
    return [f"    {name:<{width}}  {meaning}" for name, meaning in entries.items()]


def _facts(rule: Equation) -> str:
    """Size, R2 and, where it was found, that nothing but rounding is left."""
    facts = [size(rule)]
    scores = rule.provenance.get("r2", {})
    shown = [f"{scores[split]:.4f} ({split})" for split in ("valid", "test") if scores.get(split) is not None]
    inside = "of the body " * ("structure" in rule.provenance)
    facts += [f"R2 {inside}{', '.join(shown)}"] if shown else []
    update = {split: update_r2(rule, split) for split in ("valid", "test")}
    shown = [f"{value:.4f} ({split})" for split, value in update.items() if value is not None]
    facts += [f"R2 of the update {', '.join(shown)}"] if shown else []
    if "exact" in rule.provenance:
        facts.append("exact: it leaves only the recording's rounding")
    return "; ".join(facts)


def update_r2(rule: Equation, split: str = "valid") -> float | None:
    """R2 of what a structure makes of a rule's body, None without.

    Rules written by earlier versions hold one number, of the run that they were chosen by.

    Args:
        split: ``valid``: on the runs that rules are chosen by; ``test``: on one that they are not.
    """
    value = rule.provenance.get("r2_update")
    if isinstance(value, dict):
        return value.get(split)
    return value if split == "valid" else None


def size(rule: Equation) -> str:
    """Nodes, and floats of state per parameter."""
    if rule.undefined:
        return f"{rule.complexity} nodes; no optimizer, as {rule.undefined[0]!r} has no definition over g"
    return f"{counted(rule.complexity, 'node')}, {floats(rule)} of state per parameter"


def floats(rule: Equation) -> str:
    """Floats of state per parameter, and those kept once for a row, a column or the tensor of matrices."""
    others = [kind for kind in rule.program().slot_kinds if kind != FULL]
    kept = Counter("rows" if "rows" in kind else "cols" if "columns" in kind else "1" for kind in others)
    more = [f"{count} {name}" if count > 1 else name for name, count in kept.items()]
    return " + ".join([counted(rule.state_floats, "float"), *more])


def counted(number: int, what: str) -> str:
    """``1 float``, ``2 floats``."""
    return f"{number} {what}{'s' * (number != 1)}"
