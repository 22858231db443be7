"""Meta-training by 1, 2, 4 processes of one thread each, with as many optimizees per process: weak scaling.

    python tests/benchmarks/scaling.py [--backend torch tf] [--teacher rnnprop rp_s] [--problem digits-mlp]
        [--workers 1 2 4] [--tasks 1] [--epochs 8] [--steps 100] [--unroll 20] [--rounds 3] [--json FILE]

Inner steps a second of all processes together, from the median epoch after the first two of every run; the
rounds take the numbers of processes in turn. An all-reduce is one message as an update sends it, timed alone.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import parser_of, save, tell

from common.tables.teachers import TEACHERS
from interchange.meta.config import TrainConfig
from interchange.meta.workers import place

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from together import free_ports, surroundings

ONE_THREAD = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
CALLS = 200  # of the all-reduce


def worker(backend: str, settings: dict[str, Any]) -> None:
    """One process's part; the first prints its epochs' seconds and the all-reduce's median."""
    package = importlib.import_module(f"{backend}_impl")
    side = importlib.import_module(f"{backend}_impl.backend")
    row = TEACHERS[settings["teacher"]]
    zeros = {name: np.zeros(shape) for name, shape in row.weight_shapes().items()}
    numbers, seconds = np.zeros(4 + settings["unroll"]), []
    with side.join("cpu") as workers:
        weights = side.teacher_network(row, zeros, "float32", "cpu").weights
        for _ in range(CALLS):
            started = time.perf_counter()
            workers.sum(weights, numbers)
            seconds.append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder, "run"))
        run = package.train(TrainConfig(**settings, validate_every=0, quiet=True, out=out))
    if place(backend).rank == 0:
        count = sum(a.size for a in zeros.values())
        found = {
            "weights": count,
            "message_bytes": 8 * (count + len(numbers)),
            "all_reduce_seconds": statistics.median(seconds),
            "epoch_seconds": [row["seconds"] for row in run.history][2:],
        }
        print(json.dumps(found))


def measured(backend: str, size: int, settings: dict[str, Any]) -> dict[str, Any]:
    """What the first of ``size`` processes printed."""
    ports, command = free_ports(size), [sys.executable, __file__, "--as-worker", json.dumps(settings)]
    inherited = os.environ | dict.fromkeys(ONE_THREAD, "1")
    processes = [
        subprocess.Popen(
            [*command, "--backend", backend],
            env=inherited | (surroundings(backend, rank, ports) if size > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("\n".join(err for _, err in outputs))
    return json.loads(outputs[0][0].splitlines()[-1])


def case(backend: str, teacher: str, problem: str, options: argparse.Namespace) -> dict[str, Any]:
    """Medians for every number of processes."""
    seconds: dict[int, list[float]] = {size: [] for size in options.workers}
    messages: dict[int, list[float]] = {size: [] for size in options.workers}
    for _ in range(options.rounds):
        for size in options.workers:
            settings = {name: getattr(options, name) for name in ("epochs", "unroll", "data_dir")}
            settings |= {"teacher": teacher, "problem": problem, "tasks": options.tasks * size}
            settings["epoch_length"] = options.steps
            found = measured(backend, size, settings)
            seconds[size] += found["epoch_seconds"]
            messages[size].append(found["all_reduce_seconds"])
    first = options.workers[0]
    rates = {
        size: options.steps * options.tasks * size / statistics.median(seconds[size]) for size in seconds
    }
    return {
        "backend": backend,
        "teacher": teacher,
        "problem": problem,
        "weights": found["weights"],
        "message_bytes": found["message_bytes"],
        "steps_per_second": rates,
        "efficiency": {size: rate / rates[first] * first / size for size, rate in rates.items()},
        "all_reduce_ms": {size: 1e3 * statistics.median(values) for size, values in messages.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line per case and number of processes."""
    lines = [
        f"{'':32s} {'processes':>9s} {'steps/s':>9s} {'efficiency':>10s} {'all-reduce':>12s} {'bytes':>7s}"
    ]
    for row in rows:
        for size, rate in row["steps_per_second"].items():
            label = f"{row['backend']} {row['teacher']} {row['problem']}"
            message = f"{row['all_reduce_ms'][size]:.3f} ms"
            lines.append(
                f"{label:32s} {size:9d} {rate:9.1f} {row['efficiency'][size]:10.2f} {message:>12s} "
                f"{row['message_bytes']:7d}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = parser_of(__doc__, epochs=8, unroll=20, rounds=3, data_dir="")
    parser.add_argument("--backend", nargs="+", default=["torch", "tf"], choices=["torch", "tf"])
    parser.add_argument("--teacher", nargs="+", default=["rnnprop", "rp_s"])
    parser.add_argument("--problem", nargs="+", default=["digits-mlp", "mnist-mlp"])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--tasks", type=int, default=1, help="optimizees per process")
    parser.add_argument("--steps", type=int, default=100, help="of an epoch")
    parser.add_argument("--as-worker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_worker:
        worker(options.backend[0], json.loads(options.as_worker))
        return
    rows = []
    for backend in options.backend:
        for teacher in options.teacher:
            for problem in options.problem:
                rows.append(case(backend, teacher, problem, options))
                tell(table(rows[-1:]))
                if options.json:
                    save(options.json, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
