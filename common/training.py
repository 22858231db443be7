"""How a training takes its steps, beside optimizer, learning rate and schedule: the same in both backends."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Training:
    """The defaults are a plain training.

    Attributes:
        accumulate: mini-batches of a step, which takes the mean of their losses and gradients.
        decay_vectors: weight decay is of every tensor; without, of those of two axes or more alone, which
            spares biases and the scales and shifts of norms.
        average: decay of a moving average of the parameters, which then are what is tested and kept; 0 is
            none.
        bfloat16: matrix products and convolutions of the training are computed in bfloat16.
        clip_norm: gradients of a larger norm, over all tensors, are scaled down to it; 0 is none.
        label_smoothing: share of every label that is spread over all classes, in training.
        test_every: steps between two looks at the test images; 0 looks at the end alone.
    """

    accumulate: int = 1
    average: float = 0.0
    bfloat16: bool = False
    decay_vectors: bool = True
    clip_norm: float = 0.0
    label_smoothing: float = 0.0
    test_every: int = 0

    @property
    def special(self) -> dict[str, Any]:
        """What is not as by default."""
        return {f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) != f.default}


PLAIN = Training()
NO_CURVE = np.zeros((0, 3))  # of a run whose test images were looked at at the end alone
