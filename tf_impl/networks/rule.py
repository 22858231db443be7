"""Rules as TensorFlow code: one pure step, and a network with trainable constants."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.errors import L2OError
from interchange.language import expression as ex
from interchange.language.compiler import compile_program
from interchange.rule.decay import split
from interchange.rule.rule import Rule
from tf_impl.networks.compiled import Compiled
from tf_impl.networks.features import FeatureStream
from tf_impl.networks.lowering import Lanewise, Lowered
from tf_impl.networks.operators import as_tensor
from tf_impl.tensors import State, Weights, to_tensor

KINDS = ("matrix", "kernel", "vector")  # of dense layers, of convolutions, all other tensors


def lower(rule: Rule) -> Lowered:
    """The whole rule over the raw gradient ``g``, features inlined; its output is before ``scale``."""
    return Lowered(compile_program([rule.inlined()]))


class RuleNetwork:
    """A rule with its constants as trainable weights, in the shape meta-training asks for.

    The features are outside the meta-gradient, as a teacher's are (first order). A decay b is held as
    its logit, so that it stays in (0, 1); every weight is a float64 variable, 0-dim but for ``kinds``.

    Args:
        problems: each gets a weight more, the logarithm of a factor on the update there (``settle``): what a
            comparison tunes anyway, so that rules are judged at the best of it.
        kinds: constants, but for decays and weight decay, are one for each of ``KINDS``, [3].

    Raises:
        L2OError: a feature has no definition over ``g``, or the rule reads ``theta`` but for weight decay.
    """

    def __init__(
        self, rule: Rule, device: str = "cpu", problems: Sequence[str] = (), kinds: bool = False
    ) -> None:
        tree, self._decay = split(rule)
        body = compile_program([tree])
        read = [name for name in body.inputs if name not in rule.constants and name != "t"]
        missing = [name for name in read if name != "g" and rule.features.get(name) is None]
        if missing:
            raise L2OError(
                f"rule {rule.name!r}: feature {missing[0]!r} has no definition over g; add it to 'features'"
            )
        self.rule, self._problem, self._kinds = rule, "", kinds
        self._place: Any = None
        self.features = FeatureStream({name: rule.features.get(name) or "g" for name in read})
        self._body = Lanewise(body)
        # By the number of rows: theta is the last where there is weight decay.
        self._compiled = {len(read): Compiled(body, read)}
        if self._decay:
            shrunk = ex.call("sub", tree, ex.call("mul", ex.name(self._decay), ex.name("theta")))
            self._compiled[len(read) + 1] = Compiled(compile_program([shrunk]), [*read, "theta"])
        self._decays = frozenset(rule.decay_constants)
        with tf.device(device):
            self.weights: Weights = {
                name: tf.Variable(self._start(name, value), dtype=tf.float64)
                for name, value in (rule.constants | dict.fromkeys(map(_factor, problems), 0.0)).items()
            }
        # Adam's steps have the size of the learning rate; so they are relative to each constant's own.
        self.rates = {
            name: 1.0 if name in self._decays else max(abs(value), 1e-3)
            for name, value in rule.constants.items()
        } | dict.fromkeys(map(_factor, problems), 1.0)
        self._initial = {name: float(tf.reshape(w, [-1])[0]) for name, w in self.weights.items()}
        self._step = tf.function(self._one_step)

    def _start(self, name: str, value: float) -> Any:
        if name in self._decays:
            return math.log(value / (1.0 - value))
        return (
            [value] * len(KINDS)
            if self._kinds and name in self.rule.constants and name != self._decay
            else value
        )

    @property
    def scale(self) -> float:
        """The rule's, times the factor of the problem it is settled on."""
        factor = self.weights.get(_factor(self._problem))
        return self.rule.scale * (1.0 if factor is None else math.exp(float(factor)))

    @property
    def together(self) -> bool:
        """Several optimizees may run as one: nothing depends on the problem or the kind of a tensor."""
        return not self._kinds and not any(name not in self.rule.constants for name in self.weights)

    @property
    def lanewise(self) -> bool:
        """``abreast`` is there: with constants by the kind of a tensor it is not."""
        return not self._kinds

    def abreast(self, weights: Sequence[Mapping[str, np.ndarray]]) -> "RulesAbreast":
        """The rule in lanes of optimizees of the problem it is settled on, with the given weights of each."""
        factor = _factor(self._problem)
        return RulesAbreast(self, weights, factor if factor in self.weights else "", bool(self._decay))

    def settle(self, task: Any) -> None:
        """Take the factor of the task's problem, where there is one, and the kinds of its tensors."""
        instance = getattr(task, "instance", None)
        self._problem = "" if instance is None else instance.problem.name
        if self._kinds:
            self._place = kinds_of(task.shapes)

    @property
    def shrink(self) -> float:
        """Decoupled weight decay, 0.0 for a rule without."""
        return float(self.weights[self._decay]) if self._decay else 0.0

    def rows(self, theta: tf.Tensor) -> list[tf.Tensor]:
        """Inputs [1, N] beside the features: theta for weight decay, the number of the kind for ``kinds``."""
        place = [tf.cast(self._place, theta.dtype)] if self._kinds else []
        return [row[None] for row in ([theta] if self.shrink else []) + place]

    def initial_state(self, theta: tf.Tensor) -> State:
        """Zero state for a flat vector [N]."""
        return State(0, self.features.initial_state(theta), self._body.initial_state(theta))

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
        return self._step(weights, x, tuple(map(tf.convert_to_tensor, network)), tf.cast(t, tf.float64))

    def roll(
        self, x: tf.Tensor, network: tuple[tf.Tensor, ...], t: int, *, reuse: bool = False
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """``step`` with the rule's own constants, not recorded."""
        del reuse  # a rule's state is small
        if self._kinds:
            return self.step(self.weights, x, network, t)
        found = self._compiled[x.shape[0]].roll(x, network, self.constants(self.weights), t)
        if found is None:
            return self.step(self.weights, x, network, t)
        return tf.convert_to_tensor(found[0][0]), found[1]

    def pull(self, state: State, inputs: tf.Tensor, c: tf.Tensor) -> dict[str, tf.Tensor] | None:
        """sum_t <c_t, d out_t / d weights> by compiled code, None where there is none.

        Args:
            inputs: [T, F, N]; c: [T, N].
        """
        if self._kinds:
            return None
        values = self.constants(self.weights)
        found = self._compiled[inputs.shape[1]].pull(inputs, c, state.network, values, state.t)
        if found is None:
            return None
        # A decay b is held as its logit, of which it moves by b (1 - b).
        slopes = {n: d * values[n] * (1.0 - values[n]) if n in self._decays else d for n, d in found.items()}
        return {n: tf.constant(slopes.get(n, 0.0), w.dtype) for n, w in self.weights.items()}

    def constants(self, weights: Mapping[str, Any], lane: int = 0) -> dict[str, float]:
        """The numbers of the rule that weights stand for, those of one lane where they are [lane, ...]."""
        values = {n: float(np.reshape(weights[n], -1)[lane]) for n in self.rule.constants}
        return {n: 1.0 / (1.0 + math.exp(-v)) if n in self._decays else v for n, v in values.items()}

    def _one_step(
        self, weights: Weights, x: tf.Tensor, network: tuple[tf.Tensor, ...], t: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        names, rows = self.features.names, tf.unstack(x)
        values, theta = self._values(weights), rows[len(names) : len(rows) - self._kinds]
        if self._kinds:
            place = tf.cast(rows[-1], tf.int32)
            values = {
                n: tf.cast(tf.gather(w, place), x.dtype) if w.shape.rank else w for n, w in values.items()
            }
        inputs = dict(zip(names, rows[: len(names)], strict=True)) | values
        (out,), network = self._body.step(inputs, network, t)
        out = tf.broadcast_to(tf.cast(as_tensor(out), x.dtype), tf.shape(x)[1:])
        if theta:
            out -= tf.cast(weights[self._decay], x.dtype) * theta[0]
        return out, network

    def roll_lanes(
        self,
        x: tf.Tensor,
        network: tuple[tf.Tensor, ...],
        constants: Sequence[Mapping[str, float]],
        t: int,
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]] | None:
        """Outputs [1, N] and new state with constants of every lane; None without compiled code."""
        return self._compiled[x.shape[0]].roll_lanes(x, network, constants, t)

    def _values(self, weights: Weights) -> Weights:
        return {n: tf.sigmoid(w) if n in self._decays else w for n, w in weights.items()}

    def tuned(self, weights: Mapping[str, np.ndarray], kind: int = 0) -> Rule:
        """The rule with the constants these weights stand for; its scale takes the factors' geometric mean.

        Args:
            kind: number in ``KINDS`` of the tensors the constants are for.
        """
        weights = {n: np.asarray(w)[kind] if np.ndim(w) else w for n, w in weights.items()}
        moved = {
            n: tf.convert_to_tensor(w, tf.float64)
            for n, w in weights.items()
            if n in self.rule.constants and w != self._initial[n]
        }
        values = {name: float(value) for name, value in self._values(moved).items()}
        edge = 1e-9  # a logit far out rounds to a decay of 0 or 1
        inside = {n: min(max(values[n], edge), 1.0 - edge) for n in values if n in self._decays}
        factors = [float(w) for n, w in weights.items() if n not in self.rule.constants]
        scale = self.rule.scale * math.exp(math.fsum(factors) / max(1, len(factors)))
        return dataclasses.replace(self.rule.with_constants(values | inside), scale=scale)


class RulesAbreast:
    """A rule with constants of its own in every lane of optimizees of one problem.

    Args:
        weights: of every lane.
        factor: the weight that is the logarithm of a factor on the update, "" without.
        decays: theta is an input, for weight decay.
    """

    def __init__(
        self, alone: RuleNetwork, weights: Sequence[Mapping[str, np.ndarray]], factor: str, decays: bool
    ) -> None:
        self._alone, self._decays, self.scale = alone, decays, alone.rule.scale
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
        if found := self._alone.roll_lanes(x, network, self._constants, t):
            out, network = tf.reshape(tf.convert_to_tensor(found[0]), [self._count, -1]), found[1]
        else:
            shaped = tf.reshape(x, [x.shape[0], self._count, x.shape[1] // self._count])
            out, network = self._alone.step(self._weights, shaped, network, t)
        if self._factor is not None:
            out = out * tf.cast(self._factor, out.dtype)
        return tf.reshape(out, [-1]), network


def kinds_of(shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """For every coordinate of the flat vector the number in ``KINDS`` of its tensor, [N]."""
    numbers = [{2: 0, 4: 1}.get(len(shape), 2) for shape in shapes]
    return np.repeat(numbers, [int(np.prod(shape)) for shape in shapes])


def _factor(problem: str) -> str:
    """The name of a problem's weight; no constant can have it."""
    return f"factor/{problem}"
