"""Hand-made optimizers by name: by torch.optim's formulas, which are not Keras' own, and Lion."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from common.baselines import BASELINES
from tf_impl.coordinatewise import CoordinateOptimizer
from tf_impl.torch_formulas import SGD, Adam, RMSprop


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

    def _zero_state(self, p: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return (p,)

    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: tuple[tf.Tensor, ...], t: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        (m,) = state
        u = -tf.sign(self.beta1 * m + (1.0 - self.beta1) * g)
        return u, (self.beta2 * m + (1.0 - self.beta2) * g,)

    def _settings(self) -> dict[str, Any]:
        return {"beta1": self.beta1, "beta2": self.beta2}


def make(
    name: str, params: Iterable[tf.Variable], lr: float, options: Mapping[str, float] | None = None
) -> keras.optimizers.Optimizer:
    """The baseline ``name`` of the table over ``params``; ``options`` replace the row's defaults."""
    o = BASELINES[name].options | dict(options or {})
    if name in ("sgd", "momentum", "nesterov"):
        optimizer = SGD(lr, o["momentum"], nesterov=name == "nesterov")
    else:
        optimizer = {"rmsprop": RMSprop, "adam": Adam, "adamw": Adam, "lion": Lion}[name](lr, **o)
    optimizer.build(list(params))
    return optimizer
