"""The torch side of meta-training: unrolls, Adam and copies; the loop is ``interchange.meta.trainer``."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

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
from torch_impl.meta import forward, imitation, unroll
from torch_impl.networks.rule import RuleNetwork
from torch_impl.networks.step_sizes import StepSizes
from torch_impl.networks.structure import by_outputs
from torch_impl.networks.teacher import TeacherNetwork
from torch_impl.problems.augment import ConvexTerm, RandomScaling
from torch_impl.problems.batched import BatchedTasks, divided, joined, kind
from torch_impl.problems.tasks import table_task
from torch_impl.tensors import DTYPES, device_of, to_numpy, to_tensor
from torch_impl.threads import fitting


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
        self.adam = torch.optim.Adam([{"params": [w]} for w in network.weights.values()])

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
        kept = torch.bfloat16 if config.state_dtype else None
        return cls(TeacherNetwork(source, zeros, DTYPES[config.dtype], device, kept), config)

    @staticmethod
    def use_one_thread() -> None:
        """Leave the other cores to other processes, as far as the framework still can."""
        torch.set_num_threads(1)

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
        with fitting(tasks[0]):  # as many threads as alone, so that processes with one make the same bits
            end, losses = unroll.segment(batch, several, joined(starts, apart=True), steps)
        ends = divided(end, batch.sizes, apart=True) if keep else [None] * len(halves)
        return list(zip(ends, losses.T, strict=True))

    def weights(self) -> Arrays:
        """A copy of the network's weights."""
        return {name: to_numpy(w) for name, w in self.network.weights.items()}

    def put(self, weights: Arrays) -> None:
        """Put weights into the network; Adam stays where it is."""
        for name, w in self.network.weights.items():
            w.copy_(to_tensor(weights[name], w.dtype, w.device))

    def tensors(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        """Arrays by weight name as tensors of the weights' dtypes."""
        weights = self.network.weights
        return {name: to_tensor(a, weights[name].dtype, weights[name].device) for name, a in arrays.items()}

    def first_order(
        self, task: Task, position: unroll.Position, steps: int, coordinates: Subset | None
    ) -> tuple[unroll.Position, list[float], dict[str, torch.Tensor] | None]:
        """An unroll by the meta-gradient that needs no graph of the optimizee."""
        with fitting(task):
            index = None if coordinates is None else torch.from_numpy(coordinates.numbers).to(self.device)
            begin = unroll.chosen_state(position.state, index)
            outs: list[torch.Tensor] = []
            end, losses, gradients, inputs = unroll.advance(
                task, self.network, position, steps, coordinates=index, reuse=index is not None, outs=outs
            )
            # The kept coordinates do not show that another one's gradient is not finite: theta does.
            if not _finite(losses, gradients, end.theta, end.gradient):
                return end, [], None
            c = by_outputs(self.network, task, outs, self._cotangents(gradients, losses), index)
            if coordinates is not None:
                c.mul_(c.new_tensor(coordinates.weights))
            return end, losses[:-1].tolist(), self._vjp(begin, inputs, c)

    def first_order_batch(
        self,
        tasks: list[Task],
        positions: list[unroll.Position],
        steps: int,
        coordinates: list[Subset] | None,
        weigh: Callable[[list[float]], float],
    ) -> tuple[list[Any], list[list[float]], dict[str, torch.Tensor]] | None:
        """``first_order`` of several optimizees as one; None where these cannot be."""
        if not self.network.tasks_batchable:
            return None
        lanes = BatchedTasks(tasks)
        self.network.bind(lanes)
        with fitting(lanes):
            position = joined(positions)
            index, counts = None, lanes.sizes
            if coordinates is not None:
                starts = np.cumsum([0, *lanes.sizes[:-1]])
                moved = [drawn.numbers + start for drawn, start in zip(coordinates, starts, strict=True)]
                index = torch.from_numpy(np.concatenate(moved)).to(self.device)
                counts = [len(drawn) for drawn in coordinates]
            begin, outs = unroll.chosen_state(position.state, index), []
            end, losses, gradients, inputs = unroll.advance(
                lanes, self.network, position, steps, coordinates=index, reuse=index is not None, outs=outs
            )
            ends: list[Any] = divided(end, lanes.sizes)
            found, shares = [], []
            felt = gradients.split(lanes.sizes if outs else counts, 1)
            for k, (loss, gradient) in enumerate(zip(losses.T, felt, strict=True)):
                if _finite(loss, gradient, ends[k].theta, ends[k].gradient):
                    found.append(loss[:-1].tolist())
                    shares.append(weigh(found[-1]))
                else:
                    ends[k] = None
                    shares.append(math.nan)
            if not found:
                return ends, [], {}
            factor = np.repeat(shares, counts)
            if coordinates is not None:
                factor = factor * np.concatenate([drawn.weights for drawn in coordinates])
            factor = gradients.new_tensor(factor)
            c = self._cotangents(gradients, losses, lanes.sizes if outs else counts)
            c = by_outputs(self.network, lanes, outs, c, index)
            if len(found) < len(positions):
                kept = torch.isfinite(factor).nonzero()[:, 0]
                begin = unroll.chosen_state(begin, kept)
                inputs, c, factor = inputs[..., kept], c[..., kept], factor[kept]
            return ends, found, self._vjp(begin, inputs, c.mul_(factor))

    def _cotangents(self, gradients: torch.Tensor, *more: Any) -> torch.Tensor:
        loss, keep = self.config.loss, unroll.decay_factor(self.network)
        return unroll.cotangents(gradients, loss, keep, *more, reuse=True)

    def _vjp(
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

    def imitation(
        self, task: Task, position: imitation.Imitation, steps: int, coordinates: Subset | None
    ) -> tuple[imitation.Imitation, list[float], dict[str, torch.Tensor] | None]:
        """An unroll along an expert's steps; the network learns to take them."""
        end, losses, inputs, c = imitation.advance(task, self.network, position, steps)
        if not _finite(losses, c):
            return end, [], None
        grads = self._vjp(position.state, inputs, c, coordinates)
        return end, losses.tolist(), grads

    def second_order(
        self, task: Task, position: unroll.Position, steps: int, coordinates: None = None
    ) -> tuple[unroll.Position, list[float], dict[str, torch.Tensor] | None]:
        """An unroll by the whole meta-gradient, through the optimizee's gradients."""
        from torch_impl.meta.second_order import unrolled

        del coordinates  # always None here

        end, losses, grads = unrolled(task, self.network, position, steps, self.config.loss)
        return end, losses[:-1].tolist(), grads if bool(torch.isfinite(losses).all()) else None

    def forward(
        self, task: Task, position: Carried, steps: int, coordinates: Subset | None = None
    ) -> tuple[Carried, list[float], dict[str, torch.Tensor] | None]:
        """An unroll by tangents carried along, without truncation; the position itself moves on."""
        config = self.config
        with fitting(task):
            losses, grads = forward.advance(
                task, self.network, position, steps, config.loss,
                coordinates=coordinates, memory=config.memory, optimizees=config.tasks,
            )  # fmt: skip
        return position, losses[:-1].tolist(), grads if bool(torch.isfinite(losses).all()) else None

    @fitting()  # a few thousand weights
    def descend(self, grads: dict[str, torch.Tensor], rates: dict[str, float]) -> None:
        """One step of Adam at a learning rate per weight; none where a gradient is not finite."""
        if not all(bool(torch.isfinite(g).all()) for g in grads.values()):
            return
        weights = self.network.weights.items()
        for group, (name, w) in zip(self.adam.param_groups, weights, strict=True):
            group["lr"], w.grad = rates[name], grads[name]
        self.adam.step()
        self.adam.zero_grad()

    def moments(self) -> tuple[Arrays, Arrays, int]:
        """Adam's first and second moments by weight, and its number of steps; empty before the first."""
        states = {name: self.adam.state.get(w) for name, w in self.network.weights.items()}
        states = {name: state for name, state in states.items() if state}
        first, second = (
            {name: to_numpy(state[key]) for name, state in states.items()}
            for key in ("exp_avg", "exp_avg_sq")
        )
        return first, second, max((int(state["step"]) for state in states.values()), default=0)

    def set_moments(self, first: Arrays, second: Arrays, count: int) -> None:
        """Put Adam where ``moments`` found it."""
        for name, w in self.network.weights.items():
            if name in first:
                self.adam.state[w] = {
                    "step": torch.tensor(float(count)),
                    "exp_avg": to_tensor(first[name], w.dtype, w.device),
                    "exp_avg_sq": to_tensor(second[name], w.dtype, w.device),
                }
            else:
                self.adam.state.pop(w, None)

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


def _finite(*tensors: torch.Tensor) -> bool:
    # Row by row: the answer for all of an unroll's gradients at once would take more memory than they do.
    rows = (row for a in tensors for row in (a if a.dim() > 1 else [a]))
    return all(bool(torch.isfinite(row).all()) for row in rows)
