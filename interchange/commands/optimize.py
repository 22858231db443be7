"""Plain training with any optimizer: ``optimize``.

What it leaves: the losses of every run, and the trained parameters to start other work from (``--start``).
"""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from common.data.datasets import Split
from common.errors import L2OError
from common.metrics import DIVERGED
from common.run.cli import Progress
from common.run.cli import run as run_command
from common.run.config import Trains, option
from common.run.shell import Interrupted
from common.tables.baselines import Spec
from common.training import Training
from interchange.commands.watch import Watch
from interchange.files.unfinished import forget_unfinished, keep_unfinished, unfinished
from interchange.meta.tasks import own
from interchange.rollout import INTERRUPTED, Begun, Trained
from interchange.rule.source import named_spec

if TYPE_CHECKING:
    from common.run.runs import RunFolder
    from interchange.backend import Backend, Task, Tasks

_LOSSES = "losses.csv"
_LIMIT = 1 << 30  # bytes of it
_STEPS = 200
_ELSEWHERE = ("out", "quiet", "overwrite", "data_dir", "tensorboard")  # settings that no number depends on


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizeConfig(Trains):
    """Plain training of optimizees."""

    optimizer: str = option(
        "", "a run or shipped teacher, a rule (file or name), or a baseline such as adam:lr=0.01"
    )
    steps: int = option(_STEPS, "steps of a run", low=1)
    passes: int = option(0, "passes over the training data, instead of steps", low=0)
    runs: int = option(1, "runs, each on a fresh optimizee", low=1)
    tensorboard: bool = option(False, "write losses and test figures for TensorBoard too, below the folder")
    split: str = option("meta_train", "part of the data", choices=lambda: get_args(Split))


@dataclasses.dataclass(frozen=True)
class Optimization:
    """All runs of one optimizer on a problem.

    Attributes:
        folder: with ``config.json``, ``metrics.jsonl``, ``losses.csv`` and ``checkpoint/``.
        runs: in order of seed; the checkpoint holds the one with the lowest loss at the end.
        exit_code: 0, or 143 / 130 where a signal stopped it.
    """

    folder: Path
    runs: list[Trained]
    exit_code: int = 0

    @property
    def best(self) -> int:
        """Number of the run in the checkpoint; one that was interrupted only where there is no other."""
        keys = [(run.outcome == DIVERGED, run.outcome != "ok", run.loss) for run in self.runs]
        return keys.index(min(keys))


def optimize(config: OptimizeConfig, backend: "Backend", tasks: "Tasks | None" = None) -> Optimization:
    """Train ``config.runs`` fresh optimizees, each from its own seed; the run folder is ``config.out``.

    Args:
        tasks: ``tasks("optimize", number)`` gives optimizee ``number`` (a ``ModuleTask``, say), the same
            whenever asked; ``config.problem``'s if None.

    A signal ends it with everything up to there written; the same settings go on where it stood. Divergence
    of some runs is an outcome.

    Raises:
        L2OError: an unknown optimizer or problem, missing data, or every run diverged; nothing is then
            written.
    """
    from common.run.runs import Interrupt, RunFolder

    spec = named_spec(config.optimizer)
    backend.device_of(config.device)
    source = backend.load_source(spec)
    if tasks is not None:
        tasks, config = own(config, tasks), dataclasses.replace(config, problem="")
    length, training = _length(config, _task(config, backend, 0, tasks))  # missing data are found here
    backend.check_training(training, config.device)
    out = _place(config, spec)
    origin = {"source_sha256": source.sha256, "created_by": backend.CREATED_BY}
    finished = _finished(out, config, origin)
    going_on = finished is not None and not config.overwrite
    goes_on = tasks is None and not source.packaged
    folder = RunFolder(out, create=not going_on, resume=going_on, overwrite=config.overwrite)
    result = Optimization(folder.path, finished if going_on else [])
    shown = Progress(spec.kind, length * config.runs, quiet=config.quiet, done=length * len(result.runs))
    with Interrupt() as interrupt, folder, shown as progress:
        _clear(folder, going_on)
        tell = backend.metrics_writer(str(folder.file("tensorboard"))) if config.tensorboard else None
        while len(result.runs) < config.runs and not interrupt.requested:
            watch = Watch(len(result.runs), length, progress, tell, lambda: interrupt.requested)

            def fit(begun: Begun | None, watch: Watch = watch) -> Trained:
                task = _task(config, backend, watch.number, tasks)
                return backend.fit(source, task, length, watch.step, training, watch.look, begun)

            result.runs.append(_kept(fit, watch, folder, config, origin) if goes_on else watch.through(fit))
            if result.runs[result.best].outcome != DIVERGED:
                _write(folder, config, result, origin)
    return _ended(result, config, interrupt.exit_code)


