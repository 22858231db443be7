"""``python -m torch_impl.train``: killed and resumed, stopped, crowded, misused."""

import dataclasses
import json
import logging
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.tables.teachers import TEACHERS, initial_weights
from interchange.files.checkpoint import load_checkpoint
from interchange.files.weights import load_weights
from interchange.meta.config import TrainConfig

pytest.importorskip("torch")

from interchange.meta.validation import Validation
from torch_impl.train import main, train

ROOT = Path(__file__).parents[2]
PROG = "python -m torch_impl.train"
# Everything a checkpoint must hold matters here: state of features and of two cells, moments of a decaying
# rate, drawn coordinates, the best so far.
SETTINGS = {
    "problem": "quadratic",
    "teacher": "rnnprop",
    "epochs": 6,
    "epoch_length": 20,
    "unroll": 4,
    "coordinates": 0.5,
    "lr_decay": 0.3,
    "validate_every": 2,
    "validation_tasks": 1,
    "checkpoint_seconds": 0.0,
    "seed": 5,
}


def flags(fields: dict) -> list[str]:
    return [part for key, value in fields.items() for part in ("--" + key.replace("_", "-"), str(value))]


def launch(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch_impl.train", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def newest(folder: Path) -> int:
    """Number of the newest checkpoint, 0 if there is none."""
    return max((int(path.stem[-8:]) for path in folder.glob("checkpoint/checkpoint-*.h5")), default=0)


def rows(folder: Path) -> list[dict]:
    """The metrics without the times."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def wait_until(process: subprocess.Popen, reached) -> None:
    while not reached():
        assert process.poll() is None, process.communicate()
        time.sleep(0.004)


def assert_same_run(folder: Path, expected: Path) -> None:
    """The same bits in every weight, and the same metrics."""
    got, want = load_weights(folder), load_weights(expected)
    assert got.row == want.row and got.weights.keys() == want.weights.keys()
    for name, array in want.weights.items():
        assert array.dtype == got.weights[name].dtype and array.tobytes() == got.weights[name].tobytes(), name
    assert rows(folder) == rows(expected)


@pytest.fixture(autouse=True)
def restored_logging():
    """The command hands warnings to logging for the rest of its process, which here is the tests'."""
    yield
    logging.captureWarnings(False)


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unkilled") / "run"
    train(TrainConfig(**SETTINGS, out=str(folder), quiet=True))
    start = initial_weights(TEACHERS["rnnprop"], 5)
    trained = load_weights(folder).weights
    assert all(not np.allclose(trained[name], start[name], atol=1e-4) for name in start)
    return folder


def refused(capsys, *arguments: str) -> str:
    """Run the command in this process; it must end with code 2 and one line on stderr, which is returned."""
    code = main(arguments)
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.startswith(f"{PROG}: error: ") and err.endswith("\n") and err.count("\n") == 1
    return err


def test_killed_again_and_again_and_resumed_is_bit_equal_to_an_unkilled_run(tmp_path, unkilled, capsys):
    folder, moments = tmp_path / "run", random.Random(3)
    arguments = [*flags(SETTINGS), "--out", str(folder)]
    for _ in range(3):
        process, goal = launch(*arguments), newest(folder) + moments.randint(1, 7)
        wait_until(process, lambda goal=goal: newest(folder) >= goal)
        time.sleep(0.03 * moments.random())
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (folder / "teacher.h5").exists()
        arguments = ["--resume", str(folder)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"teacher: {folder / 'teacher.h5'}\n"
    assert_same_run(folder, unkilled)


def test_stopped_by_sigterm_it_saves_says_how_to_go_on_and_ends_with_143(tmp_path, unkilled, capsys):
    """Meanwhile a second process is kept out. No checkpoint is due, so the signal's is the only one."""
    folder, settings = tmp_path / "run", flags(SETTINGS | {"checkpoint_seconds": 1000})
    process = launch(*settings, "--out", str(folder))
    wait_until(process, lambda: len(rows(folder)) >= 2)
    process.send_signal(signal.SIGSTOP)
    assert newest(folder) == 0
    for arguments in (["--resume", str(folder)], [*settings, "--out", str(folder), "--overwrite"]):
        assert f"{folder} is in use by pid {process.pid}" in refused(capsys, *arguments)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate()
    assert process.returncode == 143, err
    assert "Traceback" not in err and newest(folder) == 1
    assert out.splitlines()[1] == f"go on with: {PROG} --resume {folder}"
    load_weights(folder)  # the best so far
    assert 2 <= len(rows(folder)) < 6
    assert main(["--resume", str(folder), "--quiet"]) == 0
    assert_same_run(folder, unkilled)


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    (folder / "teacher.h5").unlink()
    return folder


def test_a_run_killed_before_its_first_checkpoint_is_resumed_from_its_start(tmp_path, unkilled):
    folder = copy_of(unkilled, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint")
    assert main(["--resume", str(folder), "--quiet"]) == 0
    assert_same_run(folder, unkilled)


def test_a_torn_newest_checkpoint_costs_only_the_way_from_the_one_before(tmp_path, unkilled):
    folder = copy_of(unkilled, tmp_path / "run")
    path = max(folder.glob("checkpoint/*.h5"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="trying the checkpoint before it"):
        train(TrainConfig(resume=str(folder), quiet=True))
    assert_same_run(folder, unkilled)


def test_the_best_teacher_so_far_outlives_an_interruption(tmp_path, monkeypatch):
    """Validations that are told: better than the start after two epochs, worse from then on."""
    whole, folder, best = tmp_path / "whole", tmp_path / "run", {}

    def score(validation: Validation) -> float:
        epoch = validation.state.epoch
        if epoch == 2:
            best.update(validation.state.learner.weights())
        return {0: 3.0, 2: 1.0, 4: 2.0, 6: 2.5}[epoch]

    monkeypatch.setattr(Validation, "score", score)
    train(TrainConfig(**SETTINGS, out=str(whole), quiet=True))
    assert [row["validation"] for row in rows(whole) if "validation" in row] == [1.0, 2.0, 2.5]
    kept, last = load_weights(whole).weights, load_checkpoint(whole)[0]
    for name, array in kept.items():
        assert np.array_equal(array, best[name]) and not np.array_equal(array, last[f"phi/{name}"])
    max(copy_of(whole, folder).glob("checkpoint/*.h5")).unlink()  # back within the last epoch
    train(TrainConfig(resume=str(folder), quiet=True))
    assert_same_run(folder, whole)


def test_a_finished_run_resumed_is_the_same_run(tmp_path, unkilled):
    folder = copy_of(unkilled, tmp_path / "run")
    result = train(TrainConfig(resume=str(folder), quiet=True))
    assert_same_run(folder, unkilled)
    assert result.exit_code == 0 and [row["epoch"] for row in result.history] == list(range(6))


def test_settings_changed_in_between_are_refused(tmp_path, unkilled, capsys):
    folder = copy_of(unkilled, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"lr": 0.5}))
    before = rows(folder)
    assert "written with other settings" in refused(capsys, "--resume", str(folder))
    assert rows(folder) == before and not (folder / "teacher.h5").exists()


def test_a_folder_with_a_run_is_replaced_only_on_demand(tmp_path, unkilled, capsys):
    folder = tmp_path / "run"
    shutil.copytree(unkilled, folder)
    tiny = SETTINGS | {"epochs": 1, "validate_every": 0}
    assert "already holds a run" in refused(capsys, *flags(tiny), "--out", str(folder))
    assert_same_run(folder, unkilled)
    assert main([*flags(tiny), "--out", str(folder), "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert len(rows(folder)) == 1 and newest(folder) < newest(unkilled)


def test_the_run_folder_holds_the_resolved_configuration(unkilled):
    names = {path.name for path in unkilled.iterdir()}
    assert names == {"checkpoint", "config.json", "env.json", "lock", "metrics.jsonl", "teacher.h5"}
    config = json.loads((unkilled / "config.json").read_text())
    assert TrainConfig(**config) == TrainConfig(**SETTINGS, out=str(unkilled), quiet=True)
    assert len(list(unkilled.glob("checkpoint/*"))) == 2
    scores = [row["validation"] for row in rows(unkilled) if "validation" in row]
    assert len(scores) == 3 and len(rows(unkilled)) == 6


def test_configuration_files_are_overruled_by_flags(tmp_path):
    file = tmp_path / "train.toml"
    file.write_text('problem = "quadratic"\nepochs = 3\nepoch-length = 2\nunroll = 2\nvalidate_every = 0\n')
    folder = tmp_path / "run"
    assert main(["--config", str(file), "--epochs", "1", "--out", str(folder), "--quiet"]) == 0
    config = json.loads((folder / "config.json").read_text())
    assert (config["problem"], config["epochs"], config["epoch_length"]) == ("quadratic", 1, 2)


BAD = {
    "unknown problem": (
        ["--problem", "digits-mpl"],
        "unknown problem 'digits-mpl' (did you mean 'digits-mlp'?)",
    ),
    "unknown teacher": (["--teacher", "rnn"], "known: " + ", ".join(TEACHERS)),
    "unknown feature": (
        ["--inputs", "mt+nosuch"],
        "unknown feature 'nosuch'; known: g, m_tilde, g_tilde",
    ),
    "a feature twice": (["--inputs", "mt+m_tilde"], "expected each feature once, got m_tilde twice"),
    "scale below 0": (["--scale", "-1"], "--scale: expected at least 0, got -1"),
    "unknown initial weights": (
        ["--weights", "normal"],
        "unknown initial weights 'normal' (did you mean",
    ),
    "unknown flag": (["--steps", "3"], "unrecognized arguments: --steps"),
    "negative steps": (["--epoch-length", "-5"], "--epoch-length: expected at least 1, got -5"),
    "no steps": (["--unroll", "0"], "--unroll: expected at least 1, got 0"),
    "lr 0": (["--lr", "0"], "--lr: expected a number above 0"),
    "lr nan": (["--lr", "nan"], "--lr: expected a finite number"),
    "share above 1": (["--coordinates", "1.5"], "--coordinates: expected at most 1"),
    "text for a number": (["--epochs", "many"], "--epochs"),
    "number of half an epoch": (["--epochs", "2.5"], "--epochs"),
    "negative seed": (["--seed", "-1"], "--seed: expected at least 0"),
    "unknown loss": (["--loss", "mean"], "--loss: expected one of sum, last"),
    "unknown dtype": (["--dtype", "float16"], "--dtype: expected one of float32, float64"),
    "unknown device": (["--device", "tpu9"], "--device 'tpu9' cannot be used"),
    "no GPU number 77": (["--device", "cuda:77"], "use --device cpu"),
    "missing data": (["--problem", "mnist-mlp", "--data-dir", "nowhere"], "data set 'mnist' not found"),
    "no such teacher file": (
        ["--init", "nowhere"],
        "nowhere: No such file or directory; check the path, or name",
    ),
    "no such run": (["--resume", "nowhere"], "nowhere: expected a run folder"),
    "no such file": (["--config", "nowhere.toml"], "nowhere.toml: cannot be read"),
    "unknown key": (["--config", "key.toml"], "unknown key 'epocks'"),
    "wrong type": (["--config", "type.toml"], "epochs: expected int, got '3'"),
    "broken TOML": (["--config", "broken.toml"], "broken.toml: expected TOML"),
    "broken JSON": (["--config", "broken.json"], "broken.json: expected TOML (.toml) or JSON"),
    "a list": (["--config", "list.json"], "expected keys and values, got list"),
    "not text": (["--config", "binary.toml"], "binary.toml: cannot be read"),
}


@pytest.fixture
def inside(tmp_path, monkeypatch) -> Path:
    """A working directory with the broken files of ``BAD``."""
    files = {
        "key.toml": b"epocks = 3\n",
        "type.toml": b'epochs = "3"\n',
        "broken.toml": b"epochs = [3\n[[",
        "broken.json": b'{"epochs": 3,\n\n',
        "list.json": b"[1]",
        "binary.toml": b"\xff\xfe\x00",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(arguments, message, inside, capsys):
    before = sorted(inside.rglob("*"))
    default = [] if "--resume" in arguments else ["--epochs", "1", "--out", str(inside / "run")]
    assert message in refused(capsys, *default, *arguments)
    assert sorted(inside.rglob("*")) == before


def test_bad_input_is_one_line_from_a_shell_too(tmp_path):
    process = launch("--problem", "nonsense", "--out", str(tmp_path / "run"))
    out, err = process.communicate()
    assert process.returncode == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(f"{PROG}: error: unknown problem 'nonsense'; known: quadratic")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("here already")
    code = main([*flags(SETTINGS), "--out", str(tmp_path / "file" / "run")])
    err = capsys.readouterr().err
    assert code == 74 and err.count("\n") == 1 and str(tmp_path / "file") in err


COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("torch_impl", "interchange")
    for path in (ROOT / package).glob("*.py")
    if re.search(r"^if __name__ == .__main__.:", path.read_text(), re.MULTILINE)
)
HELP = """
import contextlib, io, json, runpy, sys
heavy, found = {"torch", "tensorflow", "keras", "sklearn", "scipy", "sympy", "matplotlib"}, {}
for command in sys.argv[1:]:
    before, sys.argv, out, code = heavy & set(sys.modules), [command, "--help"], io.StringIO(), "no exit"
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_module(command, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
    found[command] = [code, sorted(heavy & set(sys.modules) - before), out.getvalue()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, list]:
    """Command -> exit code, frameworks it loaded first, output of ``--help``; in one process."""
    process = subprocess.run(
        [sys.executable, "-c", HELP, *COMMANDS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(process.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_no_framework(command, helps):
    code, loaded, out = helps[command]
    assert (code, loaded) == (0, [])
    assert out.startswith(f"usage: python -m {command}")


def test_help_tells_every_flag_its_default_and_its_choices(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and "torch_impl.train" in COMMANDS
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "(default 0.001)" in text and all(name in text for name in TEACHERS)


SMALL = {"problem": "quadratic", "epoch_length": 10, "unroll": 5, "validation_tasks": 1, "quiet": True}


def test_the_last_epoch_is_validated_so_a_short_run_is_not_the_untrained_teacher(tmp_path):
    run = train(TrainConfig(epochs=3, validate_every=10, lr=0.01, out=str(tmp_path / "run"), **SMALL))
    assert "validation" in run.history[-1]
    untrained = initial_weights(run.teacher, 0)
    assert any(not np.array_equal(run.weights[k], untrained[k].astype(np.float32)) for k in untrained)


def test_a_run_on_own_tasks_names_no_problem_and_resumes_only_with_them(tmp_path, capsys):
    from common.tables.problems import PROBLEMS, Instance
    from torch_impl.problems.tasks import ProblemTask
    from torch_impl.record import main as record

    folder = str(tmp_path / "own")
    own = dict(SMALL, problem="digits-mlp")
    train(
        TrainConfig(epochs=2, out=folder, **own), lambda s, n: ProblemTask(Instance(PROBLEMS["quadratic"], n))
    )
    assert json.loads((tmp_path / "own" / "config.json").read_text())["problem"] == ""
    assert main(["--resume", folder]) == 2
    assert "trained on tasks of its caller" in capsys.readouterr().err
    assert record([folder]) == 2
    assert "--problem is missing" in capsys.readouterr().err


def test_resume_refuses_settings_beside_it(tmp_path, unkilled, capsys):
    run = copy_of(unkilled, tmp_path / "run")
    assert main(["--resume", str(run), "--epochs", "50"]) == 2
    assert "leave out --epochs" in capsys.readouterr().err
