"""What is trained of a rule: its constants, in the form they are trained in."""

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from common.errors import L2OError
from interchange.language import expression as ex
from interchange.language.compiler import compile_cases
from interchange.language.view import SIZES, View
from interchange.protocols import Task, views_of
from interchange.rule.decay import split
from interchange.rule.forms import forms, from_free, to_free
from interchange.rule.rule import Rule

KINDS = ("matrix", "kernel", "vector")  # of dense layers, of convolutions, all other tensors


class RuleWeights:
    """The half of a ``RuleNetwork`` without tensors: names, start values, rates, the way back to constants.

    A decay b is held as its logit, so that it stays in (0, 1), what keeps a denominator above 0 as its
    logarithm (``rule.forms``); weights are float64, 0-dim but for ``kinds``.

    Args:
        problems: each gets a weight more, the logarithm of a factor on the update there (``bind``): what a
            comparison tunes anyway, so that rules are judged at the best of it.
        kinds: constants, but for decays and weight decay, are one for each of ``KINDS``, [3].

    Attributes:
        weights: by name, the backend's tensors, made of ``starts``.
        programs: of the rule for tensors with (True) and without (False) a matrix view; the same of a rule
            that works coordinate by coordinate.
        read: the features the programs read; those that see tensors are part of the programs.
        views: of the tensors of the task it is bound to, where it sees tensors.
        rates: weight name -> factor on the meta learning rate. Adam's steps have the size of the learning
            rate; so they are relative to each constant's own.

    Raises:
        L2OError: a feature has no definition over ``g``, the rule has step sizes by tensor, or it reads
            ``theta`` but for weight decay.
    """

    structure = ""  # a rule has its tensor operators in it
    weights: dict[str, Any]

    def __init__(self, rule: Rule, problems: Sequence[str] = (), kinds: bool = False) -> None:
        if rule.step_sizes:
            raise L2OError(
                f"rule {rule.name!r}: expected one without step sizes by tensor, which come after everything "
                "else is tuned; go on with --per-tensor, or take the rule from before it"
            )
        self.rule, self._problem, self._kinds = rule, "", kinds
        tree, self._decay = split(rule)
        self.sees_tensors = rule.sees_tensors
        known = {name: feature for name, feature in rule.features.items() if feature is not None}
        seeing = {name: feature for name, feature in known.items() if ex.sees_tensors(feature)}
        self.tree = ex.substitute(tree, seeing)
        self.programs = compile_cases([self.tree], tuple(rule.constants))
        names = dict.fromkeys(name for program in self.programs.values() for name in program.inputs)
        self.read = [name for name in names if name not in (*rule.constants, *SIZES, "t")]
        self.views: tuple[View, ...] = ()
        self._place: np.ndarray | None = None
        self.forms = forms(rule)
        factors = dict.fromkeys(map(_factor, problems), 0.0)
        self.starts = {name: self._start(name, value) for name, value in (rule.constants | factors).items()}
        self.rates = {
            name: 1.0 if form != "plain" else max(abs(rule.constants[name]), 1e-3)
            for name, form in self.forms.items()
        } | dict.fromkeys(factors, 1.0)

    def feature_trees(self, names: Sequence[str]) -> dict[str, Any]:
        """Expressions over ``g`` of the features called ``names``."""
        missing = [name for name in names if name != "g" and self.rule.features.get(name) is None]
        if missing:
            raise L2OError(
                f"rule {self.rule.name!r}: feature {missing[0]!r} has no definition over g; add it to "
                "'features'"
            )
        return {name: self.rule.features.get(name) or "g" for name in names}

    def _start(self, name: str, value: float) -> float | list[float]:
        form = self.forms.get(name, "plain")
        several = self._kinds and name in self.rule.constants and name != self._decay and form != "logit"
        return [to_free(value, form)] * len(KINDS) if several else to_free(value, form)

    @property
    def source(self) -> str:
        """What the network is made of, but for its weights: the rule's file."""
        return self.rule.to_json()

    @property
    def scale(self) -> float:
        """The rule's, times the factor of the problem it is bound to."""
        factor = self.weights.get(_factor(self._problem))
        return self.rule.scale * (1.0 if factor is None else math.exp(float(factor)))

    @property
    def factor_name(self) -> str:
        """The name of the weight of the problem it is bound to, "" without."""
        name = _factor(self._problem)
        return name if name in self.weights else ""

    @property
    def tasks_batchable(self) -> bool:
        """Several optimizees may run as one: nothing depends on the problem or on tensors."""
        own = any(name not in self.rule.constants for name in self.weights)
        return not (self._kinds or self.sees_tensors or own)

    @property
    def weights_batchable(self) -> bool:
        """``batched`` is there: with constants by the kind of a tensor it is not."""
        return not self._kinds

    @property
    def _by_place(self) -> bool:
        """Whether the kind of its tensor is an input of every coordinate."""
        return self._kinds and not self.sees_tensors

    @functools.cached_property
    def reach(self) -> dict[bool, tuple[frozenset[str], tuple[frozenset[str], ...]]]:
        """For tensors with and without a matrix view: the weights that move the output, and each slot."""
        decay, found = {self._decay} - {""}, {}
        for has_matrix, program in self.programs.items():
            (out,), slots = program.reach(self.rule.constants)
            found[has_matrix] = (out | decay, slots)
        return found

    def part(self, views: tuple[View, ...]) -> Self:
        """The same network, with the same weights, of tensors of these views alone."""
        found = copy.copy(self)
        found.views = views
        return found

    def bind(self, task: Task) -> None:
        """Take the factor of the task's problem, where there is one, and what it has to know of tensors.

        Raises:
            L2OError: the rule sees tensors, and the task does not say how.
        """
        instance = getattr(task, "instance", None)
        self._problem = "" if instance is None else instance.problem.name
        if self.sees_tensors:
            self.views = views_of(task, f"rule {self.rule.name!r}")
        elif self._kinds:
            self._place = np.repeat(
                [kind_of(shape) for shape in task.shapes], list(map(math.prod, task.shapes))
            )

    @property
    def weight_decay(self) -> float:
        """Decoupled weight decay, 0.0 for a rule without."""
        return float(self.weights[self._decay]) if self._decay else 0.0

    def constants_of(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The numbers of the rule that weights, one number each, stand for."""
        return {
            name: weights[name] if form == "plain" else from_free(weights[name], form)
            for name, form in self.forms.items()
        }

    def tuned(self, weights: Mapping[str, np.ndarray], kind: int = 0) -> Rule:
        """The rule with the constants these weights stand for; its scale takes the factors' geometric mean.

        Args:
            kind: number in ``KINDS`` of the tensors the constants are for.
        """
        numbers = {n: float(np.asarray(w)[kind] if np.ndim(w) else w) for n, w in weights.items()}
        starts = {n: v[0] if isinstance(v, list) else v for n, v in self.starts.items()}
        moved = {n: v for n, v in numbers.items() if n in self.rule.constants and v != starts[n]}
        moved = {n: from_free(v, self.forms[n]) for n, v in moved.items()}
        edge = 1e-9  # a logit far out rounds to a decay of 0 or 1
        for name in moved.keys() & set(self.rule.decay_constants):
            moved[name] = min(max(moved[name], edge), 1.0 - edge)
        factors = [v for n, v in numbers.items() if n not in self.rule.constants]
        scale = self.rule.scale * math.exp(math.fsum(factors) / max(1, len(factors)))
        return dataclasses.replace(self.rule.with_constants(moved), scale=scale)


def kind_of(shape: Sequence[int]) -> int:
    """The number in ``KINDS`` of a tensor."""
    return {2: 0, 4: 1}.get(len(shape), 2)


def _factor(problem: str) -> str:
    """The name of a problem's weight; no constant can have it."""
    return f"factor/{problem}"
