"""The command: R2 of any rule on any recording, its files and its messages."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from interchange.analysis.measures import attribution
from interchange.analysis.measures.fit import fit
from interchange.analysis.measures.perception import perception
from interchange.analysis.recorded import recorded
from interchange.analysis.run import main
from interchange.analysis.subjects import Subject, load, load_all
from interchange.distill.structure import whole
from interchange.files.trajectories import Samples, Trajectories, save_trajectories
from interchange.files.weights import Teacher
from interchange.rule.rule import Rule
from interchange.sanity.rules import recorded as recording_of


@pytest.fixture(scope="module")
def momentum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recorded") / "trajectories.h5"
    save_trajectories(file, recording_of(Rule.named("momentum", beta=0.6), 0))
    return file


def test_a_rule_fits_its_own_recording_and_another_less():
    data = recorded(recording_of(Rule.named("momentum", beta=0.6), 0))
    own = fit(Subject("own", Rule.named("momentum", beta=0.6)), data)
    other = fit(load("sgd"), data)
    assert own.pooled == pytest.approx(1.0) and set(own.phases) == {"early", "middle", "late"}
    assert own.tensors == {"g": own.pooled}
    assert other.pooled < other.at_rate < 1.0 and other.rate > 1.0


def test_updates_are_compared_with_the_scale():
    data = recorded(recording_of(Rule.named("momentum"), 0))
    half = dataclasses.replace(Rule.named("momentum"), scale=0.5)
    found = fit(Subject("half", half), data)
    assert found.rate == pytest.approx(2.0) and found.at_rate == pytest.approx(1.0) and found.pooled < 0.8


def test_a_teacher_is_one_function_of_its_inputs_here_and_in_the_oracle():
    from common.reference import replay

    teacher = Teacher.named("rp_s")
    g = recording_of(Rule.named("sgd"), 0).runs["test"].g
    subject = Subject("rp_s", teacher)
    inputs, wanted = replay(teacher.row, teacher.weights, g)
    features = subject.features({"g": g})
    np.testing.assert_allclose(np.stack(list(features.values()), -1), inputs, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(subject.outputs(features), 0.01 * wanted, rtol=1e-9, atol=1e-15)


def test_the_command_prints_r2_and_writes_the_same(momentum: Path, tmp_path: Path, capsys, monkeypatch):
    few = {name: Rule.named(name) for name in ("sgd", "momentum")}
    monkeypatch.setattr(attribution, "hand_made", lambda: few)
    out = tmp_path / "found"
    words = [
        "momentum",
        "rp_s",
        "--trajectories",
        str(momentum),
        "--beside",
        str(momentum),
        "--out",
        str(out),
    ]
    assert main(words) == 0
    assert "TPF" in capsys.readouterr().out
    page = (out / "analysis.html").read_text("utf-8")
    for title in ("Temporal perception", "Mapping curves", "tanh family", "Courses", "Nearest", "is made of"):
        assert title in page
    assert page.count("<svg") == 4 and "<script" not in page and "src=" not in page
    for name in ("perception", "mapping", "family", "courses"):
        assert (out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert b"<svg" in (out / "figures" / f"{name}.svg").read_bytes()
    assert (out / "summary.csv").read_text("utf-8").splitlines()[1].startswith("momentum,rule,")
    figures = {line.split(",")[0] for line in (out / "curves.csv").read_text("utf-8").splitlines()[1:]}
    assert figures == {"perception", "mapping", "courses"}
    found = json.loads((out / "analysis.json").read_text("utf-8"))
    assert [row["name"] for row in found["optimizers"]] == ["momentum", "rp_s"]
    assert found["optimizers"][0]["r2"]["pooled"] < found["optimizers"][0]["r2"]["at_rate"] < 1.0
    assert main(words) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--quiet"]) == 0


def test_a_rule_inside_a_structure_is_compared_with_what_was_recorded_inside_it():
    data = recorded(recording_of(Rule.named("momentum"), 0))
    inside = whole(Rule.named("momentum"), "orth")
    assert inside.sees_tensors and not Subject("orth", inside).sees_tensors
    assert fit(Subject("orth", inside), data).pooled == pytest.approx(1.0)
    assert perception(Subject("orth", inside), data).total == perception(load("momentum"), data).total


def test_a_table_has_an_r2_and_no_perception_field(tmp_path: Path, capsys):
    x = np.random.default_rng(0).normal(size=(200, 2))
    table = Samples(x, -0.3 * x[:, 0] + 0.1 * x[:, 1], np.ones(2))
    file = tmp_path / "table.h5"
    save_trajectories(file, Trajectories({"a": "", "b": ""}, {}, samples=table))
    rule = Rule.from_text("c0 * a + c1 * b", {"c0": -0.3, "c1": 0.1}, {"a": None, "b": None}, name="mine")
    rule.save(tmp_path / "mine.json")
    words = [str(tmp_path / "mine.json"), "--trajectories", str(file)]
    assert main([*words, "--quiet"]) == 0 and main(words) == 0
    assert "1.0000" in capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "a table has no steps" in capsys.readouterr().err
    assert main(["sgd", *words[1:]]) == 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "SOURCES is missing"),
        (["sgd", "--seeds", "1"], "--seeds needs --trajectories"),
        (["nadamw"], "an optimizer with an equation"),
        (["no_such_rule"], "unknown optimizer"),
        (["muon", "--trajectories", "FILE"], "--whole-tensors"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, momentum: Path, capsys):
    assert main([str(momentum) if word == "FILE" else word for word in words]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert said in err[-1] and not any("Traceback" in line for line in err)


def test_names_are_short_and_unlike(tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Rule.named("sgd").save(tmp_path / folder / "rule.json")
    Rule.named("adam").save(tmp_path / "mine.json")
    files = [str(tmp_path / name) for name in ("a/rule.json", "b/rule.json", "mine.json")]
    assert [subject.name for subject in load_all([*files, "lion"])] == [*files[:2], "mine", "lion"]
