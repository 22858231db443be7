"""What is analysed: a teacher or a rule, as a function from sequences of its inputs to updates."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import L2OError
from common.reference import teacher_step, zero_cells
from common.tables.baselines import BASELINES
from interchange.files.weights import Teacher, load_weights
from interchange.language import expression as ex
from interchange.language.execute import evaluate_trees, tree_with_tangents
from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.language.view import View
from interchange.rule.front import read_front
from interchange.rule.gallery import NAMED, is_named
from interchange.rule.rule import RAW, Rule
from interchange.rule.source import spelled_out

Shapes = Sequence[View] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """One optimizer.

    Attributes:
        name: short and unique among those analysed together.
        loaded: its weights, or its equation.
        front: all rules of the folder it is the best of, shortest first; empty for a single file.
    """

    name: str
    loaded: Teacher | Rule
    front: tuple[Rule, ...] = ()

    @property
    def kind(self) -> str:
        """``teacher`` or ``rule``."""
        return "teacher" if isinstance(self.loaded, Teacher) else "rule"

    @property
    def scale(self) -> float:
        """The factor on its output."""
        return self.loaded.row.scale if isinstance(self.loaded, Teacher) else self.loaded.scale

    @property
    def body(self) -> Node | None:
        """The rule's expression without a structure around it (MATH.md section 3), None of a teacher."""
        return None if isinstance(self.loaded, Teacher) else self.loaded.body

    @property
    def inputs(self) -> dict[str, Node | None]:
        """What it reads at every step, by name -> expression over ``g``; None where there is none.

        Of a rule these are its features, and ``g`` where it reads that itself.
        """
        if isinstance(self.loaded, Teacher):
            return {name: parse(text, RAW) for name, text in self.loaded.row.expressions().items()}
        read = ex.names(self.body)
        given = {"g": ex.name("g")} if "g" in read else {}
        return given | {name: tree for name, tree in self.loaded.features.items() if name in read}

    @property
    def sees_tensors(self) -> bool:
        """Whether its updates inside a structure depend on other coordinates of a tensor."""
        trees = [self.body, *self.inputs.values()] if isinstance(self.loaded, Rule) else []
        return any(ex.sees_tensors(tree) for tree in trees if tree is not None)

    def features(self, recorded: Mapping[str, np.ndarray], shapes: Shapes = None) -> dict[str, np.ndarray]:
        """Its inputs [T, N], computed from the gradient; one without an expression is taken as recorded.

        Args:
            recorded: ``g`` [T, N] from the first step on, ``theta`` where it is known, and other features.
            shapes: views of the tensors that the columns are, for what sees tensors.

        Raises:
            L2OError: an input has no expression and was not recorded, or tensors are not whole.
        """
        if self.sees_tensors and shapes is None:
            raise L2OError(f"{self.name} sees tensors; expected them whole: record with --whole-tensors")
        trees = {name: tree for name, tree in self.inputs.items() if tree is not None}
        found = dict(zip(trees, evaluate_trees(list(trees.values()), recorded, shapes=shapes), strict=True))
        for name in self.inputs:
            if name not in found and name not in recorded:
                raise L2OError(
                    f"{self.name}: the input {name!r} has no expression over g; expected it in the recording "
                    f"among {', '.join(recorded)}"
                )
        found = {name: found[name] if name in found else recorded[name] for name in self.inputs}
        if isinstance(self.loaded, Rule) and "theta" in ex.names(self.body):
            if "theta" not in recorded:
                raise L2OError(f"{self.name} reads theta; expected a recording that holds it")
            found["theta"] = recorded["theta"]
        return found

    def outputs(self, features: Mapping[str, np.ndarray], shapes: Shapes = None) -> np.ndarray:
        """Updates u [T, N] from zero state, before a learning rate and inside a structure.

        Args:
            features: as ``features`` gives them.
        """
        if isinstance(self.loaded, Rule):
            given = {**self.loaded.constants, **features}
            return self.scale * evaluate_trees([self.body], given, shapes=shapes)[0]
        row, weights = self.loaded.row, self.loaded.weights
        x = np.stack([features[name] for name in row.inputs], axis=-1)
        cells, outputs = zero_cells(row, x.shape[1]), []
        for now in x:
            out, cells = teacher_step(row, weights, now, cells)
            outputs.append(out)
        return self.scale * np.stack(outputs)

    def rule_tangents(
        self, features: Mapping[str, Any], directions: Mapping[str, np.ndarray], shapes: Shapes = None
    ) -> np.ndarray:
        """Of a rule: derivatives [k, T, N] of its updates along a direction of each of k inputs.

        Args:
            directions: input -> [T, N], how much it changes at every step.
        """
        given, changed = {**self.loaded.constants, **features}, {}
        for name, direction in directions.items():
            amount, along = f"{name}_amount", f"{name}_along"
            given |= {amount: 0.0, along: direction}
            step = ex.call("mul", ex.name(amount), ex.name(along))
            changed[name] = ex.call("add", ex.name(name), step)
        tree = ex.substitute(self.body, changed)
        wrt = [f"{name}_amount" for name in directions]
        return self.scale * tree_with_tangents(tree, given, wrt, shapes)[1]


def load(text: str) -> Subject:
    """What a command's SOURCE names: a rule or teacher by name, its file, a run, or a folder of rules.

    Raises:
        L2OError: nothing has that name, or a hand-made optimizer of that name has no equation here.
    """
    place = Path(text)
    for folder in (place, place / "rules"):
        if (folder / "front.csv").is_file() and not (place / "teacher.h5").is_file():
            return Subject(text, Rule.load(place), tuple(read_front(folder)))
    name = text.replace("-", "_")
    if not place.exists() and is_named(name):
        return Subject(text, Rule.load(name))
    if text in BASELINES:
        raise L2OError(f"{text}: expected an optimizer with an equation; those by name: {', '.join(NAMED)}")
    kind, _, target = spelled_out(text).partition(":")
    if kind == "teacher":
        return Subject(text, load_weights(target))
    return Subject(text, Rule.load(target))


def load_all(texts: Sequence[str]) -> list[Subject]:
    """All of them, each once, by short names: a file's stem, or with its folder where two are alike."""
    found = [load(text) for text in dict.fromkeys(texts)]
    short = [Path(subject.name).stem if Path(subject.name).exists() else subject.name for subject in found]
    return [
        dataclasses.replace(subject, name=name if short.count(name) == 1 else subject.name)
        for subject, name in zip(found, short, strict=True)
    ]
