"""Meta-train a teacher: ``python -m torch_impl.train --teacher rnnprop --problem mnist-mlp --out DIR``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.cli import run as run_command
from common.config import TrainConfig, from_dict
from common.errors import L2OError
from common.teachers import TEACHERS, TeacherRow, initial_weights, variant

if TYPE_CHECKING:
    from interchange.weights import Teacher
    from torch_impl.meta import Tasks

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


def train(config: TrainConfig, tasks: "Tasks | None" = None) -> Run:
    """Meta-train a teacher as ``config`` says; everything is written into the run folder ``config.out``.

    Args:
        tasks: ``tasks(stream, number)`` gives optimizee ``number`` (a ``ModuleTask``, say) of the stream
            ``meta_train`` or ``validation``, the same whenever asked; ``config.problem``'s if None.

    Raises:
        L2OError: the folder is in use or holds another run, data are missing, training diverges.
    """
    from common.runs import Interrupt, RunFolder
    from interchange.weights import save_weights
    from torch_impl.meta import MetaTrainer
    from torch_impl.teachers import TeacherNetwork
    from torch_impl.tensors import CREATED_BY, DTYPES, device_of

    if name := config.resume:
        folder = RunFolder(name, resume=True)
        saved = from_dict(TrainConfig, folder.config(), f"{name}/config.json")
        device = config.device if config.device != TrainConfig.device else saved.device
        now = {"quiet": config.quiet, "device": device, "resume": name}
        config = dataclasses.replace(saved, data_dir=config.data_dir or saved.data_dir, **now)
    given = _given(config)
    teacher = _row(config, given)
    config = dataclasses.replace(config, teacher=teacher.name)
    if not config.resume:
        name = config.out or f"runs/{teacher.name}-{config.problem}-{config.seed}"
        folder = RunFolder(name, create=True, overwrite=config.overwrite)
    if tasks is not None:
        config = dataclasses.replace(config, problem="")
    elif not config.problem:
        raise L2OError(
            f"{name} was trained on tasks of its caller; go on with it from Python: train(config, tasks)"
        )
    device = device_of(config.device)
    weights = given.weights if given else initial_weights(teacher, config.seed, config.weights)
    network = TeacherNetwork(teacher, weights, DTYPES[config.dtype], device)
    trainer = MetaTrainer(network, config, tasks=tasks, folder=folder)
    trainer.task("meta_train", 0)  # missing data are found before anything is written
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
            save_weights(folder.file("teacher.h5"), teacher, trainer.best, CREATED_BY)
    code = 0 if finished else interrupt.exit_code
    return Run(folder.path, teacher, trainer.best, trainer.history, code)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""

    def body(config: TrainConfig) -> int:
        result = train(config)
        if not config.quiet:
            state = "teacher" if result.exit_code == 0 else "interrupted; best teacher so far"
            print(f"{state}: {result.folder / 'teacher.h5'}")
            if result.exit_code:
                print(f"go on with: python -m torch_impl.train --resume {result.folder}")
        return result.exit_code

    return run_command(
        TrainConfig,
        body,
        argv,
        prog="python -m torch_impl.train",
        description="Meta-train an LSTM optimizer (teacher) and write it to a run folder.",
        alone={"resume": ("quiet", "device", "data_dir")},
    )


if __name__ == "__main__":
    sys.exit(main())
