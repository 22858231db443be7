"""Distill trajectories into a Pareto front of rules: ``python -m interchange.distill TRAJECTORIES``.

Columns of temporal features, a search engine in a child process, constants at full precision, refit of
all constants on whole sequences, pruning, and a front of complexity against held-out R2.
"""

import dataclasses
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common import datasets
from common.cli import Progress
from common.cli import run as run_command
from common.config import check, option
from common.errors import L2OError
from common.problems import PROBLEMS
from common.storage import RunLock
from interchange import expression as ex
from interchange.canonical import name_constants
from interchange.expression import Node
from interchange.front import read_front, write_front
from interchange.parse import parse
from interchange.refit import improve
from interchange.rule import Rule
from interchange.search import Task, find_engine
from interchange.search.child import run_engine

if TYPE_CHECKING:
    from interchange.samples import Sequences
    from interchange.trajectories import Trajectories

_MAX_ROWS = 8_000
_COLUMNS = 24  # that an engine sees, at most, beside the features themselves
_SEARCH_SHARE = 0.4  # of the time; the rest refits and prunes
_REFIT_UNTIL = 0.85  # of the time; what is under way then still ends within it
_WITHIN = 0.01  # a shorter rule is preferred if its R2 is no further below the best (MATH.md section 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distillation (MATH.md section 4)."""

    trajectories: str = option("", "file of recorded trajectories")
    engine: str = option("operon", "search engine: operon, auto, linear, pysr, or sklearn:MODULE:CLASS")
    time: float = option(60.0, "seconds in all, search and refit", above=0)
    max_size: int = option(40, "largest rule, in nodes", low=3, high=1000)
    select: str = option("r2", "how the best rule is chosen", choices=lambda: ("r2", "rollout"))
    backend: str = option("torch", "who rolls candidates out", choices=lambda: ("torch", "tf"))
    problem: str = option("", "problem of the rollouts; the recording's own if not given")
    seed: int = option(0, "seed of the search", low=0)
    threads: int = option(0, "threads; 0 takes every core there is", low=0)
    out: str = option("", "folder for the rules; 'rules' beside the trajectories if not given")
    data_dir: str = option("", "folder with data sets, for --select rollout")
    quiet: bool = option(False, "print nothing but errors")
    overwrite: bool = option(False, "replace what --out already holds")

    def __post_init__(self) -> None:
        check(self)
        find_engine(self.engine)


def distill(config: DistillConfig) -> tuple[list[Rule], Rule]:
    """Distill as ``config`` says; rules, ``front.csv`` and ``best.json`` go to ``config.out``.

    Returns:
        The front, shortest first, and the best rule.

    Raises:
        L2OError: a broken file, the engine's package is missing, or nothing was found.
    """
    from interchange.trajectories import load_trajectories

    started = time.monotonic()
    folder = Path(config.out or Path(config.trajectories).parent / "rules")
    if (folder / "front.csv").exists() and not config.overwrite:
        raise L2OError(f"--out {folder} holds a front; replace it with --overwrite or choose another")
    trajectories = load_trajectories(config.trajectories)
    problem = config.problem or next((run.problem for run in trajectories.runs.values()), "")
    if config.select == "rollout" and not problem:
        raise L2OError("--select rollout needs --problem, because a table of samples comes from none")
    if config.select == "rollout" and PROBLEMS[problem].dataset:
        datasets.load(PROBLEMS[problem].dataset, config.data_dir)  # missing data are found before the search
    front = search_front(trajectories, config, started)
    with RunLock(folder):
        write_front(folder, front)
        shortest_within(front).save(folder / "best.json")
    if config.select == "r2":
        return front, shortest_within(front)
    roll_out(config, problem, folder)
    return read_front(folder), Rule.load(folder / "best.json")


def search_front(trajectories: "Trajectories", config: DistillConfig, started: float) -> list[Rule]:
    """The Pareto front (complexity, R2 on the validation runs), shortest first."""
    from interchange import samples

    data = {split: samples.sequences(trajectories, split) for split in ("train", "valid", "test")}
    target = data["train"].target
    if target.min() == target.max():  # the standard deviation of equal numbers need not be 0
        raise L2OError(f"{config.trajectories}: the targets are all equal; train or tune their source first")
    task = make_task(trajectories, data["train"], config)
    with Progress("search", int(task.time), quiet=config.quiet) as progress:
        nodes = run_engine(config.engine, task, progress.advance)
    drafts = _drafts(nodes, trajectories, config)
    rules = _improve_all(drafts, data, config, started + _REFIT_UNTIL * config.time)
    front: list[Rule] = []
    best = 0.0  # a rule worse than the mean of the target is none
    for rule in sorted(rules, key=lambda r: (r.complexity, -r.provenance["r2"]["valid"])):
        if rule.provenance["r2"]["valid"] > best + 1e-6:
            best = rule.provenance["r2"]["valid"]
            front.append(dataclasses.replace(renumbered(rule), name=f"{rule.complexity} nodes"))
    if not front:
        raise L2OError(f"no rule of at most {config.max_size} nodes was found; raise --time or --max-size")
    return front


