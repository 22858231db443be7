"""Optimizers named by a SPEC: teachers, rules and baselines, for recording and evaluation."""

import dataclasses
from typing import Any, Self

from common.tables.baselines import Spec
from interchange.files.weights import Teacher, load_weights
from interchange.rule.rule import Rule


@dataclasses.dataclass(frozen=True)
class Source:
    """A SPEC with its file read; a backend adds ``optimizer(params, lr)``."""

    spec: Spec
    loaded: Teacher | Rule | None

    @property
    def sha256(self) -> str:
        """Hash of the file behind it, "" for a baseline."""
        return self.loaded.sha256 if self.loaded is not None else ""

    @property
    def knob(self) -> str:
        """What ``evaluate --knob`` tunes: the baseline's knob, a rule's first decay constant; "" for none."""
        if isinstance(self.loaded, Rule):
            return next(iter(self.loaded.decay_constants), "")
        return self.spec.knob

    @property
    def knob_value(self) -> float:
        """The knob as it is; only where there is one."""
        known = self.loaded.constants if isinstance(self.loaded, Rule) else self.spec.options
        return known[self.knob]

    def turned(self, value: float | None) -> Self:
        """The same with another value of the knob; None leaves it as it is."""
        if value is None:
            return self
        change = {self.knob: value}
        if isinstance(self.loaded, Rule):
            constants = {**self.loaded.constants, **change}
            return dataclasses.replace(self, loaded=dataclasses.replace(self.loaded, constants=constants))
        return dataclasses.replace(
            self, spec=dataclasses.replace(self.spec, options=self.spec.options | change)
        )

    def row(self) -> dict[str, Any]:
        """What it is, JSON-ready: the teacher's row, the rule, or the baseline's options."""
        if isinstance(self.loaded, Rule):
            return {"rule": self.loaded.name, "constants": self.loaded.constants}
        if isinstance(self.loaded, Teacher):
            return self.loaded.row.to_dict()
        return {"name": self.spec.target, "lr": self.spec.lr or self.spec.middle, **self.spec.options}


def read(spec: Spec) -> Teacher | Rule | None:
    """The file a SPEC names; None for a baseline."""
    if spec.kind == "teacher":
        return load_weights(spec.target)
    return Rule.load(spec.target) if spec.kind == "rule" else None
