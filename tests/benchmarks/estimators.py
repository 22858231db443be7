"""Meta-gradient estimators side by side: the same teacher, the same seconds of training, what it reaches.

    python tests/benchmarks/estimators.py [--problem mnist-mlp] [--teacher rp_s] [--seconds 60] [--seeds 5]
        [--estimator first second es pes] [--lr es=0.01 ...] [--steps 200] [--json FILE]

How many epochs fill the CPU seconds is measured first, estimator by estimator, without validations; in the
runs five of these come on top. The best weights by validation are rolled out from the same fresh starts, on
the half of the data no run has seen. Figures as in MATH.md section 6; the interval is over seeds.
"""

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import parser_of, save, tell

from common.metrics import interval, number
from interchange.commands.train import Run
from interchange.meta.config import TrainConfig
from torch_impl import train
from torch_impl.meta.unroll import mean_loss_at
from torch_impl.networks.teacher import TeacherNetwork
from torch_impl.problems.tasks import table_task
from torch_impl.tensors import DTYPES

ESTIMATORS = ("first", "second", "es", "pes")
VALIDATIONS = 5


def timed(config: TrainConfig) -> tuple[Run, float]:
    """A training in a folder of its own, and its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        run = train(dataclasses.replace(config, out=str(Path(folder, "run")), quiet=True))
        if run.exit_code:  # a signal stopped it
            sys.exit(run.exit_code)
        return run, time.process_time() - started


def epoch_seconds(config: TrainConfig, epochs: int = 6) -> float:
    """CPU seconds of one epoch without validation, from the difference of a short run and a longer one."""

    def spent(count: int) -> float:
        return timed(dataclasses.replace(config, epochs=count, validate_every=0))[1]

    spent(1)  # the first pays for imports and data
    return max(spent(1 + epochs) - spent(1), 1e-2) / epochs


def reached(run: Run, config: TrainConfig, starts: int, steps: int) -> float:
    """Mean figure of the run's best weights over ``starts`` fresh optimizees on data no run has seen."""
    dtype = DTYPES[config.dtype]
    network = TeacherNetwork(run.teacher, run.weights, dtype)
    unseen = dataclasses.replace(config, seed=0)
    tasks = (table_task(unseen, "test", k, "evaluation") for k in range(starts))
    return mean_loss_at(tasks, network, steps)


def measure(config: TrainConfig, seconds: float, seeds: int, starts: int, steps: int) -> dict[str, Any]:
    """What ``config.estimator`` reaches in ``seconds``, seed by seed."""
    each = epoch_seconds(config)
    epochs = max(1, round(seconds / each))
    every = max(1, epochs // VALIDATIONS)
    losses, spent, updates = [], [], epochs
    for seed in range(seeds):
        chosen = dataclasses.replace(config, seed=seed, epochs=epochs, validate_every=every)
        run, wall = timed(chosen)
        losses.append(reached(run, chosen, starts, steps))
        spent.append(wall)
        tell(f"{config.estimator} seed {seed}: {losses[-1]:.4f} in {wall:.0f} s")
    if config.estimator != "es":
        updates *= -(-config.epoch_length // config.unroll)
    mean, low, high = interval(losses)
    return {
        "lr": config.lr,
        "epoch_seconds": each,
        "epochs": epochs,
        "updates": updates,
        "seconds": spent,
        "losses": losses,
        "mean": mean,
        "interval": [low, high],
        "std": float(np.std(losses, ddof=1)) if seeds > 1 else 0.0,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line per estimator: epochs, updates, loss with its interval, standard deviation over seeds."""
    lines = [
        f"{'estimator':10s} {'lr':>8s} {'s/epoch':>8s} {'epochs':>7s} {'updates':>8s}   loss (95 %)   std"
    ]
    for name, row in results.items():
        low, high = row["interval"]
        loss = f"{number(row['mean'], '.4f')} ({number(low, '.4f')}, {number(high, '.4f')})"
        counts = f"{row['epoch_seconds']:8.3f} {row['epochs']:7d} {row['updates']:8d}"
        lines.append(f"{name:10s} {row['lr']:8.2g} {counts}   {loss}   {row['std']:.4f}")
    return "\n".join(lines)


def main() -> None:
    parser = parser_of(
        __doc__, problem="mnist-mlp", teacher="rp_s", seeds=5, epoch_length=200, threads=1, data_dir=""
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of one training")
    parser.add_argument("--estimator", nargs="+", default=list(ESTIMATORS), choices=ESTIMATORS)
    parser.add_argument("--lr", nargs="*", default=[], metavar="NAME=RATE", help="instead of 1e-3")
    parser.add_argument("--steps", type=int, default=200, help="of the rollouts that judge")
    parser.add_argument("--starts", type=int, default=8, help="of those rollouts")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rates = dict(pair.split("=") for pair in options.lr)
    results: dict[str, dict[str, Any]] = {}
    for name in options.estimator:
        config = TrainConfig(
            problem=options.problem,
            teacher=options.teacher,
            estimator=name,
            epoch_length=options.epoch_length,
            lr=float(rates.get(name, 1e-3)),
            validation_tasks=2,
            data_dir=options.data_dir,
        )
        results[name] = measure(config, options.seconds, options.seeds, options.starts, options.steps)
        if options.json:
            settings = {key: value for key, value in vars(options).items() if key not in ("json", "data_dir")}
            save(options.json, {"settings": settings, "estimators": results})
    print(table(results))


if __name__ == "__main__":
    main()
