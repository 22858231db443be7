"""Meta-training of a teacher into a run folder: ``train``."""

import contextlib
import dataclasses
import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import L2OError
from common.run.cli import run as run_command
from common.run.config import from_dict
from common.tables.teachers import TEACHERS, TeacherRow, initial_weights, variant
from interchange.commands.estimate import estimate
from interchange.meta.config import TrainConfig
from interchange.meta.sharing import check_share
from interchange.meta.trainer import make_trainer
from interchange.meta.workers import place
from interchange.rule.words import counted

if TYPE_CHECKING:
    from common.run.runs import RunFolder
    from interchange.backend import Backend, Tasks
    from interchange.files.weights import Teacher
    from interchange.meta.workers import Workers

_log = logging.getLogger(__name__)
_INIT_FILE = "init.h5"  # a copy of the teacher it started from, so that a resumed run needs no other folder


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished (or interrupted) meta-training.

    Attributes:
        folder: the run folder, with ``teacher.h5``, ``config.json``, ``metrics.jsonl``, ``checkpoint/``.
        weights: the best teacher's weights by name.
        history: one row per epoch: loss, validation, seconds.
        before: epochs that were done before, of a run that was resumed.
        exit_code: 0, or 143 / 130 where a signal stopped it.
    """

    folder: Path
    teacher: TeacherRow
    weights: dict[str, np.ndarray]
    history: list[dict[str, Any]]
    exit_code: int = 0
    before: int = 0

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        shown = ", ".join(f"{key} {last[key]:.4g}" for key in ("loss", "validation") if key in last)
        return f"Run({self.folder}: {self.teacher.name}, {len(self.history)} epochs, {shown or 'no epoch'})"


def train(config: TrainConfig, backend: "Backend", tasks: "Tasks | None" = None) -> Run:
    """Meta-train a teacher as ``config`` says; everything is written into the run folder ``config.out``.

    Args:
        tasks: ``tasks(stream, number)`` gives optimizee ``number`` (a ``ModuleTask``, say) of the stream
            ``meta_train`` or ``validation``, the same whenever asked; ``config.problem``'s if None.

    Raises:
        L2OError: the folder is in use or holds another run, data are missing, training diverges.
    """
    with backend.join(config.device) as workers:
        return _train(config, backend, tasks, workers)


def _train(config: TrainConfig, backend: "Backend", tasks: "Tasks | None", workers: "Workers") -> Run:
    """One worker's part; rank 0 reads and writes the files and tells the others what is in them."""
    from common.run.runs import Interrupt
    from interchange.files.weights import save_weights

    folder, given, told, weights = None, None, {}, {}
    with workers.together():
        if workers.leads:
            config, folder, given, teacher = _begin(config, tasks, workers.restarts)
            weights = given.weights if given else initial_weights(teacher, config.seed, config.weights)
            told = {"config": dataclasses.asdict(config), "row": teacher.to_dict()}
            told |= {"folder": str(folder.path)}
    told, weights = workers.broadcast(told, weights)
    if not workers.leads:
        own = {"quiet": True, "data_dir": config.data_dir or told["config"]["data_dir"]}
        config, teacher = from_dict(TrainConfig, told["config"] | own), TeacherRow.from_dict(told["row"])
    with workers.together():
        check_share(config, workers)
        mine = dataclasses.replace(config, device=workers.device(config.device))
        network = backend.teacher_network(teacher, weights, mine.dtype, mine.device, mine.state_dtype)
        learner = backend.Learner(network, mine)
        trainer = make_trainer(learner, tasks=tasks, folder=folder, workers=workers)
        for number in range(len(trainer.schedule.problems)):
            trainer.tasks("meta_train", number)  # missing data are found before anything is written
    with Interrupt() as interrupt, contextlib.ExitStack() as stack:
        with workers.together():
            if folder is not None:
                stack.enter_context(folder)
                if config.tensorboard:
                    folder.listeners.append(backend.metrics_writer(str(folder.file("tensorboard"))))
                if given and not config.resume:
                    save_weights(folder.file(_INIT_FILE), given.row, given.weights, given.created_by)
                if not config.resume:
                    folder.write_config(dataclasses.asdict(config))
        if config.resume:
            if folder is not None and (other := folder.code_changed()):
                _log.warning(other)
            trainer.state.restore()
            if folder is not None:  # the epochs may be more than before
                folder.write_config(dataclasses.asdict(dataclasses.replace(config, resume="")))
        before = trainer.state.epoch
        try:
            finished = trainer.run(label=f"train {teacher.name}", quiet=config.quiet, interrupt=interrupt)
        finally:  # also where it gives up
            if folder is not None:
                save_weights(folder.file("teacher.h5"), teacher, trainer.state.best, backend.CREATED_BY)
    code = 0 if finished else interrupt.exit_code
    return Run(Path(told["folder"]), teacher, trainer.state.best, trainer.state.history, code, before)


