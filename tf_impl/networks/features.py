"""Streaming input features of teachers and rules, from their expressions over the gradient."""

from collections.abc import Mapping

import tensorflow as tf

from interchange.language.compiler import compile_program
from interchange.language.expression import Node
from interchange.language.parse import parse
from tf_impl.networks.compiled import Compiled
from tf_impl.networks.lowering import Lowered
from tf_impl.networks.operators import as_tensor


class FeatureStream:
    """Feature name -> expression over ``g``, evaluated step by step with shared state.

    Args:
        expressions: text in the rule language, or parsed nodes.
    """

    def __init__(self, expressions: Mapping[str, str | Node]) -> None:
        self.names = tuple(expressions)
        nodes = [parse(e) if isinstance(e, str) else e for e in expressions.values()]
        program = compile_program(nodes)
        self._lowered, self._compiled = Lowered(program), Compiled(program, ("g",))
        self._graph = tf.function(self._one_step)

    def initial_state(self, like: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Zero state for gradients shaped as ``like``."""
        return self._lowered.initial_state(like)

    @tf.autograph.experimental.do_not_convert  # in graphs it has nothing to convert, and would say so
    def step(
        self, g: tf.Tensor, state: tuple[tf.Tensor, ...], t: int | tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Features [F, *g.shape] of gradient ``g`` at step ``t`` (from 1), and the new state."""
        if not tf.executing_eagerly():
            return self._one_step(g, state, t)
        if isinstance(t, int) and (found := self._compiled.roll(tf.reshape(g, [1, -1]), state, {}, t)):
            return tf.reshape(tf.convert_to_tensor(found[0]), [len(self.names), *g.shape]), found[1]
        # A tensor, because a graph would be traced anew for every number.
        return self._graph(g, tuple(map(tf.convert_to_tensor, state)), tf.cast(t, tf.float64))

    def _one_step(
        self, g: tf.Tensor, state: tuple[tf.Tensor, ...], t: int | tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        outputs, state = self._lowered.step({"g": g}, state, t)
        shape = tf.shape(g)
        if not outputs:
            return tf.zeros(tf.concat([[0], shape], 0), g.dtype), state
        return tf.stack([tf.broadcast_to(tf.cast(as_tensor(o), g.dtype), shape) for o in outputs]), state
