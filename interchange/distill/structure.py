"""The structure around a recorded teacher: rules are fitted to what is inside it and written with it."""

import dataclasses
import json

from common.errors import L2OError
from interchange.files.trajectories import Run, Trajectories
from interchange.language import expression as ex
from interchange.rule.rule import Rule


def structure_of(trajectories: Trajectories) -> str:
    """The tensor operator that recorded outputs went through before the scale, "" for none.

    Raises:
        L2OError: runs differ in it.
    """
    names = sorted(set(map(_of, trajectories.runs.values())))
    if len(names) > 1:
        named = ", ".join(name or "none" for name in names)
        raise L2OError(
            f"expected runs of one structure, got {named}; record each teacher in a file of its own"
        )
    return names[0] if names else ""


def _of(run: Run) -> str:
    row = json.loads(run.source_json) if run.source_kind == "teacher" else {}
    return str(row.get("structure", "")) if isinstance(row, dict) else ""


def whole(body: Rule, structure: str) -> Rule:
    """The rule structure(body), with the body's scale and R2; the body itself without a structure."""
    if not structure:
        return body
    about = {"structure": structure, "body_complexity": body.complexity}
    return dataclasses.replace(
        body, expression=ex.call(structure, body.expression), provenance=body.provenance | about
    )
