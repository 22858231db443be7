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
from interchange.distill.structure import structure_of, whole
from interchange.files.trajectories import Run, Trajectories
from interchange.language.matrix import op_orth
from interchange.language.view import canonical
from interchange.rule.rule import Rule

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
    settings = {"trajectories": str(tmp_path), "engine": "linear", "time": 20.0, "threads": 1, "quiet": True}
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
