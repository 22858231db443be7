"""Fair comparison: ``python -m tf_impl.evaluate --problem mnist-mlp --optimizers all rule:best.json``."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.run.config import EvaluateConfig
from interchange.commands import evaluate as shared

if TYPE_CHECKING:
    from interchange.files.results import EvaluationRow


def evaluate(config: EvaluateConfig) -> "list[EvaluationRow]":
    """Tune, roll out and time every optimizer; ``evaluation.h5`` and ``summary.csv`` go to ``config.out``.

    Raises:
        L2OError: an unknown optimizer or problem, missing data, a broken file.
    """
    from tf_impl import backend

    return shared.evaluate(config, backend)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""
    return shared.main(evaluate, "tf", argv)


if __name__ == "__main__":
    sys.exit(main())
