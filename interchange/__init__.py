"""The layer both backends share: files, the rule language, distilling, export. Loads neither framework."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import common

_FOUND = Path(next(iter(getattr(common, "__path__", [common.__file__]))))
if _FOUND.resolve() != Path(__file__).resolve().parents[1] / "common":
    # Something of the user's own stands before ours on the path: whatever is imported next would fail.
    _CLASH = (
        f"expected the package 'common' of symbolic-l2o, got {_FOUND}, which hides it; rename that or "
        "start from another folder"
    )
    if sys.argv[:1] == ["-m"]:  # a command is being started: one line, as for all bad input
        print(f"error: {_CLASH}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(_CLASH)

from common.lazy import offer  # noqa: E402

if TYPE_CHECKING:
    from interchange.convert.hall_of_fame import import_hall_of_fame, import_operon_front
    from interchange.distill.run import distill
    from interchange.files.checkpoint import load_checkpoint, save_checkpoint
    from interchange.files.results import EvaluationRow, load_evaluation, save_evaluation
    from interchange.files.trajectories import (
        Run,
        Samples,
        Trajectories,
        load_trajectories,
        save_trajectories,
    )
    from interchange.files.weights import Teacher, load_weights, save_weights
    from interchange.rule.front import Front, read_front, write_front
    from interchange.rule.rule import Rule

_HOMES = {
    "EvaluationRow": "files.results",
    "Front": "rule.front",
    "Rule": "rule.rule",
    "Run": "files.trajectories",
    "Samples": "files.trajectories",
    "Teacher": "files.weights",
    "Trajectories": "files.trajectories",
    "distill": "distill.run",
    "import_hall_of_fame": "convert.hall_of_fame",
    "import_operon_front": "convert.hall_of_fame",
    "load_checkpoint": "files.checkpoint",
    "load_evaluation": "files.results",
    "load_trajectories": "files.trajectories",
    "load_weights": "files.weights",
    "read_front": "rule.front",
    "save_checkpoint": "files.checkpoint",
    "save_evaluation": "files.results",
    "save_trajectories": "files.trajectories",
    "save_weights": "files.weights",
    "write_front": "rule.front",
}

__all__ = [
    "EvaluationRow",
    "Front",
    "Rule",
    "Run",
    "Samples",
    "Teacher",
    "Trajectories",
    "distill",
    "import_hall_of_fame",
    "import_operon_front",
    "load_checkpoint",
    "load_evaluation",
    "load_trajectories",
    "load_weights",
    "read_front",
    "save_checkpoint",
    "save_evaluation",
    "save_trajectories",
    "save_weights",
    "write_front",
]
offer(__name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()})
