"""Meta-training of a teacher into a run folder: ``train``."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.cli import run as run_command
from common.config import TrainConfig, from_dict
from common.errors import L2OError
from common.teachers import TEACHERS, TeacherRow, initial_weights, variant

if TYPE_CHECKING:
    from interchange.commands.backend import Backend, Tasks
    from interchange.weights import Teacher

_INIT_FILE = "init.h5"  # a copy of the teacher it started from, so that a resumed run needs no other folder


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished (or interrupted) meta-training.

    Attributes:
        folder: the run folder, with ``teacher.h5``, ``config.json``, ``metrics.jsonl``, ``checkpoint/``.
        weights: the best teacher's weights by name.
        history: one row per epoch: loss, validation, seconds.
        exit_code: 0, or 143 / 130 where a signal stopped it.
    """

    folder: Path
    teacher: TeacherRow
    weights: dict[str, np.ndarray]
    history: list[dict[str, Any]]
    exit_code: int = 0

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        shown = ", ".join(f"{key} {last[key]:.4g}" for key in ("loss", "validation") if key in last)
        return f"Run({self.folder}: {self.teacher.name}, {len(self.history)} epochs, {shown or 'no epoch'})"


def train(config: TrainConfig, backend: "Backend", tasks: "Tasks | None" = None) -> Run:
    """``torch_impl.train`` and ``tf_impl.train``: meta-train a teacher into a run folder."""
    from common.runs import Interrupt, RunFolder
    from interchange.weights import save_weights

    if name := config.resume:
        folder = RunFolder(name, resume=True)
        saved = from_dict(TrainConfig, folder.config(), f"{name}/config.json")
        device = config.device if config.device != TrainConfig.device else saved.device
        jobs = config.jobs if config.jobs != TrainConfig.jobs else saved.jobs
        now = {"quiet": config.quiet, "device": device, "resume": name, "jobs": jobs}
        config = dataclasses.replace(saved, data_dir=config.data_dir or saved.data_dir, **now)
    given = _given(config)
    teacher = _row(config, given)
    config = dataclasses.replace(config, teacher=teacher.name)
    if not config.resume:
        name = config.out or f"runs/{teacher.name}-{_shown(config.problem)}-{config.seed}"
        folder = RunFolder(name, create=True, overwrite=config.overwrite)
    if tasks is not None:
        config = dataclasses.replace(config, problem="")
    elif not config.problem:
        raise L2OError(
            f"{name} was trained on tasks of its caller; go on with it from Python: train(config, tasks)"
        )
    weights = given.weights if given else initial_weights(teacher, config.seed, config.weights)
    network = backend.teacher_network(teacher, weights, config.dtype, config.device, config.state_dtype)
    trainer = backend.MetaTrainer(network, config, tasks=tasks, folder=folder)
    for number in range(len(trainer.schedule.problems)):
        trainer.task("meta_train", number)  # missing data are found before anything is written
    with Interrupt() as interrupt, folder:
        if config.resume:
            trainer.restore()
        else:
            if given:
                save_weights(folder.file(_INIT_FILE), given.row, given.weights, given.created_by)
            folder.write_config(dataclasses.asdict(config))
        try:
            finished = trainer.run(label=f"train {teacher.name}", quiet=config.quiet, interrupt=interrupt)
        finally:  # also where it gives up
            save_weights(folder.file("teacher.h5"), teacher, trainer.best, backend.CREATED_BY)
    code = 0 if finished else interrupt.exit_code
    return Run(folder.path, teacher, trainer.best, trainer.history, code)


def _shown(problem: str) -> str:
    """Of one problem its name, of several the first and how many more, for a folder's name."""
    first, *others = problem.split(",")
    return f"{first}+{len(others)}" if others else first


def _given(config: TrainConfig) -> "Teacher | None":
    """The trained teacher to start from, None without one or where a checkpoint stands for it."""
    from interchange.checkpoint import has_checkpoint
    from interchange.weights import load_weights

    if not config.init:
        return None
    copy = Path(config.resume, _INIT_FILE)
    if config.resume and (copy.exists() or has_checkpoint(Path(config.resume))):
        return load_weights(copy) if copy.exists() else None
    return load_weights(config.init)


def _row(config: TrainConfig, given: "Teacher | None") -> TeacherRow:
    """The row to train: the given teacher's, or of the table with what ``--inputs``, ``--scale`` replace."""
    if given is None:
        return variant(TEACHERS[config.teacher or "rp_s"], config.inputs, config.scale)
    if given.row.name not in TEACHERS:  # it names the run's folder
        raise L2OError(
            f"--init {config.init}: expected a teacher called {', '.join(TEACHERS)}, got {given.row.name!r}; "
            "add its row to common/teachers.py"
        )
    if config.resume:
        return given.row
    asked = variant(TEACHERS[config.teacher] if config.teacher else given.row, config.inputs, config.scale)
    mine, its = asked.to_dict(), given.row.to_dict()
    differing = [name for name in mine if mine[name] != its[name] and name != "source"]
    differing += ["weights"] if config.weights != TrainConfig.weights else []
    if differing:
        raise L2OError(
            f"--init {config.init}: expected its {given.row.name} teacher as it is, got flags for one with "
            f"other {', '.join(differing)}; leave out --teacher, --inputs, --scale and --weights"
        )
    return given.row


def main(command: Callable[[TrainConfig], Any], name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of ``command``, the function of the backend called ``name``; the exit code."""

    def body(config: TrainConfig) -> int:
        result = command(config)
        if not config.quiet:
            state = "teacher" if result.exit_code == 0 else "interrupted; best teacher so far"
            print(f"{state}: {result.folder / 'teacher.h5'}")
            if result.exit_code:
                print(f"go on with: python -m {name}_impl.train --resume {result.folder}")
        return result.exit_code

    return run_command(
        TrainConfig,
        body,
        argv,
        prog=f"python -m {name}_impl.train",
        description="Meta-train an LSTM optimizer (teacher) and write it to a run folder.",
        alone={"resume": ("quiet", "device", "data_dir", "jobs")},
    )
