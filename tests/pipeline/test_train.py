"""``python -m torch_impl.train``: killed and resumed, stopped, crowded; fine-tuning and older runs."""

import dataclasses
import json
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import L2OError
from common.run.config import from_dict
from common.run.runs import RunFolder
from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS, initial_weights, variant
from interchange import Rule
from interchange.files.checkpoint import load_checkpoint, save_checkpoint
from interchange.files.weights import Teacher, load_weights, save_weights
from interchange.meta.config import TrainConfig, TuneConfig
from interchange.meta.state import LATER_FIELDS
from tests.helpers.commands import ROOT, assert_same_run, call, flags, metrics, unfinished
from tests.helpers.processes import launched, said

pytest.importorskip("torch")

from interchange.meta.state import TrainerState
from interchange.meta.validation import Validation
from torch_impl.meta.learner import Learner
from torch_impl.networks.rule import RuleNetwork
from torch_impl.networks.teacher import TeacherNetwork
from torch_impl.problems.tasks import ProblemTask
from torch_impl.train import train

# Everything a checkpoint must hold matters here: state of features and of two cells, moments of a decaying
# rate, drawn coordinates, the best so far.
SETTINGS = {
    "problem": "quadratic", "teacher": "rnnprop", "epochs": 6, "epoch_length": 20, "unroll": 4,
    "coordinates": 0.5, "lr_decay": 0.3, "validate_every": 2, "validation_tasks": 1,
    "checkpoint_seconds": 0.0, "seed": 5,
}  # fmt: skip
TRAIN = "torch_impl.train"


def newest(folder: Path) -> int:
    """Number of the newest checkpoint, 0 if there is none."""
    return max((int(path.stem[-8:]) for path in folder.glob("checkpoint/checkpoint-*.h5")), default=0)


def wait_until(process: subprocess.Popen, reached) -> None:
    while not reached():
        assert process.poll() is None, process.communicate()
        time.sleep(0.004)


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unkilled") / "run"
    train(TrainConfig(**SETTINGS, out=str(folder), quiet=True))
    start = initial_weights(TEACHERS["rnnprop"], 5)
    trained = load_weights(folder).weights
    assert all(not np.allclose(trained[name], start[name], atol=1e-4) for name in start)
    return folder


def test_killed_again_and_again_and_resumed_is_bit_equal_to_an_unkilled_run(tmp_path, unkilled, capsys):
    folder, moments = tmp_path / "run", random.Random(3)
    arguments = [*flags(SETTINGS), "--out", str(folder)]
    for _ in range(2):
        process, goal = launched(["-m", TRAIN, *arguments]), newest(folder) + moments.randint(1, 7)
        wait_until(process, lambda goal=goal: newest(folder) >= goal)
        time.sleep(0.03 * moments.random())
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (folder / "teacher.h5").exists()
        arguments = ["--resume", str(folder)]
    assert call(TRAIN, *arguments) == 0
    assert capsys.readouterr().out == f"teacher: {folder / 'teacher.h5'}\n"
    assert_same_run(folder, unkilled)


def test_stopped_by_sigterm_it_saves_says_how_to_go_on_and_ends_with_143(tmp_path, unkilled, refused):
    """Meanwhile a second process is kept out. No checkpoint is due, so the signal's is the only one."""
    folder, settings = tmp_path / "run", flags(SETTINGS | {"checkpoint_seconds": 1000})
    process = launched(["-m", TRAIN, *settings, "--out", str(folder)])
    wait_until(process, lambda: len(metrics(folder)) >= 2)
    process.send_signal(signal.SIGSTOP)
    assert newest(folder) == 0
    for arguments in (["--resume", folder], [*settings, "--out", folder, "--overwrite"]):
        assert f"{folder} is in use by pid {process.pid}" in refused(TRAIN, *arguments)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate()
    assert process.returncode == 143, err
    assert "Traceback" not in err and newest(folder) == 1
    assert out.splitlines()[1] == f"go on with: python -m {TRAIN} --resume {folder}"
    load_weights(folder)  # the best so far
    assert 2 <= len(metrics(folder)) < 6
    assert call(f"{TRAIN} --resume {folder} --quiet") == 0
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
    assert [row["validation"] for row in metrics(whole) if "validation" in row] == [1.0, 2.0, 2.5]
    kept, last = load_weights(whole).weights, load_checkpoint(whole)[0]
    for name, array in kept.items():
        assert np.array_equal(array, best[name]) and not np.array_equal(array, last[f"phi/{name}"])
    max(unfinished(whole, folder).glob("checkpoint/*.h5")).unlink()  # back within the last epoch
    train(TrainConfig(resume=str(folder), quiet=True))
    assert_same_run(folder, whole)


