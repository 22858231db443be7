"""Functions of the problem table (MATH.md section 7)."""

import math
from collections.abc import Sequence

import tensorflow as tf

from common.tables.problems import Problem


def function(problem: Problem, parameters: Sequence[tf.Tensor], *constants: tf.Tensor) -> tf.Tensor:
    """The mean over a batch of a function of the table (``Problem.kind``), 0-dim; of a sum that of its parts.

    Args:
        parameters: x [batch, n], of each part.
        constants: A, b and c of each part in turn.
    """
    if problem.parts:
        places = range(0, len(constants), 3)
        terms = zip(problem.parts, parameters, places, strict=True)
        return sum(weight * function(part, [x], *constants[k : k + 3]) for (weight, part), x, k in terms)
    (x,), (a, b, c) = parameters, constants
    value = problem.square * tf.reduce_sum(tf.square(tf.einsum("bij,bj->bi", a, x) - b), 1)
    if problem.lasso:
        value = value + problem.lasso * tf.reduce_sum(tf.abs(x), 1)
    if problem.cosine:
        waves = tf.reduce_sum(c * tf.cos(2.0 * math.pi * x), 1)
        value = value + problem.cosine * (problem.dims - waves)
    return tf.reduce_mean(value)
