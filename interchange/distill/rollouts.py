"""What distillation asks of a backend: rollouts, by its commands in processes of their own."""

import concurrent.futures
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.data import datasets
from common.errors import L2OError
from common.extras import BACKENDS, require
from common.machine import cores
from common.rng import derived_seed
from common.tables.problems import PROBLEMS, problem_row
from interchange.distill.structure import structure_of, whole
from interchange.rule.rule import Rule

if TYPE_CHECKING:
    from interchange.distill.config import DistillConfig
    from interchange.files.trajectories import Trajectories

_RUNS = 4  # rollouts of every rule
_SEED = 2**31

_log = logging.getLogger(__name__)


def check_backend(config: "DistillConfig") -> None:
    """Refuse rollouts at once where the framework that would do them is not installed."""
    require(f"--backend {config.backend}", BACKENDS[config.backend])


def find_problem(config: "DistillConfig", trajectories: "Trajectories") -> str:
    """The problem rules are rolled out on.

    Raises:
        L2OError: none is known, or its data are missing.
    """
    names = list(dict.fromkeys(run.problem for run in trajectories.runs.values()))
    problem = config.problem or (names[0] if names else "")
    if not problem:
        raise L2OError("rollouts need --problem, because the recording names none")
    if not config.problem and len(names) > 1:
        _log.warning("of %s rules are rolled out on the first; choose with --problem", ", ".join(names))
    row = problem_row(problem, _dataset(config, trajectories, problem))
    if row.dataset:
        datasets.load(row.dataset, config.data_dir)
    return problem


def place_flags(trajectories: "Trajectories", problem: str) -> list[str]:
    """The flags of ``select`` that put its rollouts where ``problem`` was recorded: data and batch size."""
    run = next((run for run in trajectories.runs.values() if run.problem == problem), None)
    if run is None or problem not in PROBLEMS:
        return []
    row = json.loads(run.problem_json)  # "{}" where a user's own loop was recorded
    dataset = row.get("dataset") if isinstance(row, dict) else None
    batch_size = trajectories.config.get("batch_size")
    flags = [f"--dataset={dataset}"] if dataset and dataset != PROBLEMS[problem].dataset else []
    return flags + ([f"--batch-size={batch_size}"] if batch_size else [])


def _dataset(config: "DistillConfig", trajectories: "Trajectories", problem: str) -> str:
    """What stands in for the problem's own data; "" for nothing."""
    flags = [
        flag.removeprefix("--dataset=") for flag in place_flags(trajectories, problem) if "--dataset=" in flag
    ]
    return config.dataset or next(iter(flags), "")


def threads(config: "DistillConfig") -> int:
    """As many as asked for, or as there are cores."""
    return config.threads or cores()


def select(config: "DistillConfig", trajectories: "Trajectories", folder: Path) -> None:
    """The backend's ``select`` command: measures the front's losses and picks ``best.json`` by them."""
    flags = ["--jobs", str(threads(config)), "--seed", str(config.seed)]
    _run(config, trajectories, "select", str(folder), flags, quiet=config.quiet)


def visited(
    rules: Sequence[Rule], config: "DistillConfig", trajectories: "Trajectories", steps: int, count: int
) -> np.ndarray:
    """Gradients [steps, about ``count``] along rollouts of the rules, at coordinates of all tensors.

    Rules are rolled out with the structure that their teacher was recorded with.

    Rules that diverge are left out, and said so.

    Raises:
        L2OError: every rule diverges.
    """
    structure = structure_of(trajectories)
    samples = max(1, round(count / len(rules))) * steps
    # Not the recording's own optimizees: some of them are held out.
    seed = derived_seed(trajectories.seed, "rollouts") % _SEED
    with tempfile.TemporaryDirectory(prefix="l2o-rollouts-") as folder:

        def record(number: int) -> list[np.ndarray]:
            from interchange.files.trajectories import load_trajectories

            rule, out = Path(folder, f"{number}.json"), Path(folder, f"{number}.h5")
            whole(rules[number], structure).save(rule)
            sizes = {"runs": _RUNS, "steps": steps, "samples": samples, "seed": seed + number, "out": out}
            flags = [text for name, value in sizes.items() for text in (f"--{name}", str(value))] + [
                "--quiet"
            ]
            try:
                _run(config, trajectories, "record", f"rule:{rule}", flags, quiet=True)
            except L2OError as error:
                _log.warning("a rule of %d nodes is not asked about: %s", rules[number].complexity, error)
                return []
            return [run.g for run in load_trajectories(out).runs.values() if not run.diverged]

        with concurrent.futures.ThreadPoolExecutor(threads(config)) as pool:
            found = [g for runs in pool.map(record, range(len(rules))) for g in runs]
    if not found:
        raise L2OError(
            f"all {len(rules)} rules fail in rollouts; give the search more --time, or no --active"
        )
    return np.concatenate(found, axis=1).astype(np.float64)


def _run(
    config: "DistillConfig",
    trajectories: "Trajectories",
    command: str,
    what: str,
    flags: Sequence[str],
    *,
    quiet: bool,
) -> None:
    """A command of the backend, on the recording's data unless told others; its progress is shown or not."""
    problem = find_problem(config, trajectories)
    line = [sys.executable, "-m", f"{config.backend}_impl.{command}", what, "--problem", problem, *flags]
    line += place_flags(trajectories, problem)
    line += [f"--dataset={config.dataset}"] if config.dataset else []  # the last one counts
    line += [f"--data-dir={config.data_dir}"] if config.data_dir else []
    result = subprocess.run(
        line + ["--quiet"] * quiet,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        check=False,
    )
    if result.returncode:
        last = ((result.stderr or "").strip().splitlines() or ["its message is above"])[-1]
        raise L2OError(f"{command} {what} on {problem} failed with exit code {result.returncode}: {last}")
