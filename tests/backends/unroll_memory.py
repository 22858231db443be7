"""Bytes at the peak of one unroll in a fresh process: unroll_memory.py BACKEND TEACHER N T SHARE STATE."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np

BACKEND, TEACHER, N, T, SHARE, STATE = sys.argv[1:]
N, T, SHARE = int(N), int(T), float(SHARE)

from common.tables.teachers import TEACHERS, initial_weights  # noqa: E402
from interchange.language.view import canonical  # noqa: E402
from interchange.meta.config import TrainConfig  # noqa: E402
from interchange.meta.trainer import make_trainer  # noqa: E402

package = {
    name.rpartition(".")[2]: importlib.import_module(f"{BACKEND}_impl.{name}")
    for name in ("backend", "meta.learner", "problems.tasks", "tensors")
}
if BACKEND == "torch":
    import torch

    package["norm"] = torch.linalg.vector_norm
else:
    import tensorflow as tf

    package["norm"] = tf.norm


class Bowl:
    """theta^2 / 2 of N coordinates: an optimizee that takes little memory itself. A matrix of 200 outputs."""

    names = ("x",)

    def __init__(self, n: int) -> None:
        self.shapes, self.size = ((n // 200, 200),), n
        self.views = tuple(map(canonical, self.shapes))

    def initial(self):
        return package["tensors"].to_tensor(
            np.linspace(-1.0, 1.0, self.size), package["tensors"].DTYPES["float32"]
        )

    def loss(self, parameters, step):
        raise NotImplementedError("it has its gradient in closed form")

    def value_and_gradient(self, theta, step):
        return package["norm"](theta), theta


def status(key: str) -> int:
    """Bytes of a line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def train(n: int, epochs_of: int) -> None:
    config = TrainConfig(
        problem="", epochs=1, epoch_length=epochs_of, unroll=epochs_of, validate_every=0, coordinates=SHARE,
        state_dtype="" if STATE == "full" else STATE,
    )  # fmt: skip
    row = TEACHERS[TEACHER]
    network = package["backend"].teacher_network(
        row, initial_weights(row, 0), "float32", "cpu", config.state_dtype
    )
    trainer = make_trainer(package["learner"].Learner(network, config), tasks=lambda stream, number: Bowl(n))
    trainer.run(label="", quiet=True)
    assert np.isfinite(trainer.state.history[-1]["loss"])


if STATE == "naive":

    def unroll(n: int, steps: int) -> None:
        """One graph through all steps, as plain autograd has it; features as first-order constants."""
        row = TEACHERS[TEACHER]
        network = package["backend"].teacher_network(row, initial_weights(row, 0), "float32", "cpu")
        weights = {name: w.requires_grad_() for name, w in network.weights.items()}
        theta = Bowl(n).initial()
        state, total = network.initial_state(theta), 0.0
        hidden = state.network
        for _ in range(steps):
            total = total + 0.5 * (theta * theta).sum()
            x, state = network.inputs(theta.detach(), state)
            out, hidden = network.step(weights, x, hidden, 1)
            theta = theta + network.scale * out
        torch.autograd.grad(total, list(weights.values()))

    train = unroll

train(1000, 2)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
train(N, T)
print(json.dumps(status("VmHWM") - before))
