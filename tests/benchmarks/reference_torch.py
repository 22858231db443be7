"""The full-graph loops of meta-training in torch: what ``meta_training.py`` calls ``naive`` and ``iclr``.

Both keep the graph of every optimizee, of every step of the optimizer network and of every update
theta_{t+1} = theta_t + scale u_t, sum the T + 1 losses and walk back through all of it; gradients enter the
features as constants (first order). Coordinates are the batch of ``torch.nn.LSTMCell``, [N, H]. They differ
in where the gradient g_t that the features see comes from:

* ``iclr``, as the ICLR 2022 code does it: ``loss_t.backward(retain_graph=True)`` at every step of the unroll.
  theta_t hangs on all updates before it, so that each of these walks back through t steps of the optimizer
  network for nothing: with the pass that counts, T (T - 1) / 2 + T steps are walked instead of T.
* ``naive``: ``torch.autograd.grad(loss_t, theta_t, retain_graph=True)``, which stops at theta_t. The step's
  optimizee graph is walked here and once more in the one backward pass of the sum.

What the ICLR code does beyond this is left out, which favours the reference: one call of the network per
named parameter tensor, and a new module for the optimizee at every step.
"""

from typing import Any

import numpy as np
import torch
from references import META_LR, Reference, averages, features
from torch.nn import functional as F

from common.tables.teachers import TeacherRow


class Network(torch.nn.Module):
    """A teacher from torch's own modules; inputs [N, F] -> output [N]."""

    def __init__(self, row: TeacherRow, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.row = row
        width = row.pre or len(row.inputs)
        self.pre = torch.nn.Linear(len(row.inputs), row.pre) if row.pre else None
        self.cells = torch.nn.ModuleList()
        for size in row.lstm:
            self.cells.append(torch.nn.LSTMCell(width, size))
            width = size
        self.out = torch.nn.Linear(width, 1)
        with torch.no_grad():
            for name, parameter in self.named().items():
                parameter.copy_(torch.as_tensor(weights[name]))
            for cell in self.cells:  # one trained bias per cell
                cell.bias_hh.zero_().requires_grad_(False)

    def named(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by canonical name."""
        found = {"pre/w": self.pre.weight, "pre/b": self.pre.bias} if self.pre else {}
        for k, cell in enumerate(self.cells):
            parts = {"w_input": cell.weight_ih, "w_hidden": cell.weight_hh, "bias": cell.bias_ih}
            found |= {f"lstm_{k}/{name}": part for name, part in parts.items()}
        return found | {"out/w": self.out.weight, "out/b": self.out.bias}

    def forward(self, x: torch.Tensor, hidden: list) -> tuple[torch.Tensor, list]:
        if self.pre:
            x = F.elu(self.pre(x))
        new = []
        for cell, state in zip(self.cells, hidden, strict=True):
            new.append(cell(x, state))
            x = new[-1][0]
        out = self.out(x)[:, 0]
        return (torch.tanh(out) if self.row.output == "tanh" else out), new


class TorchReference(Reference):
    """``naive``, or ``iclr`` with a backward pass of its own for every step's loss."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.device = torch.device(settings["device"])
        self.network = Network(self.row, self.weights).to(self.device)
        self.adam = torch.optim.Adam(self.network.named().values(), lr=META_LR)
        one = self.optimizee
        self.arrays = [torch.tensor(a, device=self.device) for a in (one.images, one.labels)]

    def loss(self, theta: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """The optimizee's loss at theta [N] on one batch."""
        one = self.optimizee
        images, labels = self.arrays
        x = (images[batch].float() / one.divisor - one.offset) / one.spread
        parts = torch.split(theta, [int(np.prod(shape)) for shape in one.shapes])
        parts = [part.view(shape) for part, shape in zip(parts, one.shapes, strict=True)]
        for w, b in zip(parts[:-2:2], parts[1:-2:2], strict=True):
            x = F.relu(torch.addmm(b, x, w))
        return F.cross_entropy(torch.addmm(parts[-1], x, parts[-2]), labels[batch])

    def begin(self, theta: np.ndarray) -> tuple:
        flat = torch.tensor(theta, device=self.device)
        size = len(flat)
        hidden = [(flat.new_zeros(size, width), flat.new_zeros(size, width)) for width in self.row.lstm]
        return flat, tuple(flat.new_zeros(size) for _ in range(averages(self.row))), hidden, 0

    def update(self, at: tuple, batches: np.ndarray) -> tuple[tuple, torch.Tensor, Any]:
        at, losses, total = self.unrolled(at, batches)
        self.adam.zero_grad()
        total.backward()
        self.adam.step()

        def gradient() -> dict[str, np.ndarray]:
            return {name: p.grad.cpu().numpy().copy() for name, p in self.network.named().items()}

        theta, moving, hidden, t = at
        at = theta.detach(), moving, [(h.detach(), c.detach()) for h, c in hidden], t
        return at, losses.cpu(), gradient

    def unrolled(
        self, at: tuple, batches: np.ndarray, mask: torch.Tensor | None = None
    ) -> tuple[tuple, torch.Tensor, torch.Tensor]:
        """The position after T steps, losses [T], and their sum with the last one, on its whole graph.

        Args:
            mask: what each coordinate [N] counts in the meta-gradient, all 1 if None.
        """
        theta, moving, hidden, t = at
        theta.requires_grad_()
        losses, total, rows = [], 0.0, torch.tensor(batches, device=self.device)
        for batch in rows[:-1]:
            loss = self.loss(theta, batch)
            losses.append(loss.detach())
            total = total + loss
            if self.settings["contestant"] == "iclr":
                theta.retain_grad()
                loss.backward(retain_graph=True)
                g = theta.grad.detach()
            else:
                (g,) = torch.autograd.grad(loss, theta, retain_graph=True)
            t += 1
            x, moving = features(torch, self.row, g, moving, t)
            out, hidden = self.network(x, hidden)
            if mask is not None:
                out = out.detach() + mask * (out - out.detach())
            theta = theta + self.row.scale * out
        return (theta, moving, hidden, t), torch.stack(losses), total + self.loss(theta, rows[-1])

    def subset_gradient(self, coordinates: list[list[float]]) -> dict[str, np.ndarray]:
        """The first unroll's meta-gradient by these coordinates, with these weights; before any update."""
        at = self.begin(self.optimizee.start(0))
        mask = torch.zeros(len(at[0]), device=self.device)
        mask[torch.tensor(coordinates[0])] = torch.tensor(coordinates[1], device=self.device)
        batches = self.optimizee.batches(0, 0, self.settings["unroll"])
        _, _, total = self.unrolled(at, batches, mask)
        named = self.network.named()
        grads = torch.autograd.grad(total, list(named.values()))
        return {name: g.cpu().numpy() for name, g in zip(named, grads, strict=True)}
