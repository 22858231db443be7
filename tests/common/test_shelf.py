"""Arrays in a temporary file."""

import errno
import tempfile

import numpy as np
import pytest

from common.errors import L2OError
from common.run.shelf import Shelf


def test_arrays_come_back_as_they_were_laid_down_last(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shelf, generator = Shelf("arrays"), np.random.default_rng(0)
    first = {k: [generator.normal(size=n) for n in (k, 3, 0)] + [np.float32(k)] for k in range(4)}
    for arrays in (first, {k: [a + 1 for a in arrays] for k, arrays in first.items()}):
        for key in (2, 0, 3, 1):
            shelf.put(key, arrays[key])
        for key, expected in arrays.items():
            found = shelf.get(key)
            for a, b in zip(found, expected, strict=True):
                assert a.dtype == b.dtype and a.flags.writeable
                np.testing.assert_array_equal(a, b)
            found[1][:] = 0.0  # of a copy
            assert shelf.get(key)[1].any()
    with pytest.raises(ValueError, match="expected arrays as before"):
        shelf.put(0, [np.zeros(5)])
    assert not list(tmp_path.iterdir())  # nothing is left behind, whatever ends the process


def test_no_room_is_said_in_one_line(monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(L2OError, match=r"arrays go to a file in .*No space left on device.*TMPDIR") as error:
        Shelf("arrays").put(0, [np.zeros(3)])
    assert "\n" not in str(error.value)
