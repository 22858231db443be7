"""Record trajectories: ``python -m tf_impl.record runs/rp --out runs/rp/trajectories.h5``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from common.run.config import RecordConfig
from interchange.commands import record as shared


def record(config: RecordConfig) -> Path:
    """Record ``config.runs`` trajectories and write them to ``config.out``; the file's path.

    Raises:
        L2OError: an unknown source or problem, missing data, or every run diverged.
    """
    from tf_impl import backend

    return shared.record(config, backend)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""
    return shared.main(record, "tf", argv)


if __name__ == "__main__":
    sys.exit(main())
