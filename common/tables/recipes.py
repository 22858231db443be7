"""Training recipes: settings of ``train`` by name, for what stands at its default.

``dm`` and ``rp`` are as in Chen et al. 2020, "Training stronger baselines for learning to optimize": DM for
10,000 epochs of 100 steps, RNNprop for 100 epochs. ``+cl+il`` adds their curriculum, validated every 100
epochs, and imitation: none in DM's first stage, then in a tenth and in three tenths of the epochs, RNNprop
always in three tenths. The curriculum itself ends the training; 10,000 epochs are only the most there may be.
``-short`` is for two cores: three stages, validated on 5 optimizees every 10 epochs.
"""

from typing import Any

from common.registry import Registry

_CURRICULUM = {"curriculum": True, "epochs": 10_000, "validate_every": 100, "validation_tasks": 20}
_SHORT = {"curriculum": True, "epochs": 300, "validate_every": 10, "validation_tasks": 5}
_SHORT |= {"lengths": (100, 200, 500)}
_DM = {"teacher": "dm_p5"}
_RP = {"teacher": "rnnprop"}
_DM_IL = {"stage_imitation": (0.0, 0.1, 0.3)}
_RP_IL = {"imitation": 0.3}

RECIPES: Registry[dict[str, Any]] = Registry(
    "recipe",
    {
        "dm": _DM | {"epochs": 10_000, "epoch_length": 100},
        "dm+cl+il": _DM | _CURRICULUM | _DM_IL,
        "dm+cl+il-short": _DM | _SHORT | _DM_IL,
        "rp": _RP | {"epochs": 100, "epoch_length": 100},
        "rp+cl+il": _RP | _CURRICULUM | _RP_IL,
        "rp+cl+il-short": _RP | _SHORT | _RP_IL,
    },
)
