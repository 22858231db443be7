"""A rule that is given to distillation: refitted in its own form, and the search's beginning."""

from pathlib import Path

import pytest

from common.errors import L2OError
from interchange.distill.config import DistillConfig
from interchange.distill.run import distill, main
from interchange.distill.sequences import make_task
from interchange.distill.start import over_recording, parts, refitted
from interchange.files.trajectories import save_trajectories
from interchange.language.expression import to_text
from interchange.rule.rule import Rule
from interchange.sanity.rules import recorded
from interchange.search.samples import sequences

TRUTH = Rule.from_text("-0.4 * tanh(2 * ema(g, 0.7)) - 0.1 * g")
START = Rule.from_text(
    "-(a * tanh(b * ema(g, c)) + d * g)", {"a": 1.0, "b": 1.0, "c": 0.5, "d": 1.0}, name="mine"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start") / "trajectories.h5"
    save_trajectories(path, recorded(TRUTH, 0))
    return path


def test_constants_of_a_given_rule_are_refitted_in_its_own_form():
    found = refitted(START, recorded(TRUTH, 0), DistillConfig(evaluations=1))
    assert found.name == "mine" and found.expression == START.expression
    assert found.constants == pytest.approx({"a": 0.4, "b": 2.0, "c": 0.7, "d": 0.1}, rel=1e-3)
    assert found.provenance["r2"]["test"] > 0.9999


def test_another_scale_becomes_a_gain():
    given = Rule.from_text("-c0 * g", {"c0": 2.0}, scale=0.01)
    found = over_recording(given, recorded(TRUTH, 0))
    assert found.scale == 1.0 and found.constants == {"c0": 2.0, "gain": 0.01}


def test_features_that_were_not_recorded_are_written_out_over_the_gradient():
    found = over_recording(Rule.named("rp_s_11"), recorded(TRUTH, 0))
    assert not found.features and "square(g)" in to_text(found.expression)


def test_an_engine_sees_the_rule_and_its_parts():
    data = recorded(TRUTH, 0)
    given = START.with_constants({"a": 0.4, "b": 2.0, "c": 0.7, "d": 0.1})
    texts = [to_text(node) for node in parts(given)]
    assert texts[0] == "-(0.4 * tanh(2.0 * ema(g, 0.7)) + 0.1 * g)" and "tanh(2.0 * ema(g, 0.7))" in texts
    config = DistillConfig(start="momentum", evaluations=10)
    task = make_task(data, sequences(data, "train"), config)
    assert task.guesses[0] == to_text(parts(over_recording(Rule.named("momentum"), data))[0])
    assert task.guesses[0] in task.columns and task.rows.shape[1] == len(task.columns)
    assert make_task(data, sequences(data, "train"), DistillConfig(evaluations=10)).guesses == ()


def test_the_command_writes_the_refit_and_the_front_is_no_worse(file: Path, tmp_path: Path):
    START.save(tmp_path / "mine.json")
    config = DistillConfig(
        trajectories=str(file), start=str(tmp_path / "mine.json"), engine="linear", evaluations=200,
        threads=1, out=str(tmp_path / "rules"), quiet=True,
    )  # fmt: skip
    front, best = distill(config)
    begun = Rule.load(tmp_path / "rules" / "start.json")
    assert begun.provenance["r2"]["valid"] > 0.9999
    assert max(rule.provenance["r2"]["valid"] for rule in front) >= begun.provenance["r2"]["valid"] - 1e-6
    assert best.provenance["r2"]["test"] > 0.999


@pytest.mark.parametrize("name", ["muon", "no_such_rule"])
def test_what_cannot_be_begun_with_is_one_line(name: str, file: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(file), "--start", name, "--overwrite"]) == 2
    assert name in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_rule_that_reads_what_was_not_recorded_is_refused():
    for rule in (Rule.from_text("theta - g"), Rule.from_text("x", features={"x": None})):
        with pytest.raises(L2OError, match="expected one over g"):
            over_recording(rule, recorded(TRUTH, 0))
