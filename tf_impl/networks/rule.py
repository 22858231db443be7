"""Rules as TensorFlow code: one pure step, and a network with trainable constants."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from interchange.language import expression as ex
from interchange.language.compiler import compile_program
from interchange.language.view import View
from interchange.meta.carried import Move, Tangents, flat, grouped
from interchange.meta.rule_weights import RuleWeights
from interchange.protocols import State
from interchange.rule.forms import slope
from interchange.rule.rule import Rule
from tf_impl.networks.compiled import Compiled
from tf_impl.networks.features import FeatureStream
from tf_impl.networks.lowering import Lowered, LoweredBatched
from tf_impl.networks.operators import as_tensor
from tf_impl.networks.per_tensor import PerTensor
from tf_impl.tensors import Weights, to_tensor

# Of a weight the constant (``interchange.rule.forms``).
_FORMS = {"plain": lambda w: w, "logit": tf.sigmoid, "log": tf.exp}


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
        self, rule: Rule, device: str = "cpu", problems: Sequence[str] = (), kinds: bool = False
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
        with tf.device(device):
            self.weights: Weights = {
                name: tf.Variable(value, dtype=tf.float64) for name, value in self.starts.items()
            }
        self._graphs: dict[tuple[Any, ...], Callable[..., Any]] = {}  # by views, and what they make

    def batched(self, weights: Sequence[Mapping[str, np.ndarray]]) -> "BatchedRules":
        """The rule in lanes of optimizees of the problem it is bound to, with the given weights of each."""
        return BatchedRules(self, weights, self.factor_name, bool(self._decay))

    def rows(self, theta: tf.Tensor) -> list[tf.Tensor]:
        """Inputs [1, N] beside the features: theta for weight decay, the number of the kind for ``kinds``."""
        rows = [theta] if self.weight_decay else []
        if self._by_place:
            rows.append(tf.cast(self._place, theta.dtype))
        return [row[None] for row in rows]

    def initial_state(self, theta: tf.Tensor) -> State:
        """Zero state for a flat vector [N], of the tensors it is bound to if it sees them."""
        if self.sees_tensors:
            network = self._lowered.initial_state(theta, self.views)
        else:
            network = self._lowered.initial_state(theta)
        return State(0, self.features.initial_state(theta), network)

    def inputs(self, g: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        """Features [F, N] of gradient [N], and the state after their step."""
        x, features = self.features.step(g, state.features, state.t + 1)
        return x, State(state.t + 1, features, state.network)

    def step(
        self, weights: Weights, x: tf.Tensor, network: tuple[tf.Tensor, ...], t: int
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Output [N] before ``scale``, and the new state, for features x [F, N] at step ``t``.

        After the features x has ``rows``.
        """
        # Tensors, because a graph would be traced anew for every number and would read a variable itself.
        weights = {name: tf.convert_to_tensor(w) for name, w in weights.items()}
        if self.views not in self._graphs:  # what a graph reads of the network itself it never reads again
            self._graphs[self.views] = tf.function(functools.partial(self._one_step, self.views))
        state = tuple(map(tf.convert_to_tensor, network))
        return self._graphs[self.views](weights, x, state, tf.cast(t, tf.float64))

    def carry(
        self,
        moves: Sequence[Move],
        x: tf.Tensor,
        network: tuple[tf.Tensor, ...],
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
            arrays = self._compiled[x.shape[0]].tangents(
                x, network, flat(tangents), values, seeds, t, keep, rate
            )
            if arrays is not None:
                return grouped(moves, arrays)
        found: Tangents = []
        weights = {name: tf.convert_to_tensor(w) for name, w in self.weights.items()}
        network, step = tuple(map(tf.convert_to_tensor, network)), tf.constant(t, tf.float64)
        for move, (by_theta, by_slots) in zip(moves, tangents, strict=True):
            by_slots = tuple(map(tf.convert_to_tensor, by_slots))
            key = (self.views, move)
            if key not in self._graphs:  # shapes may differ, of the last piece and of chosen coordinates
                self._graphs[key] = tf.function(functools.partial(self._along, move), reduce_retracing=True)
            by_out, by_slots = self._graphs[key](weights, x, network, by_slots, step)
            found.append((keep * by_theta + rate * by_out, by_slots))
        return found

    def _along(
        self,
        move: Move,
        weights: Weights,
        x: tf.Tensor,
        network: tuple[tf.Tensor, ...],
        by_slots: tuple[tf.Tensor, ...],
        t: tf.Tensor,
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Derivatives by one weight of a step's output and of the arrays of state it moves.

        Args:
            by_slots: derivatives of those before the step.
        """
        value = weights[move.weight]
        given = [value, *(network[slot] for slot in move.slots)]
        with tf.autodiff.ForwardAccumulator(given, [tf.ones_like(value), *by_slots]) as carried:
            out, after = self.step(weights, x, network, t)
        ends = (out, *(after[slot] for slot in move.slots))
        by_out, *by_after = (carried.jvp(a, unconnected_gradients="zero") for a in ends)
        return by_out, tuple(by_after)

    def roll(
        self, x: tf.Tensor, network: tuple[tf.Tensor, ...], t: int, *, reuse: bool = False
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """``step`` with the rule's own constants, not recorded."""
        del reuse  # a rule's state is small
        if self._kinds or self.sees_tensors:
            return self.step(self.weights, x, network, t)
        found = self._compiled[x.shape[0]].roll(x, network, self.constants(self.weights), t)
        if found is None:
            return self.step(self.weights, x, network, t)
        return tf.convert_to_tensor(found[0][0]), found[1]

    def vjp(self, state: State, inputs: tf.Tensor, c: tf.Tensor) -> dict[str, tf.Tensor] | None:
        """sum_t <c_t, d out_t / d weights> by compiled code, None where there is none.

        Args:
            inputs: [T, F, N]; c: [T, N].
        """
        if self._kinds or self.sees_tensors:
            return None
        values = self.constants(self.weights)
        found = self._compiled[inputs.shape[1]].vjp(inputs, c, state.network, values, state.t)
        if found is None:
            return None
        slopes = {n: d * slope(values[n], self.forms[n]) for n, d in found.items()}
        return {n: tf.constant(slopes.get(n, 0.0), w.dtype) for n, w in self.weights.items()}

    def constants(self, weights: Mapping[str, Any], lane: int = 0) -> dict[str, float]:
        """The numbers of the rule that weights stand for, those of one lane where they are [lane, ...]."""
        return self.constants_of({n: float(np.reshape(weights[n], -1)[lane]) for n in self.rule.constants})

    def _one_step(
        self,
        views: tuple[View, ...],
        weights: Weights,
        x: tf.Tensor,
        network: tuple[tf.Tensor, ...],
        t: tf.Tensor,
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        names, rows = self.features.names, tf.unstack(x)
        values, theta = self._values(weights), rows[len(names) : len(rows) - self._by_place]
        if self._by_place:
            place = tf.cast(rows[-1], tf.int32)
            values = {
                n: tf.cast(tf.gather(w, place), x.dtype) if w.shape.rank else w for n, w in values.items()
            }
        arrays = dict(zip(names, rows[: len(names)], strict=True))
        if self.sees_tensors:
            arrays.setdefault("g", tf.zeros(x.shape[1:], x.dtype))  # whose shape tensor operators look at
            out, network = self._lowered.step(arrays, values, network, t, views)
        else:
            (out,), network = self._lowered.step(arrays | values, network, t)
            out = tf.broadcast_to(tf.cast(as_tensor(out), x.dtype), tf.shape(x)[1:])
        if theta:
            out -= tf.cast(weights[self._decay], x.dtype) * theta[0]
        return out, network

    def roll_batched(
        self,
        x: tf.Tensor,
        network: tuple[tf.Tensor, ...],
        constants: Sequence[Mapping[str, float]],
        t: int,
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]] | None:
        """Outputs [1, N] and new state with constants of every lane; None without compiled code."""
        if self.sees_tensors:
            return None
        return self._compiled[x.shape[0]].roll_batched(x, network, constants, t)

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
        self._factor = tf.exp(self._weights[factor]) if factor else None
        self._count = len(weights)
        self._constants = [alone.constants(self._weights, lane) for lane in range(len(weights))]

    def rows(self, theta: tf.Tensor) -> list[tf.Tensor]:
        """Inputs [1, N] beside the features: theta for weight decay."""
        return [theta[None]] if self._decays else []

    def roll(
        self, x: tf.Tensor, network: tuple[tf.Tensor, ...], t: int, *, reuse: bool = False
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Output [N] before ``scale`` and the new state, arrays [lane, n], for inputs [F, N]."""
        del reuse  # a rule's state is small
        if found := self._alone.roll_batched(x, network, self._constants, t):
            out, network = tf.reshape(tf.convert_to_tensor(found[0]), [self._count, -1]), found[1]
        else:
            shaped = tf.reshape(x, [x.shape[0], self._count, x.shape[1] // self._count])
            out, network = self._alone.step(self._weights, shaped, network, t)
        if self._factor is not None:
            out = out * tf.cast(self._factor, out.dtype)
        return tf.reshape(out, [-1]), network
