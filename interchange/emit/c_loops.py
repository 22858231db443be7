"""The loop of a step in C, and what of its lines and declarations it needs."""

import re
from collections.abc import Sequence

from interchange.emit.c_source import Line

_NAME = re.compile(r"\b[krd]\d+(?:_\d+)?\b")


def needed(lines: Sequence[Line], used: Sequence[str]) -> list[Line]:
    """The lines that something of ``used`` is made of."""
    found, wanted = [], set(used)
    for line in reversed(lines):
        if line.name in wanted:
            wanted.update(line.uses)
            found.append(line)
    return found[::-1]


def declared(once: Sequence[str], body: str, indent: str) -> str:
    """The declarations that ``body`` needs."""
    found: list[str] = []
    wanted = set(_NAME.findall(body))
    for text in reversed(once):
        name, value = text.split(" = ", 1)
        if name.split()[-1] in wanted:
            wanted.update(_NAME.findall(value))
            found.append(f"{indent}{text}\n")
    return "".join(found[::-1])


def loops(lines: Sequence[Line], last: Sequence[str], final: Sequence[str], indent: str) -> str:
    """The loop over coordinates ``i`` below ``n``; blocks of loops where library functions are called.

    Args:
        last: names that the final statements use.
        final: statements at the end of a coordinate.
    """
    if not any(line.calls for line in lines):
        body = [f"const real {line.name} = {line.text};" for line in lines]
        return _loop([*body, *final], "0", "n", indent)
    groups: list[list[Line]] = [[]]
    for line in lines:
        if groups[-1] and groups[-1][-1].calls != line.calls:
            groups.append([])
        groups[-1].append(line)
    where = {line.name: number for number, group in enumerate(groups) for line in group}
    crossing = {u for number, group in enumerate(groups) for x in group for u in x.uses if where[u] != number}
    ends = len(groups) - 1
    crossing |= {name for name in last if name in where and where[name] != ends}
    deeper = indent + "    "
    text = [f"{indent}for (long from = 0; from < n; from += BLOCK) {{"]
    text.append(f"{deeper}const long to = n - from < BLOCK ? n : from + BLOCK;")
    text += [f"{deeper}real kept_{name}[BLOCK];" for name in sorted(crossing, key=lambda x: int(x[1:]))]
    for number, group in enumerate(groups):
        here = {line.name for line in group}
        needed = {u for line in group for u in line.uses} | (set(last) if number == ends else set())
        body = [
            f"const real {name} = kept_{name}[i - from];"
            for name in sorted((needed & crossing) - here, key=lambda x: int(x[1:]))
        ]
        for line in group:
            body.append(f"const real {line.name} = {line.text};")
            if line.name in crossing:
                body.append(f"kept_{line.name}[i - from] = {line.name};")
        text.append(_loop([*body, *(final if number == ends else ())], "from", "to", deeper).rstrip("\n"))
    return "\n".join([*text, f"{indent}}}"]) + "\n"


def _loop(body: Sequence[str], low: str, high: str, indent: str) -> str:
    head = [f"{indent}NO_CARRY", f"{indent}for (long i = {low}; i < {high}; i++) {{"]
    return "\n".join([*head, *(f"{indent}    {line}" for line in body), f"{indent}}}"]) + "\n"
