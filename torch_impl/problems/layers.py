"""The layers of the problem table in torch (``common.tables.layers``)."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch.nn import functional as F

from common.tables.layers import Layer

_EPS, _MOMENTUM = 1e-5, 0.1  # of batch norm and, eps, of layer norm, as in torch

_ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}

Parameters = Mapping[str, torch.Tensor]


def forward(
    layers: tuple[Layer, ...],
    parameters: Parameters,
    images: torch.Tensor,
    buffers: dict[str, torch.Tensor] | None = None,
    training: bool = True,
    low: bool = False,
) -> torch.Tensor:
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
    # Inside, images are NCHW, which torch's convolutions take.
    x = images.permute(0, 3, 1, 2) if images.dim() == 4 else images
    with torch.autocast(images.device.type, torch.bfloat16) if low else contextlib.nullcontext():
        x = _run(layers, x, parameters, prefixes, {} if buffers is None else buffers, training)
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).to(images.dtype)


def stackable(layers: tuple[Layer, ...]) -> bool:
    """Several networks of these layers can run as one."""
    return {layer.kind for layer in layers} <= {"flatten", "dense", *_ACTIVATIONS}


def _run(
    layers: tuple[Layer, ...],
    x: torch.Tensor,
    parameters: Parameters,
    prefixes: Iterator[str],
    buffers: dict[str, torch.Tensor],
    training: bool,
) -> torch.Tensor:
    for layer in layers:
        if layer.kind == "flatten":
            x = x.permute(0, 2, 3, 1).flatten(1) if x.dim() == 4 else x.flatten(2)
        elif layer.kind == "dense":
            prefix = next(prefixes)
            w, b = parameters[f"{prefix}/w"], parameters[f"{prefix}/b"]
            x = torch.addmm(b, x, w) if w.dim() == 2 else _dense(x, w, b)
        elif layer.kind in _ACTIVATIONS:
            x = _ACTIVATIONS[layer.kind](x)
        elif layer.kind == "conv":
            prefix = next(prefixes)
            w = parameters[f"{prefix}/w"].permute(3, 2, 0, 1)
            groups = layer.groups or x.shape[1]
            x = F.conv2d(x, w, parameters.get(f"{prefix}/b"), layer.stride, layer.pad, groups=groups)
        elif layer.kind == "norm":
            x = _batch_norm(x, next(prefixes), parameters, buffers, training)
        elif layer.kind in ("layer_norm", "embed", "recurrent", "tied"):
            x = _of_vectors(layer.kind, x, next(prefixes), parameters)
        elif layer.kind == "pool":
            x = F.max_pool2d(x, layer.size)
        elif layer.kind == "average":
            x = F.avg_pool2d(x, layer.size, layer.stride, layer.pad, count_include_pad=False)
        elif layer.kind == "mean":
            x = x.mean((2, 3))
        elif layer.kind == "skip":
            more = layer.out - x.shape[1]
            x = F.pad(x[:, :, :: layer.stride, :: layer.stride], (0, 0, 0, 0, 0, more))
        elif layer.kind == "graph":
            known = [x]
            for node in layer.nodes:
                ends = [
                    _run(inner, known[source], parameters, prefixes, buffers, training)
                    for source, inner in node
                ]
                known.append(sum(ends[1:], ends[0]) if ends else torch.zeros_like(x))
            x = known[-1]
    return x


def _dense(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of several networks, [network, batch, units]; the same ``x`` of several in a row is read once."""
    if len(x) == len(w):
        return torch.baddbmm(b[:, None], x, w)
    out = torch.einsum("gni,grio->grno", x, w.unflatten(0, (len(x), -1)))
    return out.flatten(0, 1) + b[:, None]


def _of_vectors(kind: str, x: torch.Tensor, prefix: str, parameters: Parameters) -> torch.Tensor:
    """Layer norm of vectors, the layers of sequences, and scores tied to an embedding."""
    if kind == "layer_norm":
        return F.layer_norm(
            x, x.shape[-1:], parameters[f"{prefix}/scale"], parameters[f"{prefix}/shift"], _EPS
        )
    if kind == "embed":
        return torch.einsum("nshw,sd->ndhw", x, parameters[f"{prefix}/w"])
    if kind == "recurrent":
        return _recurrent(x, prefix, parameters)
    return torch.addmm(parameters[f"{prefix}/b"], x, parameters["layer_0/w"].t())


def _recurrent(x: torch.Tensor, prefix: str, parameters: Parameters) -> torch.Tensor:
    """The last state [batch, units] over a sequence [batch, symbols, length, 1]."""
    w, u, b = (parameters[f"{prefix}/{part}"] for part in "wub")
    driven = torch.einsum("nstw,sd->tnd", x, w) + b
    h = torch.tanh(driven[0])
    for step in driven[1:]:
        h = torch.tanh(step + h @ u)
    return h


def _batch_norm(
    x: torch.Tensor, prefix: str, parameters: Parameters, buffers: dict[str, torch.Tensor], training: bool
) -> torch.Tensor:
    """Batch norm over all but the channels; the running variance is the biased one, in both backends."""
    gamma, beta = parameters[f"{prefix}/gamma"], parameters[f"{prefix}/beta"]
    mean, var = buffers.get(f"{prefix}/mean"), buffers.get(f"{prefix}/var")
    if not training:
        return F.batch_norm(x, mean, var, gamma, beta, eps=_EPS)
    now_mean, now_var = torch.zeros_like(gamma), torch.zeros_like(gamma)
    out = F.batch_norm(x, now_mean, now_var, gamma, beta, training=True, momentum=1.0, eps=_EPS)
    if mean is not None:
        count = x.numel() / x.shape[1]
        mean.lerp_(now_mean, _MOMENTUM)
        var.lerp_(now_var * ((count - 1.0) / count), _MOMENTUM)
    return out