def _clear(folder: "RunFolder", going_on: bool) -> None:
    """Take away what an interrupted run left, which is told anew, or all that another training left."""
    if going_on:
        folder.truncate_metrics(lambda row: row["outcome"] != INTERRUPTED)
    else:
        folder.file(_LOSSES).unlink(missing_ok=True)
        forget_unfinished(folder.path)


def _kept(
    fit: Callable[[Begun | None], Trained],
    watch: Watch,
    folder: "RunFolder",
    config: OptimizeConfig,
    origin: Mapping[str, str],
) -> Trained:
    """A run, from where it stood if it was begun, that is kept along the way and where a signal stops it."""

    def keep(run: Trained) -> None:
        _make(folder, config)
        keep_unfinished(folder.path, watch.number, run, origin)

    run = watch.through(fit, unfinished(folder.path, watch.number, origin), keep)
    keep_unfinished(folder.path, watch.number, run, origin)
    if run.outcome == DIVERGED and not folder.file(_LOSSES).exists():  # it is the first, and leaves nothing
        for name in ("config.json", "env.json"):
            folder.file(name).unlink(missing_ok=True)
    return run


def _make(folder: "RunFolder", config: OptimizeConfig) -> None:
    """The configuration, which makes the folder a run's."""
    if not folder.file("config.json").exists():
        folder.write_config(dataclasses.asdict(config))


def _ended(result: Optimization, config: OptimizeConfig, code: int) -> Optimization:
    """With the exit code, of a signal's where it is not whole; where every run diverged nothing is kept."""
    if result.runs and result.runs[result.best].outcome == DIVERGED:
        step, where = len(result.runs[0].losses) + 1, config.problem or "its task"
        raise L2OError(
            f"{named_spec(config.optimizer).text} diverged on {where} at step {step}; lower its lr"
        )
    whole = len(result.runs) == config.runs and result.runs[-1].outcome != INTERRUPTED
    return dataclasses.replace(result, exit_code=0 if whole else code)


def _length(config: OptimizeConfig, first: "Task") -> tuple[int, Training]:
    """Steps of a run and how they are taken: by passes the test images are looked at after each."""
    if config.passes and config.steps != _STEPS:
        raise L2OError("--steps and --passes both say how long to train; leave one out")
    if not config.passes:
        return config.steps, config.training
    length, one = (first.instance.steps(n, config.accumulate) for n in (config.passes, 1))
    return length, dataclasses.replace(config.training, test_every=config.test_every or one)


def _finished(out: str, config: OptimizeConfig, origin: Mapping[str, str]) -> list[Trained] | None:
    """The finished runs of an interrupted training of these settings; None where there is no such one.

    Their parameters are not read: the best ones are in the checkpoint, and stay there.
    """
    from common.run.runs import RunFolder
    from common.run.storage import canonical_json, loads_json, read_file
    from interchange.files.checkpoint import has_checkpoint

    try:
        folder = RunFolder(out)
        wanted = loads_json(canonical_json(dataclasses.asdict(config)), "settings")
        found = {f.name: f.default for f in dataclasses.fields(config)} | folder.config()
        rows = [row for row in folder.read_metrics() if row["outcome"] != INTERRUPTED]
        text = read_file(folder.file(_LOSSES), _LIMIT).decode() if rows else ""
        lines = list(csv.DictReader(io.StringIO(text)))
        losses = [[float(v) for line in lines if (v := line[f"run_{k}"])] for k in range(len(rows))]
    except (L2OError, KeyError, TypeError, ValueError, csv.Error):
        return None
    same = all(found.get(name) == wanted[name] for name in wanted if name not in _ELSEWHERE)
    same = same and all(row.get(name) == origin[name] for row in rows for name in origin)
    whole = len(rows) >= config.runs or [len(one) for one in losses] != [row["steps"] for row in rows]
    if not same or whole or (rows and not has_checkpoint(out)):
        return None
    return [
        Trained(
            np.array(one),
            row["outcome"],
            math.nan if row["accuracy"] is None else row["accuracy"],
            {},
            test_loss=math.nan if row.get("test_loss") is None else row["test_loss"],
            seconds=row["seconds"],
            curve=np.array(row.get("curve", []), dtype=np.float64).reshape(-1, 3),
        )
        for one, row in zip(losses, rows, strict=True)
    ]


