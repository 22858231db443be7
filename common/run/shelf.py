"""Arrays beside memory: in a temporary file, which ends with the process."""

import tempfile
import weakref
from collections.abc import Hashable, Sequence
from typing import IO

import numpy as np

from common.errors import L2OError


class Shelf:
    """Lists of arrays by key. Those of a key may be replaced by others of the same shapes and dtypes.

    Args:
        what: lies here, in words, for the message where there is no room.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._file: IO[bytes] | None = None
        self._end = 0
        self._places: dict[Hashable, tuple[int, list[tuple[tuple[int, ...], np.dtype]]]] = {}

    def put(self, key: Hashable, arrays: Sequence[np.ndarray]) -> None:
        """Lay arrays down.

        Raises:
            L2OError: there is no room in the folder of temporary files.
        """
        forms = [(a.shape, a.dtype) for a in arrays]
        place, before = self._places.get(key, (self._end, forms))
        if before != forms:
            raise ValueError(f"{key}: expected arrays as before, {before}, got {forms}")
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="l2o-")  # noqa: SIM115 - open as long as this is
                weakref.finalize(self, self._file.close)
            self._file.seek(place)
            for a in arrays:
                self._file.write(a.tobytes())
            self._file.flush()
        except OSError as error:
            raise L2OError(
                f"{self._what} go to a file in {tempfile.gettempdir()}, which cannot be written "
                f"({error.strerror}); make room there, or name another folder by TMPDIR"
            ) from None
        if key not in self._places:
            self._places[key] = place, forms
            self._end += sum(a.nbytes for a in arrays)

    def get(self, key: Hashable) -> list[np.ndarray]:
        """Copies of the arrays, which may be written into."""
        place, forms = self._places[key]
        assert self._file is not None
        self._file.seek(place)
        found = [np.empty(shape, dtype) for shape, dtype in forms]
        for a in found:
            self._file.readinto(a.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
        return found
