"""The choice from a front by rollouts: who goes on to the second round, who is chosen, and on which data."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from common.errors import L2OError
from common.tables.baselines import parse_specs
from interchange.commands.record import RecordConfig
from interchange.commands.select import SelectConfig, choose, hopeful
from interchange.distill.rollouts import place_flags
from interchange.files.trajectories import Trajectories, load_trajectories
from interchange.rule.front import read_front, write_front
from interchange.rule.rule import Rule
from tests.helpers.commands import call, rule_spec

pytest.importorskip("torch", reason="needs torch")

from torch_impl import record, select

TASKS = np.array([0.5, 1.0, 2.0, 4.0])  # hardness, common to all rules


def test_a_short_rule_within_the_noise_of_the_best_is_chosen():
    noisy = TASKS * np.array([1.1, 0.95, 1.08, 0.96])
    clearly_worse = TASKS * 1.05
    figures = np.array([clearly_worse, noisy, TASKS])
    assert choose(figures, [3, 5, 40]) == 1
    assert choose(figures[[0, 2]], [3, 40]) == 1
    assert choose(figures, [3, 41, 40]) == 2


@pytest.mark.parametrize(("behind", "chosen"), [(5e-4, 0), (2e-3, 1)])
def test_a_longer_rule_is_not_taken_for_less_than_a_thousandth(behind, chosen):
    assert choose(np.array([TASKS * (1.0 + behind), TASKS]), [6, 16]) == chosen
    assert choose(np.array([TASKS * (1.0 + behind), TASKS])[:, :1], [6, 16]) == chosen


def test_differences_are_paired_by_task_and_relative():
    """Hard tasks differ in thousands; 1 % on each of them still tells the rules apart."""
    hard = np.array([1.0, 30.0, 1000.0, 40000.0])
    jitter = 1 + 1e-4 * np.array([1.0, -1.0, 2.0, -2.0])
    assert choose(np.array([hard * 1.01, hard * jitter]), [3, 40]) == 1
    assert hopeful(np.array([hard * 1.01, hard * jitter])) == [1]


def test_losses_below_zero_are_compared_as_they_are():
    figures = np.array([[-3.0, -5.0, 1.0], [-3.5, -5.6, 0.4]])
    assert choose(figures, [3, 40]) == 1
    assert hopeful(figures) == [1]


def test_losses_of_zero_are_level_and_ahead_of_what_is_above_the_floor():
    figures = np.array([[0.0, 1e-12, 0.0], [1e-12, 0.0, 1e-20], [1e-3, 1e-3, 1e-3]])
    assert choose(figures, [5, 3, 1]) == 1
    assert hopeful(figures) == [0, 1]


def test_rules_that_diverge_are_never_chosen_and_do_not_go_on():
    broken = TASKS * 0.1
    broken[2] = np.inf
    figures = np.array([broken, TASKS, TASKS * 3])
    assert hopeful(figures) == [1]
    assert choose(figures, [3, 5, 40]) == 1
    assert hopeful(figures[:, 2:3]) == [1, 2]


def test_at_most_eight_go_on_the_best_ones_in_the_order_of_the_front():
    jitter = np.array([1.2, 0.8, 1.1, 0.9])
    figures = np.array([TASKS * jitter ** (k % 3) * (1 + 0.001 * k) for k in range(20, 0, -1)])
    kept = hopeful(figures)
    assert len(kept) == 8 and kept == sorted(kept)
    assert hopeful(figures[:, :1]) == list(np.sort(np.argsort(figures[:, 0])[:8]))


STEPS = {"descent": -1.0, "as good": -1.001, "slow": -0.02, "uphill": 50.0}


@pytest.fixture
def front(tmp_path) -> str:
    rules = [
        Rule.from_text("c0 * g" + " + c0 * g" * k, {"c0": c0 / (k + 1)}, name=name, provenance={})
        for k, (name, c0) in enumerate(STEPS.items())
    ]
    write_front(tmp_path / "front", rules)
    return str(tmp_path / "front")


TINY = {"problem": "quadratic", "steps": 30, "tasks": 1, "more": 4, "quiet": True}


def test_the_best_rules_are_rolled_out_on_more_tasks(front, tmp_path):
    assert select(SelectConfig(front=front, **TINY))[-1].name == "uphill"
    losses = {rule.name: rule.provenance["loss"] for rule in read_front(front)}
    assert [losses[name]["tasks"] for name in STEPS] == [5, 5, 5, 1]
    finalists = [losses[name]["behind"] for name in STEPS][:3]
    assert min(finalists) == 0.0 and all(behind >= 0.0 for behind in finalists)
    alone = tmp_path / "alone"
    select(SelectConfig(front=front, out=str(alone), **TINY | {"tasks": 5, "more": 0}))
    for rule in read_front(alone)[:3]:  # the later tasks follow on the first
        assert rule.provenance["loss"]["valid"] == pytest.approx(losses[rule.name]["valid"], rel=1e-12)


def test_a_run_folder_stands_for_the_front_in_it(front, tmp_path):
    Path(front).rename(tmp_path / "rules")
    best, *_ = select(SelectConfig(front=str(tmp_path), **TINY))
    assert Rule.load(tmp_path / "rules" / "best.json") == best
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rules"]
    names = [f"rule:{tmp_path / 'rules' / f'rule_{k:03d}.json'}" for k in range(len(STEPS))]
    assert [spec.text for spec in parse_specs([f"front:{tmp_path}"])] == names
    with pytest.raises(L2OError, match="expected a folder with front"):
        parse_specs([f"front:{tmp_path / 'nowhere'}"])


def test_the_total_of_a_choice_is_shown_once_it_is_known(front, capsys):
    select(SelectConfig(front=front, **TINY | {"quiet": False}))
    counts = re.findall(r"^select: (\S+)", capsys.readouterr().err, re.MULTILINE)
    assert counts[-4:] == ["4", "5/7", "6/7", "7/7"]  # "4 done", and then three finalists


def test_finalists_that_all_diverge_later_are_one_line(front, monkeypatch):
    def figures(rules, numbers, *_):
        return np.full((len(rules), len(numbers)), np.inf if numbers.start else 1.0)

    monkeypatch.setattr("interchange.commands.select._figures", figures)
    with pytest.raises(L2OError, match="every rule diverges on some of 5 tasks of quadratic; distill"):
        select(SelectConfig(front=front, **TINY))


def test_worker_processes_find_the_same_bytes(front, tmp_path):
    folders = [tmp_path / f"jobs{jobs}" for jobs in (1, 2)]
    for jobs, folder in enumerate(folders, 1):
        select(SelectConfig(front=front, out=str(folder), jobs=jobs, **TINY))
    for file in ("best.json", "front.csv", "rule_000.json", "rule_003.json"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


def recorded(folder: Path, name: str, **settings) -> Trajectories:
    small = {"problem": "digits-mlp", "steps": 3, "runs": 3, "samples": 90, "quiet": True} | settings
    source, out = rule_spec(folder, c0=-0.1), folder / f"{name}.h5"
    return load_trajectories(record(RecordConfig(source=source, out=str(out), **small)))


def test_rollouts_go_where_the_recording_was_made(front, tmp_path):
    recordings = [
        recorded(tmp_path, "own"),
        recorded(tmp_path, "other", dataset="synthetic", batch_size=16),
    ]
    flags = [place_flags(one, "digits-mlp") for one in recordings]
    assert flags == [[], ["--dataset=synthetic:8x8x1:10", "--batch-size=16"]]
    assert place_flags(recordings[1], "quadratic") == []
    losses = []
    for given in flags:
        line = f"torch_impl.select {front} --problem digits-mlp --steps 3 --tasks 1 --more 0 --quiet"
        assert call(line, *given) == 0
        losses.append(read_front(front)[0].provenance["loss"]["valid"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("problem", "text"), [("mine", '{"dataset": "mnist"}'), ("digits-mlp", "{}"), ("digits-mlp", "[]")]
)
def test_a_recording_that_tells_no_data_leaves_the_problem_its_own(problem, text, tmp_path):
    one = recorded(tmp_path, "t", dataset="synthetic")
    told = {"problem": problem, "problem_json": text}
    runs = {name: dataclasses.replace(run, **told) for name, run in one.runs.items()}
    assert place_flags(dataclasses.replace(one, runs=runs), problem) == []
