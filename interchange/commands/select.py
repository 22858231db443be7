"""The choice from a front by rolling its rules out: ``select``.

Every rule is rolled out on a few validation problems, those that may be the best on many more. The losses go
into the front's files, where ``interchange`` reads them.
"""

import dataclasses
import logging
import math
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import L2OError
from common.metrics import LOSS_FLOOR, t_quantile
from common.run.cli import Progress
from common.run.cli import run as run_command
from common.run.config import OnProblem, option
from interchange.meta.tasks import own
from interchange.rule.front import front_folder
from interchange.rule.words import told

if TYPE_CHECKING:
    from interchange.backend import Backend, Task, Tasks
    from interchange.rule.rule import Rule

_FINALISTS, _SAME = 8, 1e-3  # rules; the share of a loss that nobody takes a longer rule for
_SCORED = "scored"  # the folder of losses that are kept until all are there
_ELSEWHERE = ("out", "quiet", "overwrite", "data_dir", "jobs", "front", "tasks", "more")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig(OnProblem):
    """Choice from a Pareto front by rolling the candidates out."""

    front: str = option("", "folder with front.csv and its rules")
    steps: int = option(200, "inner steps of a rollout", low=1)
    tasks: int = option(4, "validation optimizees per candidate", low=1)
    more: int = option(12, "further ones for each candidate that may be the best", low=0)
    jobs: int = option(1, "processes", low=1)


def select(config: SelectConfig, backend: "Backend", tasks: "Tasks | None" = None) -> "list[Rule]":
    """Roll out every rule of the front on half A of the data; the rules, best first.

    ``provenance["loss"]`` of each: ``valid``, the mean over its ``tasks`` of the loss at ``config.steps``,
    None where a task diverges; and ``behind``, by which the choice is made, how far its mean logarithm is
    behind the lowest on the same tasks, with its standard ``error``. The front, and the best as
    ``best.json``, go to ``config.out`` or back. A rule that leaves only the recording's rounding is the
    best without a contest. Losses are kept beside the front until all are there: the same command goes on
    where one was stopped.

    Args:
        tasks: ``tasks("validation", number)`` gives optimizee ``number`` (a ``ModuleTask``, say), the same
            whenever asked; ``config.problem``'s if None. Of these no losses are kept.

    Raises:
        L2OError: every rule diverges, a rule cannot run, data are missing.
    """
    from interchange.rule.choice import exact
    from interchange.rule.front import read_front

    rules, folder = read_front(config.front), Path(config.out or front_folder(config.front))
    config, tasks = _given(config, tasks)
    _task(config, backend, 0, tasks)  # missing data are found before the work begins
    with _progress(rules, config) as progress:
        first = _figures(rules, range(config.tasks), config, backend, progress, tasks)
        if not np.isfinite(first).all(1).any():
            raise L2OError(
                f"{config.front}: every rule diverges on {config.problem}; distill with another seed"
            )
        places = hopeful(first) if config.more else list(np.flatnonzero(np.isfinite(first).all(1)))
        progress.expect(len(places) if len(places) > 1 else 0)
        progress.settle()
        more = range(config.tasks, config.tasks + config.more * (len(places) > 1))
        last = _figures([rules[k] for k in places], more, config, backend, progress, tasks)
    final = np.concatenate([first[places], last], axis=1)
    if not np.isfinite(final).all(1).any():
        raise L2OError(
            f"{config.front}: every rule diverges on some of {final.shape[1]} tasks of {config.problem}; "
            "distill with another seed"
        )
    records = _records(first)
    for k, record in zip(places, _records(final), strict=True):
        records[k] = record
    scored = [_told(*pair, config) for pair in zip(rules, records, strict=True)]
    chosen = places[choose(final, [rules[k].complexity for k in places])]
    true = exact(scored)  # what leaves only the recording's rounding is the optimizer that was recorded
    best = scored[chosen] if true is None or rollout_loss(true) == math.inf else true
    _write(folder, scored, best)
    return [best, *sorted((rule for rule in scored if rule is not best), key=_behind)]


