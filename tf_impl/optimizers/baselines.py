"""Hand-made optimizers by name: by torch.optim's formulas, not Keras' own, Lion and Schedule-Free AdamW."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from common.errors import L2OError
from common.tables.baselines import BASELINES, baseline_names, on
from interchange.language.view import View
from interchange.rule.rule import Rule
from tf_impl.optimizers.base import CoordinateOptimizer, Own, work_dtype
from tf_impl.optimizers.layers import seen_as
from tf_impl.optimizers.optimizers import SymbolicOptimizer
from tf_impl.optimizers.torch_formulas import SGD, Adagrad, Adam, NAdam, RMSprop, check_betas, correction


@keras.saving.register_keras_serializable(package="symbolic_l2o")
class Lion(CoordinateOptimizer):
    """Lion: u = -sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g; decoupled weight decay.

    Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2.
    """

    def __init__(
        self,
        learning_rate: float = 1e-4,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **keywords)
        self.beta1, self.beta2 = beta1, beta2

    def _zero_state(self, p: tf.Tensor, view: View | None) -> tuple[tf.Tensor, ...]:
        return (p,)

    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: tuple[tf.Tensor, ...], t: tf.Tensor, view: View | None
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        (m,) = state
        u = -tf.sign(self.beta1 * m + (1.0 - self.beta1) * g)
        return u, (self.beta2 * m + (1.0 - self.beta2) * g,)

    def _settings(self) -> dict[str, Any]:
        return {"beta1": self.beta1, "beta2": self.beta2}


@keras.saving.register_keras_serializable(package="symbolic_l2o")
class ScheduleFree(CoordinateOptimizer):
    """Schedule-Free AdamW: gradients at y = (1 - b1) z + b1 x, steps of z, x the mean of z; y is kept.

    Defazio et al., "The road less scheduled", 2024, algorithm 1 without warmup and with Adam's corrected v; c
    is 1 / t, which holds as long as lr does not grow. State: v and y - z. Loss and accuracy are those of y;
    the authors' code reports the test accuracy of x = y + (1 / b1 - 1) (y - z).
    """

    def __init__(
        self,
        learning_rate: float = 2.5e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float | None = None,
        **keywords: Any,
    ) -> None:
        check_betas(beta1, beta2)
        super().__init__(learning_rate, weight_decay, **keywords)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def _zero_state(self, p: tf.Tensor, view: View | None) -> tuple[tf.Tensor, ...]:
        return (p, p)

    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: tuple[tf.Tensor, ...], t: tf.Tensor, view: View | None
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Where z goes, before weight decay."""
        v, e = state
        v = self.beta2 * v + (1.0 - self.beta2) * g * g
        return -g / (tf.sqrt(v / correction(self.beta2, t, g)) + self.eps), (v, e)

    def _advance(
        self,
        own: Own,
        fused: bool,
        theta: tf.Tensor,
        g: tf.Tensor,
        lr: tf.Tensor,
        tally: tf.Tensor,
        *state: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        """The whole step, as the average of z depends on lr; weight decay pulls z from y."""
        work = work_dtype(theta)
        y, rate, t = tf.cast(theta, work), tf.cast(lr, work), tally[0] + 1.0
        u, (v, e) = self._update(y, tf.cast(g, work), state, t, own.view)
        u, c = u - own.decay * y, tf.cast(1.0 / t, work)
        moved = y - c * e + rate * (1.0 - self.beta1 * (1.0 - c)) * u
        e = (1.0 - c) * (e - self.beta1 * rate * u)
        return tf.cast(moved, theta.dtype), tf.stack([t, *tf.unstack(tally)[1:]]), v, e

    def _settings(self) -> dict[str, Any]:
        return {"beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}


def _muon(
    lr: float, momentum: float, weight_decay: float, views: Mapping[str, View] | None = None, l2: float = 0.0
) -> SymbolicOptimizer:
    """The rule of the gallery."""
    rule = Rule.named("muon", momentum=momentum, beta2=0.999)
    return SymbolicOptimizer(rule, lr, weight_decay=weight_decay, nonfinite="off", views=views, l2=l2)


# A row of the table -> what makes it of lr and options.
MAKERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "sgd": lambda lr, nesterov=0.0, **o: SGD(lr, nesterov=on(nesterov), **o),
    "momentum": SGD,
    "nesterov": functools.partial(SGD, nesterov=True),
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "adam": Adam,
    "adamw": Adam,
    "nadamw": NAdam,
    "lion": Lion,
    "schedule-free": ScheduleFree,
    "muon": _muon,
}


def make(
    name: str,
    params: Iterable[tf.Variable],
    lr: float,
    options: Mapping[str, float] | None = None,
    views: Sequence[View] | None = None,
    decay_vectors: bool = True,
) -> keras.optimizers.Optimizer:
    """The baseline ``name`` of the table over ``params``; ``options`` replace the row's defaults.

    Args:
        options: ``weight_decay``, decoupled, and ``l2`` too, whatever the row has.
        views: of the parameters, for what sees tensors.
        decay_vectors: without, weight decay is of tensors of two axes or more alone.
    """
    o = BASELINES[name].options | dict(options or {})
    if name not in baseline_names("tf"):
        raise L2OError(f"expected one of {', '.join(baseline_names('tf'))}, got {name}, which only torch has")
    params = list(params)
    optimizer = MAKERS[name](lr, **o, **({} if views is None else {"views": seen_as(views, params)}))
    build(optimizer, params, decay_vectors)
    return optimizer


def build(optimizer: keras.optimizers.Optimizer, params: Sequence[tf.Variable], decay_vectors: bool) -> None:
    """Make an optimizer's state; without ``decay_vectors`` tensors of less than two axes do not decay."""
    if not decay_vectors:
        optimizer.exclude_from_weight_decay([p for p in params if p.shape.rank < 2])
    optimizer.build(params)
