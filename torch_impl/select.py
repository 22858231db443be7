"""Choose from a front by rolling its rules out: ``python -m torch_impl.select FOLDER --problem mnist-mlp``.

The loss of every rule on validation problems goes into the front's files, where ``interchange`` reads it.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import Progress
from common.cli import run as run_command
from common.config import SelectConfig
from common.errors import L2OError

if TYPE_CHECKING:
    from interchange.rule import Rule


def select(config: SelectConfig) -> "list[Rule]":
    """Roll out every rule of the front on half A of the data; the rules, best first.

    ``provenance["loss"]["valid"]`` of each becomes the mean over tasks of the loss at ``config.steps``,
    None where a task diverges. The front, and the best as ``best.json``, go to ``config.out`` or back.

    Raises:
        L2OError: every rule diverges, a rule cannot run, data are missing.
    """
    from common.storage import RunLock
    from interchange.rule import read_front, write_front
    from torch_impl.problems import table_task

    rules = read_front(config.front)
    table_task(config, "validation", 0)  # missing data are found before the work begins
    scored = []
    with Progress("select", len(rules), quiet=config.quiet) as progress:
        for rule in rules:
            loss = validation_loss(rule, config)
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


def validation_loss(rule: "Rule", config: SelectConfig) -> float:
    """Mean over validation tasks of the loss at ``config.steps``; inf if one diverges."""
    from torch_impl import unroll
    from torch_impl.problems import table_task
    from torch_impl.symbolic import RuleNetwork

    tasks = (table_task(config, "validation", number) for number in range(config.tasks))
    return unroll.mean_figure(tasks, RuleNetwork(rule, config.device), config.steps)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""

    def body(config: SelectConfig) -> None:
        best = select(config)[0]
        if not config.quiet:
            print(f"lowest loss {best.provenance['loss']['valid']:.4g}: {best.name}")

    return run_command(
        SelectConfig,
        body,
        argv,
        prog="python -m torch_impl.select",
        description="Roll out the rules of a front on validation problems.",
        positional=("front",),
        required=("front",),
    )


if __name__ == "__main__":
    sys.exit(main())
