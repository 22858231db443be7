"""Any ``keras.Model`` with a loss as an optimizee."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from interchange.language.view import canonical
from interchange.meta.tasks import Batches, chosen_views
from tf_impl.tensors import unflatten


class ModuleTask:
    """Any model with a loss as an optimizee.

    Args:
        module: the Keras model, built; its trainable variables' current values are the start. They are not
            changed; its other variables (batch norm) are, as in training.
        loss: ``loss(target, module_output)`` as Keras' losses take them, 0-dim or one value per sample.
        batches: the mini-batches, each ``(input, target)``, in turn: those of a list are repeated, a
            ``tf.data`` pipeline is run through anew at every pass.
        matrix: how rules see the parameters: True, False or (axes of rows, axes of columns), for all or by
            name; a parameter of which nothing is said is a matrix with rows along its last axis, or a vector.
        test: mini-batches of its test data, for ``optimize`` and ``evaluate``.
    """

    def __init__(
        self,
        module: keras.Model,
        loss: Callable[[Any, Any], tf.Tensor],
        batches: Iterable[tuple[Any, Any]],
        matrix: object = None,
        test: Iterable[tuple[Any, Any]] = (),
    ) -> None:
        self.module, self._loss, self._batches, self._test = module, loss, Batches(batches), test
        if not module.built:
            raise ValueError("module: expected a model that is built; call it on one batch first")
        variables = module.trainable_variables
        self.names = tuple(variable.path for variable in variables)
        self.shapes = tuple(tuple(variable.shape) for variable in variables)
        self.views = chosen_views(self.names, list(map(canonical, self.shapes)), matrix)
        self.dtype, self.device = tf.as_dtype(variables[0].dtype), variables[0].value.device
        self.graph = tf.function(self._stateless)

    def _stateless(
        self, parameters: list[tf.Tensor], inputs: Any, target: Any
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        others = self.module.non_trainable_variables
        output, rest = self.module.stateless_call(
            parameters, [v.value for v in others], inputs, training=True
        )
        return tf.reduce_mean(self._loss(target, output)), {
            v.path: r for v, r in zip(others, rest, strict=True)
        }

    @property
    def buffers(self) -> dict[str, tf.Tensor]:
        """What of the model is not trained, running values of batch norm for instance."""
        return {variable.path: variable.value for variable in self.module.non_trainable_variables}

    def keep(self, buffers: Mapping[str, tf.Tensor]) -> None:
        """Other variables as they are after a step."""
        for variable in self.module.non_trainable_variables:
            variable.assign(buffers[variable.path])

    def given(self, step: int) -> tuple[Any, Any]:
        """What ``graph`` takes beside parameters, for the mini-batch of ``step``, counted round."""
        return tf.nest.map_structure(tf.convert_to_tensor, tuple(self._batches.at(step)))

    def initial(self) -> tf.Tensor:
        """The module's current parameters, a flat vector [N]."""
        return tf.concat([tf.reshape(v.value, [-1]) for v in self.module.trainable_variables], 0)

    def loss(self, parameters: list[tf.Tensor], step: int) -> tf.Tensor:
        """The loss, 0-dim, on the mini-batch of ``step``, counted round."""
        loss, rest = self.graph(parameters, *self._batches.at(step))
        self.keep(rest)
        return loss

    def test_scores(self, theta: tf.Tensor) -> tuple[float, float]:
        """Mean loss over the test mini-batches, and the share of labels that have the highest score.

        nan where there are none; labels are integers [batch] beside outputs [batch, classes].
        """
        losses, right, labels = [], 0, 0
        others = [variable.value for variable in self.module.non_trainable_variables]
        for inputs, target in self._test:
            parameters = unflatten(theta, self.shapes)
            output, _ = self.module.stateless_call(parameters, others, inputs, training=False)
            losses.append(float(tf.reduce_mean(self._loss(target, output))))
            target = tf.convert_to_tensor(target)
            if output.shape.rank == 2 and target.shape.rank == 1 and target.dtype.is_integer:
                found = tf.argmax(output, 1) == tf.cast(target, tf.int64)
                right, labels = right + int(tf.reduce_sum(tf.cast(found, tf.int64))), labels + len(target)
        mean = sum(losses) / len(losses) if losses else math.nan
        return mean, right / labels if labels else math.nan
