"""One contestant of ``meta_training.py`` in a process of its own: ``python contestants.py SETTINGS``.

Commands come as JSON lines on stdin, answers go as JSON lines to stdout; between them the process sleeps.
``torch`` and ``tf`` are trained as users train them, by ``Trainer.run``.
"""

import ctypes
import dataclasses
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


def recording(base: type, to_numpy: Callable[[Any], np.ndarray]) -> type:
    """A ``Learner`` that keeps what the very first update was made of."""

    class Recording(base):
        gradient, picked = None, None

        def first_order(self, task: Any, position: Any, steps: int, coordinates: Any) -> Any:
            if self.gradient is None and coordinates is not None:
                self.picked = [coordinates.numbers.tolist(), coordinates.weights.tolist()]
            return super().first_order(task, position, steps, coordinates)

        def descend(self, grads: dict[str, Any], rates: dict[str, float]) -> None:
            if self.gradient is None:
                self.gradient = {name: to_numpy(g) for name, g in grads.items()}
            super().descend(grads, rates)

    return Recording


class Ours:
    """Meta-training by a backend on a problem of the table."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from common.tables.teachers import TEACHERS, initial_weights
        from interchange.meta.config import TrainConfig
        from interchange.meta.trainer import make_trainer

        backend = import_module(f"{settings['contestant']}_impl.backend")
        names = ("teacher", "data_dir", "seed", "unroll", "coordinates", "problem", "device")
        fields = {name: settings[name] for name in names} | {"epoch_length": settings["steps"]}
        config = TrainConfig(**fields, epochs=1, validate_every=0, quiet=True)
        row = TEACHERS[settings["teacher"]]
        weights = initial_weights(row, config.seed)
        network = backend.teacher_network(row, weights, config.dtype, config.device)
        self.learner = recording(backend.Learner, backend.to_numpy)(network, config)
        self.trainer = make_trainer(self.learner)
        self.trainer.tasks("meta_train", 0)  # reads the data
        self.losses: list[float] = []
        self.trainer.gradient.updates = self._watched(self.trainer.gradient.updates)
        self.settings, self.first = settings, None

    def epoch(self) -> list[float]:
        """Train for one epoch; the loss before each step."""
        trainer = self.trainer
        trainer.config = dataclasses.replace(trainer.config, epochs=trainer.state.epoch + 1)
        self.losses.clear()
        trainer.run(label="", quiet=True)
        if len(self.losses) != self.settings["steps"]:
            raise SystemExit(f"expected {self.settings['steps']} losses, got {len(self.losses)}: diverged")
        if self.first is None:
            self.first = self.losses[: self.settings["unroll"]], self.learner.gradient
        return list(self.losses)

    def _watched(self, updates: Callable[..., Any]) -> Callable[..., Any]:
        """``MetaGradient.updates`` whose losses are kept."""

        def watch(*given: Any) -> Any:
            for update in updates(*given):
                self.losses.extend(update.losses if update else [])
                yield update

        return watch


MODULES = {"torch": "torch", "tf": "tensorflow", "naive": "torch", "iclr": "torch", "jax": "jax"}


def prepare(settings: dict[str, Any]) -> None:
    """Before any framework is imported: processors, and as many threads in every library."""
    if count := settings["threads"]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
        os.environ["OMP_NUM_THREADS"] = str(count)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if settings["device"] == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    module = import_module(MODULES[settings["contestant"]])
    if count and MODULES[settings["contestant"]] == "torch":
        module.set_num_threads(count)
    if count and settings["contestant"] == "tf":
        module.config.threading.set_intra_op_parallelism_threads(count)
        module.config.threading.set_inter_op_parallelism_threads(count)


def built(settings: dict[str, Any]) -> Any:
    """The contestant, ready for its first epoch."""
    if settings["contestant"] in ("torch", "tf"):
        return Ours(settings)
    if settings["contestant"] == "jax":
        return import_module("reference_jax").JaxReference(settings)
    return import_module("reference_torch").TorchReference(settings)


def memory(what: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def least() -> int:
    """``VmRSS`` once what is free has been handed back, in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory("VmRSS")


def reset() -> bool:
    """Let ``VmHWM`` count anew from here; False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class Served:
    """The commands of a contestant."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.contestant = settings, built(settings)
        self.before = least()

    def ready(self) -> dict[str, Any]:
        return {
            "rss": self.before,
            "threads": len(os.sched_getaffinity(0)),
            "temporaries": getattr(self.contestant, "temporaries", None),
        }

    def turn(self) -> dict[str, Any]:
        """One epoch: seconds, inner steps, mean loss, peak memory over that before any unroll.

        Without ``reset`` the peak may be an earlier one, of building even.
        """
        was_reset = reset()
        start = time.perf_counter()
        losses = self.contestant.epoch()
        seconds = time.perf_counter() - start
        peak = memory("VmHWM") - self.before
        row = {"seconds": seconds, "steps": self.settings["steps"], "loss": float(np.mean(losses))}
        return row | {"peak": peak, "reset": was_reset}

    def first(self) -> dict[str, Any]:
        """What the first unroll was: losses, meta-gradient, and the subset of coordinates it is of."""
        losses, gradient = self.contestant.first
        picked = self.contestant.learner.picked if isinstance(self.contestant, Ours) else None
        return {"losses": losses, "gradient": _lists(gradient), "picked": picked}

    def subset(self, coordinates: list[list[float]]) -> dict[str, Any]:
        """The gradient through these coordinates by a new ``naive`` that has made no update."""
        fresh = built(self.settings)
        return {"gradient": _lists(fresh.subset_gradient(coordinates))}

    def size(self) -> dict[str, Any]:
        """Coordinates of the optimizee."""
        one, ours = self.contestant, isinstance(self.contestant, Ours)
        start = one.trainer.tasks("meta_train", 0).initial() if ours else one.optimizee.start(0)
        return {"coordinates": len(start)}


def _lists(gradient: dict[str, np.ndarray]) -> dict[str, list]:
    return {name: np.asarray(g, np.float64).ravel().tolist() for name, g in gradient.items()}


def main() -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    settings = json.loads(sys.argv[1])
    prepare(settings)
    served = Served(settings)
    print(json.dumps(served.ready()), file=channel, flush=True)
    for line in sys.stdin:
        name, *args = json.loads(line)
        print(json.dumps(getattr(served, name)(*args)), file=channel, flush=True)


if __name__ == "__main__":
    main()