def _begin(
    config: TrainConfig, tasks: "Tasks | None", restarts: int
) -> "tuple[TrainConfig, RunFolder, Teacher | None, TeacherRow]":
    """Settings in full, run folder, the teacher to start from and the row to train.

    Workers that were started anew go on with the run they began.
    """
    from common.run.runs import RunFolder

    if name := config.resume:
        folder = RunFolder(name, resume=True)
        saved = from_dict(TrainConfig, folder.config(), f"{name}/config.json")
        device = config.device if config.device != TrainConfig.device else saved.device
        jobs = config.jobs if config.jobs != TrainConfig.jobs else saved.jobs
        if config.epochs and config.epochs < saved.epochs:
            raise L2OError(f"--epochs: expected at least the run's own {saved.epochs}, got {config.epochs}")
        now = {"quiet": config.quiet, "device": device, "resume": name, "jobs": jobs}
        now |= {"epochs": config.epochs or saved.epochs}
        now |= {"tensorboard": config.tensorboard or saved.tensorboard}
        config = dataclasses.replace(saved, data_dir=config.data_dir or saved.data_dir, **now)
    given = _given(config)
    teacher = _row(config, given)
    config = dataclasses.replace(config, teacher=teacher.name)
    if not config.resume:
        name = config.out or f"runs/{teacher.name}-{_shown(config.problem)}-{config.seed}"
    if tasks is not None:
        config = dataclasses.replace(config, problem="")
    elif not config.problem:
        raise L2OError(
            f"{name} was trained on tasks of its caller; go on with it from Python: train(config, tasks)"
        )
    if not config.resume:
        if restarts and holds(name, config):
            return _begin(dataclasses.replace(config, resume=name), tasks, restarts)
        again = f"go on with it by --resume {shlex.quote(name)}, "
        folder = RunFolder(name, create=True, overwrite=config.overwrite, again=again)
    return config, folder, given, teacher


def holds(name: str, config: TrainConfig) -> bool:
    """Whether a folder holds a run with these settings, finished or not."""
    from common.run.runs import RunFolder
    from interchange.meta.state import settings_hash

    try:
        saved = from_dict(TrainConfig, RunFolder(name).config(), f"{name}/config.json")
    except L2OError:
        return False
    return settings_hash(saved) == settings_hash(config)


def _shown(problem: str) -> str:
    """Of one problem its name, of several the first and how many more, for a folder's name."""
    first, *others = problem.split(",")
    return f"{first}+{len(others)}" if others else first


def _given(config: TrainConfig) -> "Teacher | None":
    """The trained teacher to start from, None without one or where a checkpoint stands for it."""
    from interchange.files.checkpoint import has_checkpoint
    from interchange.files.weights import load_weights

    if not config.init:
        return None
    copy = Path(config.resume, _INIT_FILE)
    if config.resume and (copy.exists() or has_checkpoint(Path(config.resume))):
        return load_weights(copy) if copy.exists() else None
    return load_weights(config.init)


def _row(config: TrainConfig, given: "Teacher | None") -> TeacherRow:
    """The row to train: the given teacher's, or of the table with what the flags replace."""
    if given is None:
        return variant(TEACHERS[config.teacher or "rp_s"], **_asked(config))
    if given.row.name not in TEACHERS:  # it names the run's folder
        raise L2OError(
            f"--init {config.init}: expected a teacher called {', '.join(TEACHERS)}, got {given.row.name!r}; "
            "add its row to common/tables/teachers.py"
        )
    if config.resume:
        return given.row
    row = TEACHERS[config.teacher] if config.teacher else given.row
    asked = variant(row, **_asked(config))
    mine, its = dataclasses.asdict(asked), dataclasses.asdict(given.row)
    differing = [name for name in mine if mine[name] != its[name] and name != "source"]
    differing += ["weights"] if config.weights != TrainConfig.weights else []
    if differing:
        raise L2OError(
            f"--init {config.init}: expected its {given.row.name} teacher as it is, got flags for one with "
            f"other {', '.join(differing)}; leave out --teacher, --inputs, --scale, --structure, "
            "--pre-tanh-scale and --weights"
        )
    return given.row


def _asked(config: TrainConfig) -> dict[str, Any]:
    """What the flags replace of a teacher's row."""
    return {name: getattr(config, name) for name in ("inputs", "scale", "structure", "pre_tanh_scale")}


def main(command: Callable[[TrainConfig], Any], name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of ``command``, the function of the backend called ``name``; the exit code."""

    def body(config: TrainConfig) -> int:
        if config.dry_run:
            print(estimate(config, "train", name))
            return 0
        result = command(config)
        if not config.quiet and place(name).rank == 0:
            state = "teacher" if result.exit_code == 0 else "interrupted; best teacher so far"
            print(f"{state}: {result.folder / 'teacher.h5'}")
            again = f"python -m {name}_impl.train --resume {shlex.quote(str(result.folder))}"
            if result.exit_code:
                print(f"go on with: {again}")
            elif config.resume and result.before == len(result.history):
                epochs = counted(result.before, "epoch")
                print(f"it was finished, with {epochs}; for N in all: {again} --epochs N")
        return result.exit_code

    return run_command(
        TrainConfig,
        body,
        argv,
        prog=f"python -m {name}_impl.train",
        description="Meta-train an LSTM optimizer (teacher) and write it to a run folder.",
        alone={"resume": ("quiet", "device", "data_dir", "jobs", "epochs", "tensorboard")},
        leads=lambda: place(name).rank == 0,
    )
