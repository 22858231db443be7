"""Say what is in a file: trajectories, teacher weights, checkpoint, evaluation, rule or exported ONNX.

``python -m interchange.inspect FILE``. The content is checked like everywhere else, its hash included.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import L2OError
from common.run.cli import run as run_command
from common.run.config import option
from common.run.kinds import kind
from common.run.places import inside
from common.run.storage import ReadError, open_regular, read_json

if TYPE_CHECKING:
    from interchange.files.weights import Teacher
    from interchange.rule.rule import Rule

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ONNX = b"\x08"  # the field every ONNX file opens with, the version of its format
# What of a folder is described, the first that is there.
_INSIDE = (
    "teacher.h5",
    "evaluation.h5",
    "trajectories.h5",
    "tuned.json",
    "best.json",
    "rules/best.json",
    "evaluation/evaluation.h5",
)
_SHOWN = 20  # runs, arrays or rows listed one by one


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What ``python -m interchange.inspect`` takes."""

    file: str = option(
        "", "a folder, or a file: trajectories, weights, checkpoint, evaluation (HDF5), rule (JSON), ONNX"
    )


def describe(path: str) -> str:
    """What is in the file, or in a folder's first one, in lines for people; any fault raises ``L2OError``."""
    path = str(inside(path, "a file of this project", *_INSIDE))
    try:
        with open_regular(path) as file:
            start = file.read(64)
    except OSError as error:
        raise ReadError(f"cannot read {path}: {error.strerror}; check the path") from error
    if start.startswith(_HDF5):
        lines = _hdf5(path)
    elif start.lstrip().startswith(b"{"):
        lines = _rule(path)
    elif start.startswith(_ONNX):
        lines = _onnx(path)
    else:
        found = kind(path) or "something else"
        raise L2OError(f"{path}: expected HDF5, a rule in JSON or ONNX, got {found}; is it the right file?")
    return "\n".join(_clean(line) for line in lines)