def test_a_finished_run_resumed_is_the_same_run(tmp_path, unkilled):
    folder = unfinished(unkilled, tmp_path / "run")
    result = train(TrainConfig(resume=str(folder), quiet=True))
    assert_same_run(folder, unkilled)
    assert result.exit_code == 0 and [row["epoch"] for row in result.history] == list(range(6))


def test_settings_changed_in_between_are_refused(tmp_path, unkilled, refused):
    folder = unfinished(unkilled, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"lr": 0.5}))
    before = metrics(folder)
    assert "written with other settings" in refused(f"{TRAIN} --resume {folder}")
    assert metrics(folder) == before and not (folder / "teacher.h5").exists()


def test_a_folder_with_a_run_is_replaced_only_on_demand(tmp_path, unkilled, refused, capsys):
    folder = tmp_path / "run"
    shutil.copytree(unkilled, folder)
    tiny = [*flags(SETTINGS | {"epochs": 1, "validate_every": 0}), "--out", folder]
    assert "already holds a run" in refused(TRAIN, *tiny)
    assert_same_run(folder, unkilled)
    assert call(TRAIN, *tiny, "--overwrite", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert len(metrics(folder)) == 1 and newest(folder) < newest(unkilled)


def test_the_run_folder_holds_the_resolved_configuration(unkilled):
    names = {path.name for path in unkilled.iterdir()}
    assert names == {"checkpoint", "config.json", "env.json", "lock", "metrics.jsonl", "teacher.h5"}
    config = json.loads((unkilled / "config.json").read_text())
    assert from_dict(TrainConfig, config) == TrainConfig(**SETTINGS, out=str(unkilled), quiet=True)
    assert len(list(unkilled.glob("checkpoint/*"))) == 2
    scores = [row["validation"] for row in metrics(unkilled) if "validation" in row]
    assert len(scores) == 3 and len(metrics(unkilled)) == 6


def test_configuration_files_are_overruled_by_flags(tmp_path):
    file, folder = tmp_path / "train.toml", tmp_path / "run"
    file.write_text('problem = "quadratic"\nepochs = 3\nepoch-length = 2\nunroll = 2\nvalidate_every = 0\n')
    assert call(f"{TRAIN} --config {file} --epochs 1 --out {folder} --quiet") == 0
    config = json.loads((folder / "config.json").read_text())
    assert (config["problem"], config["epochs"], config["epoch_length"]) == ("quadratic", 1, 2)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("here already")
    code = call(TRAIN, *flags(SETTINGS), "--out", tmp_path / "file" / "run")
    err = capsys.readouterr().err
    assert code == 74 and err.count("\n") == 1 and str(tmp_path / "file") in err


COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for package in ("torch_impl", "interchange")
    for path in [*(ROOT / package).glob("*.py"), *(ROOT / package).glob("*/__main__.py")]
    if re.search(r"^(if __name__ == .__main__.:|def main\(|.*\bmain = )", path.read_text(), re.MULTILINE)
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
    return json.loads(said(HELP, *COMMANDS))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_no_framework(command, helps):
    code, loaded, out = helps[command]
    assert (code, loaded) == (0, [])
    assert out.startswith(f"usage: python -m {command}") and "(default )" not in out


def test_help_tells_every_flag_its_default_and_its_choices(helps):
    text = " ".join(helps[TRAIN][2].split())
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "(default 0.001)" in text and all(name in text for name in TEACHERS)


SMALL = {"problem": "quadratic", "epoch_length": 10, "unroll": 5, "validation_tasks": 1, "quiet": True}


def test_a_finished_run_that_is_resumed_says_so_and_how_to_go_on(tmp_path, capsys):
    given = {name: value for name, value in SMALL.items() if name != "quiet"}
    given |= {"teacher": "rp_s", "epochs": 1, "validate_every": 0, "out": tmp_path / "run"}
    assert call(TRAIN, *flags(given)) == 0
    assert "it was finished" not in capsys.readouterr().out
    again = f"{TRAIN} --resume {tmp_path / 'run'}"
    assert call(again) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"it was finished, with 1 epoch; for N in all: python -m {again} --epochs N"
    assert call(f"{again} --epochs 2") == 0 and "it was finished" not in capsys.readouterr().out


def test_the_last_epoch_is_validated_so_a_short_run_is_not_the_untrained_teacher(tmp_path):
    run = train(TrainConfig(epochs=3, validate_every=10, lr=0.01, out=str(tmp_path / "run"), **SMALL))
    assert "validation" in run.history[-1]
    untrained = initial_weights(run.teacher, 0)
    assert any(not np.array_equal(run.weights[k], untrained[k].astype(np.float32)) for k in untrained)


def test_a_run_on_own_tasks_names_no_problem_and_resumes_only_with_them(tmp_path, refused):
    folder = tmp_path / "own"
    config = TrainConfig(epochs=2, out=str(folder), **SMALL | {"problem": "digits-mlp"})
    train(config, lambda stream, number: ProblemTask(Instance(PROBLEMS["quadratic"], number)))
    assert json.loads((folder / "config.json").read_text())["problem"] == ""
    assert "trained on tasks of its caller" in refused(f"{TRAIN} --resume {folder}")
    assert "--problem is missing" in refused(f"torch_impl.record {folder}")


def test_resume_refuses_settings_beside_it(tmp_path, unkilled, refused):
    run = unfinished(unkilled, tmp_path / "run")
    assert "leave out --lr" in refused(f"{TRAIN} --resume {run} --lr 0.1")


def test_init_starts_from_another_runs_teacher(tmp_path, unkilled):
    """At a vanishing learning rate the result is the start."""
    tiny = SETTINGS | {"epochs": 1, "validate_every": 0, "lr": 1e-9, "seed": 6}
    for given in (unkilled, unkilled / "teacher.h5"):
        folder = tmp_path / given.name
        assert call(TRAIN, *flags(tiny), "--init", given, "--out", folder, "--quiet") == 0
        got = load_weights(folder).weights
        for name, array in load_weights(unkilled).weights.items():
            np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-6)


