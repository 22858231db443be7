"""Optimizers by the formulas of torch.optim 2.13, for Keras (MATH.md section 6).

Keras' own differ: its Adam adds epsilon to the root before the bias correction, and 1e-7 by default.
"""

from typing import Any

import keras
import tensorflow as tf

from interchange.language.view import View
from tf_impl.optimizers.base import CoordinateOptimizer

State = tuple[tf.Tensor, ...]


@keras.saving.register_keras_serializable(package="symbolic_l2o")
class SGD(CoordinateOptimizer):
    """Gradient descent; m <- momentum m + g, without dampening; Nesterov moves by g + momentum m."""

    def __init__(
        self,
        learning_rate: float = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
        **keywords: Any,
    ) -> None:
        if not momentum >= 0.0:
            raise ValueError(f"momentum: expected a number >= 0, got {momentum}")
        if nesterov and not momentum:
            raise ValueError("nesterov: expected a momentum above 0, got 0; use sgd without it")
        super().__init__(learning_rate, weight_decay, **keywords)
        self.momentum, self.nesterov = momentum, nesterov

    def _zero_state(self, p: tf.Tensor, view: View | None) -> State:
        return (p,) if self.momentum else ()

    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: State, t: tf.Tensor, view: View | None
    ) -> tuple[tf.Tensor, State]:
        if not self.momentum:
            return -g, ()
        m = self.momentum * state[0] + g
        return (-(g + self.momentum * m) if self.nesterov else -m), (m,)

    def _settings(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "nesterov": self.nesterov}


@keras.saving.register_keras_serializable(package="symbolic_l2o")
class RMSprop(CoordinateOptimizer):
    """RMSprop, eps outside the root: u = -g / (sqrt(v) + eps)."""

    def __init__(
        self,
        learning_rate: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **keywords)
        self.alpha, self.eps = alpha, eps

    def _zero_state(self, p: tf.Tensor, view: View | None) -> State:
        return (p,)

    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: State, t: tf.Tensor, view: View | None
    ) -> tuple[tf.Tensor, State]:
        v = self.alpha * state[0] + (1.0 - self.alpha) * g * g
        return -g / (tf.sqrt(v) + self.eps), (v,)

    def _settings(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "eps": self.eps}


@keras.saving.register_keras_serializable(package="symbolic_l2o")
class Adagrad(CoordinateOptimizer):
    """Adagrad, its sum of squares from 0: u = -g / (sqrt(s) + eps)."""

    def __init__(
        self,
        learning_rate: float = 1e-2,
        eps: float = 1e-10,
        weight_decay: float | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **keywords)
        self.eps = eps

    def _zero_state(self, p: tf.Tensor, view: View | None) -> State:
        return (p,)

    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: State, t: tf.Tensor, view: View | None
    ) -> tuple[tf.Tensor, State]:
        total = state[0] + g * g
        return -g / (tf.sqrt(total) + self.eps), (total,)

    def _settings(self) -> dict[str, Any]:
        return {"eps": self.eps}


@keras.saving.register_keras_serializable(package="symbolic_l2o")
class Adam(CoordinateOptimizer):
    """Adam: u = -m_hat / (sqrt(v_hat) + eps); with a weight decay it is AdamW."""

    def __init__(
        self,
        learning_rate: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float | None = None,
        **keywords: Any,
    ) -> None:
        check_betas(beta1, beta2)
        super().__init__(learning_rate, weight_decay, **keywords)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def _zero_state(self, p: tf.Tensor, view: View | None) -> State:
        return (p, p)

    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: State, t: tf.Tensor, view: View | None
    ) -> tuple[tf.Tensor, State]:
        m = self.beta1 * state[0] + (1.0 - self.beta1) * g
        v = self.beta2 * state[1] + (1.0 - self.beta2) * g * g
        m_hat, v_hat = m / correction(self.beta1, t, g), v / correction(self.beta2, t, g)
        return -m_hat / (tf.sqrt(v_hat) + self.eps), (m, v)

    def _settings(self) -> dict[str, Any]:
        return {"beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}


@keras.saving.register_keras_serializable(package="symbolic_l2o")
class NAdam(Adam):
    """NAdam: Adam with Nesterov's momentum mu, which grows; with a weight decay it is NAdamW."""

    def __init__(
        self,
        learning_rate: float = 2e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float | None = None,
        momentum_decay: float = 4e-3,
        **keywords: Any,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, eps, weight_decay, **keywords)
        self.momentum_decay = momentum_decay

    def _zero_state(self, p: tf.Tensor, view: View | None) -> State:
        # The third is 1 - the product of all mu, as state begins with 0.
        return (p, p, tf.zeros((), tf.float64))

    def _update(
        self, p: tf.Tensor, g: tf.Tensor, state: State, t: tf.Tensor, view: View | None
    ) -> tuple[tf.Tensor, State]:
        mu, later = self._momentum(t), self._momentum(t + 1.0)
        m = self.beta1 * state[0] + (1.0 - self.beta1) * g
        v = self.beta2 * state[1] + (1.0 - self.beta2) * g * g
        product = (1.0 - state[2]) * mu
        of_g, of_m = (1.0 - mu) / (1.0 - product), later / (1.0 - product * later)
        u = -(tf.cast(of_g, g.dtype) * g + tf.cast(of_m, g.dtype) * m)
        return u / (tf.sqrt(v / correction(self.beta2, t, g)) + self.eps), (m, v, 1.0 - product)

    def _momentum(self, t: tf.Tensor) -> tf.Tensor:
        exponent = self.momentum_decay * tf.cast(t, tf.float64)
        return self.beta1 * (1.0 - 0.5 * tf.pow(tf.constant(0.96, tf.float64), exponent))

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"momentum_decay": self.momentum_decay}


def check_betas(beta1: float, beta2: float) -> None:
    """Decay rates must be of [0, 1)."""
    for name, beta in {"beta1": beta1, "beta2": beta2}.items():
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"{name}: expected a number of [0, 1), got {beta}")


def correction(beta: float, t: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """1 - beta**t, formed in float64."""
    return tf.cast(1.0 - tf.pow(tf.constant(beta, tf.float64), tf.cast(t, tf.float64)), like.dtype)
