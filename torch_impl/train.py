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
from common.teachers import TEACHERS, TeacherRow, initial_weights

if TYPE_CHECKING:
    from torch_impl.meta import Tasks


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


def train(config: TrainConfig, tasks: "Tasks | None" = None) -> Run:
    """Meta-train a teacher as ``config`` says; everything is written into the run folder ``config.out``.

    Args:
        tasks: ``tasks(stream, number)`` gives optimizee ``number`` (a ``ModuleTask``, say) of the stream
            ``meta_train`` or ``validation``, the same whenever asked; ``config.problem``'s if None.

    Raises:
        L2OError: the folder is in use or holds another run, data are missing, training diverges.
    """
    from common.runs import Interrupt, RunFolder
    from interchange.checkpoint import has_checkpoint
    from interchange.weights import load_weights, save_weights
    from torch_impl.meta import MetaTrainer
    from torch_impl.teachers import TeacherNetwork
    from torch_impl.tensors import CREATED_BY, DTYPES, device_of

    name = config.resume or config.out or f"runs/{config.teacher}-{config.problem}-{config.seed}"
    folder = RunFolder(name, create=not config.resume, resume=bool(config.resume), overwrite=config.overwrite)
    if config.resume:
        saved = from_dict(TrainConfig, folder.config(), f"{name}/config.json")
        device = config.device if config.device != TrainConfig.device else saved.device
        given = {"quiet": config.quiet, "device": device, "resume": name}
        config = dataclasses.replace(saved, data_dir=config.data_dir or saved.data_dir, **given)
    if tasks is not None:
        config = dataclasses.replace(config, problem="")
    elif not config.problem:
        raise L2OError(
            f"{name} was trained on tasks of its caller; go on with it from Python: train(config, tasks)"
        )
    device = device_of(config.device)
    teacher = TEACHERS[config.teacher]
    weights = initial_weights(teacher, config.seed)
    if config.init and not (config.resume and has_checkpoint(folder.path)):
        given_weights = load_weights(config.init)
        if given_weights.row != teacher:
            raise L2OError(
                f"--init {config.init}: expected a {teacher.name} teacher, got {given_weights.row.name}; "
                f"add --teacher {given_weights.row.name}"
            )
        weights = given_weights.weights
    network = TeacherNetwork(teacher, weights, DTYPES[config.dtype], device)
    trainer = MetaTrainer(network, config, tasks=tasks, folder=folder)
    trainer.task("meta_train", 0)  # missing data are found before anything is written
    with Interrupt() as interrupt, folder:
        if config.resume:
            trainer.restore()
        else:
            folder.write_config(dataclasses.asdict(config))
        try:
            finished = trainer.run(label=f"train {teacher.name}", quiet=config.quiet, interrupt=interrupt)
        finally:  # also where it gives up
            save_weights(folder.file("teacher.h5"), teacher, trainer.best, CREATED_BY)
    code = 0 if finished else interrupt.exit_code
    return Run(folder.path, teacher, trainer.best, trainer.history, code)


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
