"""Distillation of a table of samples: the size of its rule comes from cross-validating the whole search.

A search fits its structures to the noise of the rows it sees, which refitting constants fold by fold does not
show. Every fold therefore has a search of its own that never sees it, and the left-out error of what these
searches give at a size is what that size is worth (Hastie et al. 2009, section 7.10.2).
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from common.rng import derived_seed
from interchange.distill import sequences
from interchange.distill.jobs import search_all
from interchange.distill.refit import predict
from interchange.rule.choice import pareto_front
from interchange.rule.rule import Rule
from interchange.search.samples import Sequences

if TYPE_CHECKING:
    from interchange.distill.config import DistillConfig
    from interchange.files.trajectories import Trajectories

FOLDS = 4
_ROWS = 50_000  # of a fold, at most
_SEED = 2**31


def table_front(
    trajectories: "Trajectories", data: Mapping[str, Sequences], config: "DistillConfig", started: float
) -> list[Rule]:
    """The Pareto front (complexity, R2 on the rows for training), shortest first.

    The R2 called ``valid`` is that of the rule's size: of left-out rows, by what the searches without them
    give up to this size.
    """
    splits = [fold | {"test": data["test"]} for fold in folds(data["train"])]
    tasks = [sequences.make_task(trajectories, split["train"], config) for split in splits] * config.restarts
    left = tasks[0].time if config.evaluations else max(1.0, tasks[0].time - (time.monotonic() - started))
    tasks = [
        dataclasses.replace(task, seed=derived_seed(config.seed, "fold", k) % _SEED, time=left)
        for k, task in enumerate(tasks)
    ]
    drafts = []
    for number, nodes in enumerate(search_all(tasks, config)):
        k = number % len(splits)
        begun = sequences.given(trajectories, config)
        for rule in [*begun, *sequences.to_drafts(nodes, trajectories, config)]:
            drafts.append((dataclasses.replace(rule, provenance=rule.provenance | {"fold": k}), splits[k]))
    versions = sequences.improve_all(drafts, config, started)
    found = [[rule for rule in versions if rule.provenance["fold"] == k] for k in range(len(splits))]
    worth = worth_of_sizes(found, splits)
    if not worth:
        return []
    # Only when all are fitted to the same rows can they be compared.
    best = [rule for rules in found for rule in pareto_front(rules, "train")]
    front = pareto_front(sequences.polish_all(best, data, config, started), "train")
    return [_judged(rule, worth) for rule in front if rule.complexity >= min(worth)]


def folds(data: Sequences) -> list[dict[str, Sequences]]:
    """Blocks of neighbours, which may be alike, each ``valid`` once; many rows are thinned."""
    rows = data.target.shape[1]
    place = np.arange(rows) * FOLDS // rows
    inside = [np.flatnonzero(place == k) for k in range(FOLDS)]
    outside = [np.flatnonzero(place != k) for k in range(FOLDS)]
    return [
        {"train": data.part(_thinned(train)), "valid": data.part(_thinned(valid))}
        for train, valid in zip(outside, inside, strict=True)
    ]


def _thinned(rows: np.ndarray) -> np.ndarray:
    return rows[:: -(-len(rows) // _ROWS)]


def worth_of_sizes(
    found: Sequence[Sequence[Rule]], splits: Sequence[Mapping[str, Sequences]]
) -> dict[int, float]:
    """Nodes -> R2 of the left-out rows of all folds, by their own searches' best fits up to this size.

    Args:
        found: rules of every fold's search with their ``train`` R2; folds without any are left out.

    Returns:
        Nothing where no search found a rule.
    """
    pairs = [
        (pareto_front(rules, "train"), split["valid"])
        for rules, split in zip(found, splits, strict=True)
        if pareto_front(rules, "train")
    ]
    if not pairs:
        return {}
    targets = np.concatenate([part.target.reshape(-1) for _, part in pairs])
    total = float(np.square(targets - targets.mean()).sum())
    errors = [
        {rule.complexity: float(np.square(part.target - predict(rule, part)).sum()) for rule in front}
        for front, part in pairs
    ]
    smallest = max(min(each) for each in errors)
    sizes = sorted({size for each in errors for size in each if size >= smallest})
    return {
        size: 1.0 - sum(each[max(s for s in each if s <= size)] for each in errors) / total for size in sizes
    }


def _judged(rule: Rule, worth: Mapping[int, float]) -> Rule:
    """The rule with the worth of its size as its ``valid`` R2."""
    value = worth[max(size for size in worth if size <= rule.complexity)]
    provenance = {name: entry for name, entry in rule.provenance.items() if name != "fold"}
    return dataclasses.replace(rule, provenance=provenance | {"r2": rule.provenance["r2"] | {"valid": value}})
