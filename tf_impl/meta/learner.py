"""The TensorFlow side of meta-training: unrolls, Adam, copies; the loop is ``interchange.meta.trainer``."""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.data.coordinates import Subset
from common.metrics import loss_at
from common.tables.teachers import TeacherRow
from interchange.backend import Arrays, Half
from interchange.meta.carried import Carried
from interchange.meta.config import MetaLoop
from interchange.meta.tasks import factors
from interchange.protocols import State, Task
from interchange.rule.rule import Rule
from interchange.rule.step_sizes import Sized
from tf_impl.meta import forward, imitation, unroll
from tf_impl.networks.rule import RuleNetwork
from tf_impl.networks.step_sizes import StepSizes
from tf_impl.networks.structure import by_outputs
from tf_impl.networks.teacher import TeacherNetwork
from tf_impl.problems.augment import ConvexTerm, RandomScaling
from tf_impl.problems.batched import BatchedTasks, divided, joined, kind
from tf_impl.problems.tasks import table_task
from tf_impl.tensors import DTYPES, device_of, on_host, to_numpy, to_tensor, view

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # of Adam, as torch.optim has them


class Learner:
    """A network, Adam on its weights, and the meta-gradients of unrolls (``interchange.backend.Learner``).

    Args:
        network: what is trained; ``network.weights`` are changed in place.
        config: ``TrainConfig`` or ``TuneConfig``.
    """

    table_task = staticmethod(table_task)
    random_scaling, convex_term = RandomScaling, ConvexTerm

    def __init__(self, network: unroll.Network, config: MetaLoop) -> None:
        self.network, self.config = network, config
        self.source = network.source
        self.dtype, self.device = DTYPES[config.dtype], device_of(config.device)
        self.first: dict[str, tf.Tensor] = {}
        self.second: dict[str, tf.Tensor] = {}
        self.count = 0

    @classmethod
    def from_source(cls, source: str | TeacherRow | Sized, config: MetaLoop) -> "Learner":
        """The learner of another one's ``source``, with any weights."""
        device = device_of(config.device)
        if isinstance(source, Sized):
            return cls(StepSizes(source, DTYPES[config.dtype], device), config)
        if isinstance(source, str):
            rule = Rule.from_json(source)
            return cls(RuleNetwork(rule, device, factors(config), config.kinds), config)
        zeros = {name: np.zeros(shape) for name, shape in source.weight_shapes().items()}
        kept = tf.bfloat16 if config.state_dtype else None
        return cls(TeacherNetwork(source, zeros, DTYPES[config.dtype], device, kept), config)

    @staticmethod
    def use_one_thread() -> None:
        """Leave the other cores to other processes, as far as the framework still can."""
        with contextlib.suppress(RuntimeError):  # a worker that has begun keeps its threads
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)

    def start(self, task: Task) -> unroll.Position | Carried:
        """The position of an optimizee at the start of an epoch."""
        if self.config.estimator == "forward":
            return forward.start(task, self.network)
        return unroll.start(task, self.network)

    def start_imitation(self, task: Task, expert: str, lr: float) -> imitation.Imitation:
        """The start of an epoch that imitates a rule of the gallery at a learning rate."""
        return imitation.start(task, self.network, expert, lr)

    def mean_loss_at(self, tasks: Iterable[Task], steps: int) -> float:
        """Mean over tasks of the loss at ``steps`` (MATH.md section 6); inf if a rollout diverges."""
        return float(np.mean([loss_at(self._rollout(task, steps)[:-1], steps) for task in tasks]))

    def _rollout(self, task: Task, steps: int) -> np.ndarray:
        """Losses [steps + 1] of a rollout."""
        rule = isinstance(self.network, RuleNetwork) and not any(map(np.ndim, self.network.starts.values()))
        return (forward if rule else unroll).rollout(task, self.network, steps)

    def kind(self, task: Task) -> Any:
        """What optimizees have in common that can run at once with weights of their own; None if alone."""
        return kind(task) if self.network.weights_batchable else None

    def run_halves(
        self, tasks: Sequence[Task], halves: Sequence[Half], steps: int, keep: bool
    ) -> list[tuple[Any, np.ndarray]]:
        """Rollouts with weights of their own, at once if there are several."""
        if len(halves) == 1:
            self.put(halves[0].weights)
        if len(halves) == 1 and not keep and halves[0].position is None:
            return [(None, self._rollout(tasks[0], steps))]
        self.network.bind(tasks[0])
        starts = [
            unroll.start(task, self.network) if half.position is None else half.position
            for task, half in zip(tasks, halves, strict=True)
        ]
        if len(halves) == 1:
            end, losses = unroll.segment(tasks[0], self.network, starts[0], steps)
            return [(end if keep else None, losses)]
        batch, several = BatchedTasks(tasks), self.network.batched([half.weights for half in halves])
        end, losses = unroll.segment(batch, several, joined(starts, apart=True), steps)
        ends = divided(end, batch.sizes, apart=True) if keep else [None] * len(halves)
        return list(zip(ends, losses.T, strict=True))

    def weights(self) -> Arrays:
        """A copy of the network's weights."""
        return {name: to_numpy(w) for name, w in self.network.weights.items()}

    def put(self, weights: Arrays) -> None:
        """Put weights into the network; Adam stays where it is."""
        for name, w in self.network.weights.items():
            w.assign(to_tensor(weights[name], w.dtype, w.device))

    def tensors(self, arrays: Arrays) -> dict[str, tf.Tensor]:
        """Arrays by weight name as tensors of the weights' dtypes."""
        weights = self.network.weights
        return {name: to_tensor(a, weights[name].dtype, weights[name].device) for name, a in arrays.items()}

    def first_order(
        self, task: Task, position: unroll.Position, steps: int, coordinates: Subset | None
    ) -> tuple[unroll.Position, list[float], dict[str, tf.Tensor] | None]:
        """An unroll by the meta-gradient that needs no graph of the optimizee."""
        index = None if coordinates is None else coordinates.numbers
        begin = unroll.chosen_state(position.state, index)
        outs: list[tf.Tensor] = []
        end, losses, gradients, inputs = unroll.advance(
            task, self.network, position, steps, coordinates=index, reuse=index is not None, outs=outs
        )
        # The kept coordinates' gradients and losses do not show that another one's is not finite: theta does.
        if not _finite(losses, gradients, end.theta, end.gradient):
            return end, [], None
        c = by_outputs(self.network, task, outs, self._cotangents(gradients, losses), index)
        if coordinates is not None:
            c = _weighed(c, coordinates.weights)
        return end, losses[:-1].numpy().tolist(), self._vjp(begin, inputs, c)

    def first_order_batch(
        self,
        tasks: list[Task],
        positions: list[unroll.Position],
        steps: int,
        coordinates: list[Subset] | None,
        weigh: Callable[[list[float]], float],
    ) -> tuple[list[Any], list[list[float]], dict[str, tf.Tensor]] | None:
        """``first_order`` of several optimizees as one; None where these cannot be."""
        if not self.network.tasks_batchable:
            return None
        lanes, position = BatchedTasks(tasks), joined(positions)
        self.network.bind(lanes)
        index, counts = None, lanes.sizes
        if coordinates is not None:
            starts = np.cumsum([0, *lanes.sizes[:-1]])
            moved = [drawn.numbers + start for drawn, start in zip(coordinates, starts, strict=True)]
            index, counts = np.concatenate(moved), [len(drawn) for drawn in coordinates]
        begin, outs = unroll.chosen_state(position.state, index), []
        end, losses, gradients, inputs = unroll.advance(
            lanes, self.network, position, steps, coordinates=index, reuse=index is not None, outs=outs
        )
        ends: list[Any] = divided(end, lanes.sizes)
        found, shares = [], []
        felt = tf.split(gradients, lanes.sizes if outs else counts, 1)
        per_lane = zip(tf.unstack(losses, axis=1), felt, strict=True)
        for k, (loss, gradient) in enumerate(per_lane):
            if _finite(loss, gradient, ends[k].theta, ends[k].gradient):
                found.append(loss[:-1].numpy().tolist())
                shares.append(weigh(found[-1]))
            else:
                ends[k] = None
                shares.append(math.nan)
        if not found:
            return ends, [], {}
        factor = np.repeat(shares, counts)
        if coordinates is not None:
            factor = factor * np.concatenate([drawn.weights for drawn in coordinates])
        c = self._cotangents(gradients, losses, lanes.sizes if outs else counts)
        c = by_outputs(self.network, lanes, outs, c, index)
        if len(found) < len(tasks):
            kept = np.flatnonzero(np.isfinite(factor))
            begin = unroll.chosen_state(begin, kept)
            inputs, c = tf.gather(inputs, kept, axis=2), tf.gather(c, kept, axis=1)
            factor = factor[kept]
        return ends, found, self._vjp(begin, inputs, _weighed(c, factor))

    def _cotangents(self, gradients: tf.Tensor, *more: Any) -> tf.Tensor:
        loss, keep = self.config.loss, unroll.decay_factor(self.network)
        return unroll.cotangents(gradients, loss, keep, *more, reuse=True)

    def _vjp(
        self,
        state: State,
        inputs: tf.Tensor,
        c: tf.Tensor,
        coordinates: Subset | None = None,
    ) -> dict[str, tf.Tensor]:
        if coordinates is not None:
            index = coordinates.numbers
            state, inputs = unroll.chosen_state(state, index), tf.gather(inputs, index, axis=2)
            c = tf.gather(c, index, axis=1) * tf.cast(coordinates.weights, c.dtype)
        return unroll.meta_gradient(self.network, state, inputs, c, memory=self.config.memory)

    def imitation(
        self, task: Task, position: imitation.Imitation, steps: int, coordinates: Subset | None
    ) -> tuple[imitation.Imitation, list[float], dict[str, tf.Tensor] | None]:
        """An unroll along an expert's steps; the network learns to take them."""
        end, losses, inputs, c = imitation.advance(task, self.network, position, steps)
        if not _finite(losses, c):
            return end, [], None
        grads = self._vjp(position.state, inputs, c, coordinates)
        return end, losses.numpy().tolist(), grads

    def second_order(
        self, task: Task, position: unroll.Position, steps: int, coordinates: None = None
    ) -> tuple[unroll.Position, list[float], dict[str, tf.Tensor] | None]:
        """An unroll by the whole meta-gradient, through the optimizee's gradients."""
        from tf_impl.meta.second_order import unrolled

        del coordinates  # always None here

        end, losses, grads = unrolled(task, self.network, position, steps, self.config.loss)
        return end, losses[:-1].numpy().tolist(), grads if _finite(losses) else None

    def forward(
        self, task: Task, position: Carried, steps: int, coordinates: Subset | None = None
    ) -> tuple[Carried, list[float], dict[str, tf.Tensor] | None]:
        """An unroll by tangents carried along, without truncation; the position itself moves on."""
        config = self.config
        losses, grads = forward.advance(
            task, self.network, position, steps, config.loss,
            coordinates=coordinates, memory=config.memory, optimizees=config.tasks,
        )  # fmt: skip
        return position, losses[:-1].numpy().tolist(), grads if _finite(losses) else None

    def descend(self, grads: dict[str, tf.Tensor], rates: dict[str, float]) -> None:
        """One step of Adam at a learning rate per weight; none where a gradient is not finite."""
        if not all(map(_finite, grads.values())):
            return
        self.count += 1
        root = (1.0 - _BETA2**self.count) ** 0.5
        for name, w in self.network.weights.items():
            g, zero = grads[name], tf.zeros_like(w)
            m = self.first[name] = _BETA1 * self.first.get(name, zero) + (1.0 - _BETA1) * g
            v = self.second[name] = _BETA2 * self.second.get(name, zero) + (1.0 - _BETA2) * g * g
            w.assign_sub(rates[name] / (1.0 - _BETA1**self.count) * m / (tf.sqrt(v) / root + _EPS))

    def moments(self) -> tuple[Arrays, Arrays, int]:
        """Adam's first and second moments by weight, and its number of steps; empty before the first."""
        first, second = ({n: to_numpy(a) for n, a in part.items()} for part in (self.first, self.second))
        return first, second, self.count

    def set_moments(self, first: Arrays, second: Arrays, count: int) -> None:
        """Put Adam where ``moments`` found it."""
        self.first, self.second = self.tensors(first), self.tensors(second)
        self.count = count

    def position_arrays(self, position: unroll.Position) -> tuple[int, Arrays]:
        """A position's t, and its arrays: theta, gradient, loss, and ``state/<name>``."""
        arrays = {"theta": position.theta, "gradient": position.gradient, "loss": position.loss}
        arrays |= {f"state/{name}": a for name, a in position.state.named().items()}
        return position.state.t, {name: to_numpy(a) for name, a in arrays.items()}

    def position_from(self, step: int, t: int, arrays: Arrays) -> unroll.Position:
        """The inverse of ``position_arrays``; there may be other arrays among them."""
        here = {name: to_tensor(a, self.dtype, self.device) for name, a in arrays.items()}
        state = {n.removeprefix("state/"): a for n, a in here.items() if n.startswith("state/")}
        return unroll.Position(
            step, here["theta"], State.from_named(t, state), here["loss"], here["gradient"]
        )


def _weighed(c: tf.Tensor, factor: np.ndarray) -> tf.Tensor:
    """c [T, N] times [N], in place where it is an array."""
    if isinstance(c, np.ndarray):
        c *= np.asarray(factor, c.dtype)
        return c
    return c * tf.cast(factor, c.dtype)


def _finite(*tensors: tf.Tensor) -> bool:
    def good(a: tf.Tensor) -> bool:
        if on_host(a):
            return bool(np.isfinite(view(a)).all())
        return bool(tf.reduce_all(tf.math.is_finite(a)))

    return all(map(good, tensors))
