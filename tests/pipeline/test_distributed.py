"""Meta-training in several processes: the numbers of one, the bits after a crash, one line on each error."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from interchange.files.checkpoint import load_checkpoint
from interchange.files.weights import load_weights
from interchange.meta.workers import TIMEOUT
from interchange.rule.rule import Rule
from tests.pipeline.together import TRAININGS, TUNINGS, free_ports, main, surroundings

ROOT = Path(__file__).parents[2]
LONG = [
    "--teacher",
    "rp_s",
    "--problem",
    "quadratic",
    "--epochs",
    "40",
    "--epoch-length",
    "20",
    "--unroll",
    "4",
]
LONG += ["--tasks", "4", "--validate-every", "4", "--validation-tasks", "3", "--checkpoint-seconds", "0"]
BACKENDS = ["torch", "tf"]


@pytest.fixture
def backend(request) -> str:
    pytest.importorskip({"torch": "torch", "tf": "tensorflow"}[request.param])
    return request.param


each_backend = pytest.mark.parametrize("backend", BACKENDS, indirect=True)


def start(
    backend: str, size: int, *arguments: str, last: dict[str, str] | None = None, **more: str
) -> list[subprocess.Popen]:
    """``python ARGUMENTS`` in as many processes, with ``more`` of environment, and ``last`` for the last."""
    ports = free_ports(size)
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ
            | (surroundings(backend, rank, ports) if size > 1 else {})
            | more
            | ((last or {}) if rank == size - 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ended(processes: list[subprocess.Popen], seconds: float = 300.0) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each; none is left running."""
    try:
        return [(p.wait(seconds), *map(own_lines, p.communicate(timeout=seconds))) for p in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()  # closes its pipes, which later tests would be told of


def own_lines(text: str) -> str:
    """Without what the frameworks log as they start."""
    return "".join(
        line for line in text.splitlines(True) if "I0000" not in line and "WARNING: All" not in line
    )


def rows(folder: Path) -> list[dict]:
    """The metrics without the times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def assert_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert np.abs(got[name] - array).max() <= tolerance * np.abs(array).max(), name


def assert_same_run(folder: Path, expected: Path, tolerance: float = 0.0) -> None:
    assert_close(load_weights(folder).weights, load_weights(expected).weights, tolerance)
    assert_close(load_checkpoint(folder)[0], load_checkpoint(expected)[0], tolerance)
    got, want = rows(folder), rows(expected)
    assert len(got) == len(want)
    for mine, its in zip(got, want, strict=True):
        assert mine.pop("imitates", "") == its.pop("imitates", "")
        # Rolling out 100 steps multiplies what differs in the last bits of the weights.
        assert mine.pop("validation", 0.0) == pytest.approx(its.pop("validation", 0.0), rel=10 * tolerance)
        assert mine == pytest.approx(its, rel=tolerance, abs=0.0)


def trained(folder: Path, backend: str, size: int, names: list[str]) -> Path:
    """The folder with the trainings of those names by as many processes."""
    folder.mkdir()
    script = str(Path(__file__).with_name("together.py"))
    for code, _, err in ended(start(backend, size, script, backend, str(folder), *names)):
        assert code == 0, err
    return folder


def assert_the_same_numbers(names: list[str], together: Path, alone: Path, size: int) -> None:
    for name in names:
        exact = name in ("es", "pes", "evolved")  # pairs are shared out, their losses are not summed
        if name in TUNINGS:
            got, want = (Rule.load(f / f"{name}.json").constants for f in (together, alone))
            assert got == (want if exact else pytest.approx(want, rel=1e-10))
        else:
            assert_same_run(together / name, alone / name, 1e-10)
            got, want = (load_weights(folder / name).weights for folder in (together, alone))
            assert not exact or all(got[n].tobytes() == w.tobytes() for n, w in want.items())
        for rank in range(1, size):
            with np.load(together / f"{name}-{rank}.npz") as other:
                assert all(np.array_equal(got[n], other[n]) for n in other)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_two_processes_train_as_one_even_where_optimizees_diverge(backend, tmp_path):
    together = trained(tmp_path / "two", backend, 2, ["diverging"])
    alone = tmp_path / "one"
    main(backend, alone, ["diverging"])
    assert_the_same_numbers(["diverging"], together, alone, 2)
    assert [row["diverged"] for row in rows(alone / "diverging")] == [3, 4, 4, 4]


@pytest.mark.slow
@each_backend
@pytest.mark.parametrize("size", [2, 4])
def test_every_kind_of_training_has_the_numbers_of_one_process(backend, size, tmp_path):
    names = [*TRAININGS, *TUNINGS]
    if size == 4:
        names = ["plain", "mix", "es"]  # one pair less than there are workers
    together = trained(tmp_path / "several", backend, size, names)
    alone = trained(tmp_path / "one", backend, 1, names)
    assert_the_same_numbers(names, together, alone, size)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[str], Path]:
    """backend -> the folder of the long run by two processes, uninterrupted."""
    made: dict[str, Path] = {}

    def of(backend: str) -> Path:
        if backend not in made:
            made[backend] = tmp_path_factory.mktemp(backend) / "run"
            command = ["-m", f"{backend}_impl.train", *LONG, "--out", str(made[backend])]
            (code, out, err), (_, other, _) = ended(start(backend, 2, *command))
            assert code == 0, err
            assert out == f"teacher: {made[backend] / 'teacher.h5'}\n" and other == ""
        return made[backend]

    return of


def wait_for_rows(folder: Path, count: int, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if (folder / "metrics.jsonl").exists() and len(rows(folder)) >= count:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError(f"fewer than {count} epochs")


@pytest.mark.slow
@each_backend
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_at_one_worker_stops_all_and_resumed_it_is_the_same_run(backend, rank, whole, tmp_path):
    command, folder = ["-m", f"{backend}_impl.train"], tmp_path / "run"
    processes = start(backend, 2, *command, *LONG, "--checkpoint-seconds", "1000", "--out", str(folder))
    wait_for_rows(folder, 3, processes[0])
    processes[rank].send_signal(signal.SIGTERM)
    (code, out, _), (other, silence, err) = ended(processes)
    assert (code, other) == (143, 143) and "--resume" in out and silence == err == ""
    assert 3 <= len(rows(folder)) == load_checkpoint(folder)[1]["epoch"] < 40
    assert ended(start(backend, 2, *command, "--resume", str(folder), "--quiet"))[0][0] == 0
    assert_same_run(folder, whole(backend))


@pytest.mark.slow
@each_backend
def test_a_killed_worker_ends_the_others_and_resumed_it_is_the_same_run(backend, whole, tmp_path):
    command, folder = ["-m", f"{backend}_impl.train"], tmp_path / "run"
    processes = start(backend, 2, *command, *LONG, "--quiet", "--out", str(folder))
    wait_for_rows(folder, 3, processes[0])
    processes[1].kill()
    (code, _, err), _ = ended(processes, 60.0)
    assert code == 2 and err.count("\n") == 1 and "lost another worker" in err and "--resume" in err
    assert ended(start(backend, 2, *command, "--resume", str(folder), "--quiet"))[0][0] == 0
    assert_same_run(folder, whole(backend))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_killed_workers_anew_and_they_go_on(backend, rank, whole, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3"]
    command += ["--master-port", str(free_ports(1)[0]), "-m", "torch_impl.train", *LONG, "--out", str(folder)]
    agent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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
    assert_same_run(folder, whole(backend))


@pytest.mark.slow
@each_backend
def test_a_worker_that_hangs_is_given_up(backend, tmp_path):
    folder = tmp_path / "run"
    command = ["-m", f"{backend}_impl.train", *LONG, "--quiet", "--out", str(folder)]
    processes = start(backend, 2, *command, **{TIMEOUT: "10"})
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
    command = ["-m", f"{backend}_impl.train", "--epochs", "1", "--out", str(tmp_path / "run")]
    (code, out, err), *others = ended(start(backend, 2, *command, "--tasks", "3"))
    assert code == 2 and out == "" and others == [(2, "", "")]
    assert err.count("\n") == 1 and "--tasks: expected a multiple of the 2 workers" in err
    x, y = np.zeros((60, 28, 28), dtype=np.uint8), np.arange(60) % 10
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    command += ["--problem", "mnist-mlp", "--tasks", "2"]
    here, there = {"L2O_DATA": str(tmp_path / "data")}, {"L2O_DATA": str(tmp_path)}
    first, (code, out, err) = ended(start(backend, 2, *command, last=there, **here))
    assert first == (2, "", "") and code == 2 and out == "" and err.count("\n") == 1 and "mnist" in err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_a_run_of_one_process_stopped_within_an_epoch_goes_on_in_two(backend, tmp_path):
    one, folder = tmp_path / "one", tmp_path / "cut"
    command = ["-m", "torch_impl.train", *LONG[:4], "--epochs", "2", "--epoch-length", "120", "--unroll", "2"]
    command += ["--tasks", "4", "--validate-every", "1", "--checkpoint-seconds", "0", "--dtype", "float64"]
    assert ended(start(backend, 1, *command, "--out", str(one)))[0][0] == 0
    (process,) = start(backend, 1, *command, "--out", str(folder))
    while not list(folder.glob("checkpoint/*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert ended([process])[0][0] == 143
    arrays, meta = load_checkpoint(folder)
    assert 0 < meta["step"] < 120 and "task_003/theta" in arrays
    assert ended(start(backend, 2, "-m", "torch_impl.train", "--resume", str(folder)))[1][0] == 0
    assert_same_run(folder, one, 1e-8)
