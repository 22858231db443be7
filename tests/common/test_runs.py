"""Run folders, metrics, environment record and signals."""

import json
import os
import signal
import sys
import textwrap
import threading

import numpy as np
import pytest

from common.errors import L2OError
from common.run.runs import Interrupt, RunFolder, environment
from common.run.storage import StorageError
from tests.helpers.processes import said, started


def fresh(path, rows=0) -> RunFolder:
    with RunFolder(path, create=True) as run:
        run.write_config({"seed": 3, "lr": 0.1})
        for step in range(rows):
            run.log({"step": step})
    return RunFolder(path)


def test_a_run_from_start_to_end(tmp_path):
    run = fresh(tmp_path / "run", rows=2)
    assert run.config() == {"seed": 3, "lr": 0.1}
    assert run.read_metrics() == [{"step": 0}, {"step": 1}]
    assert run.environment()["versions"]["numpy"] == np.__version__
    assert sorted(os.listdir(run.path)) == ["config.json", "env.json", "lock", "metrics.jsonl"]


def test_environment_record(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    record = environment()
    assert record["python"] == sys.version.split()[0]
    assert record["threads"]["OMP_NUM_THREADS"] == "2" and record["command"] == sys.argv
    assert record["cpu_count"] >= record["cpus_usable"] >= 1 and record["platform"]
    assert all(name in sys.modules for name in record["versions"])
    json.dumps(record)


def test_a_folder_with_a_run_is_refused_and_its_lock_freed(tmp_path):
    fresh(tmp_path, rows=1)
    for _ in range(2):
        with pytest.raises(L2OError, match="already holds a run; replace"), RunFolder(tmp_path, create=True):
            pass
    assert RunFolder(tmp_path).read_metrics() == [{"step": 0}]


def test_overwriting_removes_the_old_run_only(tmp_path):
    fresh(tmp_path, rows=1)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "checkpoint-00000001.h5").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder(tmp_path, create=True, overwrite=True) as run:
        assert not run.file("config.json").exists()
        run.write_config({})
    assert run.read_metrics() == [] and not list(tmp_path.glob("checkpoint/*"))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_without_a_run_is_refused(tmp_path):
    for options in ({}, {"resume": True}):
        with pytest.raises(L2OError, match=r"expected a run folder, got no config\.json"):
            RunFolder(tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_reading_takes_no_lock_and_cannot_write(tmp_path):
    fresh(tmp_path)
    with RunFolder(tmp_path, resume=True) as writer:
        reader = RunFolder(tmp_path)
        writer.log({"step": 0})
        assert reader.read_metrics() == [{"step": 0}]
        for call in (lambda: reader.log({}), lambda: reader.write_config({})):
            with pytest.raises(L2OError, match="for reading only"):
                call()
        with pytest.raises(L2OError, match=f"in use by pid {os.getpid()} "), RunFolder(tmp_path, resume=True):
            pass
    with pytest.raises(L2OError, match="for reading only"):
        writer.log({})
    with RunFolder(tmp_path, resume=True):
        pass


@pytest.mark.parametrize("tail", [b'{"step": 9', b'{"step":', b"{", b'{"step": 9}', b"\xff\0"])
def test_a_torn_last_line_is_dropped(tmp_path, tail):
    run = fresh(tmp_path, rows=2)
    path = run.file("metrics.jsonl")
    path.write_bytes(path.read_bytes() + tail)
    assert run.read_metrics() == [{"step": 0}, {"step": 1}]
    with RunFolder(tmp_path, resume=True) as run:
        run.log({"step": 2})
    assert run.read_metrics() == [{"step": 0}, {"step": 1}, {"step": 2}]


@pytest.mark.parametrize("line", ["{", "[1]", '{"a": NaN}'])
def test_a_broken_line_inside_is_an_error(line, tmp_path):
    run = fresh(tmp_path)
    run.file("metrics.jsonl").write_text('{"step": 0}\n' + line + '\n{"step": 2}\n')
    with pytest.raises(L2OError, match=r"metrics\.jsonl, line 2"):
        run.read_metrics()


def test_metrics_are_one_write_a_line_and_exact(tmp_path, monkeypatch):
    writes = []
    write = os.write
    with RunFolder(tmp_path, create=True) as run:
        monkeypatch.setattr(os, "write", lambda fd, data: (writes.append(bytes(data)), write(fd, data))[1])
        run.log({"loss": 0.1, "nan": float("nan"), "more": [np.float32(0.5), np.inf], "n": np.int64(3)})
    assert writes == [b'{"loss":0.1,"more":[0.5,null],"n":3,"nan":null}\n']


def test_truncating_metrics_and_going_on(tmp_path):
    fresh(tmp_path, rows=5)
    with RunFolder(tmp_path, resume=True) as run:
        run.log({"step": 5})
        run.truncate_metrics(lambda row: row["step"] < 3)
        run.log({"step": 3})
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2, 3]


def test_a_full_disk_leaves_no_half_line(tmp_path):
    code = """
    import resource, sys
    from common.run.runs import RunFolder
    from common.run.storage import StorageError
    with RunFolder(sys.argv[1], create=True) as run:
        run.write_config({})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            for step in range(1000):
                run.log({"step": step})
        except StorageError as error:
            print(error)
    """
    assert "metrics.jsonl" in said(textwrap.dedent(code), tmp_path)
    data = (tmp_path / "metrics.jsonl").read_bytes()
    assert 900 < len(data) <= 1000 and data.endswith(b"\n")


def test_a_full_disk_while_configuring_is_a_storage_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with RunFolder(tmp_path, create=True) as run:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            run.write_config({})
    assert os.listdir(tmp_path) == ["lock"]


LOOP = """
import sys, time
from common.run.runs import Interrupt
with Interrupt() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("checkpoint", flush=True)
    if len(sys.argv) > 1:
        time.sleep(30)
sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("stuck", [False, True])
def test_signals_stop_the_loop_and_a_second_one_the_process(number, code, stuck):
    process = started(LOOP, *(["stuck"] if stuck else []))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "checkpoint\n"
    if stuck:
        process.send_signal(number)
    process.communicate(timeout=5)
    assert process.returncode == code


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interrupt() as stop:
        assert signal.getsignal(signal.SIGTERM) != before[0]
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested and stop.exit_code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_outside_the_main_thread_nothing_happens():
    results = []

    def work():
        with Interrupt() as stop:
            results.append((stop.requested, stop.exit_code))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [(False, 0)]


def test_a_resumed_run_is_told_when_other_code_computes_than_began(tmp_path, monkeypatch):
    with RunFolder(tmp_path / "run", create=True) as run:
        run.write_config({})
        assert run.environment()["kernels"].startswith(("compiled: ", "plain: "))
        assert run.code_changed() == ""
    monkeypatch.setattr("common.kernels.which", lambda: "compiled: another compiler")
    assert "goes on with compiled: another compiler" in RunFolder(tmp_path / "run").code_changed()
