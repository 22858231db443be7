"""The TensorFlow backend: meta-training, recording, tuning, evaluation, and Keras optimizers.

Names are imported when first used, so that importing the package stays cheap.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from typing import Any

import interchange  # noqa: F401  # first: it says so where a folder of the user's own hides one of ours
from common.lazy import offer

# TensorFlow reads it when it is imported; its start-up notices are not for users of a command line.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _register() -> None:
    """Import what Keras must know to load a saved model: the classes register themselves."""
    if "keras" in sys.modules:
        with contextlib.suppress(ImportError):  # Keras without TensorFlow has no use for them
            for name in ("optimizers", "baselines"):
                importlib.import_module(f"{__name__}.optimizers.{name}")


class _AfterKeras:
    """Registers once Keras is imported, so that importing this package stays cheap (PEP 451).

    Keras and TensorFlow import each other: whichever comes first is whole only after both are.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module's own spec, whose loader goes on with ours; nothing for any other module."""
        if name not in ("keras", "tensorflow"):
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            if not any(other.startswith(f"{__name__}.") for other in sys.modules):
                _register()  # else one of ours imports Keras: it is done when that is imported

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


__all__ = offer(
    __name__,
    {
        "LearnedOptimizer": "tf_impl.optimizers.optimizers",
        "SymbolicOptimizer": "tf_impl.optimizers.optimizers",
        "NonFiniteError": "tf_impl.optimizers.optimizers",
        "per_layer": "tf_impl.optimizers.layers",
        "ModuleTask": "tf_impl.problems.modules",
        "train": "tf_impl.train",
        "Recorder": "tf_impl.recording.recorder",
        "record": "tf_impl.record",
        "optimize": "tf_impl.optimize",
        "tune": "tf_impl.tune",
        "select": "tf_impl.select",
        "evaluate": "tf_impl.evaluate",
    },
    _register,
)

if "keras" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _AfterKeras())
