"""What each epoch does: problems in turn, drawn lengths, experts, the meta learning rate; what is refused."""

import collections
import dataclasses
import math

import numpy as np
import pytest

from common.errors import L2OError
from common.tables.recipes import RECIPES
from interchange.meta.config import TrainConfig, TuneConfig
from interchange.meta.schedule import EXPERTS, Schedule
from interchange.meta.state import settings_hash

MIX = "quadratic,lasso,rastrigin"


def test_problems_come_in_turn_each_equally_often():
    plan = Schedule(TrainConfig(problem=MIX))
    assert plan.several and plan.problems == ("quadratic", "lasso", "rastrigin")
    names = [plan.problem(number) for number in range(30)]
    assert names[:4] == ["quadratic", "lasso", "rastrigin", "quadratic"]
    assert set(collections.Counter(names).values()) == {10}
    assert Schedule(TrainConfig(problem=MIX), own_tasks=True).problems == ("",)


def test_lengths_are_log_uniform_and_whole_unrolls():
    plan = Schedule(TrainConfig(horizon="20..2000", unroll=20, seed=3))
    lengths = np.array([plan.length(epoch) for epoch in range(4000)])
    assert all(length % 20 == 0 for length in lengths) and (lengths.min(), lengths.max()) == (20, 2000)
    assert [plan.length(7), plan.length(7)] == [lengths[7]] * 2
    below = [(lengths <= bound).mean() for bound in (110, 210, 650)]
    expected = [math.log(bound / 20) / math.log(100) for bound in (110, 210, 650)]
    assert np.abs(np.subtract(below, expected)).max() < 4 * 0.5 / math.sqrt(4000)
    assert Schedule(TrainConfig(horizon="20..2000", seed=4)).length(7) != lengths[7]


@pytest.mark.parametrize(
    ("fields", "lengths", "horizons"),
    [
        ({}, (200, 200), (200,)),
        ({"epoch_length": 30}, (30, 30), (30,)),
        ({"horizon": "50"}, (50, 50), (50,)),
        ({"horizon": "45..130"}, (60, 120), (45, 76, 130)),
        ({"horizon": "100..101", "unroll": 10}, (100, 100), (100, 101)),
    ],
)
def test_bounds_of_lengths_and_the_horizons_of_validation(fields, lengths, horizons):
    plan = Schedule(TrainConfig(**fields))
    found = [plan.length(epoch) for epoch in range(200)]
    assert (min(found), max(found)) == lengths
    assert plan.horizons == horizons
    whole = Schedule(TuneConfig(horizon="20..50", unroll=100))  # rollouts of es need no whole unrolls
    assert {whole.length(epoch) for epoch in range(600)} == set(range(20, 51))


def test_epochs_imitate_with_their_probability_each_expert_equally_often():
    plan = Schedule(TrainConfig(imitation=0.3, seed=1))
    found = collections.Counter(plan.expert(epoch) for epoch in range(3000))
    assert set(found) == {"", *EXPERTS}
    assert abs(found[""] / 3000 - 0.7) < 4 * math.sqrt(0.21 / 3000)
    assert all(abs(found[name] - 300) < 4 * math.sqrt(300) for name in EXPERTS)
    assert not any(Schedule(TrainConfig()).expert(epoch) for epoch in range(100))


def test_each_stage_imitates_with_its_own_probability_and_the_last_goes_on():
    plan = Schedule(TrainConfig(curriculum=True, stage_imitation=(0.0, 0.5, 1.0), seed=1))
    shares = [sum(bool(plan.expert(epoch, stage)) for epoch in range(500)) / 500 for stage in range(5)]
    assert shares[0] == 0.0 and abs(shares[1] - 0.5) < 0.1 and shares[2:] == [1.0] * 3
    drawn = [epoch for epoch in range(500) if plan.expert(epoch, 1)]
    same = Schedule(TrainConfig(imitation=0.5, seed=1))
    assert drawn == [epoch for epoch in range(500) if same.expert(epoch)]
    assert plan.restarts(drawn[0], 1) and not plan.restarts(drawn[0])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fills_in_what_stands_at_its_default(name):
    config = TrainConfig(recipe=name)
    assert all(getattr(config, key) == value for key, value in RECIPES[name].items())
    Schedule(config)  # its settings go together
    own = TrainConfig(recipe=name, teacher="dm_raw", epochs=7, validate_every=3)
    assert (own.teacher, own.epochs, own.validate_every) == ("dm_raw", 7, 3)
    assert dataclasses.replace(own) == own and settings_hash(own) == settings_hash(
        dataclasses.replace(own, recipe="")
    )


