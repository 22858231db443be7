"""``paper``: cells are run once, verdicts follow from numbers, the page has the published ones too."""

import dataclasses
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import L2OError
from common.run.storage import atomic_write
from interchange.analysis import run as analysis
from interchange.analysis.measures import attribution
from interchange.commands.stages import Stages
from interchange.files.results import EvaluationRow, save_evaluation
from interchange.files.trajectories import save_trajectories
from interchange.files.weights import Teacher, save_weights
from interchange.meta.config import TrainConfig
from interchange.paper import cells as running
from interchange.paper import config as settings
from interchange.paper import cost as costs
from interchange.paper import measured, plan, published
from interchange.paper import paper as command
from interchange.paper.cells import Cells
from interchange.paper.config import ITEMS, SCALES, PaperConfig
from interchange.paper.cost import cost, table
from interchange.paper.verdicts import (
    HOLDS,
    NOT,
    PART,
    UNKNOWN,
)
from interchange.rule.front import write_front
from interchange.rule.rule import Rule
from interchange.sanity.rules import recorded
from tests.helpers.commands import call


class _Backend:
    NAME = "torch"


class _KilledError(Exception):
    """Stands for the end of the process."""


class _Counting(Stages):
    """Stages that write what they are asked for, and end the process at one of them."""

    def __init__(self, killed_at: int = 0) -> None:
        super().__init__(True, _Backend())
        self.begun: list[str] = []
        self.killed_at = killed_at
        self.configs: dict[str, Any] = {}
        self.exit_codes: dict[str, int] = {}

    def run(self, name: str, config: Any, title: str = "") -> Any:
        self.begun.append(title.partition(" ")[2])
        self.configs[self.begun[-1]] = config
        if len(self.begun) == self.killed_at:
            raise _KilledError
        self.seconds[title] = 0.5
        for cell in self.cells.values():
            if cell.name == self.begun[-1]:
                cell.result.parent.mkdir(parents=True, exist_ok=True)
                cell.result.touch()
        return types.SimpleNamespace(exit_code=self.exit_codes.get(self.begun[-1], 0))


def runner(folder: Path, config: PaperConfig, killed_at: int = 0, anew: bool = False) -> Cells:
    stages = _Counting(killed_at)
    stages.cells = plan.plan(config)
    return Cells(folder, stages.cells, stages, anew)


def test_a_killed_paper_goes_on_without_repeating_a_finished_cell(tmp_path):
    config = PaperConfig(out=str(tmp_path), quiet=True, only=("table", "sanity"))
    names = list(plan.plan(config))
    killed = runner(tmp_path, config, killed_at=20)
    with pytest.raises(_KilledError):
        killed.run()
    assert killed._stages.begun == names[:20]
    again = runner(tmp_path, config)
    again.run()
    assert again.found == names[:19] and again.ran == again._stages.begun == names[19:]
    once_more = runner(tmp_path, config)
    once_more.run()
    assert once_more.ran == [] and once_more.found == names
    anew = runner(tmp_path, config, anew=True)
    anew.run()
    assert anew.ran == names


def test_only_what_reads_a_changed_setting_runs_again(tmp_path, monkeypatch):
    config = PaperConfig(out=str(tmp_path), quiet=True, only=("table",))
    runner(tmp_path, config).run()
    monkeypatch.setattr(settings, "SCALES", {"smoke": dataclasses.replace(SCALES["smoke"], horizon=61)})
    again = runner(tmp_path, config)
    again.run()
    kinds = {name.partition("/")[2] for name in again.ran}
    assert kinds == {"select", "evaluate", "follow", "analysis"}
    lost = plan.plan(config)["rp/record"].result
    lost.unlink()
    once_more = runner(tmp_path, config)
    once_more.run()
    assert once_more.ran == ["rp/record"]


