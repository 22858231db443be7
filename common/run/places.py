"""Where files are: the one that a folder stands for, and whether one may be written."""

import os
from pathlib import Path

from common.errors import L2OError


def inside(path: str | os.PathLike[str], what: str, *names: str) -> Path:
    """``path``, or where it is a folder the first of ``names`` that is in it.

    Args:
        what: what the file is to hold, for the message.
        names: relative to the folder, the likeliest first.

    Raises:
        L2OError: a folder that holds none of them.
    """
    place = Path(path)
    if not place.is_dir():
        return place
    found = next((place / name for name in names if (place / name).is_file()), None)
    if found is None:
        held = ", ".join(sorted(entry.name for entry in place.iterdir())[:8]) or "nothing"
        raise L2OError(f"{path}: expected {what}, got a folder that holds {held}; name the file itself")
    return found


def vacant(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse to replace what is at ``--out`` already, but with ``overwrite``.

    Asked once the input is read: whoever named a wrong file must not be told about the output first.
    """
    if not overwrite and os.path.lexists(path):
        raise L2OError(f"--out {path} is there already; replace it with --overwrite or choose another")
