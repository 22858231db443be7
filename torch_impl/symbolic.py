"""Rules as torch code: one pure step, and a network with trainable constants."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from common.errors import L2OError
from interchange.compiler import compile_program
from interchange.decay import split
from interchange.rule import Rule
from torch_impl.features import FeatureStream
from torch_impl.lowering import Lowered
from torch_impl.tensors import State, Weights


def lower(rule: Rule) -> Lowered:
    """The whole rule over the raw gradient ``g``, features inlined; its output is before ``scale``."""
    return Lowered(compile_program([rule.inlined()]))


class RuleNetwork:
    """A rule with its constants as trainable weights, in the shape meta-training asks for.

    The features are outside the meta-gradient, as a teacher's are (first order). A decay b is held as
    its logit, so that it stays in (0, 1); every weight is a 0-dim float64 tensor.

    Args:
        problems: each gets a weight more, the logarithm of a factor on the update there (``settle``): what a
            comparison tunes anyway, so that rules are judged at the best of it.

    Raises:
        L2OError: a feature has no definition over ``g``, or the rule reads ``theta`` but for weight decay.
    """

    def __init__(self, rule: Rule, device: torch.device | str = "cpu", problems: Sequence[str] = ()) -> None:
        tree, self._decay = split(rule)
        body = compile_program([tree])
        read = [name for name in body.inputs if name not in rule.constants and name != "t"]
        missing = [name for name in read if name != "g" and rule.features.get(name) is None]
        if missing:
            raise L2OError(
                f"rule {rule.name!r}: feature {missing[0]!r} has no definition over g; add it to 'features'"
            )
        self.rule, self._problem = rule, ""
        self.features = FeatureStream({name: rule.features.get(name) or "g" for name in read})
        self._body = Lowered(body)
        self._decays = frozenset(rule.decay_constants)
        self.weights: Weights = {
            name: torch.tensor(
                math.log(value / (1.0 - value)) if name in self._decays else value,
                dtype=torch.float64,
                device=device,
            )
            for name, value in (rule.constants | dict.fromkeys(map(_factor, problems), 0.0)).items()
        }
        # Adam's steps have the size of the learning rate; so they are relative to each constant's own.
        self.rates = {
            name: 1.0 if name in self._decays else max(abs(value), 1e-3)
            for name, value in rule.constants.items()
        } | dict.fromkeys(map(_factor, problems), 1.0)
        self._initial = {name: float(w) for name, w in self.weights.items()}

    @property
    def scale(self) -> float:
        """The rule's, times the factor of the problem it is settled on."""
        factor = self.weights.get(_factor(self._problem))
        return self.rule.scale * (1.0 if factor is None else math.exp(float(factor)))

    def settle(self, task: Any) -> None:
        """Take the factor of the task's problem, where there is one."""
        instance = getattr(task, "instance", None)
        self._problem = "" if instance is None else instance.problem.name

    @property
    def shrink(self) -> float:
        """Decoupled weight decay, 0.0 for a rule without."""
        return float(self.weights[self._decay]) if self._decay else 0.0

    def initial_state(self, theta: torch.Tensor) -> State:
        """Zero state for a flat vector [N]."""
        return State(0, self.features.initial_state(theta), self._body.initial_state(theta))

    def inputs(self, g: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Features [F, N] of gradient [N], and the state after their step."""
        x, features = self.features.step(g, state.features, state.t + 1)
        return x, State(state.t + 1, features, state.network)

    def step(
        self, weights: Weights, x: torch.Tensor, network: tuple[torch.Tensor, ...], t: int
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Output [N] before ``scale``, and the new state, for features x [F, N] at step ``t``.

        After the features x may have a row of theta, for weight decay.
        """
        names = self.features.names
        inputs = dict(zip(names, x[: len(names)], strict=True)) | self._values(weights)
        (out,), network = self._body.step(inputs, network, t)
        out = torch.as_tensor(out, dtype=x.dtype, device=x.device).expand(x.shape[1:])
        return (out - weights[self._decay] * x[-1] if len(x) > len(names) else out), network

    def _values(self, weights: Weights) -> Weights:
        return {n: torch.sigmoid(w) if n in self._decays else w for n, w in weights.items()}

    def tuned(self, weights: Mapping[str, np.ndarray]) -> Rule:
        """The rule with the constants these weights stand for; its scale takes the factors' geometric mean."""
        moved = {
            n: torch.as_tensor(w, dtype=torch.float64)
            for n, w in weights.items()
            if n in self.rule.constants and w != self._initial[n]
        }
        values = {name: float(value) for name, value in self._values(moved).items()}
        edge = 1e-9  # a logit far out rounds to a decay of 0 or 1
        inside = {n: min(max(values[n], edge), 1.0 - edge) for n in values if n in self._decays}
        factors = [float(w) for n, w in weights.items() if n not in self.rule.constants]
        scale = self.rule.scale * math.exp(math.fsum(factors) / max(1, len(factors)))
        return dataclasses.replace(self.rule.with_constants(values | inside), scale=scale)


def _factor(problem: str) -> str:
    """The name of a problem's weight; no constant can have it."""
    return f"factor/{problem}"
