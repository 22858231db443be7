"""The loss of a row of the problem table, its gradient and its Hessian as one graph each.

``function`` is that of ``problems``, for rows that are functions.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from common.tables.problems import Problem, parameter_specs
from tf_impl.problems.direct import Direct
from tf_impl.problems.layers import forward


@functools.lru_cache(maxsize=32)
def loss(problem: Problem, function: Callable[..., tf.Tensor]) -> Callable[..., Any]:
    """The loss of parameters, a list, and batch norm's running values after it, as one graph."""
    names = [spec.name for spec in parameter_specs(problem)]

    @tf.function
    def of_function(parameters: list[tf.Tensor], *constants: tf.Tensor) -> tuple[tf.Tensor, dict]:
        return function(problem, parameters, *constants), {}

    @tf.function
    def of_classifier(parameters: list[tf.Tensor], *given: Any) -> tuple[tf.Tensor, dict]:
        return _mean_loss(problem, dict(zip(names, parameters, strict=True)), *given)

    return of_function if problem.kind == "function" else of_classifier


@functools.lru_cache(maxsize=32)
def slope(problem: Problem, function: Callable[..., tf.Tensor]) -> Direct:
    """Loss and gradient at a flat vector [N], or at several [lane, N], and the same values, as one graph."""
    specs = parameter_specs(problem)
    sizes = [math.prod(spec.shape) for spec in specs]

    def of_function(theta: tf.Tensor, *constants: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, dict]:
        with tf.GradientTape() as tape:
            tape.watch(theta)
            parts = zip(specs, tf.split(theta, sizes), strict=True)
            loss = function(problem, [tf.reshape(part, spec.shape) for spec, part in parts], *constants)
        return loss, tape.gradient(loss, theta), {}

    def of_classifier(theta: tf.Tensor, *given: Any) -> tuple[tf.Tensor, tf.Tensor, dict]:
        lanes = theta.shape[:-1].as_list()
        with tf.GradientTape() as tape:
            tape.watch(theta)
            parts = zip(specs, tf.split(theta, sizes, -1), strict=True)
            named = {spec.name: tf.reshape(part, [*lanes, *spec.shape]) for spec, part in parts}
            loss, buffers = _mean_loss(problem, named, *given)
        return loss, tape.gradient(loss, theta, unconnected_gradients="zero"), buffers

    return Direct(of_function if problem.kind == "function" else of_classifier)


def _mean_loss(
    problem: Problem,
    named: dict[str, tf.Tensor],
    buffers: dict[str, tf.Tensor],
    images: tf.Tensor,
    labels: tf.Tensor,
    rows: tf.Tensor,
    divisor: float,
    offset: float,
    spread: float,
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """The mean over the images in ``rows``, of one network or of several, and the new buffers."""
    dtype, buffers = next(iter(named.values())).dtype, dict(buffers)
    seen = normalised(tf.gather(images, rows), divisor, offset, spread, dtype)
    scores = forward(problem.layers, named, seen, buffers, low=problem.bfloat16)
    classes = tf.gather(labels, rows)
    if rows.shape.rank > 1 and scores.shape[0] > rows.shape[0]:  # several networks in a row see the same
        classes = tf.repeat(classes, scores.shape[0] // rows.shape[0], 0)
    return tf.reduce_mean(each(problem, scores, seen, classes, problem.smoothing), -1), buffers


def each(
    problem: Problem, scores: tf.Tensor, seen: tf.Tensor, labels: tf.Tensor, smoothing: float = 0.0
) -> tf.Tensor:
    """The loss [..., batch] of every image: cross-entropy, or mean squares where images are the target."""
    if problem.target == "labels":
        plain = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores)
        if not smoothing:
            return plain
        return (1.0 - smoothing) * plain - smoothing * tf.reduce_mean(tf.nn.log_softmax(scores), -1)
    return tf.reduce_mean(tf.math.squared_difference(scores, tf.reshape(seen, tf.shape(scores))), -1)


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
    """Images [..., h, w, c] as the network sees them; the numbers are those of ``common.data.datasets``."""
    return tf.cast((tf.cast(images, tf.float32) / divisor - offset) / spread, dtype)
