"""The PyTorch backend: meta-training, recording, tuning, evaluation, and native optimizers.

Names are imported when first used, so that importing the package stays cheap.
"""

import importlib
import sys
import types
from typing import Any

_EXPORTS = {
    "LearnedOptimizer": "torch_impl.optimizers.optimizers",
    "SymbolicOptimizer": "torch_impl.optimizers.optimizers",
    "NonFiniteError": "torch_impl.optimizers.optimizers",
    "ModuleTask": "torch_impl.problems.tasks",
    "train": "torch_impl.train",
    "Recorder": "torch_impl.recording.recorder",
    "record": "torch_impl.record",
    "optimize": "torch_impl.optimize",
    "tune": "torch_impl.tune",
    "select": "torch_impl.select",
    "evaluate": "torch_impl.evaluate",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


class _Package(types.ModuleType):
    """Keeps ``torch_impl.train`` the function: importing the submodule would set it to the module."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _EXPORTS and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