def _place(config: OptimizeConfig, spec: Spec) -> str:
    """Where the run goes."""
    name = spec.target if spec.kind == "baseline" else spec.kind
    out = config.out or f"runs/{name}-{config.problem or 'own'}-{config.seed}"
    if config.start and Path(config.start).resolve() == Path(out).resolve():
        raise L2OError(f"--out {out} is where --start reads from; choose another folder")
    return out


def _task(config: OptimizeConfig, backend: "Backend", number: int, tasks: "Tasks | None") -> "Task":
    if tasks is not None:
        return tasks("optimize", number)
    return backend.table_task(config, "optimize", number, config.split)


def _write(
    folder: "RunFolder", config: OptimizeConfig, result: Optimization, origin: Mapping[str, str]
) -> None:
    """Bring the folder up to date after a run: the configuration first, which makes it a run's folder, and
    the metrics last, which make the run a finished one."""
    from common.run.storage import atomic_write
    from interchange.files.checkpoint import save_checkpoint

    _make(folder, config)
    if result.best == len(result.runs) - 1:
        run = result.runs[-1]
        meta = {
            "run": result.best,
            "step": len(run.losses),
            "loss": run.loss,
            "optimizer": config.optimizer,
            "problem": config.problem,
            "seed": config.seed,
        }
        save_checkpoint(folder.path, run.arrays, meta, keep=1)
    header = ",".join(["step", *(f"run_{k}" for k in range(len(result.runs)))])
    columns = zip_longest(*(map(repr, run.losses.tolist()) for run in result.runs), fillvalue="")
    lines = [",".join([str(step), *row]) for step, row in enumerate(columns, 1)]
    atomic_write(folder.file(_LOSSES), "\n".join([header, *lines]) + "\n")
    for number in range(len(folder.read_metrics()), len(result.runs)):
        run = result.runs[number]
        row = {"run": number, "steps": len(run.losses), "loss": run.loss, "accuracy": run.accuracy}
        row |= {"test_loss": run.test_loss, "outcome": run.outcome, "seconds": run.seconds}
        folder.log(row | ({"curve": run.curve.tolist()} if len(run.curve) else {}) | origin)


def main(command: Callable[[OptimizeConfig], Any], name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of ``command``, the function of the backend called ``name``; the exit code."""

    def body(config: OptimizeConfig) -> None:
        result = command(config)
        if not config.quiet and result.runs:
            for number, run in enumerate(result.runs):
                accuracy = "" if math.isnan(run.accuracy) else f", test accuracy {run.accuracy:.4f}"
                outcome = "" if run.outcome == "ok" else f" ({run.outcome})"
                end = f"loss {run.loss:.4g} after {len(run.losses)} steps{accuracy}{outcome}"
                print(f"run {number}: {end}" if config.runs > 1 else end)
            print(f"parameters: {result.folder / 'checkpoint'} (run {result.best}); use them by --start")
        if result.exit_code:
            raise Interrupted(result.exit_code)

    return run_command(
        OptimizeConfig,
        body,
        argv,
        prog=f"python -m {name}_impl.optimize",
        description="Train optimizees with any optimizer; keep their losses and parameters.",
        positional=("optimizer",),
        required=("optimizer",),
        again="the same command goes on",
    )
