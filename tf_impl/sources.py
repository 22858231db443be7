"""Optimizers named by a SPEC: teachers, rules and baselines, for recording and evaluation."""

import dataclasses
import warnings
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from common.errors import L2OError
from common.tables.baselines import Spec
from interchange.files.weights import Teacher, load_weights
from interchange.rule.rule import Rule
from tf_impl.optimizers import baselines
from tf_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer


@dataclasses.dataclass(frozen=True)
class Source:
    """A SPEC with its file read: what can be run again and again with other learning rates."""

    spec: Spec
    loaded: Teacher | Rule | None

    @property
    def sha256(self) -> str:
        """Hash of the file behind it, "" for a baseline."""
        return self.loaded.sha256 if self.loaded is not None else ""

    def optimizer(self, params: Iterable[tf.Variable], lr: float) -> keras.optimizers.Optimizer:
        """A fresh optimizer over ``params``; for teachers and rules ``lr`` multiplies the update."""
        if self.loaded is None:
            return baselines.make(self.spec.target, params, lr, self.spec.options)
        kind = SymbolicOptimizer if isinstance(self.loaded, Rule) else LearnedOptimizer
        with warnings.catch_warnings():  # of a front of rules nobody wants to hear which ones have a bias
            warnings.simplefilter("ignore", RuntimeWarning)
            optimizer = kind(self.loaded, lr)
        optimizer.build(list(params))
        return optimizer

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
        source.optimizer([tf.Variable([0.0])], spec.lr or spec.middle)
    except ValueError as error:  # L2OError is one; the others say what is wrong with an option
        raise L2OError(f"{spec.target if spec.kind == 'rule' else spec.text}: {error}") from None
    return source
