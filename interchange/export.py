"""Export a rule: ``python -m interchange.export RULE.json --to TARGET [-o FILE]``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.cli import run as run_command
from common.storage import atomic_write
from interchange.emit import TARGETS
from interchange.rule import Rule


@dataclass(frozen=True)
class ExportConfig:
    """What to export, as what, and where to."""

    rule: str = field(default="", metadata={"help": "the rule file"})
    to: str = field(default="", metadata={"help": "target", "choices": lambda: TARGETS})
    out: str = field(default="", metadata={"help": "file to write; without it the text is printed"})


def export(rule: Rule, target: str) -> str:
    """The rule as the text of the target; an unknown target raises ``L2OError`` listing the known ones."""
    return TARGETS[target].emit(rule)


def _body(config: ExportConfig) -> int:
    text = export(Rule.load(config.rule), config.to)
    if config.out:
        atomic_write(config.out, text.encode())
    else:
        sys.stdout.write(text)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(
        ExportConfig,
        _body,
        argv,
        prog="python -m interchange.export",
        description="Export a rule as an equation or as a standalone optimizer.",
        positional=("rule",),
        short={"out": "o"},
        required=("rule", "to"),
    )


if __name__ == "__main__":
    sys.exit(main())
