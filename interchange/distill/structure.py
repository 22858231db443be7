"""The structure around a recorded teacher: rules are fitted to what is inside it and written with it.

So there are two R2: that of the body, of what was fitted, and that of the update, of what comes out of the
operator, which mixes the coordinates of a matrix and may forgive an error or enlarge it.
"""

import dataclasses
import json
import math

import numpy as np

from common.errors import L2OError
from common.metrics import r2
from interchange.files.trajectories import Run, Trajectories
from interchange.files.whole import views_of
from interchange.language import expression as ex
from interchange.language.operators import OPERATORS
from interchange.language.view import slices
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


def update_r2(body: Rule, trajectories: Trajectories) -> float | None:
    """R2 of structure(body) against structure(y), over matrices recorded whole that nothing was fitted to.

    Pooled over the runs, steps and coordinates of all of them, before the scale, as the body's. None without
    a structure, without such a run (recordings from before there were any), or where it is not finite.
    """
    structure = structure_of(trajectories)
    fitted = {*trajectories.split.get("train", ()), *trajectories.split.get("valid", ())}
    runs = [run for name, run in trajectories.runs.items() if name not in fitted]
    pairs: list[np.ndarray] = []
    for run in runs if structure else ():
        if run.params_views is None or run.diverged:
            continue
        act, given = OPERATORS[structure].tensor, {"g": run.g.astype(np.float64)}
        columns = {name: run.x[..., k] for k, name in enumerate(trajectories.features)}
        given |= {name: x for name, x in columns.items() if name in body.features}
        with np.errstate(all="ignore"):
            both = np.stack([run.y.astype(np.float64), body.evaluate(given) / body.scale])
            for place, view in slices(views_of(run)):
                if view.matrix and np.isfinite(both[..., place]).all():
                    acted = act(both[..., place].reshape(2, len(run.step), *view.split), view.axes)
                    pairs.append(acted.reshape(2, -1))
                elif view.matrix:
                    return None
    value = r2(*np.concatenate(pairs, axis=1)) if pairs else math.nan
    return value if math.isfinite(value) else None


def whole(body: Rule, structure: str, update: float | None = None) -> Rule:
    """The rule structure(body), with the body's scale and R2; the body itself without a structure.

    Args:
        update: R2 of the update, if known: ``provenance["r2_update"]``.
    """
    if not structure:
        return body
    about = {"structure": structure, "body_complexity": body.complexity}
    about |= {} if update is None else {"r2_update": update}
    return dataclasses.replace(
        body, expression=ex.call(structure, body.expression), provenance=body.provenance | about
    )


def inside(rule: Rule) -> Rule:
    """The inverse of ``whole``: the body, by the rule's own record, that was fitted to what is inside."""
    tree = rule.expression
    if tree.op != rule.provenance.get("structure"):
        return rule
    return dataclasses.replace(rule, expression=tree.args[0])
