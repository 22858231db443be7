"""The curriculum of Chen et al. 2020 as a table of scores and decisions."""

import math

import pytest

from common.tables.curriculum import LENGTHS, Stage


def run(stage: Stage, *scores: float) -> tuple[Stage, list[str]]:
    decisions = []
    for score in scores:
        stage, decision = stage.judged(score)
        decisions.append(decision)
    return stage, decisions


def test_lengths_are_the_papers_and_each_stage_is_judged_at_the_next():
    assert LENGTHS == (100, 200, 500, 1000, 1500, 2000, 2500, 3000)
    stages = [Stage(index) for index in range(len(LENGTHS))]
    assert [stage.length for stage in stages] == list(LENGTHS)
    assert [stage.judged_at for stage in stages] == [*LENGTHS[1:], 3000]


@pytest.mark.parametrize(
    ("scores", "decisions"),
    [
        ((0.9, 0.8, 0.7, 0.6), ["keep"] * 4),
        ((0.9, 0.95, 0.92), ["keep", "go on", "advance"]),
        ((0.9, 0.8, 0.85), ["keep", "keep", "advance"]),
        ((0.9, 0.95, 0.8, 0.85), ["keep", "go on", "keep", "advance"]),
        ((1.0, 1.1, 0.9, 0.9), ["go on", "go on", "keep", "advance"]),
        ((1.0, 1.1, 1.2), ["go on", "go on", "stop"]),
        ((math.inf, math.nan, 2.0), ["go on", "go on", "stop"]),
    ],
)
def test_decisions_of_a_stage_that_began_at_1(scores, decisions):
    assert run(Stage().begun(1.0), *scores)[1] == decisions


def test_the_next_stage_begins_anew_and_one_without_gain_ends_it():
    stage, decisions = run(Stage().begun(1.0), 0.5, 0.6, 0.6)
    assert decisions[-1] == "advance"
    assert stage == Stage(1) and (stage.length, stage.judged_at) == (200, 500)
    stage, decisions = run(stage.begun(0.7), 0.75, 0.8, 0.9)
    assert decisions == ["go on", "go on", "stop"]
    assert stage.ended and stage.best == 0.7 and not stage.improved


def test_the_last_stage_ends_where_it_no_longer_improves():
    stage, decisions = run(Stage(len(LENGTHS) - 1).begun(1.0), 0.9, 0.8, 0.85)
    assert decisions == ["keep", "keep", "stop"]
    assert stage.ended and stage.best == 0.8


def test_a_shortened_curriculum_has_its_own_stages_in_checkpoints_too():
    short = (20, 50)
    stage = Stage(lengths=short)
    assert (stage.length, stage.judged_at) == (20, 50)
    stage, decisions = run(stage.begun(1.0), 0.5, 0.6, 0.6)
    assert decisions[-1] == "advance" and (stage.length, stage.judged_at) == (50, 50)
    assert Stage.from_dict(stage.to_dict(), short) == stage
    stage, decisions = run(stage.begun(1.0), 0.9, 0.95, 0.92)
    assert decisions[-1] == "stop" and stage.ended


@pytest.mark.parametrize("stage", [Stage(), Stage(3, 2, True, 0.5), Stage(1, 4, False, 0.25, True)])
def test_a_stage_survives_a_checkpoint(stage):
    values = stage.to_dict()
    assert all(value is None or math.isfinite(value) for value in values.values())
    assert Stage.from_dict(values) == stage
