"""Optimizers named by a SPEC: teachers, rules and baselines, for recording and evaluation."""

import dataclasses
from typing import Any

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
