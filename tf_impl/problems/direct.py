"""Graphs called without ado: ``tf.function`` takes longer to find its graph than a small network to run."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


class Direct:
    """A function of tensors as graphs, one for every set of shapes.

    The first call of each goes through ``tf.function``; the others look up shapes and run its graph. They
    are not recorded by a tape. Within another graph it is an ordinary function, which can be differentiated.

    Args:
        function: of tensors, numbers and dictionaries of tensors, always the same ones by their names.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = tf.function(function)
        self._graphs: dict[tuple, tuple[Any, list[tf.Tensor], list[tf.DType]]] = {}

    def __call__(self, *given: Any) -> Any:
        """What the function returns, tensors or tuples and dictionaries of them."""
        if not tf.executing_eagerly():
            return self._function(*given)
        flat = tf.nest.flatten(given)
        key = tuple((a.shape, a.dtype) if isinstance(a, tf.Tensor) else a for a in flat)
        if key not in self._graphs:
            graph = self._function.get_concrete_function(*given)
            self._graphs[key] = graph, graph.captured_inputs, [a.dtype for a in graph.outputs]
        graph, captured, dtypes = self._graphs[key]
        tensors = [a for a in flat if isinstance(a, tf.Tensor)]
        found = tf.raw_ops.StatefulPartitionedCall(args=tensors + captured, Tout=dtypes, f=graph)
        return tf.nest.pack_sequence_as(graph.structured_outputs, found)

    @property
    def traces(self) -> int:
        """How often a graph was made."""
        return self._function.experimental_get_tracing_count()
