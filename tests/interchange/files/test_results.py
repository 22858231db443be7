"""Evaluation files and their summary."""

import csv
import dataclasses
import os

import numpy as np
import pytest

from common.errors import L2OError
from interchange.files.results import EvaluationRow, load_evaluation, save_evaluation
from interchange.inspect import __main__ as inspect
from interchange.rule.rule import Rule


def rows(steps=30):
    """Two optimizers, three seeds; the last run of the second diverged."""
    generator = np.random.default_rng(0)
    same = {"split": "test", "accuracy": 0.9, "floats_per_parameter": 2.0, "trials": 9}
    same |= {"settings": {"lr": 0.1, "momentum": 0.9}}

    def losses(offset):
        return generator.uniform(size=steps) + offset

    found = [
        EvaluationRow(optimizer, "digits-mlp", seed, losses(offset), ms_per_step=1.5 + seed, **same)
        for offset, optimizer in enumerate(("adam:lr=0.1", "rule:best.json"))
        for seed in range(3)
    ]
    broken = np.r_[np.ones(10), np.nan]
    found[-1] = dataclasses.replace(found[-1], losses=broken, outcome="diverged", accuracy=float("nan"))
    return found


def table(folder):
    with open(folder / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_round_trip(tmp_path):
    given = rows()
    digest = save_evaluation(tmp_path / "e.h5", given, {"steps": 30}, "torch_impl 1.0")
    found = load_evaluation(tmp_path / "e.h5")
    assert found.config == {"steps": 30} and found.created_by == "torch_impl 1.0" and found.sha256 == digest
    assert len(found.rows) == 6
    for one, other in zip(given, found.rows, strict=True):
        for field in dataclasses.fields(EvaluationRow):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if isinstance(a, np.ndarray):
                np.testing.assert_array_equal(a, b)
            else:
                assert type(a) is type(b) and (a == b or (a != a and b != b)), field.name
    assert "diverged" in repr(found.rows[-1])
    save_evaluation(tmp_path / "e.h5", [], {})
    assert load_evaluation(tmp_path / "e.h5").rows == ()


def test_summary(tmp_path):
    given = rows()
    save_evaluation(tmp_path / "e.h5", given, {})
    assert sorted(os.listdir(tmp_path)) == ["e.h5", "summary.csv"]
    adam, rule = table(tmp_path)
    columns = """optimizer problem horizon loss_mean low high seeds diverged lr schedule knob
        ms_per_step floats_per_parameter trials test_loss accuracy trained_on best_baseline ratio ratio_low
        ratio_high target steps_to_target seconds_to_target"""
    assert list(adam) == columns.split()
    assert (adam["optimizer"], rule["optimizer"]) == ("adam:lr=0.1", "rule:best.json")
    assert float(adam["loss_mean"]) == pytest.approx(
        np.exp(np.mean([np.log(row.losses[10:].mean()) for row in given[:3]]))  # the geometric mean
    )
    assert float(adam["low"]) < float(adam["loss_mean"]) < float(adam["high"])
    numbers = {"horizon": 30, "seeds": 3, "diverged": 0, "lr": 0.1, "ms_per_step": 2.5, "trials": 9}
    assert {key: float(adam[key]) for key in numbers} == numbers
    assert (rule["horizon"], rule["seeds"], rule["diverged"]) == ("30", "3", "1")
    assert rule["loss_mean"] == "inf" and rule["low"] == rule["high"] == ""
    strange = dataclasses.replace(given[0], optimizer='adam:lr=0.1,eps="x"\n')
    save_evaluation(tmp_path / "e.h5", [strange], {})
    assert table(tmp_path)[0]["optimizer"] == strange.optimizer


def test_summary_at_given_horizons_and_of_several_problems(tmp_path):
    other = [dataclasses.replace(row, problem="quadratic", losses=row.losses[:20]) for row in rows()[:3]]
    save_evaluation(tmp_path / "e.h5", rows() + other, {})
    found = [(row["problem"], row["horizon"]) for row in table(tmp_path)]
    assert found == [*[("digits-mlp", "30")] * 2, ("quadratic", "20")]
    save_evaluation(tmp_path / "e.h5", rows() + other, {}, horizons=(5, 20))
    assert [row["horizon"] for row in table(tmp_path)] == ["5", "5", "20", "20", "5", "20"]


def test_losses_are_saved_before_anything_can_go_wrong_with_the_summary(tmp_path):
    short = dataclasses.replace(rows()[0], losses=np.ones(3), outcome="stopped")
    with pytest.raises(L2OError, match="expected at least 30 losses"):
        save_evaluation(tmp_path / "e.h5", [short, *rows()[1:]], {})
    assert len(load_evaluation(tmp_path / "e.h5").rows) == 6


@pytest.mark.parametrize(
    "change, message",
    [
        ({"losses": np.zeros((2, 2))}, r"losses: expected axes \[step\]"),
        ({"settings": {"lr": float("nan")}}, "JSON"),
        ({"settings": [1]}, "settings_json: expected an object"),
        ({"seed": 0.5}, "seed: expected int"),
        ({"accuracy": "high"}, "accuracy: expected float"),
        ({"outcome": None}, "outcome"),
    ],
)
def test_wrong_rows_are_refused(tmp_path, change, message):
    with pytest.raises(L2OError, match=message):
        save_evaluation(tmp_path / "e.h5", [dataclasses.replace(rows()[0], **change)], {})
    assert not os.listdir(tmp_path)


def test_inspect_reads_evaluations_and_rules_and_refuses_the_rest(tmp_path, capsys):
    save_evaluation(tmp_path / "e.h5", rows(), {})
    assert inspect.main([str(tmp_path / "e.h5")]) == 0
    out = capsys.readouterr().out
    assert "adam:lr=0.1 on digits-mlp, seed 0: loss" in out and "1.5 ms a step, ok" in out
    path = tmp_path / "rule.json"
    Rule.from_text("c0 * tanh(g)", {"c0": 0.25}, name="small").save(path)
    assert inspect.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "small" in out and "c0 * tanh(g)" in out and "constant c0 = 0.25" in out and "(verified)" in out
    path.write_text(path.read_text().replace("0.25", "0.26"))
    other = tmp_path / "other"
    other.write_text("hello")
    for wrong in (path, other, tmp_path, tmp_path / "none"):
        assert inspect.main([str(wrong)]) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and str(wrong) in err
    assert inspect.main([]) == 2
