"""The PyTorch backend: meta-training, recording, tuning, evaluation, and native optimizers.

Names are imported when first used, so that importing the package stays cheap.
"""

import interchange  # noqa: F401  # first: it says so where a folder of the user's own hides one of ours
from common.lazy import offer

__all__ = offer(
    __name__,
    {
        "LearnedOptimizer": "torch_impl.optimizers.optimizers",
        "SymbolicOptimizer": "torch_impl.optimizers.optimizers",
        "NonFiniteError": "torch_impl.optimizers.optimizers",
        "param_groups": "torch_impl.optimizers.groups",
        "ModuleTask": "torch_impl.problems.modules",
        "train": "torch_impl.train",
        "Recorder": "torch_impl.recording.recorder",
        "record": "torch_impl.record",
        "optimize": "torch_impl.optimize",
        "tune": "torch_impl.tune",
        "select": "torch_impl.select",
        "evaluate": "torch_impl.evaluate",
    },
)
