"""Step sizes by tensor as a network: another network's outputs, times the factor of their tensor."""

import torch

from interchange.files.weights import Teacher
from interchange.protocols import State
from interchange.rule.step_sizes import Sized, StepSizeWeights
from torch_impl.networks.rule import RuleNetwork
from torch_impl.networks.teacher import TeacherNetwork
from torch_impl.tensors import Weights


class StepSizes(StepSizeWeights):
    """A rule or teacher whose step sizes are trained, as the logarithms that are its weights, float64, 0-dim.

    Args:
        source: the rule or teacher, with the step sizes to begin with.
        dtype: of a teacher's arithmetic.
    """

    def __init__(
        self, source: Sized, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        plain = source.plain
        if isinstance(plain, Teacher):
            super().__init__(source, TeacherNetwork(plain.row, plain.weights, dtype, device))
        else:
            super().__init__(source, RuleNetwork(plain, device))
        self.weights: Weights = {
            name: torch.tensor(value, dtype=torch.float64, device=device)
            for name, value in self.starts.items()
        }

    def step(
        self, weights: Weights, x: torch.Tensor, network: tuple[torch.Tensor, ...], t: int
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Output [N] before ``structure`` and ``scale``, and the new state, for inputs x [F, N]."""
        out, network = self.inner.step(self.inner.weights, x, network, t)
        return self._sized(weights, out), network

    def roll(
        self, x: torch.Tensor, network: tuple[torch.Tensor, ...], t: int, *, reuse: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """``step`` with the network's own weights, not recorded; ``reuse``: the old state may be lost."""
        out, network = self.inner.roll(x, network, t, reuse=reuse)
        with torch.no_grad():
            return self._sized(self.weights, out), network

    def vjp(self, state: State, inputs: torch.Tensor, c: torch.Tensor) -> dict[str, torch.Tensor]:
        """sum_t <c_t, d out_t / d weights>: an output's derivative by its logarithm is the output.

        Args:
            inputs: [T, F, N]; c: [T, N].
        """
        network, total = state.network, torch.zeros_like(c[0], dtype=torch.float64)
        for s, x in enumerate(inputs):
            out, network = self.roll(x, network, state.t + 1 + s)
            total += c[s] * out
        return self.by_tensor(total)

    def by_tensor(self, total: torch.Tensor) -> dict[str, torch.Tensor]:
        """Sums over tensors of numbers [N], float64, by weight."""
        sums = total.new_zeros(len(self.weights)).index_add_(0, self._index(total), total)
        return dict(zip(self.weights, sums.unbind(), strict=True))

    def _sized(self, weights: Weights, out: torch.Tensor) -> torch.Tensor:
        factors = torch.stack(list(weights.values())).exp()
        return out * factors.index_select(-1, self._index(out)).to(out.dtype)

    def _index(self, like: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self._place, device=like.device)
