"""The main job on embedded data: ``python -m tf_impl.demo``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from common.run.config import DemoConfig
from interchange.commands import demo as shared


def demo(config: DemoConfig) -> Path:
    """Run every stage; the path of the report.

    Raises:
        L2OError: ``config.out`` holds a run already, or a stage fails.
    """
    from tf_impl import backend

    return shared.demo(config, backend)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""
    return shared.main(demo, "tf", argv)


if __name__ == "__main__":
    sys.exit(main())
