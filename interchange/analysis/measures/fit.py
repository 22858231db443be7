"""R2 of an optimizer's updates on recorded ones: pooled, by tensor, by phase (MATH.md section 5)."""

import dataclasses

import numpy as np

from common.metrics import r2
from interchange.analysis.recorded import Recorded, phases
from interchange.analysis.subjects import Subject


@dataclasses.dataclass(frozen=True)
class Fit:
    """R2 over all held-out cells, over those of each tensor, and of each phase of the runs.

    Nan where the recorded updates are all equal, -inf where the optimizer's are not finite.

    Attributes:
        rate: the learning rate at which the optimizer's updates are nearest.
        at_rate: the pooled R2 at that rate.
    """

    pooled: float
    rate: float
    at_rate: float
    tensors: dict[str, float]
    phases: dict[str, float]


def fit(subject: Subject, data: Recorded) -> Fit:
    """How well the optimizer's updates on the recorded gradients agree with the recorded updates.

    Raises:
        L2OError: noise instead of a recording, an input that was not recorded, tensors not recorded whole.
    """
    found = subject.outputs(subject.features(data.given, data.views), data.views)
    wanted = data.updates
    with np.errstate(all="ignore"):
        rate = float((wanted * found).sum() / np.square(found).sum())
    return Fit(
        r2(wanted, found),
        rate,
        r2(wanted, rate * found),
        {
            name: r2(wanted[:, data.tensors == k], found[:, data.tensors == k])
            for k, name in enumerate(data.tensor_names)
            if (data.tensors == k).any()
        },
        {name: r2(wanted[part], found[part]) for name, part in phases(len(np.asarray(wanted))).items()},
    )