def test_init_from_another_kind_of_teacher_is_refused(tmp_path, unkilled, refused):
    row, run = TEACHERS["rnnprop"], tmp_path / "run"
    # The same name and shapes, and a name that no row has.
    for name, changed in (("other", {"eps": 1e-3}), ("mine", {"name": "../mine"})):
        other = dataclasses.replace(row, **changed)
        save_weights(tmp_path / f"{name}.h5", other, initial_weights(other, 0), "test")
    message = refused(TRAIN, *flags(SETTINGS), "--teacher", "rp_s", "--init", unkilled, "--out", run)
    assert "expected its rnnprop teacher as it is, got flags for one with other name, lstm, pre" in message
    assert "leave out --teacher" in message
    settings = [*flags(SETTINGS), "--out", run]
    assert "other eps;" in refused(f"{TRAIN} --init {tmp_path}/other.h5", *settings)
    for changed, what in (
        ("--inputs mt+g", "inputs"),
        ("--scale 0.1", "scale"),
        ("--weights truncated", "weights"),
    ):
        assert f"other {what};" in refused(f"{TRAIN} --init {unkilled} {changed} --out {run}")
    assert "got '../mine'; add its row" in refused(f"{TRAIN} --init {tmp_path}/mine.h5 --out {run}")
    assert not run.exists()


def test_inputs_scale_and_initial_weights_replace_the_rows(tmp_path):
    """After one epoch at a vanishing learning rate the weights are the initial ones."""
    folder = tmp_path / "run"
    tiny = SETTINGS | {"teacher": "rp_s", "epochs": 1, "lr": 1e-9, "validate_every": 0}
    more = {"inputs": "mt+gt+mom5+mom99", "scale": 0.1, "weights": "truncated"}
    train(TrainConfig(**tiny | more, out=str(folder), quiet=True))
    found = load_weights(folder)
    inputs = ("m_tilde", "g_tilde", "mom5", "mom99")
    assert found.row == dataclasses.replace(TEACHERS["rp_s"], inputs=inputs, scale=0.1)
    assert found.row == variant(TEACHERS["rp_s"], "+".join(inputs), 0.1)
    for name, array in initial_weights(found.row, 5, "truncated").items():
        np.testing.assert_allclose(found.weights[name], array, rtol=0, atol=1e-6)
    max(folder.glob("checkpoint/*.h5")).unlink()  # back within the epoch
    assert train(TrainConfig(resume=str(folder), quiet=True)).teacher == found.row


def test_init_brings_its_teacher_and_goes_on_from_another_problem(tmp_path, unkilled):
    """Without --teacher, into the folder named after what it resolves to; a shipped teacher likewise."""
    out = tmp_path / "tuned"
    tuning = {"problem": "digits-conv", "epochs": 1, "epoch_length": 4, "unroll": 2, "batch_size": 8}
    assert call(TRAIN, *flags(tuning), "--init", unkilled, "--out", out, "--quiet") == 0
    found, before = load_weights(out), load_weights(unkilled).weights
    assert found.row == TEACHERS["rnnprop"]
    assert all(0 < np.abs(array - before[name]).max() < 0.1 for name, array in found.weights.items())
    config = json.loads((out / "config.json").read_text())
    assert (config["teacher"], config["init"]) == ("rnnprop", str(unkilled))
    run = train(TrainConfig(**tuning, init="dm", lr=1e-9, out=str(tmp_path / "dm"), quiet=True))
    assert run.teacher == TEACHERS["dm"]
    np.testing.assert_allclose(run.weights["out/w"], Teacher.named("dm").weights["out/w"], atol=1e-6)


