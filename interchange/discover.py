"""Trajectories -> a Pareto front of rules: search, refit of all constants on whole sequences, pruning."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from common.cli import Progress
from common.errors import L2OError
from common.parallel import parallel
from common.rng import derived_seed
from interchange import expression as ex
from interchange.canonical import name_constants
from interchange.choice import valid_r2
from interchange.expression import Node
from interchange.folds import cross_validated
from interchange.live import LiveLine
from interchange.parse import parse
from interchange.refit import improve, polish
from interchange.rollouts import threads
from interchange.rule import Rule
from interchange.search import Task, find_engine
from interchange.search.child import run_engine

if TYPE_CHECKING:
    from interchange.distill import DistillConfig
    from interchange.samples import Sequences
    from interchange.trajectories import Trajectories

_MAX_ROWS = 8_000
_COLUMNS = 24  # that an engine sees, at most, beside the features themselves
_SEARCH_SHARE = 0.4  # of the time; the rest refits and prunes
_TABLE_SHARE = 0.7  # the same for a table, whose rules are fitted soon
_REFIT_UNTIL, _POLISH_UNTIL = 0.85, 0.95  # of the time; what is under way then still ends within it
_COMMITTEE = 6  # rules of the first search that are rolled out and say where they disagree
_QUICK_SHARE = 0.1  # of the time, for the first refit of these
_SEED = 2**31

_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)


def search_front(trajectories: "Trajectories", config: "DistillConfig", started: float) -> list[Rule]:
    """The Pareto front (complexity, R2 on the validation runs or, of a table, folds), shortest first.

    Args:
        started: ``time.monotonic()`` from which ``config.time`` counts.
    """
    from interchange import samples

    data = {split: samples.sequences(trajectories, split) for split in ("train", "valid", "test")}
    target = data["train"].target
    if target.min() == target.max():  # the standard deviation of equal numbers need not be 0
        raise L2OError(f"{config.trajectories}: the targets are all equal; train or tune their source first")
    nodes = _search(trajectories, data["train"], config, 0.5 if config.active else 1.0)
    drafts = _drafts(nodes, trajectories, config)
    if config.active:
        soon = _deadline(config, time.monotonic(), _QUICK_SHARE)
        first = pareto_front(_improve_all(drafts, data, config, soon))
        asked = time.monotonic()
        data["train"] = _asked(first, trajectories, data["train"], config)
        started += time.monotonic() - asked  # rollouts come on top, as those of --select rollout
        drafts = _drafts(_search(trajectories, data["train"], config, 0.5), trajectories, config)
        drafts = [*first, *drafts]
    rules = pareto_front(_improve_all(drafts, data, config, _deadline(config, started, _REFIT_UNTIL)))
    rules = pareto_front(_polished(rules, data, config, started))
    if trajectories.samples is not None:
        rules = pareto_front(cross_validated(rule, data["train"]) for rule in rules)
    front = [dataclasses.replace(renumbered(rule), name=f"{rule.complexity} nodes") for rule in rules]
    if not front:
        raise L2OError(f"no rule of at most {config.max_size} nodes was found; raise --time or --max-size")
    return front


def pareto_front(rules: Iterable[Rule]) -> list[Rule]:
    """The Pareto front, shortest first; a rule worse than the mean of the target is none."""
    front: list[Rule] = []
    best = 0.0
    for rule in sorted(rules, key=lambda r: (r.complexity, -valid_r2(r))):
        if valid_r2(rule) > best + 1e-6:
            best = valid_r2(rule)
            front.append(rule)
    return front


def make_task(
    trajectories: "Trajectories", train: "Sequences", config: "DistillConfig", share: float = 1.0
) -> Task:
    """What the engine is asked: few rows that cover tensors, phases and tails, and few columns of many.

    Args:
        share: of the time and the evaluations.
    """
    from interchange import samples
    from interchange.columns import screen, wide_dictionary

    names = list(dict.fromkeys([*trajectories.features, *train.features]))
    # The rows of a table have no past.
    columns = wide_dictionary(names) if trajectories.samples is None else list(map(ex.name, names))
    rows = samples.choose_rows(train, _MAX_ROWS, config.seed)
    values, target = samples.row_values(columns, train.features, rows), rows.of(train.target)
    part = _SEARCH_SHARE if trajectories.samples is None else _TABLE_SHARE
    kept = screen(columns, values, target, rows.weights, max(_COLUMNS, len(names)))
    return Task(
        names=tuple(names),
        features=train.features,
        target=train.target,
        columns=tuple(ex.to_text(columns[k]) for k in kept),
        rows=values[:, kept],
        y=target,
        weights=rows.weights,
        time=max(1.0, share * part * config.time),
        evaluations=math.ceil(share * config.evaluations),
        max_size=config.max_size,
        seed=config.seed,
        threads=max(1, threads(config) // min(config.restarts, threads(config))),
        memory=int(config.memory * 2**30),
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


def _search(
    trajectories: "Trajectories", train: "Sequences", config: "DistillConfig", share: float
) -> list[Node]:
    """What the engine finds, in all restarts."""
    task = make_task(trajectories, train, config, share)
    if config.restarts == 1:
        with Progress("search", int(task.time), quiet=config.quiet) as progress:
            line = LiveLine(task, progress)
            return run_engine(config.engine, task, line.tick, line.update)
    tasks = [
        dataclasses.replace(task, seed=derived_seed(config.seed, "restart", k) % _SEED if k else task.seed)
        for k in range(config.restarts)
    ]
    found: dict[Node, None] = {}
    workers = min(config.restarts, threads(config))
    with (
        Progress("search", len(tasks), quiet=config.quiet) as progress,
        parallel(workers, config.cluster) as run,
    ):
        for nodes in _until_interrupted(run(run_engine, ((config.engine, task) for task in tasks)), found):
            found |= dict.fromkeys(nodes)
            progress.advance(equations=str(len(found)))
    return list(found)


def _asked(
    rules: list[Rule], trajectories: "Trajectories", train: "Sequences", config: "DistillConfig"
) -> "Sequences":
    """The training sequences, and some along rollouts of the best rules, answered by the teacher."""
    from interchange import active, rollouts

    teacher = active.find_teacher(trajectories, config.teacher, Path(config.trajectories).parent)
    committee = rules[-_COMMITTEE:]
    steps, count = len(train.target), active.POOL * config.active
    g = rollouts.visited(committee, config, trajectories, steps, count)
    bound = float(np.abs(train.target).max())
    more = active.disputed(committee, teacher, g, trajectories.features, bound, config.active, config.seed)
    return train.joined(more)


def _drafts(nodes: Iterable[Node], trajectories: "Trajectories", config: "DistillConfig") -> list[Rule]:
    """Rules with named constants over the teacher's features; equal forms once."""
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
    return list(drafts.values())


