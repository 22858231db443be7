"""Rules: small equations that are optimizers, and their JSON files (``format = "l2o-rule"``)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from common.run.kinds import HDF5, JSON, RULE, kind
from common.run.places import inside
from common.run.storage import read_json
from interchange.language.checks import FORMAT, FORMAT_VERSION, RAW, RuleError
from interchange.language.equation import Equation, zero_update
from interchange.language.expression import Node, to_text
from interchange.language.parse import parse
from interchange.rule.gallery import NAMED, is_named, named

__all__ = ["FORMAT", "FORMAT_VERSION", "RAW", "Rule", "RuleError", "zero_update"]


# What stands for a run folder, or a folder of rules, where a rule is meant.
FILES = ("tuned.json", "rules/best.json", "best.json")


class Rule(Equation):
    """An equation that is an optimizer, loaded, shown and simplified."""

    def __str__(self) -> str:
        from interchange.rule.words import definitions, readable, size

        return "\n".join([f"{self.name}:  u = {readable(self)}", *definitions(self), f"  {size(self)}"])

    def _repr_latex_(self) -> str:
        """The equation and its features' definitions, in notebooks."""
        from interchange.emit.targets import to_latex

        used = [(name, tree) for name, tree in self.features.items() if tree is not None and name != "g"]
        lines = [self.latex(), *(to_latex.emit_feature(name, tree).strip() for name, tree in used)]
        aligned = r" \\ ".join(line.replace(" = ", " &= ", 1) for line in lines)
        return rf"$$\begin{{aligned}} {aligned} \end{{aligned}}$$"

    @property
    def body(self) -> Node:
        """The expression inside the structure its own record names (MATH.md section 3b), or all."""
        tree = self.expression
        return tree.args[0] if tree.op == self.provenance.get("structure") else tree

    def source(self) -> tuple[str, str]:
        """What makes an optimizer's state this rule's, whatever its constants: to compare, and in words."""
        words = f"the rule {self.name!r}, u = {to_text(self.expression)[:80]}"
        return f"{self.scale!r} * {to_text(self.inlined())}", words

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> "Rule":
        """Read a rule file; every fault is one ``L2OError`` that names the file.

        Args:
            path: the file, or a folder for the tuned or best rule in it; the name of a rule of the gallery is
                one where no file has it.
            verify: refuse a file whose SHA-256 does not match; False only to write it anew.
        """
        if not os.path.exists(path):
            if is_named(os.fspath(path)):
                return cls.named(os.fspath(path))
            if os.sep not in os.fspath(path) and "." not in os.fspath(path):
                raise RuleError(f"{path}: no such file, nor a rule of the gallery: {', '.join(NAMED)}")
        path = inside(path, "a rule", *FILES)
        if found := other_kind(path):
            raise RuleError(f"{path}: expected a rule, got {found}; give the JSON file of a rule")
        return cls._from_payload(read_json(path), os.fspath(path), verify)

    @classmethod
    def named(cls, name: str, **options: float | str | Equation) -> "Rule":
        """A rule of the gallery (interchange.rule.gallery), as ``Rule.named("adam", beta1=0.95)``.

        Those that wrap others take a rule or its name: ``Rule.named("cautious", of="lion")``.
        """
        return cls(**vars(named(name, **options)))

    def centered(self) -> "Rule":
        """The rule minus its update at zero gradient, so that it leaves weights without gradient alone."""
        from interchange.language.simplify import centered

        return centered(self)

    def simplified(self) -> "Rule":
        """The rule with a shorter expression of the same values; itself if no shorter one was found."""
        from interchange.language.simplify import simplified

        return simplified(self)

    def latex(self) -> str:
        """``u_t = ...`` in LaTeX, constants rounded to 4 significant digits."""
        from interchange.emit.targets import to_latex

        return to_latex.emit(self).strip()

    def mathml(self) -> str:
        """``u_t = ...`` as one Presentation MathML element, constants rounded as in ``latex``."""
        from interchange.emit.targets import to_mathml

        return to_mathml.emit(self).strip()

    def sympy(self, *, values: bool = False) -> Any:
        """``scale * expression`` as a SymPy expression over real symbols, unevaluated.

        ``lambdify`` (numpy, math, mpmath), ``evalf``, ``subs`` and ``diff`` give the rule's numbers; temporal
        and tensor operators are functions by name, which no number goes through. Where the rule is nan,
        Python's own max, min and comparisons (``math``, ``mpmath``) may pass over that.

        Args:
            values: put in the numbers of the constants, else they are symbols, too.
        """
        from interchange.emit.targets import to_sympy

        return to_sympy.build_rule(self, values=values)

    @classmethod
    def from_sympy(
        cls,
        expression: Any,
        features: Mapping[str, str | None] | None = None,
        constants: Mapping[str, float] | None = None,
        *,
        name: str = "rule",
        scale: float = 1.0,
    ) -> "Rule":
        """A rule of a SymPy expression over the reals.

        Args:
            features: symbol -> its expression over ``g``, ``t``, ``theta``, or None.
            constants: symbol -> its value; numbers in the expression stay numbers.

        Raises:
            L2OError: a part of it, which is named, has no exact meaning in the rule language.
        """
        from interchange.dialects.sympy_tree import from_sympy

        trees = {key: None if text is None else parse(text, RAW) for key, text in (features or {}).items()}
        return cls(name, from_sympy(expression), dict(constants or {}), trees, scale)

    @classmethod
    def from_pysr(
        cls,
        model: Any,
        index: int | None = None,
        *,
        features: Mapping[str, str] | None = None,
        operators: Sequence[str] = (),
        scale: float = 1.0,
    ) -> "Rule":
        """The equation a fitted ``PySRRegressor`` picks, or the one at ``index`` of its ``equations_``.

        Args:
            features: variable -> its expression over ``g``, ``t``, ``theta``.
            operators: further operators of the search, as ``sq=square(x)``.
        """
        from interchange.dialects.objects import pysr_equation

        return cls(**pysr_equation(model, index, features, operators), scale=scale)

    @classmethod
    def from_operon(
        cls,
        model: Any,
        index: int | None = None,
        *,
        features: Mapping[str, str] | None = None,
        scale: float = 1.0,
    ) -> "Rule":
        """The model a fitted ``SymbolicRegressor`` of pyoperon chose, or that at ``index`` of its front."""
        from interchange.dialects.objects import operon_model

        return cls(**operon_model(model, index, features), scale=scale)


def other_kind(path: str | os.PathLike[str]) -> str:
    """What a file that is no JSON is; "" where nobody knows."""
    if (found := kind(path)) == HDF5:
        from interchange.files.hdf5 import kind_of

        found = kind_of(path)
    return "" if found in (RULE, JSON) else found
