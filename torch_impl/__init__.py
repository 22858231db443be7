"""The PyTorch backend: meta-training, recording, tuning, evaluation, and native optimizers.

Names are imported when first used, so that importing the package stays cheap.
"""

import importlib
from typing import Any

_EXPORTS = {
    "LearnedOptimizer": "torch_impl.optimizers",
    "SymbolicOptimizer": "torch_impl.optimizers",
    "ModuleTask": "torch_impl.problems",
    "train": "torch_impl.train",
    "record": "torch_impl.record",
    "tune": "torch_impl.tune",
    "select": "torch_impl.select",
    "evaluate": "torch_impl.evaluate",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value  # else the submodule of the same name would hide the function
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
