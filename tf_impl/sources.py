"""Optimizers named by a SPEC, to run (``interchange.rule.source``)."""

import warnings
from collections.abc import Iterable, Sequence

import keras
import tensorflow as tf

from common.errors import L2OError
from common.tables.baselines import Spec
from common.training import PLAIN, Training
from interchange.language.view import View
from interchange.rule import source
from interchange.rule.rule import Rule
from tf_impl.optimizers import baselines
from tf_impl.optimizers.layers import seen_as
from tf_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer


class Source(source.Source):
    """A SPEC with its file read: what can be run again and again with other learning rates."""

    def optimizer(
        self,
        params: Iterable[tf.Variable],
        lr: float,
        views: Sequence[View] | None = None,
        training: Training = PLAIN,
    ) -> keras.optimizers.Optimizer:
        """A fresh optimizer over ``params``; for teachers and rules ``lr`` multiplies the update.

        Args:
            views: of the parameters, for what sees tensors; the optimizer's own choice if None.
            training: says which of them decay.
        """
        params, views, options = list(params), views if self.sees_tensors else None, self.spec.options
        if self.loaded is None:
            return baselines.make(self.spec.target, params, lr, options, views, training.decay_vectors)
        own = options if views is None else options | {"views": seen_as(views, params)}
        kind = SymbolicOptimizer if isinstance(self.loaded, Rule) else LearnedOptimizer
        with warnings.catch_warnings():  # of a front of rules nobody wants to hear which ones have a bias
            warnings.simplefilter("ignore", RuntimeWarning)
            optimizer = kind(self.loaded, lr, **own)
        baselines.build(optimizer, params, training.decay_vectors)
        return optimizer


def load(spec: Spec) -> Source:
    """Read the file a SPEC names; what cannot run as an optimizer is refused here."""
    found = Source(spec, source.read(spec))
    try:
        if spec.kind != "teacher":
            name = next(iter(found.step_sizes), None)
            found.optimizer([tf.Variable([0.0], name=name)], spec.lr or spec.middle)
    except ValueError as error:  # L2OError is one; the others say what is wrong with an option
        raise L2OError(f"{spec.target if spec.kind == 'rule' else spec.text}: {error}") from None
    return found
