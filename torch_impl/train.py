"""Meta-train a teacher: ``python -m torch_impl.train --teacher rnnprop --problem mnist-mlp --out DIR``."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.run.config import TrainConfig
from interchange.commands import train as shared
from interchange.commands.train import Run

if TYPE_CHECKING:
    from interchange.backend import Tasks


def train(config: TrainConfig, tasks: "Tasks | None" = None) -> Run:
    """Meta-train a teacher as ``config`` says; everything is written into the run folder ``config.out``.

    Args:
        tasks: ``tasks(stream, number)`` gives optimizee ``number`` (a ``ModuleTask``, say) of the stream
            ``meta_train`` or ``validation``, the same whenever asked; ``config.problem``'s if None.

    Raises:
        L2OError: the folder is in use or holds another run, data are missing, training diverges.
    """
    from torch_impl import backend

    return shared.train(config, backend, tasks)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""
    return shared.main(train, "torch", argv)


if __name__ == "__main__":
    sys.exit(main())
