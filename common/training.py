"""How a training takes its steps, beside optimizer, learning rate and schedule: the same in both backends."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Training:
    """The defaults are a plain training.

    Attributes:
        decay_vectors: weight decay is of every tensor; without, of those of two axes or more alone, which
            spares biases and the scales and shifts of norms.
    """

    decay_vectors: bool = True

    @property
    def special(self) -> dict[str, Any]:
        """What is not as by default."""
        return {f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) != f.default}


PLAIN = Training()
