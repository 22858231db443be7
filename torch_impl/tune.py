"""Meta-tune a rule's constants: ``python -m torch_impl.tune rules/best.json --problem mnist-conv``.

The same meta-gradient as a teacher's training (MATH.md section 3), on the handful of constants of an
equation; what comes back is an equation again.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import run as run_command
from common.config import TuneConfig
from common.errors import L2OError

if TYPE_CHECKING:
    from interchange.rule import Rule
    from torch_impl.meta import Tasks

_INFINITE = 1e308  # how a rule file, which is JSON, says that a rollout diverged


def tune(config: TuneConfig, tasks: "Tasks | None" = None) -> "Rule":
    """Tune the rule in ``config.rule``; the tuned rule goes to ``config.out``.

    Args:
        tasks: optimizees to tune on, as for ``train``; ``config.problem``'s if None.

    Validation decides, before the first step too: without a gain the constants stay as they were.

    Raises:
        L2OError: the rule has no constants or cannot run as an optimizer, it diverges whatever is tuned,
            data are missing.
    """
    from interchange.rule import Rule
    from torch_impl.meta import MetaTrainer
    from torch_impl.symbolic import RuleNetwork
    from torch_impl.tensors import CREATED_BY, device_of

    rule = Rule.load(config.rule)
    out = output_file(config)
    if out.exists() and not config.overwrite:
        raise L2OError(f"--out {out} is there already; replace it with --overwrite or choose another name")
    if not rule.constants:
        raise L2OError(f"{config.rule}: expected a rule with constants to tune, got none")
    network = RuleNetwork(rule, device_of(config.device))
    trainer = MetaTrainer(network, config, rates=network.rates, tasks=tasks)
    trainer.run(label="tune", quiet=config.quiet)
    if math.isinf(trainer.best_score):
        raise L2OError(f"{config.rule} diverged in every validation; bring its constants nearer to 0 first")
    scores = [row["validation"] for row in trainer.history if "validation" in row]
    tuned = network.tuned(trainer.best)
    record = {
        "problem": config.problem,
        "epochs": config.epochs,
        "epoch_length": config.epoch_length,
        "seed": config.seed,
        "from_sha256": rule.sha256,
        "validation": {
            "before": min(trainer.first_score, _INFINITE),
            "best": trainer.best_score,
            "by_epoch": [min(score, _INFINITE) for score in scores],
        },
        "created_by": CREATED_BY,
    }
    # The R2 of the rule that was distilled says nothing about other constants.
    provenance = {k: v for k, v in rule.provenance.items() if k not in ("r2", "loss")} | {"tuned": record}
    tuned = dataclasses.replace(tuned, name=f"{rule.name}, tuned"[:200], provenance=provenance)
    tuned.save(out)
    return tuned


def output_file(config: TuneConfig) -> Path:
    """``config.out``, or ``tuned.json`` beside the rule."""
    return Path(config.out or Path(config.rule).parent / "tuned.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""

    def body(config: TuneConfig) -> None:
        validation = tune(config).provenance["tuned"]["validation"]
        if not config.quiet:
            print(f"validation loss {validation['before']:.4g} -> {validation['best']:.4g}")
            print(f"tuned rule: {output_file(config)}")

    return run_command(
        TuneConfig,
        body,
        argv,
        prog="python -m torch_impl.tune",
        description="Tune the constants of a rule by the meta-gradient.",
        positional=("rule",),
        required=("rule",),
    )


if __name__ == "__main__":
    sys.exit(main())
