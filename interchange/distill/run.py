"""Distill trajectories into a Pareto front of rules: ``python -m interchange.distill TRAJECTORIES``.

Columns of temporal features, a search engine in a child process, constants at full precision, refit of
all constants on whole sequences, pruning, a front of complexity against held-out R2, and the choice of the
best rule.
"""

import dataclasses
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import L2OError
from common.extras import present
from common.run.cli import run as run_command
from common.run.lock import RunLock
from common.run.places import inside
from common.run.shell import stopping
from interchange.distill.config import DistillConfig
from interchange.rule.choice import exact, knee, shortest_within
from interchange.rule.front import Front, read_front, write_front
from interchange.rule.rule import Rule
from interchange.rule.safety import singular
from interchange.rule.words import told, update_r2

START = "start.json"

if TYPE_CHECKING:
    from interchange.files.trajectories import Trajectories


def distill(config: DistillConfig) -> tuple[Front, Rule]:
    """Distill as ``config`` says; rules, ``front.csv`` and ``best.json`` go to ``config.out``.

    The rule of ``config.start`` with its constants refitted goes to ``start.json`` there.

    Returns:
        The front, shortest first, and the best rule.

    Raises:
        L2OError: a broken file, the engine's package is missing, or nothing was found.
    """
    from interchange.distill import rollouts
    from interchange.distill.active import find_teacher
    from interchange.distill.start import over_recording, refitted
    from interchange.files.trajectories import load_trajectories

    started = time.monotonic()
    config = _found(config)
    trajectories = load_trajectories(config.trajectories)
    folder = _folder(config)
    if (folder / "front.csv").exists() and not config.overwrite:
        raise L2OError(f"--out {folder} holds a front; replace it with --overwrite or choose another")
    if config.start:  # what does not fit is found before the search
        over_recording(Rule.load(config.start), trajectories)
    if config.active:
        find_teacher(trajectories, config.teacher, Path(config.trajectories).parent)
    if config.active or config.select == "rollout":
        rollouts.check_backend(config)
        rollouts.find_problem(config, trajectories)
    with RunLock(folder):  # from the start: two searches for one folder would replace each other's rules
        front = search_front(trajectories, config, started)
        if config.start:
            refitted(Rule.load(config.start), trajectories, config).save(folder / START)
        best = exact(front) or (knee(front) if config.select == "knee" else shortest_within(front))
        write_front(folder, front)
        best.save(folder / "best.json")
    if config.select != "rollout" or stopping():
        return Front(front), best
    rollouts.select(config, trajectories, folder)
    return read_front(folder), Rule.load(folder / "best.json")


def _found(config: DistillConfig) -> DistillConfig:
    """The configuration with the file that a folder stands for."""
    from interchange.files.trajectories import FILE_NAME

    file = inside(config.trajectories, "recorded trajectories", FILE_NAME)
    return dataclasses.replace(config, trajectories=str(file))


def _folder(config: DistillConfig) -> Path:
    """Where the rules go."""
    return Path(config.out or Path(config.trajectories).parent / "rules")


def search_front(trajectories: "Trajectories", config: DistillConfig, started: float) -> list[Rule]:
    """The front of rules, shortest first, with R2 of each split; what a structure holds is fitted without it.

    Args:
        started: ``time.monotonic()`` from which ``config.time`` counts.

    Raises:
        L2OError: the targets are all equal, or nothing was found.
    """
    from interchange.distill.exact import settled
    from interchange.distill.rate import rated
    from interchange.distill.sequences import renumbered, sequence_front
    from interchange.distill.structure import Updates, structure_of, whole
    from interchange.distill.tables import table_front
    from interchange.search import samples

    data = {split: samples.sequences(trajectories, split) for split in ("train", "valid", "test")}
    for split in ("train", "valid"):
        target = data[split].target
        if target.min() == target.max():  # the standard deviation of equal numbers need not be 0
            raise L2OError(
                f"{config.trajectories}: the targets for {split} are all equal; train or tune their source, "
                "or record more of it"
            )
    find = sequence_front if trajectories.samples is None else table_front
    rules = find(trajectories, data, config, started)
    if not rules:
        budget = "--evaluations" if config.evaluations else "--time"
        raise L2OError(f"no rule of at most {config.max_size} nodes was found; raise {budget} or --max-size")
    if trajectories.samples is None:
        rules = settled(rules, data)
        rules = rated(rules, trajectories)
    structure, updates = structure_of(trajectories), Updates(trajectories)
    found = []
    for rule in map(renumbered, rules):
        scores = {split: updates.r2(rule, split) for split in ("valid", "test")}
        about = {} if updates.empty else {"r2_update": scores}
        rule = dataclasses.replace(rule, provenance=rule.provenance | about)
        found.append(_named(whole(rule, structure)))
    return found


def _named(rule: Rule) -> Rule:
    """The rule by its size; one that ``allow_singular`` has let through says so."""
    where = singular(rule)
    name = f"{rule.complexity} nodes" + ", singular" * bool(where)
    return dataclasses.replace(
        rule, name=name, provenance=rule.provenance | ({"singular": where} if where else {})
    )


def _following(best: Rule, config: DistillConfig, folder: Path) -> str:
    """The command that goes on from here."""
    file, place = (shlex.quote(str(path)) for path in (folder / "best.json", folder))
    if best.undefined:
        return f"python -m interchange.rule show {file}"
    if "exact" in best.provenance or "user_sha256" in best.provenance:  # of a problem that no row describes
        return f"python -m interchange.rule explain {file}"
    if config.select == "rollout":
        return f"python -m {config.backend}_impl.tune {file}"
    return f"python -m {present(config.backend)}_impl.select {place}"


def _scores(rule: Rule) -> str:
    """Size and R2 by split, of the body where there is a structure around it, and then that of the update."""
    parts = {split: rule.provenance["r2"][split] for split in ("valid", "test")}
    inside = "structure" in rule.provenance
    if inside:  # an update without an R2: the recording has no run of whole matrices
        parts |= {f"update {split}": update_r2(rule, split) for split in ("valid", "test")}
    said = "  ".join(f"{name} -" if r2 is None else f"{name} {r2:.4f}" for name, r2 in parts.items())
    return f"{rule.complexity:3d} nodes  R2 {'body ' * inside}{said}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""

    def body(config: DistillConfig) -> None:
        front, best = distill(config)
        if not config.quiet:
            folder = _folder(_found(config))
            if config.start:
                begun = Rule.load(folder / START)
                print(f"{begun.name} refitted: {_scores(begun)}, {folder / START}")
            for rule in front:
                mark = "*" if rule.expression == best.expression else " "
                print(f"{mark} {_scores(rule)}")
            print(told(best, folder / "best.json", _following(best, config, folder)))

    return run_command(
        DistillConfig,
        body,
        argv,
        prog="python -m interchange.distill",
        description="Distill recorded trajectories into short equations.",
        positional=("trajectories",),
        required=("trajectories",),
    )
