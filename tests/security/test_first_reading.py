"""Files of strangers are read by a child process with limits before this one opens them."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from common.errors import L2OError
from interchange.files import child, hdf5
from interchange.files.hdf5 import read_hdf5, write_hdf5
from interchange.files.reader import DamagedFileError, Tree, VersionError
from interchange.files.weights import Teacher
from tests.helpers.processes import said

FORMAT = "l2o-checkpoint"


@pytest.fixture
def children(monkeypatch):
    """The children started, as their command lines."""
    started, run = [], subprocess.run

    def counted(words, **keywords):
        started.append(words)
        return run(words, **keywords)

    monkeypatch.setattr(subprocess, "run", counted)
    return started


@pytest.fixture
def strange(tmp_path):
    """A file that another process might have written."""
    write_hdf5(tmp_path / "own.h5", Tree({"x": np.arange(3.0)}), FORMAT, "1.0.0")
    path = tmp_path / "strange.h5"
    path.write_bytes((tmp_path / "own.h5").read_bytes())
    return path


def test_own_files_shipped_ones_and_those_seen_before_need_no_child(strange, children):
    assert read_hdf5(strange.with_name("own.h5")).arrays["x"].tolist() == [0.0, 1.0, 2.0]
    Teacher.named("rp_s")
    assert children == []
    for _ in range(2):
        assert read_hdf5(strange).arrays["x"].tolist() == [0.0, 1.0, 2.0]
    assert len(children) == 1
    strange.write_bytes(strange.read_bytes())
    read_hdf5(strange)
    assert len(children) == 2


def test_what_is_known_of_files_does_not_grow_for_ever(strange, children):
    own = strange.with_name("own.h5")
    for number in range(child.MOST):
        os.utime(strange, ns=(number, number))
        child.remember(strange)
    read_hdf5(strange)
    assert children == []
    read_hdf5(own)
    assert len(children) == 1  # so many others came since


@pytest.mark.parametrize("what", ["hash", "version", "format", "cut"])
def test_what_the_child_refuses_is_not_opened_here(what, strange, monkeypatch):
    errors = {"hash": DamagedFileError, "version": VersionError, "format": L2OError, "cut": DamagedFileError}
    if what == "cut":
        strange.write_bytes(strange.read_bytes()[:900])
    else:
        with h5py.File(strange, "a") as file:
            if what == "hash":
                file["x"][0] = 7.0
            else:
                file.attrs["format_version"] = "2.0.0"
    asked = "l2o-teacher" if what == "format" else FORMAT
    with monkeypatch.context() as patch, pytest.raises(errors[what]) as alone:
        patch.setattr(child, "check", lambda *given: None)
        read_hdf5(strange, asked)
    monkeypatch.setattr(hdf5, "_read", None)  # called here, it would be a TypeError
    with pytest.raises(errors[what]) as told:
        read_hdf5(strange, asked)
    assert str(told.value) == str(alone.value)


HANGS = "while True: pass"
EATS = "from interchange.files.hdf5 import limit_memory; limit_memory(1 << 28); bytearray(1 << 30)"
CRASHES = "import os; os.abort()"


@pytest.mark.parametrize("code", [HANGS, EATS, CRASHES], ids=["hangs", "eats", "crashes"])
def test_a_child_that_fails_is_one_clear_line(code, strange, monkeypatch):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1)); "
    monkeypatch.setattr(child, "_CODE", limit + code)
    with pytest.raises(DamagedFileError, match=r"strange\.h5: expected .* crashes, or takes more"):
        read_hdf5(strange)


def test_the_limits_hold_in_the_child(strange):
    """Of memory and of time, as the child sets them itself."""
    code = """
import resource, sys
from interchange.files import hdf5
hdf5._read = lambda *given: print(resource.getrlimit(resource.RLIMIT_CPU), bytearray(int(sys.argv[2])))
hdf5.answer(sys.argv[1], "", "1.0.0", "1", str(1 << 28), "7")
"""
    assert said(code, strange, 10).startswith("(7, 7)")
    failed = subprocess.run([sys.executable, "-c", code, str(strange), str(1 << 30)], capture_output=True)
    assert failed.returncode and b"MemoryError" in failed.stderr
