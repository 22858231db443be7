"""Streaming input features of teachers and rules, from their expressions over the gradient."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from interchange.language.compiler import compile_program
from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.language.view import View, slices, vector
from tf_impl.networks.compiled import Compiled
from tf_impl.networks.lowering import Lowered
from tf_impl.networks.operators import as_tensor
from tf_impl.networks.per_tensor import tensor_of


class FeatureStream:
    """Feature name -> expression over ``g``, evaluated step by step with shared state.

    Args:
        expressions: text in the rule language, or parsed nodes.

    Attributes:
        sees_tensors: whether a feature depends on other coordinates of its tensor.
    """

    def __init__(self, expressions: Mapping[str, str | Node]) -> None:
        self.names = tuple(expressions)
        nodes = [parse(e) if isinstance(e, str) else e for e in expressions.values()]
        program = compile_program(nodes)
        self._lowered, self._compiled = Lowered(program), Compiled(program, ("g",))
        self.sees_tensors = program.sees_tensors
        self._graph = functools.lru_cache(maxsize=8)(self._graph_for)

    def initial_state(self, like: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Zero state for gradients shaped as ``like``."""
        return self._lowered.initial_state(like)

    @tf.autograph.experimental.do_not_convert  # in graphs it has nothing to convert, and would say so
    def step(
        self,
        g: tf.Tensor,
        state: tuple[tf.Tensor, ...],
        t: int | tf.Tensor,
        views: Sequence[View] = (),
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Features [F, *g.shape] of gradient ``g`` at step ``t`` (from 1), and the new state.

        Args:
            views: of the tensors that lie one after another in each lane of ``g``, where features see them;
                all of it is one vector if there are none.
        """
        views = tuple(views or (vector((math.prod(g.shape),)),)) if self.sees_tensors else ()
        if not tf.executing_eagerly():
            return self._one_step(g, state, t, views)
        if (
            not views
            and isinstance(t, int)
            and (found := self._compiled.roll(tf.reshape(g, [1, -1]), state, {}, t))
        ):
            return tf.reshape(tf.convert_to_tensor(found[0]), [len(self.names), *g.shape]), found[1]
        # A tensor, because a graph would be traced anew for every number.
        return self._graph(views)(g, tuple(map(tf.convert_to_tensor, state)), tf.cast(t, tf.float64))

    def _graph_for(self, views: tuple[View, ...]) -> Callable[..., Any]:
        return tf.function(functools.partial(self._one_step, views=views))

    def _one_step(
        self, g: tf.Tensor, state: tuple[tf.Tensor, ...], t: int | tf.Tensor, views: tuple[View, ...]
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        if views:
            return self._by_tensor(g, state, t, views)
        outputs, state = self._lowered.step({"g": g}, state, t)
        shape = tf.shape(g)
        if not outputs:
            return tf.zeros(tf.concat([[0], shape], 0), g.dtype), state
        return tf.stack([tf.broadcast_to(tf.cast(as_tensor(o), g.dtype), shape) for o in outputs]), state

    def _by_tensor(
        self, g: tf.Tensor, state: tuple[tf.Tensor, ...], t: int | tf.Tensor, views: tuple[View, ...]
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """``step`` of one tensor after another; state is of every coordinate, as all else expects."""
        lane = sum(math.prod(view.shape) for view in views)
        count = max(1, math.prod(g.shape) // max(1, lane))
        lanes, before = tf.reshape(g, [count, lane]), [tf.reshape(a, [count, lane]) for a in state]
        outs, after = [], []
        for place, view in slices(views):
            size = math.prod(view.shape)
            own, kept = tensor_of(lanes, place, view), tuple(tensor_of(a, place, view) for a in before)
            outputs, new = self._lowered.step({"g": own}, kept, t, view)
            wide = [tf.broadcast_to(tf.cast(as_tensor(o), g.dtype), tf.shape(own)) for o in outputs]
            outs.append(tf.reshape(tf.stack(wide), [len(wide), count, size]))
            after.append([tf.reshape(a, [count, size]) for a in new])
        return (
            tf.reshape(tf.concat(outs, -1), [len(self.names), *g.shape]),
            tuple(tf.reshape(tf.concat(parts, -1), g.shape) for parts in zip(*after, strict=True)),
        )
