"""Meta-training in several processes: the numbers of one, the bits after a crash, one line on each error."""

import functools
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interchange.files.checkpoint import load_checkpoint
from interchange.files.weights import load_weights
from interchange.meta.workers import TIMEOUT
from interchange.rule.rule import Rule
from tests.helpers.commands import metrics
from tests.helpers.processes import launched
from tests.pipeline.together import TRAININGS, TUNINGS, free_ports, main, surroundings

LONG = (
    "--teacher rp_s --problem quadratic --epochs 40 --epoch-length 20 --unroll 4 --tasks 4 "
    "--validate-every 4 --validation-tasks 3 --checkpoint-seconds 0"
)


@pytest.fixture
def backend(request) -> str:
    pytest.importorskip({"torch": "torch", "tf": "tensorflow"}[request.param])
    return request.param


each_backend = pytest.mark.parametrize("backend", ["torch", "tf"], indirect=True)
with_torch = pytest.mark.parametrize("backend", ["torch"], indirect=True)


def start(
    backend: str, size: int, words: str, last: dict[str, str] | None = None, **more: str
) -> list[subprocess.Popen]:
    """``python WORDS`` in as many processes, with ``more`` of environment, and ``last`` for the last."""
    ports, found = free_ports(size), []
    for rank in range(size):
        env = (surroundings(backend, rank, ports) if size > 1 else {}) | more
        env |= (last or {}) if rank == size - 1 else {}
        found.append(launched(words.split(), **env))
    return found


def train(backend: str, size: int, words: str, **more: Any) -> list[subprocess.Popen]:
    return start(backend, size, f"-m {backend}_impl.train {words}", **more)


def resume(backend: str, folder: Path) -> None:
    assert ended(train(backend, 2, f"--resume {folder} --quiet"))[0][0] == 0


