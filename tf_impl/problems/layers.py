"""The layers of the problem table in TensorFlow (``common.tables.layers``)."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping

import tensorflow as tf

from common.tables.layers import Layer

_EPS, _MOMENTUM = 1e-5, 0.1  # of batch norm and, eps, of layer norm, as in torch


def _gelu(x: tf.Tensor) -> tf.Tensor:
    """tf.nn.gelu has the root of 2 in float32 only."""
    return 0.5 * x * (1.0 + tf.math.erf(x * math.sqrt(0.5)))


_ACTIVATIONS = {
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "sigmoid": tf.sigmoid,
    "tanh": tf.tanh,
    "gelu": _gelu,
}

Parameters = Mapping[str, tf.Tensor]


def forward(
    layers: tuple[Layer, ...],
    parameters: Parameters,
    images: tf.Tensor,
    buffers: dict[str, tf.Tensor] | None = None,
    training: bool = True,
    low: bool = False,
) -> tf.Tensor:
    """Run the layers of the table on images [batch, h, w, c].

    ``stackable`` layers also run several networks at once: parameters and images with a first axis more, of
    images a shorter one where as many networks in a row see the same.

    Args:
        parameters: name -> tensor in canonical layout.
        buffers: running means and variances of batch norm by name; updated in ``training``.
        training: batch norm uses the batch's own statistics.
        low: products of matrices and convolutions are computed in bfloat16.
    """
    prefixes = iter(dict.fromkeys(name.split("/")[0] for name in parameters))
    return _run(layers, images, parameters, prefixes, {} if buffers is None else buffers, training, low)


def stackable(layers: tuple[Layer, ...]) -> bool:
    """Several networks of these layers can run as one."""
    return {layer.kind for layer in layers} <= {"flatten", "dense", *_ACTIVATIONS}


def _run(
    layers: tuple[Layer, ...],
    x: tf.Tensor,
    parameters: Parameters,
    prefixes: Iterator[str],
    buffers: dict[str, tf.Tensor],
    training: bool,
    low: bool,
) -> tf.Tensor:
    for layer in layers:
        if layer.kind == "flatten":
            x = tf.reshape(x, tf.concat([tf.shape(x)[:-3], [-1]], 0))
        elif layer.kind == "dense":
            prefix = next(prefixes)
            w, b = parameters[f"{prefix}/w"], parameters[f"{prefix}/b"]
            x = _product(tf.matmul, x, w, low) + b if w.shape.rank == 2 else _dense(x, w, b)
        elif layer.kind in _ACTIVATIONS:
            x = _ACTIVATIONS[layer.kind](x)
        elif layer.kind == "conv":
            prefix = next(prefixes)
            x = _product(functools.partial(_convolved, layer), x, parameters[f"{prefix}/w"], low)
            if layer.bias:
                x = x + parameters[f"{prefix}/b"]
        elif layer.kind == "norm":
            x = _batch_norm(x, next(prefixes), parameters, buffers, training)
        elif layer.kind in ("layer_norm", "embed", "recurrent", "tied"):
            x = _of_vectors(layer.kind, x, next(prefixes), parameters)
        elif layer.kind == "pool":
            x = tf.nn.max_pool2d(x, layer.size, layer.size, "VALID")
        elif layer.kind == "average":
            x = _average(layer, x)
        elif layer.kind == "mean":
            x = tf.reduce_mean(x, (1, 2))
        elif layer.kind == "skip":
            more = layer.out - x.shape[-1]
            x = tf.pad(x[:, :: layer.stride, :: layer.stride], [[0, 0], [0, 0], [0, 0], [0, more]])
        elif layer.kind == "graph":
            known = [x]
            for node in layer.nodes:
                ends = [
                    _run(inner, known[source], parameters, prefixes, buffers, training, low)
                    for source, inner in node
                ]
                known.append(tf.add_n(ends) if ends else tf.zeros_like(x))
            x = known[-1]
    return x


def _product(
    run: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], x: tf.Tensor, w: tf.Tensor, low: bool
) -> tf.Tensor:
    return tf.cast(run(tf.cast(x, tf.bfloat16), tf.cast(w, tf.bfloat16)), x.dtype) if low else run(x, w)


def _dense(x: tf.Tensor, w: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Of several networks, [network, batch, units]; the same ``x`` of several in a row is read once."""
    count, groups = w.shape[0], x.shape[0]
    if groups == count:
        return tf.matmul(x, w) + b[:, None]
    size, units = w.shape[1:]
    side_by_side = tf.transpose(tf.reshape(w, [groups, -1, size, units]), [0, 2, 1, 3])
    out = tf.matmul(x, tf.reshape(side_by_side, [groups, size, -1]))
    out = tf.transpose(tf.reshape(out, [groups, -1, count // groups, units]), [0, 2, 1, 3])
    return tf.reshape(out, [count, -1, units]) + b[:, None]


def _of_vectors(kind: str, x: tf.Tensor, prefix: str, parameters: Parameters) -> tf.Tensor:
    """Layer norm of vectors, the layers of sequences, and scores tied to an embedding."""
    if kind == "layer_norm":
        middle = tf.reduce_mean(x, -1, keepdims=True)
        spread = tf.reduce_mean(tf.math.squared_difference(x, middle), -1, keepdims=True)
        x = (x - middle) * tf.math.rsqrt(spread + _EPS)
        return parameters[f"{prefix}/scale"] * x + parameters[f"{prefix}/shift"]
    if kind == "embed":
        return tf.einsum("nhws,sd->nhwd", x, parameters[f"{prefix}/w"])
    if kind == "recurrent":
        return _recurrent(x, prefix, parameters)
    return tf.matmul(x, parameters["layer_0/w"], transpose_b=True) + parameters[f"{prefix}/b"]


def _recurrent(x: tf.Tensor, prefix: str, parameters: Parameters) -> tf.Tensor:
    """The last state [batch, units] over a sequence [batch, length, 1, symbols]."""
    w, u, b = (parameters[f"{prefix}/{part}"] for part in "wub")
    first, *rest = tf.unstack(tf.einsum("ntws,sd->tnd", x, w) + b)
    h = tf.tanh(first)
    for step in rest:
        h = tf.tanh(step + tf.matmul(h, u))
    return h


def _convolved(layer: Layer, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """TensorFlow has no derivatives of grouped convolutions on the CPU but of those with one channel each."""
    channels = x.shape[-1]
    groups = layer.groups or channels
    if 1 < groups == channels:
        w = tf.reshape(w, [*w.shape[:2], channels, -1])
        strides = [1, layer.stride, layer.stride, 1]
        return tf.nn.depthwise_conv2d(tf.pad(x, _padding(layer)), w, strides, "VALID")
    # SAME would pad unevenly where the stride is 2.
    parts = zip(tf.split(x, groups, -1), tf.split(w, groups, -1), strict=True)
    done = [tf.nn.conv2d(part, kernel, layer.stride, _padding(layer)) for part, kernel in parts]
    return tf.concat(done, -1) if groups > 1 else done[0]


def _padding(layer: Layer) -> list[list[int]]:
    side = [layer.pad, layer.pad]
    return [[0, 0], side, side, [0, 0]]


def _average(layer: Layer, x: tf.Tensor) -> tf.Tensor:
    """Mean over a window; what lies outside the image is not counted."""

    def pooled(values: tf.Tensor) -> tf.Tensor:
        return tf.nn.avg_pool2d(tf.pad(values, _padding(layer)), layer.size, layer.stride, "VALID")

    return pooled(x) / pooled(tf.ones_like(x)) if layer.pad else pooled(x)


def _batch_norm(
    x: tf.Tensor, prefix: str, parameters: Parameters, buffers: dict[str, tf.Tensor], training: bool
) -> tf.Tensor:
    """Batch norm over all but the channels; the running variance is the biased one, in both backends."""
    gamma, beta = parameters[f"{prefix}/gamma"], parameters[f"{prefix}/beta"]
    names = [f"{prefix}/mean", f"{prefix}/var"]
    if training:
        # Not tf.nn.moments, whose second derivative lacks what goes through the mean.
        axes = list(range(x.shape.rank - 1))
        middle = tf.reduce_mean(x, axes, keepdims=True)
        now = [tf.squeeze(middle, axes), tf.reduce_mean(tf.math.squared_difference(x, middle), axes)]
        for name, value in zip(names, now, strict=True):
            if name in buffers:
                buffers[name] = buffers[name] + _MOMENTUM * (tf.stop_gradient(value) - buffers[name])
    else:
        now = [buffers[name] for name in names]
    mean, var = now
    return gamma * (x - mean) * tf.math.rsqrt(var + _EPS) + beta
