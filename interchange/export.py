"""Export a rule or a teacher: ``python -m interchange.export SOURCE --to TARGET [-o FILE]``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import L2OError
from common.run.cli import run as run_command
from common.run.places import vacant
from common.run.storage import StorageError, atomic_write
from interchange.emit import TARGETS
from interchange.rule.rule import FILES, Rule

if TYPE_CHECKING:
    from interchange.files.weights import Teacher


@dataclass(frozen=True)
class ExportConfig:
    """What to export, as what, and where to."""

    source: str = field(
        default="",
        metadata={"help": "rule file or name; for onnx also a teacher: file, run folder or shipped name"},
    )
    to: str = field(default="", metadata={"help": "target", "choices": lambda: TARGETS})
    out: str = field(default="", metadata={"help": "file to write; without it the text is printed"})
    quiet: bool = field(default=False, metadata={"help": "print nothing but errors"})
    overwrite: bool = field(default=False, metadata={"help": "replace the file that is there"})
    vector: bool = field(
        default=False,
        metadata={"help": "onnx: the step of a rule that sees tensors for those that are no matrix"},
    )
    double: bool = field(default=False, metadata={"help": "onnx: float64 in place of float32"})


def export(source: "Rule | Teacher", target: str, vector: bool = False, double: bool = False) -> str | bytes:
    """The rule or teacher as the target's text or, for ONNX, bytes.

    Args:
        vector: of a rule that sees tensors, to ONNX: the way of tensors without a matrix view.
        double: to ONNX: float64 in place of float32.

    Raises:
        L2OError: no such target (the message lists them), one that takes no teachers, or ``vector`` or
            ``double`` for what has both ways in one file.
    """
    if vector and (target != "onnx" or not isinstance(source, Rule)):
        raise L2OError("--vector is for rules to onnx: other files take matrices and vectors alike")
    if double and target != "onnx":
        raise L2OError("--double is for onnx: other files compute in the dtype of what they are given")
    given = {name: True for name, on in {"vector": vector, "double": double}.items() if on}
    return TARGETS[target].emit(source, **given)


def _source(config: ExportConfig) -> "Rule | Teacher":
    """What ``config.source`` names: of a run with both, for a target that takes no teacher, the rule."""
    from interchange.rule.source import rule_or_teacher

    run = Path(config.source)
    if not TARGETS[config.to].teachers and any((run / name).is_file() for name in FILES):
        return Rule.load(run)
    return rule_or_teacher(config.source)


def _body(config: ExportConfig) -> int:
    content = export(_source(config), config.to, config.vector, config.double)
    if config.out:
        vacant(config.out, config.overwrite)
        atomic_write(config.out, content)
        if not config.quiet:
            print(f"{config.to}: {config.out}")
    elif isinstance(content, bytes):
        name = f"NAME{TARGETS[config.to].suffix}"
        raise L2OError(f"--to {config.to}: expected a file to write, because it is no text; add -o {name}")
    else:
        if sys.stdout is None:
            raise StorageError("expected an output to write to, got a closed one; name a file by -o")
        sys.stdout.write(content)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(
        ExportConfig,
        _body,
        argv,
        prog="python -m interchange.export",
        description="Export a rule as an equation or as a standalone optimizer, or a teacher to ONNX.",
        positional=("source",),
        short={"out": "o"},
        required=("source", "to"),
    )


if __name__ == "__main__":
    sys.exit(main())
