"""Hand-made optimizers recorded in plain loops, and what distillation makes of them, as a table.

    python tests/benchmarks/recovery.py --backends torch tf --models mlp conv --seconds 20

Each optimizer of the framework trains a small network on the embedded digits outside this project, 3 runs
of 150 steps, watched by ``Recorder``. Pixels that are 0 in all images give gradients of exactly 0. Columns:
whether the offered rule is the optimizer (``rule diff``; for NAdam, whose momentum varies with t, R2 of
held-out runs of at least 0.9999), its nodes, 1 - R2, its residual over the recording's rounding, how far
the loss of the last 20 steps with the rule in the optimizer's place is from the optimizer's own (relative,
the worst of 3 runs), how many rules of the front are not finite where gradients are 0, and the rule.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from sklearn.datasets import load_digits

from interchange import Rule
from interchange.distill.config import DistillConfig
from interchange.distill.run import distill
from interchange.rule.compare import compare
from interchange.rule.safety import singular

STEPS, RUNS, BATCH, LAST = 150, 3, 64, 20
TORCH = {
    "sgd": ("-g", {}),
    "momentum": ("-c * ema(g, b)", {"c": 10.0, "b": 0.9}),
    "nesterov": ("-(g + c * ema(g, b))", {"c": 9.0, "b": 0.9}),
    "rmsprop": ("-g / (sqrt(ema(square(g), b)) + e)", {"b": 0.99, "e": 1e-8}),
    "adagrad": ("-g / (sqrt(cumsum(square(g))) + e)", {"e": 1e-10}),
    "adam": ("-ema_hat(g, a) / (sqrt(ema_hat(square(g), b)) + e)", {"a": 0.9, "b": 0.999, "e": 1e-8}),
    "amsgrad": (
        "-ema_hat(g, a) / (sqrt(cummax(ema(square(g), b)) / ema(1, c)) + e)",
        {"a": 0.9, "b": 0.999, "c": 0.999, "e": 1e-8},
    ),
    "adamw": (
        "-ema_hat(g, a) / (sqrt(ema_hat(square(g), b)) + e) - d * theta",
        {"a": 0.9, "b": 0.999, "e": 1e-8, "d": 0.01},
    ),
    "nadam": None,
    "lion": ("-sign(d * lag(ema(g, b), 1) + c * g)", {"b": 0.99, "c": 0.1, "d": 0.9}),
}
_KERAS_ADAM = "-ema_hat(g, a) * sqrt(ema(1, c)) / (sqrt(ema(square(g), b)) + e)"
_ADAM = {"a": 0.9, "b": 0.999, "c": 0.999, "e": 1e-7}
KERAS = TORCH | {
    "rmsprop": ("-g / sqrt(ema(square(g), b) + e)", {"b": 0.9, "e": 1e-7}),
    "adagrad": ("-g / sqrt(cumsum(square(g)) + e)", {"e": 0.1 + 1e-7}),
    "adam": (_KERAS_ADAM, _ADAM),
    "amsgrad": (_KERAS_ADAM.replace("sqrt(ema(square(g), b))", "sqrt(cummax(ema(square(g), b)))"), _ADAM),
    "adamw": (f"{_KERAS_ADAM} - d * theta", _ADAM | {"d": 0.01}),
}
RATES = {
    "sgd": 0.1, "momentum": 0.05, "nesterov": 0.05, "rmsprop": 1e-3, "adagrad": 1e-2, "adam": 1e-3,
    "amsgrad": 1e-3, "adamw": 1e-3, "nadam": 1e-3, "lion": 1e-3,
}  # fmt: skip


Maker = Callable[[Any], Any]  # parameters -> optimizer


def batches(seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images f4 [batch, 8, 8] in [0, 1] and labels i8 [batch], one batch per step."""
    digits, rng = load_digits(), np.random.default_rng(seed)
    for _ in range(STEPS):
        chosen = rng.choice(len(digits.target), BATCH)
        yield (digits.images[chosen] / 16.0).astype(np.float32), digits.target[chosen]


class Torch:
    """Plain loops in torch."""

    truths = TORCH

    def optimizer(self, name: str, parameters: Any) -> Any:
        """The framework's own optimizer, but for Lion, which torch does not have."""
        import torch

        kinds: dict[str, tuple[str, dict[str, Any]]] = {
            "sgd": ("SGD", {}),
            "momentum": ("SGD", {"momentum": 0.9}),
            "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
            "rmsprop": ("RMSprop", {}),
            "adagrad": ("Adagrad", {}),
            "adam": ("Adam", {}),
            "amsgrad": ("Adam", {"amsgrad": True}),
            "adamw": ("AdamW", {"weight_decay": 0.01}),
            "nadam": ("NAdam", {}),
        }
        if name == "lion":
            return _lion(parameters, RATES[name])
        kind, options = kinds[name]
        return getattr(torch.optim, kind)(parameters, lr=RATES[name], **options)

    def train(self, model: str, seed: int, make: Maker, watch: Callable[[Any], None]) -> float:
        """Mean loss of the last steps; ``watch`` sees the optimizer before the first."""
        import torch
        from torch import nn

        torch.manual_seed(seed)
        layers = {
            "mlp": lambda: [nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)],
            "conv": lambda: [
                nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(),
                nn.Flatten(), nn.Linear(64, 10),
            ],
        }  # fmt: skip
        network = nn.Sequential(*layers[model]())
        optimizer = make(network.parameters())
        watch(optimizer)
        losses = []
        for x, y in batches(seed):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(torch.from_numpy(x)[:, None]), torch.from_numpy(y))
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses[-LAST:]))

    def rule(self, rule: Rule, name: str) -> Maker:
        """What makes the rule's optimizer."""
        from torch_impl import SymbolicOptimizer

        return lambda parameters: SymbolicOptimizer(parameters, rule, lr=RATES[name])

    def recorder(self) -> Any:
        """The class that watches."""
        from torch_impl import Recorder

        return Recorder


