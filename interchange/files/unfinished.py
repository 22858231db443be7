"""A run of ``optimize`` that was interrupted, kept beside the finished ones until it goes on."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.errors import L2OError
from common.training import NO_CURVE
from interchange.files.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from interchange.rollout import Begun, Trained

_FOLDER, _STANDING = "unfinished", "standing/"


def keep_unfinished(
    folder: str | os.PathLike[str], number: int, run: Trained, origin: Mapping[str, str]
) -> None:
    """Write where a run stood; of one that can not go on, or that ended, nothing is kept.

    Args:
        number: of the run.
        origin: what it may go on with alone: the optimizer's file and the program.
    """
    if not run.standing:
        forget_unfinished(folder)
        return
    arrays = {_STANDING + name: array for name, array in run.standing.items()}
    arrays |= {"losses": run.losses, "seconds": np.array(run.seconds)}
    arrays |= {"curve": run.curve} if len(run.curve) else {}
    save_checkpoint(Path(folder, _FOLDER), arrays, {"run": number, **origin}, keep=1)


def unfinished(folder: str | os.PathLike[str], number: int, origin: Mapping[str, str]) -> Begun | None:
    """What there is of run ``number``; None where there is nothing it could go on with."""
    if not has_checkpoint(Path(folder, _FOLDER)):
        return None
    try:
        arrays, meta = load_checkpoint(Path(folder, _FOLDER))
    except L2OError:  # damaged: the run begins anew
        return None
    if meta != {"run": number, **origin} or "losses" not in arrays:
        return None
    rest = {name.removeprefix(_STANDING): a for name, a in arrays.items() if name.startswith(_STANDING)}
    losses, curve = arrays["losses"].astype(np.float64), arrays.get("curve", NO_CURVE)
    return Begun(losses, curve, rest, float(arrays.get("seconds", 0.0)))


def forget_unfinished(folder: str | os.PathLike[str]) -> None:
    """There is none any more."""
    shutil.rmtree(Path(folder, _FOLDER), ignore_errors=True)