def _told(rule: "Rule", record: dict[str, float | int | None], config: SelectConfig) -> "Rule":
    """The rule with what the choice knows of it."""
    loss = record | {"steps": config.steps, "problem": config.problem}
    return dataclasses.replace(rule, provenance=rule.provenance | {"loss": loss})


def _given(config: SelectConfig, tasks: "Tasks | None") -> "tuple[SelectConfig, Tasks | None]":
    """Configuration and tasks of the caller's own, where there are any."""
    if tasks is None:
        return config, None
    if config.jobs > 1:
        raise L2OError(
            f"jobs: expected 1 with tasks of your own, which stay in one process, got {config.jobs}"
        )
    return dataclasses.replace(config, problem=""), own(config, tasks)


def _write(folder: Path, scored: "Sequence[Rule]", best: "Rule") -> None:
    """The front and its best rule; what was kept of the losses is not needed any more."""
    from common.run.lock import RunLock
    from interchange.rule.front import write_front

    with RunLock(folder):
        write_front(folder, scored)
        best.save(folder / "best.json")
    shutil.rmtree(folder / _SCORED, ignore_errors=True)


def _progress(rules: "Sequence[Rule]", config: SelectConfig) -> Progress:
    """Of every rule, and of as many finalists as there may be."""
    most = len(rules) + min(_FINALISTS, len(rules)) * (config.more > 0)
    progress = Progress("select", most, quiet=config.quiet, about=True)
    progress.expect(len(rules))
    return progress


def _figures(
    rules: "Sequence[Rule]",
    numbers: range,
    config: SelectConfig,
    backend: "Backend",
    progress: Progress,
    tasks: "Tasks | None",
) -> np.ndarray:
    """Losses [rule, task] at ``config.steps`` on these validation tasks; inf where a rollout diverges."""
    if not rules or not numbers:
        return np.zeros((len(rules), len(numbers)))
    from common.run.parallel import parallel
    from common.run.storage import atomic_write, canonical_json

    kept = [_kept(rule, numbers, config, backend) for rule in rules]
    found = [_read(path, len(numbers)) if tasks is None else None for path in kept]
    jobs = [
        (rule, numbers, config, backend, tasks) for rule, row in zip(rules, found, strict=True) if row is None
    ]
    with parallel(min(config.jobs, len(rules)), ordered=True) as run:
        new = iter(run(_roll_out, jobs))
        for k, rule in enumerate(rules):
            if found[k] is None:
                found[k] = next(new)
                if tasks is None:
                    atomic_write(kept[k], canonical_json([_known(loss) for loss in found[k]]))
            progress.advance(nodes=str(rule.complexity), loss=float(np.mean(found[k])))
    return np.array(found)


def _kept(rule: "Rule", numbers: range, config: SelectConfig, backend: "Backend") -> Path:
    """Where the losses of a rule on these tasks are kept, named by all that they depend on."""
    from common.run.storage import content_hash

    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _ELSEWHERE}
    key = content_hash([rule.sha256, list(numbers), settings, backend.CREATED_BY])
    return Path(config.out or front_folder(config.front), _SCORED, f"{key}.json")


def _read(path: Path, count: int) -> list[float] | None:
    """The losses kept there; None where there are none."""
    from common.run.storage import read_json

    try:
        row = [math.inf if loss is None else float(loss) for loss in read_json(path)]
    except (L2OError, TypeError, ValueError):
        return None
    return row if len(row) == count else None


def _roll_out(
    rule: "Rule", numbers: range, config: SelectConfig, backend: "Backend", tasks: "Tasks | None"
) -> list[float]:
    """The loss of one rule on each task, inf if it cannot run; what the worker processes run."""
    try:
        network = backend.rule_network(rule, config.device)
    except L2OError as error:  # the others of the front can be compared
        _log.warning("%s is not rolled out: %s", rule.name, error)
        return [math.inf] * len(numbers)
    each = (_task(config, backend, number, tasks) for number in numbers)
    return [backend.mean_loss_at([task], network, config.steps) for task in each]


def _task(config: SelectConfig, backend: "Backend", number: int, tasks: "Tasks | None") -> "Task":
    return backend.table_task(config, "validation", number) if tasks is None else tasks("validation", number)


