"""Atomic files, run locks, canonical JSON, content hashes and names."""

import fcntl
import hashlib
import json
import os

import numpy as np
import pytest

from common.errors import L2OError
from common.run import lock, storage
from tests.helpers.processes import started


def test_atomic_write_makes_and_replaces(tmp_path):
    path = tmp_path / "new" / "file"
    storage.atomic_write(path, "é")
    assert path.read_bytes() == "é".encode()
    storage.atomic_write(path, b"second")
    storage.atomic_write(path, memoryview(np.arange(3, dtype="<i4")))
    assert path.read_bytes() == np.arange(3, dtype="<i4").tobytes()
    assert os.listdir(path.parent) == ["file"]


def test_atomic_write_keeps_the_mode_and_replaces_a_link_not_what_it_points_to(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    storage.atomic_write(link, "new")
    assert target.read_text() == "old" and not link.is_symlink()
    storage.atomic_write(target, "new")
    assert target.read_text() == "new" and target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "fchmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_atomic_write_failing_anywhere_leaves_the_old_file(tmp_path, monkeypatch, call, error):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises((storage.StorageError, KeyboardInterrupt)) as caught:
        storage.atomic_write(path, b"x" * 1000)
    if isinstance(error, OSError):
        assert str(path) in str(caught.value) and "1000 bytes" in str(caught.value)
        assert caught.value.exit_code == 74
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_atomic_write_syncs_file_then_folder(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    folder = [os.stat(tmp_path).st_ino]
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append([os.fstat(fd).st_ino] == folder), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("rename"), replace(*names)))
    storage.atomic_write(tmp_path / "file", "x")
    assert order == [False, "rename", True]


def test_atomic_write_to_a_folder_or_through_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(storage.StorageError, match="folder"):
        storage.atomic_write(tmp_path, "x")
    with pytest.raises(storage.StorageError, match="cannot write"):
        storage.atomic_write(tmp_path / "file" / "inner", "x")
    assert os.listdir(tmp_path) == ["file"]


HOLD = """
import sys
from common.run.lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_lock_refuses_a_second_process_and_a_kill_frees_it(tmp_path):
    with started(HOLD, tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        message = rf"in use by pid {holder.pid} on host \S+;"
        with pytest.raises(L2OError, match=message), lock.RunLock(tmp_path):
            pass
        assert (tmp_path / "lock").read_text().startswith(f"{holder.pid} ")
        holder.kill()
    with lock.RunLock(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"{os.getpid()} ")
    with lock.RunLock(tmp_path):
        pass


@pytest.mark.parametrize(("there", "written"), [(False, False), (True, False), (False, True)])
def test_only_an_empty_folder_made_for_a_holder_that_failed_goes_again(tmp_path, there, written):
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    with pytest.raises(L2OError, match="failed"), lock.RunLock(folder):
        if written:
            (folder / "kept").write_text("half of the work")
        raise L2OError("failed")
    assert folder.exists() == (there or written)
    with lock.RunLock(folder):
        pass


def test_a_lock_that_went_with_its_folder_is_not_taken(tmp_path, monkeypatch):
    """It was opened before its holder failed, and another process may hold a new one."""
    flock = fcntl.flock

    def late(descriptor, how):
        (tmp_path / "lock").unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(L2OError, match="is in use"), lock.RunLock(tmp_path):
        pass


def test_lock_removes_only_stale_temporary_files(tmp_path):
    stale = tmp_path / "checkpoint" / f"{storage.TEMPORARY_PREFIX}1-abc"
    live = tmp_path / f"{storage.TEMPORARY_PREFIX}2-abc"
    other = tmp_path / "notes.tmp"
    stale.parent.mkdir()
    for path in (stale, live, other):
        path.write_text("x")
    with live.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with lock.RunLock(tmp_path):
            pass
    assert not stale.exists() and live.exists() and other.exists()


def test_temporary_file_is_locked_while_written(tmp_path, monkeypatch):
    removed = []
    replace = os.replace

    def clean_then_replace(*names):
        removed.extend(lock.remove_stale(tmp_path))
        replace(*names)

    monkeypatch.setattr(os, "replace", clean_then_replace)
    storage.atomic_write(tmp_path / "file", "x")
    assert removed == []


def test_lock_does_not_follow_a_link(tmp_path):
    (tmp_path / "precious").write_text("data")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(L2OError, match="cannot open the lock"), lock.RunLock(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "data"


def test_canonical_json_is_sorted_exact_and_ascii():
    value = {"b": [0.1, 1e-300, 2.0], "a": np.float64(1 / 3), "c": (np.int64(3), np.arange(2)), "é": None}
    text = storage.canonical_json(value)
    assert text == '{"a":0.3333333333333333,"b":[0.1,1e-300,2.0],"c":[3,[0,1]],"\\u00e9":null}'
    assert json.loads(text)["a"] == 1 / 3


@pytest.mark.parametrize("value", [float("nan"), [np.inf], {1: 2}, {"a": [{None: 1}]}, {1}, object(), b"x"])
def test_canonical_json_refuses(value):
    with pytest.raises(L2OError, match="cannot write as JSON"):
        storage.canonical_json(value)


def test_content_hash():
    assert storage.content_hash(b"") == hashlib.sha256(b"").hexdigest()
    assert storage.content_hash({"a": 1, "b": 2}) == storage.content_hash({"b": 2, "a": 1})
    assert storage.content_hash({"a": 1}) != storage.content_hash({"a": 1.0})


@pytest.mark.parametrize(
    "text",
    ["NaN", "[Infinity]", "1e999", '{"a": 1, "a": 2}', "9" * 400, "[" * 65 + "]" * 65, '{"a":' * 100_000,
     "[" * 500_000, '"' + "[" * 100, "", "{", "{'a': 1}", "\ud800", "[1,]", '"a\nb"'],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_loads_json_refuses(text):
    with pytest.raises(L2OError, match=r"^the rule: "):
        storage.loads_json(text, "the rule")


def test_loads_json_reads():
    assert storage.loads_json('{"a": [1, 0.1, "[[\\"[["]}', "x") == {"a": [1, 0.1, '[["[[']}
    assert storage.loads_json("[" * 64 + "]" * 64, "x")
    assert storage.loads_json('"' + "[" * 1000 + '"', "x") == "[" * 1000
    with pytest.raises(L2OError, match="at most 5"):
        storage.loads_json("[1, 2]", "x", limit=5)


def test_read_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": "é"}')
    assert storage.read_json(path) == {"a": "é"}
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(L2OError, match=r"a\.json: not valid UTF-8"):
        storage.read_json(path)
    path.write_text(" " * 100)
    with pytest.raises(L2OError, match="at most 99 bytes"):
        storage.read_json(path, limit=99)
    for other in (tmp_path, tmp_path / "none"):
        with pytest.raises(storage.StorageError, match=str(other)):
            storage.read_json(other)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(storage.StorageError, match="regular file"):
        storage.read_json(tmp_path / "pipe")


def test_reading_leaks_no_descriptor(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(storage.StorageError):
            storage.read_file(tmp_path, 10)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["a", "rp_s", "A-1.h5", "x" * 64, "000000"])
def test_good_names(name):
    assert storage.check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc/x", "a/../../b", "..\\x", "a\0", "a\n", "x" * 65, "CON", "nul.txt", "a.",
     "a ", "-rf", ".hidden", "a..b", "аbc", None, 3],
)  # fmt: skip
def test_bad_names(name):
    with pytest.raises(L2OError, match=r"run name .*choose another"):
        storage.check_name(name, "run name")
