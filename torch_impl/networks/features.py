"""Streaming input features of teachers and rules, from their expressions over the gradient."""

from collections.abc import Mapping

import torch

from interchange.language.compiler import compile_program
from interchange.language.expression import Node
from interchange.language.parse import parse
from torch_impl.networks.compiled import Compiled
from torch_impl.networks.lowering import Lowered


class FeatureStream:
    """Feature name -> expression over ``g``, evaluated step by step with shared state.

    Args:
        expressions: text in the rule language, or parsed nodes.
    """

    def __init__(self, expressions: Mapping[str, str | Node]) -> None:
        self.names = tuple(expressions)
        nodes = [parse(e) if isinstance(e, str) else e for e in expressions.values()]
        program = compile_program(nodes)
        self._lowered, self._compiled = Lowered(program), Compiled(program, ("g",))

    def initial_state(self, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Zero state for gradients shaped as ``like``."""
        return self._lowered.initial_state(like)

    def step(
        self, g: torch.Tensor, state: tuple[torch.Tensor, ...], t: int | torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Features [F, *g.shape] of gradient ``g`` at step ``t`` (from 1), and the new state."""
        if isinstance(t, int) and (found := self._compiled.roll(g.reshape(1, -1), state, {}, t)):
            return found[0].view(len(self.names), *g.shape), found[1]
        outputs, state = self._lowered.step({"g": g}, state, t)
        if not outputs:
            return g.new_zeros(0, *g.shape), state
        return torch.stack([torch.as_tensor(o, dtype=g.dtype).expand_as(g) for o in outputs]), state
