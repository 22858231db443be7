"""Optimizers named by a SPEC: teachers, rules and baselines, for recording and evaluation."""

import dataclasses
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from common.errors import L2OError
from common.tables.baselines import Spec
from interchange.files.weights import Teacher, load_weights
from interchange.rule.rule import Rule
from torch_impl.optimizers import baselines
from torch_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer


@dataclasses.dataclass(frozen=True)
class Source:
    """A SPEC with its file read: what can be run again and again with other learning rates."""

    spec: Spec
    loaded: Teacher | Rule | None

    @property
    def sha256(self) -> str:
        """Hash of the file behind it, "" for a baseline."""
        return self.loaded.sha256 if self.loaded is not None else ""

    def optimizer(self, params: Iterable[torch.Tensor], lr: float) -> torch.optim.Optimizer:
        """A fresh optimizer over ``params``; for teachers and rules ``lr`` multiplies the update."""
        if isinstance(self.loaded, Rule):
            with warnings.catch_warnings():  # of a front of rules nobody wants to hear which ones have a bias
                warnings.simplefilter("ignore", RuntimeWarning)
                return SymbolicOptimizer(params, self.loaded, lr)
        if isinstance(self.loaded, Teacher):
            return LearnedOptimizer(params, self.loaded, lr)
        return baselines.make(self.spec.target, params, lr, self.spec.options)

    def row(self) -> dict[str, Any]:
        """What it is, JSON-ready: the teacher's row, the rule, or the baseline's options."""
        if isinstance(self.loaded, Rule):
            return {"rule": self.loaded.name, "constants": self.loaded.constants}
        if isinstance(self.loaded, Teacher):
            return self.loaded.row.to_dict()
        return {"name": self.spec.target, "lr": self.spec.lr or self.spec.middle, **self.spec.options}


def load(spec: Spec) -> Source:
    """Read the file a SPEC names; what cannot run as an optimizer is refused here."""
    if spec.kind == "teacher":
        return Source(spec, load_weights(spec.target))
    source = Source(spec, Rule.load(spec.target) if spec.kind == "rule" else None)
    try:
        source.optimizer([torch.zeros(1)], spec.lr or spec.middle)
    except ValueError as error:  # L2OError is one; torch's say what is wrong with an option
        raise L2OError(f"{spec.target if spec.kind == 'rule' else spec.text}: {error}") from None
    return source
