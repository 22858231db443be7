"""Rules of teachers with a structure: what is fitted, and what is written and rolled out."""

import dataclasses
import json

import numpy as np
import pytest

from common.errors import L2OError
from common.tables.teachers import TEACHERS
from interchange.distill import rollouts
from interchange.distill.config import DistillConfig
from interchange.distill.run import search_front
from interchange.distill.structure import Updates, judged, structure_of, whole
from interchange.files.trajectories import Run, Trajectories
from interchange.language.matrix import op_orth
from interchange.language.view import canonical
from interchange.rule.__main__ import show
from interchange.rule.choice import pareto_front, valid_r2
from interchange.rule.front import read_front, write_front
from interchange.rule.rule import Rule
from interchange.rule.words import told
from tests.helpers.commands import csv_rows

BODY = Rule.from_text("c0 * tanh(g)", {"c0": -0.5})


def run(name: str, teacher: str, kind: str = "teacher") -> Run:
    generator = np.random.default_rng(int(name))
    g = generator.normal(size=(30, 12))
    return Run(
        name=name,
        problem="digits-mlp",
        problem_json="{}",
        source_kind=kind,
        source_json=json.dumps(TEACHERS[teacher].to_dict()),
        source_sha256="0" * 64,
        seed=0,
        init_seed=0,
        num_steps=30,
        scale=0.01,
        diverged=False,
        outcome="ok",
        x=g[..., None],
        g=g,
        y=-0.5 * np.tanh(g),
        loss=np.ones(30),
        step=np.arange(1, 31),
        param_index=np.zeros(12, int),
        flat_index=np.arange(12),
        params_names=("w",),
        params_shapes=((4, 3),),
    )


def recorded(*teachers: str) -> Trajectories:
    runs = {f"{k:06d}": run(f"{k:06d}", teacher) for k, teacher in enumerate(teachers)}
    names = list(runs)
    split = {"train": tuple(names[:1]), "valid": tuple(names[1:2]), "test": tuple(names[2:])}
    return Trajectories({"g": "g"}, runs, split, seed=3)


def test_the_structure_is_that_of_the_recorded_teacher():
    assert structure_of(recorded("rp_s_m", "rp_s_m")) == "orth"
    assert structure_of(recorded("rp_s", "rp_s")) == ""
    other = recorded("rp_s_m")
    runs = {name: dataclasses.replace(one, source_kind="user") for name, one in other.runs.items()}
    assert structure_of(dataclasses.replace(other, runs=runs)) == ""
    with pytest.raises(L2OError, match="expected runs of one structure, got none, orth"):
        structure_of(recorded("rp_s_m", "rp_s"))


def test_the_rule_is_the_operator_of_its_body():
    rule, g = whole(BODY, "orth"), np.random.default_rng(0).normal(size=(2, 15))
    view = canonical((5, 3))
    expected = [op_orth(row.reshape(5, 3), view.axes).ravel() for row in BODY.evaluate({"g": g})]
    np.testing.assert_allclose(rule.evaluate({"g": g}, shapes=[(5, 3)]), expected, rtol=1e-12)
    assert whole(BODY, "") is BODY and rule.scale == BODY.scale
    assert rule.provenance["body_complexity"] == BODY.complexity == rule.complexity - 1


def test_a_front_is_fitted_to_the_body_and_written_with_the_structure(tmp_path):
    settings = {
        "trajectories": str(tmp_path),
        "engine": "linear",
        "evaluations": 200,
        "threads": 1,
        "quiet": True,
    }
    front = search_front(recorded(*["rp_s_m"] * 3), DistillConfig(**settings), 0.0)
    assert front and all(rule.expression.op == "orth" for rule in front)
    assert all(rule.scale == 0.01 for rule in front)
    assert max(rule.provenance["r2"]["test"] for rule in front) > 0.8  # of what is inside


def test_rollouts_see_the_whole_rule(tmp_path, monkeypatch):
    seen = []

    def recording(config, trajectories, command, what, flags, **_):
        seen.append(Rule.load(what.removeprefix("rule:")).expression.op)
        raise L2OError("seen")

    monkeypatch.setattr(rollouts, "_run", recording)
    settings = DistillConfig(trajectories=str(tmp_path), threads=1)
    for teacher in ("rp_s_m", "rp_s"):
        with pytest.raises(L2OError, match="all 1 rules fail"):
            rollouts.visited([BODY], settings, recorded(teacher), 5, 4)
    assert seen == ["orth", "mul"]


def of_matrices(outputs, name: str = "000003", **changes) -> Run:
    """A run of a matrix and a vector, whole, with these outputs y [T, 15]."""
    views = (canonical((4, 3)), canonical((3,)))
    places = {
        "param_index": np.repeat([0, 1], [12, 3]),
        "flat_index": np.r_[np.arange(12), np.arange(3)],
        "params_names": ("w", "b"),
        "params_shapes": ((4, 3), (3,)),
    }
    g = np.random.default_rng(3).normal(size=outputs.shape)
    given = {"x": g[..., None], "g": g, "y": outputs, "params_views": views} | places | changes
    return dataclasses.replace(run(name, "rp_s_m"), **given)


