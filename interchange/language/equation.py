"""The data half of a rule: an equation over features and constants, its text, its JSON and its values.

``u = scale * expression`` and ``theta += lr * u``. The expression is over features and named constants;
a feature is itself an expression over the raw gradient ``g`` (and ``t``, ``theta``), so an equation with all
features given is self-contained.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from common.errors import L2OError
from common.run.storage import atomic_write, canonical_json, content_hash, loads_json
from common.tables.features import FEATURES, default_expression
from interchange.language import expression as ex
from interchange.language.checks import (
    FORMAT,
    RAW,
    Constants,
    RuleError,
    check_decays,
    check_names,
    check_payload,
    decay_names,
    finite,
    step_sizes,
    version,
)
from interchange.language.compiler import Program, compile_cases, compile_program
from interchange.language.execute import evaluate_trees
from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.language.view import FULL, View, of_shapes, trial


@dataclasses.dataclass(frozen=True)
class Equation:
    """One equation; checked when made, never changed.

    Attributes:
        name: up to 200 characters for people; generated code holds it only as a literal.
        expression: tree over features, constants, ``g``, ``t``, ``theta``.
        constants: tunable values in their order, the same in every target.
        features: name -> tree over ``g``, ``t``, ``theta``; None for a column that has no definition.
        scale: factor on the expression.
        provenance: JSON-ready record of where the rule comes from.
        step_sizes: parameter name -> factor on lr there, for optimizers; empty for one lr everywhere.
    """

    name: str
    expression: Node
    constants: dict[str, float] = dataclasses.field(default_factory=dict)
    features: dict[str, Node | None] = dataclasses.field(default_factory=dict)
    scale: float = 1.0
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    step_sizes: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        constants = {key: finite(value, f"constant {key!r}") for key, value in dict(self.constants).items()}
        object.__setattr__(self, "constants", Constants(constants))
        object.__setattr__(self, "features", dict(self.features))
        object.__setattr__(self, "scale", finite(self.scale, "scale"))
        object.__setattr__(self, "step_sizes", step_sizes(self.step_sizes, "step_sizes"))
        object.__setattr__(self, "provenance", json.loads(canonical_json(self.provenance)))
        check_names(self)
        check_decays(self)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.6g}" for name, value in self.constants.items())
        where = f" with {values}" if values else ""
        return f"{type(self).__name__}({self.name}: {self.scale:g} * ({ex.to_text(self.expression)}){where})"

    @classmethod
    def from_text(
        cls,
        expression: str,
        constants: Mapping[str, float] | None = None,
        features: Mapping[str, str | None] | None = None,
        name: str = "rule",
        scale: float = 1.0,
        provenance: Mapping[str, Any] | None = None,
    ) -> Self:
        """A rule from the texts of its expression and features; faults raise ``L2OError``.

        Args:
            constants: name -> value.
            features: name -> expression over ``g``, ``t``, ``theta``. Those of the table of features
                (``m_tilde``, ``g_tilde`` ...) are known, with the usual decays, where they are not given.
        """
        constants, features = dict(constants or {}), dict(features or {})
        for used in ex.names(parse(expression)):
            if used in FEATURES and used not in (*features, *constants, *RAW):
                features[used] = default_expression(used)
        return cls._from_texts(expression, constants, features, name, scale, provenance)

    @classmethod
    def _from_texts(
        cls,
        expression: str,
        constants: dict[str, float],
        features: dict[str, str | None],
        name: str,
        scale: float,
        provenance: Mapping[str, Any] | None,
    ) -> Self:
        """As ``from_text``, with every name given."""
        known = dict.fromkeys((*features, *constants, *RAW))
        trees = {key: None if text is None else parse(text, RAW) for key, text in features.items()}
        return cls(name, parse(expression, known), constants, trees, scale, dict(provenance or {}))

    @classmethod
    def from_json(cls, text: str, *, verify: bool = True) -> Self:
        """The inverse of ``to_json``."""
        return cls._from_payload(loads_json(text, "rule"), "rule", verify)

    @classmethod
    def _from_payload(cls, payload: Any, where: str, verify: bool) -> Self:
        check_payload(payload, where)
        if "sha256" not in payload:
            warnings.warn(f"{where} carries no sha256: changes to it cannot be noticed", stacklevel=3)
        elif verify and payload["sha256"] != _hash(payload):
            raise RuleError(
                f"{where}: the content does not match its sha256, so the file was changed or damaged; "
                "if the change is yours, run `python -m interchange.rule check --rehash` on it"
            )
        try:
            rule = cls._from_texts(
                payload["expression"],
                payload["constants"],
                payload["features"],
                payload["name"],
                payload.get("scale", 1.0),
                payload.get("provenance"),
            )
            return dataclasses.replace(rule, step_sizes=payload.get("step_sizes", {}))
        except L2OError as error:
            raise RuleError(f"{where}: {error}") from None

    def to_json(self) -> str:
        """The rule file: floats exact (shortest repr); the same rule gives the same text."""
        payload = self._payload()
        payload["sha256"] = _hash(payload)
        return json.dumps(payload, indent=2, allow_nan=False) + "\n"

    def _payload(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": version(self),
            "name": self.name,
            "expression": ex.to_text(self.expression),
            "constants": dict(self.constants),
            "features": {k: None if tree is None else ex.to_text(tree) for k, tree in self.features.items()},
            "scale": self.scale,
            **({"step_sizes": self.step_sizes} if self.step_sizes else {}),
            "complexity": self.complexity,
            "provenance": self.provenance,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the rule file atomically."""
        atomic_write(path, self.to_json().encode())

    @property
    def sha256(self) -> str:
        """The hash a saved file carries."""
        return _hash(self._payload())

    @property
    def complexity(self) -> int:
        """Nodes of the expression (interchange.language.expression.complexity); features count 1 each."""
        return ex.complexity(self.expression)

    @property
    def undefined(self) -> list[str]:
        """Features without a definition over g: the rule evaluates on arrays of them, and is no optimizer."""
        return [name for name, tree in self.features.items() if tree is None]

    @property
    def decay_constants(self) -> tuple[str, ...]:
        """Constants used as b of ``ema`` or ``ema_hat``, in the order of ``constants``."""
        used = decay_names(self.expression)
        return tuple(key for key in self.constants if key in used)

    @property
    def state_floats(self) -> int:
        """Floats of state per parameter when run as an optimizer; ``t`` is per tensor and not counted.

        Of a rule that sees tensors: for a tensor with a matrix view, without what is kept once for a row, a
        column or the tensor (``state_size``).
        """
        return sum(kind == FULL for kind in self.program().slot_kinds)

    def state_size(self, shape: Sequence[int] | View) -> int:
        """Floats of state for one tensor, of a shape in canonical layout or as its view has it."""
        (view,) = of_shapes([shape])
        kinds = self.program(view.matrix).slot_kinds
        return sum(int(np.prod(view.reduced(kind))) for kind in kinds)

    @property
    def sees_tensors(self) -> bool:
        """Whether it holds tensor operators or sizes, so that coordinates of a tensor are not independent."""
        trees = (self.expression, *(self.features[name] for name in self._used() if self.features[name]))
        return any(map(ex.sees_tensors, trees))

    def _used(self) -> list[str]:
        return [key for key in ex.names(self.expression) if key in self.features]

    def inlined(self) -> Node:
        """The expression over ``g``, ``t``, ``theta``, constants; refused if a feature has no definition."""
        return self._over(())

    def _over(self, given: tuple[str, ...] | Mapping[str, Any]) -> Node:
        """The expression with every feature inlined that is not given as data."""
        needed = [key for key in self._used() if key not in given]
        missing = [key for key in needed if self.features[key] is None]
        if missing:
            raise RuleError(
                f"rule {self.name!r}: the feature {missing[0]!r} has no definition over g, "
                "so the rule can be evaluated on arrays of it but not be used as an optimizer"
            )
        return ex.substitute(self.expression, {key: self.features[key] for key in needed})

    def program(self, has_matrix: bool = True) -> Program:
        """``inlined()`` compiled; its output is u / scale.

        Args:
            has_matrix: for tensors with, or without, a matrix view (``by_matrix``).
        """
        return compile_program([ex.branch(self.inlined(), has_matrix)], tuple(self.constants))

    def programs(self) -> dict[bool, Program]:
        """``program`` for tensors with and without a matrix view; one and the same where they agree."""
        return compile_cases([self.inlined()], tuple(self.constants))

    def evaluate(
        self,
        inputs: Mapping[str, Any],
        dtype: Any = np.float64,
        shapes: Sequence[Sequence[int] | View] | None = None,
    ) -> np.ndarray:
        """u (with ``scale``) over whole sequences, from zero state.

        Args:
            inputs: name -> array [T, N], t = 1..T along the first axis. Features that are not given are
                computed from ``g``; constants may be overridden by name. For a rule without temporal
                operators the rows may as well be independent samples.
            dtype: of the computation.
            shapes: of the tensors whose coordinates the N columns are, one tensor after another, in canonical
                layout ([in, out], [kh, kw, in, out]: rows are the last axis) or as their views
                (interchange.language.view). Needed by a rule that sees tensors.

        Returns:
            Array [T, N].

        Raises:
            RuleError: an input is unknown, or a feature has no definition.
            L2OError: the rule sees tensors and the shapes are missing or do not make up N.
        """
        unknown = [key for key in inputs if key not in (*self.features, *self.constants, *RAW)]
        if unknown:
            known = ", ".join((*self.features, *self.constants, *RAW))
            raise RuleError(f"rule {self.name!r}: unknown input {unknown[0]!r}; known: {known}")
        dtype = np.dtype(dtype)
        given = {**self.constants, **inputs}
        return dtype.type(self.scale) * evaluate_trees([self._over(inputs)], given, dtype, shapes)[0]

    def tried(self, inputs: Mapping[str, Any], dtype: Any = np.float64) -> np.ndarray:
        """``evaluate``; of a rule that sees tensors the columns are small matrices and a vector."""
        count = np.shape(inputs["g"])[1]
        return self.evaluate(inputs, dtype, trial(count) if self.sees_tensors else None)

    def with_constants(self, values: Mapping[str, float]) -> Self:
        """The rule with some constants changed; an unknown one raises ``L2OError``."""
        unknown = [key for key in values if key not in self.constants]
        if unknown:
            known = ", ".join(self.constants) or "none"
            raise RuleError(f"rule {self.name!r}: unknown constant {unknown[0]!r}; known: {known}")
        return dataclasses.replace(self, constants={**self.constants, **values})


def _hash(payload: Mapping[str, Any]) -> str:
    return content_hash({key: value for key, value in payload.items() if key != "sha256"})


def zero_update(rule: Equation) -> float:
    """The largest update (before lr) the rule makes over 100 steps of zero gradient.

    Other than 0 it moves weights that have no gradient; what is rounding counts as 0.
    """
    zeros = {name: np.zeros((100, 16)) for name in ("g", "theta")}
    largest = float(np.abs(rule.tried(zeros)).max())
    return 0.0 if largest <= 1e-12 * abs(rule.scale) else largest
