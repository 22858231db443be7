"""A row of the table of teachers."""

import dataclasses
from typing import Any, Literal, get_args

from common.errors import L2OError
from common.tables import features

Structure = Literal["", "orth"]
STRUCTURES: tuple[str, ...] = get_args(Structure)
GAIN = "out/gain"  # the weight before tanh, the last in canonical order


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
        pre_tanh_scale: where a trained factor before ``tanh``, the weight ``out/gain``, begins; 0 for none.
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
    pre_tanh_scale: float = 0.0

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
        if self.pre_tanh_scale:
            shapes[GAIN] = (1,)
        return shapes

    def state_floats(self) -> int:
        """Floats of state the network keeps per optimized parameter (h and c of every cell)."""
        return 2 * sum(self.lstm)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready data; without structure and gain as it was before there were any."""
        later = ("structure", "pre_tanh_scale")
        return {key: value for key, value in dataclasses.asdict(self).items() if value or key not in later}

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
        return cls(**values).checked()

    def checked(self) -> "TeacherRow":
        """The row itself; a gain without tanh, or below 0, raises ``L2OError``."""
        if self.pre_tanh_scale and not (self.output == "tanh" and self.pre_tanh_scale > 0.0):
            raise L2OError(
                f"teacher {self.name}: pre_tanh_scale: expected a number above 0 before tanh, got "
                f"{self.pre_tanh_scale} before {self.output}; leave it out"
            )
        return self
