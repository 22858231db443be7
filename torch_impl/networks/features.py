"""Streaming input features of teachers and rules, from their expressions over the gradient."""

import math
from collections.abc import Mapping, Sequence

import torch

from interchange.language.compiler import compile_program
from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.language.view import View, slices, vector
from torch_impl.networks.compiled import Compiled
from torch_impl.networks.lowering import Lowered
from torch_impl.networks.per_tensor import tensor_of


class FeatureStream:
    """Feature name -> expression over ``g``, evaluated step by step with shared state.

    Args:
        expressions: text in the rule language, or parsed nodes.

    Attributes:
        sees_tensors: whether a feature depends on other coordinates of its tensor.
    """

    def __init__(self, expressions: Mapping[str, str | Node]) -> None:
        self.names = tuple(expressions)
        nodes = [parse(e) if isinstance(e, str) else e for e in expressions.values()]
        program = compile_program(nodes)
        self._lowered, self._compiled = Lowered(program), Compiled(program, ("g",))
        self.sees_tensors = program.sees_tensors

    def initial_state(self, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Zero state for gradients shaped as ``like``."""
        return self._lowered.initial_state(like)

    def step(
        self,
        g: torch.Tensor,
        state: tuple[torch.Tensor, ...],
        t: int | torch.Tensor,
        views: Sequence[View] = (),
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Features [F, *g.shape] of gradient ``g`` at step ``t`` (from 1), and the new state.

        Args:
            views: of the tensors that lie one after another in each lane of ``g``, where features see them;
                all of it is one vector if there are none.
        """
        if self.sees_tensors:
            return self._by_tensor(g, state, t, views or (vector((g.numel(),)),))
        if isinstance(t, int) and (found := self._compiled.roll(g.reshape(1, -1), state, {}, t)):
            return found[0].view(len(self.names), *g.shape), found[1]
        outputs, state = self._lowered.step({"g": g}, state, t)
        if not outputs:
            return g.new_zeros(0, *g.shape), state
        return torch.stack([torch.as_tensor(o, dtype=g.dtype).expand_as(g) for o in outputs]), state

    def _by_tensor(
        self,
        g: torch.Tensor,
        state: tuple[torch.Tensor, ...],
        t: int | torch.Tensor,
        views: Sequence[View],
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """``step`` of one tensor after another; state is of every coordinate, as all else expects."""
        lane = sum(math.prod(view.shape) for view in views)
        count = max(1, g.numel() // max(1, lane))
        lanes, outs, after = g.reshape(count, lane), [], []
        before = [a.reshape(count, lane) for a in state]
        for place, view in slices(views):
            size = math.prod(view.shape)
            own, kept = tensor_of(lanes, place, view), tuple(tensor_of(a, place, view) for a in before)
            outputs, new = self._lowered.step({"g": own}, kept, t, view)
            wide = [torch.as_tensor(o, dtype=g.dtype, device=g.device).expand_as(own) for o in outputs]
            outs.append(torch.stack(wide).reshape(len(wide), count, size))
            after.append([a.reshape(count, size) for a in new])
        return (
            torch.cat(outs, -1).reshape(len(self.names), *g.shape),
            tuple(torch.cat(parts, -1).reshape(g.shape) for parts in zip(*after, strict=True)),
        )
