"""Meta-trainings by name, by processes together or by one alone: ``together.py BACKEND OUT NAME ...``.

Each goes to ``OUT/NAME``; workers but the first leave their weights beside it, as ``NAME-RANK.npz``.
"""

import dataclasses
import importlib
import json
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np

from interchange.meta.config import TrainConfig, TuneConfig
from interchange.meta.workers import place
from interchange.rule.rule import Rule

SETTINGS = {
    "problem": "quadratic", "teacher": "rp_s", "epochs": 3, "epoch_length": 12, "unroll": 4, "tasks": 4,
    "lr": 0.01, "lr_decay": 0.3, "validate_every": 2, "validation_tasks": 3, "checkpoint_seconds": 0.0,
    "seed": 5, "dtype": "float64", "quiet": True,
}  # fmt: skip


TRAININGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mix": {
        "problem": "quadratic,digits-mlp", "batch_size": 16, "coordinates": 0.5, "horizon": "8..20",
        "epoch_length": 200, "average": 0.7, "teacher": "rnnprop",
    },
    "diverging": {"epochs": 4, "validate_every": 1, "tasks": 6},
    "unvalidated": {"validate_every": 0, "imitation": 0.5, "seed": 6, "random_scaling": 1.0},
    "second": {"estimator": "second", "loss": "last", "tasks": 2, "validation_tasks": 1},
    "curriculum": {"curriculum": True, "epochs": 3, "validate_every": 1, "tasks": 2, "unroll": 50},
    "es": {"estimator": "es", "pairs": 3, "tasks": 1},
    "pes": {"estimator": "pes", "pairs": 3, "tasks": 1, "problem": "quadratic,lasso"},
    "structure": {
        "problem": "digits-mlp", "batch_size": 8, "structure": "orth", "inputs": "m_tilde+g_row",
        "coordinates": 0.3, "validation_tasks": 1,
    },
}  # fmt: skip

TUNINGS: dict[str, dict[str, Any]] = {
    "tuned": {"estimator": "first", "tasks": 2},
    "evolved": {"estimator": "es", "pairs": 1, "tasks": 1, "problem": "quadratic,lasso", "factors": True},
}


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def surroundings(backend: str, rank: int, ports: list[int]) -> dict[str, str]:
    """What tells a process its place among ``len(ports)``."""
    if backend == "torch":
        found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(ports), "MASTER_PORT": ports[0]}
        return {name: str(value) for name, value in found.items()} | {"MASTER_ADDR": "127.0.0.1"}
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})}


class Diverging:
    """A task whose loss is not finite: from the start, or once its parameters have moved.

    Args:
        reach: how far they may go; 0 for from the start.
    """

    def __init__(self, task: Any, reach: float) -> None:
        self.task, self.names, self.shapes, self.reach = task, task.names, task.shapes, reach

    def initial(self) -> Any:
        """The initial parameters, a flat vector [N]."""
        self._first = self.task.initial()
        return self._first if self.reach else self._first * 1e200

    @staticmethod
    def _corner(values: Any) -> Any:
        """The first number of an array of any shape."""
        while len(values.shape):
            values = values[0]
        return values

    def loss(self, parameters: list[Any], step: int) -> Any:
        """The loss, 0-dim, of the task plus almost nothing that overflows."""
        loss = self.task.loss(parameters, step)
        if not self.reach:
            return loss
        moved = self._corner(parameters[0]) - self._first[0]
        return loss + 1e-300 * (moved / self.reach) ** 400


def own_tasks(package: Any, config: Any) -> Any:
    """Optimizees some of which diverge: of two workers all of the second's in epoch 0, then one more."""
    reaches = {1: 0.0, 3: 0.0, 5: 0.001, 8: 0.003}

    def tasks(stream: str, number: int) -> Any:
        task = package.table_task(config, stream, number)
        return Diverging(task, reaches[number]) if stream == "meta_train" and number in reaches else task

    return tasks


def main(backend: str, out: Path, names: list[str]) -> None:
    package = importlib.import_module(f"{backend}_impl")
    problems, rank = importlib.import_module(f"{backend}_impl.problems.tasks"), place(backend).rank
    fields = {field.name for field in dataclasses.fields(TuneConfig)}
    for name in names:
        if name in TUNINGS:
            rule = out / f"rule-{name}-{rank}.json"
            dataclasses.replace(Rule.named("adam"), name="rule").save(rule)
            settings = {key: value for key, value in SETTINGS.items() if key in fields} | TUNINGS[name]
            tuned = package.tune(TuneConfig(**settings, rule=str(rule), out=str(out / f"{name}.json")))
            found = {key: np.asarray(value) for key, value in tuned.constants.items()}
        else:
            config = TrainConfig(**SETTINGS | TRAININGS[name], out=str(out / name))
            tasks = own_tasks(problems, config) if name == "diverging" else None
            found = package.train(config, tasks).weights
        if rank:
            np.savez(out / f"{name}-{rank}.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
