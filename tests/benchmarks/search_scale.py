"""Distillation at scale: seconds, memory and R2 of every engine on many rows, in a process of its own.

    python tests/benchmarks/search_scale.py [--rows 1000000] [--columns 100] [--seconds 60] [--inputs 5]
        [--engine NAME ...] [--data table|sequences ...] [--threads 4] [--json FILE]

A table has independent rows and ``--columns`` columns. Sequences have 500 steps; every one of their
``--inputs`` features has 97 columns in the dictionary. Both are float64: a rule's output and 1 % of noise.
Memory is the peak over the command and all its children of the sum of their shares (PSS), which is what the
run takes from the machine, and the files of joblib in memory beside it.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import parser_of, save

from interchange.files.trajectories import Run, Samples, Trajectories, save_trajectories
from interchange.language.execute import compile_program, evaluate
from interchange.language.parse import parse
from interchange.rule.front import read_front

ENGINES = ("operon", "linear", "auto")
STEPS = 500
RUNS = {"train": 7, "valid": 2, "test": 1}  # tenths of the coordinates
SEQUENCE_INPUTS = {
    "g": "g",
    "m": "ema_hat(g, 0.9)",
    "v": "ema_hat(square(g), 0.99)",
    "m_tilde": "ema_hat(g, 0.95) / (sqrt(ema_hat(square(g), 0.95)) + 1e-08)",
    "g_tilde": "g / (sqrt(ema_hat(square(g), 0.95)) + 1e-08)",
}
RULE = "-0.7 * tanh(1.3 * ema(g, 0.85) / (sqrt(ema_hat(square(g), 0.97)) + 1e-08)) - 0.05 * sign(lag(g, 1))"
_SAMPLE = 0.2  # seconds between two looks at the memory
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def table(rows: int, columns: int, path: Path) -> None:
    """A table of ``rows`` independent rows whose target is made of three columns."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, columns))
    x *= np.exp(generator.normal(size=columns))
    y = 0.8 * np.tanh(x[:, 0] + 0.5 * x[:, columns // 2]) - 0.3 * x[:, columns - 1] / x[:, columns - 1].std()
    y += 0.01 * y.std() * generator.normal(size=rows)
    names = {f"x{k}": "" for k in range(columns)}
    save_trajectories(path, Trajectories(names, {}, samples=Samples(x, y, np.ones(columns))))


def sequences(rows: int, inputs: int, path: Path) -> None:
    """Runs of ``STEPS`` steps, AR(1) gradients of very different sizes, the target a rule's output."""
    expressions = dict(list(SEQUENCE_INPUTS.items())[:inputs])
    program = compile_program([parse(text) for text in (*expressions.values(), RULE)])
    generator = np.random.default_rng(0)
    runs: dict[str, Run] = {}
    split: dict[str, tuple[str, ...]] = {}
    for part, tenths in RUNS.items():
        names = []
        for _ in range(tenths):
            name = f"{len(runs):06d}"
            runs[name] = _run(name, max(1, rows // (10 * STEPS)), program, len(expressions), generator)
            names.append(name)
        split[part] = tuple(names)
    save_trajectories(path, Trajectories(expressions, runs, split))


def _run(name: str, count: int, program: Any, inputs: int, generator: np.random.Generator) -> Run:
    noise = generator.normal(size=(STEPS, count)) * np.exp(2.0 * generator.normal(size=count))
    g = evaluate(compile_program([parse("ema(g, 0.5)")]), {"g": noise})[0]
    *x, y = evaluate(program, {"g": g})
    index = np.arange(count, dtype=np.int32)
    return Run(
        name=name, problem="quadratic", problem_json="{}", source_kind="user", source_json="{}",
        source_sha256="", seed=0, init_seed=0, num_steps=STEPS, scale=1.0, diverged=False, outcome="ok",
        x=np.stack(x[:inputs], axis=-1), g=np.array(g),
        y=y + 0.01 * y.std() * generator.normal(size=y.shape),
        loss=np.ones(STEPS), step=np.arange(1, STEPS + 1), param_index=0 * index, flat_index=index,
        params_names=("x",), params_shapes=((count,),),
    )  # fmt: skip


def family(pid: int, parent: bytes = b"") -> Iterator[int]:
    """A process and all that descend from it.

    One between vfork and exec still has its parent's command line and memory, and would count twice.
    """
    with contextlib.suppress(OSError, ValueError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if command == parent:
            return
        yield pid
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child), command)


def share(pid: int) -> int:
    """Bytes of a process, pages it shares counted in parts; 0 where it is gone."""
    try:
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def shared_files(pid: int) -> int:
    """Bytes of joblib's files in memory, which count also while nobody maps them."""
    size = 0
    for folder in Path("/dev/shm").glob(f"joblib_memmapping_folder_{pid}_*"):
        with contextlib.suppress(OSError):
            size += sum(file.stat().st_size for file in folder.rglob("*"))
    return size


def measured(command: list[str], log: Path) -> dict[str, Any]:
    """Run a command; its exit code, seconds, and peaks of memory in bytes."""
    peaks = {"tree": 0, "command": 0, "files": 0}
    started = time.monotonic()
    with log.open("wb") as messages:
        process = subprocess.Popen(command, stdout=messages, stderr=messages)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE):
            sizes = [share(pid) for pid in family(process.pid)]
            peaks["tree"] = max(peaks["tree"], sum(sizes))
            peaks["command"] = max(peaks["command"], *sizes[:1], 0)
            peaks["files"] = max(peaks["files"], shared_files(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.monotonic() - started
    done.set()
    watcher.join()
    return {"code": code, "seconds": seconds, **{f"peak_{name}": size for name, size in peaks.items()}}


def distilled(file: Path, engine: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run of the command and the best of its front."""
    out = folder / f"rules-{file.stem}-{engine}"
    command = [sys.executable, "-m", "interchange.distill", str(file), "--engine", engine, "--quiet"]
    command += ["--time", str(options.seconds), "--threads", str(options.threads), "--out", str(out)]
    result = measured(command, folder / "messages.txt")
    if result["code"]:
        result["error"] = (folder / "messages.txt").read_text(errors="replace").strip().splitlines()[-1:]
        return result
    best = max(read_front(out), key=lambda rule: rule.provenance["r2"]["valid"])
    return result | {"nodes": best.complexity, "r2": best.provenance["r2"]["test"], "rule": str(best)}


def main() -> None:
    parser = parser_of(__doc__, rows=1_000_000, columns=100, seconds=60.0)
    parser.add_argument("--inputs", type=int, default=5, choices=range(1, len(SEQUENCE_INPUTS) + 1))
    parser.add_argument("--engine", nargs="*", default=list(ENGINES))
    parser.add_argument("--data", nargs="*", default=["table", "sequences"], choices=["table", "sequences"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        for data in options.data:
            file = Path(name, f"{data}.h5")
            if data == "table":
                table(options.rows, options.columns, file)
            else:
                sequences(options.rows, options.inputs, file)
            for engine in options.engine:
                result = {"data": data, "engine": engine} | distilled(file, engine, options, Path(name))
                results.append(result)
                print(line(result), flush=True)
            file.unlink()
    if options.json:
        settings = {key: getattr(options, key) for key in ("rows", "columns", "inputs", "seconds", "threads")}
        save(options.json, {"settings": settings, "runs": results})


def line(result: dict[str, Any]) -> str:
    """One run for the screen."""
    memory = "  ".join(
        f"{name} {result[f'peak_{name}'] / 2**30:.2f} GiB" for name in ("tree", "command", "files")
    )
    end = f"error: {result['error']}" if result["code"] else f"R2 {result['r2']:.4f}, {result['nodes']} nodes"
    return f"{result['data']:9s}  {result['engine']:6s}  {result['seconds']:6.1f} s  {memory}  {end}"


if __name__ == "__main__":
    main()
