"""What two rules have in common: the text of ``python -m interchange.rule diff``."""

import dataclasses

import numpy as np

from interchange.language.expression import names, to_text
from interchange.language.simplify import equal_up_to_constants
from interchange.rule.diagnose import difference
from interchange.rule.rule import Rule
from interchange.rule.words import size

SAME = 1e-9  # of a column's largest update: rounding
ALIKE, ABOVE = 1e-6, 1e-7  # of it too, where all gradients are above ABOVE
_FARTHER = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # sizes above which rules that are not the same may still agree


def compare(a: Rule, b: Rule) -> tuple[str, bool]:
    """What differs between two rules, and whether they are the same optimizer.

    They are where updates are equal to 1e-9, or to 1e-6 wherever abs(g) > 1e-7 and finite in the same places:
    an eps that no gradient comes near makes no other optimizer.
    """
    lines = [f"- {a.name}:  {a.scale:g} * ({to_text(a.expression)})   {size(a)}"]
    lines.append(f"+ {b.name}:  {b.scale:g} * ({to_text(b.expression)})   {size(b)}")
    alike = equal_up_to_constants(a, b)
    lines += _constants(a, b, in_order=alike)
    for name in dict.fromkeys((*_texts(a), *_texts(b))):
        left, right = _texts(a).get(name, "absent"), _texts(b).get(name, "absent")
        if left != right:
            lines.append(f"  feature {name}: {left} | {right}")
    if a.undefined or b.undefined:
        same = a == dataclasses.replace(b, name=a.name, provenance=a.provenance)
        return "\n".join([*lines, "the same text" if same else "another text"]), same
    apart = difference(a, b)
    if apart <= SAME:
        return "\n".join([*lines, f"the same updates, to {apart:.1e}"]), True
    where = "one is finite where the other is not"
    if np.isfinite(apart):
        where = f"updates differ by {apart:.3g} of the largest"
    above = next((size for size in (ABOVE, *_FARTHER) if difference(a, b, above=size) <= ALIKE), None)
    same = above == ABOVE and bool(np.isfinite(apart))
    verdict = [] if same else ["the same equation with other constants" if alike else "another equation"]
    if above is not None:
        verdict.append(f"the same update within {ALIKE:.0e} wherever abs(g) > {above:.0e}")
        where = f"where abs(g) is near eps or 0 {where}"
    return "\n".join([*lines, "; ".join([*verdict, where])]), same


def _constants(a: Rule, b: Rule, in_order: bool) -> list[str]:
    """Constants that are not equal, side by side: in the order of reading, or by name."""
    left, right = ([name for name in names(rule.expression) if name in rule.constants] for rule in (a, b))
    pairs = [(name, name) for name in dict.fromkeys((*a.constants, *b.constants))]
    if in_order and len(left) == len(right):
        pairs = list(zip(left, right, strict=True))
    return [
        f"  constant {left}{'' if left == right else f' | {right}'}: "
        f"{a.constants.get(left, 'absent')} | {b.constants.get(right, 'absent')}"
        for left, right in pairs
        if a.constants.get(left) != b.constants.get(right)
    ]


def _texts(rule: Rule) -> dict[str, str]:
    return {name: "not defined" if tree is None else to_text(tree) for name, tree in rule.features.items()}
