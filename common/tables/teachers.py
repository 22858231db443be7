"""The table of teachers: LSTM optimizers, coordinate-wise, as plain data.

A teacher maps the features of one coordinate's gradient to y = output(network(features)) of that
coordinate. The update is ``u = scale * y``, with a structure ``u = scale * structure(y)``, tensor by tensor,
and is applied as ``theta += lr * u``. Both backends build their network from the row and the weight shapes
given here.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.registry import Registry
from common.rng import rng
from common.tables import features
from common.tables.teacher import GAIN, STRUCTURES, TeacherRow

__all__ = [
    "GAIN",
    "INITIAL_WEIGHTS",
    "STRUCTURES",
    "TEACHERS",
    "TeacherRow",
    "folded",
    "initial_weights",
    "unfolded",
    "variant",
]

Draw = Callable[[np.random.Generator, tuple[int, ...], int], np.ndarray]


def _rows(*teachers: TeacherRow) -> dict[str, TeacherRow]:
    return {teacher.name: teacher for teacher in teachers}


TEACHERS: Registry[TeacherRow] = Registry(
    "teacher",
    _rows(
        TeacherRow(
            name="rp_s",
            inputs=("m_tilde", "g_tilde"),
            pre=6,
            lstm=(7,),
            eps=1e-12,
            source="Zheng et al., Symbolic Learning to Optimize, ICLR 2022 (small RNNprop)",
        ),
        TeacherRow(
            name="rnnprop",
            inputs=("m_tilde", "g_tilde"),
            pre=20,
            lstm=(20, 20),
            source="Lv et al. 2017; output scale 0.01 as in Chen et al. 2020",
        ),
        TeacherRow(
            name="rp_s_m",
            inputs=("m_tilde", "g_tilde"),
            pre=6,
            lstm=(7,),
            eps=1e-12,
            structure="orth",
            source="rp_s through orth, as Celo2 (ICLR 2026) puts a small network through Newton-Schulz",
        ),
        TeacherRow(
            name="rnnprop_m",
            inputs=("m_tilde", "g_tilde"),
            pre=20,
            lstm=(20, 20),
            structure="orth",
            source="rnnprop through orth, as rp_s_m",
        ),
        TeacherRow(
            name="rnnprop_f",
            inputs=("m_tilde", "g_tilde", "g_row", "g_col"),
            pre=20,
            lstm=(20, 20),
            source="rnnprop that sees row and column means of g^2 (Shazeer and Stern 2018), as VeLO does",
        ),
        TeacherRow(
            name="dm",
            inputs=("log_g", "clip_g"),
            lstm=(20, 20),
            output="linear",
            source="Andrychowicz et al. 2016",
        ),
        TeacherRow(
            name="dm_p5",
            inputs=("log_g", "clip_g"),
            lstm=(20, 20),
            output="linear",
            p=5.0,
            source="Andrychowicz et al. 2016; p = 5 as in Chen et al. 2020",
        ),
        TeacherRow(
            name="dm_raw",
            inputs=("g",),
            lstm=(20, 20),
            output="linear",
            source="Zheng et al., ICLR 2022 (its DM: the gradient as it is)",
        ),
        TeacherRow(
            name="rnnprop_lv",
            inputs=("m_tilde", "g_tilde"),
            pre=20,
            lstm=(20, 20),
            scale=0.1,
            source="Lv et al. 2017 as published, for sigmoid problems with random scaling",
        ),
        TeacherRow(
            name="rp_si",
            inputs=("m_p2", "m_p2_5", "m_p3"),
            pre=6,
            lstm=(7,),
            eps=1e-12,
            source="Zheng et al., ICLR 2022 (p-norm inputs, its magic 0)",
        ),
        TeacherRow(
            name="rp_si_n",
            inputs=("m_tilde", "g_tilde", "m_p3"),
            pre=6,
            lstm=(7,),
            eps=1e-12,
            source="Zheng et al., ICLR 2022 (its mapping figure: m~, g~, n~; that n~ is of p = 3 is a guess)",
        ),
        TeacherRow(
            name="rp_extra",
            inputs=("m_tilde", "g", "mom5", "mom9", "mom99"),
            pre=9,
            lstm=(12,),
            eps=1e-12,
            source="Zheng et al., ICLR 2022 (more diverse input)",
        ),
    ),
)


def variant(
    teacher: TeacherRow,
    inputs: str = "",
    scale: float = 0.0,
    structure: str = "",
    pre_tanh_scale: float = 0.0,
) -> TeacherRow:
    """The row with other features, e.g. ``mt+gt+mom5``, scale, structure or gain; "" and 0 leave its own."""
    return dataclasses.replace(
        teacher,
        inputs=features.names(inputs) if inputs else teacher.inputs,
        scale=scale or teacher.scale,
        structure=structure or teacher.structure,
        pre_tanh_scale=pre_tanh_scale or teacher.pre_tanh_scale,
    ).checked()


def folded(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of the same network without a gain, which is in those of the last layer.

    Args:
        weights: by name, arrays or tensors of any framework.
    """
    if GAIN not in weights:
        return dict(weights)
    gain = weights[GAIN]
    return {n: w * gain if n.startswith("out/") else w for n, w in weights.items() if n != GAIN}


def unfolded(grads: dict[str, np.ndarray], weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Derivatives by ``weights``, which NumPy can read, from those by ``folded(weights)``."""
    if GAIN not in weights:
        return grads
    last = {name: np.asarray(weights[name]) for name in ("out/w", "out/b")}
    by_gain = sum(float((grads[name] * w).sum()) for name, w in last.items())
    scaled = {name: grads[name] * np.asarray(weights[GAIN]) for name in last}
    return grads | scaled | {GAIN: np.full((1,), by_gain)}


def initial_weights(teacher: TeacherRow, seed: int, kind: str = "uniform") -> dict[str, np.ndarray]:
    """Initial weights, float64.

    Args:
        kind: ``uniform``: uniform(+-1/sqrt(H)), biases too, as torch and the ICLR code do, H the hidden size
            for LSTM weights and the input width for linear layers; ``truncated``: normal with deviation 0.1,
            cut at two of them, and zero biases (Lv et al. 2017).
    """
    draw = INITIAL_WEIGHTS[kind]
    weights = {}
    for index, (name, shape) in enumerate(teacher.weight_shapes().items()):
        if name == GAIN:
            weights[name] = np.full(shape, teacher.pre_tanh_scale)
            continue
        if name.startswith("lstm"):
            width = shape[0] // 4
        else:
            width = teacher.weight_shapes()[name.split("/")[0] + "/w"][1]
        weights[name] = draw(rng(seed, "teacher", index), shape, width)
    return weights


def _uniform(generator: np.random.Generator, shape: tuple[int, ...], width: int) -> np.ndarray:
    bound = 1.0 / math.sqrt(width)
    return generator.uniform(-bound, bound, size=shape)


def _truncated(generator: np.random.Generator, shape: tuple[int, ...], width: int) -> np.ndarray:
    del width  # the same spread at every size
    if len(shape) == 1:
        return np.zeros(shape)
    values = generator.normal(size=shape)
    while (outside := np.abs(values) > 2.0).any():  # drawn again rather than clipped
        values[outside] = generator.normal(size=int(outside.sum()))
    return 0.1 * values


INITIAL_WEIGHTS: Registry[Draw] = Registry("initial weights", {"uniform": _uniform, "truncated": _truncated})