def make_task(trajectories: "Trajectories", train: "Sequences", config: DistillConfig) -> Task:
    """What the engine is asked: few rows that cover tensors, phases and tails, and few columns of many."""
    from interchange import samples
    from interchange.columns import screen, wide_dictionary

    names = list(dict.fromkeys([*trajectories.features, *train.features]))
    # The rows of a table have no past.
    columns = wide_dictionary(names) if trajectories.samples is None else list(map(ex.name, names))
    rows = samples.choose_rows(train, _MAX_ROWS, config.seed)
    values, target = samples.row_values(columns, train.features, rows), rows.of(train.target)
    kept = screen(columns, values, target, rows.weights, max(_COLUMNS, len(names)))
    return Task(
        names=tuple(names),
        features=train.features,
        target=train.target,
        columns=tuple(ex.to_text(columns[k]) for k in kept),
        rows=values[:, kept],
        y=target,
        weights=rows.weights,
        time=max(1.0, _SEARCH_SHARE * config.time),
        max_size=config.max_size,
        seed=config.seed,
        threads=_threads(config),
    )


def renumbered(rule: Rule) -> Rule:
    """The same rule with its constants called c0, c1, ... in reading order."""
    order = [name for name in ex.names(rule.expression) if name in rule.constants]
    new = {old: f"c{k}" for k, old in enumerate(order)}
    return dataclasses.replace(
        rule,
        expression=ex.substitute(rule.expression, {old: ex.name(name) for old, name in new.items()}),
        constants={name: rule.constants[old] for old, name in new.items()},
    )


def _threads(config: DistillConfig) -> int:
    return config.threads or len(os.sched_getaffinity(0))


def _drafts(nodes: list[Node], trajectories: "Trajectories", config: DistillConfig) -> list[Rule]:
    """Rules with named constants over the teacher's features; equal forms once, shortest first."""
    from importlib.metadata import version

    features = {name: parse(text) if text else None for name, text in trajectories.features.items()}
    package = find_engine(config.engine).package
    provenance = {
        "engine": f"{config.engine} {version(package)}" if package else config.engine,
        "seed": config.seed,
        "trajectories_sha256": trajectories.sha256,
    }
    if trajectories.samples is not None:
        scale = trajectories.samples.scale
    else:
        run = next(iter(trajectories.runs.values()))
        scale, provenance[f"{run.source_kind}_sha256"] = run.scale, run.source_sha256
    drafts = {}
    for node in nodes:
        named, constants = name_constants(node)
        used = {name: features[name] for name in features if name in ex.names(named)}
        if used or "g" in ex.names(named):
            rule = Rule("draft", named, constants, used, scale=scale, provenance=provenance)
            drafts.setdefault(rule.expression, rule)
    return sorted(drafts.values(), key=lambda rule: rule.complexity)


def _improve_all(
    drafts: list[Rule], data: "dict[str, Sequences]", config: DistillConfig, deadline: float
) -> list[Rule]:
    """Every draft refitted and pruned within the time left; those short enough, with R2 of each split."""
    from joblib import Parallel, delayed

    results: list[Rule] = []
    with Progress("refit", len(drafts), quiet=config.quiet) as progress:
        work = Parallel(n_jobs=_threads(config), return_as="generator_unordered", max_nbytes=None)
        for versions in work(delayed(improve)(rule, data, deadline, config.max_size) for rule in drafts):
            results += versions
            best = max((rule.provenance["r2"]["valid"] for rule in results), default=math.nan)
            progress.advance(r2=best)
    return results


def shortest_within(front: list[Rule]) -> Rule:
    """The shortest rule whose R2 on the validation runs is within 0.01 of the best."""
    limit = max(rule.provenance["r2"]["valid"] for rule in front) - _WITHIN
    return next(rule for rule in front if rule.provenance["r2"]["valid"] >= limit)


def roll_out(config: DistillConfig, problem: str, folder: Path) -> None:
    """A backend's ``select`` command: measures the front's losses and picks ``best.json`` by them."""
    command = [sys.executable, "-m", f"{config.backend}_impl.select", str(folder), "--problem", problem]
    command += ["--seed", str(config.seed)] + (["--data-dir", config.data_dir] if config.data_dir else [])
    result = subprocess.run(command + ["--quiet"] * config.quiet, stdout=subprocess.DEVNULL, check=False)
    if result.returncode:
        raise L2OError(f"rollouts failed with exit code {result.returncode}: {' '.join(command)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""

    def body(config: DistillConfig) -> None:
        front, best = distill(config)
        if not config.quiet:
            for rule in front:
                scores = rule.provenance["r2"]
                mark = "*" if rule.expression == best.expression else " "
                r2 = "  ".join(f"{split} {scores[split]:.4f}" for split in ("valid", "test"))
                print(f"{mark} {rule.complexity:3d} nodes  R2 {r2}")
            print(f"best: {Path(config.out or Path(config.trajectories).parent / 'rules') / 'best.json'}")

    return run_command(
        DistillConfig,
        body,
        argv,
        prog="python -m interchange.distill",
        description="Distill recorded trajectories into short equations.",
        positional=("trajectories",),
        required=("trajectories",),
    )


if __name__ == "__main__":
    sys.exit(main())
