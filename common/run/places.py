"""A folder where a file is meant: the file inside that it stands for."""

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
