"""The front doors: what is there, by what names things are found, and what a wrong thing is called."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from common import __version__
from common.run.doors import COMMANDS, door, l2o
from interchange import Rule, distill, save_trajectories
from interchange.files.trajectories import Trajectories
from interchange.rule.front import read_front, write_front
from interchange.rule.source import spelled_out
from tests.helpers.commands import user_run
from tests.helpers.processes import ROOT, launched, said


def test_every_command_is_listed_and_every_listed_one_is_there():
    for package, commands in COMMANDS.items():
        files = {path.stem for path in (ROOT / package).glob("*.py")}
        mains = {name for name in files if "def main(" in (ROOT / package / f"{name}.py").read_text("utf-8")}
        bound = {
            name for name in files if "bind(shared" in (ROOT / package / f"{name}.py").read_text("utf-8")
        }
        folders = {path.parent.name for path in (ROOT / package).glob("*/__main__.py")}
        assert set(commands) == mains | bound | folders, package


@pytest.mark.parametrize("package", COMMANDS)
def test_a_package_lists_its_commands(package, capsys):
    assert door(package, []) == 0
    out = capsys.readouterr().out
    assert all(
        f"python -m {package} {name} " in out and what in out for name, what in COMMANDS[package].items()
    )
    assert door(package, ["--version"]) == 0
    assert capsys.readouterr().out == f"symbolic-l2o {__version__}\n"


def test_the_script_reaches_all_of_them(capsys):
    assert l2o([]) == 0
    out = capsys.readouterr().out
    for line in ("l2o distill ", "l2o torch train ", "l2o tf train "):
        assert line in out
    assert l2o(["rule", "explain"]) == 2 and "RULE is missing" in capsys.readouterr().err
    assert l2o(["torch", "trian"]) == 2
    assert "l2o torch: error: unknown command 'trian' (did you mean 'train'?)" in capsys.readouterr().err
    for words, said_of in ((["distill"], "l2o distill"), (["torch", "train"], "l2o torch train")):
        assert l2o([*words, "--no-such-flag"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"{said_of}: error: ") and f"see {said_of} --help" in err
        with pytest.raises(SystemExit):
            l2o([*words, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: {said_of} ")
    assert l2o(["rule", "explain"]) == 2 and "see l2o rule --help" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        l2o(["torch", "train", "--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"symbolic-l2o {__version__}\n"


def test_modules_answer_from_a_shell():
    for package in COMMANDS:
        process = launched(["-m", package])
        out, err = process.communicate()
        assert process.returncode == 0 and out.startswith("usage: ") and err == ""


def test_distill_is_the_function_whatever_was_imported_before():
    assert callable(distill) and distill.__name__ == "distill"
    code = "import interchange.distill.run; from interchange import distill; print(distill.__name__)"
    assert said(code) == "distill"
    assert (
        said("import interchange; print('sys' in dir(interchange), 'Rule' in dir(interchange))")
        == "False True"
    )


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run folder with a recording and rules."""
    steps = np.arange(30.0)[:, None]
    g = np.sin(steps + np.arange(4.0))
    runs = {f"{k}": user_run(f"{k}", g[..., None], g, -0.5 * g) for k in range(3)}
    folder = tmp_path / "rp"
    folder.mkdir()
    split = {name: (run,) for name, run in zip(("train", "valid", "test"), runs, strict=True)}
    save_trajectories(folder / "trajectories.h5", Trajectories({"g": "g"}, runs, split))
    rules = [Rule.from_text("-g"), Rule.from_text("c0 * sign(g)", {"c0": -1.0})]
    write_front(folder / "rules", rules)
    rules[1].save(folder / "rules" / "best.json")
    return folder


def test_a_folder_stands_for_the_file_in_it(run_folder, capsys, monkeypatch):
    from interchange.inspect.__main__ import describe, main

    assert "l2o-trajectories" in describe(str(run_folder))
    assert main([str(run_folder)]) == 0
    assert f"also here: {run_folder / 'rules' / 'best.json'}" in capsys.readouterr().out
    assert (
        Rule.load(run_folder) == Rule.load(run_folder / "rules") == Rule.load(run_folder / "rules/best.json")
    )
    assert spelled_out(f"{run_folder / 'rules'},lr=0.5") == f"rule:{run_folder / 'rules'},lr=0.5"
    monkeypatch.chdir(run_folder)
    for name in ("front", "rule", "teacher"):  # words of a SPEC where a colon follows
        (run_folder / "rules").rename(name)
        assert spelled_out(name) == f"rule:{name}"
        Path(name).rename("rules")
    from interchange.distill.run import main as distill_main

    words = [str(run_folder), "--engine", "linear", "--time", "2", "--quiet", "--overwrite"]
    assert distill_main(words) == 0
    assert Rule.load(run_folder).provenance["engine"].startswith("linear")


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("adam:lr=0.1", "adam:lr=0.1"),
        ("rp_s", "teacher:rp_s"),
        ("rp_s,lr=2", "teacher:rp_s,lr=2"),
        ("rnnprop_tuned:lr=2", "rule:rnnprop_tuned,lr=2"),
        ("all", "all"),
        ("front:x", "front:x"),
    ],
)
def test_plain_names_are_found(name, spec):
    assert spelled_out(name) == spec


