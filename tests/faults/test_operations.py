"""A checkpoint's cycle stopped between any two file operations, or with any of them failing."""

import errno
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import L2OError
from common.run.lock import RunLock
from common.run.runs import RunFolder
from common.run.storage import TEMPORARY_PREFIX
from common.tables.teachers import TEACHERS, initial_weights
from interchange.files.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from interchange.files.weights import load_weights, save_weights
from tests.faults.operations import Log, drawn, halved, replay, unsynced

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*trying the checkpoint before it"),
    pytest.mark.filterwarnings("ignore:cannot rename"),
]
STEPS = 7
WEIGHTS = initial_weights(TEACHERS["rp_s"], 0)


def cycle(folder: Path, log: Log, promised: list[tuple[int, str, int]]) -> None:
    """A run of a few checkpoints; notes every promise: operations by then, what is kept, and which."""

    def promise(what: str, number: int = 0) -> None:
        promised.append((len(log.operations), what, number))

    with RunFolder(folder, create=True) as run:
        run.write_config({"a": 1})
        promise("config")
        for step in range(STEPS):
            run.log({"epoch": step})
            save_checkpoint(folder, {"x": np.full(5000, step)}, {"step": step})
            promise("checkpoint", step)
        save_weights(folder / "teacher.h5", TEACHERS["rp_s"], WEIGHTS, "test")
        promise("teacher")


def recorded(tmp_path: Path) -> tuple[Log, list[tuple[int, str, int]]]:
    promised: list[tuple[int, str, int]] = []
    with Log(tmp_path).watching() as log:
        cycle(tmp_path / "run", log, promised)
    return log, promised


def check(folder: Path, promised: list[tuple[str, int]]) -> None:
    """What was promised is there, whatever is there can be read, and the next start leaves nothing broken."""
    wanted = dict(promised)
    if (folder / "config.json").exists() or "config" in wanted:
        run = RunFolder(folder)
        assert run.config() == {"a": 1}
        epochs = [row["epoch"] for row in run.read_metrics()]
        assert epochs == list(range(len(epochs)))
    if has_checkpoint(folder) or "checkpoint" in wanted:
        arrays, meta = load_checkpoint(folder)
        assert (arrays["x"] == meta["step"]).all() and meta["step"] >= wanted.get("checkpoint", 0)
    if (folder / "teacher.h5").exists() or "teacher" in wanted:
        found = load_weights(folder)
        assert all(np.array_equal(found.weights[name], WEIGHTS[name]) for name in WEIGHTS)
    if folder.exists():
        with RunLock(folder):
            assert not list(folder.rglob(f"{TEMPORARY_PREFIX}*"))


@pytest.fixture(autouse=True)
def _without_child(monkeypatch):
    """Copies of one's own files are no strangers'."""
    monkeypatch.setattr("interchange.files.child.check", lambda *given: None)


def kept_by(promised: list[tuple[int, str, int]], count: int) -> list[tuple[str, int]]:
    return [(what, number) for at, what, number in promised if at <= count]


def test_every_prefix_of_the_file_operations_is_a_readable_run(tmp_path, tell):
    log, promised = recorded(tmp_path)
    points = 0
    for count in range(len(log.operations) + 1):
        begun = log.operations[:count]
        half = halved(log.operations[count]) if count < len(log.operations) else None
        for operations in (begun, *([[*begun, half]] if half else [])):
            replay(operations, tmp_path / "again")
            check(tmp_path / "again/run", kept_by(promised, count))
            points += 1
    assert points >= 100
    tell(f"{points} crash points of {len(log.operations)} operations: 0 unreadable")


def test_a_loss_of_power_keeps_what_was_acknowledged(tmp_path, dice: random.Random, times, tell):
    """Whatever no fsync has settled is there or not, each for itself."""
    log, promised = recorded(tmp_path)
    for _ in range(times(1000)):
        count = dice.randrange(len(log.operations) + 1)
        operations = log.operations[:count]
        replay(operations, tmp_path / "again", drawn(unsynced(operations), dice))
        acknowledged(tmp_path / "again/run", dict(kept_by(promised, count)))
    tell(f"{times(1000)} losses of power: nothing acknowledged is lost")


def acknowledged(folder: Path, kept: dict[str, int]) -> None:
    """Rows of metrics are not synced: the checkpoint says how many count."""
    if "config" in kept:
        assert RunFolder(folder).config() == {"a": 1}
    if "checkpoint" in kept:
        arrays, meta = load_checkpoint(folder)
        assert (arrays["x"] == meta["step"]).all() and meta["step"] >= kept["checkpoint"]
    if "teacher" in kept:
        load_weights(folder)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ENOSPC], ids=errno.errorcode.get)
def test_an_error_of_any_operation_is_one_line_and_loses_nothing(
    code, tmp_path, dice: random.Random, times, tell
):
    log, _ = recorded(tmp_path)
    count = len(log.operations)
    failed, chosen = 0, dice.sample(range(count), times(count))
    for at in chosen:
        folder = tmp_path / f"run{at}"

        def fail(count: int, at: int = at) -> None:
            if count == at:
                raise OSError(code, "made to fail")

        promised: list[tuple[int, str, int]] = []
        with Log(folder, fail).watching() as failing:
            try:
                cycle(folder, failing, promised)
            except (L2OError, OSError) as error:
                assert "\n" not in str(error) and (isinstance(error, OSError) or str(folder) in str(error))
                failed += 1
        check(folder, [(what, which) for _, what, which in promised])
    assert failed > 0.5 * len(chosen)
    tell(f"{len(chosen)} failing operations, {failed} told, all earlier checkpoints whole")


def test_a_reader_of_a_live_run_meets_no_error(tmp_path, times, tell):
    """The run is far faster than any: the checkpoint that is read has often been replaced by then."""
    stop, written = threading.Event(), [0]

    def write() -> None:
        with RunFolder(tmp_path, create=True) as run:
            run.write_config({"a": 1})
            while not stop.is_set():
                save_checkpoint(tmp_path, {"x": np.full(5000, written[0])}, {"step": written[0]})
                run.log({"epoch": written[0]})
                written[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    last, reads = -1, times(2000)
    try:
        while not has_checkpoint(tmp_path):
            time.sleep(0.01)
        for _ in range(reads):
            arrays, meta = load_checkpoint(tmp_path)
            assert (arrays["x"] == meta["step"]).all() and meta["step"] >= last
            assert len(RunFolder(tmp_path).read_metrics()) >= meta["step"]
            last = meta["step"]
    finally:
        stop.set()
        thread.join()
    tell(f"{reads} reads while {written[0]} checkpoints were written: 0 errors, steps in order")
