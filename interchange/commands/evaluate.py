"""The fair comparison of optimizers: ``evaluate``.

Every optimizer is tuned with the same number of learning rates, a factor 2 apart, its best not at an edge,
the same schedules and as many values of a knob, chosen on validation seeds for each problem and horizon and
reported on test seeds (MATH.md section 6). Teachers and rules tune the multiplier on their update. What is
finished is kept (``cells``): the same command again goes on where an earlier one was stopped.
"""

import dataclasses
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import L2OError
from common.metrics import summarise, summary_text
from common.run.cli import Progress
from common.run.cli import run as run_command
from common.tables.baselines import BASELINES, absent
from interchange.commands.asked import Asked, asked
from interchange.evaluation.cells import Cell, Memory, Store, code_of
from interchange.evaluation.config import EvaluateConfig
from interchange.evaluation.grid import Pool, Tested, course, run_grid
from interchange.evaluation.profiles import compare, standing_groups
from interchange.evaluation.timing import gradient_seconds, step_times, time_optimizers
from interchange.evaluation.tuning import loss_at_or_inf, planned
from interchange.report.verdict import standings_text, trials_note

if TYPE_CHECKING:
    from interchange.backend import Backend, Tasks
    from interchange.files.results import EvaluationRow
    from interchange.rule.source import Source

__all__ = ["evaluate", "folder_of", "loss_at_or_inf", "main", "time_optimizers"]

_LOG = logging.getLogger(__name__)
_TEACHER = 10.0  # cost of a teacher's step in gradients, roughly; only the order of cells hangs on it
_MAY_DIFFER = (
    "optimizers",
    "seeds",
    "jobs",
    "cluster",
    "out",
    "quiet",
    "overwrite",
    "data_dir",
    "report",
    "dry_run",
)


def evaluate(
    config: EvaluateConfig, backend: "Backend", tasks: "Tasks | None" = None
) -> "list[EvaluationRow]":
    """Tune, roll out and time every optimizer; ``evaluation.h5`` and ``summary.csv`` go to ``config.out``.

    Args:
        tasks: ``tasks(stream, number)`` gives optimizee ``number`` (a ``ModuleTask``, say) of the streams
            ``evaluate_validation`` and ``evaluate_test``, the same whenever asked; ``config.problem``'s if
            None. Of these no run is kept, and all are in this process.

    Raises:
        L2OError: an unknown optimizer or problem, missing data, a broken file.
    """
    from common.run.lock import RunLock
    from common.run.parallel import check_cluster

    check_cluster(config.cluster)
    all_of_it = asked(config, backend, tasks)
    config, loaded = all_of_it.config, all_of_it.loaded
    folder = folder_of(config)
    _check_existing(folder / "evaluation.h5", config, loaded)
    with RunLock(folder):
        packages = Path(__file__).parents[2]
        code = code_of(*(packages / name for name in ("common", "interchange", f"{backend.NAME}_impl")))
        kind = Store if tasks is None else Memory
        store = kind(folder / "cells", config, loaded, f"{backend.CREATED_BY}, code {code}")
        if config.overwrite and (folder / "evaluation.h5").exists():  # else the same command goes on
            store.clear()
        rows = _run(all_of_it, store, backend)
        _write(folder, rows, all_of_it, backend, code)
    return rows


def folder_of(config: EvaluateConfig) -> Path:
    """Where an evaluation goes."""
    name = config.problem.replace(":", "-").replace(",", "+")
    return Path(config.out or f"runs/evaluation-{name[:100]}")


