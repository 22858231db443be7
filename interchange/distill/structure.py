"""The structure around a recorded teacher: rules are fitted to what is inside it and written with it.

So there are two R2: that of the body, of what was fitted, and that of the update, of what comes out of the
operator, which mixes the coordinates of a matrix and may forgive an error or enlarge it.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from itertools import groupby, islice

import numpy as np

from common.errors import L2OError
from common.metrics import r2
from interchange.files.trajectories import Run, Trajectories
from interchange.files.whole import views_of
from interchange.language import expression as ex
from interchange.language.operators import OPERATORS
from interchange.language.view import View, slices
from interchange.rule.rule import Rule

_CELLS, _TRIED = 60_000, 4  # of recorded matrices, and bodies of each size, for the choice


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


class Updates:
    """What a structure makes of recorded outputs: of whole matrices, of runs that nothing was fitted to.

    Of several the last is for ``test``: no rule is chosen by it.

    Args:
        cells: about so many numbers are compared, from steps spread evenly; all if None.
    """

    def __init__(self, trajectories: Trajectories, cells: int | None = None) -> None:
        structure = structure_of(trajectories)
        fitted = {*trajectories.split.get("train", ()), *trajectories.split.get("valid", ())}
        self._features, self._runs = trajectories.features, []
        for name, run in trajectories.runs.items():
            if not structure or name in fitted or run.params_views is None or run.diverged:
                continue
            act = OPERATORS[structure].tensor
            every = max(1, run.y.size // (cells or run.y.size))
            y = run.y[::every].astype(np.float64)
            placed = [(place, view) for place, view in slices(views_of(run)) if view.matrix]
            acted = [_acted(act, y[:, place], view) for place, view in placed]
            self._runs += [(run, act, every, placed, acted)] if placed else []

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compare with."""
        return not self._runs

    def r2(self, body: Rule, split: str = "valid") -> float | None:
        """R2 of structure(body) against structure(y), pooled over runs, steps and coordinates, without scale.

        None without a structure or such a run (recordings from before there were any, or one), or where it is
        not finite.

        Args:
            split: ``valid``: of the runs that rules are chosen by; ``test``: of the one they are not.
        """
        pairs: list[np.ndarray] = []
        last = max(1, len(self._runs) - 1)
        for run, act, every, placed, acted in self._runs[last:] if split == "test" else self._runs[:last]:
            given = {"g": run.g.astype(np.float64)}
            columns = {name: run.x[..., k] for k, name in enumerate(self._features)}
            given |= {name: x for name, x in columns.items() if name in body.features}
            with np.errstate(all="ignore"):
                out = (body.evaluate(given) / body.scale)[::every]
                for (place, view), expected in zip(placed, acted, strict=True):
                    if not np.isfinite(out[:, place]).all():
                        return None
                    pairs.append(np.stack([expected, _acted(act, out[:, place], view)]))
        value = r2(*np.concatenate(pairs, axis=1)) if pairs else math.nan
        return value if math.isfinite(value) else None


def _acted(act: Callable[..., np.ndarray], columns: np.ndarray, view: View) -> np.ndarray:
    """The operator's results on a matrix [T, N] at every step, flat."""
    return act(columns.reshape(len(columns), *view.split), view.axes).reshape(-1)


def judged(bodies: Iterable[Rule], trajectories: Trajectories) -> list[Rule]:
    """The bodies with R2 of the update, by which they are then chosen: what it does not show costs no node.

    The body's R2 says little of it: where an offset sets the size of the update, what turns its direction
    may be a thousandth of y. Of each size only those that came nearest to y are tried. Without a
    structure, or matrices recorded whole, all as they came.
    """
    bodies, updates = list(bodies), Updates(trajectories, _CELLS)
    if updates.empty:
        return bodies
    bodies.sort(key=lambda rule: (rule.complexity, -rule.provenance["r2"]["valid"], str(rule.expression)))
    tried = [
        rule for _, each in groupby(bodies, lambda rule: rule.complexity) for rule in islice(each, _TRIED)
    ]
    found = [(rule, updates.r2(rule)) for rule in tried]
    return [
        dataclasses.replace(rule, provenance=rule.provenance | {"r2_update": {"valid": value}})
        for rule, value in found
        if value is not None
    ]


def whole(body: Rule, structure: str) -> Rule:
    """The rule structure(body), with the body's scale and R2; the body itself without a structure."""
    if not structure:
        return body
    about = {"structure": structure, "body_complexity": body.complexity}
    return dataclasses.replace(
        body, expression=ex.call(structure, body.expression), provenance=body.provenance | about
    )


def inside(rule: Rule) -> Rule:
    """The inverse of ``whole``: the body, by the rule's own record, that was fitted to what is inside."""
    return dataclasses.replace(rule, expression=rule.body)