def ended(processes: list[subprocess.Popen], seconds: float = 300.0) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each; none is left running."""
    try:
        return [(p.wait(seconds), *map(own_lines, p.communicate(timeout=seconds))) for p in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()  # closes its pipes, which later tests would be told of


def own_lines(text: str) -> str:
    """Without what the frameworks log as they start, and that it takes them long."""
    return "".join(
        line for line in text.splitlines(True) if not re.search("I0000|WARNING: All|: at work,", line)
    )


def assert_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert np.abs(got[name] - array).max() <= tolerance * np.abs(array).max(), name


def assert_same_training(folder: Path, expected: Path, tolerance: float = 0.0) -> None:
    assert_close(load_weights(folder).weights, load_weights(expected).weights, tolerance)
    assert_close(load_checkpoint(folder)[0], load_checkpoint(expected)[0], tolerance)
    for mine, its in zip(metrics(folder), metrics(expected), strict=True):
        assert mine.pop("imitates", "") == its.pop("imitates", "")
        # Rolling out 100 steps multiplies what differs in the last bits of the weights.
        assert mine.pop("validation", 0.0) == pytest.approx(its.pop("validation", 0.0), rel=10 * tolerance)
        assert mine == pytest.approx(its, rel=tolerance, abs=0.0)


def trained_by(folder: Path, backend: str, size: int, names: list[str]) -> Path:
    folder.mkdir()
    script = Path(__file__).with_name("together.py")
    for code, _, err in ended(start(backend, size, f"{script} {backend} {folder} {' '.join(names)}")):
        assert code == 0, err
    return folder


def assert_the_same_numbers(names: list[str], together: Path, alone: Path, size: int) -> None:
    for name in names:
        exact = name in ("es", "pes", "evolved")  # pairs are shared out, their losses are not summed
        if name in TUNINGS:
            got, want = (Rule.load(f / f"{name}.json").constants for f in (together, alone))
            assert got == (want if exact else pytest.approx(want, rel=1e-10))
        else:
            assert_same_training(together / name, alone / name, 1e-10)
            got, want = (load_weights(folder / name).weights for folder in (together, alone))
            assert not exact or all(got[n].tobytes() == w.tobytes() for n, w in want.items())
        for rank in range(1, size):
            with np.load(together / f"{name}-{rank}.npz") as other:
                assert all(np.array_equal(got[n], other[n]) for n in other)


@with_torch
def test_two_processes_train_as_one_even_where_optimizees_diverge(backend, tmp_path):
    together = trained_by(tmp_path / "two", backend, 2, ["diverging"])
    alone = tmp_path / "one"
    main(backend, alone, ["diverging"])
    assert_the_same_numbers(["diverging"], together, alone, 2)
    assert [row["diverged"] for row in metrics(alone / "diverging")] == [3, 4, 4, 4]


@pytest.mark.slow
@each_backend
@pytest.mark.parametrize(
    ("size", "names"),
    [
        pytest.param(2, [*TRAININGS, *TUNINGS], id="2"),
        pytest.param(4, ["plain", "mix", "es"], id="4"),  # one pair less than there are workers
    ],
)
def test_every_kind_of_training_has_the_numbers_of_one_process(backend, size, names, tmp_path):
    together = trained_by(tmp_path / "several", backend, size, names)
    alone = trained_by(tmp_path / "one", backend, 1, names)
    assert_the_same_numbers(names, together, alone, size)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[str], Path]:
    """backend -> the folder of the long run by two processes, uninterrupted."""

    @functools.cache
    def of(backend: str) -> Path:
        folder = tmp_path_factory.mktemp(backend) / "run"
        (code, out, err), (_, other, _) = ended(train(backend, 2, f"{LONG} --out {folder}"))
        assert code == 0, err
        assert out == f"teacher: {folder / 'teacher.h5'}\n" and other == ""
        return folder

    return of


def wait_for_rows(folder: Path, count: int, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if len(metrics(folder)) >= count:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError(f"fewer than {count} epochs")


@pytest.mark.slow
@each_backend
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_at_one_worker_stops_all_and_resumed_it_is_the_same_run(backend, rank, whole, tmp_path):
    folder = tmp_path / "run"
    processes = train(backend, 2, f"{LONG} --checkpoint-seconds 1000 --out {folder}")
    wait_for_rows(folder, 3, processes[0])
    processes[rank].send_signal(signal.SIGTERM)
    (code, out, _), (other, silence, err) = ended(processes)
    assert (code, other) == (143, 143) and "--resume" in out and silence == err == ""
    assert 3 <= len(metrics(folder)) == load_checkpoint(folder)[1]["epoch"] < 40
    resume(backend, folder)
    assert_same_training(folder, whole(backend))


@pytest.mark.slow
@each_backend
def test_a_killed_worker_ends_the_others_and_resumed_it_is_the_same_run(backend, whole, tmp_path):
    folder = tmp_path / "run"
    processes = train(backend, 2, f"{LONG} --quiet --out {folder}")
    wait_for_rows(folder, 3, processes[0])
    processes[1].kill()
    (code, _, err), _ = ended(processes, 60.0)
    assert code == 2 and err.count("\n") == 1 and "lost another worker" in err and "--resume" in err
    resume(backend, folder)
    assert_same_training(folder, whole(backend))


@pytest.mark.slow
@with_torch
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_killed_workers_anew_and_they_go_on(backend, rank, whole, tmp_path):
    folder = tmp_path / "run"
    words = f"-m torch.distributed.run --nproc-per-node 2 --max-restarts 3 --master-port {free_ports(1)[0]}"
    (agent,) = start(backend, 1, f"{words} -m torch_impl.train {LONG} --out {folder}")
    try:
        wait_for_rows(folder, 5, agent)
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        ranks = {}
        for child in children:
            names = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            ranks |= {int(name[5:]): int(child) for name in names if name.startswith(b"RANK=")}
        os.kill(ranks[rank], signal.SIGKILL)
        assert agent.wait(120) == 0, agent.communicate()[1]
    finally:
        agent.terminate()
        agent.communicate()
    assert json.loads((folder / "config.json").read_text())["resume"] == ""
    assert_same_training(folder, whole(backend))


@pytest.mark.slow
@each_backend
def test_a_worker_that_hangs_is_given_up(backend, tmp_path):
    folder = tmp_path / "run"
    processes = train(backend, 2, f"{LONG} --quiet --out {folder}", **{TIMEOUT: "10"})
    wait_for_rows(folder, 3, processes[0])
    processes[1].send_signal(signal.SIGSTOP)
    try:
        assert processes[0].wait(90) == 2
    finally:
        processes[1].kill()
    (_, _, err), _ = ended(processes)
    assert err.count("\n") == 1 and f"10 s ({TIMEOUT})" in err


@pytest.mark.slow
@each_backend
def test_what_cannot_start_is_told_once_and_nothing_is_written(backend, tmp_path):
    words = f"--epochs 1 --out {tmp_path / 'run'}"
    (code, out, err), *others = ended(train(backend, 2, f"{words} --tasks 3"))
    assert code == 2 and out == "" and others == [(2, "", "")]
    assert err.count("\n") == 1 and "--tasks: expected a multiple of the 2 workers" in err
    x, y = np.zeros((60, 28, 28), dtype=np.uint8), np.arange(60) % 10
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    words += " --problem mnist-mlp --tasks 2"
    here, there = {"L2O_DATA": str(tmp_path / "data")}, {"L2O_DATA": str(tmp_path)}
    first, (code, out, err) = ended(train(backend, 2, words, last=there, **here))
    assert first == (2, "", "") and code == 2 and out == "" and err.count("\n") == 1 and "mnist" in err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.slow
@with_torch
def test_a_run_of_one_process_stopped_within_an_epoch_goes_on_in_two(backend, tmp_path):
    one, folder = tmp_path / "one", tmp_path / "cut"
    words = "--teacher rp_s --problem quadratic --epochs 2 --epoch-length 120 --unroll 2 --tasks 4"
    words += " --validate-every 1 --checkpoint-seconds 0 --dtype float64"
    assert ended(train(backend, 1, f"{words} --out {one}"))[0][0] == 0
    (process,) = train(backend, 1, f"{words} --out {folder}")
    while not list(folder.glob("checkpoint/*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert ended([process])[0][0] == 143
    arrays, meta = load_checkpoint(folder)
    assert 0 < meta["step"] < 120 and "task_003/theta" in arrays
    resume(backend, folder)
    assert_same_training(folder, one, 1e-8)
