"""Teachers as coordinate-wise networks over named weight arrays.

Arrays are laid out [feature or unit, coordinate], coordinates contiguous, so that every gate of the
LSTM is one contiguous block.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from common.kernels import Kernel, kernel
from common.tables.teachers import GAIN, TeacherRow, folded, unfolded
from interchange.language.view import View
from interchange.protocols import State, lanes_of
from torch_impl.networks.features import FeatureStream
from torch_impl.tensors import Weights, to_tensor
from torch_impl.threads import threads


class TeacherNetwork:
    """A teacher's network with its weights: a function from weights to an optimizer.

    Args:
        teacher: the row.
        weights: arrays by canonical name (``TeacherRow.weight_shapes``).
        state_dtype: of h and c between steps, ``dtype`` if None; arithmetic is in ``dtype``.
    """

    tasks_batchable = True
    sees_tensors = False  # given its inputs

    def __init__(
        self,
        teacher: TeacherRow,
        weights: Mapping[str, np.ndarray],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        state_dtype: torch.dtype | None = None,
    ) -> None:
        self.teacher, self.state_dtype = teacher, state_dtype or dtype
        self._narrow = self.state_dtype != dtype
        self.scale, self.weight_decay, self.structure = teacher.scale, 0.0, teacher.structure
        self.features = FeatureStream(teacher.expressions())
        self.views: tuple[View, ...] = ()
        self.weights: Weights = {
            name: torch.tensor(weights[name], dtype=dtype, device=device) for name in teacher.weight_shapes()
        }

    @functools.cached_property
    def compiled(self) -> Kernel | None:
        """The network as compiled code; None on other devices, or where there is no compiler."""
        w = self.weights["out/w"]
        if w.device.type != "cpu" or self.state_dtype not in (w.dtype, torch.bfloat16):
            return None
        return kernel(self.teacher, str(self.state_dtype).removeprefix("torch."))

    @property
    def weights_batchable(self) -> bool:
        """``batched`` is there: with compiled code."""
        return self.compiled is not None

    def batched(self, weights: Sequence[Mapping[str, np.ndarray]]) -> "BatchedTeachers":
        """The network in lanes of optimizees of one size, with the given weights of each."""
        return BatchedTeachers(self, weights)

    @property
    def source(self) -> TeacherRow:
        """What the network is made of, but for its weights."""
        return self.teacher

    def bind(self, task: Any) -> None:
        """Take the views of a task's tensors, of one lane of ``BatchedTasks``, where features see them."""
        if self.features.sees_tensors:
            self.views, _ = lanes_of(task, f"teacher {self.teacher.name!r}")

    def rows(self, theta: torch.Tensor) -> list[torch.Tensor]:
        """Inputs beside the features: none."""
        return []

    def initial_state(self, theta: torch.Tensor) -> State:
        """Zero state for a flat vector [N]."""
        network = tuple(
            theta.new_zeros(size, theta.numel(), dtype=self.state_dtype if self._narrow else theta.dtype)
            for size in self.teacher.lstm
            for _ in ("h", "c")
        )
        return State(0, self.features.initial_state(theta), network)

    def inputs(self, g: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """The network's inputs [F, N] for gradient [N]; first order, so outside the meta-gradient."""
        x, features = self.features.step(g, state.features, state.t + 1, self.views)
        return x, State(state.t + 1, features, state.network)

    def step(
        self, weights: Weights, x: torch.Tensor, network: tuple[torch.Tensor, ...], t: int
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Output [N] before ``structure`` and ``scale``, and the new network state, for inputs x [F, N]."""
        del t  # a rule's network reads it
        network = tuple(a.to(x.dtype) for a in network)
        if self.teacher.pre:
            x = F.elu(torch.addmm(weights["pre/b"][:, None], weights["pre/w"], x))
        new_state: list[torch.Tensor] = []
        for layer in range(len(self.teacher.lstm)):
            h, c = lstm_cell(
                weights[f"lstm_{layer}/w_input"],
                weights[f"lstm_{layer}/w_hidden"],
                weights[f"lstm_{layer}/bias"],
                x,
                *network[2 * layer : 2 * layer + 2],
            )
            new_state += [h, c]
            x = h
        out = torch.addmm(weights["out/b"][:, None], weights["out/w"], x)[0]
        if self.teacher.pre_tanh_scale:
            out = out * weights[GAIN]
        return (torch.tanh(out) if self.teacher.output == "tanh" else out), tuple(map(self._kept, new_state))

    def _kept(self, a: torch.Tensor) -> torch.Tensor:
        """An array of the state as it is kept; its rounding is not differentiated."""
        if not self._narrow:
            return a
        return (
            a + (a.to(self.state_dtype) - a).detach() if torch.is_grad_enabled() else a.to(self.state_dtype)
        )

    def roll(
        self, x: torch.Tensor, network: tuple[torch.Tensor, ...], t: int, *, reuse: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """``step`` with the network's own weights, not recorded.

        Args:
            reuse: the new state may take the place of the old one in its arrays.
        """
        if self.compiled is None or x.dtype != self.weights["out/w"].dtype:
            with torch.no_grad():
                return self.step(self.weights, x, network, t)
        self._check(network, x.shape[1])
        before = [a.to(self.state_dtype).contiguous() for a in network]
        x, after = x.contiguous(), before if reuse else [torch.empty_like(a) for a in before]
        out, weights = x.new_empty(x.shape[1]), self._flat()
        self.compiled.step(
            weights.data_ptr(), len(out), x.data_ptr(), _addresses(before), _addresses(after),
            out.data_ptr(), threads(),
        )  # fmt: skip
        return out, tuple(after)

    def vjp(self, state: State, inputs: torch.Tensor, c: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """sum_t <c_t, d out_t / d weights> by compiled code, None where there is none.

        Args:
            inputs: [T, F, N]; c: [T, N].
        """
        if self.compiled is None or not inputs.dtype == c.dtype == self.weights["out/w"].dtype:
            return None
        self._check(state.network, c.shape[1])
        start, weights = [a.to(self.state_dtype).contiguous() for a in state.network], self._flat()
        inputs, c = inputs.contiguous(), c.contiguous()
        found = self.compiled.gradient(
            weights.data_ptr(), *c.shape, inputs.data_ptr(), c.data_ptr(), _addresses(start),
            threads(),
        )  # fmt: skip
        parts = iter(np.split(found, np.cumsum([w.numel() for n, w in self.weights.items() if n != GAIN])))
        grads = {name: next(parts).reshape(w.shape) for name, w in self.weights.items() if name != GAIN}
        grads = unfolded(grads, self.weights)
        return {name: torch.from_numpy(grads[name]).to(c.dtype) for name in self.weights}

    def _check(self, network: Sequence[Any], n: int) -> None:
        """Compiled code believes what it is told of arrays, which may come from a file."""
        expected = [(size, n) for size in self.teacher.lstm for _ in ("h", "c")]
        if (got := [tuple(a.shape) for a in network]) != expected:
            raise ValueError(f"state: expected shapes {expected} of teacher {self.teacher.name}, got {got}")

    def _flat(self) -> torch.Tensor:
        return torch.cat([w.detach().reshape(-1) for w in folded(self.weights).values()])


class BatchedTeachers:
    """A teacher's network with weights of its own in every lane of optimizees of one size.

    Args:
        alone: with compiled code.
        weights: of every lane.
    """

    def __init__(self, alone: TeacherNetwork, weights: Sequence[Mapping[str, np.ndarray]]) -> None:
        self.scale, self.inputs, self.rows = alone.scale, alone.inputs, alone.rows
        self.structure = alone.structure
        self._compiled, self._count = alone.compiled, len(weights)
        lanes = [folded({name: lane[name] for name in alone.weights}) for lane in weights]
        flat = [np.concatenate([np.ravel(w) for w in lane.values()]) for lane in lanes]
        self._weights = to_tensor(np.stack(flat), alone.weights["out/w"].dtype)

    def roll(
        self, x: torch.Tensor, network: tuple[torch.Tensor, ...], t: int, *, reuse: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Output [N] before ``scale`` and the new state, h and c [lane, H, n], for inputs [F, N]."""
        del t
        x, after = x.contiguous(), network if reuse else [torch.empty_like(a) for a in network]
        out, n = x.new_empty(x.shape[1]), x.shape[1] // self._count
        for k, weights in enumerate(self._weights):
            part = slice(k * n, (k + 1) * n)
            self._compiled.step(
                weights.data_ptr(), n, x[:, part].data_ptr(), _addresses([a[k] for a in network]),
                _addresses([a[k] for a in after]), out[part].data_ptr(), threads(), x.shape[1],
            )  # fmt: skip
        return out, tuple(after)


def _addresses(tensors: list[torch.Tensor]) -> list[int]:
    return [a.data_ptr() for a in tensors]


def lstm_cell(
    w_input: torch.Tensor,
    w_hidden: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    h: torch.Tensor,
    c: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One LSTM cell, gates in the order i, f, g, o, one bias [4H]; x [D, N], h and c [H, N]."""
    size = h.shape[0]
    if torch.is_grad_enabled():
        gates = torch.addmm(torch.addmm(bias[:, None], w_input, x), w_hidden, h)
        i, f = torch.sigmoid(gates[: 2 * size]).split(size)
        g, o = torch.tanh(gates[2 * size : 3 * size]), torch.sigmoid(gates[3 * size :])
        c = f * c + i * g
        return o * torch.tanh(c), c
    # In place where nothing is recorded: fresh pages for every gate would double the time of a rollout.
    gates = torch.mm(w_input, x).add_(bias[:, None]).addmm_(w_hidden, h)
    i, f = gates[: 2 * size].sigmoid_().split(size)
    g, o = gates[2 * size : 3 * size].tanh_(), gates[3 * size :].sigmoid_()
    c = (f * c).addcmul_(i, g)
    return torch.tanh(c).mul_(o), c
