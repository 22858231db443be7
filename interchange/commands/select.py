"""The choice from a front by rolling its rules out: ``select``.

The loss of every rule on validation problems goes into the front's files, where ``interchange`` reads it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import Progress
from common.cli import run as run_command
from common.config import SelectConfig
from common.errors import L2OError

if TYPE_CHECKING:
    from interchange.commands.backend import Backend
    from interchange.rule import Rule


def select(config: SelectConfig, backend: "Backend") -> "list[Rule]":
    """``torch_impl.select`` and ``tf_impl.select``: the rules of a front, best first."""
    from common.storage import RunLock
    from interchange.front import read_front, write_front

    rules = read_front(config.front)
    backend.table_task(config, "validation", 0)  # missing data are found before the work begins
    scored = []
    with Progress("select", len(rules), quiet=config.quiet) as progress:
        for rule in rules:
            loss = validation_loss(rule, config, backend)
            progress.advance(nodes=str(rule.complexity), loss=loss)
            stored = {"valid": loss if math.isfinite(loss) else None, "steps": config.steps}
            record = rule.provenance | {"loss": stored | {"problem": config.problem, "tasks": config.tasks}}
            scored.append(dataclasses.replace(rule, provenance=record))
    ranked = sorted(scored, key=rollout_loss)
    if not ranked or math.isinf(rollout_loss(ranked[0])):
        raise L2OError(f"{config.front}: every rule diverges on {config.problem}; distill with another seed")
    folder = config.out or config.front
    with RunLock(folder):
        write_front(folder, scored)
        ranked[0].save(Path(folder, "best.json"))
    return ranked


def rollout_loss(rule: "Rule") -> float:
    """The loss a selection has found; inf where the rule diverged."""
    loss = rule.provenance["loss"]["valid"]
    return math.inf if loss is None else loss


def validation_loss(rule: "Rule", config: SelectConfig, backend: "Backend") -> float:
    """Mean over validation tasks of the loss at ``config.steps``; inf if one diverges."""
    tasks = (backend.table_task(config, "validation", number) for number in range(config.tasks))
    return backend.mean_figure(tasks, backend.rule_network(rule, config.device), config.steps)


def main(command: Callable[[SelectConfig], Any], name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of ``command``, the function of the backend called ``name``; the exit code."""

    def body(config: SelectConfig) -> None:
        best = command(config)[0]
        if not config.quiet:
            print(f"lowest loss {best.provenance['loss']['valid']:.4g}: {best.name}")

    return run_command(
        SelectConfig,
        body,
        argv,
        prog=f"python -m {name}_impl.select",
        description="Roll out the rules of a front on validation problems.",
        positional=("front",),
        required=("front",),
    )