def test_missing_data_are_named_before_anything_is_written(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    monkeypatch.delenv("L2O_DATA", raising=False)
    no_search = {name: dataclasses.replace(scale, engine="linear") for name, scale in SCALES.items()}
    monkeypatch.setattr(settings, "SCALES", no_search)
    for item, problem, data in (("figure3", "mnist-mlp", "mnist"), ("figure2", "digits-mlp", "cifar10")):
        words = f"torch_impl.paper --scale full --only {item} --problem {problem} --out"
        assert call(words, tmp_path / "paper") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and data in error
    assert not (tmp_path / "paper").exists()


def test_an_interrupted_training_is_gone_on_with_and_a_stopped_one_ends_the_paper(tmp_path, monkeypatch):
    config = PaperConfig(out=str(tmp_path), quiet=True, only=("table",))
    monkeypatch.setattr(running, "holds", lambda folder, config: folder == str(tmp_path / "rp_s"))
    resumed = runner(tmp_path, config)
    resumed._stages.exit_codes["rp_s_m/train"] = 143
    with pytest.raises(SystemExit) as end:
        resumed.run()
    assert end.value.code == 143 and "rp_s_m/train" not in resumed.records
    given = resumed._stages.configs
    assert given["rp_s/train"].resume == str(tmp_path / "rp_s") and not given["rp_s/train"].overwrite
    assert not given["rp/train"].resume and given["rp/train"].overwrite


def test_a_setting_that_a_later_version_adds_runs_nothing_again(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Before:
        steps: int = 3
        out: str = ""

    @dataclasses.dataclass(frozen=True)
    class After(Before):
        more: bool = False

    def key(config: Any) -> str:
        return Cells(tmp_path, {}, _Counting()).key(running.Cell("a", "train", config, tmp_path))

    assert key(Before(steps=4)) == key(After(steps=4)) != key(After(steps=4, more=True))
    assert key(Before(steps=4)) != key(Before())


def test_the_folder_may_be_moved(tmp_path):
    config = PaperConfig(out=str(tmp_path / "one"), quiet=True, only=("figure4",))
    runner(tmp_path / "one", config).run()
    (tmp_path / "one").rename(tmp_path / "other")
    moved = runner(tmp_path / "other", dataclasses.replace(config, out=str(tmp_path / "other")))
    moved.run()
    assert moved.ran == []


def test_every_item_names_what_it_needs_and_no_more(tmp_path):
    for item in ITEMS:
        cells = plan.plan(PaperConfig(out=str(tmp_path), only=(item,)))
        assert all(set(cell.needs) <= set(list(cells)[:place]) for place, cell in enumerate(cells.values()))
        assert len({cell.result for cell in cells.values()}) == len(cells)
    long = plan.plan(PaperConfig(only=("long",)))
    assert list(long) == ["dm/train", "dm+cl+il/train", "long/evaluate"]
    everything = plan.plan(PaperConfig())
    assert {name for item in ITEMS for name in plan.plan(PaperConfig(only=(item,)))} == set(everything)
    assert sum(name.endswith("/evaluate") for name in everything) == len(published.MODELS) + 2


@pytest.mark.parametrize("scale", SCALES)
def test_each_cell_is_a_command_anyone_may_run(scale, tmp_path, monkeypatch):
    from tests.pipeline.test_demo import parsed

    config = PaperConfig(scale=scale, out=str(tmp_path / "a folder"), seed=3, dtype="float64", data_dir="d")
    stages = Stages(True, _Backend())
    for cell in plan.plan(config).values():
        with monkeypatch.context() as patch:
            read = parsed(stages.line(cell.command, cell.config), patch)
        assert read == dataclasses.replace(cell.config, quiet=False), cell.name


def test_costs_are_those_of_the_configuration():
    cells = plan.plan(PaperConfig(scale="small"))
    assert (cost(cells["rp_s/train"]).steps, cost(cells["rp_s/train"]).about) == (40_000, False)
    assert (cost(cells["dm+cl+il/train"]).steps, cost(cells["dm+cl+il/train"]).about) == (150_000, True)
    assert cost(cells["dm+cl+il/train"]).fewest == 3 * 10 * (100 + 200 + 500)
    assert cost(cells["rp_s/distill-0"]).searched == 60.0
    assert cost(cells["sanity/search"]).searched == 3 * (5 + 2) * 60.0
    assert cost(cells["rp_s/evaluate"]).rolled == 2 * 10 * 300
    rates = {("rp_s", "mnist-mlp"): (0.01, 0.005), ("rnnprop", "mnist-mlp"): (1.0, 1.0)}
    text = table({"rp_s/train": cells["rp_s/train"]}, rates)
    assert "40,000 steps of meta-training" in text and "about 8 min" in text  # and the validations' rollouts
    assert "24,000 to 150,000 steps" in table({"dm+cl+il/train": cells["dm+cl+il/train"]}, rates)


def test_a_plan_is_every_command_with_the_time_of_all_and_writes_nothing(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    probed: list[str] = []

    def probe(config: TrainConfig, *_: str) -> types.SimpleNamespace:
        """A tenth of a second a step, a minute an optimizee."""
        probed.append(config.recipe or config.teacher)
        return types.SimpleNamespace(step=0.1, validation=60.0)

    monkeypatch.setattr(costs, "estimate", probe)
    folder = tmp_path / "a paper"
    assert call("torch_impl.paper --scale small --problem digits-mlp --only long --plan --out", folder) == 0
    told = capsys.readouterr().out.splitlines()
    assert probed == [published.MODELS["dm"].teacher]  # both are of one kind
    names = ("dm/train", "dm+cl+il/train", "long/evaluate")
    assert [line.split()[0] for line in told[:3]] == list(names)
    assert "24,000 to 150,000 steps of meta-training" in told[1] and "at the most" in told[3]
    assert [line.split()[2] for line in told[4:]] == [
        f"torch_impl.{c}" for c in ("train", "train", "evaluate")
    ]
    assert all(f"--out '{folder}/" in line for line in told[4:]) and not folder.exists()


def test_a_folder_of_other_settings_is_refused(tmp_path):
    command._settle(PaperConfig(scale="smoke"), "torch", tmp_path)
    command._settle(PaperConfig(scale="smoke", only=("sanity",), jobs=1), "torch", tmp_path)
    with pytest.raises(L2OError, match="begun with another scale, seed; replace it with --overwrite"):
        command._settle(PaperConfig(scale="small", seed=1), "torch", tmp_path)
    with pytest.raises(L2OError, match="begun with another backend"):
        command._settle(PaperConfig(), "tf", tmp_path)


_FOUND = {"true": 1, "runs": [{}, {}], "nodes": 3.0, "seconds": 2.0, "paper_seconds": 71.0}
SANITY = {
    "rows": [
        {"rule": "known <law>", "r2": 1.0, "paper_r2": 1.0} | _FOUND,
        {"rule": "lost", "r2": 0.5, "paper_r2": 0.9} | _FOUND | {"paper_seconds": None},
    ],
    "teachers": [
        {"teacher": "momentum", "r2_50": 0.9, "paper_r2": [0.83]},
        {"teacher": "ours alone", "r2_50": None, "paper_r2": None},
    ],
}


def _evaluated(losses: dict[str, float], config: PaperConfig, *place: str) -> None:
    """An evaluation of two seeds; the accuracy is 1 less the loss."""
    rows = [
        EvaluationRow(
            name,
            "digits-mlp",
            seed,
            np.full(60, loss),
            accuracy=1.0 - loss,
            settings={"lr": 1.0, "schedule": "cosine"},
        )
        for name, loss in losses.items()
        for seed in range(2)
    ]
    save_evaluation(Path(plan.place(config, *place), "evaluation.h5"), rows, {})


@pytest.fixture
def finished(tmp_path, monkeypatch) -> PaperConfig:
    """A folder as the cells of ``rp_s`` leave it, with a recorded rule in the place of a trained teacher."""
    monkeypatch.setattr(attribution, "hand_made", lambda: {"sgd": Rule.named("sgd")})
    items = ("table", "figure3", "figure4", "figure5", "figure6")
    monkeypatch.setattr(plan, "NEEDED", dict.fromkeys(items, ("rp_s",)))
    config = PaperConfig(out=str(tmp_path / "paper"), quiet=True)
    teacher = Teacher.named("rp_s")
    save_weights(plan.place(config, "rp_s", "teacher.h5"), teacher.row, teacher.weights, "made up")
    save_trajectories(plan.place(config, "rp_s", "trajectories.h5"), recorded(Rule.named("momentum"), 0))
    save_trajectories(plan.place(config, "rp_s", "rule.h5"), recorded(Rule.named("sgd"), 0))
    scores = {"r2": {"valid": 0.9, "test": 0.9}}
    rules = [dataclasses.replace(Rule.from_text(text), provenance=scores) for text in ("-g", "-ema(g, 0.5)")]
    for folder in ("rules-0", "rule"):
        write_front(plan.place(config, "rp_s", folder), rules)
        rules[1].save(plan.place(config, "rp_s", folder, plan.BEST))
    best = f"rule:{plan.place(config, 'rp_s', 'rule', plan.BEST)}"
    _evaluated({f"teacher:{plan.place(config, 'rp_s')}": 0.2, best: 0.1}, config, "rp_s", "evaluation")
    tuned = f"rule:{plan.place(config, 'figure2', 'tuned.json')}"
    _evaluated({tuned: 0.3} | dict.fromkeys(plan.RIVALS, 0.4), config, "figure2", "evaluation")
    long = {
        f"teacher:{plan.place(config, name)}": loss for name, loss in zip(plan.LONG, (0.2, 0.1), strict=True)
    }
    _evaluated(long, config, "long")
    atomic_write(Path(plan.place(config, "sanity", "sanity.json")), json.dumps(SANITY))
    analysis.written(plan.analysis_config(config, "rp_s"))
    return config


def test_what_cells_leave_becomes_a_page_with_the_published_numbers(finished, capsys):
    record = {"a": {"command": "python -m torch_impl.train --out b", "seconds": 1.5}}
    run = types.SimpleNamespace(records=record)
    backend = types.SimpleNamespace(CREATED_BY="made up")
    spoken = dataclasses.replace(finished, quiet=False)
    file = command._write(spoken, backend, run, plan.home(finished))
    page, said = file.read_text("utf-8"), capsys.readouterr().out.splitlines()
    assert said[-1] == f"paper: {file}" and any(line.startswith(" " * 9 + "holds: ") for line in said)
    assert not any(UNKNOWN in line for line in said)
    found = json.loads((plan.home(finished) / "paper.json").read_text("utf-8"))
    assert found["models"]["rp_s"]["loss"]["ratio"][0] == pytest.approx(0.5)
    assert found["models"]["rp_s"]["complexity"]["mean"] == 4.0
    outcomes = {verdict["claim"][:20]: verdict["outcome"] for verdict in found["verdicts"]}
    assert outcomes["Equations do as well"] == outcomes["So are momentum and "] == HOLDS
    assert outcomes["On a larger net the "] == outcomes["In long runs the LST"] == HOLDS
    assert outcomes["Known equations are "] == PART and outcomes["The loss falls from "] == UNKNOWN
    assert found["large"]["optimizers"]["equation"]["accuracy"][0] == pytest.approx(70.0)
    for text in (
        "known &lt;law&gt;",
        "70.00",
        "1 of 2",
        "paper 80.3",
        "paper 0.09 ± 0.05",
        "paper 5.5, 2.2",
        "-ema(g, 0.5)",
        "0.0 minutes",
        "made up",
    ):
        assert text in page, text
    assert page.count("<svg") == 6 and "<script" not in page and "src=" not in page
    for item, key in (("long", "long"), ("figure2", "large"), ("sanity", "sanity")):
        less = measured.measure(dataclasses.replace(finished, only=(item,)))
        assert less == {"models": {}, "sanity": None, "large": None, "long": None} | {key: less[key]}
        assert less[key]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """backend -> the folder of its smoke, made when first asked for."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        pytest.importorskip({"torch": "torch", "tf": "tensorflow"}[name])
        pytest.importorskip("matplotlib")
        if name not in made:
            out = tmp_path_factory.mktemp(name) / "a paper"
            assert call(f"{name}_impl.paper --scale smoke --dtype float64 --quiet --out", out) == 0
            made[name] = out
        return made[name]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "tf"])
def test_the_whole_paper_in_small(name, smoke, capsys):
    out = smoke(name)
    found = json.loads((out / "paper.json").read_text("utf-8"))
    assert set(found["models"]) == set(published.MODELS)
    assert {verdict["outcome"] for verdict in found["verdicts"]} <= {HOLDS, PART, NOT}
    page = (out / "paper.html").read_text("utf-8")
    for text in ("paper 0.12 ± 0.07", "paper 25.2", "paper 182.9", "Figure 6", "Every command"):
        assert text in page
    assert "<script" not in page and "src=" not in page and page.count("<svg") >= 9
    assert (out / "figures" / "figure3-rp.pdf").read_bytes().startswith(b"%PDF")
    assert call(f"{name}_impl.paper --scale smoke --dtype float64 --out", out) == 0
    cells = len(found["cells"])
    assert f"{cells} of {cells} cells were there" in capsys.readouterr().out


@pytest.mark.slow
def test_both_backends_train_and_measure_the_same(smoke):
    found = [json.loads((smoke(name) / "paper.json").read_text("utf-8")) for name in ("torch", "tf")]
    for name in published.MODELS:
        one, other = (each["models"][name] for each in found)
        assert one["loss"]["lstm_each"] == pytest.approx(other["loss"]["lstm_each"], rel=1e-6), name
        fields = [row["lstm"]["perception"]["fields"] for row in (one, other)]
        assert fields[0] == pytest.approx(fields[1], rel=1e-6), name


def test_bounds_of_a_mapping_complexity_are_positive(tmp_path):
    """Of one short and otherwise long rules a t-interval would reach below 0."""
    config = PaperConfig(scale="small", out=str(tmp_path))
    rules = [Rule.from_text("-g"), *[Rule.named("ademamix")] * (config.amounts.searches - 1)]
    for number, rule in enumerate(rules):
        scored = dataclasses.replace(rule, provenance={"r2": {"test": 0.5}})
        scored.save(plan.place(config, "rp_s", f"rules-{number}", plan.BEST))
    found = measured.complexity(config, "rp_s")
    sizes = [rule.complexity for rule in rules]
    assert found["mean"] == pytest.approx(sum(sizes) / len(sizes)) and found["each"]["nodes"] == sizes
    assert 0.0 < found["low"] < found["high"]
