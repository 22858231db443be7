"""Plain training with any optimizer: ``python -m torch_impl.optimize adam:lr=0.001 --problem mnist-mlp``."""

import sys
from collections.abc import Sequence

from common.run.config import OptimizeConfig
from interchange.commands import optimize as shared
from interchange.commands.optimize import Optimization


def optimize(config: OptimizeConfig) -> Optimization:
    """Train ``config.runs`` fresh optimizees, each from its own seed; the run folder is ``config.out``.

    A signal ends it with everything up to there written. Divergence of some runs is an outcome.

    Raises:
        L2OError: an unknown optimizer or problem, missing data, or every run diverged; nothing is then
            written.
    """
    from torch_impl import backend

    return shared.optimize(config, backend)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""
    return shared.main(optimize, "torch", argv)


if __name__ == "__main__":
    sys.exit(main())
