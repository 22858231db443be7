"""Choose from a front by rolling its rules out: ``python -m torch_impl.select FRONT --problem mnist-mlp``."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.run.config import SelectConfig
from interchange.commands import select as shared

if TYPE_CHECKING:
    from interchange.rule.rule import Rule


def select(config: SelectConfig) -> "list[Rule]":
    """Roll out every rule of the front on half A of the data; the rules, best first.

    ``provenance["loss"]["valid"]`` of each becomes the mean over tasks of the loss at ``config.steps``,
    None where a task diverges. The front, and the best as ``best.json``, go to ``config.out`` or back.

    Raises:
        L2OError: every rule diverges, a rule cannot run, data are missing.
    """
    from torch_impl import backend

    return shared.select(config, backend)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""
    return shared.main(select, "torch", argv)


if __name__ == "__main__":
    sys.exit(main())
