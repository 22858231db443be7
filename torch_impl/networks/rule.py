"""Rules as torch code: one pure step, and a network with trainable constants."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from interchange.language import expression as ex
from interchange.language.compiler import compile_program
from interchange.meta.carried import Move, Tangents, flat, grouped
from interchange.meta.rule_weights import RuleWeights
from interchange.protocols import State
from interchange.rule.forms import slope
from interchange.rule.rule import Rule
from torch_impl.networks.compiled import Compiled
from torch_impl.networks.features import FeatureStream
from torch_impl.networks.lowering import Lowered, LoweredBatched
from torch_impl.networks.per_tensor import PerTensor
from torch_impl.tensors import Weights, to_tensor

# Of a weight the constant (``interchange.rule.forms``).
_FORMS = {"plain": lambda w: w, "logit": torch.sigmoid, "log": torch.exp}


def lower(rule: Rule) -> Lowered:
    """The whole rule over the raw gradient ``g``, features inlined; its output is before ``scale``."""
    return Lowered(compile_program([rule.inlined()]))


class RuleNetwork(RuleWeights):
    """A rule with its constants as trainable weights, in the shape meta-training asks for.

    The features are outside the meta-gradient, as a teacher's are (first order).

    Args:
        problems, kinds: as for ``RuleWeights``.

    Raises:
        L2OError: a feature has no definition over ``g``, or the rule reads ``theta`` but for weight decay.
    """

    def __init__(
        self,
        rule: Rule,
        device: torch.device | str = "cpu",
        problems: Sequence[str] = (),
        kinds: bool = False,
    ) -> None:
        super().__init__(rule, problems, kinds)
        body, read = self.programs[True], self.read
        self.features = FeatureStream(self.feature_trees(read))
        self._lowered = PerTensor(self.programs) if self.sees_tensors else LoweredBatched(body)
        # By the number of rows: theta is the last where there is weight decay.
        self._compiled = {} if self.sees_tensors else {len(read): Compiled(body, read)}
        if self._decay and not self.sees_tensors:
            shrunk = ex.call("sub", self.tree, ex.call("mul", ex.name(self._decay), ex.name("theta")))
            self._compiled[len(read) + 1] = Compiled(compile_program([shrunk]), [*read, "theta"])
        self.weights: Weights = {
            name: torch.tensor(value, dtype=torch.float64, device=device)
            for name, value in self.starts.items()
        }

    def batched(self, weights: Sequence[Mapping[str, np.ndarray]]) -> "BatchedRules":
        """The rule in lanes of optimizees of the problem it is bound to, with the given weights of each."""
        return BatchedRules(self, weights, self.factor_name, bool(self._decay))

    def rows(self, theta: torch.Tensor) -> list[torch.Tensor]:
        """Inputs [1, N] beside the features: theta for weight decay, the number of the kind for ``kinds``."""
        rows = [theta] if self.weight_decay else []
        if self._by_place:
            rows.append(torch.as_tensor(self._place, dtype=theta.dtype, device=theta.device))
        return [row[None] for row in rows]

    def initial_state(self, theta: torch.Tensor) -> State:
        """Zero state for a flat vector [N], of the tensors it is bound to if it sees them."""
        if self.sees_tensors:
            network = self._lowered.initial_state(theta, self.views)
        else:
            network = self._lowered.initial_state(theta)
        return State(0, self.features.initial_state(theta), network)

    def inputs(self, g: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Features [F, N] of gradient [N], and the state after their step."""
        x, features = self.features.step(g, state.features, state.t + 1)
        return x, State(state.t + 1, features, state.network)

    def step(
        self, weights: Weights, x: torch.Tensor, network: tuple[torch.Tensor, ...], t: int
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Output [N] before ``scale``, and the new state, for features x [F, N] at step ``t``.

        After the features x has ``rows``.
        """
        names = self.features.names
        values, theta = self._values(weights), x[len(names) : len(x) - self._by_place]
        if self._by_place:
            place = x[-1].long()
            values = {n: w[place].to(x.dtype) if w.dim() else w for n, w in values.items()}
        arrays = dict(zip(names, x[: len(names)], strict=True))
        if self.sees_tensors:
            arrays.setdefault("g", x.new_empty(x.shape[1:]))  # whose shape tensor operators look at
            out, network = self._lowered.step(arrays, values, network, t, self.views)
        else:
            (out,), network = self._lowered.step(arrays | values, network, t)
            out = torch.as_tensor(out, dtype=x.dtype, device=x.device).expand(x.shape[1:])
        return (out - weights[self._decay].to(x.dtype) * theta[0] if len(theta) else out), network

    def carry(
        self,
        moves: Sequence[Move],
        x: torch.Tensor,
        network: tuple[torch.Tensor, ...],
        tangents: Tangents,
        t: int,
        keep: float,
        rate: float,
    ) -> Tangents:
        """The tangents after a step, keep * E + rate * d out of theta; those before may be overwritten.

        Args:
            x, network: the step's inputs [F, N] and the state before it.
        """
        if not (self._kinds or self.sees_tensors):
            values = self.constants(self.weights)
            seeds = {move.weight: slope(values[move.weight], self.forms[move.weight]) for move in moves}
            compiled = self._compiled[len(x)]
            arrays = compiled.tangents(x, network, flat(tangents), values, seeds, t, keep, rate)
            if arrays is not None:
                return grouped(moves, arrays)
        found: Tangents = []
        for move, (by_theta, by_slots) in zip(moves, tangents, strict=True):
            by_out, by_slots = self._along(move, x, network, by_slots, t)
            found.append((by_theta.mul_(keep).add_(by_out, alpha=rate), by_slots))
        return found

    def _along(
        self,
        move: Move,
        x: torch.Tensor,
        network: tuple[torch.Tensor, ...],
        by_slots: tuple[torch.Tensor, ...],
        t: int,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Derivatives by one weight of a step's output and of the arrays of state it moves.

        Args:
            by_slots: derivatives of those before the step.
        """

        def step(
            value: torch.Tensor, moved: tuple[torch.Tensor, ...]
        ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            state = list(network)
            for slot, a in zip(move.slots, moved, strict=True):
                state[slot] = a
            out, after = self.step(self.weights | {move.weight: value}, x, tuple(state), t)
            return out, tuple(after[slot] for slot in move.slots)

        value = self.weights[move.weight]
        given = value, tuple(network[slot] for slot in move.slots)
        return torch.func.jvp(step, given, (torch.ones_like(value), by_slots))[1]

    def roll(
        self, x: torch.Tensor, network: tuple[torch.Tensor, ...], t: int, *, reuse: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """``step`` with the rule's own constants, not recorded."""
        del reuse  # a rule's state is small
        with torch.no_grad():
            if self._kinds or self.sees_tensors:
                return self.step(self.weights, x, network, t)
            found = self._compiled[len(x)].roll(x, network, self.constants(self.weights), t)
            return (found[0][0], found[1]) if found else self.step(self.weights, x, network, t)

    def vjp(self, state: State, inputs: torch.Tensor, c: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """sum_t <c_t, d out_t / d weights> by compiled code, None where there is none.

        Args:
            inputs: [T, F, N]; c: [T, N].
        """
        if self._kinds or self.sees_tensors:
            return None
        values = self.constants(self.weights)
        with torch.no_grad():
            found = self._compiled[inputs.shape[1]].vjp(inputs, c, state.network, values, state.t)
        if found is None:
            return None
        slopes = {n: d * slope(values[n], self.forms[n]) for n, d in found.items()}
        return {n: torch.full_like(w, slopes.get(n, 0.0)) for n, w in self.weights.items()}

    def constants(self, weights: Mapping[str, Any], lane: int = 0) -> dict[str, float]:
        """The numbers of the rule that weights stand for, those of one lane where they are [lane, ...]."""
        return self.constants_of({n: float(weights[n].reshape(-1)[lane]) for n in self.rule.constants})

    def roll_batched(
        self,
        x: torch.Tensor,
        network: tuple[torch.Tensor, ...],
        constants: Sequence[Mapping[str, float]],
        t: int,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]] | None:
        """Outputs [1, N] and new state with constants of every lane; None without compiled code."""
        return None if self.sees_tensors else self._compiled[len(x)].roll_batched(x, network, constants, t)

    def _values(self, weights: Weights) -> Weights:
        return {n: _FORMS[self.forms.get(n, "plain")](w) for n, w in weights.items()}


class BatchedRules:
    """A rule with constants of its own in every lane of optimizees of one problem.

    Args:
        weights: of every lane.
        factor: the weight that is the logarithm of a factor on the update, "" without.
        decays: theta is an input, for weight decay.
    """

    def __init__(
        self, alone: RuleNetwork, weights: Sequence[Mapping[str, np.ndarray]], factor: str, decays: bool
    ) -> None:
        self._alone, self._decays = alone, decays
        self.scale, self.structure = alone.rule.scale, alone.structure
        self.inputs = alone.inputs
        self._weights = {
            name: to_tensor(np.stack([lane[name] for lane in weights]), w.dtype, w.device)[:, None]
            for name, w in alone.weights.items()
        }
        self._factor = self._weights[factor].exp() if factor else None
        self._count = len(weights)
        self._constants = [alone.constants(self._weights, lane) for lane in range(len(weights))]

    def rows(self, theta: torch.Tensor) -> list[torch.Tensor]:
        """Inputs [1, N] beside the features: theta for weight decay."""
        return [theta[None]] if self._decays else []

    def roll(
        self, x: torch.Tensor, network: tuple[torch.Tensor, ...], t: int, *, reuse: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Output [N] before ``scale`` and the new state, arrays [lane, n], for inputs [F, N]."""
        del reuse  # a rule's state is small
        if found := self._alone.roll_batched(x, network, self._constants, t):
            out, network = found[0].view(self._count, -1), found[1]
        else:
            out, network = self._alone.step(self._weights, x.unflatten(-1, (self._count, -1)), network, t)
        if self._factor is not None:
            out = out * self._factor.to(out.dtype)
        return out.flatten(), network
