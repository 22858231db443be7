"""Meta-tune a rule's constants: ``python -m torch_impl.tune rules/best.json --problem mnist-conv``."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.run.config import TuneConfig
from interchange.commands import tune as shared

if TYPE_CHECKING:
    from interchange.backend import Tasks
    from interchange.rule.rule import Rule


def tune(config: TuneConfig, tasks: "Tasks | None" = None) -> "Rule":
    """Tune the rule in ``config.rule``; the tuned rule goes to ``config.out``.

    Args:
        tasks: optimizees to tune on, as for ``train``; ``config.problem``'s if None.

    Validation decides, before the first step too: without a gain the constants stay as they were.

    Raises:
        L2OError: the rule has no constants or cannot run as an optimizer, it diverges whatever is tuned,
            data are missing.
    """
    from torch_impl import backend

    return shared.tune(config, backend, tasks)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""
    return shared.main(tune, "torch", argv)


if __name__ == "__main__":
    sys.exit(main())