def hopeful(figures: np.ndarray) -> list[int]:
    """The rules that may be the best, in their order: at most 8, none that diverged.

    Args:
        figures: [rule, task]; at least one rule has only finite ones.
    """
    means, behind, error = _compared(figures)
    tasks = figures.shape[1]
    limit = t_quantile(tasks - 1) * error if tasks > 1 else np.full(len(means), np.inf)
    near = [k for k in np.argsort(means, kind="stable") if np.isfinite(means[k]) and behind[k] <= limit[k]]
    return sorted(map(int, near[:_FINALISTS]))


def choose(figures: np.ndarray, complexity: Sequence[int]) -> int:
    """The smallest rule whose loss is within one standard error of the lowest, paired by task, or 0.1 %.

    Args:
        figures: [rule, task]; a rule with one that is not finite is out.
    """
    means, behind, error = _compared(figures)
    same = 0.0 if (figures < 0.0).any() else _SAME  # differences of logarithms are shares
    near = [k for k in range(len(means)) if behind[k] <= max(error[k], same)]
    return min(near, key=lambda k: (complexity[k], means[k]))


def _compared(figures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean log loss of each rule, how far it is behind the lowest, and the standard error of that.

    Rules start from the same values and see the same batches, so differences within a task vary far less
    than the losses do. They are counted as in evaluations, and where some are negative taken as they are.
    """
    values = figures if (figures < 0.0).any() else np.log(np.maximum(figures, LOSS_FLOOR))
    means, tasks = values.mean(1), figures.shape[1]
    with np.errstate(invalid="ignore"):  # inf less inf is nan, which is near nothing
        differences = values - values[np.argmin(means)]
        error = differences.std(1, ddof=1) / math.sqrt(tasks) if tasks > 1 else np.zeros(len(means))
    return means, differences.mean(1), error


def _records(figures: np.ndarray) -> list[dict[str, float | int | None]]:
    """What the choice knows of each rule [rule, task], as JSON has it: None where a rollout diverged."""
    _, behind, error = _compared(figures)
    return [
        {"valid": _known(np.mean(row)), "tasks": len(row), "behind": _known(far), "error": _known(near)}
        for row, far, near in zip(figures, behind, error, strict=True)
    ]


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _behind(rule: "Rule") -> tuple[float, float]:
    """Rules that went to the end first, then by what the choice was made by."""
    record = rule.provenance["loss"]
    return -record["tasks"], math.inf if record["behind"] is None else record["behind"]


def rollout_loss(rule: "Rule") -> float:
    """The loss a selection has found; inf where the rule diverged."""
    loss = rule.provenance["loss"]["valid"]
    return math.inf if loss is None else loss


def table(rules: "Sequence[Rule]") -> str:
    """The rules by size with the numbers of the choice; the first of them is the chosen one."""
    lines = [f"  {'nodes':>5}  {'loss':>9}  {'tasks':>5}  {'behind the lowest':>19}"]
    for rule in sorted(rules, key=lambda rule: rule.complexity):
        record = rule.provenance["loss"]
        loss = "diverged" if record["valid"] is None else f"{record['valid']:.4g}"
        numbers = (record["behind"], record["error"])
        far = "" if None in numbers else f"{numbers[0]:+.4f} +- {numbers[1]:.4f}"
        mark = "*" if rule is rules[0] else " "
        lines.append(f"{mark} {rule.complexity:5d}  {loss:>9}  {record['tasks']:5d}  {far:>19}")
    return "\n".join(lines)


def main(command: Callable[[SelectConfig], Any], name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of ``command``, the function of the backend called ``name``; the exit code."""

    def body(config: SelectConfig) -> None:
        rules = command(config)
        if not config.quiet:
            print(table(rules))
            file = Path(config.out or front_folder(config.front)) / "best.json"
            following = f"python -m {name}_impl.tune {shlex.quote(str(file))} --problem {config.problem}"
            print(told(rules[0], file, following))

    return run_command(
        SelectConfig,
        body,
        argv,
        prog=f"python -m {name}_impl.select",
        description="Roll out the rules of a front on validation problems.",
        positional=("front",),
        required=("front",),
        again="the same command goes on",
    )
