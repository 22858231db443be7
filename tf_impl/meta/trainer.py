"""The TensorFlow side of meta-training: unrolls, Adam, copies; the loop is ``interchange.meta.trainer``."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from common.data.coordinates import Subset
from common.run.runs import RunFolder
from interchange.backend import Arrays
from interchange.meta.trainer import MetaTraining
from interchange.meta.workers import Workers
from tf_impl.meta import imitation, unroll
from tf_impl.meta.evolution import Persistent, evolution, here, processes
from tf_impl.problems.augment import ConvexTerm, RandomScaling
from tf_impl.problems.batched import Lanes, divided, joined
from tf_impl.problems.tasks import Task, table_task
from tf_impl.tensors import DTYPES, State, device_of, on_host, to_numpy, to_tensor, view

Tasks = Callable[[str, int], Task]
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # of Adam, as torch.optim has them


@dataclasses.dataclass(frozen=True)
class _Traced(unroll.Position):
    """A position with the tangents of the forward meta-gradient."""

    tangents: Any = None


class MetaTrainer(MetaTraining):
    """Adam on a network's weights, by the meta-gradient of one unroll after another.

    Args:
        network: what is trained; ``network.weights`` are changed in place.
        config: ``TrainConfig`` or ``TuneConfig``.
        rates: weight name -> factor on the meta learning rate (1 if absent).
        tasks: ``tasks(stream, number)`` gives optimizee ``number`` of the stream ``meta_train`` or
            ``validation``, the same whenever asked; the configured problem's if None.
        folder: run folder for metrics and checkpoints; None keeps nothing.
        workers: that train together; this process alone if None.
    """

    start, mean_figure = staticmethod(unroll.start), staticmethod(unroll.mean_figure)
    evolution, processes, persistent = staticmethod(evolution), staticmethod(processes), Persistent
    here = staticmethod(here)
    imitate, table_task = staticmethod(imitation.start), staticmethod(table_task)
    random_scaling, convex_term = RandomScaling, ConvexTerm

    def __init__(
        self,
        network: unroll.Network,
        config: Any,
        *,
        rates: dict[str, float] | None = None,
        tasks: Tasks | None = None,
        folder: RunFolder | None = None,
        workers: Workers | None = None,
    ) -> None:
        super().__init__(network, config, rates, tasks, folder, workers)
        self.dtype, self.device = DTYPES[config.dtype], device_of(config.device)
        self.first: dict[str, tf.Tensor] = {}
        self.second: dict[str, tf.Tensor] = {}
        self.count = 0

    def _weights(self) -> Arrays:
        return {name: to_numpy(w) for name, w in self.network.weights.items()}

    def _unroll(
        self, task: Task, position: Any, steps: int, coordinates: Subset | None
    ) -> tuple[Any, list[float], dict[str, tf.Tensor] | None]:
        if isinstance(position, imitation.Imitation):
            return self._imitated(task, position, steps, coordinates)
        if self.schedule.estimator == "second":
            return self._second_order(task, position, steps)
        if self.schedule.estimator == "forward":
            return self._forward(task, position, steps)
        index = None if coordinates is None else coordinates.numbers
        begin = unroll.chosen_state(position.state, index)
        end, losses, gradients, inputs = unroll.advance(
            task, self.network, position, steps, coordinates=index, reuse=index is not None
        )
        # The kept coordinates' gradients and losses do not show that another one's is not finite: theta does.
        if not _finite(losses, gradients, end.theta, end.gradient):
            return end, [], None
        c = self._cotangents(gradients, 1.0 if coordinates is None else coordinates.weights)
        return end, losses[:-1].numpy().tolist(), self._pull(begin, inputs, c)

    def _together(
        self,
        tasks: list[Task],
        positions: list[unroll.Position],
        steps: int,
        coordinates: list[Subset] | None,
        weigh: Callable[[list[float]], float],
    ) -> tuple[list[Any], list[list[float]], dict[str, tf.Tensor]] | None:
        if not self.network.together:
            return None
        lanes, position = Lanes(tasks), joined(positions)
        index, counts = None, lanes.sizes
        if coordinates is not None:
            starts = np.cumsum([0, *lanes.sizes[:-1]])
            moved = [drawn.numbers + start for drawn, start in zip(coordinates, starts, strict=True)]
            index, counts = np.concatenate(moved), [len(drawn) for drawn in coordinates]
        begin = unroll.chosen_state(position.state, index)
        end, losses, gradients, inputs = unroll.advance(
            lanes, self.network, position, steps, coordinates=index, reuse=index is not None
        )
        ends: list[Any] = divided(end, lanes.sizes)
        found, factors = [], []
        per_lane = zip(tf.unstack(losses, axis=1), tf.split(gradients, counts, 1), strict=True)
        for k, (loss, gradient) in enumerate(per_lane):
            if _finite(loss, gradient, ends[k].theta, ends[k].gradient):
                found.append(loss[:-1].numpy().tolist())
                factors.append(weigh(found[-1]))
            else:
                ends[k] = None
                factors.append(math.nan)
        if not found:
            return ends, [], {}
        factor = np.repeat(factors, counts)
        if coordinates is not None:
            factor = factor * np.concatenate([drawn.weights for drawn in coordinates])
        if len(found) < len(tasks):
            kept = np.flatnonzero(np.isfinite(factor))
            begin = unroll.chosen_state(begin, kept)
            inputs, gradients = tf.gather(inputs, kept, axis=2), tf.gather(gradients, kept, axis=1)
            factor = factor[kept]
        return ends, found, self._pull(begin, inputs, self._cotangents(gradients, factor))

    def _cotangents(self, gradients: tf.Tensor, factor: float | np.ndarray) -> tf.Tensor:
        return unroll.cotangents(
            gradients, self.config.loss, unroll.kept(self.network), factor=factor, reuse=True
        )

    def _pull(
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

    def _imitated(
        self, task: Task, position: imitation.Imitation, steps: int, coordinates: Subset | None
    ) -> tuple[imitation.Imitation, list[float], dict[str, tf.Tensor] | None]:
        end, losses, inputs, c = imitation.advance(task, self.network, position, steps)
        if not _finite(losses, c):
            return end, [], None
        grads = self._pull(position.state, inputs, c, coordinates)
        return end, losses.numpy().tolist(), grads

    def _second_order(
        self, task: Task, position: unroll.Position, steps: int
    ) -> tuple[unroll.Position, list[float], dict[str, tf.Tensor] | None]:
        from tf_impl.meta.second_order import unrolled

        end, losses, grads = unrolled(task, self.network, position, steps, self.config.loss)
        return end, losses[:-1].numpy().tolist(), grads if _finite(losses) else None

    def _forward(
        self, task: Task, position: unroll.Position, steps: int
    ) -> tuple["_Traced", list[float], dict[str, tf.Tensor] | None]:
        from tf_impl.meta import forward

        begun = isinstance(position, _Traced)
        tangents = position.tangents if begun else forward.start(self.network, position)
        end, tangents, losses, grads = forward.advance(
            task, self.network, position, tangents, steps, self.config.loss
        )
        here = {field.name: getattr(end, field.name) for field in dataclasses.fields(unroll.Position)}
        traced = _Traced(**here, tangents=tangents)
        return traced, losses[:-1].numpy().tolist(), grads if _finite(losses) else None

    def _descend(self, grads: dict[str, tf.Tensor], rates: dict[str, float]) -> None:
        if not all(map(_finite, grads.values())):
            return
        self.count += 1
        root = (1.0 - _BETA2**self.count) ** 0.5
        for name, w in self.network.weights.items():
            g, zero = grads[name], tf.zeros_like(w)
            m = self.first[name] = _BETA1 * self.first.get(name, zero) + (1.0 - _BETA1) * g
            v = self.second[name] = _BETA2 * self.second.get(name, zero) + (1.0 - _BETA2) * g * g
            w.assign_sub(rates[name] / (1.0 - _BETA1**self.count) * m / (tf.sqrt(v) / root + _EPS))

    def _moments(self) -> tuple[Arrays, Arrays, int]:
        first, second = ({n: to_numpy(a) for n, a in part.items()} for part in (self.first, self.second))
        return first, second, self.count

    def _set(self, weights: Arrays, first: Arrays, second: Arrays, count: int) -> None:
        for name, w in self.network.weights.items():
            w.assign(to_tensor(weights[name], w.dtype, self.device))
            if name in first:
                self.first[name] = to_tensor(first[name], w.dtype, self.device)
                self.second[name] = to_tensor(second[name], w.dtype, self.device)
            else:
                self.first.pop(name, None)
                self.second.pop(name, None)
        self.count = count

    def _position_arrays(self, position: unroll.Position) -> tuple[int, Arrays]:
        arrays = {"theta": position.theta, "gradient": position.gradient, "loss": position.loss}
        arrays |= {f"state/{name}": a for name, a in position.state.named().items()}
        return position.state.t, {name: to_numpy(a) for name, a in arrays.items()}

    def _position_from(self, step: int, t: int, arrays: Arrays) -> unroll.Position:
        here = {name: to_tensor(a, self.dtype, self.device) for name, a in arrays.items()}
        state = {n.removeprefix("state/"): a for n, a in here.items() if n.startswith("state/")}
        return unroll.Position(
            step, here["theta"], State.from_named(t, state), here["loss"], here["gradient"]
        )


def _finite(*tensors: tf.Tensor) -> bool:
    def good(a: tf.Tensor) -> bool:
        if on_host(a):
            return bool(np.isfinite(view(a)).all())
        return bool(tf.reduce_all(tf.math.is_finite(a)))

    return all(map(good, tensors))
