"""The layer both backends share: files, the rule language, distilling, export. Loads neither framework."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interchange.checkpoint import load_checkpoint, save_checkpoint
    from interchange.halls import import_hall_of_fame, import_operon_front
    from interchange.results import EvaluationRow, load_evaluation, save_evaluation
    from interchange.rule import Rule
    from interchange.trajectories import Run, Samples, Trajectories, load_trajectories, save_trajectories
    from interchange.weights import Teacher, load_weights, save_weights

_HOMES = {
    "EvaluationRow": "results",
    "Rule": "rule",
    "Run": "trajectories",
    "Samples": "trajectories",
    "Teacher": "weights",
    "Trajectories": "trajectories",
    "import_hall_of_fame": "halls",
    "import_operon_front": "halls",
    "load_checkpoint": "checkpoint",
    "load_evaluation": "results",
    "load_trajectories": "trajectories",
    "load_weights": "weights",
    "save_checkpoint": "checkpoint",
    "save_evaluation": "results",
    "save_trajectories": "trajectories",
    "save_weights": "weights",
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
