"""Trajectories -> a Pareto front of rules: search, refit of all constants on whole sequences, pruning."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import L2OError
from common.rng import derived_seed
from common.run.shell import stopping
from interchange.distill.jobs import run_jobs, search_all
from interchange.distill.refit import improve, polish
from interchange.distill.rollouts import threads
from interchange.distill.start import over_recording, parts
from interchange.distill.structure import judged
from interchange.language import expression as ex
from interchange.language.canonical import name_constants
from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.rule.choice import pareto_front
from interchange.rule.rule import Rule
from interchange.search import Task, find_engine

if TYPE_CHECKING:
    from interchange.distill.config import DistillConfig
    from interchange.files.trajectories import Trajectories
    from interchange.search.samples import Sequences

_MAX_ROWS = 8_000
_COLUMNS = 24  # that an engine sees, at most, beside the features themselves
_SEARCH_SHARE = 0.4  # of the time; the rest refits and prunes
_TABLE_SHARE = 0.8  # the same for a table, whose rules are fitted soon
_REFIT_UNTIL, _POLISH_UNTIL = 0.9, 0.97  # of the time; what is under way then still ends within it
_LEAST_SHARE = 0.05  # of the time, for each step however long the one before took
_LAST = 0.5  # seconds for each step once SIGTERM has come
_COMMITTEE = 6  # rules of the first search that are rolled out and say where they disagree
_QUICK_SHARE = 0.1  # of the time, for the first refit of these
_SEED = 2**31
_WEEK = 604_800.0  # seconds: no limit

_log = logging.getLogger(__name__)


def sequence_front(
    trajectories: "Trajectories", data: "dict[str, Sequences]", config: "DistillConfig", started: float
) -> list[Rule]:
    """The Pareto front (complexity, R2 on the validation runs), shortest first.

    Args:
        data: ``train``, ``valid`` and ``test``.
        started: ``time.monotonic()`` from which ``config.time`` counts.
    """
    nodes = _search(trajectories, data["train"], config, 0.5 if config.active else 1.0)
    drafts = [*given(trajectories, config), *to_drafts(nodes, trajectories, config)]
    if config.active:
        # As if begun so much earlier that its share of the time ends when the quick refit is to end.
        soon = time.monotonic() - (_REFIT_UNTIL - _QUICK_SHARE) * config.time
        first = pareto_front(improve_all([(rule, data) for rule in drafts], config, soon))
        asked, about = time.monotonic(), {}
        try:
            data = data | {"train": _asked(first, trajectories, data["train"], config)}
            about = {"active": config.active}
        except L2OError as error:
            _log.warning("goes on without active sampling: %s", error)
        started += time.monotonic() - asked  # rollouts come on top, as those of --select rollout
        drafts = [*first, *to_drafts(_search(trajectories, data["train"], config, 0.5), trajectories, config)]
        drafts = [dataclasses.replace(rule, provenance=rule.provenance | about) for rule in drafts]
    rules = pareto_front(
        judged(improve_all([(rule, data) for rule in drafts], config, started), trajectories)
    )
    return pareto_front(judged(polish_all(rules, data, config, started), trajectories))


def make_task(
    trajectories: "Trajectories", train: "Sequences", config: "DistillConfig", share: float = 1.0
) -> Task:
    """What the engine is asked: few rows that cover tensors, phases and tails, and few columns of many.

    Args:
        share: of the time and the evaluations.
    """
    from interchange.search import samples
    from interchange.search.dictionary import screen, wide_dictionary

    names = list(dict.fromkeys([*trajectories.features, *train.features]))
    # The rows of a table have no past.
    seen = [name for name in names if name != "theta"]  # a search would make decay of anything
    columns = wide_dictionary(seen) if trajectories.samples is None else list(map(ex.name, seen))
    rows = samples.choose_rows(train, _MAX_ROWS, config.seed)
    values, target = samples.row_values(columns, train.features, rows), rows.of(train.target)
    part = _SEARCH_SHARE if trajectories.samples is None else _TABLE_SHARE
    kept = screen(columns, values, target, rows.weights, max(_COLUMNS, len(seen)))
    chosen, values = [columns[k] for k in kept], values[:, kept]
    begun = [part for rule in given(trajectories, config) for part in parts(rule)]
    if new := [node for node in begun if node not in chosen]:
        own = samples.row_values(new, train.features, rows)
        finite = np.flatnonzero(np.isfinite(own).all(axis=0))
        chosen += [new[k] for k in finite]
        values = np.concatenate([values, own[:, finite]], axis=1)
    return Task(
        names=tuple(names),
        features=train.features,
        target=train.target,
        columns=tuple(map(ex.to_text, chosen)),
        rows=values,
        y=target,
        weights=rows.weights,
        # A budget of evaluations is to end at the same place whatever the clock says.
        time=_WEEK if config.evaluations else max(1.0, share * part * config.time),
        evaluations=math.ceil(share * config.evaluations),
        max_size=config.max_size,
        seed=config.seed,
        threads=threads(config),
        memory=int(config.memory * 2**30),
        guesses=tuple(map(ex.to_text, begun[:1])),
    )


def given(trajectories: "Trajectories", config: "DistillConfig") -> list[Rule]:
    """The rule of ``--start`` over what was recorded; none without one."""
    return [over_recording(Rule.load(config.start), trajectories)] if config.start else []


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
    tasks = [
        dataclasses.replace(task, seed=derived_seed(config.seed, "restart", k) % _SEED if k else task.seed)
        for k in range(config.restarts)
    ]
    return list(dict.fromkeys(node for nodes in search_all(tasks, config) for node in nodes))


def _asked(
    rules: list[Rule], trajectories: "Trajectories", train: "Sequences", config: "DistillConfig"
) -> "Sequences":
    """The training sequences, and some along rollouts of the best rules, answered by the teacher."""
    from interchange.distill import active, rollouts

    if len(rules) < 2:
        raise L2OError(f"expected two rules or more that can disagree, found {len(rules)}; raise --time")
    teacher = active.find_teacher(trajectories, config.teacher, Path(config.trajectories).parent)
    committee = rules[-_COMMITTEE:]
    steps, count = len(train.target), active.POOL * config.active
    g = rollouts.visited(committee, config, trajectories, steps, count)
    bound = float(np.abs(train.target).max())
    more = active.disputed(committee, teacher, g, trajectories.features, bound, config.active, config.seed)
    return train.joined(more)


def to_drafts(nodes: Iterable[Node], trajectories: "Trajectories", config: "DistillConfig") -> list[Rule]:
    """Rules with named constants over the teacher's features; equal forms once."""
    features = {name: parse(text) if text else None for name, text in trajectories.features.items()}
    provenance = {
        "engine": _shown(config.engine),
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


def _shown(engine: str) -> str:
    """The engine with the version of its package, as far as there is one."""
    package = find_engine(engine).package
    try:
        number = version(package) if package else ""
    except PackageNotFoundError:  # a module of one's own
        number = ""
    if not number:
        return engine
    return f"{engine} {number}" if package.endswith(engine) else f"{engine} ({package} {number})"


def improve_all(
    drafts: "list[tuple[Rule, dict[str, Sequences]]]", config: "DistillConfig", started: float
) -> list[Rule]:
    """Every draft refitted and pruned on its data within the time left; those short enough, with their R2."""
    deadline = _deadline(config, started, _REFIT_UNTIL)
    # Time may not suffice: short rules are fitted soon, and long ones are pruned to all sizes.
    ordered = sorted(drafts, key=lambda pair: pair[0].complexity)
    turns = [ordered[k // 2] if k % 2 else ordered[-1 - k // 2] for k in range(len(ordered))]
    jobs = [
        (rule, _read(rule, data), deadline, config.max_size, config.allow_singular) for rule, data in turns
    ]
    return [rule for versions in run_jobs("refit", improve, jobs, config) for rule in versions]


def polish_all(
    rules: list[Rule], data: "Mapping[str, Sequences]", config: "DistillConfig", started: float
) -> list[Rule]:
    """The rules fitted to all there is within the time left."""
    jobs = [(rule, _read(rule, data), _deadline(config, started, _POLISH_UNTIL)) for rule in rules]
    found = run_jobs("polish", polish, jobs, config)
    return found if len(found) == len(rules) else rules


def _read(rule: Rule, data: "Mapping[str, Sequences]") -> "dict[str, Sequences]":
    """What the rule reads: no more is sent to a process."""
    names = (*rule.features, *(["theta"] if "theta" in ex.names(rule.expression) else []))
    return {split: part.only(names) for split, part in data.items()}


def _deadline(config: "DistillConfig", started: float, share: float) -> float:
    """``time.monotonic()`` to end at; with a budget of evaluations nothing depends on the clock."""
    if stopping():
        return time.monotonic() + _LAST
    if config.evaluations:
        return math.inf
    return max(started + share * config.time, time.monotonic() + _LEAST_SHARE * config.time)