def test_the_teacher_not_given_is_resolved_in_folder_and_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, name in (("", "rp_s"), ("dm", "dm")):
        assert train(TrainConfig(init=given, epochs=1, **SMALL)).teacher == TEACHERS[name]
        assert json.loads(Path(f"runs/{name}-quadratic-0/config.json").read_text())["teacher"] == name


def test_fine_tuning_resumes_without_the_run_it_started_from(tmp_path):
    """Its row is not in the table, its folder is gone: from a checkpoint and from the start, bit for bit."""
    first, whole = str(tmp_path / "first"), tmp_path / "whole"
    train(TrainConfig(teacher="rp_s", inputs="mt+g", scale=0.02, epochs=1, out=first, **SMALL))
    settings = {k: v for k, v in SETTINGS.items() if k != "teacher"}
    train(TrainConfig(**settings, init=first, out=str(whole), quiet=True))
    assert load_weights(whole).row == load_weights(first).row == variant(TEACHERS["rp_s"], "mt+g", 0.02)
    shutil.rmtree(first)
    within, early = unfinished(whole, tmp_path / "within"), unfinished(whole, tmp_path / "early")
    max(within.glob("checkpoint/*.h5")).unlink()
    shutil.rmtree(early / "checkpoint")
    for folder in (within, early):
        assert call(f"{TRAIN} --resume {folder} --quiet") == 0
        assert_same_run(folder, whole)
    train(TrainConfig(**SETTINGS | {"epochs": 1}, out=str(early), overwrite=True, quiet=True))
    assert not (early / "init.h5").exists()


def test_a_run_older_than_some_settings_resumes(tmp_path, unkilled):
    """Its configuration lacks them, and its checkpoints' hash was taken without them."""
    folder = unfinished(unkilled, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    old = {key: value for key, value in config.items() if key not in LATER_FIELDS}
    assert len(config) - len(old) >= 3
    (folder / "config.json").write_text(json.dumps(old))
    max(folder.glob("checkpoint/*.h5")).unlink()
    assert call(f"{TRAIN} --resume {folder} --quiet") == 0
    assert_same_run(folder, unkilled)


# Of version 0.1.0, whose runs must resume.
OLD_TRAIN, OLD_TUNE = TrainConfig(teacher="rp_s", seed=3, lr=0.01), TuneConfig(rule="r.json", seed=3)
OLD_HASHES = {
    OLD_TRAIN: "a0d4372ead64bb092761612d66bd42aa980b9d42fb2d78cd0e643b4652987786",
    OLD_TUNE: "b33c78a5278a0e345b928043078999d5ba5295fc5a09d71d2ffc5ee51a7e0f23",
}


@pytest.mark.parametrize("config", OLD_HASHES, ids=lambda config: type(config).__name__)
def test_settings_not_used_leave_the_hash_of_a_configuration(config):
    network = TeacherNetwork(TEACHERS["rp_s"], initial_weights(TEACHERS["rp_s"], 0))
    assert TrainerState(Learner(network, config)).config_hash == OLD_HASHES[config]
    used = {"scale": 0.1, "inputs": "mt+gt", "weights": "truncated", "loss": "last"}
    if not hasattr(config, "scale"):  # of a rule, by evolution strategies, which have no --loss
        used = {"sigma": 0.2}
    for name, value in {**used, "lr": 0.5}.items():
        changed = dataclasses.replace(config, **{name: value})
        assert TrainerState(Learner(network, changed)).config_hash != OLD_HASHES[config], name


def test_a_checkpoint_with_eps_as_it_is_is_not_taken_for_one_with_its_logarithm(tmp_path):
    learner = Learner(RuleNetwork(Rule.named("adam")), TuneConfig(rule="r.json"))
    with RunFolder(tmp_path / "run", create=True) as folder:
        state = TrainerState(learner, folder)
        state.save()
        state.restore()
        arrays, meta = load_checkpoint(folder.path)
        save_checkpoint(folder.path, arrays, {k: v for k, v in meta.items() if k != "logarithms"})
        with pytest.raises(L2OError, match="logarithms of eps, got an older one; tune the rule anew"):
            state.restore()


def test_an_older_run_without_a_copy_of_its_init_resumes_from_its_checkpoint(tmp_path):
    begun = train(TrainConfig(epochs=1, out=str(tmp_path / "begun"), **SMALL))
    tuned = train(TrainConfig(epochs=1, init=str(begun.folder), out=str(tmp_path / "tuned"), **SMALL))
    shutil.rmtree(begun.folder)
    (tuned.folder / "init.h5").unlink()
    again = train(TrainConfig(resume=str(tuned.folder), quiet=True))
    assert all(np.array_equal(again.weights[name], array) for name, array in tuned.weights.items())