def _check_existing(path: Path, config: EvaluateConfig, loaded: "Mapping[str, Source]") -> None:
    """Refuse to replace an evaluation but by the same one, or by one with more optimizers or seeds."""
    from interchange.files.results import load_evaluation

    if not path.exists() or config.overwrite:
        return
    try:
        before = load_evaluation(path)
        known = {row.optimizer for row in before.rows}
        now = _plain(dataclasses.asdict(config))
        # What a later version has beside was as it is by default.
        was = _plain({field.name: field.default for field in dataclasses.fields(config)}) | before.config
        same = all(was[name] == now[name] for name in now if name not in _MAY_DIFFER)
        if same and known <= loaded.keys() and before.config["seeds"] <= config.seeds:
            return
    except (L2OError, AttributeError, KeyError, TypeError):
        pass  # damaged, or of an earlier version
    raise L2OError(
        f"--out {path.parent} holds an evaluation, which only more optimizers or seeds may be added to; "
        "replace it with --overwrite or choose another"
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has them: lists for tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _run(all_of_it: Asked, store: Store, backend: "Backend") -> "list[EvaluationRow]":
    configs, loaded, first = all_of_it.configs, all_of_it.loaded, all_of_it.first
    horizons = {p: all_of_it.horizons(p) for p in configs}
    courses = {p: course(loaded, p, horizons[p], configs[p]) for p in configs}
    weights = {p: gradient_seconds(loaded, first[p], backend) if len(first) > 1 else 1.0 for p in first}

    def cost(cell: Cell) -> float:
        slow = _TEACHER if loaded[cell.optimizer].spec.kind == "teacher" else 1.0
        return weights[cell.problem] * cell.steps * slow

    quiet = next(iter(configs.values())).quiet
    plans = (planned(source, horizons[p], configs[p]) for p in configs for source in loaded.values())
    expected = sum(runs for plan in plans for _, _, runs in plan)
    with Progress("evaluate", expected, quiet=quiet, about=True) as progress:
        pool = Pool(store, cost, progress)
        tested = run_grid(courses, pool, configs, loaded, backend, all_of_it.own)
    if pool.found and not quiet:
        print(f"{pool.found} of {pool.total} cells were there", file=sys.stderr, flush=True)
    known = set().union(*(_trained_on(source) for source in loaded.values()))
    seen = {(e.problem, e.steps): e.trained_on or e.problem in known for e in all_of_it.wanted}
    return [
        row
        for p in configs
        for row in _rows(
            configs[p], tested[p], loaded, step_times(tested[p].tuned, loaded, first[p], backend), seen
        )
    ]


def _trained_on(source: "Source") -> set[str]:
    """Problems a teacher or a rule was trained, chosen or tuned on, as far as its file or run says."""
    from common.run.runs import RunFolder
    from interchange.rule.rule import Rule

    if isinstance(source.loaded, Rule):
        records = (source.loaded.provenance.get(key) for key in ("tuned", "loss", "found"))
        names = [record.get("problem") for record in records if isinstance(record, dict)]
    elif source.spec.kind == "teacher" and Path(source.spec.target, "config.json").is_file():
        names = [RunFolder(source.spec.target).config().get("problem")]
    else:
        names = []
    return {part for name in names if isinstance(name, str) for part in name.split(",")}


def _rows(
    config: EvaluateConfig,
    tested: Tested,
    loaded: "Mapping[str, Source]",
    times: Mapping[str, tuple[float, float]],
    trained_on: Mapping[tuple[str, int], bool],
) -> "list[EvaluationRow]":
    from interchange.files.results import EvaluationRow

    rows = []
    for (text, horizon, number), rollout in tested.rollouts.items():
        tuned = tested.tuned[text]
        (lr, arm), lowest = tuned.best(horizon), tuned.lowest(horizon)
        source = loaded[text].turned(arm.knob)
        validation = lowest if math.isfinite(lowest) else None
        rows.append(
            EvaluationRow(
                optimizer=text,
                problem=config.problem,
                seed=number,
                losses=rollout.losses,
                split=config.split,
                accuracy=rollout.accuracy,
                test_loss=rollout.test_loss,
                curve=rollout.curve,
                seconds=rollout.seconds,
                ms_per_step=times[text][0],
                floats_per_parameter=times[text][1],
                outcome=rollout.outcome,
                settings={
                    "lr": lr,
                    "schedule": arm.schedule,
                    "knob": ({source.knob: source.knob_value} if config.knob and source.knob else {})
                    | ({} if arm.weight_decay is None else {"weight_decay": arm.weight_decay}),
                    "sha256": loaded[text].sha256,
                    "validation": validation,
                },
                trials=tuned.trials(horizon),
                horizon=horizon,
                trained_on=trained_on[config.problem, horizon],
            )
        )
    return rows


def _write(
    folder: Path,
    rows: "Sequence[EvaluationRow]",
    all_of_it: Asked,
    backend: "Backend",
    code: str,
) -> None:
    from common.run.runs import environment
    from common.run.storage import atomic_write
    from interchange.files.results import save_evaluation, standings_csv

    config, left_out = all_of_it.config, dict(all_of_it.left_out)
    missing = absent(config.optimizers, backend.NAME)
    record = {"backend": backend.NAME, "code": code, "absent": missing, "left_out": left_out}
    names = {row.optimizer.partition(":")[0] for row in rows} & BASELINES.keys()
    packages = {package: metadata.version(package) for name in names if (package := BASELINES[name].package)}
    record["versions"] = {"python": environment()["python"], **environment()["versions"], **packages}
    save_evaluation(folder / "evaluation.h5", rows, dataclasses.asdict(config) | record, backend.CREATED_BY)
    compared = compare(summarise(rows), rows)
    atomic_write(folder / "standings.csv", standings_csv(standing_groups(compared)))
    if not config.report:
        return
    from interchange.report.comparison import write_comparison

    rules = {text: source.loaded for text, source in all_of_it.loaded.items() if source.spec.kind == "rule"}
    try:
        write_comparison(folder / "report.html", compared, rows, config.problem, missing, rules)
    except ImportError as error:
        _LOG.warning("report.html is not written: %s; install matplotlib, or give --no-report", error)


def main(command: Callable[[EvaluateConfig], Any], name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of ``command``, the function of the backend called ``name``; the exit code."""

    def body(config: EvaluateConfig) -> None:
        if config.dry_run:
            from interchange.commands.forecast import forecast

            print(forecast(config, name))
            return
        rows = command(config)
        if config.quiet:
            return
        summary = summarise(rows)
        problems = list(dict.fromkeys(row.problem for row in summary))
        for problem in problems:
            heading = f"{problem}\n" if len(problems) > 1 else ""
            print(heading + summary_text([row for row in summary if row.problem == problem]) + "\n")
        if missing := absent(config.optimizers, name):
            print(
                *(f"{optimizer}: not here, {reason}" for optimizer, reason in missing.items()), "", sep="\n"
            )
        if text := standings_text(standing_groups(compare(summary, rows))):
            print(text + "\n")
        if note := trials_note(rows, config.trials * (len(config.schedules) == 1)):
            print(note + "\n")
        print(f"evaluation: {folder_of(config) / 'evaluation.h5'}")
        if (report := folder_of(config) / "report.html").exists() and config.report:
            print(f"report: {report}")

    return run_command(
        EvaluateConfig,
        body,
        argv,
        prog=f"python -m {name}_impl.evaluate",
        description="Compare optimizers, each tuned with the same number of trials.",
        again="the same command goes on",
    )
