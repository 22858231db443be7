"""Optimizers named by a SPEC, to run (``interchange.rule.source``)."""

import warnings
from collections.abc import Iterable, Sequence

import torch

from common.errors import L2OError
from common.tables.baselines import Spec
from common.training import PLAIN, Training
from interchange.language.view import View
from interchange.rule import source
from interchange.rule.rule import Rule
from torch_impl.optimizers import baselines
from torch_impl.optimizers.decay import decay
from torch_impl.optimizers.groups import seen_as
from torch_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer


class Source(source.Source):
    """A SPEC with its file read: what can be run again and again with other learning rates."""

    def optimizer(
        self,
        params: Iterable[torch.Tensor | tuple[str, torch.Tensor]],
        lr: float,
        views: Sequence[View] | None = None,
        training: Training = PLAIN,
    ) -> torch.optim.Optimizer:
        """A fresh optimizer over ``params``; for teachers and rules ``lr`` multiplies the update.

        Args:
            params: in canonical layout, as a task's, and with names where there are step sizes by tensor.
            views: of the parameters, for what sees tensors; the optimizer's own choice if None.
            training: says which of them decay.
        """
        given = list(params)
        params = [p[1] if isinstance(p, tuple) else p for p in given]
        largest = min(torch.finfo(p.dtype).max for p in params)
        if lr > largest:  # torch would say so at the first step only
            raise L2OError(f"{self.spec.text}: expected lr of at most {largest:.3g}, got {lr:g}; lower it")
        views, options = views if self.sees_tensors else None, self.spec.options
        if self.loaded is None:
            return baselines.make(self.spec.target, params, lr, options, views, training.decay_vectors)
        own = {"weight_decay": options.get("weight_decay", 0.0)}
        kind = SymbolicOptimizer if isinstance(self.loaded, Rule) else LearnedOptimizer
        with warnings.catch_warnings():  # of a front of rules nobody wants to hear which ones have a bias
            warnings.simplefilter("ignore", RuntimeWarning)
            groups = seen_as(views, given if self.step_sizes else params, training.decay_vectors)
            optimizer = kind(groups, self.loaded, lr, **own)
        decay(optimizer, l2=options.get("l2", 0.0))
        return optimizer


def load(spec: Spec) -> Source:
    """Read the file a SPEC names; what cannot run as an optimizer is refused here."""
    found = Source(spec, source.read(spec))
    try:
        if spec.kind != "teacher":
            name = next(iter(found.step_sizes), "")
            found.optimizer([(name, torch.zeros(1, dtype=torch.float64))], spec.lr or spec.middle)
    except ValueError as error:  # L2OError is one; torch's say what is wrong with an option
        raise L2OError(f"{spec.target if spec.kind == 'rule' else spec.text}: {error}") from None
    return found
