"""The torch side of meta-training: unrolls, Adam and copies; the loop is ``interchange.meta.trainer``."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from common.data.coordinates import Subset
from common.run.runs import RunFolder
from interchange.backend import Arrays
from interchange.meta.trainer import MetaTraining
from interchange.meta.workers import Workers
from torch_impl.meta import imitation, unroll
from torch_impl.meta.evolution import Persistent, evolution, here, processes
from torch_impl.problems.augment import ConvexTerm, RandomScaling
from torch_impl.problems.batched import Lanes, divided, joined
from torch_impl.problems.tasks import Task, table_task
from torch_impl.tensors import DTYPES, State, to_numpy, to_tensor
from torch_impl.threads import fitting

Tasks = Callable[[str, int], Task]


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
        self.dtype, self.device = DTYPES[config.dtype], torch.device(config.device)
        self.adam = torch.optim.Adam([{"params": [w]} for w in network.weights.values()])

    def _weights(self) -> Arrays:
        return {name: to_numpy(w) for name, w in self.network.weights.items()}

    def _unroll(
        self, task: Task, position: Any, steps: int, coordinates: Subset | None
    ) -> tuple[Any, list[float], dict[str, torch.Tensor] | None]:
        if isinstance(position, imitation.Imitation):
            return self._imitated(task, position, steps, coordinates)
        if self.schedule.estimator == "second":
            return self._second_order(task, position, steps)
        if self.schedule.estimator == "forward":
            return self._forward(task, position, steps)
        with fitting(task):
            return self._first_order(task, position, steps, coordinates)

    def _first_order(
        self, task: Task, position: unroll.Position, steps: int, coordinates: Subset | None
    ) -> tuple[unroll.Position, list[float], dict[str, torch.Tensor] | None]:
        index = None if coordinates is None else torch.from_numpy(coordinates.numbers).to(self.device)
        begin = unroll.chosen_state(position.state, index)
        end, losses, gradients, inputs = unroll.advance(
            task, self.network, position, steps, coordinates=index, reuse=index is not None
        )
        # The kept coordinates' gradients and losses do not show that another one's is not finite: theta does.
        if not _finite(losses, gradients, end.theta, end.gradient):
            return end, [], None
        c = self._cotangents(
            gradients, 1.0 if coordinates is None else gradients.new_tensor(coordinates.weights)
        )
        return end, losses[:-1].tolist(), self._pull(begin, inputs, c)

    def _together(
        self,
        tasks: list[Task],
        positions: list[unroll.Position],
        steps: int,
        coordinates: list[Subset] | None,
        weigh: Callable[[list[float]], float],
    ) -> tuple[list[Any], list[list[float]], dict[str, torch.Tensor]] | None:
        if not self.network.together:
            return None
        lanes = Lanes(tasks)
        with fitting(lanes):
            return self._side_by_side(lanes, positions, steps, coordinates, weigh)

    def _side_by_side(
        self,
        lanes: Lanes,
        positions: list[unroll.Position],
        steps: int,
        coordinates: list[Subset] | None,
        weigh: Callable[[list[float]], float],
    ) -> tuple[list[Any], list[list[float]], dict[str, torch.Tensor]]:
        position = joined(positions)
        index, counts = None, lanes.sizes
        if coordinates is not None:
            starts = np.cumsum([0, *lanes.sizes[:-1]])
            moved = [drawn.numbers + start for drawn, start in zip(coordinates, starts, strict=True)]
            index = torch.from_numpy(np.concatenate(moved)).to(self.device)
            counts = [len(drawn) for drawn in coordinates]
        begin = unroll.chosen_state(position.state, index)
        end, losses, gradients, inputs = unroll.advance(
            lanes, self.network, position, steps, coordinates=index, reuse=index is not None
        )
        ends: list[Any] = divided(end, lanes.sizes)
        found, factors = [], []
        for k, (loss, gradient) in enumerate(zip(losses.T, gradients.split(counts, 1), strict=True)):
            if _finite(loss, gradient, ends[k].theta, ends[k].gradient):
                found.append(loss[:-1].tolist())
                factors.append(weigh(found[-1]))
            else:
                ends[k] = None
                factors.append(math.nan)
        if not found:
            return ends, [], {}
        factor = np.repeat(factors, counts)
        if coordinates is not None:
            factor = factor * np.concatenate([drawn.weights for drawn in coordinates])
        factor = gradients.new_tensor(factor)
        if len(found) < len(positions):
            kept = torch.isfinite(factor).nonzero()[:, 0]
            begin = unroll.chosen_state(begin, kept)
            inputs, gradients, factor = inputs[..., kept], gradients[..., kept], factor[kept]
        return ends, found, self._pull(begin, inputs, self._cotangents(gradients, factor))

    def _cotangents(self, gradients: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
        return unroll.cotangents(
            gradients, self.config.loss, unroll.kept(self.network), factor=factor, reuse=True
        )

    def _pull(
        self,
        state: State,
        inputs: torch.Tensor,
        c: torch.Tensor,
        coordinates: Subset | None = None,
    ) -> dict[str, torch.Tensor]:
        if coordinates is not None:
            index = torch.from_numpy(coordinates.numbers).to(c.device)
            state, inputs = unroll.chosen_state(state, index), inputs.index_select(2, index)
            c = c.index_select(1, index) * c.new_tensor(coordinates.weights)
        return unroll.meta_gradient(self.network, state, inputs, c, memory=self.config.memory)

    def _imitated(
        self, task: Task, position: imitation.Imitation, steps: int, coordinates: Subset | None
    ) -> tuple[imitation.Imitation, list[float], dict[str, torch.Tensor] | None]:
        end, losses, inputs, c = imitation.advance(task, self.network, position, steps)
        if not _finite(losses, c):
            return end, [], None
        grads = self._pull(position.state, inputs, c, coordinates)
        return end, losses.tolist(), grads

    def _second_order(
        self, task: Task, position: unroll.Position, steps: int
    ) -> tuple[unroll.Position, list[float], dict[str, torch.Tensor] | None]:
        from torch_impl.meta.second_order import unrolled

        end, losses, grads = unrolled(task, self.network, position, steps, self.config.loss)
        return end, losses[:-1].tolist(), grads if bool(torch.isfinite(losses).all()) else None

    def _forward(
        self, task: Task, position: unroll.Position, steps: int
    ) -> tuple["_Traced", list[float], dict[str, torch.Tensor] | None]:
        from torch_impl.meta import forward

        begun = isinstance(position, _Traced)
        tangents = position.tangents if begun else forward.start(self.network, position)
        end, tangents, losses, grads = forward.advance(
            task, self.network, position, tangents, steps, self.config.loss
        )
        here = {field.name: getattr(end, field.name) for field in dataclasses.fields(unroll.Position)}
        traced = _Traced(**here, tangents=tangents)
        return traced, losses[:-1].tolist(), grads if bool(torch.isfinite(losses).all()) else None

    @fitting()  # a few thousand weights
    def _descend(self, grads: dict[str, torch.Tensor], rates: dict[str, float]) -> None:
        if not all(bool(torch.isfinite(g).all()) for g in grads.values()):
            return
        weights = self.network.weights.items()
        for group, (name, w) in zip(self.adam.param_groups, weights, strict=True):
            group["lr"], w.grad = rates[name], grads[name]
        self.adam.step()
        self.adam.zero_grad()

    def _moments(self) -> tuple[Arrays, Arrays, int]:
        states = {name: self.adam.state.get(w) for name, w in self.network.weights.items()}
        states = {name: state for name, state in states.items() if state}
        first, second = (
            {name: to_numpy(state[key]) for name, state in states.items()}
            for key in ("exp_avg", "exp_avg_sq")
        )
        return first, second, max((int(state["step"]) for state in states.values()), default=0)

    def _set(self, weights: Arrays, first: Arrays, second: Arrays, count: int) -> None:
        for name, w in self.network.weights.items():
            w.copy_(to_tensor(weights[name], w.dtype, w.device))
            if name in first:
                self.adam.state[w] = {
                    "step": torch.tensor(float(count)),
                    "exp_avg": to_tensor(first[name], w.dtype, w.device),
                    "exp_avg_sq": to_tensor(second[name], w.dtype, w.device),
                }
            else:
                self.adam.state.pop(w, None)

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


def _finite(*tensors: torch.Tensor) -> bool:
    # Row by row: the answer for all of an unroll's gradients at once would take more memory than they do.
    rows = (row for a in tensors for row in (a if a.dim() > 1 else [a]))
    return all(bool(torch.isfinite(row).all()) for row in rows)
