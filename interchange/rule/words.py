"""A rule told to a reader: the equation, what is in it, its size, how well it fits, and what to do next."""

from interchange.language import expression as ex
from interchange.language.operators import OPERATORS
from interchange.rule.compare import size
from interchange.rule.rule import Rule

_RAW = {"g": "the gradient", "t": "the step, from 1", "theta": "the parameter"}
_PLAIN = ("add", "sub", "mul", "div", "neg", "square", "cube", "abs")  # what no reader asks about


def told(rule: Rule, file: object, following: str = "") -> str:
    """Some lines for the end of a command.

    Args:
        file: where the rule is.
        following: the next command; none is named if "".
    """
    lines = [
        "",
        f"  u = {readable(rule)}        theta <- theta + lr u",
        *definitions(rule),
        f"  {_facts(rule)}",
    ]
    lines.append(f"rule: {file}")
    return "\n".join(lines + [f"next: {following}"] * bool(following))


def readable(rule: Rule) -> str:
    """The right-hand side with its numbers, to 4 digits."""
    numbers = {name: ex.number(float(f"{value:.4g}")) for name, value in rule.constants.items()}
    text = ex.to_text(ex.substitute(rule.expression, numbers)).replace(" + -", " - ")
    return text if rule.scale == 1.0 else f"{rule.scale:.4g} * ({text})"


def definitions(rule: Rule) -> list[str]:
    """A line for every feature, input and operator of the expression that is not plain arithmetic."""
    used = list(ex.walk(rule.expression))
    trees = [tree for name, tree in rule.features.items() if tree is not None and name != "g"]
    inputs = dict.fromkeys(name for tree in (rule.expression, *trees) for name in ex.names(tree))
    entries = {
        name: "not defined over g" if tree is None else ex.to_text(tree)
        for name, tree in rule.features.items()
        if name != "g"
    }
    entries |= {name: _RAW[name] for name in _RAW if name in inputs}
    operators = dict.fromkeys(
        node.op for tree in (*used, *(n for t in trees for n in ex.walk(t))) for node in (tree,)
    )
    for op in operators:
        if op in OPERATORS and op not in _PLAIN and OPERATORS[op].note:
            arguments = {
                1: "a" if "a" in OPERATORS[op].note else "x",
                2: "x, b" if op.startswith("ema") else "a, b",
            }
            if op == "lag":
                arguments[2] = "x, k"
            entries[f"{op}({arguments[OPERATORS[op].arity]})"] = OPERATORS[op].note
    width = max(map(len, entries), default=0)
    return [f"    {name:<{width}}  {meaning}" for name, meaning in entries.items()]


def _facts(rule: Rule) -> str:
    """Size, R2 and, where it was found, that nothing but rounding is left."""
    facts = [size(rule)]
    scores = rule.provenance.get("r2", {})
    shown = [f"{scores[split]:.4f} ({split})" for split in ("valid", "test") if scores.get(split) is not None]
    facts += [f"R2 {', '.join(shown)}"] if shown else []
    if "exact" in rule.provenance:
        facts.append("exact: it leaves only the recording's rounding")
    return "; ".join(facts)
