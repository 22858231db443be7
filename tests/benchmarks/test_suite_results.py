"""``suite_results.py``: the file of a suite's results, and the tables of RESULTS.md made from it."""

import csv
import dataclasses
import importlib.util
import math
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from common.errors import L2OError
from common.run.cli import parser_for
from interchange.evaluation.cells import code_of
from interchange.evaluation.config import EvaluateConfig
from interchange.files.results import Evaluation, EvaluationRow, save_evaluation

RULE = "rule:mine"
LEVELS = {  # of two seeds; muon is the best, of the coordinate-wise ones adam or sgd
    RULE: {"mnist-mlp": (0.4, 0.5), "digits-mlp": (0.2, 0.1)},
    "adam": {"mnist-mlp": (0.5, 0.5), "digits-mlp": (0.2, 0.2)},
    "sgd": {"mnist-mlp": (0.8, 0.8), "digits-mlp": (0.1, 0.15)},
    "muon": {"mnist-mlp": (0.3, 0.3), "digits-mlp": (math.inf, 0.1)},
}
MARKS = (
    "# Results\n\n<!-- suite_core: made by suite_results.py -->\nold\n<!-- end of suite_core -->\n\nafter\n"
)
ABSENT = 'needs nothing: pip install "symbolic-l2o[optimizers]"'


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "suite_results", Path(__file__).with_name("suite_results.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows() -> list[EvaluationRow]:
    found = []
    for text, problems in LEVELS.items():
        for problem, levels in problems.items():
            for seed, level in enumerate(levels):
                lost = math.isinf(level)
                settings = {"lr": 0.1, "schedule": "cosine", "knob": {"beta1": 0.95}}
                fields = {"outcome": "diverged" if lost else "ok", "horizon": 30, "trials": 28}
                fields |= {"trained_on": problem == "mnist-mlp", "settings": settings, "ms_per_step": 1.0}
                losses = np.full(9 if lost else 30, 1.0 if lost else level)
                found.append(EvaluationRow(text, problem, seed, losses, floats_per_parameter=1.0, **fields))
    return found


def git(root: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.example", *words]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def home(tmp_path) -> Path:
    """A checkout with code and RESULTS.md, and the evaluation that its code made."""
    for name in ("common", "interchange", "torch_impl"):
        (tmp_path / "repo" / name).mkdir(parents=True)
        (tmp_path / "repo" / name / "a.py").write_text(f"{name} = 1\n")
    root = tmp_path / "repo"
    (root / "RESULTS.md").write_text(MARKS)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "a")
    evaluation(root, tmp_path / "out")
    return root


def evaluation(root: Path, out: Path, **changes) -> None:
    config = EvaluateConfig(
        problem="suite:core", optimizers=("all", RULE), schedules=("all",), knob=True, data_dir="/some/data",
        out=str(out), jobs=2, seed=3,
    )  # fmt: skip
    code = code_of(*(root / name for name in ("common", "interchange", "torch_impl")))
    record = {"backend": "torch", "code": code, "absent": {"soap": ABSENT}, "versions": {"torch": "2.13.0"}}
    out.mkdir(exist_ok=True)
    save_evaluation(out / "evaluation.h5", rows(), dataclasses.asdict(config) | record | changes)


def made(script: ModuleType, home: Path) -> tuple[str, str]:
    """The CSV file and the page."""
    assert script.main([str(home.parent / "out")], home, home) == 0
    return (home / "results" / "suite_core.csv").read_text(), (home / "RESULTS.md").read_text()


def test_the_file_says_command_commit_and_versions_and_no_machines_paths(script, home):
    text, _ = made(script, home)
    head = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    command = "python -m torch_impl.evaluate --seed 3 --data-dir data --problem suite:core"
    command += " --optimizers all rule:mine --fair"
    assert head == [
        f"command: {command}",
        f"commit: {git(home, 'rev-parse', 'HEAD')}",
        "versions: torch 2.13.0",
        f"not compared: soap ({ABSENT})",
    ]
    parser = parser_for(EvaluateConfig, prog="evaluate", description="")
    assert parser.parse_args(command.split()[3:]).fair is True
    assert "/some/" not in text and str(home.parent) not in text


def test_its_numbers_are_the_evaluations_and_beside_the_coordinate_wise_ones(script, home):
    made(script, home)
    _, table = script.read(home / "results" / "suite_core.csv")
    assert len(table) == 8
    found = {(row["optimizer"], row["problem"]): row for row in table}
    mine = found[RULE, "mnist-mlp"]
    assert (mine["best_baseline"], mine["coordinatewise_baseline"]) == ("muon", "adam")
    assert float(mine["ratio"]) == pytest.approx(math.sqrt(0.4 * 0.5) / 0.3)
    assert float(mine["coordinatewise_ratio"]) == pytest.approx(math.sqrt(0.8))
    assert float(mine["coordinatewise_low"]) > 0.0
    assert found["muon", "mnist-mlp"]["coordinatewise_ratio"] == ""
    assert (
        found["muon", "digits-mlp"]["loss_mean"] == "inf"
        and found["sgd", "digits-mlp"]["knob"] == "beta1=0.95"
    )


def test_the_tables_are_made_of_the_file_alone_and_replace_what_stood_there(script, home):
    _, page = made(script, home)
    assert page.startswith("# Results\n\n<!-- suite_core") and page.endswith(
        "<!-- end of suite_core -->\n\nafter\n"
    )
    assert "old" not in page and f"Not compared: soap ({ABSENT})" in page
    assert "| `mnist-mlp` (trained on), 30 | 0.447 | adam | 0.894 (" in page
    assert "on the 1 entries it was not trained on: at least as good as the best baseline on 0" in page
    choices = [line for line in page.splitlines() if line.endswith("| cosine 2 | beta1=0.95 2 | 28 to 28 |")]
    assert len(choices) == 4 and choices[-1].startswith("| `muon` | diverged | 1 |")
    (home.parent / "out" / "evaluation.h5").unlink()
    assert script.main([], home, home) == 0 and (home / "RESULTS.md").read_text() == page


def test_other_code_changed_code_and_others_paths_are_refused_in_one_line(script, home, capsys):
    def refused() -> str:
        assert script.main([str(home.parent / "out")], home, home) == 2
        assert not (home / "results" / "suite_core.csv").exists()
        return capsys.readouterr().err

    (home / "common" / "a.py").write_text("common = 2\n")
    assert "made by other code than is here" in refused()
    evaluation(home, home.parent / "out")
    assert "expected common, interchange, torch_impl as they are committed" in refused()
    git(home, "commit", "-qam", "b")
    evaluation(home, home.parent / "out", optimizers=["all", "rule:/home/me/r.json"])
    assert "paths that others have too, got rule:/home/me/r.json" in refused()
    evaluation(home, home.parent / "out", problem="digits-mlp")
    assert "expected an evaluation of --problem suite:NAME" in refused()
    evaluation(home, home.parent / "out")
    (home / "RESULTS.md").write_text("nothing")
    assert script.main([str(home.parent / "out")], home, home) == 2
    assert "RESULTS.md: expected the lines" in capsys.readouterr().err


def test_without_a_ratio_everywhere_there_is_no_mean(script):
    means = [script._mean([{"ratio": "0.5"}, {"ratio": other}]) for other in ("2.0", "", "0.0", "inf")]
    assert means == pytest.approx([1.0, math.nan, 0.0, math.inf], nan_ok=True)


def test_a_loss_of_zero_is_ahead_and_no_optimizer_is_called_diverged_but_where_one_is(script):
    levels = {RULE: 0.0, "muon": 1e-4, "adam": 0.1}
    given = [
        EvaluationRow(name, "digits-mlp", seed, np.full(30, level), horizon=30, trials=28, ms_per_step=1.0)
        for name, level in levels.items()
        for seed in range(2)
    ]
    lines = script.results_csv(Evaluation(tuple(given), {}), []).splitlines()
    text = script.tables("a", [], list(csv.DictReader(lines)))
    assert "| `digits-mlp`, 30 | ≤ 9.31e−10 | adam | 9.3e−09 (" in text
    assert "as good as the best baseline on 1, within 5 % on 1, surely better on 1" in text
    assert "| diverged |" not in text


def test_the_page_has_the_marks_of_every_file_and_says_what_the_files_say(script):
    page = (script.HERE / "RESULTS.md").read_text(encoding="utf-8")
    assert "<!-- suite_core: made by suite_results.py -->" in page
    for path in script.HERE.glob("results/suite_*.csv"):
        name = path.stem.removeprefix("suite_")
        assert script.written(page, name, script.tables(name, *script.read(path))) == page
    with pytest.raises(L2OError, match="once each"):
        script.written(page, "other", "")
