"""Peak memory and time of tuning a rule on a large network, against plain training with SGD.

    python tests/benchmarks/tune_memory.py [--problem resnet-18 --batch-size 32 --steps 4 --backends torch,tf]

Every contestant is a process of its own: SGD without a look at test images; ``tune`` with one validation
optimizee, before and after. Memory is the most the process had (VmHWM), all it imports and its data included.
Seconds are of an inner step, gradient and tangents, without validation: those of an epoch after the first.
"""

import json
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from contestants import memory
from interleaved import parser_of, save, tell

# label -> the rule that is tuned, and how
CONTESTANTS = {
    "sgd": {},
    "psi, forward": {"rule": "psi", "estimator": "forward"},
    "psi, forward, 0.1 GiB": {"rule": "psi", "estimator": "forward", "memory": 0.1},
    "rnnprop_tuned, forward": {"rule": "rnnprop_tuned", "estimator": "forward"},
    "rnnprop_tuned, forward, 0.1 GiB": {"rule": "rnnprop_tuned", "estimator": "forward", "memory": 0.1},
    "polar_normalised, forward": {"rule": "polar_normalised", "estimator": "forward"},
    "rnnprop_tuned, es": {"rule": "rnnprop_tuned", "estimator": "es", "pairs": 1},
}


def trained(backend: str, given: dict[str, Any], steps: int) -> float:
    """Seconds of a step of plain training."""
    from common.tables.baselines import parse_spec
    from interchange.meta.config import TuneConfig

    tasks, rollout = import_module(f"{backend}_impl.problems.tasks"), import_module(f"{backend}_impl.rollout")
    source = import_module(f"{backend}_impl.backend").load_source(parse_spec("sgd"))
    task = tasks.table_task(TuneConfig(**given), "meta_train", 0)
    rollout.rollout(source, 0.01, task, 2, score=False)
    started = time.perf_counter()
    rollout.rollout(source, 0.01, task, steps, score=False)
    return (time.perf_counter() - started) / steps


def tuned(backend: str, given: dict[str, Any], how: dict[str, Any], steps: int) -> float:
    """Seconds of a step of the last of three epochs."""
    from interchange.meta.config import TuneConfig
    from interchange.meta.trainer import Trainer

    seconds: list[float] = []
    epoch = Trainer._epoch

    def timed(self: Trainer, interrupt: Any) -> bool:
        started = time.perf_counter()
        done = epoch(self, interrupt)
        seconds.append(time.perf_counter() - started)
        return done

    Trainer._epoch = timed
    fields = {"epochs": 2, "epoch_length": steps, "unroll": steps, "validation_tasks": 1, "validate_every": 9}
    with tempfile.TemporaryDirectory() as folder:
        config = TuneConfig(**given, **how, **fields, out=f"{folder}/tuned.json", quiet=True)
        import_module(f"{backend}_impl.tune").tune(config)
    return seconds[-1] / steps / (2 * config.pairs if config.estimator == "es" else 1)


def answer(settings: dict[str, Any]) -> None:
    """What a child does: run, and print seconds of a step and the peak."""
    backend, given, how, steps = (settings[key] for key in ("backend", "given", "how", "steps"))
    seconds = tuned(backend, given, how, steps) if how else trained(backend, given, steps)
    print(json.dumps({"seconds": seconds, "peak": memory("VmHWM")}))


def measured(**settings: Any) -> dict[str, float]:
    """The answer of a child."""
    command = [sys.executable, __file__, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = parser_of(__doc__, problem="resnet-18", batch_size=32, steps=4, backends="torch,tf", only="")
    options = parser.parse_args()
    given = {"problem": options.problem, "batch_size": options.batch_size, "dataset": "synthetic"}
    rows: dict[str, Any] = {}
    for backend in options.backends.split(","):
        for label, how in CONTESTANTS.items():
            if options.only and how and not any(part in label for part in options.only.split(";")):
                continue
            tell(f"{backend}: {label}")
            row = rows[f"{backend}: {label}"] = measured(
                backend=backend, given=given, how=how, steps=options.steps
            )
            base = rows[f"{backend}: sgd"]
            print(
                f"{backend:>6} {label:34s}{row['peak'] / 2**30:6.2f} GiB ({row['peak'] / base['peak']:.2f}) "
                f"{row['seconds']:7.2f} s/step ({row['seconds'] / base['seconds']:.2f})",
                flush=True,
            )
    if options.json:
        save(options.json, rows)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        sys.path.insert(0, str(Path(__file__).parents[2]))
        answer(json.loads(sys.argv[1]))
    else:
        main()