def test_the_updates_r2_is_of_the_operators_results_on_matrices():
    """By the oracle, on a run that is in no split."""
    data, generator = recorded(*["rp_s_m"] * 3), np.random.default_rng(3)
    g = generator.normal(size=(30, 15))
    assert Updates(data).empty and Updates(data).r2(BODY) is None  # the runs are of sampled coordinates

    def judged(y: np.ndarray, body: Rule = BODY) -> float | None:
        return Updates(dataclasses.replace(data, runs=data.runs | {"000003": of_matrices(y)})).r2(body)

    exact = -0.5 * np.tanh(g)
    assert judged(exact) == pytest.approx(1.0, abs=1e-12)
    vector = exact.copy()
    vector[:, 12:] = 7.0
    assert judged(vector) == pytest.approx(1.0, abs=1e-12)  # no matrix: the body's R2 tells of it
    noisy = exact + 0.2 * generator.normal(size=exact.shape)
    view = canonical((4, 3))
    y, u = (op_orth(a[:, :12].reshape(30, 4, 3), view.axes) for a in (noisy, exact))
    assert judged(noisy) == pytest.approx(1.0 - np.square(y - u).sum() / np.square(y - y.mean()).sum())
    assert judged(exact, Rule.from_text("1 / (g - g)")) is None
    runs = {"000003": of_matrices(exact), "000004": of_matrices(noisy, "000004")}
    both = Updates(dataclasses.replace(data, runs=data.runs | runs))
    assert both.r2(BODY) == pytest.approx(1.0, abs=1e-12)
    assert both.r2(BODY, "test") == pytest.approx(judged(noisy))  # the last run chooses nothing
    fitted = dataclasses.replace(data, split=data.split | {"train": ("000000", "000003")})
    assert Updates(dataclasses.replace(fitted, runs=fitted.runs | {"000003": of_matrices(exact)})).empty


def test_bodies_are_chosen_by_what_the_structure_makes_of_them():
    """An offset is nearly all of y; one body has it and no more, the other what turns the update."""
    data, g = recorded(*["rp_s_m"] * 3), np.random.default_rng(3).normal(size=(30, 15))
    run_of_matrices = of_matrices(-2.0 * np.sign(g) - 0.1 * g)
    data = dataclasses.replace(data, runs=data.runs | {"000003": run_of_matrices})
    near, true = (
        dataclasses.replace(Rule.from_text(text, {"c0": -0.1}), provenance={"r2": {"valid": body}})
        for text, body in (("c0 * 20 * sign(g)", 0.99), ("c0 * g - 2 * sign(g)", 0.98))
    )
    found = {rule.expression: rule for rule in judged([true, near], data)}
    assert valid_r2(found[near.expression]) < 0.95
    assert valid_r2(found[true.expression]) == pytest.approx(1.0)
    assert [rule.expression for rule in pareto_front(found.values())][-1] == true.expression
    assert judged([true, near], recorded(*["rp_s_m"] * 3)) == [true, near]  # no matrices to judge by


def test_both_r2_are_named_wherever_rules_are(tmp_path):
    settings = {
        "trajectories": str(tmp_path),
        "engine": "linear",
        "evaluations": 200,
        "threads": 1,
        "quiet": True,
    }
    data = recorded(*["rp_s_m"] * 3)
    generator = np.random.default_rng(3)
    noisy = -0.5 * np.tanh(generator.normal(size=(30, 15))) + 0.05 * generator.normal(size=(30, 15))
    data = dataclasses.replace(
        data, runs=data.runs | {k: of_matrices(noisy, k) for k in ("000003", "000004")}
    )
    front = search_front(data, DistillConfig(**settings), 0.0)
    best = front[-1]
    body, update = best.provenance["r2"]["valid"], best.provenance["r2_update"]["valid"]
    assert 0.8 < body <= 1.0 and 0.5 < update < 1.0
    assert best.provenance["r2_update"]["test"] == update  # of equal runs
    write_front(tmp_path, front)
    assert read_front(tmp_path) == front
    (*_, row) = csv_rows(tmp_path / "front.csv")
    assert (float(row["r2"]), float(row["r2_update"])) == (body, update)
    assert f"{body:.4f} / {update:.4f}" in str(read_front(tmp_path))
    said = told(best, tmp_path / "best.json")
    assert (
        f"R2 of the body {body:.4f} (valid)" in said
        and f"R2 of the update {update:.4f} (valid), {update:.4f} (test)" in said
    )
    assert "r2_update" in show(best) and f"{update:.4g}" in show(best)
    before = dataclasses.replace(best, provenance=best.provenance | {"r2_update": update})
    assert valid_r2(before) == update  # one number, as earlier versions wrote it
    assert f"R2 of the update {update:.4f} (valid)" in told(before, tmp_path / "best.json")
