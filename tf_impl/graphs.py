"""The loss of a row of the problem table, its gradient and its Hessian as one graph each.

``function`` is that of ``problems``, for rows that are functions.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from common.problems import Problem, parameter_specs
from tf_impl.networks import forward


@functools.lru_cache(maxsize=32)
def loss(problem: Problem, function: Callable[..., tf.Tensor]) -> Callable[..., Any]:
    """The loss of a row as one graph, shared by all of its instances."""
    if problem.kind == "function":
        return tf.function(functools.partial(function, problem))

    @tf.function
    def of_classifier(
        parameters: dict[str, tf.Tensor], buffers: dict[str, tf.Tensor], images: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        buffers = dict(buffers)
        order = {spec.name: parameters[spec.name] for spec in parameter_specs(problem)}
        scores = forward(problem.layers, order, images, buffers)
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores)
        return tf.reduce_mean(each), buffers

    return of_classifier


@functools.lru_cache(maxsize=32)
def slope(problem: Problem, function: Callable[..., tf.Tensor]) -> Callable[..., Any]:
    """Loss and gradient at a flat vector [N], or at several [lane, N], as one graph."""
    specs = parameter_specs(problem)
    sizes = [math.prod(spec.shape) for spec in specs]

    @tf.function
    def of_function(theta: tf.Tensor, *constants: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(theta)
            loss = function(problem, tf.reshape(theta, specs[0].shape), *constants)
        return loss, tape.gradient(loss, theta)

    @tf.function
    def of_classifier(
        theta: tf.Tensor,
        buffers: dict[str, tf.Tensor],
        images: tf.Tensor,
        labels: tf.Tensor,
        rows: tf.Tensor,
        divisor: float,
        offset: float,
        spread: float,
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        lanes, buffers = theta.shape[:-1].as_list(), dict(buffers)
        seen = normalised(tf.gather(images, rows), divisor, offset, spread, theta.dtype)
        with tf.GradientTape() as tape:
            tape.watch(theta)
            parts = zip(specs, tf.split(theta, sizes, -1), strict=True)
            named = {spec.name: tf.reshape(part, [*lanes, *spec.shape]) for spec, part in parts}
            scores = forward(problem.layers, named, seen, buffers)
            classes = tf.gather(labels, rows)
            if lanes and lanes[0] > rows.shape[0]:  # several in a row see the same
                classes = tf.repeat(classes, lanes[0] // rows.shape[0], 0)
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, scores)
            loss = tf.reduce_mean(each, -1)
        return loss, tape.gradient(loss, theta, unconnected_gradients="zero"), buffers

    return of_function if problem.kind == "function" else of_classifier


@functools.lru_cache(maxsize=32)
def curvature(problem: Problem, function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """The Hessian at a flat vector [N] times another as one graph, of what ``slope`` has."""
    of_slope = slope(problem, function)

    @tf.function
    def product(theta: tf.Tensor, vector: tf.Tensor, *given: Any) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(theta)
            gradient = of_slope(theta, *given)[1]
        return tape.gradient(gradient, theta, output_gradients=vector, unconnected_gradients="zero")

    return product


def normalised(images: tf.Tensor, divisor: float, offset: float, spread: float, dtype: tf.DType) -> tf.Tensor:
    """Images [..., h, w, c] as the network sees them; the numbers are those of ``common.datasets``."""
    return tf.cast((tf.cast(images, tf.float32) / divisor - offset) / spread, dtype)
