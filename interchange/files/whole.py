"""Runs of whole tensors: how rules see these, in a file, and what a rule makes of what they saw."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import L2OError
from common.run.storage import canonical_json, loads_json
from interchange.language.equation import Equation
from interchange.language.view import View, vector

if TYPE_CHECKING:
    from interchange.files.trajectories import Run


def shapes_from(texts: Sequence[str], where: str) -> tuple[tuple[int, ...], ...]:
    """The shapes that JSON lists of sizes are."""
    return tuple(_shape(loads_json(text, f"{where}/params/shapes"), where) for text in texts)


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and 0 <= size < 2**40 for size in value):
        shown = str(value)[:40]
        raise L2OError(f"{where}/params/shapes: expected lists of sizes, got {shown}; record it again")
    return tuple(value)


def views_to(views: Sequence[View]) -> list[str]:
    """Views as JSON: a matrix [its shape while it is looked at, axes of rows, axis of parts], else []."""
    return [canonical_json([v.split, v.rows, v.parts] if v.matrix else []) for v in views]


def views_from(texts: Sequence[str], shapes: Sequence[tuple[int, ...]], where: str) -> tuple[View, ...]:
    """The inverse of ``views_to``; what fits no tensor of that shape raises ``L2OError``."""
    found = []
    for text, shape in zip(texts, shapes, strict=True):
        value = loads_json(text, f"{where}/params/matrix")
        if value == []:
            found.append(vector(shape))
        elif _fits(value, shape):
            split, rows, parts = map(tuple, value)
            found.append(View(shape, split, rows, parts, matrix=True))
        else:
            shown = str(value)[:40]
            raise L2OError(
                f"{where}/params/matrix: expected [] or [shape, rows, parts] for a tensor of shape {shape}, "
                f"got {shown}; record it again"
            )
    return tuple(found)


def _fits(value: Any, shape: tuple[int, ...]) -> bool:
    lists = isinstance(value, list) and len(value) == 3 and all(isinstance(part, list) for part in value)
    if not lists or not all(type(number) is int for part in value for number in part):
        return False
    split, rows, parts = value
    axes = rows + parts
    return (
        all(size >= 0 for size in split)
        and math.prod(split) == math.prod(shape)
        and bool(rows)
        and len(set(axes)) == len(axes)
        and all(-len(split) <= axis < 0 for axis in axes)
    )


def views_of(run: "Run") -> tuple[View, ...]:
    """The views of the tensors that a run's columns are, one tensor after another.

    Raises:
        L2OError: tensors were not recorded whole.
    """
    if run.params_views is None:
        raise L2OError(f"run {run.name}: expected whole tensors; record with --whole-tensors")
    numbers = list(dict.fromkeys(run.param_index.tolist()))
    sizes = [math.prod(run.params_shapes[k]) for k in numbers]
    places = np.concatenate([np.arange(size) for size in sizes])
    if not (
        np.array_equal(run.param_index, np.repeat(numbers, sizes)) and np.array_equal(run.flat_index, places)
    ):
        raise L2OError(f"run {run.name}: expected each of its tensors whole and in order; record it again")
    return tuple(run.params_views[k] for k in numbers)


def evaluated(rule: Equation, run: "Run", dtype: Any = np.float64) -> np.ndarray:
    """The updates u [step, coordinate] of a rule, which may see tensors, on the gradients that a run saw.

    Raises:
        L2OError: the rule sees tensors that were not recorded whole, or reads theta, which was not recorded.
    """
    inputs = {"g": run.g} | ({} if run.theta is None else {"theta": run.theta})
    return rule.evaluate(inputs, dtype, views_of(run) if rule.sees_tensors else None)
