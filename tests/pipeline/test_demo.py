"""``python -m torch_impl.demo``: the whole path in small, and its commands as anyone would run them."""

import contextlib
import dataclasses
import html
import io
import re
import shlex
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import L2OError
from common.tables.baselines import baseline_names
from interchange.commands.demo import use
from interchange.commands.record import RecordConfig
from interchange.commands.select import SelectConfig
from interchange.commands.stages import command_line
from interchange.distill.config import DistillConfig
from interchange.emit import TARGETS
from interchange.evaluation.config import EvaluateConfig
from interchange.files.results import load_evaluation
from interchange.files.trajectories import load_trajectories
from interchange.files.weights import load_weights
from interchange.meta.config import TrainConfig, TuneConfig
from interchange.rule.front import read_front
from interchange.rule.rule import Rule
from tests.helpers.commands import call, configuration, flags

pytest.importorskip("torch")

STAGES = ("train", "record", "distill", "select", "tune", "evaluate")


def parsed(line: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The configuration that a command line stands for."""
    python, flag, module, *words = shlex.split(line)
    assert (python, flag) == ("python", "-m")
    return configuration(module, words, monkeypatch)


CONFIGS = {
    "torch_impl.train": TrainConfig(
        out="a folder/run's", teacher="rnnprop", lr=2e-3, epochs=7, coordinates=0.5, data_dir="$HOME", seed=3
    ),
    "torch_impl.record": RecordConfig(
        source="a folder/run", runs=12, samples=9, out="t 1.h5", dtype="float64"
    ),
    "interchange.distill": DistillConfig(
        trajectories="a folder/t.h5", time=2.5, max_size=9, select="rollout"
    ),
    "torch_impl.select": SelectConfig(front="a folder/rules", steps=30, problem="mnist-mlp", tasks=2),
    "torch_impl.tune": TuneConfig(rule="a folder/rule.json", epoch_length=30, loss="last", device="cuda"),
    "torch_impl.evaluate": EvaluateConfig(
        optimizers=("teacher:a folder", "adam:lr=0.01,beta1=0.8"), steps=(20, 40), jobs=2, out="e"
    ),
}


@pytest.mark.parametrize(("module", "config"), CONFIGS.items(), ids=CONFIGS)
def test_a_command_line_is_read_back_as_the_configuration_it_was_made_of(module, config, monkeypatch):
    """Paths with spaces, quotes and dollars too."""
    line = command_line(module, config)
    assert "\n" not in line and line.startswith(f"python -m {module} ")
    assert parsed(line, monkeypatch) == config


def test_what_says_nothing_about_the_result_is_left_out_of_a_command_line():
    config = SelectConfig(front="rules", quiet=True, overwrite=True, steps=200)
    assert command_line("torch_impl.select", config) == "python -m torch_impl.select rules"


WHOLE = {"teacher": "rp_s_m", "problem": "digits-mlp", "epochs": 2, "evaluations": 2000}
SMALL = {"teacher": "rp_s", "problem": "quadratic", "epochs": 1, "evaluations": 100}
SMALL |= {"samples": 4000, "max_size": 9}


@pytest.fixture(
    scope="module",
    params=[pytest.param(SMALL, id="small"), pytest.param(WHOLE, id="whole", marks=pytest.mark.slow)],
)
def budget(request) -> dict[str, Any]:
    """The smallest, and with the demo's own teacher and problem: its polar factors take their time."""
    return request.param


@pytest.fixture(scope="module")
def folder(budget, tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo") / "my demo"


@pytest.fixture(scope="module")
def output(budget, folder) -> str:
    pytest.importorskip("pyoperon", reason="pyoperon is not installed")
    words = flags(budget | {"steps": 20, "seeds": 2, "jobs": 1, "out": folder})
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert call("torch_impl.demo", *words) == 0
    return stdout.getvalue().rstrip()


def test_every_stage_leaves_its_files_and_the_report_is_last(budget, output, folder):
    names = {path.name for path in folder.iterdir()}
    made = {"teacher.h5", "trajectories.h5", "rules", "tuned.json", "evaluation", "report.html"}
    assert made <= names
    runs = load_trajectories(folder / "trajectories.h5").runs
    assert len(runs) == 12 + 2 * (budget is WHOLE)  # of whole matrices: one to choose by, one to report
    assert output.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert re.findall(r"^== (\w+): ", output, re.MULTILINE) == list(STAGES)


def test_a_table_of_all_optimizers_is_printed(output):
    table = output.split("\n\n")[-2].splitlines()
    assert table[0].split()[:3] == ["optimizer", "steps", "loss"]
    names = {re.split(r"\s{2,}", line)[0] for line in table[2:]}
    assert names == {"teacher", "rule", "tuned rule", *baseline_names("torch")}


def test_each_file_names_the_one_it_was_made_from(output, folder):
    teacher = load_weights(folder)
    trajectories = load_trajectories(folder / "trajectories.h5")
    best, tuned = Rule.load(folder / "rules" / "best.json"), Rule.load(folder / "tuned.json")
    assert {run.source_sha256 for run in trajectories.runs.values()} == {teacher.sha256}
    assert best.provenance["trajectories_sha256"] == trajectories.sha256
    assert best.provenance["teacher_sha256"] == teacher.sha256
    assert tuned.provenance["tuned"]["from_sha256"] == best.sha256
    front = read_front(folder / "rules")
    assert all("valid" in rule.provenance["loss"] for rule in front)
    assert best in front and best.provenance["loss"]["valid"] > 0.0  # the lowest, or a shorter one as good


@pytest.mark.parametrize("best", ["rule", "tuned rule"])
def test_the_exports_are_of_the_rule_that_the_page_says_to_use(best):
    rules = {"rule": Rule.named("momentum"), "tuned rule": Rule.named("sgd")}
    rows = [SimpleNamespace(optimizer=name, mean=1.0 + (name != best), lr=0.5) for name in (*rules, "adam")]
    backend = SimpleNamespace(USAGE="{file} {lr}", TARGET="torch")
    shown = use(rows, rules, Path("d"), backend)
    assert shown["usage"] == {"rule": "d/rules/best.json 0.5", "tuned rule": "d/tuned.json 0.5"}[best]
    assert shown["exports"] == {name: TARGETS[name].emit(rules[best]) for name in ("latex", "numpy", "torch")}


def test_the_evaluation_gave_every_optimizer_the_same_number_of_trials(output, folder):
    rows = load_evaluation(folder / "evaluation" / "evaluation.h5").rows
    assert len(rows) == 2 * (3 + len(baseline_names("torch"))) and len({row.trials for row in rows}) == 1


def test_the_commands_in_the_report_can_be_run_as_written(budget, output, folder, monkeypatch):
    text = (folder / "report.html").read_text(encoding="utf-8")
    found = re.findall(r'<pre class="command"><code>(.*?)</code></pre>', text, re.DOTALL)
    lines = [html.unescape(re.sub(r"<[^>]+>", "", line)) for line in found]
    assert lines == re.findall(r"^== \w+: (.*)$", output, re.MULTILINE)
    configs = dict(zip(STAGES, (parsed(line, monkeypatch) for line in lines), strict=True))
    assert configs["train"].out == configs["record"].source == str(folder)
    assert (configs["train"].epochs, configs["train"].epoch_length) == (budget["epochs"], 20)
    assert configs["distill"].trajectories == str(folder / "trajectories.h5")
    assert configs["distill"].evaluations == budget["evaluations"]
    assert configs["select"].front == str(folder / "rules")
    assert configs["tune"].rule == str(folder / "rules" / "best.json")
    assert configs["tune"].out == str(folder / "tuned.json")
    specs = [f"teacher:{folder}", f"rule:{folder / 'rules' / 'best.json'}", f"rule:{folder / 'tuned.json'}"]
    assert configs["evaluate"].optimizers == (*specs, *baseline_names("torch"))
    assert configs["evaluate"].steps == (20,) and configs["evaluate"].seeds == 2


def test_a_second_run_is_refused_in_one_line_unless_it_may_overwrite(output, folder, refused):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    message = refused("torch_impl.demo --quiet --out", folder)
    assert "--overwrite" in message and str(folder) in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# What a stage takes from the run before, which names it.
INHERITED = {("record", "problem"), ("distill", "problem"), ("distill", "data_dir")}


def test_flags_of_the_demo_reach_every_stage_that_has_them(tmp_path, monkeypatch):
    """A flag that is taken and then ignored would be worse than none."""
    shared = {"seed": 4, "dtype": "float64", "batch_size": 16, "problem": "digits-conv", "data_dir": "d"}
    seen: dict[str, Any] = {}

    def stand_in(name: str):
        def stage(config: Any, backend: Any = None) -> Any:
            seen[name] = config
            if name == "evaluate":
                raise L2OError("the end of the test")
            return type("Result", (), {"exit_code": 0})()

        return stage

    for name in STAGES:
        module = "interchange.distill.run" if name == "distill" else f"interchange.commands.{name}"
        monkeypatch.setattr(import_module(module), name, stand_in(name))
    line = f"torch_impl.demo --teacher rnnprop --out {tmp_path} --quiet --overwrite --jobs 3"
    assert call(line, *flags(shared)) == 2 and "evaluate" in seen
    for name, config in seen.items():
        fields = {field.name for field in dataclasses.fields(config)}
        for key, value in (shared | {"quiet": True, "overwrite": True}).items():
            if key in fields and (name, key) not in INHERITED:
                assert getattr(config, key) == value, (name, key)
    assert seen["train"].teacher == "rnnprop" and seen["evaluate"].jobs == 3