def _improve_all(
    drafts: list[Rule], data: "dict[str, Sequences]", config: "DistillConfig", deadline: float
) -> list[Rule]:
    """Every draft refitted and pruned within the time left; those short enough, with R2 of each split."""
    # Time may not suffice: short rules are fitted soon, and long ones are pruned to all sizes.
    ordered = sorted(drafts, key=lambda rule: rule.complexity)
    turns = [ordered[k // 2] if k % 2 else ordered[-1 - k // 2] for k in range(len(ordered))]
    jobs = ((rule, _read(rule, data), deadline, config.max_size) for rule in turns)
    return [rule for versions in _parallel("refit", improve, jobs, len(drafts), config) for rule in versions]


def _polished(
    rules: list[Rule], data: "dict[str, Sequences]", config: "DistillConfig", started: float
) -> list[Rule]:
    """The rules fitted to all there is within the time left."""
    deadline = _deadline(config, started, _POLISH_UNTIL)
    jobs = ((rule, _read(rule, data), deadline) for rule in rules)
    found = _parallel("polish", polish, jobs, len(rules), config)
    return found if len(found) == len(rules) else rules


def _read(rule: Rule, data: "dict[str, Sequences]") -> "dict[str, Sequences]":
    """What the rule reads: no more is sent to a process."""
    return {split: part.only(rule.features) for split, part in data.items()}


def _deadline(config: "DistillConfig", started: float, share: float) -> float:
    """``time.monotonic()`` to end at; with a budget of evaluations nothing depends on the clock."""
    return math.inf if config.evaluations else started + share * config.time


def _parallel(
    label: str, function: Callable[..., _Result], jobs: Iterable[tuple], count: int, config: "DistillConfig"
) -> list[_Result]:
    """Results as they come, fewer after Ctrl-C."""
    results: list[_Result] = []
    with Progress(label, count, quiet=config.quiet) as progress, parallel(threads(config)) as run:
        for result in _until_interrupted(run(function, jobs), results):
            results.append(result)
            progress.advance()
    return results


def _until_interrupted(results: Iterable[_Result], kept: object) -> Iterator[_Result]:
    """The results; Ctrl-C ends them early, unless nothing is kept yet."""
    try:
        yield from results
    except KeyboardInterrupt:
        if not kept:
            raise
        _log.warning("interrupted; goes on with what was found until now")
