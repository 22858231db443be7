"""The table of teachers: LSTM optimizers, coordinate-wise, as plain data.

A teacher maps the features of one coordinate's gradient to y = output(network(features)) of that
coordinate. The update is ``u = scale * y``, with a structure ``u = scale * structure(y)``, tensor by tensor,
and is applied as ``theta += lr * u``. Both backends build their network from the row and the weight shapes
given here.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from common.errors import L2OError
from common.registry import Registry
from common.rng import rng
from common.tables import features

Draw = Callable[[np.random.Generator, tuple[int, ...], int], np.ndarray]
Structure = Literal["", "orth"]
STRUCTURES: tuple[str, ...] = get_args(Structure)


@dataclasses.dataclass(frozen=True)
class TeacherRow:
    """One row: inputs, network, output.

    Attributes:
        inputs: feature names, in the order of the network's input axis.
        lstm: hidden size of each stacked LSTM cell.
        pre: size of the Linear + ELU layer before the cells; 0 for none.
        output: transform of the last Linear's output.
        scale: factor on the transformed output; the update's largest step for ``tanh``.
        beta1, beta2, eps: the moving averages inside the features.
        p: the scale of LogAndSign (Andrychowicz et al. 2016, appendix A).
        source: paper the row follows.
        structure: the tensor operator that y goes through (MATH.md section 3b), "" for none.
    """

    name: str
    inputs: tuple[str, ...]
    lstm: tuple[int, ...]
    pre: int = 0
    output: Literal["tanh", "linear"] = "tanh"
    scale: float = 0.01
    beta1: float = features.DEFAULTS["beta1"]
    beta2: float = features.DEFAULTS["beta2"]
    eps: float = features.DEFAULTS["eps"]
    p: float = features.DEFAULTS["p"]
    source: str = ""
    structure: Structure = ""

    def expressions(self) -> dict[str, str]:
        """Input feature -> its expression over ``g``, in input order."""
        return {
            name: features.expression(name, beta1=self.beta1, beta2=self.beta2, eps=self.eps, p=self.p)
            for name in self.inputs
        }

    @property
    def features_see_tensors(self) -> bool:
        """Whether an input of the network depends on other coordinates of the tensor."""
        return any(name in features.SEE_TENSORS for name in self.inputs)

    @property
    def sees_tensors(self) -> bool:
        """Whether coordinates of a tensor are not independent: by the structure or by a feature."""
        return bool(self.structure) or self.features_see_tensors

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Weight name -> shape, in canonical order; LSTM gates i, f, g, o (FORMATS.md section 2)."""
        shapes: dict[str, tuple[int, ...]] = {}
        width = len(self.inputs)
        if self.pre:
            shapes["pre/w"] = (self.pre, width)
            shapes["pre/b"] = (self.pre,)
            width = self.pre
        for layer, hidden in enumerate(self.lstm):
            shapes[f"lstm_{layer}/w_input"] = (4 * hidden, width)
            shapes[f"lstm_{layer}/w_hidden"] = (4 * hidden, hidden)
            shapes[f"lstm_{layer}/bias"] = (4 * hidden,)
            width = hidden
        shapes["out/w"] = (1, width)
        shapes["out/b"] = (1,)
        return shapes

    def state_floats(self) -> int:
        """Floats of state the network keeps per optimized parameter (h and c of every cell)."""
        return 2 * sum(self.lstm)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready data; without a structure as it was before there were any."""
        row = dataclasses.asdict(self)
        return row if self.structure else {key: value for key, value in row.items() if key != "structure"}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> "TeacherRow":
        """The inverse of ``to_dict``; an unknown or missing field raises ``L2OError``."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(row) - set(known))
        missing = sorted({"name", "inputs", "lstm"} - set(row))
        if unknown or missing:
            raise L2OError(
                f"teacher row: expected the fields {', '.join(known)}; "
                f"unknown: {unknown or 'none'}, missing: {missing or 'none'}"
            )
        values = dict(row)
        values["inputs"] = tuple(values["inputs"])
        values["lstm"] = tuple(int(size) for size in values["lstm"])
        if values.get("structure", "") not in STRUCTURES:
            known = ", ".join(filter(None, STRUCTURES))
            raise L2OError(f"unknown structure {values['structure']!r}; known: {known}, or leave it out")
        return cls(**values)


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


def variant(teacher: TeacherRow, inputs: str = "", scale: float = 0.0, structure: str = "") -> TeacherRow:
    """The row with other features, e.g. ``mt+gt+mom5``, scale or structure; "" and 0 leave its own."""
    return dataclasses.replace(
        teacher,
        inputs=features.names(inputs) if inputs else teacher.inputs,
        scale=scale or teacher.scale,
        structure=structure or teacher.structure,
    )


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
