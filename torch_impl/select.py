"""Choose from a front by rolling its rules out: ``python -m torch_impl.select FOLDER --problem mnist-mlp``.

The loss of every rule on validation problems goes into the front's files, where ``interchange`` reads it.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.cli import Progress
from common.cli import run as run_command
from common.config import SelectConfig

if TYPE_CHECKING:
    from interchange.rule import Rule


def select(config: SelectConfig) -> "list[Rule]":
    """Roll out every rule of the front on half A of the data; the rules, best first.

    The best is also written as ``best.json``.

    ``provenance["loss"]["valid"]`` of each becomes the mean over tasks of the loss at ``config.steps``,
    infinite (stored as 1e308) where a task diverges.
    """
    from interchange.rule import read_front, write_front

    rules = read_front(config.front)
    scored = []
    with Progress("select", len(rules), quiet=config.quiet) as progress:
        for rule in rules:
            loss = validation_loss(rule, config)
            progress.advance(nodes=str(rule.complexity), loss=loss)
            stored = {"valid": loss if math.isfinite(loss) else 1e308, "steps": config.steps}
            record = rule.provenance | {"loss": stored | {"problem": config.problem, "tasks": config.tasks}}
            scored.append(dataclasses.replace(rule, provenance=record))
    write_front(config.front, scored)
    ranked = sorted(scored, key=lambda rule: rule.provenance["loss"]["valid"])
    ranked[0].save(Path(config.front, "best.json"))
    return ranked


def validation_loss(rule: "Rule", config: SelectConfig) -> float:
    """Mean over validation tasks of the loss at ``config.steps``; inf if one diverges."""
    from common.metrics import figure
    from common.problems import PROBLEMS, Instance
    from common.rng import derived_seed
    from torch_impl import unroll
    from torch_impl.problems import ProblemTask
    from torch_impl.symbolic import RuleNetwork
    from torch_impl.tensors import DTYPES

    network = RuleNetwork(rule, config.device)
    figures = []
    for number in range(config.tasks):
        seed = derived_seed(config.seed, "validation", number)
        instance = Instance(PROBLEMS[config.problem], seed, "meta_train", config.batch_size, config.data_dir)
        task = ProblemTask(instance, DTYPES[config.dtype], config.device)
        figures.append(figure(unroll.rollout(task, network, config.steps)[:-1], config.steps))
    return float(np.mean(figures))


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