@pytest.mark.parametrize(
    ("fields", "updates"),
    [
        ({}, 90),
        ({"horizon": "50"}, 27),
        ({"horizon": "20..200"}, None),
        ({"estimator": "es"}, 9),
        ({"estimator": "pes"}, 90),
        ({"estimator": "es", "imitation": 0.4}, None),
        ({"estimator": "es", "imitation": 1.0}, 90),
    ],
)
def test_the_meta_learning_rate_ends_where_the_updates_do(fields, updates):
    plan = Schedule(TrainConfig(epochs=9, unroll=20, lr_decay=0.1, **fields))
    total = sum(plan.updates(epoch) for epoch in range(9))
    assert plan.planned == total and updates in (None, total)
    assert plan.factor(0, 0) == 1.0 and plan.factor(total, 8) == pytest.approx(0.1)
    assert plan.factor(total // 2, 0) == pytest.approx(
        0.1 + 0.45 * (1 + math.cos(math.pi * (total // 2) / total)), rel=1e-15
    )
    curriculum = Schedule(TrainConfig(epochs=10, curriculum=True, lr_decay=0.2))  # goes by epochs
    assert curriculum.factor(999, 5) == pytest.approx(0.6)


def test_only_the_last_share_of_epochs_is_averaged():
    plan = Schedule(TrainConfig(epochs=10, average=0.3))
    assert [epoch for epoch in range(10) if plan.averages(epoch)] == [7, 8, 9]
    assert not any(Schedule(TrainConfig(epochs=10)).averages(epoch) for epoch in range(10))
    assert all(Schedule(TrainConfig(epochs=10, average=1.0)).averages(epoch) for epoch in range(10))


REFUSED = {
    "no horizon": ({"horizon": "long"}, "--horizon: expected steps such as 200, or a range such as 20..2000"),
    "backwards": ({"horizon": "200..20"}, "got '200..20'"),
    "open": ({"horizon": "20.."}, "got '20..'"),
    "zero": ({"horizon": "0..20"}, "got '0..20'"),
    "no whole unroll": ({"horizon": "25..35"}, "expected a multiple of --unroll 20"),
    "two lengths": ({"horizon": "20", "epoch_length": 50}, "--horizon replaces --epoch-length"),
    "start of several": ({"problem": MIX, "start": "run"}, "--start: expected one problem, got 3"),
    "part of the coordinates": (
        {"estimator": "second", "coordinates": 0.5},
        "--coordinates below 1 needs --estimator first or forward, got second",
    ),
    "tasks of es": ({"estimator": "es", "tasks": 2}, "--tasks: --estimator es runs each of its pairs"),
    "jobs without pairs": ({"jobs": 2}, "--jobs: expected --estimator es or pes"),
    "two lengths of epochs": ({"curriculum": True, "horizon": "20..40"}, "leave out --horizon"),
    "no last epochs": ({"curriculum": True, "average": 0.5}, "leave out --average"),
    "unseen": ({"curriculum": True, "validate_every": 0}, "expected --validate-every of at least 1"),
}


REFUSED |= {
    "stages without a curriculum": ({"lengths": (20, 40)}, "--lengths are those of a curriculum"),
    "stages that shrink": (
        {"curriculum": True, "lengths": (40, 20)}, "each longer than the one before, got 40 20"
    ),
    "shares of no stage": ({"stage_imitation": (0.5,)}, "--stage-imitation has a share for each stage"),
    "an unknown problem": ({"problem": "quadratic,lass"}, "unknown problem 'lass' (did you mean 'lasso'"),
    "no problem": ({"problem": "quadratic,"}, "unknown problem ''"),
    "a problem twice": (
        {"problem": "quadratic,lasso,quadratic"}, "--problem: expected each once, got 'quadratic' twice"
    ),
    "forward": (
        {"estimator": "forward"}, "--estimator: expected one of first, second, es, pes, got 'forward'"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(L2OError) as error:
        Schedule(TrainConfig(**fields))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_tuning_has_an_estimator_of_its_own_and_own_tasks_stay_in_this_process():
    assert TuneConfig(estimator="forward").estimator == "forward"
    # No checkpoint holds tangents.
    assert Schedule(TuneConfig(estimator="forward", coordinates=0.5)).restarts(0)
    assert not Schedule(TuneConfig(estimator="first")).restarts(0)
    with pytest.raises(L2OError, match="stay in this process"):
        Schedule(TuneConfig(jobs=2), own_tasks=True)