def _lion(parameters: Any, lr: float) -> Any:
    """Chen et al. 2023, betas 0.9 and 0.99, without weight decay."""
    import torch

    class Lion(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    p.sub_(group["lr"] * torch.sign(0.9 * m + 0.1 * p.grad))
                    m.mul_(0.99).add_(p.grad, alpha=0.01)

    return Lion(parameters, {"lr": lr})


class Keras:
    """The same in TensorFlow, steps traced."""

    truths = KERAS

    def optimizer(self, name: str, parameters: Any) -> Any:
        """Keras' own optimizer."""
        import keras

        del parameters
        kinds: dict[str, tuple[str, dict[str, Any]]] = {
            "sgd": ("SGD", {}),
            "momentum": ("SGD", {"momentum": 0.9}),
            "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
            "rmsprop": ("RMSprop", {}),
            "adagrad": ("Adagrad", {}),
            "adam": ("Adam", {}),
            "amsgrad": ("Adam", {"amsgrad": True}),
            "adamw": ("AdamW", {"weight_decay": 0.01}),
            "nadam": ("Nadam", {}),
            "lion": ("Lion", {}),
        }
        kind, options = kinds[name]
        return getattr(keras.optimizers, kind)(learning_rate=RATES[name], **options)

    def train(self, model: str, seed: int, make: Maker, watch: Callable[[Any], None]) -> float:
        """As in torch."""
        import keras
        import tensorflow as tf
        from keras import layers

        keras.utils.set_random_seed(seed)
        stacks = {
            "mlp": lambda: [layers.Flatten(), layers.Dense(20, "relu"), layers.Dense(10)],
            "conv": lambda: [
                layers.Conv2D(8, 3, padding="same", activation="relu"), layers.MaxPool2D(2),
                layers.Conv2D(16, 3, activation="relu"), layers.Flatten(), layers.Dense(10),
            ],
        }  # fmt: skip
        network = keras.Sequential([keras.Input((8, 8, 1)), *stacks[model]()])
        optimizer = make(network.trainable_variables)
        watch(optimizer)
        cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        @tf.function
        def step(x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = cross_entropy(y, network(x))
            variables = network.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        losses = [float(step(tf.constant(x[..., None]), tf.constant(y))) for x, y in batches(seed)]
        return float(np.mean(losses[-LAST:]))

    def rule(self, rule: Rule, name: str) -> Maker:
        """What makes the rule's optimizer."""
        from tf_impl import SymbolicOptimizer

        return lambda parameters: SymbolicOptimizer(rule, learning_rate=RATES[name])

    def recorder(self) -> Any:
        """The class that watches."""
        from tf_impl import Recorder

        return Recorder


def recovered(backend: Any, name: str, model: str, seconds: float, threads: int, seed: int) -> dict[str, Any]:
    """One row of the table."""
    recorders: list[Any] = []

    def watch(optimizer: Any) -> None:
        if recorders:
            recorders[0].start_run(optimizer)
        else:
            recorders.append(backend.recorder()(optimizer, steps=STEPS))

    def make(parameters: Any) -> Any:
        return backend.optimizer(name, parameters)

    losses = [backend.train(model, run, make, watch) for run in range(RUNS)]
    with tempfile.TemporaryDirectory() as folder:
        path = recorders[0].save(Path(folder, "trajectories.h5"))
        config = DistillConfig(trajectories=str(path), time=seconds, threads=threads, seed=seed, quiet=True)
        front, best = distill(config)
    truth = backend.truths[name]
    r2 = best.provenance["r2"]["test"]
    same = r2 >= 0.9999 if truth is None else compare(best, Rule.from_text(*truth))[1]
    again = [
        backend.train(model, run, backend.rule(best, name), lambda optimizer: None) for run in range(RUNS)
    ]
    return {
        "same": same,
        "nodes": best.complexity,
        "1 - r2": 1.0 - r2,
        "excess": best.provenance.get("exact", float("nan")),
        "loss": max(abs(a / b - 1.0) for a, b in zip(again, losses, strict=True)),
        "singular": sum(bool(singular(rule)) for rule in front),
        "rule": repr(best),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["torch", "tf"], choices=("torch", "tf"))
    parser.add_argument("--models", nargs="+", default=["mlp", "conv"], choices=("mlp", "conv"))
    parser.add_argument("--optimizers", nargs="+", default=list(TORCH), choices=list(TORCH))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for backend in args.backends:
        for model in args.models:
            for name in args.optimizers:
                kind = {"torch": Torch, "tf": Keras}[backend]()
                row = recovered(kind, name, model, args.seconds, args.threads, args.seed)
                shown = "  ".join(
                    f"{key} {value:.2g}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in row.items()
                )
                print(f"{backend:<5} {model:<4} {name:<8}  {shown}", flush=True)


if __name__ == "__main__":
    main()