def _clean(line: str) -> str:
    """Text from a file must not steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def _rule(path: str) -> Iterator[str]:
    from interchange.rule.rule import Rule

    rule = Rule.load(path)
    yield f"l2o-rule {rule.name}, complexity {rule.complexity}"
    yield f"  sha256 {rule.sha256} {_hash_state(read_json(path).get('sha256', ''))}"
    yield from _rule_lines(rule)


def _rule_lines(rule: "Rule") -> Iterator[str]:
    yield f"  u = {rule.scale!r} * ({_text(rule.expression)})"
    for name, value in rule.constants.items():
        yield f"  constant {name} = {value!r}"
    yield from _step_sizes(rule.step_sizes)
    for name, expression in rule.features.items():
        yield f"  feature {name} = {'(no expression)' if expression is None else _text(expression)}"
    for name, value in rule.provenance.items():
        yield f"  {name}: {value}"


def _step_sizes(sizes: dict[str, float]) -> Iterator[str]:
    for name, value in list(sizes.items())[:_SHOWN]:
        yield f"  step size {name} = {value!r}"
    yield from _more(len(sizes), "step sizes")


def _onnx(path: str) -> Iterator[str]:
    from interchange.inspect.onnx import read_onnx

    found = read_onnx(path)
    kind, name = ("rule", found.source.name) if found.is_rule else ("teacher", found.source.row.name)
    state = "as written here for it" if found.as_written else "NOT what this version writes for it"
    yield f"l2o-onnx {kind} {name}, opset {found.opset}, {found.nodes} nodes, {state}"
    for word, infos in (("input", found.inputs), ("output", found.outputs)):
        for value, shape in list(infos.items())[:_SHOWN]:
            yield f"  {word} {value} [{', '.join(map(str, shape))}]"
        yield from _more(len(infos), f"{word}s")
    if found.is_rule:
        yield from _rule_lines(found.source)
        yield from (f"  changed in the file: {name} = {value!r}" for name, value in found.changed().items())
    else:
        yield f"  sha256 of the teacher's file: {found.source.sha256}"
        yield from _teacher_lines(found.source)


def _text(expression: Any) -> str:
    from interchange.language.expression import to_text

    return to_text(expression)


def _hash_state(sha256: str) -> str:
    return "(verified)" if sha256 else "(not in the file, so not verified)"


def _hdf5(path: str) -> Iterator[str]:
    from interchange.files.hdf5 import read_hdf5
    from interchange.files.schema import SCHEMAS

    tree = read_hdf5(path)
    if tree.format not in SCHEMAS:
        raise L2OError(f"{path}: unknown format {tree.format!r}; known: {', '.join(SCHEMAS)}, l2o-rule")
    root = tree.attributes[""]
    size = sum(array.nbytes for array in tree.arrays.values())
    yield f"{tree.format} {root['format_version']}, {len(tree.arrays)} arrays, {_bytes(size)} in memory"
    yield f"  sha256 {tree.sha256} {_hash_state(tree.sha256)}"
    if root.get("created_by"):
        yield f"  created by {root['created_by']}"
    yield from _KINDS[tree.format](tree, path)


def _trajectories(tree: Any, path: str) -> Iterator[str]:
    from interchange.files.trajectories import trajectories_from_tree

    found = trajectories_from_tree(tree, path)
    for name, expression in found.features.items():
        yield f"  feature {name} = {expression or '(no expression)'}"
    if found.samples is not None:
        rows, columns = found.samples.x.shape
        low, high = found.samples.y.min(), found.samples.y.max()
        yield (
            f"  samples: {rows} rows of {columns} columns, {found.samples.x.dtype}, scale "
            f"{found.samples.scale:.4g}, y from {low:.4g} to {high:.4g}"
        )
    for name, runs in found.split.items():
        yield f"  split {name}: {len(runs)} runs"
    for run in list(found.runs.values())[:_SHOWN]:
        steps, coordinates = run.y.shape
        yield (
            f"  run {run.name}: {run.source_kind} on {run.problem}, seed {run.seed}, {steps} of "
            f"{run.num_steps} steps, {coordinates} coordinates of {len(run.params_names)} tensors, "
            f"{run.x.dtype}, loss {_ends(run.loss)}, {run.outcome}"
        )
    yield from _more(len(found.runs), "runs")


def _teacher(tree: Any, path: str) -> Iterator[str]:
    from interchange.files.weights import shipped_command, weights_from_tree

    if command := shipped_command(path):
        yield f"  made by {command}"
    yield from _teacher_lines(weights_from_tree(tree, path))


def _teacher_lines(teacher: "Teacher") -> Iterator[str]:
    for name, value in teacher.row.to_dict().items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        yield f"  {name}: {shown}"
    yield from _step_sizes(teacher.step_sizes)
    yield from _arrays(teacher.weights)


def _checkpoint(tree: Any, path: str) -> Iterator[str]:
    from interchange.files.checkpoint import checkpoint_from_tree

    arrays, meta = checkpoint_from_tree(tree, path)
    for name, value in meta.items():
        yield f"  {name}: {value}"
    yield from _arrays(arrays)


def _evaluation(tree: Any, path: str) -> Iterator[str]:
    from interchange.files.results import evaluation_from_tree

    rows = evaluation_from_tree(tree, path).rows
    for row in rows[:_SHOWN]:
        yield (
            f"  {row.optimizer} on {row.problem}, seed {row.seed}: loss {_ends(row.losses)} in "
            f"{len(row.losses)} steps, {row.ms_per_step:.3g} ms a step, {row.outcome}"
        )
    yield from _more(len(rows), "rows")


_KINDS = {
    "l2o-trajectories": _trajectories,
    "l2o-teacher": _teacher,
    "l2o-checkpoint": _checkpoint,
    "l2o-evaluation": _evaluation,
}


def _arrays(arrays: dict[str, Any]) -> Iterator[str]:
    for name, array in list(arrays.items())[:_SHOWN]:
        yield f"  {name} {list(array.shape)} {array.dtype}"
    yield from _more(len(arrays), "arrays")


def _more(count: int, what: str) -> Iterator[str]:
    if count > _SHOWN:
        yield f"  and {count - _SHOWN} more {what}"


def _ends(losses: Any) -> str:
    return f"{losses[0]:.4g} to {losses[-1]:.4g}" if len(losses) else "not recorded"


def _bytes(size: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _body(config: InspectConfig) -> int:
    print(describe(config.file))
    if (folder := Path(config.file)).is_dir():
        found = [str(folder / name) for name in _INSIDE if (folder / name).is_file()]
        print(f"{found[0]}; also here: {', '.join(found[1:])}" if found[1:] else found[0])
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    return run_command(
        InspectConfig,
        _body,
        argv,
        prog="python -m interchange.inspect",
        description="Say what is in a file of this project, after checking it.",
        positional=("file",),
        required=("file",),
    )


if __name__ == "__main__":
    sys.exit(main())