def test_wrong_kinds_of_files_are_named_as_what_they_are(run_folder, refused):
    rule, recording = run_folder / "rules" / "best.json", run_folder / "trajectories.h5"
    table = run_folder / "table.npy"
    np.save(table, np.ones((2, 2)))
    assert "expected recorded trajectories, got a rule" in refused(f"interchange.distill {rule}")
    assert "expected a rule, got recorded trajectories" in refused(f"interchange.rule check {recording}")
    assert "expected a rule, got a NumPy table (.npy)" in refused(f"interchange.rule check {table}")
    assert "got a NumPy table (.npy)" in refused(f"interchange.inspect {table}")
    assert "damaged" not in refused(f"interchange.export teacher:{recording} --to onnx")
    if importlib.util.find_spec("torch"):
        for file, found in ((recording, "recorded trajectories"), (rule, "a rule")):
            told = refused(f"torch_impl.select {file}")
            assert f"expected a front of rules, got {found}; name the folder with front.csv" in told
    # What runs and comparisons leave beside the files that others take.
    (run_folder / "config.json").write_text('{"seed": 0, "data_dir": "", "overwrite": false, "quiet": true}')
    (run_folder / "metrics.jsonl").write_text('{"epoch": 0}\n{"epoch": 1}\n')
    (run_folder / "summary.csv").write_text("optimizer,problem,horizon,loss_mean\nadam,quadratic,5,0.5\n")
    for name, found in (
        ("config.json", "the settings of a run"),
        ("metrics.jsonl", "the metrics of a run"),
        ("summary.csv", "the summary of a comparison"),
        ("rules/front.csv", "the table of a front of rules"),
    ):
        file = run_folder / name
        assert f"expected recorded trajectories, got {found}" in refused(f"interchange.distill {file}")
        assert f"expected a rule, got {found}" in refused(f"interchange.rule show {file}")
        if not name.startswith("rules/"):
            assert f"expected a rule, got {found}" in refused(f"interchange.export {file} --to latex")
    assert len(read_front(run_folder / "rules" / "front.csv")) == len(read_front(run_folder)) == 2
    if importlib.util.find_spec("torch"):
        told = refused(f"torch_impl.optimize adam --problem quadratic --start {recording}")
        assert "expected a run folder of optimize, got recorded trajectories" in told
        told = refused(f"torch_impl.record teacher:{recording}")
        assert "expected a teacher, got recorded trajectories" in told
        for file, found in ((rule, "a rule"), (table, "a NumPy table (.npy)"), (recording, "HDF5")):
            assert f"expected settings, got {found}" in refused(f"torch_impl.train --config {file}")
        told = refused(f"torch_impl.convert {run_folder / 'nofile.pth'}")
        assert f"cannot read {run_folder / 'nofile.pth'}: No such file" in told
    (run_folder / "empty").mkdir()
    told = "expected recorded trajectories, got a folder that holds nothing"
    assert told in refused(f"interchange.distill {run_folder / 'empty'}")
    told = "expected a rule or a teacher, got a folder that holds nothing"
    assert told in refused(f"interchange.export {run_folder / 'empty'} --to sympy")


def test_the_input_is_looked_at_before_the_output(run_folder, refused):
    out = run_folder / "rules"
    assert "got a rule" in refused(f"interchange.distill {out / 'best.json'} --out {out}")


def test_export_says_what_it_wrote_and_keeps_what_is_there(tmp_path, capsys, refused):
    from interchange.export import main

    file = tmp_path / "adam.tex"
    assert main(["adam", "--to", "latex", "-o", str(file)]) == 0
    assert capsys.readouterr().out == f"latex: {file}\n"
    assert "is there already; replace it with --overwrite" in refused(
        f"interchange.export adam --to numpy -o {file}"
    )
    assert main(["adam", "--to", "numpy", "-o", str(file), "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr().out == "" and "NumPy" in file.read_text()


def test_an_export_to_a_closed_output_is_one_line(monkeypatch, capsys):
    from interchange.export import main

    monkeypatch.setattr(sys, "stdout", None)  # as after >&-
    assert main(["adam", "--to", "latex"]) == 74
    err = capsys.readouterr().err
    assert "got a closed one; name a file by -o" in err and err.count("\n") == 1


def test_gplearn_is_known_by_its_longer_name(refused):
    assert "sklearn:gplearn.genetic:SymbolicRegressor" in refused("interchange.distill f --engine gplearn")


@pytest.mark.parametrize("what", ["common/__init__.py", "common.py"])
def test_a_folder_or_file_that_hides_ours_is_named(what, tmp_path):
    """As where a user's own project has a ``common`` too and ours is installed behind it."""
    import subprocess

    (tmp_path / what).parent.mkdir(exist_ok=True)
    (tmp_path / what).touch()
    run = {"cwd": tmp_path, "env": {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    for module in ("torch_impl.train", "interchange.distill"):
        found = subprocess.run([sys.executable, "-m", module], **run, check=False)
        assert found.returncode == 2 and found.stderr.count("\n") == 1
        assert f"got {tmp_path / 'common'}" in found.stderr and "rename" in found.stderr
    found = subprocess.run([sys.executable, "-c", "import torch_impl"], **run, check=False)
    assert "ImportError: expected the package 'common' of symbolic-l2o" in found.stderr


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_an_object_that_is_no_task_is_refused_and_nothing_is_written(tmp_path):
    from common.errors import L2OError
    from interchange.meta.config import TrainConfig
    from torch_impl import train

    config = TrainConfig(epochs=1, epoch_length=4, out=str(tmp_path / "run"), quiet=True)
    with pytest.raises(L2OError, match="expected an optimizee such as ModuleTask, got int without names"):
        train(config, lambda stream, number: 3)
    assert not (tmp_path / "run").exists()
