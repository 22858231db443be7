"""The layer both backends share: files, the rule language, distilling, export. Loads neither framework."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interchange.convert.hall_of_fame import import_hall_of_fame, import_operon_front
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
    from interchange.rule.rule import Rule

_HOMES = {
    "EvaluationRow": "files.results",
    "Rule": "rule.rule",
    "Run": "files.trajectories",
    "Samples": "files.trajectories",
    "Teacher": "files.weights",
    "Trajectories": "files.trajectories",
    "import_hall_of_fame": "convert.hall_of_fame",
    "import_operon_front": "convert.hall_of_fame",
    "load_checkpoint": "files.checkpoint",
    "load_evaluation": "files.results",
    "load_trajectories": "files.trajectories",
    "load_weights": "files.weights",
    "save_checkpoint": "files.checkpoint",
    "save_evaluation": "files.results",
    "save_trajectories": "files.trajectories",
    "save_weights": "files.weights",
}

__all__ = [
    "EvaluationRow",
    "Rule",
    "Run",
    "Samples",
    "Teacher",
    "Trajectories",
    "import_hall_of_fame",
    "import_operon_front",
    "load_checkpoint",
    "load_evaluation",
    "load_trajectories",
    "load_weights",
    "save_checkpoint",
    "save_evaluation",
    "save_trajectories",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    """Import a name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'interchange' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"interchange.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
