"""The TensorFlow backend: meta-training, recording, tuning, evaluation, and Keras optimizers.

Names are imported when first used, so that importing the package stays cheap.
"""

import importlib
import os
import sys
import types
from typing import Any

# TensorFlow reads it when it is imported; its start-up notices are not for users of a command line.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_EXPORTS = {
    "LearnedOptimizer": "tf_impl.optimizers.optimizers",
    "SymbolicOptimizer": "tf_impl.optimizers.optimizers",
    "NonFiniteError": "tf_impl.optimizers.optimizers",
    "ModuleTask": "tf_impl.problems.tasks",
    "train": "tf_impl.train",
    "Recorder": "tf_impl.recording.recorder",
    "record": "tf_impl.record",
    "optimize": "tf_impl.optimize",
    "tune": "tf_impl.tune",
    "select": "tf_impl.select",
    "evaluate": "tf_impl.evaluate",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


class _Package(types.ModuleType):
    """Keeps ``tf_impl.train`` the function: importing the submodule would set it to the module."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _EXPORTS and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
